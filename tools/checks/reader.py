"""A network and a distribution for learners that take those of their users.

What ``agents.sb3.FrameExtractor`` is for SB3, without SB3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributions import Categorical, Distribution

from tools.checks import needle

WIDTH = 128


class Reader(nn.Module):
    """Maps observations of ``needle.make``, or vectors of ``needle.flat``, to (B, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        env = needle.make().unwrapped
        self.shape: tuple[int, ...] = env.observation_space["frames"].shape  # type: ignore[index]
        self.scales = (255.0, float(env.pool_size), float(env.max_turns))  # type: ignore[attr-defined]
        count, side = self.shape[:2]
        self.look = nn.Sequential(
            nn.Conv2d(3, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 32, side // 4), nn.ReLU(), nn.Flatten()
        )
        self.describe = nn.Sequential(nn.Linear(32, 16), nn.ReLU())
        self.mix = nn.Sequential(nn.Linear(count * 17 + 17, WIDTH), nn.Tanh())

    def forward(self, observation: Mapping[str, torch.Tensor] | torch.Tensor) -> torch.Tensor:
        """Return the features."""
        count = self.shape[0]
        if isinstance(observation, torch.Tensor):
            size = observation.shape[1] - count - 1
            frames, places, turn = observation.split([size, count, 1], dim=1)
        else:
            pixels, pool, turns = self.scales
            frames = observation["frames"].float() / pixels
            places = (observation["frame_index"].float() + 1) / pool
            turn = observation["turn"].float() / turns
        pictures = frames.reshape(-1, *self.shape[1:]).permute(0, 3, 1, 2)
        slots = self.describe(self.look(pictures)).view(-1, count, 16)
        slots = slots * (places > 0)[..., None]  # 0 stands for no frame
        return self.mix(torch.cat([slots.flatten(1), slots.amax(1), places, turn], dim=1))


class Parts(Distribution):
    """One categorical distribution for each part of an action."""

    stddev = torch.zeros(1)  # means nothing for actions, but Tianshou's collector reports it
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own declaration

    def __init__(self, logits: torch.Tensor, nvec: Sequence[int]) -> None:
        self.parts = [Categorical(logits=part) for part in logits.split(list(nvec), dim=-1)]
        super().__init__(logits.shape[:-1], torch.Size([len(nvec)]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Return (B, parts)."""
        return torch.stack([part.sample() for part in self.parts], dim=-1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return (B,)."""
        pairs = zip(self.parts, value.unbind(-1), strict=True)
        return torch.stack([part.log_prob(each) for part, each in pairs]).sum(0)

    def entropy(self) -> torch.Tensor:
        """Return (B,)."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)
