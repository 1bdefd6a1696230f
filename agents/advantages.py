"""Who earned what: rewards on tokens, turn-aware GAE, whitening. Pure functions of tensors.

Tensors are (B, N): one row an episode, columns in time order. Two layouts work alike, because slots
where ``mask`` is False are skipped as if they were not there: compact rows that hold nothing but
response tokens (padded left or right), and full rows with the observations in between. What those
slots hold, NaN included, never matters.

The decision that is not obvious: discount and lambda belong to the *transition*. Inside a turn they
are ``gamma_token`` and ``lambda_token``; from the last token of a turn to the first response token
of the next they are ``gamma_turn`` and ``lambda_turn``. One backward pass then is turn-level and
token-level GAE at once: standard GAE on one turn, GAE on the concatenated responses if both pairs
are equal, and, at ``gamma_token = lambda_token = 1`` the two-stage estimator in which the first
token of a turn carries the turn's value.

Sources: GAE, arXiv 1506.02438, equations 11-16; two discounts, Video-MTR, arXiv 2508.20478v2,
section 3.3; two-stage GAE, VAGEN, arXiv 2510.16907 (which anchors a turn's value at its end).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Rewards are of the order of 1, and the smallest that the environment pays, for the format, is 0.1.
# Advantages whose standard deviation is below that differ by errors of the critic and the KL
# penalty more than by what was earned: outcomes were alike, and there is little to learn. Divided
# by this, a difference of the smallest reward still counts 1.
NOISE = 0.1


@torch.no_grad()
def token_rewards(
    turn_rewards: Tensor,
    turn_index: Tensor,
    mask: Tensor,
    *,
    old_log_probs: Tensor | None = None,
    ref_log_probs: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """Put each turn's reward on its last response token, and the KL penalty on all of them.

    The penalty is the k1 estimate, ``-beta * (old_log_probs - ref_log_probs)``: as a reward its
    gradient is that of the reverse KL divergence.

    Args:
        turn_rewards: (B, K) what turn k earned; 0 for turns not taken.
        turn_index: (B, N) int64 turn of each response token, 0-based; -1 where ``mask`` is False.
        mask: (B, N) bool, True on response tokens.
        old_log_probs: (B, N) log-probabilities of the sampled tokens; needed if ``beta`` is not 0.
        ref_log_probs: (B, N) the same under the reference policy; needed if ``beta`` is not 0.
        beta: Weight of the penalty.

    Returns:
        (B, N) rewards, 0 where ``mask`` is False.

    Raises:
        ValueError: If a turn that earned something has no token, or a token has no turn.
    """
    _check_shapes(mask, turn_index=turn_index)
    if turn_rewards.ndim != 2 or len(turn_rewards) != len(mask):
        raise ValueError(
            f"turn_rewards has shape {tuple(turn_rewards.shape)}; mask {tuple(mask.shape)} needs "
            f"({len(mask)}, turns)"
        )
    turns = turn_rewards.shape[1]
    if bool((mask & ((turn_index < 0) | (turn_index >= turns))).any()):
        raise ValueError(
            f"turn_index of response tokens must lie in 0..{turns - 1}, the columns of "
            "turn_rewards; it is 0-based, and -1 only where mask is False"
        )
    dtype = torch.promote_types(turn_rewards.dtype, torch.float32)
    rewards = torch.zeros(mask.shape, dtype=dtype, device=turn_rewards.device)
    if beta:
        if old_log_probs is None or ref_log_probs is None:
            raise ValueError(f"beta={beta} needs old_log_probs= and ref_log_probs=; or pass beta=0")
        _check_shapes(mask, old_log_probs=old_log_probs, ref_log_probs=ref_log_probs)
        rewards = torch.where(mask, -beta * (old_log_probs - ref_log_probs).to(dtype), rewards)
    for k in range(turns):
        belongs = mask & (turn_index == k)
        earned = turn_rewards[:, k : k + 1].to(dtype)
        orphaned = (earned[:, 0] != 0) & ~belongs.any(1)
        if bool(orphaned.any()):
            row = int(orphaned.nonzero()[0])
            raise ValueError(
                f"turn {k} of row {row} earned {float(earned[row]):g} but has no response token; "
                "every turn needs one token at least (an empty reply still ends with its stop "
                "token)"
            )
        tokens_left = belongs.flip(1).cumsum(1).flip(1)
        rewards = rewards + torch.where(belongs & (tokens_left == 1), earned, 0.0)
    return rewards


@torch.no_grad()
def turn_aware_gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    turn_index: Tensor,
    *,
    gamma_token: float = 1.0,
    lambda_token: float = 1.0,
    gamma_turn: float = 0.95,
    lambda_turn: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation whose discount and lambda depend on the transition.

    With i running over the response tokens of an episode, A and V being 0 after the last (the limit
    of turns is part of the process, so nothing is bootstrapped):

        delta_i = r_i + gamma_i V_{i+1} - V_i
        A_i = delta_i + gamma_i lambda_i A_{i+1},   R_i = A_i + V_i

    (gamma_i, lambda_i) is the token pair if token i+1 belongs to the turn of token i, else the turn
    pair.

    Args:
        rewards: (B, N) reward of each token; see ``token_rewards``.
        values: (B, N) V of everything before the token.
        mask: (B, N) bool, True on response tokens.
        turn_index: (B, N) int64 turn of each response token; any value where ``mask`` is False.
        gamma_token: Discount inside a turn.
        lambda_token: Lambda inside a turn.
        gamma_turn: Discount from one turn to the next.
        lambda_turn: Lambda from one turn to the next.

    Returns:
        Advantages and returns, both (B, N) in at least single precision and exactly 0 where
        ``mask`` is False.

    Raises:
        ValueError: If the shapes differ or a parameter lies outside 0..1.
    """
    _check_shapes(mask, rewards=rewards, values=values, turn_index=turn_index)
    for name, value in (
        ("gamma_token", gamma_token),
        ("lambda_token", lambda_token),
        ("gamma_turn", gamma_turn),
        ("lambda_turn", lambda_turn),
    ):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}={value!r} must lie in 0..1")
    dtype = torch.promote_types(torch.promote_types(rewards.dtype, values.dtype), torch.float32)
    # Column by column from the last: contiguous (N, B) makes each step one short read.
    keep = mask.T.contiguous()
    turn = turn_index.T.contiguous()
    reward = torch.where(mask, rewards.to(dtype), 0.0).T.contiguous()
    value = torch.where(mask, values.to(dtype), 0.0).T.contiguous()
    advantages = torch.zeros_like(value)

    # As tensors of this dtype: torch.where of two Python floats would round them to float32.
    gamma_in, gamma_out = value.new_tensor([gamma_token, gamma_turn])
    decay_in, decay_out = value.new_tensor([gamma_token * lambda_token, gamma_turn * lambda_turn])

    next_value = next_advantage = value.new_zeros(len(mask))
    next_turn = turn.new_full((len(mask),), -1)
    for t in reversed(range(mask.shape[1])):
        inside = turn[t] == next_turn
        gamma = torch.where(inside, gamma_in, gamma_out)
        decay = torch.where(inside, decay_in, decay_out)
        advantage = reward[t] + gamma * next_value - value[t] + decay * next_advantage
        advantages[t] = torch.where(keep[t], advantage, 0.0)
        next_advantage = torch.where(keep[t], advantage, next_advantage)
        next_value = torch.where(keep[t], value[t], next_value)
        next_turn = torch.where(keep[t], turn[t], next_turn)
    return advantages.T.contiguous(), (advantages + value).T.contiguous()


@torch.no_grad()
def whiten(
    advantages: Tensor, mask: Tensor, *, total: Callable[..., Sequence[float]] | None = None
) -> Tensor:
    """Shift to mean 0 and scale to (unbiased) variance 1 over the response tokens.

    Do this once over the whole rollout batch: over a micro-batch it would change the objective.
    A spread below ``NOISE`` is scaled as if it were that large, so it stays below 1.

    Args:
        advantages: (B, N).
        mask: (B, N) bool, True on response tokens.
        total: Given some numbers, returns the sum of each over all processes, so that a batch that
            they share is whitened as one; see ``Processes.total``.

    Returns:
        (B, N) in at least single precision, exactly 0 where ``mask`` is False. A single token or
        equal advantages give zeros.

    >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([[-0.7071,  0.7071,  0.0000]])
    """
    _check_shapes(mask, advantages=advantages)
    dtype = torch.promote_types(advantages.dtype, torch.float32)
    total = total or _alone
    picked = advantages[mask].double()
    count, sum_of_all = total(len(picked), float(picked.sum()))
    # From a mean in single precision, so that equal values are exactly 0 and not rounding over
    # rounding; what is left of the mean is small.
    shift = sum_of_all / max(count, 1.0)
    picked = picked - torch.tensor(shift, dtype=torch.float32, device=picked.device)
    rest, squares = total(float(picked.sum()), float(picked.square().sum()))
    rest /= max(count, 1.0)
    variance = max(squares - count * rest * rest, 0.0) / max(count - 1.0, 1.0)
    result = torch.zeros(advantages.shape, dtype=dtype, device=advantages.device)
    result[mask] = ((picked - rest) / max(math.sqrt(variance + 1e-8), NOISE)).to(dtype)
    return result


def _alone(*values: float) -> Sequence[float]:
    return [float(value) for value in values]


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Share of the variance of the returns that the critic explains: 1 - Var(R - V) / Var(R).

    Args:
        values: (B, N) what the critic said.
        returns: (B, N) what it should have said.
        mask: (B, N) bool, True on response tokens.

    Returns:
        1 for a perfect critic, 0 for a constant one, less for a worse; NaN if the returns are
        constant.

    >>> returns = torch.tensor([[1.0, 2.0, 3.0]])
    >>> explained_variance(returns + 5, returns, torch.ones(1, 3, dtype=torch.bool))
    1.0
    """
    _check_shapes(mask, values=values, returns=returns)
    target, guess = returns[mask].double(), values[mask].double()
    if len(target) == 0 or bool((target == target[0]).all()):
        return math.nan
    return 1.0 - float((target - guess).var() / target.var())


def _check_shapes(mask: Tensor, **tensors: Tensor) -> None:
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise ValueError(f"mask is {mask.dtype} of shape {tuple(mask.shape)}; use a (B, N) bool")
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; mask has {tuple(mask.shape)}, and both "
                "must be the same (B, N)"
            )
