"""Suites: ordered, finite collections of tasks, and where their videos come from."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from gym_longvideo.task import Task
from gym_longvideo.video.source import Video


@runtime_checkable
class Suite(Protocol):
    """A finite, ordered collection of tasks with their videos.

    Attributes:
        name: Short name, part of record and result files.
        split: Which split of the suite this is ("train", "val", "test", ...).
        max_options: The largest number of options of any task (the env's K).
    """

    name: str
    split: str
    max_options: int

    def __len__(self) -> int:
        """Number of tasks."""
        ...

    def __getitem__(self, index: int) -> Task:
        """Return the task at ``index`` in ``[0, len)``; raise IndexError outside."""
        ...

    def index_of(self, task_id: str) -> int:
        """Return the index of a task; raise KeyError naming the id if it does not exist."""
        ...

    def open_video(self, task: Task, *, backend: str = "pyav") -> Video:
        """Open the video of a task. Raises VideoError."""
        ...
