"""Steps per second of the haystack, one environment and a vector of them, against rivals.

All of a row take turns in one process, in short rounds after a first one through many tasks; what
counts is the median of the ratios of a round, because the speed of a machine drifts.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np

SIDES = (56, 8)  # pixels of a frame: as by default, and the smallest that can be drawn in


def run_haystack(seconds: float) -> dict[str, Any]:
    """Random steps per second of the haystack at 56 pixels, and of an environment doing nothing.

    Doing nothing means: a fresh copy of a stored observation, and episodes that end by the same
    rule. The two take short turns, after a first round through all tasks; ``ratio`` is the median.
    """
    env = gym.make("gym_longvideo:LongVideoQA-v0", suite="haystack", frame_size=56)

    class NoOp(gym.Env):
        observation_space, action_space = env.observation_space, env.action_space
        stored = env.observation_space.sample()

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.turn = 0
            return self._observe(), {}

        def step(self, action):
            self.turn += 1
            return self._observe(), 0.0, bool(action[0] == 1 or self.turn == 3), False, {}

        def _observe(self):
            found = {key: value.copy() for key, value in self.stored.items()}
            return found | {"turn": np.array([self.turn])}

    def rate(one: Any, steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            _, _, terminated, truncated, _ = one.step(one.action_space.sample())
            if terminated or truncated:
                one.reset()
        return steps / (time.perf_counter() - started)

    noop = gym.make(gym.envs.registration.EnvSpec("NoOp-v0", entry_point=NoOp))  # type: ignore
    for one in (env, noop):
        one.action_space.seed(0)
        one.reset(seed=0)
        rate(one, 8000)
    pairs, started = [], time.perf_counter()
    while time.perf_counter() - started < 2 * seconds:
        pairs.append((rate(env, 500), rate(noop, 2000)))
    env.close()
    noop.close()
    haystack, nothing = np.median(pairs, axis=0)
    ratio = np.median([a / b for a, b in pairs])
    return {"haystack": float(haystack), "noop": float(nothing), "ratio": float(ratio)}


def run_vector(side: int, rounds: int, num_envs: int = 16, steps: int = 60) -> dict[str, float]:
    """How many times faster the native vector environment is than Gymnasium's.

    Args:
        side: Side of the frames in pixels.
        rounds: How often all three take their turn.
        num_envs: Environments of each vector.
        steps: Steps of each vector in a round, of the same random actions.

    Returns:
        By rival ("sync": ``SyncVectorEnv``, "async": ``AsyncVectorEnv``, both as they are by
        default), its time for the same steps over that of ours.
    """
    modes = {"ours": "vector_entry_point", "sync": "sync", "async": "async"}
    vectors = {
        name: gym.make_vec(
            "gym_longvideo:LongVideoQA-v0",
            num_envs=num_envs,
            vectorization_mode=mode,
            frame_size=side,
        )
        for name, mode in modes.items()
    }

    def seconds(name: str, actions: list[np.ndarray]) -> float:
        started = time.perf_counter()
        for action in actions:
            vectors[name].step(action)
        return time.perf_counter() - started

    space = vectors["ours"].action_space
    space.seed(0)
    for name, envs in vectors.items():
        envs.reset(seed=0)
        seconds(name, [space.sample() for _ in range(10 * steps)])
    ratios = []
    for _ in range(rounds):
        actions = [space.sample() for _ in range(steps)]
        spent = {name: seconds(name, actions) for name in vectors}
        ratios.append([spent[rival] / spent["ours"] for rival in ("sync", "async")])
    for envs in vectors.values():
        envs.close()
    sync, processes = np.median(ratios, axis=0)
    return {"sync": float(sync), "async": float(processes)}
