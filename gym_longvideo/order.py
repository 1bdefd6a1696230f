"""TaskOrder: which task of a suite comes next.

Autoreset passes no options, so an environment must know by itself how to cover a suite: in order or
shuffled, whole or as one of n shards that together visit every task exactly once per epoch.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from gym_longvideo.suite import Suite

Order = Literal["shuffled", "sequential"]


class TaskOrder:
    """Indices into a suite, one after the other, for ever.

    Args:
        suite: The suite.
        order: "shuffled" draws a new permutation for each epoch; "sequential" goes round.
        shard: (i, n): only indices i, i + n, i + 2n, ...

    Raises:
        ValueError: If the suite or the shard is empty.
    """

    def __init__(
        self, suite: Suite, order: Order, shard: tuple[int, int] | list[int] | None
    ) -> None:
        self._suite, self._order = suite, order
        self.indices = _shard(len(suite), shard)
        self._queue: list[int] = []

    def restart(self) -> None:
        """Begin a new epoch."""
        self._queue = []

    def next(self, rng: np.random.Generator) -> int:
        """Return the next index."""
        if not self._queue:
            shuffled = self._order == "shuffled"
            order = rng.permutation(self.indices) if shuffled else self.indices
            self._queue = order[::-1].tolist()
        return self._queue.pop()

    def pick(self, options: Mapping[str, Any] | None) -> int | None:
        """Return the index that reset options name, ``None`` if they name none.

        Raises:
            ValueError: For unknown options, or a task that does not exist.
        """
        if not options:
            return None
        if unknown := sorted(set(options) - {"task_id", "index"}):
            raise ValueError(f'unknown reset options {unknown}; use "task_id" or "index"')
        if len(options) == 2:
            raise ValueError(f'reset options {options} name a task twice; use "task_id" or "index"')
        suite = self._suite
        if "task_id" in options:
            try:
                return suite.index_of(options["task_id"])
            except KeyError:
                raise ValueError(
                    f"task_id={options['task_id']!r} is not in suite {suite.name!r}, "
                    f"split {suite.split!r}"
                ) from None
        index = options["index"]
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
            raise ValueError(f"index={index!r} is not a whole number")
        if not 0 <= index < len(suite):
            raise ValueError(f"index={index} is outside the suite; use 0..{len(suite) - 1}")
        return int(index)


def _shard(total: int, shard: tuple[int, int] | list[int] | None) -> np.ndarray:
    """Return the int64 indices of a shard of ``total`` tasks.

    >>> _shard(7, (1, 3)).tolist()
    [1, 4]
    """
    if total == 0:
        raise ValueError("the suite is empty; check its split and filters")
    if shard is None:
        return np.arange(total)
    try:
        i, n = (operator.index(part) for part in shard)
    except (TypeError, ValueError):
        raise ValueError(f"shard={shard!r} is not a pair (i, n) of whole numbers") from None
    if not 0 <= i < n:
        raise ValueError(f"shard={shard!r} needs 0 <= i < n")
    if i >= total:
        raise ValueError(f"shard={shard!r} is empty: the suite has only {total} tasks")
    return np.arange(i, total, n)
