"""Bootstrap: 95 % intervals of means and their differences, with videos resampled as wholes.

Questions about one video share its luck, so they are no independent trials. torchmetrics'
BootStrapper resamples questions one by one and knows no clusters; hence this module.

Where all videos agree (all right, say), resampling shows no spread at all. The interval then allows
that a share of up to 1 - 0.025^(1/V) of videos, which V videos without exception cannot rule out,
lies at an end of the range: for "all right" that is the exact binomial bound with videos as trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
_CHUNK = 256  # resamples weighted at once

Range = tuple[float, float]


class ClusterBootstrap:
    """Resamples of whole videos, drawn once and shared by all statistics of a run.

    Statistics are ratios of sums, ``sum(values) / sum(weights)``: with a mask for weights, the mean
    of a group. Groups of random size are thereby treated as such.

    Args:
        clusters: (n,) video of each question.
        resamples: How many.
        seed: Of the draw.

    Raises:
        ValueError: If there are no resamples.
    """

    def __init__(self, clusters: Sequence[str], *, resamples: int = 2000, seed: int = 0) -> None:
        if resamples < 1:
            raise ValueError(f"resamples={resamples} must be 1 or more")
        names, self._cluster = np.unique(np.array(clusters, dtype=str), return_inverse=True)
        self.clusters, self.resamples = len(names), resamples
        self._counts = np.zeros((resamples, self.clusters), np.uint16)
        if self.clusters:
            rng = np.random.default_rng([seed, 2])
            # Counting draws is the multinomial distribution, ten times faster than drawing from it.
            for start in range(0, resamples, _CHUNK):
                rows = min(_CHUNK, resamples - start)
                drawn = rng.integers(self.clusters, size=(rows, self.clusters))
                drawn += np.arange(rows)[:, None] * self.clusters
                counts = np.bincount(drawn.ravel(), minlength=rows * self.clusters)
                self._counts[start : start + rows] = counts.reshape(rows, self.clusters)

    def ratios(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return (resamples, s): each statistic in each resample, NaN where nothing is weighed.

        Args:
            values: (n, s) summands, already multiplied by their weights.
            weights: (n, s) weights, 0 or more.
        """
        width = values.shape[1]
        sums = self._per_cluster(np.concatenate([values, weights], axis=1))
        drawn = np.concatenate(
            [
                self._counts[start : start + _CHUNK].astype(np.float64) @ sums
                for start in range(0, self.resamples, _CHUNK)
            ]
        )
        above, below = drawn[:, :width], drawn[:, width:]
        return np.divide(above, below, out=np.full_like(above, math.nan), where=below > 0)

    def intervals(
        self, values: np.ndarray, weights: np.ndarray, within: Range | None = (0.0, 1.0)
    ) -> list[Range | None]:
        """Return the 95 % percentile interval of each statistic; ``None`` where there is no data.

        Args:
            values: (n, s) summands, already multiplied by their weights.
            weights: (n, s) weights, 0 or more.
            within: Least and greatest possible value; ``None`` if there are none, and then videos
                that all agree give an interval without width.
        """
        drawn = self.ratios(values, weights)
        sums, below = self._per_cluster(values), self._per_cluster(weights)
        found: list[Range | None] = []
        for k in range(values.shape[1]):
            there = below[:, k] > 0
            means = sums[there, k] / below[there, k]
            if not len(means):
                found.append(None)
            elif within is not None and np.ptp(means) < 1e-12:
                found.append(agreed(float(means[0]), len(means), within))
            else:
                found.append(percentiles(drawn[:, k]))
        return found

    def macro_interval(
        self, values: np.ndarray, weights: np.ndarray, within: Range = (0.0, 1.0)
    ) -> Range | None:
        """Return the interval of the unweighted mean over the statistics that have data.

        A resample that lost a group averages over those it has.
        """
        below = self._per_cluster(weights)
        there = below.sum(axis=0) > 0
        if not there.any():
            return None
        drawn = self.ratios(values[:, there], weights[:, there])
        lost = np.isnan(drawn)
        means = np.where(lost, 0.0, drawn).sum(axis=1) / np.maximum(1, (~lost).sum(axis=1))
        means[lost.all(axis=1)] = math.nan
        if np.ptp(means[~np.isnan(means)]) < 1e-12:
            videos = int((below.sum(axis=1) > 0).sum())
            return agreed(float(means[~np.isnan(means)][0]), videos, within)
        return percentiles(means)

    def _per_cluster(self, columns: np.ndarray) -> np.ndarray:
        """Sum (n, s) over the questions of each video: (clusters, s)."""
        sums = np.zeros((self.clusters, columns.shape[1]))
        np.add.at(sums, self._cluster, columns.astype(np.float64))
        return sums


def percentiles(drawn: np.ndarray) -> Range:
    """Return the ends of the middle 95 % of what resamples gave, NaNs left out."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn[~np.isnan(drawn)], [tail, 1 - tail])
    return float(low), float(high)


def agreed(value: float, videos: int, within: Range = (0.0, 1.0)) -> Range:
    """Return the interval of a mean that is the same in every video.

    >>> [round(end, 4) for end in agreed(1.0, 10)]  # exact binomial: 0.025 ** (1 / 10)
    [0.6915, 1.0]
    >>> [round(end, 3) for end in agreed(0.5, 1)]  # one video says next to nothing
    [0.013, 0.988]
    """
    least, greatest = within
    unseen = 1 - ((1 - LEVEL) / 2) ** (1 / videos)
    return value - unseen * (value - least), value + unseen * (greatest - value)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p-value of McNemar's test of discordant pairs.

    Source: McNemar, Psychometrika 12 (1947); the exact form is a sign test of the discordant pairs.
    It knows nothing of videos: an extra beside the clustered interval.

    Args:
        only_a: Questions that only A has right.
        only_b: Questions that only B has right.

    >>> mcnemar(1, 6)  # 2 * (C(7, 0) + C(7, 1)) / 2**7
    0.125
    """
    n = only_a + only_b
    term, tail = 1, 1
    for k in range(min(only_a, only_b)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)
