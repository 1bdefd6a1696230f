"""Figures of the study as SVG, the same bytes from the same CSVs.

Bands and bars are 95 % intervals of the mean over seeds; thin lines and small dots are seeds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report.plots import RC
from examples.study.plan import AMOUNTS, ARMS, BUDGET, EARLY, GROUPS, MINUTES, THRESHOLDS
from examples.study.stats import Mean, Runs, mean_of, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[tuple[str, int], Sequence[Mapping[str, float]]]
COLOURS = {
    "full": "#0072b2", "single_turn": "#5a6270", "no_turn_reward": "#00805e", "no_gate": "#c1510a",
    "no_bonus": "#a8487f", "code": "#8a6d00",
}  # fmt: skip
OF = {"shipped": "full", "shipped_no_bonus": "no_bonus"}  # whose colours they have
SMOOTH = 3  # updates that a point of a curve averages over
_RC: dict[Any, Any] = {
    **RC,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d5d8dd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": "#1d2129",
    "axes.labelcolor": "#1d2129",
    "axes.edgecolor": "#5a6270",
    "xtick.color": "#1d2129",
    "ytick.color": "#1d2129",
}


def draw(runs: Runs, early: Runs, curves: Curves, directory: Path) -> list[Path]:
    """Draw every figure for which there are runs; return the files.

    Args:
        runs: At the end of training.
        early: After the updates that every arm has had.
        curves: Of every run.
        directory: Where to.
    """
    import matplotlib

    made = []
    with matplotlib.rc_context(_RC):
        for name, figure in (
            ("claims", plot_claims(runs)),
            ("gate", plot_curves(curves, ("full", "no_gate"), ("return", "accuracy", "turns"))),
            ("bonus", plot_curves(curves, ("full", "no_bonus"), ("turns", "return"))),
            ("scales", plot_scales(early)),
            ("starts", plot_curves(curves, ("shipped", "shipped_no_bonus"), ("turns", "accuracy"))),
            ("sensitivity", plot_sensitivity(early)),
        ):
            if figure is not None:
                made.append(_save(figure, directory / f"{name}.svg"))
    return made


def plot_claims(runs: Runs) -> Figure | None:
    """Held-out accuracy and turns of the arms that the claims are about."""
    arms = [arm for arm in COLOURS if any(name == arm for name, _ in runs)]
    if not arms:
        return None
    figure, axes = _panels(2, width=7.4, height=0.36 * len(arms) + 0.9, sharey=True)
    for panel, metric in zip(axes, ("accuracy", "turns"), strict=True):
        for place, arm in enumerate(arms):
            _point(panel, place, summary(runs, arm, metric), COLOURS[arm], across=True)
        panel.set_xlabel(f"held-out {metric}" if metric == "accuracy" else "turns of an episode")
        panel.set_yticks(range(len(arms)), [arm.replace("_", " ") for arm in arms])
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    return figure


def plot_curves(curves: Curves, arms: Sequence[str], metrics: Sequence[str]) -> Figure | None:
    """Training curves of some arms, a panel a metric."""
    if not all(any(name == arm for name, _ in curves) for arm in arms):
        return None
    from matplotlib.ticker import MaxNLocator

    figure, axes = _panels(len(metrics), width=2.9 * len(metrics), height=2.7)
    labels = {"return": "return, as the environment pays", "turns": "turns of an episode"}
    for panel, metric in zip(axes, metrics, strict=True):
        for arm in arms:
            lines = {
                seed: smooth([point[metric] for point in points])
                for (name, seed), points in curves.items()
                if name == arm
            }
            length = min(map(len, lines.values()))
            steps = list(range(length))
            for line in lines.values():
                panel.plot(
                    steps, line[:length], color=COLOURS[OF.get(arm, arm)], lw=0.6, alpha=0.35
                )
            means = [mean_of({s: line[i] for s, line in lines.items()}) for i in steps]
            panel.plot(
                steps,
                [mean.value for mean in means],
                color=COLOURS[OF.get(arm, arm)],
                lw=1.8,
                label=arm.replace("_", " "),
            )
            if len(lines) > 1:
                panel.fill_between(
                    steps,
                    [mean.low for mean in means],
                    [mean.high for mean in means],
                    color=COLOURS[OF.get(arm, arm)],
                    alpha=0.15,
                    lw=0,
                )
        panel.set_xlabel("update")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.set_title(labels.get(metric, metric), loc="left", fontsize=9)
    axes[0].legend(loc="best")
    return figure


def plot_scales(runs: Runs) -> Figure | None:
    """Accuracy against the length of the videos, the budget, and the number of turns."""
    if not any(name == "short" for name, _ in runs):
        return None
    figure, axes = _panels(3, width=9.0, height=2.9, sharey=True)
    for panel, small, of in (
        (axes[0], ("short", "medium"), "minutes"),
        (axes[1], ("budget_8", "budget_16"), "budget"),
    ):
        single = [f"{arm}_single" for arm in small]
        for arms, label in (
            ([*small, "full"], "multi-turn"),
            ([*single, "single_turn"], "single-turn"),
        ):
            there = [arm for arm in arms if any(name == arm for name, _ in runs)]
            points = [(getattr(ARMS[arm], of), summary(runs, arm, "accuracy")) for arm in there]
            _series(panel, points, COLOURS[arms[-1]], label)
    axes[0].set_xlabel(f"minutes of video ({BUDGET} frames)")
    axes[1].set_xlabel(f"frame budget ({MINUTES} minutes)")
    axes[0].legend(loc="best")
    turns = [arm for arm in ("single_turn", "turns_2", "full", "turns_5")
             if any(name == arm for name, _ in runs)]  # fmt: skip
    _series(
        axes[2],
        [(ARMS[arm].turns, summary(runs, arm, "accuracy")) for arm in turns],
        COLOURS["full"],
        "",
    )
    axes[2].set_xlabel(f"turns at most ({BUDGET} frames)")
    axes[0].set_ylabel(f"held-out accuracy, {EARLY} updates")
    return figure


def plot_sensitivity(runs: Runs) -> Figure | None:
    """Accuracy over the bonus's threshold and amount, and over single settings."""
    if not any(ARMS[name].group == "bonus" for name, _ in runs):
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    grid = [[_cell(runs, rate, amount) for amount in AMOUNTS] for rate in THRESHOLDS]
    values = [[mean.value for mean in row] for row in grid]
    left.imshow(values, cmap="YlGnBu", aspect="auto", vmin=0.3, vmax=0.9)
    for i, row in enumerate(grid):
        for j, mean in enumerate(row):
            if mean.seeds:
                least, most = min(mean.seeds.values()), max(mean.seeds.values())
                text = f"{mean.value:.2f}\n({least:.2f}-{most:.2f})"
                dark = mean.value > 0.65
                left.text(
                    j, i, text, ha="center", va="center", color="w" if dark else "k", fontsize=8
                )
    left.set_xticks(range(len(AMOUNTS)), [f"{amount:g}, {amount / 2:g}" for amount in AMOUNTS])
    left.set_yticks(range(len(THRESHOLDS)), [f"{rate:g}" for rate in THRESHOLDS])
    left.set_xlabel("bonus in stages I and II")
    left.set_ylabel("retrieval rate that ends it")
    left.set_title("held-out accuracy (least, greatest seed)", loc="left", fontsize=9)
    left.grid(visible=False)
    rows = [arm for arm in ARMS.values() if arm.group in GROUPS[1:]]
    rows = [ARMS["full"], ARMS["no_gate"], *rows]
    rows = [arm for arm in rows if any(name == arm.name for name, _ in runs)]
    for place, arm in enumerate(rows):
        colour = COLOURS.get(arm.name, COLOURS["no_bonus"])
        _point(right, place, _common(runs, arm.name), colour, across=True)
    right.set_yticks(range(len(rows)), [arm.name.replace("_", " ") for arm in rows])
    right.set_ylim(len(rows) - 0.5, -0.5)
    right.grid(axis="y", visible=False)
    right.set_xlabel(f"held-out accuracy after {EARLY} updates")
    right.set_title("one setting changed, same seeds", loc="left", fontsize=9)
    return figure


def smooth(values: Sequence[float], width: int = SMOOTH) -> list[float]:
    """Return the running mean over up to ``width`` values, each with those before it.

    >>> smooth([1.0, 3.0, 5.0, 7.0], 2)
    [1.0, 2.0, 4.0, 6.0]
    """
    means = []
    for i in range(len(values)):
        part = [value for value in values[max(0, i + 1 - width) : i + 1] if not math.isnan(value)]
        means.append(sum(part) / len(part) if part else math.nan)
    return means


def _cell(runs: Runs, threshold: float, amount: float) -> Mean:
    name = "full" if (threshold, amount) == (0.5, 1.0) else f"bonus_{threshold:g}_{amount:g}"
    return _common(runs, name)


def _common(runs: Runs, arm: str) -> Mean:
    """Return the accuracy of an arm over the seeds that the sensitivity was run with."""
    seeds = {seed for name, seed in runs if ARMS[name].group in GROUPS}
    values = summary(runs, arm, "accuracy").seeds
    return mean_of({seed: value for seed, value in values.items() if seed in seeds})


def _panels(count: int, *, width: float, height: float, sharey: bool = False) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, count, sharey=sharey)


def _point(panel: Axes, place: float, mean: Mean, colour: str, *, across: bool) -> None:
    """Draw a mean with its interval, and its seeds beside it."""
    if not mean.seeds:
        return
    low, high = (mean.low, mean.high) if len(mean.seeds) > 1 else (mean.value, mean.value)
    beside = [place + 0.22] * len(mean.seeds) if across else [place] * len(mean.seeds)
    seeds = list(mean.seeds.values())
    for xs, ys, style in (
        (seeds, beside, {"marker": "o", "ms": 2.5, "ls": "", "alpha": 0.5}),
        ([low, high], [place, place], {"lw": 2.0, "solid_capstyle": "butt"}),
        ([mean.value], [place], {"marker": "o", "ms": 5.5, "ls": ""}),
    ):
        pair = (xs, ys) if across else (ys, xs)
        panel.plot(*pair, color=colour, **style)


def _series(panel: Axes, points: Sequence[tuple[float, Mean]], colour: str, label: str) -> None:
    """Draw means joined by a line."""
    xs = [x for x, _ in points]
    panel.plot(xs, [mean.value for _, mean in points], color=colour, lw=1.4, label=label)
    for x, mean in points:
        _point(panel, x, mean, colour, across=False)
    panel.set_xticks(xs)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    # A blank at the end of a line is nothing that a diff should show.
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE), encoding="utf-8")
    return path
