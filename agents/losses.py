"""The losses of one optimiser step: clipped policy, clipped value, entropy; KL estimates.

Every loss is a sum of ``weight * term`` over tokens. The weights are computed once, from the mask
of the *whole* minibatch, and sliced with it: how a minibatch is cut into micro-batches then changes
no gradient. (A mean per micro-batch would silently turn a mean over tokens into one over
sequences.)

A token of weight 0 gets a gradient of exactly 0, whatever stands there, NaN and infinity included:
it is replaced before any arithmetic.

Tensors are (B, N): one row an episode, one column a token. ``log_probs`` must come from the
temperature and the suppressed tokens that sampling used.

Sources: PPO, arXiv 1707.06347, equation 7; its value clipping, openai/baselines ppo2; dual clip,
arXiv 1912.09729, equation 5; k1, k2 and k3, http://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["token-mean", "sequence-mean"]
KLKind = Literal["k1", "k2", "k3"]

# exp(20) is 5e8: no useful ratio is larger, and exp() of more overflows.
_MAX_LOG_RATIO = 20.0


def token_weights(
    mask: Tensor, aggregation: Aggregation = "token-mean", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return what each token counts in the losses of a minibatch.

    Args:
        mask: (B, N) bool, True on response tokens, of the whole minibatch.
        aggregation: "token-mean": all tokens count alike. "sequence-mean": all rows that have
            tokens count alike, and the tokens of a row alike.
        dtype: Number format of the result.

    Returns:
        (B, N) weights that sum to 1, 0 where ``mask`` is False.

    >>> token_weights(torch.tensor([[True, True], [True, False]]), "sequence-mean")
    tensor([[0.2500, 0.2500],
            [0.5000, 0.0000]])
    """
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise ValueError(f"mask is {mask.dtype} of shape {tuple(mask.shape)}; use a (B, N) bool")
    counts = mask.sum(1, keepdim=True)
    if aggregation == "token-mean":
        total = counts.sum()
    elif aggregation == "sequence-mean":
        total = counts * (counts > 0).sum()
    else:
        raise ValueError(
            f"aggregation={aggregation!r} is unknown; use one of {get_args(Aggregation)}"
        )
    return mask.to(dtype) / total.clamp(min=1)


def clipped_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's loss: sum of w max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)).

    The ratio is exp(log_probs - old_log_probs), its logarithm clamped to +-20.

    Args:
        log_probs: (B, N) log-probabilities of the sampled tokens under the present policy.
        old_log_probs: (B, N) the same under the policy that sampled them.
        advantages: (B, N) A.
        weights: (B, N) w; see ``token_weights``.
        clip_low: How far the ratio may fall below 1.
        clip_high: How far it may rise above 1; more than ``clip_low`` is "clip-higher".
        dual_clip: Where A < 0, a token's loss is at most ``-dual_clip * A``; ``None`` for no limit.

    Returns:
        The loss, and detached scalars: ``approx_kl`` (weighted k3 estimate of KL(old, new)),
        ``clipfrac`` (weighted share of tokens that the clip holds back) and ``ratio_max``. Over
        micro-batches the first two add up, the last is a maximum.

    Raises:
        ValueError: If a parameter has no meaning.
    """
    if not 0 <= clip_low < 1:
        raise ValueError(f"clip_low={clip_low!r} must lie in 0..1, 1 excluded; PPO uses 0.2")
    if not clip_high >= 0:
        raise ValueError(f"clip_high={clip_high!r} must be 0 or more; PPO uses 0.2")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip={dual_clip!r} must be greater than 1 (3 is usual), or None")
    counts = weights != 0
    logratio = _where(counts, log_probs) - _where(counts, old_log_probs)
    logratio = logratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    advantages = _where(counts, advantages)
    ratio = logratio.exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    terms = torch.maximum(free, clipped)
    if dual_clip is not None:
        terms = torch.where(advantages < 0, torch.minimum(terms, -dual_clip * advantages), terms)
    with torch.no_grad():
        stats = {
            "approx_kl": (weights * (ratio - 1 - logratio)).sum(),
            "clipfrac": (weights * (clipped > free)).sum(),
            "ratio_max": _where(counts, ratio).max() if counts.any() else weights.new_ones(()),
        }
    return (weights * terms).sum(), stats


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    weights: Tensor,
    *,
    value_clip: float | None = 0.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the critic, which may not gain by leaving its old value too far.

    Sum of w 0.5 max((v - R)^2, (clip(v, v_old - value_clip, v_old + value_clip) - R)^2).

    Args:
        values: (B, N) v, what the critic says now.
        old_values: (B, N) v_old, what it said when the advantages were computed.
        returns: (B, N) R.
        weights: (B, N) w; see ``token_weights``.
        value_clip: How far a value may move with profit; ``None`` for no limit.

    Returns:
        The loss, and detached scalars that add up over micro-batches: ``clipfrac`` (weighted share
        of tokens that the clip holds back) and ``error`` (weighted mean of (v - R)^2).

    Raises:
        ValueError: If ``value_clip`` is not positive.
    """
    if value_clip is not None and not value_clip > 0:
        raise ValueError(f"value_clip={value_clip!r} must be greater than 0, or None for no limit")
    counts = weights != 0
    values, returns = _where(counts, values), _where(counts, returns)
    terms = error = (values - returns).square()
    if value_clip is not None:
        old_values = _where(counts, old_values)
        near = torch.clamp(values, old_values - value_clip, old_values + value_clip)
        terms = torch.maximum(error, (near - returns).square())
    with torch.no_grad():
        stats = {
            "clipfrac": (weights * (terms > error)).sum(),
            "error": (weights * error).sum(),
        }
    return 0.5 * (weights * terms).sum(), stats


def entropy_loss(entropy: Tensor, weights: Tensor) -> Tensor:
    """Minus the weighted entropy: minimising it keeps the policy undecided.

    Args:
        entropy: (B, N) entropy of the distribution each token was sampled from.
        weights: (B, N); see ``token_weights``.

    Returns:
        A scalar; the caller multiplies it by its coefficient.
    """
    return -(weights * _where(weights != 0, entropy)).sum()


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, kind: KLKind = "k1") -> Tensor:
    """Estimate KL(policy, reference) from tokens that the policy sampled.

    With d = log_probs - ref_log_probs: k1 = d (unbiased), k2 = d^2 / 2 (biased, little variance),
    k3 = exp(-d) - 1 + d (unbiased, never negative; d clamped to +-20). As a penalty use k1 in the
    reward (``advantages.token_rewards``); differentiating an estimate as a loss is in general not
    the gradient of the divergence.

    Args:
        log_probs: (B, N) log-probabilities of the sampled tokens.
        ref_log_probs: (B, N) the same under the reference.
        kind: "k1", "k2" or "k3".

    Returns:
        (B, N) estimates, whatever they are where the inputs mean nothing.

    >>> lp, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-1.2, -1.5])
    >>> kl_estimate(lp, ref, "k2")
    tensor([0.0200, 0.1250])
    """
    difference = log_probs - ref_log_probs
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference.square()
    if kind == "k3":
        difference = difference.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
        return torch.exp(-difference) - 1 + difference
    raise ValueError(f"kind={kind!r} is unknown; use one of {get_args(KLKind)}")


def _where(counts: Tensor, tensor: Tensor) -> Tensor:
    return torch.where(counts, tensor, torch.zeros_like(tensor))
