"""One annotation record of any common layout -> one ``Task``.

Long-video datasets name the same things differently and encode the answer in five ways. The rules,
with where each was met, are pure functions here; ``suite.JsonlSuite`` reads the files.

In reading order:

    fields.py    the names under which files keep what a task needs
    options.py   lists, objects, columns, and what libraries print of them
    answers.py   letters, indices, keys and texts; what only the whole file tells
    segments.py  times and segments, in seconds
    identity.py  ids that are unique within a file
    records.py   the records of a JSON or JSON Lines file
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gym_longvideo.annotation.answers import Writing, answer_of, parse_answer
from gym_longvideo.annotation.fields import (
    ANSWER,
    DURATION,
    IDENTITY,
    OPTIONS,
    QUESTION,
    SEGMENTS,
    TASK_TYPE,
    VIDEO,
    canonical,
    first,
)
from gym_longvideo.annotation.identity import identity_of, local_ids
from gym_longvideo.annotation.options import parse_options, read_options, without_options
from gym_longvideo.annotation.segments import parse_segments, parse_time
from gym_longvideo.task import Task

__all__ = [
    "ANSWER",
    "IDENTITY",
    "OPTIONS",
    "QUESTION",
    "SEGMENTS",
    "TASK_TYPE",
    "VIDEO",
    "Annotation",
    "canonical",
    "first",
    "parse_answer",
    "parse_options",
    "parse_record",
    "parse_segments",
    "parse_time",
]


class Annotation:
    """What only the whole of a file tells of each of its records.

    Args:
        records: All that the file holds; those that are no objects are passed over.

    Attributes:
        writing: How its answers are written.
        local_ids: Ids that name a question only together with its video.
    """

    def __init__(self, records: Iterable[Any] = ()) -> None:
        found = [canonical(record) for record in records if isinstance(record, Mapping)]
        self.writing = Writing.of(found)
        self.local_ids = local_ids(found)


def parse_record(
    record: Mapping[str, Any],
    *,
    default_id: str,
    file: Annotation | None = None,
    least_options: int = 2,
) -> Task:
    """Return the task of one record; ``Task.video`` is the path as annotated.

    Args:
        record: As its file has it.
        default_id: Id of a record that has none.
        file: What the other records of its file tell.
        least_options: Fewest options of a question.

    Raises:
        ValueError: If the record is unusable, naming the value and what was expected.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"a record must be an object, not {type(record).__name__}")
    record, file = canonical(record), file or Annotation()
    question = first(record, QUESTION, "question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question={question!r} must be a string that says something")
    video = first(record, VIDEO, "video")
    if not isinstance(video, str) or not video.strip() or "\0" in video:
        raise ValueError(f"video={video!r} must be a path")
    options = read_options(record)
    if len(options.texts) < least_options:
        raise ValueError(
            f"options={list(options.texts)} must be {least_options} or more, or there is nothing "
            "to choose"
        )
    issues = ["duplicate_options"] if len(set(options.texts)) < len(options.texts) else []
    answer, ambiguous = answer_of(record, options, file.writing)
    issues += ["ambiguous_answer_text"] if ambiguous else []
    duration_s = _duration(next((record[name] for name in DURATION if name in record), None))
    segments, repaired = parse_segments(
        next((record[name] for name in SEGMENTS if name in record), None), duration_s
    )
    issues += ["repaired_segments"] if repaired else []
    kinds = next((record[name] for name in TASK_TYPE if name in record), None)
    if not isinstance(kinds, (list, tuple)):
        kinds = () if kinds is None else (kinds,)
    video_id = record.get("video_id")
    used = {*QUESTION, *ANSWER, *VIDEO, *SEGMENTS, *IDENTITY, *OPTIONS, *TASK_TYPE} - {"video_id"}
    used |= set(DURATION) if duration_s is not None else set()
    return Task(
        task_id=identity_of(record, default_id, file.local_ids),
        video=video,
        question=without_options(question.strip(), options.texts),
        options=options.texts,
        answer_index=answer,
        segments_s=segments,
        video_id="" if video_id is None else str(video_id),
        duration_s=duration_s,
        task_types=tuple(str(kind) for kind in kinds),
        issues=tuple(issues),
        meta={key: value for key, value in record.items() if key not in used},
    )


def _duration(value: Any) -> float | None:
    # Video-MME's "duration" is a class ("short"), not seconds: it stays in meta.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not 0 < value < 1e300:  # a whole number may be too large for a float
        raise ValueError(f"duration={value!r:.40} must be a number of seconds greater than 0")
    return float(value)
