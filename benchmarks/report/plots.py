"""Plots of a report as SVG text to be put into a page, the same bytes from the same numbers.

Colours are CSS variables (``--s0`` and on for runs, ``--grid``) and ``currentColor``, so that a
plot takes on the light or dark colours of its page; runs differ in marker as well as in colour.
Text stays text, drawn in whatever font the reader has.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = 6  # variables --s0 to --s5; then they start over with another marker
MARKERS = "osD^vPX"
WIDTH_IN = 5.6
_INK, _GRID = "#010101", "#020202"
RC: dict[Any, Any] = {
    "svg.hashsalt": "gym-longvideo",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": 9.0,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Point:
    """A share with its interval: value, low and high between 0 and 1, and n."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Series:
    """What one run (or one policy) contributes to a plot; ``None`` where it has nothing."""

    name: str
    points: tuple[Point | None, ...]


def plot_groups(
    values: Sequence[str],
    series: Sequence[Series],
    *,
    title: str,
    label: str = "",
    chance: float | None = None,
) -> str:
    """Draw accuracy by group: a dot with its interval for each value and run.

    Args:
        values: Values of the grouping, top to bottom.
        series: A point for each value.
        title: Name of the plot, which keeps the ids of several in one page apart.
        label: What is grouped by, for the description.

        chance: Level of chance, between 0 and 1.

    Returns:
        An ``<svg>`` element.
    """
    step = 0.2  # inches a dot
    rows = len(values) * (len(series) * step + 0.16)
    head = 0.2 * len(series) + 0.22
    with _style():
        figure, axes = _figure(rows + head + 0.5)
        labels = [_short(value, 26) for value in values]
        left = min(2.3, 0.25 + 0.078 * max(map(len, labels)))
        _place(figure, axes, left, 1.25, head, 0.45)
        gap = len(series) + 0.8  # in units of dots
        for row, label in enumerate(labels):
            centre = row * gap + (len(series) - 1) / 2
            axes.text(-2.5, centre, label, ha="right", va="center", clip_on=False)
            if row:
                axes.axhline(row * gap - 0.9, color=_GRID, lw=0.6)
        for k, one in enumerate(series):
            for row, point in enumerate(one.points):
                if point is None:
                    continue
                y = row * gap + k
                _draw_point(axes, 100 * point.value, y, point, k, across=True)
                for text, offset in ((f"{100 * point.value:.1f}", 42), (f"{point.n:,}", 80)):
                    _beside(axes, text, y, offset)
        for text, offset in (("%", 42), ("n", 80)):
            _beside(axes, text, -0.9, offset, va="bottom")
        if chance is not None:
            axes.axvline(100 * chance, color=_INK, lw=0.9, ls=(0, (3, 3)), zorder=0)
            axes.annotate(
                "chance",
                (100 * chance, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.set(xlim=(0, 100), ylim=(len(values) * gap - 0.9, -0.9), yticks=[])
        axes.set_xlabel("accuracy, % (95 % interval)")
        axes.xaxis.grid(True, color=_GRID, lw=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        _legend(figure, series)
        return _svg(figure, title, f"Accuracy by {label or title}, with 95 % intervals")


def plot_budget(budgets: Sequence[int], series: Sequence[Series], *, title: str) -> str:
    """Draw accuracy against the frame budget, a line for each policy.

    Args:
        budgets: Frame budgets, ascending.
        series: A point for each budget.
        title: Name of the plot in its page.

    Returns:
        An ``<svg>`` element.
    """
    with _style():
        head = 0.12 + 0.2 * len(series)
        figure, axes = _figure(2.7 + head)
        _place(figure, axes, 0.6, 0.4, head, 0.5)
        position = {budget: math.log2(max(budget, 1)) for budget in budgets}
        spread = 0.02 * max(1.0, max(position.values()) - min(position.values()))
        for k, one in enumerate(series):
            shift = spread * (k - (len(series) - 1) / 2)
            there = [
                (position[budget] + shift, point)
                for budget, point in zip(budgets, one.points, strict=True)
                if point is not None
            ]
            xs, ys = [x for x, _ in there], [100 * point.value for _, point in there]
            axes.plot(xs, ys, color=_colour(k), lw=1.4, zorder=2)
            for x, point in there:
                _draw_point(axes, x, 100 * point.value, point, k, across=False)
                if len(series) <= 3:
                    axes.annotate(
                        f"{100 * point.value:.1f}",
                        (x, 100 * (point.low if k % 2 else point.high)),
                        xytext=(0, -4 if k % 2 else 4),
                        textcoords="offset points",
                        ha="center",
                        va="top" if k % 2 else "bottom",
                    )
        ends = [p for one in series for p in one.points if p is not None]
        low, high = min(p.low for p in ends), max(p.high for p in ends)
        room = max(0.02, 0.15 * (high - low))
        axes.set_ylim(100 * max(-0.02, low - room), 100 * min(1.08, high + room))
        ticks = [tick for tick in axes.get_yticks() if -1e-6 <= tick <= 100 + 1e-6]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_ylim(100 * max(-0.02, low - room), 100 * min(1.08, high + room))
        axes.set_xticks([position[b] for b in budgets], [str(b) for b in budgets])
        axes.margins(x=0.12)
        axes.set_xlabel("frame budget (log scale)")
        axes.set_ylabel("accuracy, % (95 % interval)")
        axes.yaxis.grid(True, color=_GRID, lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        _legend(figure, series)
        return _svg(figure, title, "Accuracy against the frame budget, with 95 % intervals")


def plot_cost(
    runs: Sequence[str], panels: Mapping[str, Sequence[float | None]], *, title: str
) -> str:
    """Draw the mean costs of an episode: a panel for each measure, a bar for each run.

    Args:
        runs: Names of the runs.
        panels: Measure -> its mean for each run, ``None`` where it was not measured.
        title: Name of the plot in its page.

    Returns:
        An ``<svg>`` element.
    """
    series = [Series(name, ()) for name in runs]
    with _style():
        head = 0.05 + 0.2 * len(series)
        panel = 0.2 * len(runs) + 0.38  # inches
        lines = math.ceil(len(panels) / 2)
        height = head + lines * panel
        figure, first = _figure(height)
        first.remove()
        for i, (name, means) in enumerate(panels.items()):
            line, column = divmod(i, 2)
            top = 1 - (head + line * panel + 0.26) / height
            axes = figure.add_axes(
                (
                    0.02 + 0.5 * column,
                    top - 0.2 * len(runs) / height,
                    0.34,
                    0.2 * len(runs) / height,
                )
            )
            most = max((mean for mean in means if mean is not None), default=0.0) or 1.0
            for k, mean in enumerate(means):
                if mean is not None:
                    axes.barh(k, mean, height=0.72, color=_colour(k))
                text = "not measured" if mean is None else _plain(mean)
                axes.text((mean or 0.0) + 0.03 * most, k, text, va="center", clip_on=False)
            axes.set(xlim=(0, most), ylim=(len(runs) - 0.5, -0.5), xticks=[], yticks=[])
            axes.set_title(name, loc="left", fontsize=9, pad=4, color=_INK)
            axes.spines["bottom"].set_visible(False)
        _legend(figure, series)
        return _svg(figure, title, f"Mean cost of an episode: {', '.join(panels)}")


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(RC)


def _figure(height_in: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in))
    return figure, figure.add_subplot()


def _place(
    figure: Figure, axes: Axes, left: float, right: float, top: float, bottom: float
) -> None:
    """Leave so many inches around the axes."""
    width, height = figure.get_size_inches()
    axes.set_position(
        (
            left / width,
            bottom / height,
            1 - (left + right) / width,
            1 - (top + bottom) / height,
        )
    )


def _draw_point(axes: Axes, x: float, y: float, point: Point, k: int, *, across: bool) -> None:
    low, high = 100 * point.low, 100 * point.high
    if across:
        axes.plot([low, high], [y, y], color=_colour(k), lw=1.8, solid_capstyle="butt", zorder=3)
    else:
        axes.plot([x, x], [low, high], color=_colour(k), lw=1.8, solid_capstyle="butt", zorder=3)
    axes.plot([x], [y], marker=_marker(k), ms=5.5, color=_colour(k), ls="", clip_on=False, zorder=4)


def _beside(axes: Axes, text: str, y: float, offset: float, va: str = "center") -> None:
    """Write text flush right, so many points to the right of the axes."""
    axes.annotate(
        text,
        (1.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(offset, 2 if va == "bottom" else 0),
        textcoords="offset points",
        ha="right",
        va=va,
        annotation_clip=False,
    )


def _legend(figure: Figure, series: Sequence[Series]) -> None:
    """Name the series above the axes, one a line."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    for k, one in enumerate(series):
        y = 1 - (0.12 + 0.2 * k) / height
        marker = Line2D(
            *([0.16 / width], [y]),
            marker=_marker(k),
            ms=5.5,
            color=_colour(k),
            ls="",
            transform=figure.transFigure,
        )
        figure.add_artist(marker)
        figure.text(0.3 / width, y, _short(one.name, 70), va="center")


def _colour(k: int) -> str:
    return f"#0a0a0{k % COLOURS}"


def _marker(k: int) -> str:
    return MARKERS[k % len(MARKERS)]


def _plain(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or not value else "< 0.001"


def _short(text: str, length: int) -> str:
    """Return text that a plot has room for, without what XML cannot hold."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return clean if len(clean) <= length else clean[: length - 1] + "…"


def _svg(figure: Figure, title: str, description: str) -> str:
    """Return a figure as an element of a page, with ids of its own and the page's colours."""
    out = io.StringIO()
    with warnings.catch_warnings():
        # The page's fonts have the glyphs that matplotlib's own lacks: it only measures here.
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font", category=UserWarning
        )
        figure.savefig(
            out,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "plot"
    text = re.sub(r'\bid="', f'id="{slug}-', text)
    text = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{slug}-", text)
    text = text.replace(_INK, "currentColor").replace(_GRID, "var(--grid, #c9ccd1)")
    for k in range(COLOURS):
        text = text.replace(_colour(k), f"var(--s{k})")
    label = _attribute(description)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _attribute(text: str) -> str:
    clean = _short(text, 300)
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
