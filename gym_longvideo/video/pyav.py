"""PyAVVideo: the default backend.

PyAV decodes everything FFmpeg does, opens an hour-long file in milliseconds, and leaves seeking to
us; see ``planner.py`` for what we make of it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from gym_longvideo.video.border import (
    border,
    changed_error,
    check_unchanged,
    file_key,
    has_changed,
)
from gym_longvideo.video.errors import VideoError
from gym_longvideo.video.picture import Painter
from gym_longvideo.video.planner import SeekPlanner
from gym_longvideo.video.probe import BACKEND, OpenedVideo, open_file
from gym_longvideo.video.request import (
    Deadline,
    check_output,
    check_threads,
    check_times,
    empty_batch,
)
from gym_longvideo.video.source import Fit, FrameBatch, FrameStatus, VideoInfo

# Times within this fraction of a tick of a timestamp mean that timestamp: seconds are floats.
_TICK_SLACK = 1e-3

# Opening the file once more takes as long as decoding keyframes of about this many pixels ...
_PIXELS_PER_READER = 5_000_000
# ... and an exact frame, all told, as long as this many keyframes.
_KEYFRAMES_PER_EXACT = 10

# Facts about files opened in this process, by ``VideoInfo.key``, the oldest first.
_measured: dict[str, VideoInfo] = {}
_MEASURED_LIMIT = 4096


class PyAVVideo:
    """A video file read with PyAV, seeking by time.

    Decoders run outside the GIL, so a read of widely spread moments is shared by several readers of
    the file, each in a thread that ends with the read. All that comes back, ``frames_decoded``
    included, is the same for any number of threads.

    May be pickled and used after a fork: the copy opens the file anew at its first read. Safe to
    share between threads, which then take turns.

    Args:
        path: A local video file.
        allow_truncated: Whether to accept a file that ends early (``info.truncated`` tells).
        threads: Most readers of one read. Others than the first open the file when there is enough
            to do, and an index tells which frames depend on each other.

    Raises:
        ValueError: If ``threads`` is less than 1.
        VideoError: See ``errors.py``; raised here rather than at the first read.
    """

    backend = BACKEND

    def __init__(
        self, path: str | os.PathLike[str], *, allow_truncated: bool = True, threads: int = 2
    ) -> None:
        check_threads(threads)
        self._path = os.fsdecode(path)
        self._allow_truncated = allow_truncated
        self._threads = threads
        self._opened: OpenedVideo | None = None
        self._spares: list[OpenedVideo] = []  # of the readers other than the first
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._info = self._recall() or self._measure()

    @property
    def info(self) -> VideoInfo:
        """Facts about the video."""
        return self._info

    @property
    def changed(self) -> bool:
        """Whether another file has taken the place of this one: no read will succeed."""
        return has_changed(self._info)

    def read(
        self,
        times: Sequence[float] | np.ndarray,
        *,
        size: tuple[int, int] | None = None,
        fit: Fit = "stretch",
        tolerance_s: float = 0.0,
        deadline_s: float | None = 60.0,
    ) -> FrameBatch:
        """Return the frames shown at the given playback times; see ``Video.read``."""
        deadline = Deadline(deadline_s, self._path, BACKEND)
        seconds = check_times(times, self._info)
        height, width = check_output(size, fit, tolerance_s, self._info)
        if os.getpid() != self._pid:
            # A forked copy shares the file offset with its parent, and perhaps a lock that a
            # thread of the parent held: leave both alone.
            self._pid, self._lock = os.getpid(), threading.Lock()
            self._opened, self._spares = None, []
        with self._lock, border(self._path, BACKEND):
            check_unchanged(self._info, BACKEND)
            batch = self._read(seconds, height, width, fit, tolerance_s, deadline)
            check_unchanged(self._info, BACKEND)  # nothing of what was written over is given
            return batch

    def _read(
        self,
        seconds: np.ndarray,
        height: int,
        width: int,
        fit: Fit,
        tolerance_s: float,
        deadline: Deadline,
    ) -> FrameBatch:
        opened = self._open(deadline)
        batch = empty_batch(seconds, height, width)
        tick_s = float(opened.time_base)
        moments = np.floor(seconds / tick_s + _TICK_SLACK).astype(np.int64) + opened.first_pts
        rows: dict[int, list[int]] = {}
        for row, moment in enumerate(moments.tolist()):
            rows.setdefault(moment, []).append(row)
        # Moments are rounded down to ticks: one tick less keeps the promise in seconds.
        tolerance = max(0.0, tolerance_s / tick_s - 1)
        pieces = deque(SeekPlanner(opened).pieces(sorted(rows), tolerance))
        planners: list[SeekPlanner] = []
        failures: list[tuple[int, BaseException]] = []

        def decode(reader: OpenedVideo, take: Callable[[], list[int]]) -> None:
            painter, planner = Painter(reader.aspect), SeekPlanner(reader)
            planners.append(planner)

            def emit(answered: Sequence[int], frame: VideoFrame, status: FrameStatus) -> None:
                targets = [row for moment in answered for row in rows[moment]]
                painter.draw(frame, batch.frames[targets[0]], fit)
                pts = frame.dts if frame.pts is None else frame.pts
                assert pts is not None
                for row in targets:
                    if row != targets[0]:
                        batch.frames[row] = batch.frames[targets[0]]
                    batch.actual_s[row] = float((pts - opened.first_pts) * opened.time_base)
                    batch.status[row] = status

            while pieces:
                try:
                    piece = take()
                except IndexError:  # another reader took the last one
                    return
                try:
                    planner.collect(piece, tolerance, emit, deadline)
                except BaseException as error:
                    failures.append((piece[0], error))
                    return

        pixels = len(pieces) * opened.info.height * opened.info.width
        worth = pixels * (1 if tolerance else _KEYFRAMES_PER_EXACT) // _PIXELS_PER_READER
        readers = min(self._threads, len(pieces), max(worth, 1 + len(self._spares)))
        self._share(opened, pieces, decode, helpers=readers - 1)
        batch.frames_decoded = sum(planner.frames_decoded for planner in planners)
        if failures:
            failures.sort(key=itemgetter(0))
            raise failures.pop(0)[1]  # what a single reader would have come across first
        return batch

    def _share(
        self,
        opened: OpenedVideo,
        pieces: deque[list[int]],
        decode: Callable[[OpenedVideo, Callable[[], list[int]]], None],
        helpers: int,
    ) -> None:
        """Decode all pieces: here from the front, and from the back in threads, once they can."""
        spares, self._spares = self._spares, []
        given: list[OpenedVideo | None] = [*spares, *[None] * helpers][:helpers]
        del spares[:helpers]
        refreshes = opened.refreshes
        threads = []

        def help_out(spare: OpenedVideo | None) -> None:
            try:
                spare = spare or open_file(self._path)
            except VideoError:
                return  # the file is gone, or too many are open: it takes longer, no more
            if spare.info != opened.info:
                return spare.close()  # another file has taken its place
            spares.append(spare)
            spare.refreshes = refreshes
            decode(spare, pieces.pop)

        try:
            for spare in given:
                thread = threading.Thread(
                    target=help_out, args=(spare,), name="gym_longvideo reader"
                )
                try:
                    thread.start()
                except RuntimeError:  # out of threads, or the interpreter is about to exit
                    break
                threads.append(thread)
            decode(opened, pieces.popleft)
        finally:
            pieces.clear()  # those left after an error are not worth decoding
            for thread in threads:
                thread.join()
            self._spares = spares
        opened.refreshes |= any(spare.refreshes for spare in spares)

    def close(self) -> None:
        """Close the file. Idempotent; a later read opens it again."""
        opened, self._opened = self._opened, None
        spares, self._spares = self._spares, []
        for one in [opened, *spares]:
            if one is not None and os.getpid() == self._pid:
                one.close()

    def _measure(self) -> VideoInfo:
        self._opened = open_file(self._path, allow_truncated=self._allow_truncated)
        info = self._opened.info
        _measured[info.key] = info
        while len(_measured) > _MEASURED_LIMIT:
            _measured.pop(next(iter(_measured)), None)
        return info

    def _open(self, deadline: Deadline) -> OpenedVideo:
        if self._opened is None:
            opened = open_file(self._path, allow_truncated=self._allow_truncated, deadline=deadline)
            if opened.info.key != self._info.key:
                opened.close()
                raise changed_error(self._path, BACKEND)
            self._opened = opened
        return self._opened

    def _recall(self) -> VideoInfo | None:
        """Return what an earlier opening of the same, unchanged file measured.

        The file then need not be opened at all where its frames are cached.
        """
        try:
            info = _measured.get(file_key(self._path))
        except (OSError, ValueError):
            return None
        return None if info is None or (info.truncated and not self._allow_truncated) else info

    def __enter__(self) -> PyAVVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self._path,
            "allow_truncated": self._allow_truncated,
            "threads": self._threads,
            "info": self._info,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._path, self._info = state["path"], state["info"]
        self._allow_truncated = state["allow_truncated"]
        self._threads = state["threads"]
        self._opened, self._spares = None, []
        self._pid, self._lock = os.getpid(), threading.Lock()

    def __repr__(self) -> str:
        return f"PyAVVideo({self._path!r})"
