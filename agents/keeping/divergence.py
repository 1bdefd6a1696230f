"""Divergence: when training has come to nothing, and going on would only spoil what there is."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping

import torch

from agents.parallel import own

logger = logging.getLogger(__name__)

MOST_LOST = 3  # updates in a row: one is lost to an odd batch, three are not


class DivergedError(ArithmeticError):
    """Weights are not finite, or no step can be taken any more."""


def not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Return the names of the tensors that hold a NaN or an infinity, as far as they are here."""
    names, flags = [], []
    for name, tensor in named:
        if tensor.is_floating_point() and tensor.element_size() > 1:  # bytes are quantised
            names.append(name)
            flags.append(own(tensor.detach()).isfinite().all())
    found = torch.stack([flag.cpu() for flag in flags]).tolist() if flags else []
    return [name for name, finite in zip(names, found, strict=True) if not finite]


def refuse(names: list[str], when: str) -> None:
    """Stop if there are weights that are not finite.

    Args:
        names: Their names.
        when: Where they were found: "after update 7".

    Raises:
        DivergedError: If there are any.
    """
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise DivergedError(
            f"{names[0]}{more} held NaN or infinity {when}: training has diverged; go on from an "
            "earlier checkpoint with a smaller ppo.actor_lr and ppo.critic_lr"
        )


class LostUpdates:
    """Counts updates in a row in which no gradient of the policy, or of the critic, was finite.

    Steps with such a gradient are skipped, so training goes on as if nothing were wrong.
    """

    def __init__(self) -> None:
        self._lost = {"policy": 0, "critic": 0}

    def count(self, metrics: Mapping[str, float], step: int) -> None:
        """Count an update.

        Args:
            metrics: What it said; a norm is NaN if all steps were skipped, absent if none was due.
            step: Updates done.

        Raises:
            DivergedError: If ``MOST_LOST`` in a row were lost.
        """
        for who, key in (("policy", "actor_grad_norm"), ("critic", "critic_grad_norm")):
            if key not in metrics:
                continue
            lost = self._lost[who] = self._lost[who] + 1 if math.isnan(metrics[key]) else 0
            if lost:
                logger.warning("update %d: no gradient of the %s was finite", step, who)
            if lost >= MOST_LOST:
                raise DivergedError(
                    f"in {lost} updates in a row, up to update {step}, no gradient of the {who} "
                    "was finite and every step was skipped: training has diverged; go on from an "
                    "earlier checkpoint with a smaller ppo.actor_lr and ppo.critic_lr"
                )
