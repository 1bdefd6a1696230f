"""AgileRL: PPO and a population of DQN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from agilerl.algorithms import DQN, PPO
from agilerl.components.replay_buffer import ReplayBuffer
from agilerl.training.train_off_policy import train_off_policy
from agilerl.training.train_on_policy import train_on_policy
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gym_longvideo.wrappers import ChannelStack
from tools.checks import needle
from tools.checks.rows import Checks

check = Checks("agilerl")


def vector(make: Callable[[], gym.Env], count: int = 16) -> SyncVectorEnv:
    """Return a vector of environments in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return SyncVectorEnv([make] * count, autoreset_mode=AutoresetMode.SAME_STEP)


def ppo(make: Callable[[], gym.Env], steps: int, count: int = 16, **config: Any) -> None:
    """Train PPO."""
    envs = vector(make, count)
    learn_step = 32 * count
    agent = PPO(
        envs.single_observation_space,
        envs.single_action_space,
        num_envs=count,
        learn_step=learn_step,
        batch_size=min(256, learn_step),
        gamma=1.0,
        lr=2e-3,
        ent_coef=0.003,
        **config,
    )
    train_on_policy(
        envs, "Needle", "PPO", [agent], max_steps=steps, evo_steps=steps, eval_steps=8,
        verbose=False,
    )  # fmt: skip


@check("PPO, Dict", limit="its network for Dict takes no parts of four axes, as frames are")
def as_is() -> None:
    """Train on the Dict."""
    ppo(needle.make, 256, count=4)


@check("PPO, pixels", how="ChannelStack(channels_first=True)")
def pixels() -> None:
    """Train on stacked channels by its network for pixels."""
    ppo(lambda: ChannelStack(needle.make(frame_size=40), channels_first=True), 256, count=4)


@check("PPO", how="FlatBox", trains=True)
def flat() -> None:
    """Train on vectors by its own network."""
    ppo(needle.flat, needle.steps())


@check("DQN", how="DiscreteIntervals, FlatBox", trains=True)
def dqn() -> None:
    """Train DQN on vectors by its own network."""
    steps, count = needle.steps(0.5), 8
    envs = vector(needle.flat_discrete, count)
    agent = DQN(
        envs.single_observation_space,
        envs.single_action_space,
        batch_size=64,
        lr=1e-3,
        learn_step=8,
        gamma=1.0,
    )
    train_off_policy(
        envs, "Needle", "DQN", [agent], ReplayBuffer(10_000), max_steps=steps, evo_steps=steps,
        eval_steps=8, verbose=False,
    )  # fmt: skip


if __name__ == "__main__":
    check.main()
