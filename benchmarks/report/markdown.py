"""Markdown of a report: the whole document but its plots and examples."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.report.cells import Table
from benchmarks.report.document import Block, Heading, Text
from benchmarks.report.isolates import unmarked

# An underscore inside a word, as in frame_budget, emphasises nothing.
_SPECIAL = re.compile(r"([\\`*<\[\]|~#]|(?<!\w)_|_(?!\w))")
_TONES = {"plain": "", "note": "> ", "warning": "> **Warning.** "}


def render_markdown(blocks: Sequence[Block]) -> str:
    """Return a document as GitHub-flavoured Markdown."""
    parts = []
    for block in blocks:
        match block:
            case Heading(level, text):
                parts.append(f"{'#' * level} {_escape(text)}")
            case Text(text, tone):
                parts.append(f"{_TONES[tone]}{_escape(text)}")
            case Table():
                parts.append(_table(block))
    # Examples has nothing below it here: its heading and its sentence go too.
    kept = [
        part
        for i, part in enumerate(parts)
        if not part.startswith("## Examples") and not (i and parts[i - 1].startswith("## Examples"))
    ]
    kept.append("Plots and example episodes are in report.html, tidy tables in the CSV files.")
    return "\n\n".join(kept) + "\n"


def _table(table: Table) -> str:
    header, texts = table.header, set(table.texts)
    if table.notes:
        header, texts = (*header, "note"), texts | {len(header)}
    marks = ("---" if i in texts else "---:" for i in range(len(header)))
    lines = [f"| {' | '.join(_escape(cell) for cell in header)} |", f"|{'|'.join(marks)}|"]
    for i, row in enumerate(table.rows):
        row = (*row, table.notes[i]) if table.notes else row
        cells = [_escape(cell) for cell in row]
        strong = (f"**{cell}**" if cell.strip() else cell for cell in cells)
        lines.append(f"| {' | '.join(strong if i in table.strong else cells)} |")
    caption = f"*{_escape(table.caption)}*\n\n" if table.caption else ""
    return caption + "\n".join(lines)


def _escape(text: str) -> str:
    r"""Return text that Markdown shows as it is.

    >>> _escape("a|b <script>")
    'a\\|b \\<script>'
    """
    clean = "".join(
        c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in unmarked(text)
    )
    return _SPECIAL.sub(r"\\\1", " ".join(clean.split()))
