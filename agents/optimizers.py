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
    if rank := os.environ.get("RANK"):
        # Its step is compiled, for parts of one shape. Of another process's kernels, for parts of
        # another shape or empty ones, torch 2.13 crashes.
        own = Path(tempfile.gettempdir()) / f"torchinductor-{getpass.getuser()}" / f"rank-{rank}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(own))
    return AdamW8bit(parameters, **options)


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
