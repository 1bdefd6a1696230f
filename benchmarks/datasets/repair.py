"""What real annotation gets wrong, and how it is read all the same.

Pure functions that adapters share. A repair is named among a task's ``issues``; what cannot be
repaired is a ``Defect``, whose kind is what ``longvideo validate`` counts. Nothing is
invented: a segment that makes no sense is dropped, never turned around or widened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.datasets.dataset import Defect
from gym_longvideo.annotation import (
    ANSWER,
    QUESTION,
    SEGMENTS,
    first,
    parse_answer,
    parse_options,
    parse_segments,
    parse_time,
)
from gym_longvideo.annotation.segments import pair_of, pairs_of

GLOBAL_SHARE = 0.95  # a segment that covers more of the video says that all of it matters
_EMBEDDED = re.compile(r"(?:^|\n)[ \t]*\(([A-Z])\)[ \t]*")


def text_answer(answer: Any, options: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    """Return the index of an answer that is given as the text of an option.

    Text comes first here: where options are single letters or numbers, ``parse_answer`` would take
    "B" for the second option. An answer that no option has is returned as it is, for
    ``parse_answer`` to read it or to refuse it.

    Returns:
        The index, and ``accepted_indices`` and an issue if the text stands under several letters.

    Raises:
        Defect: If a number is not among numbers, which could be taken for an index.

    >>> text_answer("B", ["A", "C", "B"])
    (2, {})
    >>> text_answer("y", ["x", "y", "Y "])
    (1, {})
    >>> text_answer("y", ["y", "x", "y"])
    (0, {'accepted_indices': [0, 2], 'issues': ['ambiguous_answer_text']})
    """
    if not isinstance(answer, str) or isinstance(options, str):
        return answer, {}
    stripped = [str(option).strip() for option in options or ()]
    text = answer.strip()
    found = [i for i, option in enumerate(stripped) if option == text] or [
        i for i, option in enumerate(stripped) if option.casefold() == text.casefold()
    ]
    if not found:
        if text.isdecimal() and any(option.isdecimal() for option in stripped):
            raise Defect(
                "answer_not_in_options", f"answer={answer!r} is not among the options {stripped}"
            )
        return answer, {}
    if len(found) == 1:
        return found[0], {}
    return found[0], {"accepted_indices": found, "issues": ["ambiguous_answer_text"]}


def index_answer(answer: Any) -> Any:
    """Return an answer that can be nothing but a 0-based index as a number.

    CSV and some Parquet files hold "3", which ``parse_answer`` would seek among the texts first.
    """
    if isinstance(answer, str) and re.fullmatch(r"\s*-?\d+(\.0+)?\s*", answer):
        return int(float(answer))
    return int(answer) if isinstance(answer, float) and answer.is_integer() else answer


def number(value: Any) -> float | None:
    """Return a number that may be written as text, as tables do, or None.

    >>> number("12.5"), number("short"), number("nan"), number(True)
    (12.5, None, None, None)
    """
    try:
        found = float("nan") if isinstance(value, bool) else float(value)
    except (OverflowError, TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def embedded_options(question: Any) -> tuple[str, list[str]] | None:
    r"""Return question and options of a question that ends in its options, or None.

    Each option begins a line, as "(A) ...", and the letters are consecutive.

    >>> embedded_options("Which (1) of these?\n(A) x\n(B) y\n")
    ('Which (1) of these?', ['x', 'y'])
    """
    if not isinstance(question, str):
        return None
    marks = list(_EMBEDDED.finditer(question))
    starts = [i for i, mark in enumerate(marks) if mark[1] == "A"]
    if not starts:
        return None
    marks = marks[starts[-1] :]
    if [mark[1] for mark in marks] != [chr(ord("A") + i) for i in range(len(marks))]:
        return None
    if len(marks) < 2:
        return None
    ends = [*(mark.start() for mark in marks[1:]), len(question)]
    texts = [question[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    return question[: marks[0].start()].strip(), texts


def clean_segments(raw: Any, duration_s: Any = None) -> dict[str, Any]:
    """Return what a record says about its segments: those that make sense, and what did not.

    Issues: "odd_segment" (no times), "reversed_segment", "empty_segment" (no length),
    "outside_segment" (beyond the video) are dropped; "repaired_segments" were cut to the video, by
    a second or a hundredth of it at most; "global_segment" covers nearly all of the video.

    Args:
        raw: As ``gym_longvideo.annotation.parse_segments`` takes it.
        duration_s: Of the video, if known.

    Returns:
        ``segments`` and ``issues``, and the raw value as ``annotated_segments`` if it differs.

    >>> clean_segments("00:10-00:05", 60.0)
    {'segments': [], 'issues': ['reversed_segment'], 'annotated_segments': '00:10-00:05'}
    """
    if raw is None or (isinstance(raw, (list, tuple, str)) and not raw):
        return {}
    limit_s = number(duration_s)
    limit_s = limit_s if limit_s and limit_s > 0 else None
    segments: list[list[float]] = []
    issues: dict[str, None] = {}
    for pair in pairs_of(raw):
        segment, issue = _clean(pair, limit_s)
        if issue:
            issues[issue] = None
        if segment:
            segments.append(segment)
    if limit_s and any(end - start > GLOBAL_SHARE * limit_s for start, end in segments):
        issues["global_segment"] = None
    changed = set(issues) - {"global_segment"}
    kept = {"annotated_segments": raw} if changed else {}
    return {"segments": sorted(segments), "issues": list(issues), **kept}


def _clean(segment: Any, limit_s: float | None) -> tuple[list[float] | None, str | None]:
    if (pair := pair_of(segment)) is None:
        return None, "odd_segment"
    try:
        start_s, end_s = (parse_time(value) for value in pair)
    except ValueError:
        return None, "odd_segment"
    if start_s == end_s:
        return None, "empty_segment"
    if start_s > end_s:
        return None, "reversed_segment"
    slack_s = max(1.0, 0.01 * limit_s) if limit_s else 1.0
    if limit_s and limit_s < end_s <= limit_s + slack_s and start_s < limit_s:
        return [max(0.0, start_s), limit_s], "repaired_segments"
    try:
        segments, repaired = parse_segments([[start_s, end_s]], limit_s)
    except ValueError:
        return None, "outside_segment"
    return list(segments[0]), "repaired_segments" if repaired else None


def merge(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return parts of a record as one; their issues are collected.

    >>> merge({"id": 1, "issues": ["a"]}, {"segments": [], "issues": ["b"]})
    {'id': 1, 'issues': ['a', 'b'], 'segments': []}
    """
    record: dict[str, Any] = {}
    for part in parts:
        issues = [*record.get("issues", ()), *part.get("issues", ())]
        record |= part
        if issues:
            record["issues"] = issues
    return record


def diagnose(record: Mapping[str, Any]) -> str:
    """Return the kind of the defect for which ``parse_record`` refused a record."""
    question = next((record[name] for name in QUESTION if name in record), None)
    if not isinstance(question, str) or not question.strip():
        return "blank_question"
    try:
        options = parse_options(record)
    except ValueError:
        return "no_options"
    if not any(name in record for name in ANSWER):
        return "no_answer"
    try:
        parse_answer(first(record, ANSWER, "answer"), options)
    except ValueError:
        return "answer_not_in_options"
    try:
        parse_segments(next((record[name] for name in SEGMENTS if name in record), None), None)
    except ValueError:
        return "bad_segment"
    return "malformed_row"
