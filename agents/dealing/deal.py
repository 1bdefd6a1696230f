"""Deal: which episodes of a batch a process plays and learns, and with which random numbers.

The episodes of an iteration have places, 0 to batch - 1, and of P processes the r-th has every
place p with p % P == r. A run that began on several processes is dealt out ``ByPlace`` for good:
whatever is random depends on the place and not on who has it, so that the run is the same, up to
rounding, on any number of processes, and may go on from a checkpoint on another number. A run that
began on one process, or in an earlier version, is dealt out ``ByProcess``: each process draws from
one stream. It remains so until it goes on with another number of processes; from there on it is
dealt out by place.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from agents.dealing import minibatches
from agents.dealing.minibatches import Minibatches
from agents.keeping.saved import CheckpointError
from agents.parallel import Processes
from agents.rollout import TrainingOrder

logger = logging.getLogger(__name__)


def deal_out(
    size: int,
    batch: int,
    seed: int,
    processes: Processes,
    device: torch.device,
    workers: Sequence[dict[str, Any]] | None = None,
) -> Dealing:
    """Return how a run is dealt out.

    Args:
        size: Tasks of the suite.
        batch: Episodes of an iteration, over all processes.
        seed: Of tasks and replies.
        processes: All that play.
        device: Where replies are drawn.
        workers: What the processes of a run that goes on kept, by rank; None for one that begins.

    Raises:
        CheckpointError: If they kept anything else than what is kept here.
    """
    before = ByProcess if workers is None else _kind_of(workers)
    alike = processes.size == (1 if workers is None else len(workers))
    kind = ByProcess if alike and before is ByProcess else ByPlace
    dealing = kind(size, batch, seed, processes, device)
    if workers is not None:
        dealing.join(workers)
        if kind is not before and processes.main:
            logger.info(
                "processes of the run until now: %d, from here on: %d; so its random numbers now "
                "depend on an episode's place in the batch, not on the process",
                len(workers), processes.size,
            )  # fmt: skip
    return dealing


class Dealing(ABC):
    """What this process has of every batch.

    Args:
        size: Tasks of the suite.
        batch: Episodes of an iteration, over all processes.
        seed: Of tasks and replies.
        processes: All that play.
        device: Where replies are drawn.

    Attributes:
        places: This process's places in the batch, in ascending order.
        pending: The tasks of its next episodes, one a place, if they are drawn already.
        minibatches: How the learner cuts a batch.
        kept: The names of what ``state`` returns.
    """

    minibatches: Minibatches
    kept: frozenset[str]

    def __init__(
        self, size: int, batch: int, seed: int, processes: Processes, device: torch.device
    ) -> None:
        self.size, self.batch, self.seed, self.device = size, batch, seed, device
        self.rank, self.processes = processes.rank, processes.size
        self.places = range(batch)[self.rank :: self.processes]
        self.pending: list[int] = []

    def deal(self) -> list[int]:
        """Return the tasks of this process's next episodes, and draw those of the ones after."""
        tasks = self.pending or self.draw()
        self.pending = self.draw()
        return tasks

    @abstractmethod
    def draw(self) -> list[int]:
        """Return a new task for each place."""

    @property
    @abstractmethod
    def replacement(self) -> Callable[[], int] | list[Callable[[], int]]:
        """What gives another task where a video cannot be opened; one for all or one a place."""

    @abstractmethod
    def generator(self, step: int) -> torch.Generator | list[torch.Generator]:
        """Return what replies of an iteration are drawn with; one for all or one a place."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return what this process needs to go on from here."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned here, in a run of the same batch."""

    @abstractmethod
    def join(self, workers: Sequence[dict[str, Any]]) -> None:
        """Go on from what ``state`` returned in every process, by rank."""


class ByProcess(Dealing):
    """Each process has streams of its own: of tasks, of noise and of minibatches.

    Nothing draws from numpy's global generator; minibatches have one of their own a step.
    """

    minibatches = staticmethod(minibatches.by_process)
    kept = frozenset({"count", "pending", "generator", "torch"})

    def __init__(
        self, size: int, batch: int, seed: int, processes: Processes, device: torch.device
    ) -> None:
        super().__init__(size, batch, seed, processes, device)
        self.order = TrainingOrder(size, seed, self.rank, self.processes)
        self.noise = torch.Generator(device)
        self.noise.manual_seed(int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0]))

    def draw(self) -> list[int]:
        """Return a new task for each place."""
        return [self.order.next() for _ in self.places]

    @property
    def replacement(self) -> Callable[[], int]:
        """The next task of the order."""
        return self.order.next

    def generator(self, step: int) -> torch.Generator:
        """Return the stream, which goes on from iteration to iteration."""
        return self.noise

    def state(self) -> dict[str, Any]:
        """Return what this process needs to go on from here."""
        return {
            "count": self.order.count,
            "pending": list(self.pending),
            "generator": self.noise.get_state(),
            "torch": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned here, in a run of the same batch."""
        self.order.count = int(state["count"])
        self.pending = [int(task) for task in state["pending"]]
        self.noise.set_state(state["generator"])
        torch.set_rng_state(state["torch"])

    def join(self, workers: Sequence[dict[str, Any]]) -> None:
        """Go on from what ``state`` returned in every process, by rank."""
        self.load(workers[self.rank])
        if len(self.pending) != len(self.places):  # the batch has another size now
            self.order.count -= len(self.pending)
            self.pending = []


class ByPlace(Dealing):
    """Each place of the batch has streams of its own, whichever process plays it.

    A video that cannot be opened moves the tasks of its place on by one, and no others.
    """

    minibatches = staticmethod(minibatches.by_place)
    kept = frozenset({"start", "counts", "pending"})

    def __init__(
        self, size: int, batch: int, seed: int, processes: Processes, device: torch.device
    ) -> None:
        super().__init__(size, batch, seed, processes, device)
        self.orders = [TrainingOrder(size, seed, place, batch) for place in self.places]
        self.start = 0  # tasks of the order that were used before it was dealt out by place

    def draw(self) -> list[int]:
        """Return a new task for each place."""
        return [order.next() for order in self.orders]

    @property
    def replacement(self) -> list[Callable[[], int]]:
        """For each place the next task of its own."""
        return [order.next for order in self.orders]

    def generator(self, step: int) -> list[torch.Generator]:
        """Return fresh ones for this iteration, one a place."""
        return [self._noise(step, place) for place in self.places]

    def _noise(self, step: int, place: int) -> torch.Generator:
        seed = np.random.SeedSequence([self.seed, step, place]).generate_state(1, np.uint64)[0]
        return torch.Generator(self.device).manual_seed(int(seed))

    def state(self) -> dict[str, Any]:
        """Return what this process needs to go on from here; nothing else is drawn from."""
        return {
            "start": self.start,
            "counts": {p: each.count for p, each in zip(self.places, self.orders, strict=True)},
            "pending": dict(zip(self.places, self.pending, strict=False)),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned here, in a run of the same batch."""
        self.start = int(state["start"])
        for place, order in zip(self.places, self.orders, strict=True):
            order.start, order.count = self.start, int(state["counts"][place])
        self.pending = [int(state["pending"][p]) for p in self.places if state["pending"]]

    def join(self, workers: Sequence[dict[str, Any]]) -> None:
        """Go on from what ``state`` returned in every process, by rank, here or ``ByProcess``."""
        state = _joint(workers)
        if state["counts"].keys() != set(range(self.batch)):  # the batch has another size now
            counts = dict.fromkeys(range(self.batch), 0)
            state = {"start": self._next(state), "counts": counts, "pending": {}}
        self.load(state)

    def _next(self, state: dict[str, Any]) -> int:
        """Return where the order goes on if what is pending is drawn anew.

        No task is played twice: if others were handed out since, the pending ones are left out.
        """
        pending = [state["pending"][place] for place in sorted(state["pending"])]
        used = state["start"] + max(state["counts"].values(), default=0) * len(state["counts"])
        order = TrainingOrder(self.size, self.seed)
        order.count = used - len(pending)
        last = [order.next() for _ in pending]
        return used - len(pending) if last == pending else used


def _kind_of(workers: Sequence[dict[str, Any]]) -> type[Dealing]:
    """Return how what processes kept was dealt out."""
    found = {frozenset(worker) for worker in workers}
    for kind in (ByProcess, ByPlace):
        if found == {kind.kept}:
            return kind
    raise CheckpointError(
        f"the checkpoint holds {sorted(map(sorted, found))} of its {len(workers)} processes, which "
        "this version cannot go on from; use another checkpoint, or the version that wrote it"
    )


def _joint(workers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of all places as if one process had them, dealt out by place."""
    if _kind_of(workers) is ByPlace:
        return {
            "start": workers[0]["start"],
            "counts": {p: n for worker in workers for p, n in worker["counts"].items()},
            "pending": {p: task for worker in workers for p, task in worker["pending"].items()},
        }
    size = len(workers)
    pending = {
        size * i + rank: task
        for rank, worker in enumerate(workers)
        for i, task in enumerate(worker["pending"])
    }
    # Where videos were skipped, some have come farther than others; no task is played twice.
    used = size * max(int(worker["count"]) for worker in workers)
    return {"start": used, "counts": dict.fromkeys(pending, 0), "pending": pending}
