"""Policies that need no training, and an honest evaluation of any policy.

A policy is a function of the environment and its observation that returns an action. The oracle and
the overview-only bound know the haystack's secrets; everything else sees what an agent sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from gym_longvideo.env import ANSWER, RETRIEVE, LongVideoQAEnv
from gym_longvideo.haystack import oracle

Policy = Callable[[LongVideoQAEnv, dict[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Score:
    """What a policy reached.

    Attributes:
        success: Share of right answers.
        ci95: Its 95 % interval (Wilson).
        turns: Mean turns of an episode.
        frames: Mean frames shown in an episode.
        episodes: Episodes run; those that a fault of the machinery ended are left out.
        faults: Episodes left out.
    """

    success: float
    ci95: tuple[float, float]
    turns: float
    frames: float
    episodes: int
    faults: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return {**asdict(self), "ci95": list(self.ci95)}


def evaluate(env: gym.Env, policy: Policy, episodes: int) -> Score:
    """Run a policy on the first tasks of the environment's suite, each once."""
    base = env.unwrapped
    assert isinstance(base, LongVideoQAEnv)
    right = turns = frames = faults = done = 0
    for index in range(min(episodes, len(base.suite))):
        observation, info = env.reset(seed=index, options={"index": index})
        over = False
        while not over:
            action = policy(base, observation)
            observation, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
        if info["infra_error"]:
            faults += 1
            continue
        done += 1
        right += info["is_success"]
        turns += info["turns"]
        frames += info["frames_shown"]
    count = max(done, 1)
    return Score(right / count, wilson(right, done), turns / count, frames / count, done, faults)


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion.

    >>> low, high = wilson(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    if total == 0:
        return 0.0, 1.0
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def random_policy(env: LongVideoQAEnv, observation: dict[str, np.ndarray]) -> np.ndarray:
    """Draw each part of the action evenly from what the mask allows."""
    sizes = env.action_space.nvec  # type: ignore[attr-defined]
    masks = np.split(env.action_masks(), np.cumsum(sizes)[:-1])
    return np.array([env.np_random.choice(np.flatnonzero(mask)) for mask in masks])


def overview_only_policy(env: LongVideoQAEnv, observation: dict[str, np.ndarray]) -> np.ndarray:
    """Answer at once, as well as anybody can from the overview: the bound for single-turn agents.

    If the overview proves the answer it is given; otherwise nothing in it helps (options are
    balanced), so the answer is drawn evenly.
    """
    episode = env.episode
    assert episode is not None
    known = oracle.solve(episode.task, observation["frame_time"][observation["frame_index"] >= 0])
    if known is None:
        known = int(env.np_random.integers(len(episode.task.options)))
    return np.array([ANSWER, 0, 0, known])


def oracle_policy(env: LongVideoQAEnv, observation: dict[str, np.ndarray]) -> np.ndarray:
    """Retrieve what is still missing, and answer as soon as the frames seen prove the answer."""
    episode = env.episode
    assert episode is not None
    seen = [*episode.overview_shown_s, *(t for log in episode.turns for t in log.shown_s)]
    known = oracle.solve(episode.task, seen)
    if known is None and episode.may_retrieve:
        wanted = oracle.oracle_intervals(
            episode.task, episode.pool_times, seen, frames=env.budget.retrieval
        )
        if wanted:
            return np.array([RETRIEVE, *wanted[0], 0])
    return np.array([ANSWER, 0, 0, known or 0])


def sb3_policy(model: Any) -> Policy:
    """Return the greedy policy of a stable-baselines3 or sb3-contrib model."""
    masked = type(model).__name__.startswith("Maskable")

    def act(env: LongVideoQAEnv, observation: dict[str, np.ndarray]) -> np.ndarray:
        extra = {"action_masks": env.action_masks()} if masked else {}
        return model.predict(observation, deterministic=True, **extra)[0]

    return act
