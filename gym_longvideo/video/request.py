"""What every backend checks before it reads: the times, the output size, the clock."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from gym_longvideo.video.errors import DecodeTimeoutError
from gym_longvideo.video.source import Fit, FrameBatch, VideoInfo

# A request may overshoot the end by this much: sums of floats do.
END_SLACK_S = 1e-6


def check_times(times: Sequence[float] | np.ndarray, info: VideoInfo) -> np.ndarray:
    """Return the times as (N,) float64 within the video.

    Raises:
        ValueError: If a time is not finite or lies outside ``[0, info.duration_s]``.
    """
    seconds = np.array(times, dtype=np.float64, ndmin=1)
    if seconds.ndim != 1:
        raise ValueError(f"times has shape {seconds.shape}; pass a flat sequence of seconds")
    bad = ~np.isfinite(seconds) | (seconds < -END_SLACK_S)
    bad |= seconds > info.duration_s + END_SLACK_S
    if bad.any():
        raise ValueError(
            f"time {seconds[bad][0]} s is outside the video {info.path} (0 to "
            f"{info.duration_s:.3f} s); clip times to the duration first"
        )
    return np.clip(seconds, 0.0, info.duration_s)


def check_threads(threads: int) -> None:
    """Raise ValueError unless there is a thread to read with."""
    if threads < 1:
        raise ValueError(f"threads={threads} is too few to read; use 1 or more")


def check_output(
    size: tuple[int, int] | None, fit: Fit, tolerance_s: float, info: VideoInfo
) -> tuple[int, int]:
    """Return the (height, width) to produce.

    Raises:
        ValueError: If size, fit or tolerance make no sense; the message says what would.
    """
    if fit not in ("stretch", "letterbox"):
        raise ValueError(f"fit={fit!r} is unknown; choose 'stretch' or 'letterbox'")
    if not tolerance_s >= 0:
        raise ValueError(
            f"tolerance_s={tolerance_s} is not a distance; use 0 for exact frames or "
            "float('inf') for the nearest keyframe"
        )
    if size is None:
        return info.height, info.width
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size={size} is not (height, width) in positive pixels")
    return int(height), int(width)


def empty_batch(times: np.ndarray, height: int, width: int) -> FrameBatch:
    """Allocate the batch for a request; a backend fills it in."""
    count = len(times)
    return FrameBatch(
        frames=np.empty((count, height, width, 3), np.uint8),
        requested_s=times.copy(),
        actual_s=np.full(count, np.nan),
        status=np.zeros(count, np.uint8),
    )


class Deadline:
    """Counts down the seconds of one call."""

    def __init__(self, seconds: float | None, path: str, backend: str) -> None:
        self._seconds, self._path, self._backend = seconds, path, backend
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left_s(self) -> float | None:
        """Seconds that are left; ``None`` if there is no end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raise DecodeTimeoutError once the time is up."""
        if self._end is not None and time.monotonic() > self._end:
            raise DecodeTimeoutError(
                f"decoding took longer than deadline_s={self._seconds}; pass a longer deadline, or "
                "tolerance_s > 0 to accept keyframes",
                path=self._path,
                backend=self._backend,
            )
