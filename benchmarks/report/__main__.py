"""Reports: runs in; Markdown, CSV and a self-contained HTML page out.

    longvideo report runs/videomme-32 runs/videomme-64 --out report/

Runs of one protocol share a section. Runs of different protocols are lined up only under the list
of the knobs that differ, and published rows only beside runs of the benchmark they were published
for, with what differs. The same runs give the same files, byte for byte.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.command import parse
from benchmarks.report.csv_tables import csv_tables
from benchmarks.report.document import build
from benchmarks.report.html_page import render_html
from benchmarks.report.markdown import render_markdown
from benchmarks.report.sections import make_sections, read_entries
from gym_longvideo.command import as_command
from gym_longvideo.files import replace


@dataclass(frozen=True)
class ReportConfig:
    """What to report.

    Attributes:
        runs: Directories of runs; NAME=DIRECTORY calls a run something else than its directory.
        out: Directory of the report; files of an earlier one are replaced.
        examples: Episodes shown of each run that were right, and as many that were not. They quote
            the benchmark's questions: 0 where its licence forbids passing them on.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    out: Path
    examples: int = 3


def write_report(
    runs: Sequence[str | Path], out: str | Path, *, examples: int = 3
) -> dict[str, Path]:
    """Write report.md, report.html and the CSV tables of some runs.

    Args:
        runs: Directories of runs, or "NAME=DIRECTORY".
        out: Directory to write into; made if it does not exist.
        examples: Episodes shown of each run that were right, and as many that were not.

    Returns:
        The files, by name.

    Raises:
        ValueError: If a directory is no run, is empty or has a name twice, or for ``examples`` < 0.
        OSError: If the report cannot be written.
    """
    if examples < 0:
        raise ValueError(f"examples={examples} must be 0 or more")
    directory = Path(out)
    _make(directory)
    sections = make_sections(read_entries(runs))
    blocks = build(sections, examples=examples)
    texts = {"report.md": render_markdown(blocks), "report.html": render_html(blocks)}
    texts |= {f"{name}.csv": text for name, text in csv_tables(sections).items()}
    return {name: _write(directory / name, text) for name, text in texts.items()}


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".report.part"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OSError(f"--out {directory} cannot be written to: {error}") from None


def _write(path: Path, text: str) -> Path:
    """Write a file whole, or leave what was there."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(text.encode("utf-8", "replace"))
        replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error}") from None
    return path


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run the command line; return its exit code."""
    config = parse(ReportConfig, arguments, "report")
    written = write_report(config.runs, config.out, examples=config.examples)
    print(f"{written['report.html']} and {len(written) - 1} more files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
