"""The one interface to pixels: times in, frames with their true times and a status out.

A video is addressed by playback time, never by frame index: the frame shown at ``t`` is the last
one whose timestamp is <= ``t``. That has the same meaning for constant and variable frame rates,
edit lists and start offsets, and needs no frame count and no scan of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol, runtime_checkable

import numpy as np

Fit = Literal["stretch", "letterbox"]


class FrameStatus(IntEnum):
    """How a returned frame relates to the requested time."""

    OK = 0  # the frame shown at the requested time
    SNAPPED = 1  # a keyframe within the tolerance stands in for it
    SUBSTITUTED = 2  # the wanted frame could not be had; the nearest earlier one is given
    SUSPECT = 3  # damage in the same group of pictures, or guessed timestamps: may be wrong


@dataclass(frozen=True)
class VideoInfo:
    """Facts about an opened video.

    Attributes:
        path: File path, or the key of a procedural video.
        container: Container name ("mp4", ...), "procedural" for generated videos.
        codec: Codec name ("h264", ...).
        width: Displayed width in pixels (after rotation, and with pixels made square).
        height: Displayed height in pixels (after rotation, and with pixels made square).
        rotation: Counter-clockwise rotation applied, degrees in {0, 90, 180, 270}.
        fps: Average frame rate, ``None`` where it has no meaning.
        duration_s: Playable seconds, measured at the end of the file, not merely declared.
        declared_s: Seconds that the container declares.
        start_s: Container timestamp of the first frame; playback time 0 is this moment.
        frame_count: Frames, counted if they are few; else what the container declares (or an
            estimate from fps), ``None`` if endless.
        truncated: Whether ``duration_s`` falls short of ``declared_s`` by more than 2 %.
        key: Changes when the file's content may have changed (sha1 of path, size, mtime,
            inode).
        even: Whether ``frame_count`` evenly spaced moments show every frame; not so in recorded
            talks and captured screens, where a frame is shown until something changes.
        hdr: "pq" or "hlg" for high dynamic range, which is shown as SDR with paper white at 255;
            "" for all else.
    """

    path: str
    container: str
    codec: str
    width: int
    height: int
    rotation: int
    fps: float | None
    duration_s: float
    declared_s: float
    start_s: float
    frame_count: int | None
    truncated: bool
    key: str
    even: bool = True
    hdr: Literal["", "pq", "hlg"] = ""


@dataclass
class FrameBatch:
    """Decoded frames, in the order of the request.

    Attributes:
        frames: (N, H, W, 3) uint8 RGB, C-contiguous, owned by the caller.
        requested_s: (N,) float64 playback seconds asked for.
        actual_s: (N,) float64 playback seconds at which each returned frame starts being shown.
        status: (N,) uint8 of FrameStatus.
        frames_decoded: Frames the decoder put out or had to decode on the way.
    """

    frames: np.ndarray
    requested_s: np.ndarray
    actual_s: np.ndarray
    status: np.ndarray
    frames_decoded: int = 0


@runtime_checkable
class Video(Protocol):
    """An opened video.

    One that is computed rather than decoded may also have ``draw(times, frames, fit)``, which
    writes what ``read`` would return into a C-contiguous (N, H, W, 3) uint8 array, for N float64
    times that are known to lie in the video; and ``draw_together``, as ``HaystackVideo`` has it,
    which draws several videos of its class at once. One that is read from a file may have
    ``changed``, which tells whether another file has taken its place.
    """

    @property
    def info(self) -> VideoInfo:
        """Facts about the video."""
        ...

    def read(
        self,
        times: Sequence[float] | np.ndarray,
        *,
        size: tuple[int, int] | None = None,
        fit: Fit = "stretch",
        tolerance_s: float = 0.0,
        deadline_s: float | None = 60.0,
    ) -> FrameBatch:
        """Return the frames shown at the given playback times.

        Args:
            times: Playback seconds in ``[0, duration_s]``, any order, duplicates allowed.
            size: (height, width) in pixels; native size if ``None``.
            fit: "stretch" to ``size``, or "letterbox" with black bars.
            tolerance_s: A keyframe no further than this from a requested time may stand in for it
                (much cheaper); 0 is exact, ``inf`` takes the nearest keyframe.
            deadline_s: Seconds this call may take; ``None`` for no limit.

        Raises:
            VideoError: See ``errors.py``.
            ValueError: If a time is not finite, or lies outside the video.
        """
        ...

    def close(self) -> None:
        """Release the decoder. Idempotent; a later read opens it again."""
        ...
