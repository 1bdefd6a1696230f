"""What all commands share: how they read JSON, say what is wrong, and keep their configuration.

Commands of this package are built on argparse, those that need torch or pyarrow on tyro
(``agents.command``); both print errors as one line, ``error: ...``, and end with code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gym_longvideo.files import reason, write_whole

_EXTRAS = {
    **dict.fromkeys(
        ("agents", "torch", "transformers", "peft", "accelerate", "tyro", "filelock"), "agents"
    ),
    **dict.fromkeys(("benchmarks", "torchmetrics", "pyarrow", "openai"), "benchmarks"),
    **dict.fromkeys(("scipy", "matplotlib"), "study"),
    **dict.fromkeys(("stable_baselines3", "sb3_contrib"), "sb3"),
}
CONFIG = "config.json"  # in the directory of every run: what --config takes back


class Parser(argparse.ArgumentParser):
    """argparse with defaults in its help and errors as all commands print them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options
        )

    def error(self, message: str) -> NoReturn:
        """Print an error and end."""
        raise SystemExit(fail(message))


def as_command(function: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """Make the ``main`` of a command: it takes words, by default those of the command line.

    What is wrong with them is printed as one line, and gives the exit code 2.
    """

    @functools.wraps(function)
    def main(arguments: Sequence[str] | None = None) -> int:
        try:
            return function(sys.argv[1:] if arguments is None else arguments)
        except SystemExit as end:  # of a parser that has said why, or has printed its help
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except ModuleNotFoundError as error:
            return fail(missing(error))
        except (ValueError, OSError, ImportError) as error:
            return fail(error)

    return main


def missing(error: ModuleNotFoundError) -> str:
    """Say which extra brings a module that is not installed."""
    name = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(name, "")
    return f'{name} is not installed: pip install "gym-longvideo{f"[{extra}]" if extra else ""}"'


def fail(error: object, code: int = 2) -> int:
    """Print an error to stderr, and return the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return code


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object from the command line.

    Raises:
        ValueError: If it is none, with an example.

    >>> json_object('{"pool_size": 64}')
    {'pool_size': 64}
    """
    example = "try '{\"pool_size\": 64}'"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no JSON ({error}); {example}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is no JSON object; {example}")
    return value


def check_directory(path: str | os.PathLike[str]) -> None:
    """Try to write into the directory of a run, before anything slow; leave nothing behind.

    Raises:
        ValueError: If that is not possible, saying why.
    """
    directory = Path(path)
    made = [each for each in (directory, *directory.parents) if not each.exists()]
    probe = directory / ".probe.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # another process may be looking too
        with contextlib.suppress(OSError):  # it is not empty: another process writes there
            for each in made:
                each.rmdir()
    except OSError as error:
        raise ValueError(f"out={str(path)!r} cannot be written to: {reason(error)}") from None


def write_config(directory: str | Path, values: Mapping[str, Any]) -> None:
    """Write ``config.json`` of a run, whole or not at all."""
    write_whole(Path(directory) / CONFIG, json.dumps(values, indent=2) + "\n")


def read_config(path: str | Path) -> dict[str, Any]:
    """Read what ``write_config`` wrote.

    Args:
        path: Of the file, or of the directory of its run.

    Raises:
        ValueError: If there is no such file, or it is no JSON object.
    """
    path = Path(path)
    path = path / CONFIG if path.is_dir() else path
    try:
        return json_object(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from None
