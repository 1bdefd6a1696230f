"""Tables of the study in Markdown, put into a page between its markers.

``<!-- table: NAME -->`` and ``<!-- end -->`` enclose what is written here; all other text of the
page is left as it is.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.study.figures import Curves, draw
from examples.study.geometry import geometry_table
from examples.study.plan import ARMS, EARLY, GROUPS, Arm
from examples.study.stats import Claim, Mean, Runs, claims, difference, summary, values_of
from examples.study.tables import read_curves, read_runs

RIVALS = {  # whom an arm is compared with; all others with "full"
    "shipped_no_bonus": "shipped",
    "neither": "no_bonus",
    "full": "single_turn",
    "short": "short_single",
    "medium": "medium_single",
    "budget_8": "budget_8_single",
    "budget_16": "budget_16_single",
}


def write_report(directory: Path) -> str:
    """Draw the figures, and fill the page beside the directory or else write ``tables.md``.

    Args:
        directory: Where ``runs.csv`` and ``curves.csv`` are.

    Returns:
        What to print: the verdicts, and the files.

    Raises:
        ValueError: If the CSVs are missing or have other columns.
    """
    directory = directory.resolve()
    runs, early = read_runs(directory), read_early(directory)
    curves = read_curves(directory)
    made = draw(runs, early, curves, directory)
    tables = all_tables(runs, early, curves)
    page = directory.with_suffix(".md")
    if page.is_file():
        page.write_text(fill(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    else:
        page = directory / "tables.md"
        text = "\n\n".join(f"## {name}\n\n{text}" for name, text in tables.items())
        page.write_text(text + "\n", encoding="utf-8")
    return "\n".join(
        ["", verdicts(claims(runs, early)), "", *(f"wrote {each}" for each in [page, *made])]
    )


def read_early(directory: Path) -> Runs:
    """Return the rows of ``runs.csv`` after as many updates as every run has had.

    Raises:
        ValueError: If there is no such file.
    """
    least = min((row["updates"] for row in read_runs(directory).values()), default=0.0)
    return read_runs(directory, int(least))


def all_tables(runs: Runs, early: Runs, curves: Curves) -> dict[str, str]:
    """Return every table by name."""
    scales = ("turns", "budget", "length")
    of_claims = [arm for arm in ARMS.values() if arm.group == "claims"]
    reasons = [arm for arm in ARMS.values() if arm.group == "reasons"]
    reasons = [ARMS["full"], ARMS["no_bonus"], ARMS["no_turn_reward"], *reasons]
    others = [arm for arm in ARMS.values() if arm.group in scales]
    others = [ARMS["full"], ARMS["single_turn"], *others]
    return {
        "verdicts": verdict_table(claims(runs, early)),
        "arms": arm_table(runs, of_claims),
        "differences": difference_table(runs, ("claims",)),
        "scales": arm_table(early, others),
        "scale_differences": difference_table(early, scales),
        "sensitivity": difference_table(early, GROUPS),
        "reasons": arm_table(early, reasons),
        "reason_differences": difference_table(early, ("reasons",)),
        "exploration": exploration_table(curves),
        "seeds": seed_table(runs),
        "cost": cost_table(runs, early),
        "geometry": geometry_table(),
    }


def verdict_table(found: Sequence[Claim]) -> str:
    """Return a row for every check of every claim."""
    rows = []
    for claim in found:
        for place, check in enumerate(claim.checks):
            head = f"{claim.number}. {claim.text} | **{claim.verdict}**" if not place else " | "
            rows.append(f"| {head} | {check.text} | {check.shown} | {check.verdict} |")
    return _table(("claim", "verdict", "measured on held-out videos", "mean (95 %)", ""), rows)


def arm_table(runs: Runs, arms: Sequence[Arm]) -> str:
    """Return the means of every arm that was run."""
    rows = []
    for arm in arms:
        accuracy = summary(runs, arm.name, "accuracy")
        if not accuracy.seeds:
            continue
        means = {
            metric: summary(runs, arm.name, metric).value
            for metric in (
                "return", "paper_return", "turns", "frames", "proved", "needless",
                "tokens_read", "tokens_written",
            )
        }  # fmt: skip
        tokens = (means.pop("tokens_read") + means.pop("tokens_written")) / 1000
        others = " | ".join(f"{value:.2f}" for value in means.values())
        rows.append(
            f"| {arm.name} | {arm.change} | {len(accuracy.seeds)} | {_interval(accuracy)} | "
            f"{others} | {tokens:.0f} |"
        )
    head = ("arm", "what it is", "seeds", "accuracy (95 %)", "return", "paper's return", "turns",
            "frames", "proved", "needless", "k tokens")  # fmt: skip
    return _table(head, rows)


def difference_table(runs: Runs, groups: Sequence[str]) -> str:
    """Return paired differences of every arm to its rival."""
    rows = []
    for arm in ARMS.values():
        if arm.group not in groups or arm.name.endswith("_single") or arm.name == "single_turn":
            continue
        rival = RIVALS.get(arm.name, "full")
        found = [
            difference(runs, arm.name, rival, metric)
            for metric in ("accuracy", "turns", "return", "paper_return")
        ]
        if seeds := len(found[0].seeds):
            rows.append(f"| {arm.name} - {rival} | {seeds} | {' | '.join(map(str, found))} |")
    head = ("arms", "seeds", "accuracy", "turns", "return as paid", "paper's return")
    return _table(head, rows)


def exploration_table(curves: Curves) -> str:
    """Return how much the policies looked while they trained, with and without the bonus."""
    rows = []
    for arm, rival in (("full", "no_bonus"), ("shipped", "shipped_no_bonus")):
        turns = {
            (name, seed): {"turns": statistics.fmean(point["turns"] for point in points[:EARLY])}
            for (name, seed), points in curves.items()
            if name in (arm, rival)
        }
        gap = difference(turns, arm, rival, "turns")
        if gap.seeds:
            means = [summary(turns, name, "turns").value for name in (arm, rival)]
            rows.append(
                f"| {arm}, {rival} | {len(gap.seeds)} | {means[0]:.2f} | {means[1]:.2f} | {gap} |"
            )
    return _table(("arms", "seeds", "with", "without", "difference"), rows)


def seed_table(runs: Runs) -> str:
    """Return held-out accuracy of the claims' arms, seed by seed."""
    arms = [arm.name for arm in ARMS.values() if arm.group == "claims"]
    arms = [arm for arm in arms if values_of(runs, arm, "accuracy")]
    seeds = sorted({seed for arm in arms for seed in values_of(runs, arm, "accuracy")})
    rows = [
        f"| {arm} | "
        + " | ".join(
            f"{values_of(runs, arm, 'accuracy').get(seed, float('nan')):.3f}" for seed in seeds
        )
        + " | "
        + " | ".join(
            f"{values_of(runs, arm, 'turns').get(seed, float('nan')):.2f}" for seed in seeds
        )
        + " |"
        for arm in arms
    ]
    head = ("arm", *(f"seed {seed}" for seed in seeds), *(f"turns {seed}" for seed in seeds))
    return _table(head, rows)


def cost_table(runs: Runs, early: Runs) -> str:
    """Return what the runs cost, in numbers that depend on no machine, and in hours of one."""

    def total(metric: str) -> float:
        return math.fsum(row[metric] for row in runs.values())

    # Whoever goes on is examined twice.
    twice = [row for key, row in early.items() if runs[key]["updates"] > row["updates"]]
    examined = total("held_out") + math.fsum(row["held_out"] for row in twice)
    rows = [
        f"| runs | {len(runs)} |",
        f"| episodes of training | {total('episodes'):,.0f} |",
        f"| episodes of examination | {examined:,.0f} |",
        f"| tokens read in training rollouts | {total('tokens_read'):,.0f} |",
        f"| tokens written there | {total('tokens_written'):,.0f} |",
        f"| hours of one CPU core, training alone | {total('train_s') / 3600:.1f} |",
    ]
    return _table(("", ""), rows)


def verdicts(found: Sequence[Claim]) -> str:
    """Say in a line a claim what was found."""
    lines = []
    for claim in found:
        lines.append(f"claim {claim.number}: {claim.verdict} ({claim.text})")
        lines += [f"    {check.text}: {check.shown}" for check in claim.checks]
    return "\n".join(lines)


def fill(page: str, tables: Mapping[str, str]) -> str:
    r"""Return a page with its tables written anew.

    Raises:
        ValueError: If the page asks for a table that does not exist.

    >>> fill("<!-- table: a -->\nold\n<!-- end -->", {"a": "new"})
    '<!-- table: a -->\nnew\n<!-- end -->'
    """

    def written(match: re.Match[str]) -> str:
        name = match[1]
        if name not in tables:
            raise ValueError(f"there is no table {name!r}; use one of {list(tables)}")
        return f"<!-- table: {name} -->\n{tables[name]}\n<!-- end -->"

    marked = r"<!-- table: (\w+) -->\n((?!<!-- table:).)*?<!-- end -->"
    return re.sub(marked, written, page, flags=re.DOTALL)


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows])


def _interval(mean: Mean) -> str:
    if len(mean.seeds) < 2:
        return f"{mean.value:.3f}"
    return f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"
