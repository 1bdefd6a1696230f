"""Pixels of videos, addressed by playback time.

``open_video`` gives a ``Video`` from a file; ``FramePool`` gives the candidate frames of an
episode. Decoders are imported when the first file is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from gym_longvideo.video.cache import CachedFrame, DiskCache, FrameCache, PoolKey
from gym_longvideo.video.errors import (
    BackendUnavailableError,
    DecoderCrashError,
    DecodeTimeoutError,
    FrameDecodeError,
    MachineError,
    NoVideoStreamError,
    UnsupportedCodecError,
    VideoChangedError,
    VideoError,
    VideoNotFoundError,
    VideoOpenError,
    VideoTruncatedError,
)
from gym_longvideo.video.memory import ArrayVideo
from gym_longvideo.video.pool import FramePool, pool_times
from gym_longvideo.video.readers import ReaderPool
from gym_longvideo.video.request import check_threads
from gym_longvideo.video.source import Fit, FrameBatch, FrameStatus, Video, VideoInfo

__all__ = [
    "BACKENDS",
    "ArrayVideo",
    "BackendUnavailableError",
    "CachedFrame",
    "DecodeTimeoutError",
    "DecoderCrashError",
    "DiskCache",
    "Fit",
    "FrameBatch",
    "FrameCache",
    "FrameDecodeError",
    "FramePool",
    "FrameStatus",
    "MachineError",
    "NoVideoStreamError",
    "PoolKey",
    "ReaderPool",
    "UnsupportedCodecError",
    "Video",
    "VideoChangedError",
    "VideoError",
    "VideoInfo",
    "VideoNotFoundError",
    "VideoOpenError",
    "VideoTruncatedError",
    "open_video",
    "pool_times",
]

BACKENDS = ("pyav", "decord", "torchcodec")


def open_video(
    path: str | os.PathLike[str],
    *,
    backend: str = "pyav",
    isolate: bool = False,
    allow_truncated: bool = True,
    threads: int = 2,
) -> Video:
    """Open a video file.

    Args:
        path: A local, regular video file; nothing but this file is opened.
        backend: "pyav" (right on every file we know of, and the fastest), "torchcodec", or
            "decord".
        isolate: Decode in a process apart, so that a decoder that hangs or crashes takes nothing
            with it. decord always does.
        allow_truncated: Whether to accept a file that ends well before its declared duration.
        threads: Most threads decoding one read ("pyav" only); frames are the same for any number.

    Raises:
        VideoError: The file cannot be opened; see ``errors.py`` for the kinds. Nothing else leaves
            a video, except ``ValueError`` for times and sizes that make no sense.
        ValueError: Unknown backend, or ``threads`` less than 1.
    """
    path = os.fsdecode(path)
    check_threads(threads)
    opener = _opener(backend)
    if backend == "pyav":
        opener = partial(opener, threads=threads)
    if isolate and backend != "decord":
        from gym_longvideo.video.isolate import IsolatedVideo

        return IsolatedVideo(
            partial(opener, path, allow_truncated=allow_truncated), path=path, backend=backend
        )
    return opener(path, allow_truncated=allow_truncated)


def _opener(backend: str) -> Callable[..., Video]:
    if backend == "pyav":
        from gym_longvideo.video.pyav import PyAVVideo

        return PyAVVideo
    if backend == "decord":
        from gym_longvideo.video.decord_backend import DecordVideo

        return DecordVideo
    if backend == "torchcodec":
        from gym_longvideo.video.torchcodec_backend import TorchCodecVideo

        return TorchCodecVideo
    raise ValueError(f"backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
