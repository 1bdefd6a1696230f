"""Processes: the few sums that data-parallel training needs.

Losses are sums of weight times term with weights of the whole minibatch, so gradients of several
processes are added, not averaged, and equal those of one process with the joint batch. Left out:
sharding of models over processes; that is what the big engines are for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist


class Processes:
    """The processes of a run: this one and its peers.

    Attributes:
        rank: Of this process.
        size: How many there are.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

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
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return self.sum(torch.tensor(values, dtype=torch.float64, device=device)).tolist()

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
        if self.size > 1:
            dist.barrier()
