"""Confidence intervals of proportions, for tables of success. Plain arithmetic, no torch.

Sources: Wilson, Probable inference, JASA 22 (1927); Newcombe, Interval estimation for the
difference between independent proportions, Statistics in Medicine 17 (1998), method 10.
"""

from __future__ import annotations

import math


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion.

    Args:
        right: Successes.
        total: Trials; without any, the interval is all of 0..1.
        z: Quantile of the normal distribution; 1.96 is for 95 %.

    >>> low, high = wilson(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    if total == 0:
        return 0.0, 1.0
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe(
    a: float, a_interval: tuple[float, float], b: float, b_interval: tuple[float, float]
) -> tuple[float, float, float]:
    """Return a - b and the ends of its interval, for two independent proportions.

    Args:
        a: A proportion.
        a_interval: Its Wilson interval.
        b: The proportion that is taken from it.
        b_interval: Its Wilson interval, at the same level.

    >>> gap, low, high = newcombe(56 / 70, wilson(56, 70), 48 / 80, wilson(48, 80))
    >>> round(gap, 4), round(low, 4), round(high, 4)  # as in the table of the source
    (0.2, 0.0524, 0.3339)
    """
    gap = a - b
    down = math.hypot(a - a_interval[0], b_interval[1] - b)
    up = math.hypot(a_interval[1] - a, b - b_interval[0])
    return gap, gap - down, gap + up
