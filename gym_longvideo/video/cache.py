"""Caches of pool frames that outlive an episode: in memory, and on disk.

Both hold single frames of a pool, because a pool is decoded lazily and mostly in part.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import uuid
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

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

    It is never worse than no cache: where the directory cannot be read or written, or the disk is
    full, frames are decoded as if there were none, and that is logged once. Files are read and
    written, not mapped, because a full disk or a shortened file under a mapping kills the process.

    Args:
        directory: Created if missing.
        max_bytes: Bytes kept at most; beyond, the pools unused for longest are deleted.
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int = 10 << 30) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes} is negative; use 0 to cache nothing")
        self._directory = Path(directory)
        self._max_bytes = max_bytes
        self._told = False
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._tell(error)

    def get(self, key: PoolKey, frame_index: Sequence[int]) -> dict[int, CachedFrame]:
        """Return those of the frames that are cached, as copies."""
        try:
            return self._fetch(key, frame_index)
        except FileNotFoundError:
            return {}  # evicted by another process meanwhile
        except (OSError, MemoryError) as error:
            self._tell(error)
            return {}

    def put(self, key: PoolKey, frames: Mapping[int, CachedFrame]) -> None:
        """Store decoded frames, if they can be."""
        if not frames or _bytes_of(key) > self._max_bytes:
            return
        try:
            self._store(key, frames)
            self._evict(keep=key.digest())
        except (OSError, MemoryError) as error:
            self._tell(error)

    def _tell(self, error: BaseException) -> None:
        if not self._told:
            _log.warning(
                "the frame cache %s is of no use for now (%s); frames are decoded instead",
                self._directory,
                error,
            )
        self._told = True

    def _fetch(self, key: PoolKey, frame_index: Sequence[int]) -> dict[int, CachedFrame]:
        index = self._load(key)
        if index is None:
            return {}
        found = {}
        with self._path(key, ".npy").open("rb") as file:
            start = self._start_of_pixels(key, file)
            if start is None:
                return {}
            for place in frame_index:
                row = index["slots"].get(str(place))
                if row is None:
                    continue
                frame = self._read(key, file, start, place)
                if frame is None or zlib.crc32(frame.data) != row["crc32"]:
                    self._set_aside(key, f"frame {place} does not match its checksum")
                    return {}
                found[place] = CachedFrame(frame, row["actual_s"], FrameStatus(row["status"]))
        with contextlib.suppress(OSError):  # a directory that may only be read
            # Many file systems do not keep access times; eviction needs them.
            os.utime(self._path(key, ".json"))
        return found

    def _read(self, key: PoolKey, file: BinaryIO, start: int, place: int) -> np.ndarray | None:
        size = _bytes_of(key) // key.size
        file.seek(start + place * size)
        content = file.read(size)
        if len(content) < size:
            return None
        return np.frombuffer(content, np.uint8).reshape(*key.frame_size, 3).copy()

    def _store(self, key: PoolKey, frames: Mapping[int, CachedFrame]) -> None:
        index = self._load(key)
        path = self._path(key, ".npy")
        if index is None or not path.exists():
            index = {"key": asdict(key) | {"frame_size": list(key.frame_size)}, "slots": {}}
            self._replace(path, partial(_create, key))
        with path.open("r+b") as file:
            start = self._start_of_pixels(key, file)
            if start is None:
                return
            for place, frame in frames.items():
                pixels = np.ascontiguousarray(frame.pixels)
                file.seek(start + place * pixels.nbytes)
                file.write(pixels.data)
                index["slots"][str(place)] = {
                    "actual_s": frame.actual_s,
                    "status": int(frame.status),
                    "crc32": zlib.crc32(pixels.data),
                }
        text = json.dumps(index)
        self._replace(
            self._path(key, ".json"), lambda temporary: temporary.write_bytes(text.encode())
        )

    def _replace(self, path: Path, write: Callable[[Path], object]) -> None:
        """Put a file in its place at once, whole or not at all."""
        temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.tmp")
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _load(self, key: PoolKey) -> dict[str, Any] | None:
        try:
            text = self._path(key, ".json").read_bytes()
        except FileNotFoundError:
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

    def _start_of_pixels(self, key: PoolKey, file: BinaryIO) -> int | None:
        """Return where in a ``.npy`` file the pixels begin; ``None`` if it is damaged."""
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except (ValueError, SyntaxError) as error:
            self._set_aside(key, f"unreadable pixels ({error})")
            return None
        if shape != (key.size, *key.frame_size, 3) or fortran or dtype != np.uint8:
            self._set_aside(key, f"holds {shape} {dtype}")
            return None
        start = file.tell()
        if os.fstat(file.fileno()).st_size != start + _bytes_of(key):
            self._set_aside(key, "pixels are cut short")
            return None
        return start

    def _set_aside(self, key: PoolKey, reason: str) -> None:
        try:
            for suffix in (".json", ".npy"):
                path = self._path(key, suffix)
                if path.exists():
                    os.replace(path, path.with_name(path.name + ".bad"))
        except OSError as error:
            return self._tell(error)
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


def _disk_bytes(path: Path) -> int:
    stat = path.stat()
    return getattr(stat, "st_blocks", 0) * 512 or stat.st_size


def _bytes_of(key: PoolKey) -> int:
    return key.size * key.frame_size[0] * key.frame_size[1] * 3


def _create(key: PoolKey, path: Path) -> None:
    # The mapping is not written to: blocks are allocated when frames are written to the file.
    shape = (key.size, *key.frame_size, 3)
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
