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
import select
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from gym_longvideo.extras import check_ours, explain, floors
from gym_longvideo.files import reason, write_whole

_PIPE = 128 + 13  # of a program that SIGPIPE ends, as shells say it
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

    What is wrong with them is printed as one line, and gives the exit code 2. Where whoever reads
    the output has gone (``| head``), the command ends without a word and with the exit code 141.
    """
    module = _name_of(function.__globals__)

    def run(arguments: Sequence[str] | None) -> int:
        try:
            check_ours(*floors(module))
            return function(sys.argv[1:] if arguments is None else arguments)
        except SystemExit as end:  # of a parser that has said why, or has printed its help
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except ImportError as error:
            return fail(explain(error, module))
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            return fail(error)

    @functools.wraps(function)
    def main(arguments: Sequence[str] | None = None) -> int:
        try:
            code = run(arguments)
            print(end="", flush=True)
        except BrokenPipeError as error:
            return _PIPE if _muted() else fail(error)
        return code

    return main


def _muted() -> bool:
    """Let what nobody reads go nowhere; return whether that is so of stdout or stderr.

    What is buffered is written when the process ends, and would complain then.
    """
    muted = False
    for stream in (sys.stdout, sys.stderr):
        try:
            file = stream.fileno()
        except (AttributeError, OSError, ValueError):  # there is none, or it is no file
            continue
        if _has_no_reader(file):
            muted = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file)
            os.close(nowhere)
    return muted


def _has_no_reader(file: int) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(file, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@functools.cache
def explain_imports() -> None:
    """Have ``python -m`` say in one line what a module of ours lacks, and end with code 2.

    The packages whose modules are run so call this before anything else is imported. Modules that
    are merely imported raise what they raise.
    """
    if "runpy" not in sys.modules:  # which runs modules, for python -m and for profilers
        return
    before = sys.excepthook

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, ImportError) and (module := _module_run(trace)):
            if (text := explain(error, module)) != str(error):
                raise SystemExit(fail(text))
        before(kind, error, trace)

    sys.excepthook = say


def _module_run(trace: TracebackType | None) -> str:
    """Return the dotted name of the module of a package that is run where an error was raised."""
    for frame, _ in traceback.walk_tb(trace):
        if frame.f_globals.get("__name__") == "__main__" and frame.f_globals.get("__package__"):
            return _name_of(frame.f_globals)
    return ""


def _name_of(module: Mapping[str, Any]) -> str:
    """Return the dotted name of a module, from its globals, even if it is run."""
    spec = module.get("__spec__")
    name = module["__name__"] if spec is None else spec.name
    return name.removesuffix(".__main__")


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
    made = missing_directories(directory)
    probe = directory / ".probe.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
    except OSError as error:
        raise ValueError(f"out={str(path)!r} cannot be written to: {reason(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
        remove_empty(made)


def missing_directories(directory: Path) -> list[Path]:
    """Return which of a directory and those above it do not exist, the deepest first."""
    return [each for each in (directory, *directory.parents) if not each.exists()]


def remove_empty(directories: Sequence[Path]) -> None:
    """Remove those of some directories, the deepest first, that are there and empty."""
    for each in directories:
        with contextlib.suppress(OSError):
            each.rmdir()


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
