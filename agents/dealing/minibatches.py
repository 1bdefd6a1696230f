"""Minibatches: which episodes of a batch make which step of the optimisers.

Both functions yield, epoch by epoch and without end, the minibatches of that epoch as indices into
the episodes that this process has. All processes get as many, so that they step together; a process
may have none of the episodes of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from agents.parallel import Processes

Minibatches = Callable[[Sequence[int], int, Sequence[int], Processes], Iterator[list[np.ndarray]]]


def by_process(
    places: Sequence[int], size: int, seed: Sequence[int], processes: Processes
) -> Iterator[list[np.ndarray]]:
    """Let each process cut the episodes that it has, in an order of its own.

    Args:
        places: One for each episode of this process.
        size: Episodes of a minibatch, over all processes, at most.
        seed: Of the order, the same in all processes.
        processes: All that learn.
    """
    count = len(places)
    most = count if processes.size == 1 else int(processes.largest(count))
    steps = max(1, math.ceil(most * processes.size / size))
    rng = np.random.default_rng([*seed, processes.rank])
    while True:
        yield [np.sort(part) for part in np.array_split(rng.permutation(count), steps)]


def by_place(
    places: Sequence[int], size: int, seed: Sequence[int], processes: Processes
) -> Iterator[list[np.ndarray]]:
    """Cut all episodes by their places in the batch, whichever process has them.

    The places are written into rows of ``size``, each column is shuffled, and a row is a minibatch.
    Processes take places in turn; so if their number divides ``size``, each has an equal part of a
    minibatch, but for places that nobody has.

    Args:
        places: Of the episodes of this process; no two of any process have the same.
        size: Episodes of a minibatch, over all processes, at most.
        seed: Of the order, the same in all processes.
        processes: All that learn.

    Raises:
        ValueError: If two episodes have one place.
    """
    own = np.array(places, np.int64)
    everyones = np.sort(np.concatenate(processes.gather(own)))
    if twice := everyones[1:][everyones[1:] == everyones[:-1]].tolist():
        raise ValueError(
            f"two episodes have the place {twice[0]} in the batch; give each trajectory a place of "
            "its own, over all processes"
        )
    span = everyones[-1] + 1 if len(everyones) else 1
    size = min(size, span)
    steps = math.ceil(span / size)
    table = np.full(steps * size, -1)
    table[everyones] = everyones
    rng = np.random.default_rng(seed)
    while True:
        rows = rng.permuted(table.reshape(steps, size), axis=0)
        yield [np.flatnonzero(np.isin(own, row)) for row in rows if (row >= 0).any()]
