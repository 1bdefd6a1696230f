"""Caches of pool frames that outlive an episode: in memory, and on disk.

Both hold single frames of a pool, because a pool is decoded lazily and mostly in part.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import uuid
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from gym_longvideo.video.source import FrameStatus

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolKey:
    """Everything that decides the pixels of a pool.

    Attributes:
        video: ``VideoInfo.key``: changes when the file may have changed.
        decoder: Backend name; scalers differ between backends.
        size: Slots of the pool.
        rule: Where its frames lie.
        frame_size: (H, W) in pixels.
        fit: "stretch" or "letterbox".
        tolerance_s: How far keyframes may stand in for exact frames.
    """

    video: str
    decoder: str
    size: int
    rule: str
    frame_size: tuple[int, int]
    fit: str
    tolerance_s: float

    def digest(self) -> str:
        """Return a file name for this key."""
        return hashlib.sha1(repr(self).encode()).hexdigest()


@dataclass(frozen=True)
class CachedFrame:
    """One decoded frame: (H, W, 3) uint8 pixels, true time in seconds, and status."""

    pixels: np.ndarray
    actual_s: float
    status: FrameStatus


class PoolCache(Protocol):
    """What a FramePool asks of a cache."""

    def get(self, key: PoolKey, frame_index: Sequence[int]) -> dict[int, CachedFrame]:
        """Return those of the frames that are cached."""
        ...

    def put(self, key: PoolKey, frames: Mapping[int, CachedFrame]) -> None:
        """Offer decoded frames to the cache."""
        ...


_shared: dict[int, FrameCache] = {}


class FrameCache:
    """Least recently used frames in memory, bounded in bytes. Thread-safe.

    Args:
        max_bytes: Bytes of pixels kept at most.
    """

    def __init__(self, max_bytes: int = 256 << 20) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes} is negative; use 0 to cache nothing")
        self._max_bytes = max_bytes
        self._clear()

    @classmethod
    def shared(cls, max_bytes: int) -> FrameCache:
        """Return the one cache of this size that this process has."""
        if max_bytes not in _shared:
            _shared[max_bytes] = cls(max_bytes)
        return _shared[max_bytes]

    def _clear(self) -> None:
        self._frames: OrderedDict[tuple[PoolKey, int], CachedFrame] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._frames)

    def get(self, key: PoolKey, frame_index: Sequence[int]) -> dict[int, CachedFrame]:
        """Return those of the frames that are cached; their pixels are read-only."""
        found = {}
        with self._lock:
            for place in frame_index:
                frame = self._frames.get((key, place))
                if frame is not None:
                    self._frames.move_to_end((key, place))
                    found[place] = frame
        return found

    def put(self, key: PoolKey, frames: Mapping[int, CachedFrame]) -> None:
        """Keep copies of decoded frames, dropping the least recently used beyond the bound."""
        with self._lock:
            for place, frame in frames.items():
                # A copy, lest a slice keep its whole batch alive.
                pixels = frame.pixels.copy()
                pixels.setflags(write=False)
                old = self._frames.pop((key, place), None)
                if old is not None:
                    self._bytes -= old.pixels.nbytes
                self._frames[key, place] = CachedFrame(pixels, frame.actual_s, frame.status)
                self._bytes += pixels.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._frames.popitem(last=False)[1].pixels.nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self._max_bytes}  # copies in other processes start empty

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._max_bytes = state["max_bytes"]
        self._clear()


class DiskCache:
    """Frames in a directory, shared between processes and runs, bounded in bytes.

    One pool is two files: ``.npy`` with the pixels of all frames, (M, H, W, 3) uint8, sparse until
    filled; and ``.json`` naming the frames that are filled, with a checksum each. Pixels are
    written first and the ``.json`` replaced atomically afterwards, so that a crash leaves a frame
    unfilled, never wrong. Of two processes that fill one pool at once, one may overwrite the
    other's ``.json``: frames are then decoded again, to the same pixels. A damaged entry is renamed
    to ``.bad`` with a warning, and never read or deleted.

    Args:
        directory: Created if missing.
        max_bytes: Bytes kept at most; beyond, the pools unused for longest are deleted.
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int = 10 << 30) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes} is negative; use 0 to cache nothing")
        self._directory = Path(directory)
        self._max_bytes = max_bytes
        self._directory.mkdir(parents=True, exist_ok=True)

    def get(self, key: PoolKey, frame_index: Sequence[int]) -> dict[int, CachedFrame]:
        """Return those of the frames that are cached, as copies."""
        index = self._load(key)
        if index is None:
            return {}
        pixels = self._map(key, "r")
        if pixels is None:
            return {}
        found = {}
        for place in frame_index:
            row = index["slots"].get(str(place))
            if row is None:
                continue
            frame = np.array(pixels[place])
            if zlib.crc32(frame.tobytes()) != row["crc32"]:
                self._set_aside(key, f"frame {place} does not match its checksum")
                return {}
            found[place] = CachedFrame(frame, row["actual_s"], FrameStatus(row["status"]))
        # Many file systems do not keep access times; eviction needs them.
        os.utime(self._path(key, ".json"))
        return found

    def put(self, key: PoolKey, frames: Mapping[int, CachedFrame]) -> None:
        """Store decoded frames; a full disk or a read-only directory is logged, not raised."""
        if not frames or key.size * key.frame_size[0] * key.frame_size[1] * 3 > self._max_bytes:
            return
        try:
            self._store(key, frames)
            self._evict(keep=key.digest())
        except OSError as error:
            _log.warning("cannot write to the frame cache %s: %s", self._directory, error)

    def _store(self, key: PoolKey, frames: Mapping[int, CachedFrame]) -> None:
        index = self._load(key)
        pixels = None if index is None else self._map(key, "r+")
        if index is None or pixels is None:
            index = {"key": asdict(key) | {"frame_size": list(key.frame_size)}, "slots": {}}
            self._create(key)
            pixels = self._map(key, "r+")
            if pixels is None:
                return
        for place, frame in frames.items():
            pixels[place] = frame.pixels
            index["slots"][str(place)] = {
                "actual_s": frame.actual_s,
                "status": int(frame.status),
                "crc32": zlib.crc32(np.ascontiguousarray(frame.pixels).tobytes()),
            }
        pixels.flush()
        temporary = self._temporary(key)
        temporary.write_text(json.dumps(index), encoding="utf-8")
        os.replace(temporary, self._path(key, ".json"))

    def _create(self, key: PoolKey) -> None:
        temporary = self._temporary(key)
        shape = (key.size, *key.frame_size, 3)
        # A file extended by truncation: blocks are allocated when frames are written.
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        os.replace(temporary, self._path(key, ".npy"))

    def _load(self, key: PoolKey) -> dict[str, Any] | None:
        path = self._path(key, ".json")
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            self._set_aside(key, str(error))
            return None
        try:
            index = json.loads(text)
            if index["key"] != asdict(key) | {"frame_size": list(key.frame_size)}:
                raise ValueError("belongs to another pool")
            for place, row in index["slots"].items():
                if not 0 <= int(place) < key.size:
                    raise ValueError(f"frame {place} does not exist")
                if not {"actual_s", "crc32"} <= row.keys() or FrameStatus(row["status"]) < 0:
                    raise ValueError(f"frame {place} is incomplete")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._set_aside(key, f"unreadable index ({error})")
            return None
        return index

    def _map(self, key: PoolKey, mode: Literal["r", "r+"]) -> np.memmap | None:
        path = self._path(key, ".npy")
        try:
            pixels = np.lib.format.open_memmap(path, mode=mode)
        except FileNotFoundError:
            return None  # evicted by another process meanwhile
        except (OSError, ValueError) as error:
            self._set_aside(key, f"unreadable pixels ({error})")
            return None
        if pixels.shape != (key.size, *key.frame_size, 3) or pixels.dtype != np.uint8:
            self._set_aside(key, f"holds {pixels.shape} {pixels.dtype}")
            return None
        return pixels

    def _set_aside(self, key: PoolKey, reason: str) -> None:
        for suffix in (".json", ".npy"):
            path = self._path(key, suffix)
            if path.exists():
                os.replace(path, path.with_name(path.name + ".bad"))
        warnings.warn(
            f"frame cache entry {self._path(key, '.json')} is damaged: {reason}; renamed to .bad, "
            "its frames are decoded again",
            RuntimeWarning,
            stacklevel=4,
        )

    def _evict(self, keep: str) -> None:
        entries = []
        for index in self._directory.glob("*.json"):
            pixels = index.with_suffix(".npy")
            try:
                size = _disk_bytes(index) + _disk_bytes(pixels)
                entries.append((index.stat().st_atime_ns, size, index, pixels))
            except FileNotFoundError:
                continue  # another process is evicting too
        total = sum(size for _, size, _, _ in entries)
        for _, size, index, pixels in sorted(entries, key=lambda e: e[0]):
            if total <= self._max_bytes:
                break
            if index.stem == keep:
                continue
            index.unlink(missing_ok=True)  # first, so that no index names missing pixels
            pixels.unlink(missing_ok=True)
            total -= size

    def _path(self, key: PoolKey, suffix: str) -> Path:
        return self._directory / (key.digest() + suffix)

    def _temporary(self, key: PoolKey) -> Path:
        return self._directory / f"{key.digest()}.{uuid.uuid4().hex}.tmp"


def _disk_bytes(path: Path) -> int:
    stat = path.stat()
    return getattr(stat, "st_blocks", 0) * 512 or stat.st_size
