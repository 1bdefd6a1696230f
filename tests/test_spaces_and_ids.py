"""Every registered id: checkers, JSON specs, pickling, determinism, rendering, a fresh process."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence

import gym_longvideo

IDS = ["LongVideoQA-v0", gym_longvideo.RELEASED_ID, *gym_longvideo.HAYSTACK_IDS]
TINY = {"frame_budget": 8, "pool_size": 16, "frame_size": 8}


def test_registering_again_changes_nothing():
    before = dict(gym.registry)
    gym_longvideo._register()
    assert dict(gym.registry) == before


@pytest.mark.parametrize("name", IDS)
def test_an_id_passes_gymnasiums_checker_without_a_warning(name):
    check_env(gym.make(name, **TINY).unwrapped, skip_render_check=True)


def test_the_checker_finds_nothing_wrong_with_rendering():
    check_env(gym.make("LongVideoQA-v0", render_mode="rgb_array", **TINY).unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_an_id_passes_the_checker_of_stable_baselines3_but_for_its_remark_on_shapes(name):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checker.check_env(gym.make(name, **TINY))
    messages = [str(warning.message) for warning in caught]
    assert all("unconventional shape" in message for message in messages), messages
    assert len(messages) <= 1


@pytest.mark.parametrize("name", IDS)
def test_the_spec_of_an_id_survives_json(name):
    env = gym.make(name, **TINY)
    line = env.spec.to_json()
    assert json.loads(line)["id"] == name
    again = EnvSpec.from_json(line).make()
    assert again.observation_space == env.observation_space
    assert again.unwrapped.settings == env.unwrapped.settings
    assert again.unwrapped.suite.settings() == env.unwrapped.suite.settings()


def test_a_spec_with_every_kind_of_argument_survives_json():
    kwargs = {
        "suite_options": {"families": ["needle", "chain"], "size": 5, "duration_s": 120.0},
        "reward": {"preset": "ungated", "penalty": 1.0},
        "shard": [1, 2],
        "frame_size": [8, 12],
        "frame_budget": None,
        "overview_frames": 3,
        "frames_per_retrieval": 2,
        "retrieval": "timeline",
        "render_mode": "ansi",
    }
    env = gym.make("LongVideoQA-v0", **kwargs)
    again = EnvSpec.from_json(env.spec.to_json()).make()
    assert again.unwrapped.settings == env.unwrapped.settings
    assert data_equivalence(again.reset(seed=0)[1], env.reset(seed=0)[1])


@pytest.mark.parametrize("name", IDS)
def test_a_pickled_id_goes_on_identically(name):
    env = gym.make(name, **TINY)
    env.reset(seed=1)
    copy = pickle.loads(pickle.dumps(env))
    action = np.array([0, 3, 9, 0])
    for result, expected in zip(copy.step(action), env.step(action), strict=True):
        assert _equal(result, expected)


@pytest.mark.parametrize("name", IDS)
def test_two_environments_of_an_id_agree_on_a_whole_rollout(name):
    a, b = gym.make(name, **TINY), gym.make(name, **TINY)
    a.action_space.seed(7)
    assert all(map(_equal, a.reset(seed=7), b.reset(seed=7)))
    for _ in range(30):
        action = a.action_space.sample()
        left, right = a.step(action), b.step(action)
        assert all(map(_equal, left, right))
        assert a.observation_space.contains(left[0])
        if left[2] or left[3]:
            assert all(map(_equal, a.reset(), b.reset()))


@pytest.mark.parametrize("name", IDS)
def test_every_render_mode_of_an_id_draws(name):
    for mode in gym.make(name, **TINY).metadata["render_modes"]:
        env = gym.make(name, render_mode=mode, **TINY)
        env.reset(seed=0)
        picture = env.render()
        if mode == "ansi":
            assert isinstance(picture, str) and "overview" in picture
        else:
            assert picture.shape == (720, 1280, 3) and picture.dtype == np.uint8
        env.close()


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_prefixed_id_works_in_a_fresh_process_without_heavy_imports():
    code = """
import sys, gymnasium
env = gymnasium.make("gym_longvideo:LongVideoQA-v0", frame_size=8)
env.reset(seed=0)
env.step(env.action_space.sample())
heavy = {"torch", "transformers", "agents", "benchmarks", "decord", "torchcodec", "PIL", "pandas"}
print(sorted(heavy & sys.modules.keys()))
"""
    assert run(code).strip() == "[]"


def test_importing_registers_the_default_and_every_family_of_the_haystack_and_no_more():
    code = """
import gymnasium
before = set(gymnasium.registry)
import gym_longvideo
print(*sorted(set(gymnasium.registry) - before))
"""
    assert run(code).split() == sorted(IDS)
    assert "LongVideo/Haystack-Needle-v0" in IDS and len(IDS) == 10


def _equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else a == b
