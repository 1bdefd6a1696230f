"""ArrayCache: drawn pictures, kept for the whole process up to a number of bytes."""

from __future__ import annotations

from collections.abc import Hashable
from threading import Lock

import numpy as np


class ArrayCache:
    """Arrays by key, the oldest dropped when ``limit_bytes`` is exceeded.

    Reading takes no lock (one dictionary look-up is atomic in CPython): a miss merely draws again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._arrays: dict[Hashable, np.ndarray] = {}
        self._lock = Lock()
        self.get = self._arrays.get

    def put(self, key: Hashable, array: np.ndarray) -> np.ndarray:
        """Keep ``array`` (made read-only) and return it."""
        array.setflags(write=False)
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = array
                self.bytes += array.nbytes
                while self.bytes > self.limit_bytes and len(self._arrays) > 1:
                    oldest = next(iter(self._arrays))
                    self.bytes -= self._arrays.pop(oldest).nbytes
        return array

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._arrays.clear()
            self.bytes = 0
