"""Viewer: opens the video of a task and reads the pixels of what a turn shows.

It keeps a decoder open only as long as it may be needed, and survives pickling in mid-episode by
opening the video again where the copy decodes next.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gym_longvideo.episode import EMPTY_VIEW, View
from gym_longvideo.suite import Suite
from gym_longvideo.task import Task
from gym_longvideo.video import FramePool, FrameStatus, ReaderPool, VideoInfo
from gym_longvideo.video.cache import PoolCache
from gym_longvideo.video.pool import Rule, Seek
from gym_longvideo.video.source import Fit


@dataclass
class Viewer:
    """Reads frames of one task at a time.

    Attributes:
        view: What is shown now.
        frames: (n, H, W, 3) uint8, its pixels.
        times: (n,) float64, the playback seconds at which those frames really start.
        decoded: Frames the decoder put out in this episode.
        suspect: Frames of this episode that are substituted, or may have wrong pixels.
        timings: Seconds spent opening and decoding since the viewer was made.
    """

    suite: Suite
    pool_size: int
    pool_rule: Rule
    frame_size: tuple[int, int]
    fit: Fit
    seek: Seek
    backend: str
    isolate: bool
    deadline_s: float | None
    cache: PoolCache | None = None
    view: View = EMPTY_VIEW
    times: np.ndarray = field(default_factory=lambda: np.zeros(0))
    decoded: int = 0
    suspect: int = 0
    timings: dict[str, float] = field(default_factory=lambda: {"open_s": 0.0, "decode_s": 0.0})

    def __post_init__(self) -> None:
        self._nothing = np.zeros((0, *self.frame_size, 3), np.uint8)
        self.frames = self._nothing
        self._readers = ReaderPool()
        self._task: Task | None = None
        self._pool: FramePool | None = None

    def open(self, task: Task) -> tuple[np.ndarray, VideoInfo]:
        """Open a task's video; return its (m,) pool times in playback seconds, and its facts.

        Raises:
            VideoError: If it cannot be opened.
        """
        started = time.perf_counter()
        self.blank()
        self.decoded = self.suspect = 0
        self._task, self._pool = task, None
        video = self._readers.get(
            (task.video, self.backend, self.isolate),
            lambda: self.suite.open_video(task, backend=self.backend, isolate=self.isolate),
        )
        self._pool = FramePool(
            video,
            size=self.pool_size,
            rule=self.pool_rule,
            frame_size=self.frame_size,
            fit=self.fit,
            seek=self.seek,
            cache=self.cache,
            deadline_s=self.deadline_s,
        )
        self.timings["open_s"] += time.perf_counter() - started
        return self._pool.times, video.info

    def show(self, view: View) -> None:
        """Read the pixels of a view.

        Raises:
            VideoError: If they cannot be decoded; nothing is shown then.
        """
        self.blank(view)
        if not len(view.cells):
            return
        if self._pool is None:  # a pickled copy in mid-episode
            assert self._task is not None
            decoded, suspect = self.decoded, self.suspect
            self.open(self._task)
            self.decoded, self.suspect = decoded, suspect
            self.view = view
        pool, started = self._pool, time.perf_counter()
        assert pool is not None
        batch = pool.read(view.cells) if view.on_pool else pool.read_times(view.times)
        self.timings["decode_s"] += time.perf_counter() - started
        self.decoded += batch.frames_decoded
        self.suspect += int((batch.status >= FrameStatus.SUBSTITUTED).sum())
        self.frames, self.times = batch.frames, batch.actual_s

    def blank(self, view: View = EMPTY_VIEW) -> None:
        """Show no pixels."""
        self.view, self.frames, self.times = view, self._nothing, np.zeros(0)

    def close(self) -> None:
        """Release the decoders. Idempotent."""
        self._pool = None
        self._readers.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}
