"""Mismatch: replies that another engine drew, whose probabilities are not quite ours.

A small one is numerics, and is made up for by weights: min(pi / mu, clip) of each token, pi ours
and mu the engine's (truncated importance sampling, as in IMPALA, arXiv 1802.01561). A large one
means that the engine did not run these weights; nothing can be learned from such a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from agents.experience import Experience
from agents.parallel import Processes
from agents.trajectory import Trajectory

# exp(20) is 5e8: no useful ratio is larger, and exp() of more overflows.
_MAX_LOG_RATIO = 20.0


class RolloutGapError(RuntimeError):
    """The engine that drew the replies of a batch does not run the policy that is trained."""


def importance_weights(
    old_log_probs: Tensor, rollout_log_probs: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """Return min(pi / mu, clip) of each token.

    Args:
        old_log_probs: (B, N) log pi, before the first step on the batch.
        rollout_log_probs: (B, N) log mu, as the engine said them.
        mask: (B, N) bool, True on response tokens.
        clip: The largest weight.

    Returns:
        (B, N) weights, 1 where ``mask`` is False.

    >>> pi, mu = torch.tensor([[0.2, 0.9, 0.5]]).log(), torch.tensor([[0.4, 0.3, 0.1]]).log()
    >>> importance_weights(pi, mu, torch.tensor([[True, True, False]]), 2.0)
    tensor([[0.5000, 2.0000, 1.0000]])
    """
    logratio = (old_log_probs - rollout_log_probs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return torch.where(mask, logratio.exp().clamp(max=clip), torch.ones_like(logratio))


def rollout_log_probs(batch: Experience, trajectories: Sequence[Trajectory]) -> Tensor:
    """Return (B, N) log-probabilities of response tokens at generation time, 0 elsewhere."""
    parts = [turn.reply.log_probs for each in trajectories for turn in each.turns]
    flat = torch.from_numpy(np.concatenate([*parts, np.zeros(0, np.float32)]))
    into = torch.zeros_like(batch.old_log_probs)
    return into.masked_scatter(batch.mask, flat.to(into.device, into.dtype))


def corrected(
    batch: Experience,
    trajectories: Sequence[Trajectory],
    metrics: Mapping[str, float],
    processes: Processes,
    *,
    limit: float,
    clip: float | None,
) -> tuple[Experience, dict[str, float]]:
    """Return a batch of another engine as it is learned from; all processes must ask together.

    Args:
        batch: As it was scored.
        trajectories: The same episodes.
        metrics: With ``rollout_gap``, over all processes.
        processes: All that learn from the batch.
        limit: The largest ``rollout_gap`` that is numerics.
        clip: The largest weight of a token; None for no weights.

    Returns:
        The batch with weighted advantages; ``rollout_is`` (the mean weight) and
        ``rollout_is_clipped`` (the share of tokens at the limit).

    Raises:
        RolloutGapError: In every process, if the gap is larger.
    """
    gap = metrics["rollout_gap"]
    if not gap <= limit:
        processes.agree(
            RolloutGapError(
                f"the log-probabilities of the replies differ by {gap:.3g} on average from those "
                f"of the policy, more than rollout_gap_limit={limit:g}: the servers do not run "
                "these weights; see their logs, or use a higher rollout_gap_limit if their number "
                "format explains it"
            )
        )
    if clip is None:
        return batch, {}
    said = rollout_log_probs(batch, trajectories)
    weights = importance_weights(batch.old_log_probs, said, batch.mask, clip)
    on_tokens = weights[batch.mask]
    count, total, clipped = processes.total(
        len(on_tokens), float(on_tokens.sum()), float((on_tokens >= clip).sum())
    )
    return batch._replace(advantages=batch.advantages * weights), {
        "rollout_is": total / max(count, 1.0),
        "rollout_is_clipped": clipped / max(count, 1.0),
    }
