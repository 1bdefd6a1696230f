"""The options of a question: a list, an object, columns, or what a library printed of them."""

from __future__ import annotations

import ast
import io
import json
import re
import string
import tokenize
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gym_longvideo.annotation.fields import OPTIONS, plain

_NUMBERED = ("option{}", "option_{}", "a{}", "choice{}", "choice_{}", "candidate{}", "candidate_{}")
_LETTERED = ("option_{}", "option{}", "choice_{}", "choice{}")
_FILLER = ("N/A", None, "")  # LongVideoBench's Parquet fills unused columns at the end
_TEXT = ("text", "value", "content", "option", "answer")
_PREFIX = re.compile(r"^\(?([A-Z])[.):]\s*")
_JUNK = {tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT}


class Options(NamedTuple):
    """Options, and the names by which an object of them calls each; () where there are none."""

    texts: tuple[str, ...]
    keys: tuple[str, ...] = ()


def parse_options(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options without letter prefixes.

    Prefixes go only if every option carries the consecutive one, so that "A man" and "A. Lincoln"
    keep theirs.

    >>> parse_options({"options": ["A. a cat", "B. a dog"]})
    ('a cat', 'a dog')
    >>> parse_options({"option0": "A. Lincoln", "option1": "B. Obama Jr", "option2": "N/A"})
    ('Lincoln', 'Obama Jr')
    >>> parse_options({"a0": "A. Lincoln", "a1": "Obama"})
    ('A. Lincoln', 'Obama')
    >>> parse_options({"options": {"B": "a dog", "A": "a cat"}})
    ('a cat', 'a dog')
    """
    return read_options(record).texts


def read_options(record: Mapping[str, Any]) -> Options:
    """Return the options of a record without letter prefixes, and their keys if it has any.

    Raises:
        ValueError: If there are none, naming the columns sought and those that there are.
    """
    raw = next((record[name] for name in OPTIONS if name in record), None)
    given = _columns(record) if raw is None else _listed(raw)
    keys: tuple[str, ...] = ()
    if isinstance(given, Mapping):
        keys, given = _entries(given)
    if not isinstance(given, (list, tuple)) or not given:
        there = f"; the columns are {sorted(map(str, record))}" if raw is None else ""
        raise ValueError(
            f"options={given if raw is None else raw!r} must be a list of choices (one of "
            f"{list(OPTIONS)}, or columns option0.. / a0.. / A..){there}"
        )
    texts = [_text(option) for option in given]
    bad = [
        text for text in texts if isinstance(text, bool) or not isinstance(text, str | int | float)
    ]
    if bad:
        raise ValueError(f"options contain {bad[0]!r}; use strings")
    options = [str(text).strip() for text in texts]
    letters = [match and match[1] for match in map(_PREFIX.match, options)]
    if len(options) > 1 and letters == list(string.ascii_uppercase[: len(options)]):
        options = [_PREFIX.sub("", option) for option in options]
    return Options(tuple(options), keys)


def _columns(record: Mapping[str, Any]) -> list[Any]:
    """Return the options of a record with a column for each, without unused ones at its end."""
    named = {plain(name): value for name, value in record.items()}
    for pattern in _NUMBERED:
        start = 0 if pattern.format(0) in named else 1
        if columns := _run(named, lambda i, p=pattern, s=start: p.format(s + i)):
            return columns
    for letters in (string.ascii_uppercase, string.ascii_lowercase):
        if len(columns := _run(record, lambda i, each=letters: each[i])) > 1:
            return columns
    for pattern in _LETTERED:
        if columns := _run(named, lambda i, p=pattern: p.format(string.ascii_lowercase[i])):
            return columns
    return []


def _run(record: Mapping[str, Any], name: Callable[[int], str]) -> list[Any]:
    columns: list[Any] = []
    while len(columns) < 26 and name(len(columns)) in record:
        columns.append(record[name(len(columns))])
    while len(columns) > 2 and columns[-1] in _FILLER:
        columns.pop()
    return columns


def _listed(raw: Any) -> Any:
    """Return what a text lists: a printed list or object, or a lettered option on each line."""
    if not isinstance(raw, str):
        return raw
    text = raw.strip()
    if text[:1] in "[{" or text.startswith("array("):
        return read_literal(text)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    letters = [match and match[1] for match in map(_PREFIX.match, lines)]
    lettered = len(lines) > 1 and letters == list(string.ascii_uppercase[: len(lines)])
    return lines if lettered else raw


def read_literal(text: str) -> Any:
    r"""Return the list or object that a text prints, in the forms of Python, JSON and numpy.

    Numpy prints arrays without commas, which Python would take for one long string. A text that is
    none of these is returned as it is.

    >>> read_literal("['a cat' 'a dog'\n \"it's\"]"), read_literal("['x', 'y']")
    (['a cat', 'a dog', "it's"], ['x', 'y'])
    >>> read_literal("[1 2 3]"), read_literal('{"A": null}'), read_literal("[not a list]")
    ([1, 2, 3], {'A': None}, '[not a list]')
    """
    body = text.strip()
    if wrapped := re.fullmatch(r"array\((\[.*\])(?:,\s*dtype=[^\]]*)?\)", body, re.DOTALL):
        body = wrapped[1]
    if not (body[:1] == "[" and body[-1:] == "]") and not (body[:1] == "{" and body[-1:] == "}"):
        return text
    if (printed := _printed(body)) is not None:
        return printed
    for read in (ast.literal_eval, json.loads):
        try:
            return read(body)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def _printed(body: str) -> list[Any] | None:
    """Return the entries of a list that is printed without commas, None if it is not."""
    try:
        tokens = [
            token
            for token in tokenize.generate_tokens(io.StringIO(body).readline)
            if token.type not in _JUNK
        ]
        inside = tokens[1:-1]
        if len(inside) < 2 or any(t.type not in (tokenize.STRING, tokenize.NUMBER) for t in inside):
            return None
        return [ast.literal_eval(token.string) for token in inside]
    except (tokenize.TokenError, SyntaxError, ValueError, IndentationError):
        return None


def _entries(given: Mapping[Any, Any]) -> tuple[tuple[str, ...], list[Any]]:
    """Return keys and options of an object; consecutive letters from A need no keys."""
    keys = [str(key).strip() for key in given]
    values = dict(zip(keys, given.values(), strict=True))
    if all(re.fullmatch(r"[A-Za-z]", key) for key in keys):
        keys.sort(key=str.upper)
    elif all(key.isdecimal() for key in keys):
        keys.sort(key=int)
    plainly = [key.upper() for key in keys] == list(string.ascii_uppercase[: len(keys)])
    return () if plainly else tuple(keys), [values[key] for key in keys]


def _text(option: Any) -> Any:
    """Return the text of an option that is an object: {"A": text}, {"label": "A", "text": text}."""
    if not isinstance(option, Mapping):
        return option
    if len(option) == 1:
        return next(iter(option.values()))
    return next((option[name] for name in _TEXT if name in option), option)


def without_options(question: str, options: Sequence[str]) -> str:
    r"""Return a question without the list of its options, if it repeats them in their order.

    Beside a list of options the copy in the question would contradict them once they are shuffled.
    Each begins with its letter, "(A)", "A." or "A:", on a line of its own or all on one; a heading
    ("Options:") goes too. Whatever else follows stays.

    >>> without_options("Which?\n(A) a cup\n(B) a book", ["a cup", "a book"])
    'Which?'
    >>> without_options("Which? A. a cup B. a book", ["a book", "a cup"])
    'Which? A. a cup B. a book'
    """
    if len(options) < 2:
        return question
    pieces = []
    for letter, option in zip(string.ascii_uppercase, options, strict=False):
        words = r"\s+".join(map(re.escape, option.rstrip(".").split()))
        pieces.append(rf"(?:\({letter}\)|\b{letter}[.):])\s*{words}\s*[.,;]?")
    heading = r"(?:^|(?<=\s))(?:(?:options|choices|candidates)\s*:?\s*)?"
    found = list(re.finditer(heading + r"\s*".join(pieces), question, re.IGNORECASE))
    if not found:
        return question
    start, end = found[-1].span()
    rest = [part.strip() for part in (question[:start], question[end:])]
    return "\n".join(part for part in rest if part) or question
