"""The names under which annotation files keep what a task needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Aliases in order of preference; the first present wins.
QUESTION = ("question", "problem", "query")
ANSWER = (
    *("answer", "solution", "correct_choice", "answer_index", "truth", "right_answer"),
    *("correct_answer", "correct_option", "correct_index", "answer_idx", "answer_id"),
    *("answer_key", "answer_key_position", "answer_number", "ground_truth"),
)
VIDEO = (
    *("video", "path", "video_path", "video_name", "videoID", "vid", "video_uid", "video_file"),
    *("filename", "file_name", "video_id"),
)
SEGMENTS = (
    *("segments", "relevant_windows", "windows", "gt_windows", "time_reference", "location"),
    *("clue_intervals", "intervals", "gt_segments", "relevant_segments", "spans"),
)
IDENTITY = ("id", "task_id", "question_id", "qid", "uid", "q_uid", "problem_id", "index")
OPTIONS = ("options", "candidates", "choices")
TASK_TYPE = ("task_type", "question_type", "task_types", "type", "question_category")
DURATION = ("duration", "duration_s")

_KNOWN = {
    *QUESTION,
    *ANSWER,
    *VIDEO,
    *SEGMENTS,
    *IDENTITY,
    *OPTIONS,
    *TASK_TYPE,
    *DURATION,
    "split",
}


def plain(name: Any) -> str:
    """Return a name as it would stand in lower case, its words joined by underscores.

    >>> plain("Option 0"), plain("rightAnswer"), plain("Video-Name ")
    ('option_0', 'right_answer', 'video_name')
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(name).strip())
    return re.sub(r"[\s_-]+", "_", words).casefold()


_BY_PLAIN = {plain(name): name for name in sorted(_KNOWN, key=lambda name: name == plain(name))}


def canonical(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record in which known fields have the names that are listed here.

    A field that stands under its own name already is not replaced by one in capitals.

    >>> canonical({"Question": "Which?", "Correct Answer": "B", "videoID": "x", "Level": 3})
    {'question': 'Which?', 'correct_answer': 'B', 'videoID': 'x', 'Level': 3}
    """
    found: dict[str, Any] = {}
    for name, value in record.items():
        known = name if name in _KNOWN else _BY_PLAIN.get(plain(name), name)
        found[name if known in found or (known != name and known in record) else known] = value
    return found


def first(record: Mapping[str, Any], names: tuple[str, ...], what: str) -> Any:
    """Return the value under the first alias present; raise ValueError naming the aliases."""
    for name in names:
        if name in record:
            return record[name]
    raise ValueError(f"no {what}: expected one of {list(names)}, found {sorted(map(str, record))}")
