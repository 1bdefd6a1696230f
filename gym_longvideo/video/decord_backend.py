"""DecordVideo: decord 0.6, kept at arm's length.

decord is what much published work decoded with, hence its place here; PyAV is faster and right more
often. decord hangs in C with the interpreter locked, and after a read it goes on decoding in the
background until memory is gone. So it always runs in a child process that can be killed, and its
reader is rewound and dropped after every read.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from gym_longvideo.video.border import border, check_unchanged
from gym_longvideo.video.errors import (
    BackendUnavailableError,
    FrameDecodeError,
    UnsupportedCodecError,
    VideoOpenError,
)
from gym_longvideo.video.hazards import refuse
from gym_longvideo.video.isolate import IsolatedVideo
from gym_longvideo.video.picture import resize
from gym_longvideo.video.request import check_output, check_times, empty_batch
from gym_longvideo.video.source import Fit, FrameBatch, FrameStatus, VideoInfo

BACKEND = "decord"
_KNOWN_BAD = {"MPEG-TS", "AVI", "edit list", "open GOP", "intra refresh", "codec av1", "damage"}
_KNOWN_BAD |= {"HDR", "pixels that are not square"}
# Its FFmpeg is of 2018: these decode in part or not at all.
_FRAGILE_CODECS = ("vp8", "vp9")
# Full-size frames held at once while they are being scaled.
_CHUNK = 16


class DecordVideo(IsolatedVideo):
    """A video file read with decord in a child process.

    Args:
        path: A local video file.
        allow_truncated: Whether to accept a file that ends early.

    Raises:
        BackendUnavailableError: decord is not installed.
        UnsupportedCodecError: The file is of a kind that decord is known to get wrong.
        VideoError: See ``errors.py``.
    """

    def __init__(self, path: str | os.PathLike[str], *, allow_truncated: bool = True) -> None:
        path = os.fsdecode(path)
        if importlib.util.find_spec("decord") is None:
            raise _unavailable(path)
        info = refuse(path, BACKEND, _KNOWN_BAD, allow_truncated=allow_truncated)
        super().__init__(partial(DecordReader, path, info), path=path, backend=BACKEND)


class DecordReader:
    """decord itself; meant for a process of its own, with no deadline but that process's life.

    Args:
        path: A local video file.
        info: Facts about it, measured with PyAV.
    """

    backend = BACKEND

    def __init__(self, path: str, info: VideoInfo) -> None:
        self._path, self._info = path, info
        try:
            import decord
        except (ImportError, OSError) as error:
            raise _unavailable(path) from error
        self._decord: Any = decord

    @property
    def info(self) -> VideoInfo:
        """Facts about the video."""
        return self._info

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
        seconds = check_times(times, self._info)
        height, width = check_output(size, fit, tolerance_s, self._info)
        with border(self._path, BACKEND):
            check_unchanged(self._info, BACKEND)
            batch = self._read(seconds, height, width, fit, tolerance_s)
            check_unchanged(self._info, BACKEND)
            return batch

    def _read(
        self, seconds: np.ndarray, height: int, width: int, fit: Fit, tolerance_s: float
    ) -> FrameBatch:
        batch = empty_batch(seconds, height, width)
        reader = self._open()
        try:
            self._fill(reader, batch, fit, tolerance_s)
        except (RuntimeError, ValueError, IndexError) as error:
            # Its DECORDError is a RuntimeError, many lines long.
            kind = UnsupportedCodecError if self._fragile else FrameDecodeError
            raise kind(
                f'decord failed ({_first_line(error)}); use backend="pyav"',
                path=self._path,
                backend=BACKEND,
            ) from None
        finally:
            try:
                reader.seek(0)  # stops it from decoding the rest of the file
            except RuntimeError:
                pass
            del reader
            gc.collect()
        return batch

    def close(self) -> None:
        """Do nothing: no reader outlives a read."""

    @property
    def _fragile(self) -> bool:
        return self._info.codec in _FRAGILE_CODECS

    def _open(self) -> Any:
        try:
            # An absolute path, lest a colon in a name be read as a protocol.
            return self._decord.VideoReader(os.path.abspath(self._path), num_threads=1)
        except (RuntimeError, OSError) as error:
            kind = UnsupportedCodecError if self._fragile else VideoOpenError
            raise kind(
                f'decord cannot open it ({_first_line(error)}); use backend="pyav"',
                path=self._path,
                backend=BACKEND,
            ) from None

    def _fill(self, reader: Any, batch: FrameBatch, fit: Fit, tolerance_s: float) -> None:
        # (n, 2) float32: when each frame starts and ends being shown.
        starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        starts = starts.astype(np.float64) - float(starts[0])
        seconds = batch.requested_s
        slack = 2 * np.spacing((seconds + abs(self._info.start_s)).astype(np.float32)) + 1e-6
        order = np.maximum.accumulate(starts)
        shown = np.maximum(np.searchsorted(order, seconds + slack, side="right") - 1, 0)
        keys = np.array(sorted(reader.get_key_indices()), np.int64)
        if tolerance_s > 0 and len(keys):
            distance = np.abs(starts[keys][None, :] - seconds[:, None])
            nearest = distance.argmin(axis=1)
            near = distance[np.arange(len(seconds)), nearest] <= tolerance_s
            snapped = np.where(near, keys[nearest], shown)
            batch.status[snapped != shown] = FrameStatus.SNAPPED
            shown = snapped
        unique, rows = np.unique(shown, return_inverse=True)
        for start in range(0, len(unique), _CHUNK):
            indices = unique[start : start + _CHUNK]
            for offset, pixels in enumerate(reader.get_batch(indices.tolist()).asnumpy()):
                if pixels.shape[:2] != (self._info.height, self._info.width):
                    raise RuntimeError(f"pictures of {pixels.shape[:2]}: of another stream")
                targets = np.flatnonzero(rows == start + offset)
                resize(pixels, batch.frames[targets[0]], fit)
                batch.frames[targets[1:]] = batch.frames[targets[0]]
        batch.actual_s[:] = starts[shown]
        # decord does not count; within a group of pictures it decodes from the keyframe on.
        groups = np.searchsorted(keys, unique, side="right") - 1
        for group in np.unique(groups):
            first = keys[group] if group >= 0 else 0
            batch.frames_decoded += int(unique[groups == group].max() - first + 1)


def _unavailable(path: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        'decord is not installed (it has no wheels for ARM); pip install "gym-longvideo[decord]", '
        'or use backend="pyav"',
        path=path,
        backend=BACKEND,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
