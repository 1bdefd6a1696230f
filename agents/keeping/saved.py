"""Saved checkpoints: which of them a run's directory holds, and which are intact. Needs no torch.

What is not as it was written is refused by name, together with the checkpoint to go on from
instead; nothing is guessed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FORMAT = 1
STATE, LATEST = "state.json", "latest"
AUTO = "auto"  # what --resume takes for "whatever is there"
_NAME = re.compile(r"checkpoint-(\d{6,})")
_READERS = 8  # files that are read at once
_PARTS = {"config": dict, "step": int, "fingerprint": dict}  # of state.json


class CheckpointError(Exception):
    """A checkpoint could not be written, read, or does not belong here."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is not as it was written."""


def step_of(path: Path) -> int:
    """Return the step that is in a checkpoint's name, -1 if it has another name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a run, complete or not, the oldest first."""
    found = directory.glob("checkpoint-*")
    return sorted((path for path in found if step_of(path) >= 0), key=step_of)


def latest(directory: Path) -> Path | None:
    """Return the checkpoint of a run that ``latest`` points to, or else the newest complete one.

    Raises:
        DamagedCheckpoint: If ``latest`` holds anything but the name of a checkpoint.
    """
    complete = [path for path in checkpoints(directory) if (path / STATE).is_file()]
    name = _pointed(directory)
    if name is None or directory / name in complete:
        return directory / name if name else next(reversed(complete), None)
    if complete:
        logger.warning("%s names %s, which is not there; %s is taken", directory / LATEST, name,
                       complete[-1].name)  # fmt: skip
    return next(reversed(complete), None)


def find(path: str | Path) -> Path:
    """Return the checkpoint at a path, which may be a run's directory.

    Raises:
        CheckpointError: If there is none, or the run's ``latest`` is damaged.
    """
    path = Path(path)
    if (path / STATE).is_file():
        return path
    found = latest(path)
    if found is None:
        raise CheckpointError(
            f"{path} is no checkpoint, and no run that has one; pass the directory of a run, or "
            "one named checkpoint-..."
        )
    return found


def newest_intact(directory: Path) -> Path | None:
    """Return the checkpoint that a run can go on from, whatever happened to later ones.

    That is the one that ``latest`` names, or the newest before it that is as it was written. A
    warning names each that is passed over.

    Raises:
        CheckpointError: If one cannot be read for another reason than damage.
    """
    try:
        name = _pointed(directory)
    except DamagedCheckpoint as error:
        logger.warning("%s", error)
        name = None
    for path in _in_turn(directory, name):
        try:
            check_files(path, read_state(path))
        except DamagedCheckpoint as error:
            logger.warning("%s", error)
        else:
            return path
    return None


def newest_readable(directory: Path) -> Path | None:
    """Return what ``newest_intact`` would, but look at ``state.json`` alone and warn of nothing."""
    try:
        name = _pointed(directory)
    except DamagedCheckpoint:
        name = None
    return next((path for path in _in_turn(directory, name) if _state(path)), None)


def _in_turn(directory: Path, name: str | None) -> Iterator[Path]:
    """Yield checkpoints in the order in which to go on from them, given what ``latest`` holds."""
    paths = [path for path in reversed(checkpoints(directory)) if path.is_dir()]
    if name is not None:  # later ones are of a run that was resumed before them
        paths.sort(key=lambda path: step_of(path) > step_of(Path(name)))
    return iter(paths)


def read_state(path: Path) -> dict[str, Any]:
    """Return ``state.json`` of a checkpoint.

    Raises:
        DamagedCheckpoint: If it is not as it was written.
        CheckpointError: If it may not be read, or is of another version of the library.
    """
    file = path / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"checkpoint {path} cannot be read: {file}: {error}") from error
    if not isinstance(state, dict):
        held = "null" if state is None else f"a {type(state).__name__}"
        raise _damaged(path, f"checkpoint {path} is damaged: {file} holds {held}, no object")
    if (found := state.get("format")) != FORMAT:
        what = (
            f"checkpoint {path} has format {found!r}, written by gym-longvideo "
            f"{state.get('library')}; this version reads {FORMAT}"
        )
        raise CheckpointError(what) if isinstance(found, int) else _damaged(path, what)
    for name, kind in _PARTS.items():
        if not isinstance(state.get(name, None if name == "config" else kind()), kind):
            raise _damaged(
                path,
                f"checkpoint {path} is damaged: in {file}, {name!r} is {state.get(name)!r}, no "
                f"{kind.__name__}",
            )
    return state


def check_files(path: Path, state: Mapping[str, Any]) -> None:
    """Compare the files of a checkpoint with the digests that were taken when it was written.

    Raises:
        DamagedCheckpoint: If one is missing or changed. Versions that took no digests are let pass.
    """
    if name := _first_changed(path, state):
        what = "is not as it was written" if (path / name).exists() else "is missing"
        raise _damaged(path, f"checkpoint {path} is damaged: {name} {what}")


def digest_of_file(path: Path) -> str:
    """Return a digest of what a file holds."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def digests_of_files(paths: Sequence[Path]) -> list[str | None]:
    """Return a digest of each of some files, None where there is none; several are read at once."""

    def digest(path: Path) -> str | None:
        try:
            return digest_of_file(path)
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(digest, paths))


def _first_changed(path: Path, state: Mapping[str, Any]) -> str:
    files = state.get("files", {})
    if not isinstance(files, dict):
        return STATE
    try:
        found = digests_of_files([path / name for name in files])
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    changed = (name for name, digest in zip(files, found, strict=True) if files[name] != digest)
    return next(changed, "")


def _pointed(directory: Path) -> str | None:
    """Return the name of a checkpoint that ``latest`` holds, None if there is no such file."""
    file = directory / LATEST
    try:
        with file.open("rb") as stream:
            held = stream.read(100)
    except FileNotFoundError:
        return None
    except OSError as error:
        if not directory.is_dir():  # of a path that is a file
            return None
        raise _damaged(file, f"{file} cannot be read: {error}") from error
    name = held.decode("utf-8", "replace").strip()
    if not _NAME.fullmatch(name):
        raise _damaged(
            file, f"{file} is damaged: it holds {held!r} instead of a name as checkpoint-000020"
        )
    return name


def _damaged(path: Path, what: str) -> DamagedCheckpoint:
    """Return an error that says which other checkpoint of the run to go on from."""
    for other in _in_turn(path.parent, None):
        if other != path and _is_intact(other):
            return DamagedCheckpoint(f"{what}; go on from {other}, which is intact")
    return DamagedCheckpoint(f"{what}; no other checkpoint there is intact")


def _is_intact(path: Path) -> bool:
    try:
        state = _state(path)
        return state is not None and not _first_changed(path, state)
    except CheckpointError:
        return False


def _state(path: Path) -> dict[str, Any] | None:
    """Return ``state.json`` of a checkpoint, None if it cannot be used."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    right = isinstance(state, dict) and state.get("format") == FORMAT
    usable = right and all(isinstance(state.get(name), kind) for name, kind in _PARTS.items())
    return state if usable else None
