"""Plans as text for a terminal, as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agents.config import TrainConfig
from agents.plan.advice import advise
from agents.plan.limits import CARDS
from agents.plan.memory import plan_memory
from agents.plan.moments import GIB, PARTS, PHASES, MemoryPlan, Place

Rows = Sequence[Sequence[str]]


def table(rows: Rows, *, markdown: bool) -> str:
    """Return rows as a table; the first one is its head, the first column its names."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if markdown:
        head, *rest = [f"| {' | '.join(row)} |" for row in rows]
        rule = f"|{'|'.join([' --- ', *[' ---: '] * (len(widths) - 1)])}|"
        return "\n".join([head, rule, *rest])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 or len(cell) > 24 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def parts_table(plan: MemoryPlan, *, markdown: bool) -> str:
    """Return GiB of a process, part by part, at the worst moment of each phase."""
    worst = [plan.worst(phase) for phase in PHASES]
    names = [m.phase if m.name in (m.phase, "rest") else f"{m.phase} ({m.name})" for m in worst]
    rows = [["GiB of a process", *names]]
    for part in PARTS:
        sizes = [moment.parts.get(part, 0.0) for moment in worst]
        if any(sizes):
            rows.append([part, *[gib(size) if size else "-" for size in sizes]])
    rows.append(["all", *[gib(moment.total) for moment in worst]])
    return table(rows, markdown=markdown)


def fits_table(config: TrainConfig, place: Place, plan: MemoryPlan, *, markdown: bool) -> str:
    """Return on which cards a run fits, or with which change it would."""
    rows = [["card of", "usable GiB", "fits"]]
    for name, limit in CARDS.items():
        rows.append([f"{name} GB", gib(limit), fits(config, place, plan, limit)])
    return table(rows, markdown=markdown)


def fits(config: TrainConfig, place: Place, plan: MemoryPlan, limit: float) -> str:
    """Return whether a run fits, or with which change it would."""
    if plan.peak.total <= limit:
        return "yes"
    change = advise(config, place, limit)
    return "no" if change is None else f"with {change.options}"


def work_table(
    work: Mapping[str, float], place: Place, peak: float, mfu: float, *, markdown: bool
) -> str:
    """Return TFLOP of an iteration, and seconds by calculation where a card's peak is given."""
    shown = {**work, "whole": sum(work.values())}
    head = ["phase", "TFLOP of all processes"]
    if peak:
        head.append(f"seconds by calculation, {peak:g} TFLOP/s, MFU {mfu:g}")
    rows = [head]
    for name, flop in shown.items():
        cells = [name, number(flop / 1e12)]
        if peak:
            cells.append(number(seconds(flop, place, peak, mfu)))
        rows.append(cells)
    return table(rows, markdown=markdown)


def overview_table(config: TrainConfig, places: Sequence[Place], *, markdown: bool) -> str:
    """Return a line for each number of processes: the peaks of its phases, and where it fits."""
    rows = [["GPUs", *(f"{phase}, GiB" for phase in PHASES), *(f"{name} GB" for name in CARDS)]]
    for place in places:
        plan = plan_memory(config, place)
        rows.append([
            str(place.processes),
            *(gib(plan.worst(phase).total) for phase in PHASES),
            *(fits(config, place, plan, limit) for limit in CARDS.values()),
        ])  # fmt: skip
    return table(rows, markdown=markdown)


def to_json(
    config: TrainConfig, place: Place, plan: MemoryPlan, work: Mapping[str, float]
) -> dict[str, Any]:
    """Return a plan as JSON's own types: bytes and FLOP."""
    return {
        "config": config.to_json(),
        "processes": place.processes,
        "per_machine": place.per_machine,
        "gpu": place.gpu,
        "moments": [
            {"phase": m.phase, "name": m.name, "total_bytes": m.total, "parts": dict(m.parts)}
            for m in plan.moments
        ],
        "peak_bytes": plan.peak.total,
        "loading_bytes_of_a_machine": plan.loading,
        "undo_bytes_of_a_machine": plan.host,
        "flop": dict(work),
        "fits": {
            f"{name} GB": fits(config, place, plan, limit)
            for name, limit in CARDS.items()
            if place.gpu
        },
    }


def seconds(flop: float, place: Place, peak: float, mfu: float) -> float:
    """Return the seconds that FLOP take on all processes together."""
    return flop / (1e12 * peak * mfu * place.processes)


def gib(size: float) -> str:
    """Return bytes as GiB, few of them as MiB.

    >>> gib(3 * 2**29), gib(2**20), gib(0)
    ('1.5', '1 MiB', '0')
    """
    value = size / GIB
    if value >= 0.05 or not value:
        return f"{value:.1f}" if value else "0"
    return f"{value * 1024:.2g} MiB"


def number(value: float) -> str:
    """Return a number with three digits at least.

    >>> number(31256.7), number(1.2345)
    ('31,257', '1.23')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
