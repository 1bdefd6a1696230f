"""Processes: what those that train together tell each other.

Losses are sums of weight times term with weights of the whole minibatch, so gradients of several
processes are added, not averaged, and equal those of one process with the joint batch. The
variables that torchrun and ``accelerate launch`` set say who is who. What is said here goes over
the processors and may wait for hours, as for a process whose videos decode slowly; tensors of
models go from GPU to GPU, see ``sharding``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

T = TypeVar("T")
# How long one process waits for the others. One that died is noticed at once, by the launcher.
PATIENCE = timedelta(hours=6)


def own(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor: all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class ProcessError(RuntimeError):
    """Another process of the run failed, so this one cannot go on."""


def usable_device(name: str) -> torch.device:
    """Return a device.

    Raises:
        ValueError: If there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name!r} is unknown; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"there are {count}" if count else "PyTorch finds no GPU here"
            raise ValueError(f"device={name!r}: {found}; use device='cpu', or 'auto'")
    return device


class Processes:
    """The processes of a run: this one and its peers.

    Args:
        device: "cpu", "cuda", "cuda:1"; "auto" is a GPU, each process its own, if there is one.

    Attributes:
        rank: Of this process.
        size: How many there are.
        local_size: How many of them are on this machine.
        agreed: Whether an error was raised in all of them together, by ``agree`` or ``by_main``.
        device: Of this process.

    Raises:
        ValueError: If there is no such device here.
    """

    def __init__(self, device: str = "auto") -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.size)))
        self.agreed = False
        if device == "auto":
            asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
            device = "cuda" if torch.cuda.is_available() and not asked else "cpu"
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        self.device = usable_device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1:
            self.join()

    def join(self) -> None:
        """Meet the other processes; also done alone, what is sharded over one process needs it."""
        if dist.is_initialized():
            return
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        if self.size > 1:
            dist.init_process_group(backend, timeout=PATIENCE)
        else:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, rank=0, world_size=1, store=store)

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def total(self, *values: float) -> list[float]:
        """Return the sums of some numbers."""
        if self.size == 1:
            return [float(value) for value in values]
        return self.sum(torch.tensor(values, dtype=torch.float64)).tolist()

    def largest(self, value: float) -> float:
        """Return the largest of a number's values in the processes."""
        if self.size == 1:
            return float(value)
        most = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return float(most)

    def gather(self, value: Any) -> list[Any]:
        """Return what each process passed, by rank; anything that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def by_main(self, work: Callable[[], T]) -> T:
        """Let the main process do something that the others wait for.

        Returns:
            What it returned, in every process; it must be possible to pickle that.

        Raises:
            Exception: What it raised, in every process.
        """
        found: Any = None
        if self.main:
            try:
                found = work(), None
            except Exception as error:
                found = None, error
        value, error = self.gather(found)[0]
        if error is not None:
            self.agreed = True
            raise error
        return value

    def by_clock(self, late: bool) -> bool:
        """Return what the main process says: clocks differ, and all must do the same."""
        return bool(self.total(self.main and late)[0])

    def agree(self, error: Exception | None) -> None:
        """Go on only if nothing failed in any process; all must call this.

        Args:
            error: What failed here.

        Raises:
            Exception: What failed here.
            ProcessError: If only other processes failed.
        """
        if self.total(error is not None)[0]:
            self.agreed = True
            raise error or ProcessError(
                "another process of this run failed; its own output says why"
            )

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes; a missing one counts as zero."""
        if self.size == 1:
            return
        kept = list(parameters)
        for parameter in kept:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.reshape(-1) for p in kept if p.grad is not None])
        dist.all_reduce(flat)
        done = 0
        for parameter in kept:
            assert parameter.grad is not None
            count = parameter.grad.numel()
            parameter.grad.copy_(flat[done : done + count].view_as(parameter.grad))
            done += count

    def wait(self) -> None:
        """Wait for all processes."""
        self.total(0)

    def close(self) -> None:
        """Part from the other processes."""
        if dist.is_initialized():
            dist.destroy_process_group()
