"""Gymnasium: its checker, its wrappers and its vectors."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from gym_longvideo.wrappers import ChannelStack, FlatBox
from tools.checks import needle
from tools.checks.rows import Checks

check = Checks("gymnasium")


def played(env: gym.Env, episodes: int = 3) -> None:
    """Play episodes; every observation has to lie in the space."""
    env.action_space.seed(0)
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            assert env.observation_space.contains(observation)
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
        assert env.observation_space.contains(observation)
    env.close()


@check("check_env, no warning")
def checker() -> None:
    """Run Gymnasium's checker."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(needle.ID, **needle.OPTIONS).unwrapped)


@check("RecordEpisodeStatistics")
def statistics() -> None:
    """Count returns."""
    env = wrappers.RecordEpisodeStatistics(needle.make())
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array([1, 0, 0, 0]))
    assert np.isclose(info["episode"]["r"], reward) and info["episode"]["l"] == 1


@check("FlattenObservation")
def flatten() -> None:
    """Flatten; everything becomes one vector of the widest type."""
    played(wrappers.FlattenObservation(needle.make()))


@check("FrameStackObservation, Dict and ChannelStack")
def frame_stack() -> None:
    """Stack observations."""
    played(wrappers.FrameStackObservation(needle.make(), 3))
    played(wrappers.FrameStackObservation(ChannelStack(needle.make(frame_size=32)), 3))


@check("NormalizeObservation", limit="Gymnasium's takes one Box")
def normalize_dict() -> None:
    """Normalise the Dict."""
    played(wrappers.NormalizeObservation(needle.make()))


@check("NormalizeObservation", how="FlatBox")
def normalize() -> None:
    """Normalise a vector."""
    played(wrappers.NormalizeObservation(FlatBox(needle.make())))


@check("NormalizeReward, TransformReward, ClipReward")
def rewards() -> None:
    """Change rewards."""
    played(wrappers.NormalizeReward(needle.make(), gamma=1.0))
    played(wrappers.TransformReward(needle.make(), lambda reward: 2 * reward))
    played(wrappers.ClipReward(needle.make(), -1, 1))


@check("FilterObservation, DtypeObservation")
def keys() -> None:
    """Leave parts out; change the type of one."""
    played(wrappers.FilterObservation(needle.make(), ["frames", "turn"]))
    with np.errstate(over="ignore"):  # it casts the widest numbers of one type to the other
        played(wrappers.DtypeObservation(FlatBox(needle.make()), np.float16))


@check("TimeAwareObservation, DelayObservation")
def time() -> None:
    """Add the time; delay what is seen."""
    played(wrappers.TimeAwareObservation(gym.make(needle.ID, max_episode_steps=5)))
    played(wrappers.DelayObservation(ChannelStack(needle.make(frame_size=32)), 1))


@check("RecordVideo, RenderCollection, AddRenderObservation")
def rendering() -> None:
    """Write a film, collect pictures, observe them."""
    with tempfile.TemporaryDirectory() as directory:
        played(wrappers.RecordVideo(needle.make(render_mode="rgb_array"), directory), 1)
        assert list(Path(directory).glob("*.mp4"))
    played(wrappers.RenderCollection(needle.make(render_mode="rgb_array")), 1)
    played(wrappers.AddRenderObservation(needle.make(render_mode="rgb_array")), 1)


@check("Autoreset, OrderEnforcing, PassiveEnvChecker")
def order() -> None:
    """Wrap as gym.make does."""
    env = wrappers.Autoreset(wrappers.OrderEnforcing(wrappers.PassiveEnvChecker(needle.make())))
    env.reset(seed=0)
    for _ in range(6):
        env.step(np.array([1, 0, 0, 0]))
    env.close()


@check("SyncVectorEnv and AsyncVectorEnv (spawn, shared memory), three kinds of autoreset")
def vectors() -> None:
    """Step vectors side by side."""
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        traces = []
        for kind in (SyncVectorEnv, AsyncVectorEnv):
            extra = {"context": "spawn"} if kind is AsyncVectorEnv else {}
            envs = kind([needle.make] * 2, autoreset_mode=mode, **extra)
            observation, _ = envs.reset(seed=0)
            trace = [observation["frames"].copy()]
            for turn in range(4):
                action = np.array([[0, 0, 20, 0], [turn % 2, 3, 5, 1]])
                observation, rewards, _, _, infos = envs.step(action)
                trace += [observation["frames"].copy(), rewards, infos["best_iou"]]
            traces.append(trace)
            envs.close()
        assert all(np.array_equal(*pair) for pair in zip(*traces, strict=True))
    envs = SyncVectorEnv([needle.make] * 2, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    envs.step(np.array([[1, 0, 0, 0], [0, 3, 5, 1]]))
    envs.reset(options={"reset_mask": np.array([True, False])})
    envs.close()


@check("make_vec: the native vector, sync and async")
def make_vec() -> None:
    """Make vectors by the id; all say the same."""
    traces = []
    for mode in (None, "sync", "async"):
        envs = gym.make_vec(needle.ID, num_envs=2, vectorization_mode=mode, **needle.OPTIONS)
        observation, _ = envs.reset(seed=0)
        trace = [observation["frames"].copy()]
        for turn in range(4):
            action = np.array([[0, 0, 20, 0], [turn % 2, 3, 5, 1]])
            observation, rewards, _, _, infos = envs.step(action)
            trace += [observation["frames"].copy(), rewards, infos["best_iou"]]
        traces.append(trace)
        envs.close()
    assert all(np.array_equal(traces[0][i], each[i]) for each in traces for i in range(len(each)))


@check("vector wrappers: RecordEpisodeStatistics, DictInfoToList, FlattenObservation")
def vector_wrappers() -> None:
    """Wrap a vector."""
    envs = wrappers.vector.RecordEpisodeStatistics(SyncVectorEnv([needle.make] * 2))
    envs = wrappers.vector.DictInfoToList(wrappers.vector.FlattenObservation(envs))
    envs.reset(seed=0)
    *_, infos = envs.step(np.array([[1, 0, 0, 0], [1, 0, 0, 1]]))
    assert all("r" in info["episode"] for info in infos)
    envs.close()


if __name__ == "__main__":
    check.main()
