"""TorchCodecVideo: torchcodec in exact seek mode.

Its approximate mode is off by a frame on variable frame rates and fails on start offsets, so it is
not offered. torchcodec needs PyTorch and the FFmpeg libraries of the system.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from gym_longvideo.video.border import border, check_unchanged, has_changed
from gym_longvideo.video.errors import (
    BackendUnavailableError,
    FrameDecodeError,
    VideoOpenError,
)
from gym_longvideo.video.hazards import refuse
from gym_longvideo.video.picture import resize
from gym_longvideo.video.request import Deadline, check_output, check_times, empty_batch
from gym_longvideo.video.source import Fit, FrameBatch, VideoInfo

BACKEND = "torchcodec"
_KNOWN_BAD = {"MPEG-TS", "AVI", "intra refresh", "HDR"}
_KNOWN_BAD |= {"a cover picture before the film"}
# Frames decoded between two looks at the clock.
_CHUNK = 8
# A time this close before a frame means that frame: seconds are floats.
_SLACK_S = 1e-6


class TorchCodecVideo:
    """A video file read with torchcodec, exactly: ``tolerance_s`` saves no work here.

    The deadline is looked at between frames only; ``open_video(..., isolate=True)`` enforces it.
    May be pickled and used after a fork: the copy opens the file anew.

    Args:
        path: A local video file.
        allow_truncated: Whether to accept a file that ends early.

    Raises:
        BackendUnavailableError: torchcodec, PyTorch or FFmpeg is missing.
        UnsupportedCodecError: The file is of a kind that torchcodec is known to get wrong.
        VideoError: See ``errors.py``.
    """

    backend = BACKEND

    def __init__(self, path: str | os.PathLike[str], *, allow_truncated: bool = True) -> None:
        self._path = os.fsdecode(path)
        _decoder_class(self._path)
        self._info = refuse(self._path, BACKEND, _KNOWN_BAD, allow_truncated=allow_truncated)
        self._decoder: Any = None
        self._pid, self._lock = os.getpid(), threading.Lock()

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
            self._pid, self._lock, self._decoder = os.getpid(), threading.Lock(), None
        with self._lock, border(self._path, BACKEND):
            check_unchanged(self._info, BACKEND)
            batch = self._read(seconds, height, width, fit, deadline)
            check_unchanged(self._info, BACKEND)
            return batch

    def _read(
        self, seconds: np.ndarray, height: int, width: int, fit: Fit, deadline: Deadline
    ) -> FrameBatch:
        decoder = self._open()
        batch = empty_batch(seconds, height, width)
        begin = decoder.metadata.begin_stream_seconds
        last = decoder.metadata.end_stream_seconds - _SLACK_S
        played = np.minimum(seconds + begin + _SLACK_S, last)
        order = np.argsort(played, kind="stable")
        for start in range(0, len(order), _CHUNK):
            deadline.check()
            rows = order[start : start + _CHUNK]
            try:
                frames = decoder.get_frames_played_at(played[rows].tolist())
            except (RuntimeError, ValueError, IndexError) as error:
                raise FrameDecodeError(
                    f'torchcodec failed ({_first_line(error)}); use backend="pyav"',
                    path=self._path,
                    backend=BACKEND,
                ) from None
            for row, pixels in zip(rows, frames.data.numpy(), strict=True):
                resize(pixels, batch.frames[row], fit, (self._info.height, self._info.width))
            batch.actual_s[rows] = frames.pts_seconds.numpy() - begin
        # torchcodec does not count what it decodes on the way: a lower bound.
        batch.frames_decoded = len(np.unique(batch.actual_s))
        return batch

    def close(self) -> None:
        """Release the decoder. Idempotent; a later read opens it again."""
        self._decoder = None

    def _open(self) -> Any:
        if self._decoder is None:
            try:
                self._decoder = _decoder_class(self._path)(
                    os.path.abspath(self._path),  # lest a colon in a name be read as a protocol
                    seek_mode="exact",
                    num_ffmpeg_threads=1,  # several threads hang after a fork
                    dimension_order="NHWC",
                )
            except (RuntimeError, ValueError) as error:
                if "Could not load libtorchcodec" in str(error):
                    raise _unavailable(self._path, error) from error
                raise VideoOpenError(
                    f'torchcodec cannot open it ({_first_line(error)}); use backend="pyav"',
                    path=self._path,
                    backend=BACKEND,
                ) from None
        return self._decoder

    def __enter__(self) -> TorchCodecVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._path, "info": self._info}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._path, self._info, self._decoder = state["path"], state["info"], None
        self._pid, self._lock = os.getpid(), threading.Lock()

    def __repr__(self) -> str:
        return f"TorchCodecVideo({self._path!r})"


def _decoder_class(path: str) -> Any:
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportPrivateImportUsage]
    except (ImportError, OSError, RuntimeError) as error:
        raise _unavailable(path, error) from error
    return VideoDecoder


def _unavailable(path: str, error: Exception) -> BackendUnavailableError:
    """Return what says how to get it: 0.14 and later look for FFmpeg at the first file only."""
    return BackendUnavailableError(
        f"torchcodec cannot be imported ({_first_line(error)}); "
        'pip install "gym-longvideo[torchcodec]" and install the FFmpeg libraries of your '
        'system (apt install ffmpeg), or use backend="pyav"',
        path=path,
        backend=BACKEND,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
