"""Optimisers: AdamW, and AdamW that remembers in eight bits."""

from __future__ import annotations

from collections.abc import Sequence

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
            "torchao, or use 'adamw'"
        ) from error
    return AdamW8bit(parameters, **options)
