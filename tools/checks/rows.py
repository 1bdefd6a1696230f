"""Rows of the table of libraries: what was tried, and what came of it.

A row is written before its check begins as well as after, so that a check which takes the process
down with it still leaves one, and a second call goes on with the checks that follow.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from tools.checks import needle

ENDED = "the process ended, or ran out of time, while this ran"
_EPISODES = 300  # at either end of training, of which success is the mean


@dataclass(frozen=True)
class Row:
    """What came of one check.

    Attributes:
        library: Name of its distribution.
        version: Version of that.
        what: What of the library was tried.
        how: "as is", or the wrapper or setting that it takes.
        result: "works", "trains", "no" (a known limit of the library) or "failed".
        note: Of "no", whose limit it is; of "failed", the error.
        start: Success of the first episodes of training, if it trains.
        end: Success of the last ones.
        steps: Environment steps of training.
        seconds: Wall-clock time of the check.
    """

    library: str
    version: str
    what: str
    how: str
    result: str
    note: str = ""
    start: float = math.nan
    end: float = math.nan
    steps: int = 0
    seconds: float = 0.0

    def to_json(self) -> str:
        """Return the row as a line of JSON."""
        return json.dumps(
            {name: value for name, value in asdict(self).items() if value == value}  # NaN is not
        )


@dataclass(frozen=True)
class Check:
    """Something of a library to be tried.

    Attributes:
        what: What is tried.
        run: Tries it; raises if it does not work.
        how: As in ``Row``.
        trains: Whether it trains on ``needle.make``.
        limit: Whose limit it is that this does not work: ``run`` has to raise.
    """

    what: str
    run: Callable[[], None]
    how: str
    trains: bool
    limit: str


class Checks:
    """The checks of one library.

    Args:
        library: Name of its distribution, as in ``pip install``.
    """

    def __init__(self, library: str) -> None:
        self.library = library
        self.checks: list[Check] = []

    def __call__(
        self, what: str, *, how: str = "as is", trains: bool = False, limit: str = ""
    ) -> Callable[[Callable[[], None]], Callable[[], None]]:
        """Decorate a function that tries something; arguments as in ``Check``."""

        def keep(run: Callable[[], None]) -> Callable[[], None]:
            self.checks.append(Check(what, run, how, trains, limit))
            return run

        return keep

    def main(self) -> None:
        """Run those checks that the file has no row of, and append their rows."""
        parser = argparse.ArgumentParser(description=f"Try {self.library} on the environment.")
        parser.add_argument("rows", type=Path, help="JSON Lines file to append to")
        parser.add_argument("--scale", type=float, default=1.0, help="of the steps of training")
        args = parser.parse_args()
        needle.SCALE = args.scale
        known = {(row.what, row.how) for row in read(args.rows)}
        for check in self.checks:
            if (check.what, check.how) in known:
                continue
            begun = Row(self.library, version(self.library), check.what, check.how, "failed", ENDED)
            append(args.rows, begun)
            row = tried(check, begun)
            append(args.rows, row)
            print(describe(row), flush=True)


def tried(check: Check, row: Row) -> Row:
    """Run a check and return its row; nothing that it raises gets out but KeyboardInterrupt."""
    needle.ENDS.clear()
    needle.COUNT = 0
    started = time.monotonic()
    error = ""
    try:
        check.run()
    except (Exception, SystemExit) as raised:
        traceback.print_exc()
        error = f"{type(raised).__name__}: {_said(raised)}"
    row = replace(row, seconds=round(time.monotonic() - started, 1))
    if check.limit:
        if error:
            return replace(row, result="no", note=f"{check.limit} ({error})")
        return replace(row, note=f"works, although it should not: {check.limit}")
    if error:
        return replace(row, note=error)
    if not check.trains:
        return replace(row, result="works", note="")
    ends = needle.ENDS
    few = max(1, min(_EPISODES, len(ends) // 3))
    if not ends:
        return replace(row, note="no episode ended in training")
    start, end = (round(sum(part) / few, 3) for part in (ends[:few], ends[-few:]))
    return replace(row, result="trains", note="", start=start, end=end, steps=needle.COUNT)


def append(path: Path, row: Row) -> None:
    """Add a row to a file of rows."""
    with path.open("a", encoding="utf-8") as file:
        file.write(row.to_json() + "\n")


def read(path: Path) -> list[Row]:
    """Return the rows of a file, the last of each check, in their order; none if it is missing."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [Row(**json.loads(line)) for line in lines]
    return list({(row.library, row.what, row.how): row for row in rows}.values())


def describe(row: Row) -> str:
    """Return the row in a line of text."""
    return f"{row.library} {row.version}, {row.what} ({row.how}): {outcome(row)}"


def outcome(row: Row) -> str:
    """Return what came of a check, in words."""
    if row.result == "trains":
        return (
            f"success {row.start:.2f} to {row.end:.2f}, "
            f"{row.steps / 1000:.0f}k steps, {row.seconds:.0f} s"
        )
    return f"{row.result}: {row.note}" if row.note else row.result


def _said(error: BaseException) -> str:
    """Return what an error says, in one line of bounded length and without paths."""
    said = str(error)
    if isinstance(error, subprocess.CalledProcessError):  # its last line says more than the command
        said = (error.stderr or "").strip().rpartition("\n")[2] or said
    said = re.sub(r"(/[\w.+-]+){2,}", "...", " ".join(said.split()))
    return said if len(said) <= 160 else said[:157] + "..."
