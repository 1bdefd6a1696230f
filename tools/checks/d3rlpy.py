"""d3rlpy: discrete SAC and DQN online, and a data set of episodes offline."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.models.encoders import EncoderFactory, register_encoder_factory
from torch import nn

from gym_longvideo.wrappers import ChannelStack
from tools.checks import needle
from tools.checks.reader import Reader
from tools.checks.rows import Checks

check = Checks("d3rlpy")


@dataclass()
class ReaderFactory(EncoderFactory):
    """Makes the network that reads frames."""

    def create(self, observation_shape: Any) -> nn.Module:
        """Return the network."""
        return Reader()

    @staticmethod
    def get_type() -> str:
        """Return the name under which d3rlpy saves it."""
        return "reader"


register_encoder_factory(ReaderFactory)


def online(env: Any, steps: int, **config: Any) -> None:
    """Train DQN online."""
    d3rlpy.seed(0)
    torch.set_num_threads(1)
    algorithm = d3rlpy.algos.DQNConfig(
        gamma=1.0, learning_rate=1e-3, target_update_interval=200, batch_size=64, **config
    ).create()
    with tempfile.TemporaryDirectory() as directory:
        algorithm.fit_online(
            env,
            buffer=d3rlpy.dataset.create_fifo_replay_buffer(limit=8192, env=env),
            explorer=d3rlpy.algos.LinearDecayEpsilonGreedy(end_epsilon=0.1, duration=steps // 2),
            n_steps=steps,
            n_steps_per_epoch=steps,
            update_interval=4,
            update_start_step=min(500, steps // 2),
            show_progress=False,
            logger_adapter=d3rlpy.logging.FileAdapterFactory(root_dir=directory),
        )


@check("DQN online, pixels", how="DiscreteIntervals, ChannelStack(channels_first=True)")
def pixels() -> None:
    """Train on stacked channels by its network for pixels."""
    env = ChannelStack(needle.discrete(frame_size=48), channels_first=True)
    online(env, 128)


@check("DQN online", how="DiscreteIntervals, FlatBox", trains=True)
def dqn() -> None:
    """Train on vectors."""
    online(needle.flat_discrete(), needle.steps(0.5), encoder_factory=ReaderFactory())


@check("CQL offline from recorded episodes", how="DiscreteIntervals, FlatBox")
def offline() -> None:
    """Train on a data set of random episodes."""
    env = needle.flat_discrete()
    env.action_space.seed(0)
    episodes = []
    for seed in range(32):
        observation, _ = env.reset(seed=seed)
        rows, over = [], False
        while not over:
            action = env.action_space.sample()
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, [action], [float(reward)]))
            observation, over = following, terminated or truncated
        columns = [np.array(column) for column in zip(*rows, strict=True)]
        episodes.append(d3rlpy.dataset.Episode(*columns, terminated=True))
    algorithm = d3rlpy.algos.DiscreteCQLConfig(batch_size=16).create()
    dataset = d3rlpy.dataset.create_infinite_replay_buffer(episodes)
    with tempfile.TemporaryDirectory() as directory:
        algorithm.fit(
            dataset,
            n_steps=16,
            n_steps_per_epoch=16,
            show_progress=False,
            logger_adapter=d3rlpy.logging.FileAdapterFactory(root_dir=directory),
        )
    assert algorithm.predict(episodes[0].observations[:1]).shape == (1,)


@check("DQN online, Dict", limit="d3rlpy takes arrays as observations, no Dict")
def as_is() -> None:
    """Train on the Dict."""
    online(needle.discrete(), 128)


if __name__ == "__main__":
    check.main()
