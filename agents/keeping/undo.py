"""Undo: an update that broke half-way is taken back, so that the run stands between two again.

Only there a run can go on as if nothing had happened. Left out: updates of more weights than fit
into main memory beside everything else; of those the last checkpoint is what remains.
"""

from __future__ import annotations

import torch

from agents.parallel import own
from agents.ppo import PPOLearner

LARGEST = 8 * 2**30  # bytes of weights and moments that are copied before each update


class Undo:
    """What an update may change, copied to main memory: of sharded weights the part that is here.

    Args:
        learner: As it is before the update.

    Attributes:
        possible: False if that is more than ``LARGEST``; then nothing was copied.
    """

    def __init__(self, learner: PPOLearner) -> None:
        self._learner = learner
        moved = (*learner.actor_parameters, *learner.critic_parameters)
        # AdamW remembers two numbers a weight.
        self.possible = 3 * sum(own(p).nbytes for p in moved) <= LARGEST
        if self.possible:
            tensors = learner.tensors()
            self._tensors = {name: own(t).to("cpu", copy=True) for name, t in tensors.items()}
            self._rest = learner.counts()

    @torch.no_grad()
    def __call__(self) -> None:
        """Put everything back, if that is possible."""
        if not self.possible:
            return
        now = self._learner.tensors()
        if now.keys() != self._tensors.keys():  # the first update: nothing was remembered yet
            for optimizer in (self._learner.actor_optimizer, self._learner.critic_optimizer):
                optimizer.state.clear()
        for name, before in self._tensors.items():
            own(now[name]).copy_(before)
        self._learner.load_counts(self._rest)
