"""MemoryPlan: bytes of a process by part, at the moments at which the most of them is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GIB = 2**30
PhaseName = Literal["at rest", "rollout", "scoring", "learning"]
PHASES: tuple[PhaseName, ...] = ("at rest", "rollout", "scoring", "learning")
PARTS = (
    "weights", "critic", "adapters", "reference", "tower", "optimiser", "gradients",
    "gathered weights", "generation copy", "KV cache", "frame features", "activations", "logits",
    "undo", "runtime",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a run takes place.

    Attributes:
        processes: All of them.
        per_machine: Those of one machine.
        gpu: Whether each has a GPU; else they compute on the CPU.
    """

    processes: int = 1
    per_machine: int = 1
    gpu: bool = True

    @property
    def local(self) -> int:
        """Processes of a machine with GPUs, which need main memory beside; 0 without."""
        return min(self.processes, self.per_machine) if self.gpu else 0


@dataclass(frozen=True)
class Moment:
    """A moment of an iteration.

    Attributes:
        phase: Of the iteration.
        name: Which moment of the phase.
        parts: Bytes by ``PARTS``; what is absent takes none.
    """

    phase: PhaseName
    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def tensors(self) -> float:
        """Bytes of all parts but the runtime."""
        return self.total - self.parts.get("runtime", 0.0)


@dataclass(frozen=True)
class MemoryPlan:
    """What a process needs.

    Attributes:
        moments: Those at which it may need the most.
        loading: Bytes of main memory that a machine needs while a model is loaded to GPUs: a whole
            one for each process, unless the weights are sharded and read in parts.
        host: Bytes of main memory that a machine needs for copies to take an update back by.
    """

    moments: tuple[Moment, ...]
    loading: float
    host: float

    def worst(self, phase: PhaseName) -> Moment:
        """Return the moment of a phase at which the most is needed."""
        return max((m for m in self.moments if m.phase == phase), key=lambda m: m.total)

    def moment(self, name: str) -> Moment:
        """Return a moment by its name."""
        return next(m for m in self.moments if m.name == name)

    @property
    def peak(self) -> Moment:
        """The moment at which the most is needed."""
        return max(self.moments, key=lambda m: m.total)
