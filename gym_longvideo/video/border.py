"""The border of the decoding layer: what crosses it on the way out is a ``VideoError``.

Decoders, drivers and file systems raise what they like: FFmpeg some thirty types, Python an
``UnicodeDecodeError`` for a title. A backend does its work inside ``border``, which lets a
``VideoError`` pass and makes one of anything else. Faults that no file is to blame for, such as no
memory or no file descriptor left, become a ``MachineError``.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from gym_longvideo.video.errors import (
    FrameDecodeError,
    MachineError,
    VideoChangedError,
    VideoError,
)
from gym_longvideo.video.source import VideoInfo

# Too many open files (of the process, of the machine), no memory, no space, a mount that is gone.
_MACHINE_FAULTS = {
    getattr(errno, name)
    for name in ("EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EDQUOT", "ESTALE", "ENOTCONN")
    if hasattr(errno, name)
}
# FFmpeg says "no memory" for a damaged file too, which asks for terabytes. Where this much can
# still be had, it is the file.
_ENOUGH_BYTES = 64 << 20


@contextmanager
def border(
    path: str,
    backend: str,
    kind: type[VideoError] = FrameDecodeError,
    what: str = "decoding failed",
) -> Iterator[None]:
    """Let nothing but a ``VideoError`` out of the block.

    Args:
        path: The file, for messages that do not name it yet.
        backend: The backend, likewise.
        kind: What an error that is the file's fault becomes.
        what: What failed, for the message.
    """
    try:
        yield
    except VideoError as error:
        if error.path:
            raise
        raise type(error)(error.reason, path=path, backend=backend) from error
    except Exception as error:
        if is_machine_fault(error):
            raise machine_error(error, path, backend) from error
        raise kind(
            f"{what} ({_describe(error)}); check the file, or fetch it again",
            path=path,
            backend=backend,
        ) from error


def machine_error(error: BaseException, path: str, backend: str) -> MachineError:
    """Return what a fault of the machine is told as."""
    return MachineError(
        f"this machine is short of something ({_describe(error)}), the file is not to blame; free "
        "memory, raise the limits of files and processes, or run fewer environments",
        path=path,
        backend=backend,
    )


def pass_on_machine_fault(error: BaseException) -> None:
    """Raise the error if a machine is to blame: elsewhere damage is ridden over."""
    if is_machine_fault(error):
        raise error


def is_machine_fault(error: BaseException) -> bool:
    """Tell a fault of the machine from one of the file."""
    if isinstance(error, RuntimeError):
        return "can't start new thread" in str(error)
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError):
        return number is None or not _has_memory()  # with a number it is FFmpeg's
    return number in _MACHINE_FAULTS


def _has_memory() -> bool:
    try:
        return np.empty(_ENOUGH_BYTES, np.uint8).size > 0  # asked for, not touched
    except MemoryError:
        return False


def _describe(error: BaseException) -> str:
    said = getattr(error, "strerror", None)
    if said:
        return said
    line = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {line}".removesuffix(": ")


def file_key(path: str) -> str:
    """Return a key that changes when the file may have changed (path, size, mtime, inode).

    Raises:
        OSError: If the file cannot be looked up.
        ValueError: If this cannot be a path.
    """
    stat = os.stat(path)
    text = f"{os.path.realpath(path)}\n{stat.st_size}\n{stat.st_mtime_ns}\n{stat.st_ino}"
    return hashlib.sha1(text.encode("utf-8", "surrogateescape")).hexdigest()


def check_unchanged(info: VideoInfo, backend: str) -> None:
    """Raise unless the file is still the one that was measured, or gone (an open one stays).

    Raises:
        VideoChangedError: Another file has taken its place, or it was written to.
        OSError: If the file cannot be looked up.
    """
    try:
        key = file_key(info.path)
    except FileNotFoundError:
        return
    if key != info.key:
        raise changed_error(info.path, backend)


def has_changed(info: VideoInfo) -> bool:
    """Tell whether a file must be opened anew, to read it or to learn what is wrong with it."""
    try:
        check_unchanged(info, "")
    except (VideoChangedError, OSError):
        return True
    return False


def changed_error(path: str, backend: str) -> VideoChangedError:
    """Return what a file that was exchanged is told as."""
    return VideoChangedError(
        "the file has changed since it was opened; leave videos as they are while they are read, "
        "or open the video again",
        path=path,
        backend=backend,
    )
