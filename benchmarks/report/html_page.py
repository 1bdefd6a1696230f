"""The HTML page of a report: one file, no script, nothing fetched.

It is made of the templates beside this module. Whatever they print is escaped, and what comes from
records is isolated (see ``isolates``); a policy in the page's head forbids scripts and requests in
case that were ever forgotten. Light and dark follow the reader's setting, print is light.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from benchmarks.report.cells import Table
from benchmarks.report.document import Block, Heading, Plot, Text
from benchmarks.report.examples import Example, Lane
from benchmarks.report.isolates import CLOSE, CONTROLS, OPEN, foreign, unmarked
from benchmarks.report.style import PALETTES

_KINDS = {Heading: "heading", Text: "text", Plot: "plot", Table: "table", Example: "example"}
_OUTCOMES = {"correct": "right", "wrong": "wrong", "unanswered": "not answered"}
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_TURNING = re.compile(f"[{''.join(sorted(CONTROLS))}]")
_LOST = "\N{REPLACEMENT CHARACTER}"


def render_html(blocks: Sequence[Block]) -> str:
    """Return a document as a self-contained page."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    return _environment().get_template("page.html.j2").render(
        title=title,
        blocks=[(_KINDS[type(block)], block) for block in blocks],
        palettes=PALETTES,
        outcomes=_OUTCOMES,
    )  # fmt: skip


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("benchmarks.report"),
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "bars": _bars,
        "drawn": Markup,  # of plots, which escape what they write
        "foreign": foreign,
        "kept_together": _kept_together,
        "plain": _plain,
        "ticks": _ticks,
    }
    return environment


def shown(value: Any) -> Markup:
    """Return what a template prints, escaped, with foreign parts isolated.

    What a page cannot hold (control characters, lone surrogates) is replaced, and so is what would
    turn the direction of the report's own words.

    >>> shown('<script>"x"</script>')
    Markup('&lt;script&gt;&#34;x&#34;&lt;/script&gt;')
    >>> shown(f"{foreign('run')} is incomplete")
    Markup('<bdi>run</bdi> is incomplete')
    """
    if isinstance(value, Markup):
        return value
    parts = re.split(f"{OPEN}([^{CLOSE}]*){CLOSE}", str(value))
    texts = (_fit(part) if i % 2 else _directed(part) for i, part in enumerate(parts))
    return Markup("").join(
        Markup("<bdi>{}</bdi>").format(text) if i % 2 else text for i, text in enumerate(texts)
    )


def _plain(text: str) -> str:
    """Return text of an attribute or a title, where nothing can be isolated."""
    return _directed(unmarked(text))


def _fit(text: str) -> str:
    return _UNFIT.sub(_LOST, text)


def _directed(text: str) -> str:
    return _TURNING.sub(_LOST, _fit(text))


def _kept_together(cell: str) -> str:
    """Return a cell in which an interval is not broken between lines."""
    value, bracket, rest = cell.partition(" (")
    return f"{value} ({rest.replace(' ', chr(160))}" if bracket else cell


def _bars(lane: Lane) -> list[tuple[str, str]]:
    """Return (x, width) of a lane's spans in percent, so that it fits any width."""
    bars = []
    for start, end in lane.spans:
        width = max(end - start, 0.004)
        bars.append((f"{100 * min(start, 1 - width):.2f}", f"{100 * width:.2f}"))
    return bars


def _ticks(lane: Lane) -> list[str]:
    return [f"{100 * min(max(tick, 0.0), 1.0):.2f}" for tick in lane.ticks]
