"""ReaderPool: the few videos worth keeping open."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from gym_longvideo.video.source import Video

_pools: weakref.WeakSet[ReaderPool] = weakref.WeakSet()


class ReaderPool:
    """Keeps the most recently used videos open, and closes the others.

    Opening costs some tens of milliseconds, an open video some megabytes. A forked or unpickled
    copy starts empty: decoders do not survive either.

    Args:
        max_open: Videos kept open; 0 keeps none beyond the next call of ``get``.
    """

    def __init__(self, max_open: int = 2) -> None:
        if max_open < 0:
            raise ValueError(f"max_open={max_open} is negative; use 0 to keep no video open")
        self._max_open = max_open
        self._start_empty()

    def _start_empty(self) -> None:
        self._videos: OrderedDict[Any, Video] = OrderedDict()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        _pools.add(self)

    def get(self, key: Any, opener: Callable[[], Video]) -> Video:
        """Return the video open under ``key``, or open it; again, if its file was exchanged.

        The least recently used videos beyond ``max_open`` are closed (at least the one returned
        stays open until the next call).

        Raises:
            VideoError: Whatever ``opener`` raises; the pool is unchanged then.
        """
        if os.getpid() != self._pid:
            self._start_empty()
        with self._lock:
            video = self._videos.get(key)
            if video is not None and getattr(video, "changed", False):
                self._videos.pop(key).close()
                video = None
            if video is None:
                video = opener()
                self._videos[key] = video
            self._videos.move_to_end(key)
            while len(self._videos) > max(1, self._max_open):
                self._videos.popitem(last=False)[1].close()
            return video

    def __len__(self) -> int:
        return len(self._videos)

    def close(self) -> None:
        """Close all videos. Idempotent; ``get`` opens anew."""
        if os.getpid() != self._pid:
            self._start_empty()
        with self._lock:
            videos, self._videos = self._videos, OrderedDict()
        for video in videos.values():
            video.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"max_open": self._max_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._max_open = state["max_open"]
        self._start_empty()


def _forget_in_child() -> None:
    # The child must not touch the parent's decoders, not even to close them: file offsets are
    # shared, and a thread of the parent may have held the lock.
    for pool in list(_pools):
        pool._start_empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
