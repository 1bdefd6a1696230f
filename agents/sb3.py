"""Stable-Baselines3: a feature extractor that looks at every frame; a trained model as an agent.

No wrapper is needed, but SB3's default extractor flattens (F, H, W, 3) frames into one vector of
raw 0-255 values. ``FrameExtractor`` reads each frame with the same small network instead.

Left out on purpose: the question (it is not read, so use a suite whose question never changes, such
as the needle suite of ``examples/needle.py``, or extend ``forward``) and any memory: of earlier
turns only their number is known.

This is the only module of the package that imports stable_baselines3 (``pip install -e ".[sb3]"``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from agents.scripted import Agent
from gym_longvideo import checks
from gym_longvideo.env import LongVideoQAEnv

LEAST_SIDE = 8  # pixels that the two convolutions need
_WORKING_SIDE = 20  # larger frames are averaged down to about this, 8 of which a feature spans


class FrameExtractor(BaseFeaturesExtractor):
    """Features of every frame shown in a turn, for ``MultiInputPolicy`` of PPO, MaskablePPO, A2C.

    They are those of each slot (what was seen where), their maximum over slots (what was seen at
    all), the frames' places in the pool, and the turn: (B, F * (features + 1) + features +
    max_turns + 1) float32.

    Args:
        observation_space: The space of ``LongVideoQA-v0``: any pool size, number of turns and
            frames, and any frame size of 8 pixels or more. Frames of 40 pixels or more are averaged
            down to 20-39 first, so that a feature spans the same part of the picture.
        features: Features of one frame.

    Raises:
        ValueError: If the space is not that of the environment, or its frames are too small.

    Example:
        >>> from sb3_contrib import MaskablePPO
        >>> model = MaskablePPO(
        ...     "MultiInputPolicy",
        ...     "gym_longvideo:LongVideoQA-v0",
        ...     n_steps=64,
        ...     gamma=1.0,
        ...     policy_kwargs={
        ...         "features_extractor_class": FrameExtractor,
        ...         "features_extractor_kwargs": {"features": 16},
        ...         "net_arch": [128],
        ...     },
        ... )
        >>> model.policy.features_extractor.features_dim  # 16 frames, 3 turns
        292
    """

    def __init__(self, observation_space: spaces.Space, features: int = 16) -> None:
        count, side = _checked(observation_space)
        assert isinstance(observation_space, spaces.Dict)
        checks.whole("features", features, 1)
        self.turns = _most_turns(observation_space["turn"]) + 1
        super().__init__(observation_space, count * (features + 1) + features + self.turns)
        self.pool_size = spaces.flatdim(observation_space["seen"])
        self.shrink = nn.AvgPool2d(max(1, side // _WORKING_SIDE))
        self.look = nn.Sequential(
            nn.Conv2d(3, 32, kernel_size=4, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 32, kernel_size=2),
            nn.ReLU(),
        )
        self.describe = nn.Sequential(nn.Linear(64, features), nn.ReLU())

    def forward(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return (B, features_dim) float32.

        Args:
            observations: What SB3 makes of a batch of observations: ``frames`` (B, F, H, W, 3) and
                ``frame_index`` (B, F) and ``turn`` (B, 1) as they are.

        Raises:
            ValueError: If a turn is no whole number, because something normalised it.
        """
        frames = observations["frames"]
        batch, count = frames.shape[:2]
        shown = (observations["frame_index"] >= 0).float()
        pictures = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 255.0
        maps = self.look(self.shrink(pictures))
        # The maximum finds a card wherever it is held; the mean tells the scene.
        seen = torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], dim=1)
        slots = self.describe(seen).view(batch, count, -1) * shown[..., None]
        places = observations["frame_index"] / self.pool_size * shown
        turn = self._one_hot(observations["turn"])
        return torch.cat([slots.flatten(1), slots.amax(1), places, turn], dim=1)

    def _one_hot(self, turn: torch.Tensor) -> torch.Tensor:
        number = turn.flatten().long()
        if not torch.equal(number.to(turn.dtype), turn.flatten()):
            raise ValueError(
                f"turn={turn.flatten()[0].item()} is no whole number; FrameExtractor reads "
                "observations as they are: leave VecNormalize out, or give it norm_obs=False"
            )
        return nn.functional.one_hot(number, self.turns).float()


class SB3Agent(Agent):
    """A trained model of stable-baselines3 or sb3-contrib, acting greedily.

    Args:
        model: The model; it must have been trained on the numeric view without action wrappers.
            A masked one is given the environment's mask.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.name = type(model).__name__
        self._masked = self.name.startswith("Maskable")

    def reset(self, seed: int | None = None) -> None:
        """Do nothing: acting greedily draws nothing."""

    def act(self, env: LongVideoQAEnv, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the model's most likely action, (4,) int64."""
        extra = {"action_masks": env.action_masks()} if self._masked else {}
        return self.model.predict(observation, deterministic=True, **extra)[0]


def sb3_policy(model: Any) -> SB3Agent:
    """Return a trained model as an agent."""
    return SB3Agent(model)


def _most_turns(space: spaces.Space) -> int:
    """Return the largest number of turns that there can be."""
    if not isinstance(space, spaces.Box) or space.shape != (1,):
        raise ValueError(
            f"turn={space} must be Box(0, max_turns, (1,), int64); use LongVideoQA-v0's own"
        )
    return int(space.high[0])


def _checked(space: spaces.Space) -> tuple[int, int]:
    """Return the number of frames and the shorter side of a frame, if the space is ours."""
    needed = ("frames", "frame_index", "seen", "turn")
    if not isinstance(space, spaces.Dict):
        raise ValueError(
            f"FrameExtractor needs the Dict observation of LongVideoQA-v0, got {space}; leave out "
            "wrappers that change it, and use MultiInputPolicy"
        )
    if missing := [key for key in needed if key not in space.spaces]:
        raise ValueError(
            f"FrameExtractor needs {list(needed)} in the observation; {missing} missing from "
            f"{list(space.spaces)}. Leave out wrappers that change it"
        )
    shape = space["frames"].shape or ()
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"frames of shape {shape} are not (F, H, W, 3); use LongVideoQA-v0's own")
    if space["frame_index"].shape != shape[:1]:
        raise ValueError(
            f"frame_index of shape {space['frame_index'].shape} does not go with frames of shape "
            f"{shape}; it must be {shape[:1]}"
        )
    if min(shape[1:3]) < LEAST_SIDE:
        raise ValueError(
            f"frames of {shape[1]} x {shape[2]} pixels are too small for FrameExtractor; make the "
            f"environment with frame_size={LEAST_SIDE} or more"
        )
    return shape[0], min(shape[1:3])
