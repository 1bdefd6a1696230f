"""One annotation record of any common layout -> one ``Task``.

Long-video datasets name the same things differently and encode the answer in five ways. The rules,
with where each was met, are pure functions here; ``suite.JsonlSuite`` reads the files. The letter
(or index) of an answer is authoritative: only a textual answer is looked up among the options.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from gym_longvideo.task import Task

# Aliases in order of preference; the first present wins.
QUESTION = ("question", "problem", "query")
ANSWER = ("answer", "solution", "correct_choice", "answer_index", "truth")
VIDEO = ("video", "path", "video_path", "video_name", "videoID", "vid")
SEGMENTS = ("segments", "relevant_windows", "windows", "gt_windows", "time_reference", "location")
IDENTITY = ("id", "task_id", "question_id", "qid", "uid", "q_uid", "problem_id", "index")
OPTIONS = ("options", "candidates", "choices")
OPTION_COLUMNS = ("option{}", "option {}", "option_{}", "a{}")
TASK_TYPE = ("task_type", "question_type", "task_types", "type", "question_category")

_PREFIX = re.compile(r"^\(?([A-Z])[.):]\s*")
_TAGGED = re.compile(r"^\s*<answer>(.*)</answer>\s*$", re.DOTALL)
_LETTER = re.compile(r"^\(?([A-Za-z])[.):]?$")
_LETTER_THEN_TEXT = re.compile(r"^\(?([A-Z])[.):]\s*\S")
_CLOCK = re.compile(r"^(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)$")


def first(record: Mapping[str, Any], names: tuple[str, ...], what: str) -> Any:
    """Return the value under the first alias present; raise ValueError naming the aliases."""
    for name in names:
        if name in record:
            return record[name]
    raise ValueError(f"no {what}: expected one of {list(names)}, found {sorted(record)}")


def parse_record(record: Mapping[str, Any], *, default_id: str) -> Task:
    """Return the task of one record; ``Task.video`` is the path as annotated.

    Raises:
        ValueError: If the record is unusable, naming the value and what was expected.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"a record must be an object, not {type(record).__name__}")
    question = first(record, QUESTION, "question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question={question!r} must be a string that says something")
    video = first(record, VIDEO, "video")
    if not isinstance(video, str) or not video.strip() or "\0" in video:
        raise ValueError(f"video={video!r} must be a path")
    options = parse_options(record)
    issues = ["duplicate_options"] if len(set(options)) < len(options) else []
    answer, ambiguous = parse_answer(first(record, ANSWER, "answer"), options)
    issues += ["ambiguous_answer_text"] if ambiguous else []
    duration_s = _duration(record.get("duration", record.get("duration_s")))
    segments, repaired = parse_segments(
        next((record[name] for name in SEGMENTS if name in record), None), duration_s
    )
    issues += ["repaired_segments"] if repaired else []
    identity = next((record[name] for name in IDENTITY if name in record), default_id)
    if isinstance(identity, bool) or not isinstance(identity, (str, int)):
        raise ValueError(f"id={identity!r} must be a string or a whole number")
    kinds = next((record[name] for name in TASK_TYPE if name in record), None)
    if not isinstance(kinds, (list, tuple)):
        kinds = () if kinds is None else (kinds,)
    video_id = record.get("video_id")
    used = {*QUESTION, *ANSWER, *VIDEO, *SEGMENTS, *IDENTITY, *OPTIONS, *TASK_TYPE}
    used |= {"duration", "duration_s"} if duration_s is not None else set()
    return Task(
        task_id=str(identity),
        video=video,
        question=question.strip(),
        options=options,
        answer_index=answer,
        segments_s=segments,
        video_id="" if video_id is None else str(video_id),
        duration_s=duration_s,
        task_types=tuple(str(kind) for kind in kinds),
        issues=tuple(issues),
        meta={key: value for key, value in record.items() if key not in used},
    )


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
    """
    raw = next((record[name] for name in OPTIONS if name in record), None)
    if raw is None:
        raw = _option_columns(record)
    if isinstance(raw, (str, bytes)) or not isinstance(raw, (list, tuple)) or not raw:
        raise ValueError(
            f"options={raw!r} must be a list of choices (one of {list(OPTIONS)}, or columns "
            "option0.. / a0..)"
        )
    bad = [option for option in raw if isinstance(option, bool) or not _textual(option)]
    if bad:
        raise ValueError(f"options contain {bad[0]!r}; use strings")
    options = [str(option).strip() for option in raw]
    matches = [_PREFIX.match(option) for option in options]
    expected = string.ascii_uppercase[: len(options)]
    if len(options) > 1 and all(
        match and match[1] == letter for match, letter in zip(matches, expected, strict=False)
    ):
        options = [_PREFIX.sub("", option) for option in options]
    return tuple(options)


def _option_columns(record: Mapping[str, Any]) -> list[Any]:
    for pattern in OPTION_COLUMNS:
        start = 0 if pattern.format(0) in record else 1
        columns = []
        while (name := pattern.format(start + len(columns))) in record:
            columns.append(record[name])
        # LongVideoBench's parquet fills unused columns at the end with "N/A".
        while len(columns) > 2 and columns[-1] in ("N/A", None, ""):
            columns.pop()
        if columns:
            return columns
    return []


def parse_answer(answer: Any, options: tuple[str, ...]) -> tuple[int | None, bool]:
    """Return the answer's index, and whether its text stands under several letters.

    Understood: a letter ("B", "(b)", "B."), a 0-based index (2, "2"), "<answer>B</answer>",
    "(D) 1633", and the text of an option. ``None`` and -1 mean that no answer is public.

    >>> parse_answer("<answer>B</answer>", ("x", "y"))
    (1, False)
    >>> parse_answer("y", ("x", "y", "y"))
    (1, True)
    """
    if answer is None or (answer == -1 and not isinstance(answer, bool)):
        return None, False
    if isinstance(answer, bool) or not isinstance(answer, (int, str)):
        raise ValueError(f"answer={answer!r} must be a letter, a 0-based index or an option's text")
    if isinstance(answer, int):
        return _in_range(answer, answer, options), False
    text = answer.strip()
    if tagged := _TAGGED.match(text):
        text = tagged[1].strip()
    exact = [i for i, option in enumerate(options) if option == text]
    if letter := _LETTER.match(text):
        index = ord(letter[1].upper()) - ord("A")
        # A letter names its option even where another option's text is that very letter.
        if index < len(options) or not exact:
            return _in_range(index, answer, options), exact not in ([], [index])
    found = exact or [i for i, option in enumerate(options) if option.casefold() == text.casefold()]
    if found:
        return found[0], len(found) > 1
    if letter := _LETTER_THEN_TEXT.match(text):
        return _in_range(ord(letter[1]) - ord("A"), answer, options), False
    if text == "-1":
        return None, False
    if re.fullmatch(r"-?\d+", text):
        return _in_range(int(text), answer, options), False
    raise ValueError(
        f"answer={answer!r} is not among the options {list(options)}; give a letter, a 0-based "
        "index or an option's text"
    )


def _in_range(index: int, answer: Any, options: tuple[str, ...]) -> int:
    if not 0 <= index < len(options):
        last = chr(ord("A") + len(options) - 1)
        raise ValueError(
            f"answer={answer!r} is not among the {len(options)} options; use A..{last} or "
            f"0..{len(options) - 1}"
        )
    return index


def parse_segments(
    raw: Any, duration_s: float | None
) -> tuple[tuple[tuple[float, float], ...], bool]:
    """Return sorted (start, end) seconds, and whether any had to be clamped to the video.

    Understood: ``[[1, 2.5], ...]``, ``[1, 2.5]``, ``["00:01", "01:02.5"]`` and "00:01-01:02". Edges
    that leave the video by up to a second are clamped (NExT-GQA's integer durations); anything else
    that is reversed or outside is an error.

    >>> parse_segments("00:15-01:02", 90.0)
    (((15.0, 62.0),), False)
    """
    if raw is None or raw in ([], (), ""):
        return (), False
    if isinstance(raw, str):
        raw = raw.split("-")
    if not isinstance(raw, (list, tuple)):
        raise ValueError(f"segments={raw!r} must be a list of [start, end] in seconds")
    pairs = raw if isinstance(raw[0], (list, tuple)) else [raw]
    segments, repaired = [], False
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"segment {pair!r} must be [start, end] in seconds")
        start_s, end_s = (parse_time(value) for value in pair)
        if start_s >= end_s:
            raise ValueError(f"segment {list(pair)!r} is reversed or empty; start must be < end")
        limit_s = duration_s if duration_s is not None else float("inf")
        if start_s < -1.0 or end_s > limit_s + 1.0:
            raise ValueError(f"segment {list(pair)!r} is outside the video (0 to {limit_s} s)")
        clamped = (max(0.0, start_s), min(end_s, limit_s))
        if clamped[0] >= clamped[1]:
            raise ValueError(f"segment {list(pair)!r} is outside the video (0 to {limit_s} s)")
        repaired |= clamped != (start_s, end_s)
        segments.append(clamped)
    return tuple(sorted(segments)), repaired


def parse_time(value: Any) -> float:
    """Return seconds from a number, "75.5", "MM:SS" or "H:MM:SS".

    >>> parse_time("1:02:03.5")
    3723.5
    """
    if isinstance(value, str) and (clock := _CLOCK.match(value.strip())):
        return int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])
    try:
        seconds = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = float("nan")
    if not abs(seconds) < float("inf"):
        raise ValueError(f"time {value!r} is neither seconds nor MM:SS")
    return seconds


def _duration(value: Any) -> float | None:
    # Video-MME's "duration" is a class ("short"), not seconds: it stays in meta.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not 0 < value < 1e300:  # a whole number may be too large for a float
        raise ValueError(f"duration={value!r:.40} must be a number of seconds greater than 0")
    return float(value)


def _textual(option: Any) -> bool:
    return isinstance(option, (str, int, float))
