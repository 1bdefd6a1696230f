"""An honest evaluation of any policy, and the table that compares several.

A policy is a function of the environment and its observation that returns an action. Those that
need no training are in ``agents/scripted.py``; of these only ``Random`` knows no more than an agent
sees.
"""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym

from agents.evaluation import Evaluation, NumericPolicy, play_agent
from gym_longvideo.env import LongVideoQAEnv


def evaluate(env: gym.Env, policy: NumericPolicy, episodes: int) -> Evaluation:
    """Run a policy on the first tasks of the environment's suite, each once."""
    base = env.unwrapped
    assert isinstance(base, LongVideoQAEnv)
    return play_agent(env, policy, range(min(episodes, len(base.suite))))


def table(scores: Mapping[str, Evaluation]) -> str:
    """Return a line for each policy: accuracy with its interval, mean turns and frames."""
    lines = [f"{'policy':15s}{'accuracy':>9s}  {'95 % interval':15s}{'turns':>7s}{'frames':>8s}"]
    for name, score in scores.items():
        low, high = score.ci95
        lines.append(
            f"{name:15s}{score.accuracy:9.3f}  {f'{low:.3f} to {high:.3f}':15s}"
            f"{score.turns:7.2f}{score.frames:8.2f}"
        )
    return "\n".join(lines)
