"""``docs/libraries.md``: two tables, drawn from what the checks and the suites left behind.

The numbers lie in ``docs/libraries/*.json``, so that a run of some libraries leaves the rows of the
others as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from tools.checks.rows import Row, outcome
from tools.venvs import ROOT

PAGE = ROOT / "docs" / "libraries.md"
DATA = ROOT / "docs" / "libraries"

_HEAD = """\
# Other libraries

What learners and tools of others make of `LongVideoQA-v0`, tried and not read: `make libraries`
gives each a virtual environment of its own and runs `tools/checks` in it. A limit is written down
as one, and a check that begins to work in spite of it is reported.

Where a row has numbers, success is the share of questions answered rightly while exploring, of the
first and the last 300 episodes of one run with seed 0, on the needle suite of `examples/needle.py`
with frames of 8 pixels. Guessing earns 0.25 of those that are answered at all. Runs are short, and
settings nobody's best: the numbers say that learning takes place, and rank nobody.
"""

_COMPAT = """\
## Versions

`make compat` runs the part of the test suite that a dependency touches at the ends of the range
that is supported, each in a virtual environment of its own; which modules these are,
`tools/compat.py` says. All else is as in `constraints.txt`. Skipped is what asks for a dependency
that is not there.
"""


@dataclass(frozen=True)
class Combination:
    """A run of tests under some versions.

    Attributes:
        what: What is being held at another version than usual.
        versions: Versions of what matters, by distribution.
        tests: What was run.
        passed: Number of tests that passed.
        failed: Number that failed or broke.
        skipped: Number that were skipped.
        error: Why nothing was run, if so.
        date: Day of the run.
    """

    what: str
    versions: Mapping[str, str]
    tests: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    error: str = ""
    date: str = field(default_factory=lambda: date.today().isoformat())


def put_library(
    name: str, order: Sequence[str], versions: Mapping[str, str], rows: Sequence[Row]
) -> None:
    """Keep what came of a library, in place of what there was.

    Args:
        name: Its distribution.
        order: All distributions in the order of the table.
        versions: What it was tried with.
        rows: What was tried.
    """
    entries = _load("libraries")
    entries[name] = {
        "date": date.today().isoformat(),
        "versions": dict(versions),
        "rows": [json.loads(row.to_json()) for row in rows],
    }
    _save("libraries", {each: entries[each] for each in order if each in entries})


def put_combinations(combinations: Iterable[Combination], order: Sequence[str]) -> None:
    """Keep what came of combinations of versions; those with other names stay."""
    entries = _load("compat")
    for each in combinations:
        entries[each.what] = vars(each)
    _save("compat", {what: entries[what] for what in order if what in entries})


def write() -> Path:
    """Write the page and return its path."""
    parts = [_HEAD, _libraries(_load("libraries")), _COMPAT, _versions(_load("compat"))]
    PAGE.write_text("\n".join(parts), encoding="utf-8")
    return PAGE


def _libraries(entries: Mapping[str, Any]) -> str:
    lines = ["| library | what | how | result |", "|---|---|---|---|"]
    for name, entry in entries.items():
        around = [f"{each} {version}" for each, version in entry["versions"].items()]
        first, *rest = around or [name]
        label = f"**{first}**<br>{', '.join(rest)}<br>{entry['date']}"
        for row in (Row(**each) for each in entry["rows"]):
            lines.append(_row(label, row.what, row.how, outcome(row)))
            label = ""
    return "\n".join([*lines, ""])


def _versions(entries: Mapping[str, Any]) -> str:
    lines = [
        "| held at | versions | tests | passed | failed | skipped | date |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in entries.values():
        each = Combination(**entry)
        versions = ", ".join(f"{name} {version}" for name, version in each.versions.items())
        counts = (each.error, "", "") if each.error else (each.passed, each.failed, each.skipped)
        lines.append(_row(each.what, versions, each.tests, *counts, each.date))
    return "\n".join([*lines, ""])


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in cells)} |"


def _load(name: str) -> dict[str, Any]:
    path = DATA / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _save(name: str, entries: Mapping[str, Any]) -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    text = json.dumps(entries, indent=1, ensure_ascii=False)
    (DATA / f"{name}.json").write_text(text + "\n", encoding="utf-8")
