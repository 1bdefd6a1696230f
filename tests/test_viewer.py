"""The viewer: what is drawn is drawn anew, and drawing many frames at once changes no pixel."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import pytest

from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.haystack.video import SHADES, SPEEDS, STARTS, _background, _blocks

RETRIEVAL = np.array([0, 20, 90, 0])


def make(**kwargs):
    env = gym.make("gym_longvideo:LongVideoQA-v0", frame_size=16, **kwargs)
    return env, env.unwrapped


def test_scribbling_on_an_observation_changes_nothing_that_is_shown_later():
    env, base = make(render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    before, picture = base.viewer.frames.copy(), env.render()
    observation["frames"][:] = 99
    observation["seen"][:] = 0
    np.testing.assert_array_equal(base.viewer.frames, before)
    np.testing.assert_array_equal(env.render(), picture)
    after = env.step(RETRIEVAL)[0]
    assert after["seen"].sum() >= 16
    assert not (after["frames"] == 99).all()


@pytest.mark.parametrize("cache_mb", [0.0, 1.0])
def test_the_observation_holds_the_frames_of_the_viewer(cache_mb):
    env, base = make(cache_mb=cache_mb)
    observation, info = env.reset(seed=0)
    np.testing.assert_array_equal(observation["frames"], base.viewer.frames)
    observation, _, _, _, later = env.step(RETRIEVAL)
    count = len(base.viewer.frames)
    np.testing.assert_array_equal(observation["frames"][:count], base.viewer.frames)
    assert not observation["frames"][count:].any()
    new = observation["seen"].sum() - 16
    assert (info["frames_decoded"], later["frames_decoded"]) == (16, 16 + new)


@pytest.mark.parametrize("part", ["closed", "copied"])
def test_frames_are_drawn_again_after(part):
    _, base = make()
    base.reset(seed=0)
    before = base.viewer.frames
    if part == "closed":
        base.close()
    else:
        base = pickle.loads(pickle.dumps(base))
    np.testing.assert_array_equal(base.viewer.frames, before)


@pytest.mark.parametrize("side", [56, 160])  # below and above the size of one copy for all frames
def test_frames_drawn_at_once_are_those_drawn_block_by_block(side):
    suite = HaystackSuite("val", families="holistic", distractors=0, blocks=16)
    video = suite.open_video(suite[0])
    times = np.linspace(0.0, video.world.duration_s, 9)
    expected, block = [], side // 8
    for time_s in times:
        scene = video.world.scene_at(time_s)
        frame = _background(video.world.looks[scene], side, side).copy()
        for number in range(16):
            track = (video.world.motion + 37 * scene + number) % 256
            at = (STARTS[track] + SPEEDS[track] * time_s) % 2.0
            y, x = (np.where(at < 1.0, at, 2.0 - at) * (side - block)).astype(int)
            tile = _blocks(block)[SHADES[track]].view(np.uint8).reshape(block, block, 3)
            frame[y : y + block, x : x + block] = tile
        expected.append(frame)
    np.testing.assert_array_equal(video.read(times, size=(side, side)).frames, expected)
