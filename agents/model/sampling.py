"""How replies are drawn, and what a reply is: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

Noise = torch.Generator | Mapping[Any, torch.Generator]  # one for all dialogues, or one for each


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. Nothing is taken from a model's own generation settings.

    Attributes:
        temperature: Divides the logits, in sampling and in every log-probability.
        top_p: Keeps the smallest set of ids with this probability; 1.0 keeps all. Below 1 the
            replies no longer come from the policy that is optimised (log-probabilities are those of
            the full softmax).
        top_k: Keeps the k likeliest ids; 0 keeps all.
        greedy: Always take the likeliest id.
        max_new_tokens: Longest reply; one that is cut there has no end token.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature} must be above 0; use greedy=True for no sampling"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]")
        if self.top_k < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"top_k={self.top_k} must be 0 or more and max_new_tokens={self.max_new_tokens} "
                "1 or more"
            )


class Reply(NamedTuple):
    """What the policy said in one turn.

    Attributes:
        ids: (n,) int64, up to and including the end token unless cut.
        log_probs: (n,) float32 at generation time; training recomputes its own.
        truncated: Whether the reply was cut at the token limit.
    """

    ids: np.ndarray
    log_probs: np.ndarray
    truncated: bool


def greedy(sampling: Sampling) -> Sampling:
    """Return the same limits without chance, for evaluation."""
    return replace(sampling, greedy=True)


def restrict(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Set logits outside the top k and outside the nucleus to -inf.

    The nucleus is the smallest set of likeliest ids whose probability reaches ``top_p``.

    >>> restrict(torch.tensor([[0.6, 0.25, 0.1, 0.05]]).log(), 0, 0.8).exp()
    tensor([[0.6000, 0.2500, 0.0000, 0.0000]])
    """
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probs = ordered.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p
        logits = logits.masked_fill(outside.gather(-1, order.argsort(-1)), -torch.inf)
    return logits
