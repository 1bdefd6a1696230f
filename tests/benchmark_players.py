"""Suites, environments and jobs for tests of players."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chat_server import RIGHT

from benchmarks.controls import ControlledSuite
from benchmarks.players.player import (
    Job,
    Played,
    Player,
)
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.task import Task
from gym_longvideo.video.errors import VideoOpenError

SMALL: dict[str, Any] = {"frame_size": 28, "pool_size": 16, "frame_budget": 8}


class Broken(HaystackSuite):
    """A suite some of whose videos do not open."""

    shut: tuple[int, ...] = ()

    def open_video(self, task: Task, *, backend: str = "pyav", isolate: bool = False) -> Any:
        if self.index_of(task.task_id) in self.shut:
            raise VideoOpenError("is empty", path=task.video)
        return super().open_video(task, backend=backend, isolate=isolate)


def suite_of(size: int, shut: tuple[int, ...] = (), control: str = "none") -> ControlledSuite:
    inner = Broken("val", size=size, families="needle")
    inner.shut = shut
    return ControlledSuite(inner, control)


def factory(suite: Any, **settings: Any) -> Callable[[], LongVideoQAEnv]:
    return lambda: LongVideoQAEnv(suite=suite, **{**SMALL, **settings})


def jobs_of(suite: ControlledSuite) -> list[Job]:
    return [Job(key, index) for index, key in enumerate(suite.keys())]


def play(player: Player, jobs: list[Job]) -> dict[str, Played]:
    try:
        played = list(player.play(jobs))
    finally:
        player.close()
    assert sorted(each.key for each in played) == sorted(job.key for job in jobs)
    return {each.key: each for each in played}


def reply_of(body: dict[str, Any]) -> str:
    """Say what a good model would: look once, then answer."""
    turns = sum(message["role"] == "assistant" for message in body["messages"])
    return RIGHT if turns else "<think>look</think><retrieve>2, 5</retrieve>"
