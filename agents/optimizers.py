"""Optimisers: AdamW, and AdamW that remembers in eight bits."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from agents.ppo_config import PPOConfig


def make_optimizer(
    parameters: Sequence[nn.Parameter], lr: float, config: PPOConfig
) -> torch.optim.Optimizer:
    """Return an optimiser of parameters, whole or sharded.

    Args:
        parameters: What it moves.
        lr: Learning rate.
        config: Says which optimiser, and its weight decay.

    Raises:
        ValueError: If the package that it needs is not installed.
    """
    options = {"lr": lr, "weight_decay": config.weight_decay, "betas": (0.9, 0.999)}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            f"ppo.optimizer={config.optimizer!r} needs the package torchao ({error}); pip install "
            "'gym-longvideo[adam8bit]', or use 'adamw'"
        ) from error
    _compile_apart()
    return AdamW8bit(parameters, **options)


def _compile_apart() -> None:
    """Give each process a directory of its own for what it compiles.

    The step is compiled for the shapes of a process's parts, some of which are empty; with kernels
    that another process made for its shapes, torch 2.13 crashes.
    """
    name, rank = "TORCHINDUCTOR_CACHE_DIR", os.environ.get("RANK")
    place = Path(
        os.environ.get(name) or Path(tempfile.gettempdir(), f"inductor-{getpass.getuser()}")
    )
    if rank is not None and place.name != f"rank-{rank}":
        os.environ[name] = str(place / f"rank-{rank}")


def remember(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser make what it remembers of each parameter, to be written over.

    It does so in its first step only, so it takes one that moves nothing.
    """
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        # Of eight-bit AdamW a rate is a tensor, because its step is compiled.
        group["lr"] = group["lr"] * 0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
