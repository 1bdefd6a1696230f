"""The needle task of ``examples/needle.py``, in a size that any learner can train on in a minute.

Frames are 8 pixels wide, so that thousands of steps a second are left for the learner. Success is
counted here and not asked of the library, so that all are measured alike.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from examples.needle import ENV_OPTIONS, SUITE_OPTIONS
from gym_longvideo.wrappers import DiscreteIntervals, FlatBox

ID = "gym_longvideo:LongVideoQA-v0"
FLAT_ID = "NeedleFlat-v0"  # for learners that take an id alone: vectors and discrete actions
OPTIONS: dict[str, Any] = {**ENV_OPTIONS, "suite_options": SUITE_OPTIONS, "frame_size": 8}
STEPS = 40_960
FLAT_KEYS = ("frames", "frame_index", "turn")  # what is read of an observation
N_BINS = 4  # parts of a video, where actions are discrete
SCALE = 1.0  # of the steps of training
ENDS: list[bool] = []  # success of every episode that ended in this process
COUNT = 0  # steps taken in this process


def steps(share: float = 1.0) -> int:
    """Return how many environment steps to train for, a multiple of 128."""
    return max(1, int(STEPS * share * SCALE / 128)) * 128


class Successes(gym.Wrapper):
    """Counts steps, and whether each episode ended in success."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        global COUNT
        stepped = super().step(action)
        COUNT += 1
        if stepped[2] or stepped[3]:
            ENDS.append(bool(stepped[4]["is_success"]))
        return stepped


def make(**options: Any) -> gym.Env:
    """Make the environment as it is.

    Args:
        **options: Keyword arguments of ``LongVideoQA-v0``.
    """
    return Successes(gym.make(ID, disable_env_checker=True, **{**OPTIONS, **options}))


def discrete(**options: Any) -> gym.Env:
    """Make it with discrete actions."""
    return DiscreteIntervals(make(**options), N_BINS)


def flat(**options: Any) -> gym.Env:
    """Make it with vectors as observations."""
    return FlatBox(make(**options), FLAT_KEYS)


def flat_discrete(**options: Any) -> gym.Env:
    """Make it with vectors as observations and discrete actions."""
    return FlatBox(discrete(**options), FLAT_KEYS)


gym.register(FLAT_ID, flat_discrete)
