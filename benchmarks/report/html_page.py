"""The HTML page of a report: one file, no script, nothing fetched.

Whatever comes from records is escaped; a policy in the page's head forbids scripts and requests in
case that were ever forgotten. Light and dark follow the reader's setting, print is light.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from unicodedata import category

from benchmarks.report.document import Block, Heading, Plot, Text
from benchmarks.report.examples import Choice, Example, Lane
from benchmarks.report.style import STYLE
from benchmarks.report.tables import Table

_OUTCOMES = {"correct": "right", "wrong": "wrong", "unanswered": "not answered"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_html(blocks: Sequence[Block]) -> str:
    """Return a document as a self-contained page."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "Report")
    body = "\n".join(part for block in blocks for part in _render(block))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _render(block: Block) -> Iterator[str]:
    match block:
        case Heading(level, text):
            yield f"<h{level}>{_text(text)}</h{level}>"
        case Text(text, tone):
            mark = "<strong>Warning.</strong> " if tone == "warning" else ""
            role = ' role="alert"' if tone == "warning" else ""
            yield f'<p class="{tone}"{role}>{mark}{_text(text)}</p>'
        case Plot(svg, caption):
            yield f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"
        case Table():
            yield from _table(block)
        case Example():
            yield from _example(block)


def _table(table: Table) -> Iterator[str]:
    notes = ' class="notes"' if table.notes else ""
    yield f'<div class="table" tabindex="0"><table{notes}>'
    if table.caption:
        yield f"<caption><span>{_text(table.caption)}</span></caption>"
    cells = (
        f'<th scope="col"{_class(table, i)}>{_text(cell)}</th>'
        for i, cell in enumerate(table.header)
    )
    yield f"<thead><tr>{''.join(cells)}</tr></thead>\n<tbody>"
    for k, row in enumerate(table.rows):
        cells = (
            f'<th scope="row"{_class(table, i)}>{_text(cell)}</th>'
            if i == 0
            else f"<td{_class(table, i)}>{_text(_kept_together(cell))}</td>"
            for i, cell in enumerate(row)
        )
        own = ' class="own"' if k in table.strong else ""
        note = table.notes[k] if table.notes else ""
        own = ' class="noted"' if note and not own else own
        yield f"<tr{own}>{''.join(cells)}</tr>"
        if note:
            yield f'<tr class="note"><td colspan="{len(row)}"><span>{_text(note)}</span></td></tr>'
    yield "</tbody></table></div>"


def _kept_together(cell: str) -> str:
    """Return a cell in which an interval is not broken between lines."""
    value, bracket, rest = cell.partition(" (")
    return f"{value} ({rest.replace(' ', chr(160))}" if bracket else cell


def _class(table: Table, column: int) -> str:
    return "" if column in table.texts else ' class="number"'


def _example(example: Example) -> Iterator[str]:
    outcome = _OUTCOMES.get(example.outcome, example.outcome)
    yield f'<article class="example {"right" if example.outcome == "correct" else "wrong"}">'
    yield (
        f'<h3><span class="outcome">{_text(outcome)}</span> {_text(example.task_id)}</h3>'
        f'<p class="about">{_text(example.run)}; video {_text(example.video_id)}, '
        f"{_text(example.duration)}</p>"
    )
    yield f'<p class="question">{_text(example.question)}</p>\n<ol class="options">'
    for choice in example.choices:
        yield _choice(choice)
    yield '</ol>\n<div class="timeline">'
    for lane in example.lanes:
        yield _lane(lane)
    yield (
        f'<div class="lane axis"><span></span><span class="ends"><span>00:00</span>'
        f"<span>{_text(example.duration)}</span></span></div></div>"
    )
    if any(reply for _, reply in example.steps):
        for did, reply in example.steps:
            said = f"<pre>{_text(reply)}</pre>" if reply else ""
            yield f'<div class="step"><p>{_text(did)}</p>{said}</div>'
    else:
        steps = "; ".join(did for did, _ in example.steps)
        yield f'<div class="step"><p>{_text(steps)}</p></div>'
    yield "</article>"


def _choice(choice: Choice) -> str:
    marks = [
        f'<span class="mark">{mark}</span>'
        for mark, there in (("right answer", choice.right), ("chosen", choice.chosen))
        if there
    ]
    letter = f'<span class="letter">{choice.letter}</span>'
    return f"<li>{letter} {_text(choice.text)} {' '.join(marks)}</li>"


def _lane(lane: Lane) -> str:
    """Draw a lane; coordinates are percentages, so that it fits any width with text unscaled."""
    parts = ['<rect class="track" x="0" y="7" width="100%" height="4"/>']
    for start, end in lane.spans:
        width = max(end - start, 0.004)
        parts.append(
            f'<rect class="{lane.kind}" x="{100 * min(start, 1 - width):.2f}%" y="2" '
            f'width="{100 * width:.2f}%" height="14" rx="1.5"/>'
        )
    for tick in lane.ticks:
        x = f"{100 * min(max(tick, 0.0), 1.0):.2f}%"
        parts.append(f'<line class="tick" x1="{x}" x2="{x}" y1="4" y2="14"/>')
    label = _text(f"{lane.label}: {lane.note}")
    svg = f'<svg role="img" aria-label="{label}" width="100%" height="18">{"".join(parts)}</svg>'
    return (
        f'<div class="lane"><span>{_text(lane.label)}</span>{svg}'
        f'<span class="note">{_text(lane.note)}</span></div>'
    )


def _text(text: str) -> str:
    """Escape text; what a page cannot hold (control characters, lone surrogates) is replaced.

    >>> _text('<script>"x"</script>')
    '&lt;script&gt;&quot;x&quot;&lt;/script&gt;'
    """
    return escape(
        "".join(
            "\N{REPLACEMENT CHARACTER}" if category(c) in ("Cc", "Cs") and c not in "\n\t" else c
            for c in text
        )
    )
