"""Viewer: opens the video of a task and reads the pixels of what a turn shows.

It keeps a decoder open only as long as it may be needed, and survives pickling in mid-episode by
opening the video again where the copy decodes next. What costs little to draw again (a video with a
``draw`` method) is drawn straight to where it is wanted, and not kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gym_longvideo.episode import EMPTY_VIEW, View
from gym_longvideo.settings import EnvSettings
from gym_longvideo.suite import Suite
from gym_longvideo.task import Task
from gym_longvideo.video import DiskCache, FrameCache, FramePool, FrameStatus, ReaderPool, VideoInfo
from gym_longvideo.video.border import changed_error
from gym_longvideo.video.cache import PoolCache
from gym_longvideo.video.picture import resize
from gym_longvideo.video.pool import pool_times_of
from gym_longvideo.video.source import Fit

_NO_TIMES = np.zeros(0)


@dataclass
class Viewer:
    """Reads frames of one task at a time.

    Attributes:
        suite: Opens the videos.
        settings: Of the environment: which frames of a video, and how they are read.
        view: What is shown now.
        times: (n,) float64, the playback seconds at which those frames really start.
        decoded: Frames the decoder put out in this episode.
        suspect: Frames of this episode that are substituted, or may have wrong pixels.
        timings: Seconds spent opening and decoding since the viewer was made.
    """

    suite: Suite
    settings: EnvSettings
    view: View = EMPTY_VIEW
    times: np.ndarray = field(default_factory=lambda: _NO_TIMES)
    decoded: int = 0
    suspect: int = 0
    timings: dict[str, float] = field(default_factory=lambda: {"open_s": 0.0, "decode_s": 0.0})

    def __post_init__(self) -> None:
        self.cache = _cache(self.settings)
        self._frames: np.ndarray | None = None  # what was decoded; None for what is drawn
        self._readers = ReaderPool()
        self._task: Task | None = None
        self._key = ""  # of the video of this episode
        self._pool: FramePool | None = None
        self._last: tuple[np.ndarray | None, np.ndarray] = None, _NO_TIMES
        self._drawable: Any = None  # the video, if it is drawn
        # Of what ``frames`` gives: height and width, and how the picture fills it.
        self._shape = self.settings.frame_shape
        self._fit: Fit = self.settings.fit if self.settings.max_pixels is None else "stretch"
        self._drawn: set[int] = set()  # pool frames drawn in this episode

    @property
    def frames(self) -> np.ndarray:
        """(n, H, W, 3) uint8, the pixels of what is shown now; see ``EpisodeSettings.shape_of``."""
        return self._pixels(self._frames, self.times)

    @property
    def last_shown(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and times of the latest view of this episode that showed anything."""
        return self._pixels(*self._last), self._last[1]

    def _pixels(self, decoded: np.ndarray | None, times: np.ndarray) -> np.ndarray:
        if decoded is not None:
            return decoded
        frames = np.empty((len(times), *self._shape, 3), np.uint8)
        if len(times):
            self._open_again()
            self._drawable.draw(times, frames, self._fit)
        return frames

    def open(self, task: Task) -> tuple[np.ndarray, VideoInfo]:
        """Open a task's video; return its (m,) pool times in playback seconds, and its facts.

        Raises:
            VideoError: If it cannot be opened.
        """
        self.blank()
        self.decoded = self.suspect = 0
        self._drawn = set()
        self._last = None, _NO_TIMES
        self._task = task
        times, info = self._open(task)
        self._key = info.key
        return times, info

    def _open(self, task: Task) -> tuple[np.ndarray, VideoInfo]:
        started, asked = time.perf_counter(), self.settings
        self._pool = self._drawable = None
        backend, isolate = asked.backend, bool(asked.isolate)
        video = self._readers.get(
            (task.video, backend, isolate),
            lambda: self.suite.open_video(task, backend=backend, isolate=isolate),
        )
        info = video.info
        self._shape = asked.shape_of(info.height, info.width)
        if hasattr(video, "draw") and self.cache is None:
            self._drawable = video
            times = pool_times_of(info, asked.pool_size, asked.pool_rule)
        else:
            self._pool = FramePool(
                video,
                size=asked.pool_size,
                rule=asked.pool_rule,
                frame_size=self._shape,
                fit=self._fit,
                seek=asked.seek,
                cache=self.cache,
                deadline_s=asked.deadline_s,
            )
            times = self._pool.times
        self.timings["open_s"] += time.perf_counter() - started
        return times, info

    def show(self, view: View) -> None:
        """Read the pixels of a view.

        Raises:
            VideoError: If they cannot be decoded; nothing is shown then.
        """
        self.blank(view)
        if not len(view.frame_index):
            return
        self._open_again()
        if self._drawable is not None:
            fresh = len(view.times)
            if view.on_pool:
                known = len(self._drawn)
                self._drawn.update(view.frame_index.tolist())
                fresh = len(self._drawn) - known
            self.decoded += fresh
            self.times = view.times
            self._last = None, self.times
            return
        pool, started = self._pool, time.perf_counter()
        assert pool is not None
        batch = pool.read(view.frame_index) if view.on_pool else pool.read_times(view.times)
        self.timings["decode_s"] += time.perf_counter() - started
        self.decoded += batch.frames_decoded
        self.suspect += int((batch.status >= FrameStatus.SUBSTITUTED).sum())
        self._frames, self.times = batch.frames, batch.actual_s
        self._last = self._frames, self.times

    def put(self, frames: np.ndarray) -> None:
        """Write the pixels of what is shown now into the first n of ``frames``, zeros after."""
        count = len(self.times)
        frames[count:] = 0
        if self._frames is not None and self._shape == frames.shape[1:3]:
            frames[:count] = self._frames
        elif self._frames is not None:  # shown as they are elsewhere
            for shown, out in zip(self._frames, frames, strict=False):
                resize(shown, out, self.settings.fit)
        elif count:
            self._open_again()
            self._drawable.draw(self.times, frames[:count], self.settings.fit)

    def blank(self, view: View = EMPTY_VIEW) -> None:
        """Show no pixels."""
        self.view, self._frames, self.times = view, None, _NO_TIMES

    def close(self) -> None:
        """Release the decoders. Idempotent."""
        self._pool = self._drawable = None
        self._readers.close()

    def _open_again(self) -> None:
        # It was closed, or is a copy pickled in mid-episode.
        if self._pool is None and self._drawable is None:
            assert self._task is not None
            _, info = self._open(self._task)
            if info.key != self._key:
                self._pool = self._drawable = None
                raise changed_error(info.path, self.settings.backend)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_drawable": None}


def put_together(viewers: Sequence[Viewer], frames: np.ndarray) -> None:
    """Write what each of n viewers shows as its ``put`` does, drawing as much at once as can be.

    Args:
        viewers: Viewers of the same settings.
        frames: (n, F, H, W, 3) uint8, C-contiguous; written to.
    """
    alike: dict[type, list[tuple[Any, np.ndarray, int]]] = {}
    for i, viewer in enumerate(viewers):
        count = len(viewer.times)
        if count and viewer._frames is None:
            viewer._open_again()
            video = viewer._drawable
            if hasattr(video, "draw_together"):
                alike.setdefault(type(video), []).append((video, viewer.times, i * frames.shape[1]))
                if count < frames.shape[1]:
                    frames[i, count:] = 0
                continue
        viewer.put(frames[i])
    flat = frames.reshape(-1, *frames.shape[2:])
    for kind, parts in alike.items():
        kind.draw_together(parts, flat, viewers[0].settings.fit)  # type: ignore[attr-defined]


def _cache(settings: EnvSettings) -> PoolCache | None:
    size = int(settings.cache_mb * 1e6)
    if settings.cache_dir is not None:
        return DiskCache(settings.cache_dir, max_bytes=size or 10 << 30)
    return FrameCache.shared(size) if settings.cache_mb else None
