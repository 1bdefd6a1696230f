"""Dice: reproducible random draws for building worlds.

Only ``random.Random.random`` is drawn from: Python guarantees its sequence across versions and
platforms, and it is several times cheaper than a numpy Generator for the few dozen draws of a task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from random import Random
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1


def root_seed(*parts: object) -> int:
    """Return a 64-bit seed that depends on every part, equal in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def total(values: Iterable[float]) -> float:
    """Return the sum of numbers that are added one after another.

    From Python 3.12 on ``sum`` makes up for rounding, so that tasks would differ from version to
    version in their last digits.

    >>> total([0.1] * 10)
    0.9999999999999999
    """
    return reduce(add, values, 0.0)


def mix(seed: int, index: int) -> int:
    """Return a well-mixed 64-bit number for the ``index``-th child of ``seed`` (splitmix64)."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class Dice:
    """A stream of draws from one seed."""

    __slots__ = ("unit",)

    def __init__(self, seed: int) -> None:
        self.unit = Random(seed).random

    def below(self, count: int) -> int:
        """Return an integer in ``[0, count)``."""
        return int(self.unit() * count)

    def between(self, low: float, high: float) -> float:
        """Return a float in ``[low, high)``; ``low`` where the range is empty."""
        return low + (high - low) * self.unit() if high > low else low

    def pick(self, items: Sequence[T]) -> T:
        """Return one of ``items``."""
        return items[int(self.unit() * len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Return ``count`` different items in random order; all of them if there are no more."""
        pool, unit, size = list(items), self.unit, len(items)
        for place in range(min(count, size)):
            other = place + int(unit() * (size - place))
            pool[place], pool[other] = pool[other], pool[place]
        return pool[:count]
