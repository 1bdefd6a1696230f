"""PPOConfig: how to optimise, and the presets.

Source: Video-MTR, arXiv 2508.20478v2, section 3.3, for the preset "paper"; what later work found
more stable for "recommended".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from agents.losses import Aggregation
from agents.model.critic import CriticKind


@dataclass(frozen=True)
class PPOConfig:
    """How to optimise. The defaults are the "recommended" preset.

    Attributes:
        gamma_token: Discount inside a turn.
        lambda_token: GAE lambda inside a turn.
        gamma_turn: Discount from turn to turn.
        lambda_turn: GAE lambda from turn to turn.
        beta: Weight of the KL penalty to the policy as it was before post-training.
        clip_low: How far the ratio may fall below 1.
        clip_high: How far it may rise above 1.
        dual_clip: Limit of the loss where the advantage is negative; None for none.
        value_clip: How far a value may move from its old one; None for any.
        entropy_coef: Weight of the entropy bonus.
        epochs: Passes over a batch.
        minibatch: Episodes of an optimiser step, over all processes.
        actor_lr: Learning rate of the policy.
        critic_lr: Learning rate of the critic.
        critic_warmup: Batches in which only the critic learns.
        critic_epochs: Passes of the critic over a batch; None for as many as ``epochs``.
        grad_clip: Largest norm of a gradient; steps with a non-finite one are skipped.
        weight_decay: Of AdamW.
        aggregation: "token-mean" or "sequence-mean".
        whiten: Whether advantages are whitened over the batch.
        target_kl: Stop the policy's steps on a batch beyond this approximate KL; None for never.
        critic: "adapter", "head" or "model".
        history: Earlier turns in context (w); None for all.
        temperature: Of the softmax that is sampled and optimised.
        top_p: Nucleus of the sampling.
        micro_batch_tokens: Padded tokens of a forward pass.
    """

    gamma_token: float = 1.0
    lambda_token: float = 1.0
    gamma_turn: float = 0.95
    lambda_turn: float = 1.0
    beta: float = 0.001
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = None
    value_clip: float | None = 0.5
    entropy_coef: float = 0.0
    epochs: int = 1
    minibatch: int = 8
    actor_lr: float = 1e-6
    critic_lr: float = 1e-5
    critic_warmup: int = 10
    critic_epochs: int | None = None
    grad_clip: float = 1.0
    weight_decay: float = 0.0
    aggregation: Aggregation = "token-mean"
    whiten: bool = True
    target_kl: float | None = None
    critic: CriticKind = "adapter"
    history: int | None = 2
    temperature: float = 0.7
    top_p: float = 1.0
    micro_batch_tokens: int = 8192

    def __post_init__(self) -> None:
        for name in ("gamma_token", "lambda_token", "gamma_turn", "lambda_turn"):
            _check(self, name, 0.0, 1.0)
        for name in ("beta", "clip_high", "entropy_coef", "weight_decay"):
            _check(self, name, 0.0, math.inf)
        _check(self, "clip_low", 0.0, 1.0, "0 <= clip_low < 1", strict=True)
        for name in ("actor_lr", "critic_lr", "grad_clip", "temperature", "top_p"):
            _check(self, name, 0.0, math.inf, "above 0", above=True)
        for name in ("value_clip", "target_kl"):
            if getattr(self, name) is not None:
                _check(self, name, 0.0, math.inf, "above 0, or None", above=True)
        for name in ("epochs", "minibatch", "micro_batch_tokens"):
            _check(self, name, 1, math.inf, "a whole number, 1 or more", whole=True)
        _check(self, "critic_warmup", 0, math.inf, "a whole number, 0 or more", whole=True)
        for name, least in (("critic_epochs", 1), ("history", 0)):
            if getattr(self, name) is not None:
                rule = f"a whole number, {least} or more, or None"
                _check(self, name, least, math.inf, rule, whole=True)
        for name, kinds in (("aggregation", Aggregation), ("critic", CriticKind)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; use one of {get_args(kinds)}"
                )
        if self.top_p > 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip={self.dual_clip} must be above 1, or None")


def _check(
    config: PPOConfig,
    name: str,
    low: float,
    high: float,
    rule: str = "",
    *,
    strict: bool = False,
    above: bool = False,
    whole: bool = False,
) -> None:
    value = getattr(config, name)
    fine = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    fine = fine and low <= value <= high
    if fine and ((strict and value == high) or (above and value == low) or math.isinf(value)):
        fine = False
    if not fine:
        raise ValueError(f"{name}={value!r} must be {rule or f'in [{low:g}, {high:g}]'}")


PRESETS: dict[str, PPOConfig] = {
    # Video-MTR as its authors ran it: full fine-tuning, nucleus sampling, one epoch.
    "paper": PPOConfig(
        clip_high=0.2, entropy_coef=0.001, critic_warmup=0, top_p=0.95, critic="model"
    ),
    # What later work found more stable: clip-higher, no nucleus, no entropy bonus, critic first.
    # LoRA needs about ten times the learning rate of full fine-tuning.
    "recommended": PPOConfig(actor_lr=1e-5, critic_lr=1e-4),
    # The tiny model, all of its language weights, on a laptop.
    "tiny": PPOConfig(
        beta=0.03,  # without it the model soon forgets how to read
        # The bonus pays for any interval; without this the first few drawn become a habit.
        entropy_coef=0.01,
        minibatch=16,
        actor_lr=3e-4,
        critic_lr=2e-3,
        critic_warmup=0,
        critic_epochs=4,
        critic="head",
        temperature=1.0,
        micro_batch_tokens=2560,
    ),
}


def make_config(preset: str, **overrides: Any) -> PPOConfig:
    """Return a preset with some fields replaced.

    Raises:
        ValueError: For an unknown preset or field.

    >>> make_config("paper", epochs=2).clip_high
    0.2
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is unknown; use one of {sorted(PRESETS)}")
    known = {field.name for field in fields(PPOConfig)}
    if unknown := sorted(set(overrides) - known):
        raise ValueError(f"PPOConfig has no field {unknown}; use some of {sorted(known)}")
    return replace(PRESETS[preset], **overrides)
