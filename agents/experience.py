"""Experience: a batch of episodes as tensors, from the dialogues to the advantages.

Tensors are (B, N): one row an episode, its response tokens in time order, right padded. A training
row is something else: a sequence for a forward pass. An episode has several where its window moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from agents.advantages import token_rewards, turn_aware_gae, whiten
from agents.model.policy import MLLMPolicy
from agents.model.rows import Row
from agents.ppo_config import PPOConfig
from agents.trajectory import Trajectory, rows_of


class Layout(NamedTuple):
    """Where the response tokens of episodes stand.

    Attributes:
        rows: Training rows.
        owners: The episode of each training row.
        places: The columns of each training row's response tokens.
        batch_places: The place of each episode in the batch, which may be spread over processes.
        mask: (B, N) bool.
        turn_index: (B, N) int64, -1 where ``mask`` is False.
        turn_rewards: (B, K) float32: what each turn earned, bonus included.
    """

    rows: list[Row]
    owners: list[int]
    places: list[slice]
    batch_places: list[int]
    mask: torch.Tensor
    turn_index: torch.Tensor
    turn_rewards: torch.Tensor


class Scored(NamedTuple):
    """What the models say of a batch as it was sampled; (B, N) unless said otherwise.

    In ``MLLMPolicy.precision``, that is in single precision unless the model is in double.

    Attributes:
        old_log_probs: Of the policy before its first step.
        ref_log_probs: Of the reference; zeros where beta is 0.
        values: Of the critic.
        entropy: In nats.
        states: (B, N, hidden) states for a critic that is a head; (B, N, 0) for others.
    """

    old_log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor
    states: torch.Tensor

    @classmethod
    def empty(cls, layout: Layout, hidden: int, dtype: torch.dtype = torch.float32) -> Scored:
        """Return zeros to write into."""
        shape, made = layout.mask.shape, {"device": layout.mask.device, "dtype": dtype}
        flat = {name: torch.zeros(shape, **made) for name in cls._fields[:-1]}
        return cls(**flat, states=torch.zeros((*shape, hidden), **made))


class Experience(NamedTuple):
    """Episodes as the learner steps on them: a ``Layout``, what was ``Scored``, and the credit.

    Attributes:
        rewards: (B, N) token rewards.
        advantages: (B, N), whitened if the configuration says so.
        returns: (B, N) targets of the critic.
    """

    rows: list[Row]
    owners: list[int]
    places: list[slice]
    batch_places: list[int]
    mask: torch.Tensor
    turn_index: torch.Tensor
    turn_rewards: torch.Tensor
    old_log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor
    states: torch.Tensor
    rewards: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


def lay_out(trajectories: Sequence[Trajectory], policy: MLLMPolicy, history: int | None) -> Layout:
    """Lay episodes out, on the policy's device.

    Args:
        trajectories: Episodes, each with one turn at least.
        policy: The policy.
        history: Earlier turns in context (w); None for all.
    """
    rows, owners = rows_of(trajectories, policy, history)
    counts = [sum(len(turn.reply.ids) for turn in each.turns) for each in trajectories]
    shape = (len(trajectories), max(counts, default=0))
    device = policy.device
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    turn_index = torch.full(shape, -1, device=device)
    most = max((len(each.turns) for each in trajectories), default=1)
    turn_rewards = torch.zeros(len(trajectories), most, device=device)
    for i, trajectory in enumerate(trajectories):
        done = 0
        for k, turn in enumerate(trajectory.turns):
            turn_index[i, done : done + len(turn.reply.ids)] = k
            done += len(turn.reply.ids)
            turn_rewards[i, k] = turn.earned
        mask[i, :done] = True
    places, filled = [], [0] * len(trajectories)
    for row, owner in zip(rows, owners, strict=True):
        n = int(row.sampled.sum())
        places.append(slice(filled[owner], filled[owner] + n))
        filled[owner] += n
    batch_places = [each.place for each in trajectories]
    return Layout(rows, owners, places, batch_places, mask, turn_index, turn_rewards)


def score(
    layout: Layout,
    policy: MLLMPolicy,
    config: PPOConfig,
    *,
    values: Callable[[Sequence[Row], torch.Tensor | None], torch.Tensor],
    ref_log_probs: Callable[[Sequence[Row]], torch.Tensor | None],
    with_states: bool,
    passes: Callable[[list[list[int]]], list[list[int]]] = list,
) -> Scored:
    """Score a batch as it was sampled.

    Args:
        layout: Of the batch.
        policy: The policy.
        config: Temperature and size of a forward pass.
        values: The critic: (rows, n) values of training rows, given them and their states.
        ref_log_probs: The reference: (rows, n) log-probabilities of training rows, or None.
        with_states: Whether the critic reads states, and steps on them later.
        passes: Given the groups of rows that go through together, adds empty ones until all
            processes have as many; an empty group is passed with a row that does not count.
    """
    scored = Scored.empty(layout, policy.hidden_size if with_states else 0, policy.precision)
    for group in passes(
        policy.groups(layout.rows, config.score_tokens or config.micro_batch_tokens)
    ):
        rows = [layout.rows[g] for g in group] or [policy.least_row()]
        scores = policy.score(rows, temperature=config.temperature, with_hidden=with_states)
        found = {
            "old_log_probs": scores.log_probs,
            "entropy": scores.entropy,
            "values": values(rows, scores.hidden),
            "ref_log_probs": ref_log_probs(rows),
            "states": scores.hidden,
        }
        for line, g in enumerate(group):
            place = layout.places[g]
            for name, tensor in found.items():
                if tensor is not None:
                    into = getattr(scored, name)
                    into[layout.owners[g], place] = tensor[line, : place.stop - place.start].to(
                        into.dtype
                    )
    return scored


def credit(
    layout: Layout, scored: Scored, config: PPOConfig, total: Callable[..., list[float]]
) -> Experience:
    """Put what turns earned on tokens, and carry it back: advantages and returns.

    Args:
        layout: Of the batch.
        scored: Its scores.
        config: Discounts, KL penalty, whether to whiten.
        total: Adds numbers over all processes, for whitening.
    """
    rewards = token_rewards(
        layout.turn_rewards,
        layout.turn_index,
        layout.mask,
        old_log_probs=scored.old_log_probs,
        ref_log_probs=scored.ref_log_probs,
        beta=config.beta,
    )
    advantages, returns = turn_aware_gae(
        rewards,
        scored.values,
        layout.mask,
        layout.turn_index,
        gamma_token=config.gamma_token,
        lambda_token=config.lambda_token,
        gamma_turn=config.gamma_turn,
        lambda_turn=config.lambda_turn,
    )
    if config.whiten:
        advantages = whiten(advantages, layout.mask, total=total)
    return Experience(
        **layout._asdict(),
        **scored._asdict(),
        rewards=rewards,
        advantages=advantages,
        returns=returns,
    )
