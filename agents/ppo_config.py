"""PPOConfig: how to optimise, and the presets.

Source: Video-MTR, arXiv 2508.20478v2, section 3.3, for the preset "paper"; what later work found
more stable for "recommended".
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from agents.losses import Aggregation
from agents.model.critic import CriticKind
from gym_longvideo import checks

Optimizer = Literal["adamw", "adamw8bit"]


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
        optimizer: "adamw", or "adamw8bit" (needs torchao), whose two moments take a byte each.
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
        micro_batch_tokens: Tokens of a forward pass that is trained through, padding included where
            there is some.
        score_tokens: The same of a scoring pass, which keeps nothing for a backward pass: twice as
            many stay below the peak of a rollout. None for as many.
        rollout_is_clip: Where servers gave the replies, a token's advantage is weighted by its
            probability here over that there, at most this; None for no weights.
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
    optimizer: Optimizer = "adamw"
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
    score_tokens: int | None = 16384
    rollout_is_clip: float | None = 2.0

    def __post_init__(self) -> None:
        for name in ("gamma_token", "lambda_token", "gamma_turn", "lambda_turn"):
            checks.number(name, getattr(self, name), 0, 1)
        for name in ("beta", "clip_high", "entropy_coef", "weight_decay"):
            checks.number(name, getattr(self, name), 0)
        checks.number("clip_low", self.clip_low, 0, below=1)
        for name in ("actor_lr", "critic_lr", "grad_clip", "temperature"):
            checks.number(name, getattr(self, name), above=0)
        checks.number("top_p", self.top_p, above=0, most=1)
        for name in ("value_clip", "target_kl", "rollout_is_clip"):
            checks.number(name, getattr(self, name), above=0, optional=True)
        checks.number("dual_clip", self.dual_clip, above=1, optional=True)
        for name in ("epochs", "minibatch", "micro_batch_tokens"):
            checks.keep_whole(self, name, 1)
        checks.keep_whole(self, "critic_warmup", 0)
        checks.keep_whole(self, "critic_epochs", 1, optional=True)
        checks.keep_whole(self, "history", 0, optional=True)
        checks.keep_whole(self, "score_tokens", 1, optional=True)
        checks.choice("aggregation", self.aggregation, get_args(Aggregation))
        checks.choice("critic", self.critic, get_args(CriticKind))
        checks.choice("optimizer", self.optimizer, get_args(Optimizer))


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
        score_tokens=None,
    ),
}


def make_config(preset: str, **overrides: Any) -> PPOConfig:
    """Return a preset with some fields replaced.

    Raises:
        ValueError: For an unknown preset or field.

    >>> make_config("paper", epochs=2).clip_high
    0.2
    """
    checks.choice("preset", preset, sorted(PRESETS))
    checks.names("PPOConfig", overrides, {field.name for field in fields(PPOConfig)})
    return replace(PRESETS[preset], **overrides)
