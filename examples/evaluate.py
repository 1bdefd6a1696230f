"""An honest evaluation of any policy, and the table that compares several.

A policy is a function of the environment and its observation that returns an action. Those that
need no training are in ``agents/scripted.py``; of these only ``Random`` knows no more than an agent
sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from agents.confidence import wilson
from agents.scripted import Agent
from gym_longvideo.env import LongVideoQAEnv

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
    """Run a policy on the first tasks of the environment's suite, each once.

    Agents are seeded anew for every task, so that what they draw does not depend on the tasks
    before it.
    """
    base = env.unwrapped
    assert isinstance(base, LongVideoQAEnv)
    right = turns = frames = faults = done = 0
    for index in range(min(episodes, len(base.suite))):
        observation, info = env.reset(seed=index, options={"index": index})
        if isinstance(policy, Agent):
            policy.reset(index)
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


def table(scores: Mapping[str, Score]) -> str:
    """Return a line for each policy: success with its interval, mean turns and frames.

    >>> print(table({"coin": Score(0.5, wilson(8, 16), 1.0, 4.0, 16)}))
    policy           success  95 % interval    turns  frames
    coin               0.500  0.280 to 0.720    1.00    4.00
    """
    lines = [f"{'policy':15s}{'success':>9s}  {'95 % interval':15s}{'turns':>7s}{'frames':>8s}"]
    for name, score in scores.items():
        low, high = score.ci95
        lines.append(
            f"{name:15s}{score.success:9.3f}  {f'{low:.3f} to {high:.3f}':15s}"
            f"{score.turns:7.2f}{score.frames:8.2f}"
        )
    return "\n".join(lines)
