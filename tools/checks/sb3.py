"""Stable-Baselines3: its checker, algorithms and vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
    VecNormalize,
)

from agents.sb3 import FrameExtractor
from gym_longvideo.wrappers import ChannelStack
from tools.checks import needle
from tools.checks.rows import Checks

check = Checks("stable-baselines3")
READING: dict[str, Any] = {"features_extractor_class": FrameExtractor, "net_arch": [128]}
PPO_SETTINGS: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 4,
    "learning_rate": 4e-3,
    "gamma": 1.0,
    "ent_coef": 0.001,
    "seed": 0,
    "device": "cpu",
}
DQN_SETTINGS: dict[str, Any] = {
    "buffer_size": 10_000,
    "learning_starts": 500,
    "learning_rate": 1e-3,
    "train_freq": 4,
    "gradient_steps": 8,
    "target_update_interval": 200,
    "gamma": 1.0,
    "seed": 0,
    "device": "cpu",
}


def vector(make: Callable[[], gym.Env] = needle.make, count: int = 16) -> VecEnv:
    """Return a vector of environments in this process."""
    torch.set_num_threads(1)
    return DummyVecEnv([make] * count)


@check("check_env")
def checker() -> None:
    """Run SB3's checker; it warns that frames of 4 axes are no image to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*has an unconventional shape.*")
        check_env(gym.make(needle.ID, **needle.OPTIONS).unwrapped)


@check("PPO", how="as is, agents.sb3.FrameExtractor", trains=True)
def ppo() -> None:
    """Train PPO."""
    PPO("MultiInputPolicy", vector(), policy_kwargs=READING, **PPO_SETTINGS).learn(needle.steps())


@check("PPO, its own extractor")
def ppo_own() -> None:
    """Train PPO on flattened frames."""
    settings = {**PPO_SETTINGS, "batch_size": 64}
    PPO("MultiInputPolicy", vector(count=4), **settings).learn(256)


@check("A2C", how="as is, agents.sb3.FrameExtractor", trains=True)
def a2c() -> None:
    """Train A2C."""
    A2C(
        "MultiInputPolicy",
        vector(),
        n_steps=8,
        learning_rate=1e-3,
        gamma=1.0,
        ent_coef=0.003,
        policy_kwargs=READING,
        seed=0,
        device="cpu",
    ).learn(needle.steps())


@check("DQN", how="DiscreteIntervals, agents.sb3.FrameExtractor, buffer_size=10_000", trains=True)
def dqn() -> None:
    """Train DQN; its default buffer of a million wants 280 GiB at the default frame size."""
    DQN(
        "MultiInputPolicy",
        vector(needle.discrete, 8),
        policy_kwargs=READING,
        **DQN_SETTINGS,
    ).learn(needle.steps(0.5))


@check("DQN", limit="SB3's DQN takes Discrete actions alone")
def dqn_as_is() -> None:
    """Make DQN without a wrapper."""
    DQN("MultiInputPolicy", vector(), buffer_size=100, device="cpu")


@check("PPO, CnnPolicy", how="ChannelStack")
def cnn() -> None:
    """Train on stacked channels by SB3's network for images."""
    envs = vector(lambda: ChannelStack(needle.make(frame_size=40)), 4)
    PPO("CnnPolicy", envs, **{**PPO_SETTINGS, "batch_size": 64}).learn(256)


@check("PPO under VecNormalize, its defaults")
def normalize() -> None:
    """Normalise every part of the observation, and rewards."""
    envs = VecNormalize(vector(count=4), gamma=1.0)
    PPO("MultiInputPolicy", envs, **{**PPO_SETTINGS, "batch_size": 64}).learn(256)


@check(
    "PPO under VecNormalize",
    how="norm_obs=False, agents.sb3.FrameExtractor",
    trains=True,
)
def normalize_reward() -> None:
    """Normalise rewards alone: what reads frames wants them as they are."""
    envs = VecNormalize(vector(), norm_obs=False, gamma=1.0)
    PPO("MultiInputPolicy", envs, policy_kwargs=READING, **PPO_SETTINGS).learn(needle.steps())


@check("PPO under VecFrameStack, Dict")
def stack() -> None:
    """Stack observations."""
    envs = VecFrameStack(vector(count=4), n_stack=2)
    PPO("MultiInputPolicy", envs, **{**PPO_SETTINGS, "batch_size": 64}).learn(256)


@check("PPO under VecFrameStack, images", how="ChannelStack")
def stack_images() -> None:
    """Stack images."""
    envs = VecFrameStack(vector(lambda: ChannelStack(needle.make(frame_size=64)), 4), n_stack=2)
    PPO("CnnPolicy", envs, **{**PPO_SETTINGS, "batch_size": 64}).learn(256)


@check("PPO on SubprocVecEnv, spawn and forkserver")
def subprocesses() -> None:
    """Step environments in other processes."""
    for method in ("spawn", "forkserver"):
        envs = make_vec_env(
            needle.ID,
            n_envs=2,
            seed=0,
            env_kwargs=needle.OPTIONS,
            vec_env_cls=SubprocVecEnv,
            vec_env_kwargs={"start_method": method},
        )
        PPO("MultiInputPolicy", envs, **{**PPO_SETTINGS, "batch_size": 64}).learn(128)
        envs.close()


if __name__ == "__main__":
    check.main()
