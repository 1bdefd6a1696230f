"""What other libraries make of the environment: tries them all, and writes ``docs/libraries.md``.

    python -m tools.libraries                 # all; an hour, and some GB of downloads
    python -m tools.libraries skrl tianshou   # some; the rows of others stay as they are

Each library gets a virtual environment of its own under ``build/venvs``, with the versions of
``constraints.txt`` where the library allows them. What does not install, fails or hangs
is a row like any other.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools import page
from tools.checks.rows import Row, describe, read
from tools.venvs import CONSTRAINTS, DIRECTORY, InstallError, Venv, dependencies, pinned, venv

_AROUND = ("gymnasium", "numpy", "torch")  # named beside each library


@dataclass(frozen=True)
class Library:
    """A library that is tried.

    Attributes:
        module: Its module in ``tools.checks``.
        distribution: Its name on PyPI.
        requirements: What is installed.
        apart: What is installed afterwards, with its own arguments of pip.
    """

    module: str
    distribution: str
    requirements: tuple[str, ...]
    apart: tuple[str, ...] = ()


_TORCH = pinned("torch")
# The newest releases, by number: left to itself, pip takes an old one that fits the constraints.
LIBRARIES = (
    Library("gymnasium_wrappers", "gymnasium", ("gymnasium[other]==1.4.0", "moviepy")),
    Library("sb3", "stable-baselines3", (_TORCH, "stable-baselines3==2.9.2")),
    Library("sb3_contrib", "sb3-contrib", (_TORCH, "sb3-contrib==2.9.2")),
    Library("rl_zoo3", "rl_zoo3", (_TORCH, "rl_zoo3==2.9.2")),
    Library(
        "cleanrl",
        "cleanrl",
        (_TORCH, "tensorboard", "gym==0.26.2", "stable-baselines3"),
        # Its last release forbids the Pythons that this package needs.
        apart=("--no-deps", "--ignore-requires-python", "cleanrl==1.2.0"),
    ),
    Library("tianshou", "tianshou", (_TORCH, "tianshou==2.0.1")),
    Library("skrl", "skrl", (_TORCH, "skrl==2.1.1")),
    # It imports peft and does not ask for it.
    Library("agilerl", "agilerl", (_TORCH, "agilerl==2.58.0", "peft==0.21.0")),
    Library("d3rlpy", "d3rlpy", (_TORCH, "d3rlpy==2.8.1")),
    Library("minari", "minari", ("minari[hdf5,create]==0.5.4",)),
    Library("torchrl", "torchrl", (_TORCH, "torchrl==0.14.1")),
    Library("rllib", "ray", (_TORCH, "ray[rllib]==2.60.0")),
)


def try_library(
    library: Library, *, scale: float, keep: bool, directory: Path = DIRECTORY
) -> tuple[dict[str, str], list[Row]]:
    """Return the versions that a library was tried with, and its rows."""
    wanted = [*dependencies(), *library.requirements]
    apart = [library.apart] if library.apart else []
    reason = ""
    for constraints in (("-c", str(CONSTRAINTS)), ()):
        try:
            with venv(
                library.module, [*constraints, *wanted], *apart, keep=keep, directory=directory
            ) as made:
                versions = made.versions([library.distribution, *_AROUND])
                return versions, run_checks(made, library, scale)
        except InstallError as error:
            reason = str(error)
    row = Row(library.distribution, "", "pip install", "", "failed", reason)
    return {}, [row]


def run_checks(made: Venv, library: Library, scale: float, timeout_s: float = 1500) -> list[Row]:
    """Run a library's checks; a call that ends early is followed by one for what is left."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        while True:
            before = len(read(path))
            code, printed = made.run(
                "-m", f"tools.checks.{library.module}", str(path), "--scale", str(scale),
                timeout_s=timeout_s,
            )  # fmt: skip
            rows = read(path)
            if code == 0:
                return rows
            print(printed[-2000:], file=sys.stderr)
            if len(rows) == before:  # it does not even begin
                last = (printed.strip().splitlines() or [f"exit code {code}"])[-1]
                row = Row(library.distribution, "", "import", "", "failed", last)
                return [*rows, row]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0; 1 if a row says "failed".
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [library.module for library in LIBRARIES]
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=", ".join(names))
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps of training")
    parser.add_argument("--keep", action="store_true", help="leave the virtual environments")
    args = parser.parse_args(arguments)
    if strange := sorted(set(args.libraries) - set(names)):
        parser.error(f"{strange[0]!r} is no library here; use some of {', '.join(names)}")
    failed = False
    for library in LIBRARIES:
        if args.libraries and library.module not in args.libraries:
            continue
        print(f"{library.distribution}: installing and trying", flush=True)
        versions, rows = try_library(library, scale=args.scale, keep=args.keep)
        for row in rows:
            print(f"  {describe(row)}", flush=True)
        failed |= any(row.result == "failed" for row in rows)
        page.put_library(library.distribution, names_of(), versions, rows)
    print(page.write())
    return int(failed)


def names_of() -> list[str]:
    """Return the distributions in the order of the table."""
    return [library.distribution for library in LIBRARIES]


if __name__ == "__main__":
    sys.exit(main())
