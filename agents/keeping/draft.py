"""Draft: a checkpoint that is being written, beside its place until it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.keeping.saved import LATEST, STATE, digests_of_files
from gym_longvideo.files import replace as rename
from gym_longvideo.files import sync as _sync
from gym_longvideo.files import write_whole


class Draft:
    """A checkpoint that is being written, beside its place.

    Args:
        directory: Of the run.
        step: Iterations done.

    Attributes:
        path: Where to write.
        final: Its place.
    """

    def __init__(self, directory: Path, step: int) -> None:
        self.directory = directory
        self.final = directory / f"checkpoint-{step:06d}"
        self.path = directory / f".checkpoint-{step:06d}.part"
        self._aside = directory / f".checkpoint-{step:06d}.old"
        self._placed = False

    def begin(self) -> None:
        """Make its directory, and clear away what a run that was killed left of one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for left in self.directory.glob(".checkpoint-*"):
            _remove(left)
        if self.final.exists() and not self.final.is_dir():
            raise FileExistsError(f"{self.final} is in the way: no checkpoint; move it elsewhere")
        self.path.mkdir()

    def place(self, head: Mapping[str, Any]) -> None:
        """Write ``state.json``, flush everything to the disk, and rename it."""
        files = sorted(each for each in self.path.rglob("*") if each.is_file())
        names = [each.relative_to(self.path).as_posix() for each in files]
        state = {**head, "files": dict(zip(names, digests_of_files(files), strict=True))}
        text = json.dumps(state, indent=2) + "\n"
        (self.path / STATE).write_text(text, encoding="utf-8", newline="\n")
        _flush(self.path)
        if self.final.exists():  # of a run that was resumed before it
            rename(self.final, self._aside)
        rename(self.path, self.final)
        self._placed = True
        write_whole(self.directory / LATEST, self.final.name + "\n", durable=True)
        shutil.rmtree(self._aside, ignore_errors=True)

    def abandon(self) -> None:
        """Take everything back."""
        shutil.rmtree(self.final if self._placed else self.path, ignore_errors=True)
        if self._aside.exists() and not self.final.exists():
            rename(self._aside, self.final)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _flush(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            _sync(Path(folder, name))
        _sync(folder)
