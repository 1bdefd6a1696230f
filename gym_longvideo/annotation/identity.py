"""Ids of tasks, unique within a file.

Some files number the questions of each video anew (NExT-QA's ``qid``). Such an id names a question
together with its video only, and is read so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from gym_longvideo.annotation.fields import IDENTITY, VIDEO
from gym_longvideo.task import Task


def local_ids(records: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Return the ids that name a question only together with its video.

    Those under which a file has questions about several videos; all ids, where a tenth of the
    records have such a one.
    """
    videos: dict[str, set[str]] = {}
    ids = [str(next((r[name] for name in IDENTITY if name in r), "")) for r in records]
    for identity, record in zip(ids, records, strict=True):
        videos.setdefault(identity, set()).add(video_of(record))
    shared = {identity for identity in ids if identity and len(videos[identity]) > 1}
    many = sum(identity in shared for identity in ids) * 10 >= len(ids) > 0
    return frozenset(ids if many and shared else shared) - {""}


def identity_of(record: Mapping[str, Any], default: str, shared: Set[str] = frozenset()) -> str:
    """Return the id of a record: its own, or ``video_id`` where its own is among the shared ones.

    Raises:
        ValueError: If it is neither a string nor a whole number.

    >>> identity_of({"qid": 3, "video": "clips/a.mp4"}, "0", {"3"})
    'clips/a_3'
    """
    identity = next((record[name] for name in IDENTITY if name in record), default)
    if isinstance(identity, bool) or not isinstance(identity, (str, int)):
        raise ValueError(f"id={identity!r} must be a string or a whole number")
    if str(identity) not in shared:
        return str(identity)
    return f"{os.path.splitext(video_of(record))[0]}_{identity}"


def video_of(record: Mapping[str, Any]) -> str:
    """Return the video of a record as annotated, its path in plain form; "" if it names none."""
    video = next((record[name] for name in VIDEO if name in record), "")
    return os.path.normpath(video) if isinstance(video, str) and video.strip() else ""


def asked(task: Task) -> tuple[Any, ...]:
    """Return what makes a task the question that it is."""
    return task.video, task.question, task.options


def unique_id(task: Task, earlier: Callable[[str], Any]) -> str:
    """Return an id for a task that no task before it has.

    Another question under an id that is taken becomes "id#2", so that neither is lost.

    Args:
        task: The task.
        earlier: Returns what ``asked`` gave for the earlier task of an id, or None.

    Raises:
        ValueError: If the same question was asked before under this id.
    """
    taken, count = task.task_id, 1
    while (before := earlier(taken)) is not None:
        if before == asked(task):
            raise ValueError(f"id {task.task_id!r} is given twice; ids must be unique")
        count += 1
        taken = f"{task.task_id}#{count}"
    return taken
