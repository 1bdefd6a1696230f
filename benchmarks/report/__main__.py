"""Reports: runs in; Markdown, CSV and a self-contained HTML page out.

    longvideo report runs/videomme-32 runs/videomme-64 --out report/

Runs of one protocol share a section. Runs of different protocols are lined up only under the list
of the knobs that differ, and published rows only beside runs of the benchmark they were published
for, with what differs. The same runs give the same files, byte for byte.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
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
from gym_longvideo.command import as_command, check_directory, missing_directories, remove_empty
from gym_longvideo.files import reason, replace


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
        out: Directory to write into; made if it does not exist, once all runs have been read.
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
    try:
        check_directory(directory)
    except ValueError as error:
        raise OSError(f"--{error}") from None
    sections = make_sections(read_entries(runs))
    blocks = build(sections, examples=examples)
    texts = {"report.md": render_markdown(blocks), "report.html": render_html(blocks)}
    texts |= {f"{name}.csv": text for name, text in csv_tables(sections).items()}
    return _write(directory, texts)


def _write(directory: Path, texts: Mapping[str, str]) -> dict[str, Path]:
    """Write all files, or leave everything as it was."""
    made = missing_directories(directory)
    drafts = {name: directory / f".{name}.part" for name in texts}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, draft in drafts.items():
            draft.write_bytes(texts[name].encode("utf-8", "replace"))
        for name, draft in drafts.items():
            replace(draft, directory / name)
    except BaseException as error:
        for draft in drafts.values():
            with contextlib.suppress(OSError):
                draft.unlink()
        remove_empty(made)
        if isinstance(error, OSError):
            raise OSError(f"--out {directory} cannot be written to: {reason(error)}") from None
        raise
    return {name: directory / name for name in texts}


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run the command line; return its exit code."""
    config = parse(ReportConfig, arguments, "report")
    written = write_report(config.runs, config.out, examples=config.examples)
    print(f"{written['report.html']} and {len(written) - 1} more files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
