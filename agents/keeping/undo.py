"""Undo: an update that broke half-way is taken back, so that the run stands between two again.

Only there a run can go on as if nothing had happened. Left out: updates of more weights than fit
into main memory beside everything else; of those the last checkpoint is what remains.
"""

from __future__ import annotations

from typing import Any

import torch

from agents.ppo import PPOLearner

_MOVED = ("actor_optimizer", "critic_optimizer", "bonus", "step")  # beside weights
LARGEST = 8 * 2**30  # bytes of weights and moments that are copied before each update


class Undo:
    """What an update may change, copied to main memory.

    Args:
        learner: As it is before the update.

    Attributes:
        possible: False if that is more than ``LARGEST``; then nothing was copied.
    """

    def __init__(self, learner: PPOLearner) -> None:
        self._parameters = [*learner.actor_parameters, *learner.critic_parameters]
        size = 3 * sum(p.numel() * p.element_size() for p in self._parameters)  # AdamW has two more
        self.possible = size <= LARGEST
        if self.possible:
            self._weights = [_copied(p) for p in self._parameters]
            whole = learner.state_dict()
            self._rest = _copied({k: v for k, v in whole.items() if k in _MOVED})
        self._learner = learner

    @torch.no_grad()
    def __call__(self) -> None:
        """Put everything back, if that is possible."""
        if self.possible:
            for parameter, weight in zip(self._parameters, self._weights, strict=True):
                parameter.copy_(weight)
            critic = self._learner.critic.state_dict()  # its weights are back already
            self._learner.load_state_dict({**self._rest, "critic": critic, "reference": None})


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value
