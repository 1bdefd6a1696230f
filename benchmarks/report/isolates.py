"""Isolates: text from elsewhere stands apart, so that its direction moves nothing of the report's.

Names, questions and replies may be written from right to left, or hold characters that turn what
stands beside them round. ``foreign`` marks such a text where it is put into a sentence or a cell; a
page makes ``<bdi>`` of the marks, Markdown, which knows none, leaves them out. The marks are
characters that Unicode keeps for use inside a program.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "\ufdd0", "\ufdd1"
CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # of direction
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")
_LOST = "\N{REPLACEMENT CHARACTER}"
_OPENERS, _CLOSER = "\u2066\u2067\u2068", "\u2069"
_ENDS = "\n\u2029"  # of a paragraph, and so of all isolates in it


def foreign(text: object) -> str:
    """Return a text from elsewhere, marked.

    Isolates that it opens end in it, and it can end no other.

    >>> foreign("run") == OPEN + "run" + CLOSE
    True
    """
    return f"{OPEN}{_closed(_MARKS.sub(_LOST, str(text)))}{CLOSE}"


def unmarked(text: str) -> str:
    """Return a text without marks.

    >>> unmarked(f"{foreign('run')} is incomplete")
    'run is incomplete'
    """
    return _MARKS.sub("", text)


def _closed(text: str) -> str:
    if not any(c in text for c in (*_OPENERS, _CLOSER)):
        return text
    parts, depth = [], 0
    for c in text:
        if c in _OPENERS:
            depth += 1
        elif c == _CLOSER:
            c, depth = (c, depth - 1) if depth else (_LOST, 0)
        elif c in _ENDS:
            parts.append(_CLOSER * depth)
            depth = 0
        parts.append(c)
    return "".join(parts) + _CLOSER * depth
