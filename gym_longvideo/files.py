"""Files that are there whole or not at all, on every system.

A file is written beside its place under another name and then renamed. Windows differs from the
rest in two ways that matter here: it refuses to replace a file that somebody has open, if only for
the moment in which a scanner reads it, and it opens no directories.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_PAUSES_S = (0.01, 0.05, 0.1, 0.2, 0.4, 0.8)  # between attempts to rename


def write_whole(path: str | Path, text: str, *, durable: bool = False) -> None:
    """Write a text file in one go: either all of it is there, or what was there before.

    Args:
        path: The file.
        text: Its content, written as UTF-8; a lone surrogate becomes the escape that says the same
            in JSON.
        durable: Flush it to the disk, so that it survives a loss of power.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("wb") as stream:
            stream.write(text.encode("utf-8", "backslashreplace"))
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def replace(source: str | Path, target: str | Path) -> None:
    """Rename a file or directory as ``os.replace`` does, with patience.

    Where somebody has the target open, Windows refuses for as long as that lasts.

    Raises:
        OSError: If it is still refused after a second and a half.
    """
    for pause_s in _PAUSES_S:
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(pause_s)
    os.replace(source, target)


def sync(path: str | Path) -> None:
    """Flush a file or a directory to the disk; on Windows a directory needs none.

    Raises:
        OSError: If that fails.
    """
    is_directory = os.path.isdir(path)
    access = os.O_RDONLY if is_directory else os.O_RDWR | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, access)
    except PermissionError:
        if is_directory:
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: BaseException) -> str:
    """Say why something could not be written; of a full disk in so many words.

    >>> reason(OSError(errno.ENOSPC, "No space left on device"))
    'the disk is full: [Errno 28] No space left on device'
    """
    if any(_is_full(each) for each in _chain(error)):
        return f"the disk is full: {error}"
    return str(error) or type(error).__name__


def portable(name: str) -> str:
    """Return a name with what no file may be called on some system replaced.

    >>> portable("nextgqa:val/7?")
    'nextgqa-val-7-'
    """
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "-", name)


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # Libraries in Rust say it in words alone.
    return "os error 28" in str(error) or "No space left on device" in str(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
