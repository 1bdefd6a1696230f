"""Train PPO or MaskablePPO on LongVideoQA, with a small per-frame extractor.

    python -m examples.train_sb3 --algo maskable --seconds 120

The environment needs no wrapper. Only the feature extractor is ours: stable-baselines3's default
one would flatten the frames into a vector of raw 0-255 values. Episodes are at most ``max_turns``
steps, so short rollouts (``n_steps``) and a discount of 1 are right.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

import gym_longvideo  # noqa: F401 - registers the ids
from examples.evaluate import evaluate, sb3_policy
from examples.needle import ENV_OPTIONS, SUITE_OPTIONS


class FrameExtractor(BaseFeaturesExtractor):
    """Looks at every frame with one small network.

    The features are those of each slot (what was seen where), their maximum over slots (what was
    seen at all), the frames' places in the pool, and the turn.

    Args:
        observation_space: The environment's.
        features: Features of one frame.
    """

    def __init__(self, observation_space: spaces.Dict, features: int = 16) -> None:
        count, *_ = observation_space["frames"].shape  # type: ignore[misc]
        turns = spaces.flatdim(observation_space["turn"])
        super().__init__(observation_space, count * (features + 1) + features + turns)
        self.pool_size = spaces.flatdim(observation_space["seen"])
        self.look = nn.Sequential(
            nn.Conv2d(3, 32, kernel_size=4, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 32, kernel_size=2),
            nn.ReLU(),
        )
        self.describe = nn.Sequential(nn.Linear(64, features), nn.ReLU())

    def forward(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return (B, features_dim)."""
        frames = observations["frames"]  # (B, F, H, W, 3)
        batch, count = frames.shape[:2]
        shown = (observations["frame_index"] >= 0).float()
        maps = self.look(frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 255.0)
        # The maximum finds a card wherever it is held; the mean tells the scene.
        seen = torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], dim=1)
        slots = self.describe(seen).view(batch, count, -1) * shown[..., None]
        places = observations["frame_index"] / self.pool_size * shown
        turn = observations["turn"].flatten(1)
        return torch.cat([slots.flatten(1), slots.amax(1), places, turn], dim=1)


class Clock(BaseCallback):
    """Ends training after some seconds or steps, and says how it goes."""

    def __init__(self, seconds: float, steps: int) -> None:
        super().__init__()
        self.seconds, self.steps = seconds, steps
        self.started, self.said = time.monotonic(), 0.0
        self.ends: list[bool] = []

    def _on_training_start(self) -> None:
        self.started = time.monotonic()

    def _on_step(self) -> bool:
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done:
                self.ends.append(info["is_success"])
        spent = time.monotonic() - self.started
        if spent - self.said >= 5.0:
            self.said = spent
            recent = self.ends[-500:]
            done = min(1.0, max(spent / self.seconds, self.num_timesteps / self.steps))
            print(
                f"\rtraining {done:4.0%}, {spent * (1 / done - 1):.0f} s left   "
                f"{self.num_timesteps:7d} steps   "
                f"{self.num_timesteps / spent:5.0f} steps/s   "
                f"success while exploring {sum(recent) / max(len(recent), 1):.2f}",
                end="",
                flush=True,
            )
        return spent < self.seconds

    def _on_training_end(self) -> None:
        print()


def train(
    env_options: Mapping[str, Any],
    *,
    algo: str = "maskable",
    seconds: float = 120.0,
    steps: int = 10**9,
    seed: int = 0,
    n_envs: int = 16,
    n_steps: int = 32,
    tensorboard: str | None = None,
) -> PPO | MaskablePPO:
    """Train on ``LongVideoQA-v0`` and return the model.

    Args:
        env_options: Keyword arguments of the environment.
        algo: "ppo" or "maskable".
        seconds: Wall-clock limit.
        steps: Limit of environment steps.
        seed: Seed of everything.
        n_envs: Environments stepped side by side.
        n_steps: Steps of each between updates.
        tensorboard: Directory of the TensorBoard log.
    """
    venv = DummyVecEnv(
        [
            lambda: gym.make(
                "gym_longvideo:LongVideoQA-v0", disable_env_checker=True, **env_options
            )
            for _ in range(n_envs)
        ]
    )
    model = {"ppo": PPO, "maskable": MaskablePPO}[algo](
        "MultiInputPolicy",
        venv,
        n_steps=n_steps,
        batch_size=min(256, n_envs * n_steps),
        n_epochs=4,
        learning_rate=4e-3,
        gamma=1.0,
        ent_coef=0.001,
        seed=seed,
        policy_kwargs={"features_extractor_class": FrameExtractor, "net_arch": [128]},
        tensorboard_log=tensorboard,
        device="cpu",
    )
    try:
        model.learn(steps, callback=Clock(seconds, steps))
    finally:
        venv.close()
    return model


def main() -> None:
    """Train on haystack and evaluate on videos that training never saw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algo", choices=["ppo", "maskable"], default="maskable")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-envs", type=int, default=16)
    parser.add_argument("--n-steps", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=256, help="episodes of the evaluation")
    parser.add_argument("--tensorboard", help="directory of a TensorBoard log")
    args = parser.parse_args()
    torch.set_num_threads(1)  # networks this small lose by more, on a busy machine a lot
    options = {**ENV_OPTIONS, "suite_options": SUITE_OPTIONS}
    model = train(
        {**options, "split": "train"},
        algo=args.algo,
        seconds=args.seconds,
        steps=args.steps,
        seed=args.seed,
        n_envs=args.n_envs,
        n_steps=args.n_steps,
        tensorboard=args.tensorboard,
    )
    env = gym.make("gym_longvideo:LongVideoQA-v0", **{**options, "split": "val"})
    print(evaluate(env, sb3_policy(model), args.episodes))


if __name__ == "__main__":
    main()
