"""Minari: episodes recorded with their infos, read back, and the environment made again of them."""

from __future__ import annotations

import json
import os
import tempfile

import gymnasium as gym
import minari
import numpy as np

from tools.checks import needle
from tools.checks.rows import Checks

check = Checks("minari")


def recorded(env: gym.Env, directory: str, **options: bool) -> tuple[minari.MinariDataset, list]:
    """Record three random episodes; return the data set and the rewards that were seen."""
    os.environ["MINARI_DATASETS_PATH"] = directory
    collector = minari.DataCollector(env, **options)
    collector.action_space.seed(0)
    paid: list[float] = []
    for seed in range(3):
        collector.reset(seed=seed)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = collector.step(collector.action_space.sample())
            paid.append(float(reward))
            over = terminated or truncated
    dataset = collector.create_dataset("needle/random-v0")
    collector.close()
    return dataset, paid


@check("DataCollector with record_infos, load_dataset, recover_environment")
def with_infos() -> None:
    """Record, read back, and make the environment again."""
    with tempfile.TemporaryDirectory() as directory:
        env = gym.make(needle.ID, **needle.OPTIONS)
        _, paid = recorded(env, directory, record_infos=True)
        dataset = minari.load_dataset("needle/random-v0")
        episodes = list(dataset.iterate_episodes())
        assert len(episodes) == 3
        assert np.allclose(np.concatenate([each.rewards for each in episodes]), paid)
        for episode in episodes:
            assert episode.observations["frames"].shape[1:] == (8, 8, 8, 3)
            assert len(episode.infos["best_iou"]) == len(episode) + 1
        again = dataset.recover_environment()
        assert again.observation_space == env.observation_space
        settings = [each.unwrapped.settings for each in (again, env)]  # type: ignore[attr-defined]
        assert json.dumps(settings[0]) == json.dumps(settings[1])


@check("DataCollector", how="DiscreteIntervals, FlatBox")
def vectors() -> None:
    """Record vectors."""
    with tempfile.TemporaryDirectory() as directory:
        dataset, paid = recorded(needle.flat_discrete(), directory)
        assert dataset.total_steps == len(paid)


if __name__ == "__main__":
    check.main()
