"""Differences between arms, paired by seed, and what they say about the claims.

A seed has its own training videos, its own held-out videos and its own luck, the same for every
arm. So the differences of a pair of arms, one a seed, are independent of each other, and the 95 %
interval of their mean is that of a paired t-test over seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["reproduced", "not reproduced", "undecided"]
Runs = Mapping[tuple[str, int], Mapping[str, float]]

SINGLE_TURN = 1.1  # mean turns up to which a policy counts as one that answers at once
MOSTLY = 0.8  # of the seeds must be single-turn without the bonus
MARGIN = 0.05  # by which an accuracy that "does not rise" might still be higher


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and its 95 % interval.

    Attributes:
        value: The mean.
        low: Lower end; -inf with one seed.
        high: Upper end; inf with one seed.
        seeds: Values, by seed.
    """

    value: float
    low: float
    high: float
    seeds: Mapping[int, float]

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high < 0

    def __str__(self) -> str:
        if len(self.seeds) < 2:
            return f"{self.value:+.3f}"
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def mean_of(values: Mapping[int, float]) -> Mean:
    """Return the mean of values by seed, with the interval of a one-sample t-test.

    >>> mean = mean_of({0: 1.0, 1: 2.0, 2: 3.0})
    >>> round(mean.low, 3), round(mean.high, 3)  # 2 -+ 4.303 / sqrt(3)
    (-0.484, 4.484)
    """
    from scipy.stats import t

    numbers = list(values.values())
    if not numbers:
        return Mean(math.nan, -math.inf, math.inf, {})
    mean, half = statistics.fmean(numbers), math.inf
    if len(numbers) > 1:
        spread = statistics.stdev(numbers) / math.sqrt(len(numbers))
        half = float(t.ppf(0.975, len(numbers) - 1)) * spread
    return Mean(mean, mean - half, mean + half, dict(values))


def values_of(runs: Runs, arm: str, metric: str) -> dict[int, float]:
    """Return a metric of an arm by seed; seeds without a value are left out."""
    found = {seed: row[metric] for (name, seed), row in sorted(runs.items()) if name == arm}
    return {seed: value for seed, value in found.items() if not math.isnan(value)}


def summary(runs: Runs, arm: str, metric: str) -> Mean:
    """Return the mean of a metric over the seeds of an arm."""
    return mean_of(values_of(runs, arm, metric))


def difference(runs: Runs, arm: str, rival: str, metric: str) -> Mean:
    """Return the mean of ``arm`` minus ``rival`` over the seeds that both have."""
    one, other = values_of(runs, arm, metric), values_of(runs, rival, metric)
    return mean_of({seed: one[seed] - other[seed] for seed in one if seed in other})


def interaction(
    runs: Runs, pair: tuple[str, str], other_pair: tuple[str, str], metric: str
) -> Mean:
    """Return how much larger the difference of one pair of arms is than that of another pair."""
    one = difference(runs, *pair, metric).seeds
    other = difference(runs, *other_pair, metric).seeds
    return mean_of({seed: one[seed] - other[seed] for seed in one if seed in other})


@dataclass(frozen=True)
class Check:
    """One thing that a claim says.

    Attributes:
        text: What is measured.
        measured: Its mean over seeds.
        expected: "above" or "below" zero; "not above" it by more than ``MARGIN``; or "most", a
            share of at least ``MOSTLY`` of the seeds.
    """

    text: str
    measured: Mean
    expected: Literal["above", "below", "not above", "most"]

    @property
    def verdict(self) -> Verdict:
        """Whether the interval says so, says the opposite, or says neither."""
        mean = self.measured
        if len(mean.seeds) < 2:
            return "undecided"
        match self.expected:
            case "most":
                holds = mean.value >= MOSTLY
                fails = not holds
            case "not above":
                holds, fails = mean.high <= MARGIN, mean.above
            case "above":
                holds, fails = mean.above, mean.below
            case "below":
                holds, fails = mean.below, mean.above
        return "reproduced" if holds else "not reproduced" if fails else "undecided"

    @property
    def shown(self) -> str:
        """What was measured, as text."""
        if self.expected == "most":
            seeds = self.measured.seeds
            return f"{sum(seeds.values()):.0f} of {len(seeds)} seeds"
        return str(self.measured)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what it takes.

    Attributes:
        number: In the paper's order.
        text: What is claimed.
        checks: All must hold.
    """

    number: int
    text: str
    checks: Sequence[Check]

    @property
    def verdict(self) -> Verdict:
        """The worst of the checks."""
        verdicts = [check.verdict for check in self.checks]
        for worst in ("not reproduced", "undecided"):
            if worst in verdicts:
                return worst
        return "reproduced"


def claims(runs: Runs, early: Runs) -> list[Claim]:
    """Return the four claims with what was measured.

    Args:
        runs: At the end of training.
        early: After the updates that every arm has had.
    """
    stayed = {
        seed: float(turns <= SINGLE_TURN)
        for seed, turns in values_of(runs, "no_bonus", "turns").items()
    }
    return [
        Claim(
            1,
            "multi-turn beats single-turn at the same frame budget, the more so the longer the "
            "video",
            [
                Check(
                    "accuracy, full - single_turn",
                    difference(runs, "full", "single_turn", "accuracy"),
                    "above",
                ),
                Check(
                    "the same, minus that on short videos (early)",
                    interaction(
                        early,
                        ("full", "single_turn"),
                        ("short", "short_single"),
                        "accuracy",
                    ),
                    "above",
                ),
            ],
        ),
        Claim(
            2,
            "without the turn-level reward accuracy is lower",
            [
                Check(
                    "accuracy, no_turn_reward - full",
                    difference(runs, "no_turn_reward", "full", "accuracy"),
                    "below",
                )
            ],
        ),
        Claim(
            3,
            "without the gate return and turns rise, accuracy does not",
            [
                Check(
                    "return as paid, no_gate - full",
                    difference(runs, "no_gate", "full", "return"),
                    "above",
                ),
                Check(
                    "turns, no_gate - full", difference(runs, "no_gate", "full", "turns"), "above"
                ),
                Check(
                    "accuracy, no_gate - full",
                    difference(runs, "no_gate", "full", "accuracy"),
                    "not above",
                ),
            ],
        ),
        Claim(
            4,
            "without the bonus the policy stays single-turn",
            [
                Check(
                    "turns, no_bonus - full",
                    difference(runs, "no_bonus", "full", "turns"),
                    "below",
                ),
                Check(f"no_bonus with at most {SINGLE_TURN} turns", mean_of(stayed), "most"),
            ],
        ),
    ]
