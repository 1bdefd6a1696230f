"""The directory of a run: one run writes there at a time, and nothing of it is in the way.

Training and evaluation hold the same lock. The system lets go of it when a process dies, however
that happens, so nothing has to be cleared away by hand. Who holds it stands beside it, in
``.holder``, because a locked file cannot be read on Windows.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path

import filelock

from agents.keeping.saved import AUTO, STATE, checkpoints, find, newest_intact
from gym_longvideo.command import check_directory
from gym_longvideo.files import reason

LOCK, HOLDER = ".lock", ".holder"


class RunError(OSError):
    """A run could not be written, or is in use."""


class Hold:
    """Keeps everybody else from writing to a directory until it is released. A context manager.

    Args:
        directory: Of the run; made if it does not exist.
        fresh: Refuse a directory that exists already.

    Raises:
        FileExistsError: If a fresh directory exists already.
        RunError: If another process writes there, or nothing can be written there.
    """

    def __init__(self, directory: str | os.PathLike[str], *, fresh: bool = False) -> None:
        self.directory = Path(directory)
        path = self.directory / LOCK
        self._made = [p for p in (self.directory, *self.directory.parents) if not p.exists()]
        try:
            self.directory.mkdir(parents=True, exist_ok=not fresh)
        except OSError as error:
            if fresh and isinstance(error, FileExistsError):
                raise
            raise RunError(f"{self.directory} could not be written: {reason(error)}") from error
        self._lock = filelock.FileLock(path, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise RunError(
                f"another process writes to {self.directory}{_holder(self.directory)}; wait until "
                "it ends, stop it, or choose another directory"
            ) from None
        except (OSError, NotImplementedError) as error:
            self._unmake()
            raise RunError(
                f"{path} cannot be locked ({reason(error)}); use a local disk that you may write to"
            ) from error
        with contextlib.suppress(OSError):  # it only serves to say who it was
            text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
            (self.directory / HOLDER).write_text(text, encoding="utf-8")

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others write. Idempotent."""
        if self._lock.is_locked:
            (self.directory / HOLDER).unlink(missing_ok=True)
            self._lock.release()

    def abandon(self) -> None:
        """Let others write, and remove the directory if it was made for this and is empty."""
        if self._made and self._lock.is_locked:
            with contextlib.suppress(OSError):  # Windows does so itself when it is released
                (self.directory / LOCK).unlink()
        self.release()
        self._unmake()

    def _unmake(self) -> None:
        with contextlib.suppress(OSError):
            for each in self._made:
                each.rmdir()


def claim(out: str, resume: str = "") -> tuple[Hold, Path | None]:
    """Hold the directory in which a training run writes, and find what it goes on from.

    Args:
        out: The directory; "" for that of the checkpoint to go on from, or else a new one under
            runs/ with the time in its name.
        resume: A checkpoint, or the directory of its run; "auto" for the newest intact one in
            ``out``, if there is any; "" to begin anew.

    Returns:
        The hold on the directory, and the checkpoint, if any.

    Raises:
        ValueError: If another run has written there, or something else is in the way.
        CheckpointError: If there is nothing to resume.
        RunError: If another process writes there, or nothing can be written there.
    """
    place = Path(out) if out else find(resume).parent if resume else None
    if place is None:
        hold = _new_hold(datetime.now().strftime("train-%Y%m%d-%H%M%S"))
    else:
        check_directory(place)
        hold = Hold(place)
    try:
        # Only now does nobody else write or remove checkpoints there.
        if resume == AUTO:
            resumed = newest_intact(hold.directory)
        else:
            resumed = find(resume) if resume else None
        check_way(
            hold.directory,
            files=("metrics.jsonl", "config.json", "latest"),
            folders=("samples", "records", "tensorboard", "checkpoint-[0-9]*"),
        )
        _check_history(hold.directory, resumed, anew=resume == AUTO)
    except BaseException:
        hold.abandon()
        raise
    return hold, resumed


def check_way(directory: Path, *, files: Collection[str], folders: Collection[str]) -> None:
    """Refuse a directory in which something has a name that a run needs for another kind of thing.

    Args:
        directory: Of the run.
        files: Names of what must be files.
        folders: Patterns of what must be directories.

    Raises:
        ValueError: If there is such a thing, naming it.
    """
    for patterns, kind in ((files, "file"), (folders, "directory")):
        for path in (path for pattern in patterns for path in sorted(directory.glob(pattern))):
            if path.is_dir() != (kind == "directory"):
                raise ValueError(
                    f"{path} is in the way: a run has a {kind} of that name; move it elsewhere, or "
                    "choose another directory"
                )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell which file could not be written, and whether the disk is full.

    Raises:
        RunError: If anything inside raises an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} could not be written: {reason(error)}") from error


def _new_hold(name: str) -> Hold:
    for attempt in range(1, 1000):
        path = Path("runs", name if attempt == 1 else f"{name}-{attempt}")
        with contextlib.suppress(FileExistsError):
            return Hold(path, fresh=True)
    raise RunError(f"a thousand runs are called {name}; choose a directory yourself: out=")


def _check_history(directory: Path, resumed: Path | None, anew: bool) -> None:
    """Refuse to write among what another run wrote."""
    if anew or not (directory / "metrics.jsonl").exists():
        return
    if resumed is not None and resumed.parent.resolve() == directory.resolve():
        return
    if any((path / STATE).is_file() for path in checkpoints(directory)):
        fix = f"pass resume={str(directory)!r} to go on with it"
    else:
        fix = "it left no checkpoint; pass resume='auto' to begin anew there"
    raise ValueError(f"out={str(directory)!r} holds a run already; {fix}, or another out=")


def _holder(directory: Path) -> str:
    """Return who holds a directory, in brackets; "" if that cannot be told."""
    try:
        said = json.loads((directory / HOLDER).read_text(encoding="utf-8"))
        return f" (process {int(said['pid'])} on {said['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
