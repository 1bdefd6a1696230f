"""Frames kept between episodes: in memory, shared by environments, and on disk."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.haystack.export import export_suite


@pytest.fixture(scope="module")
def annotation(tmp_path_factory):
    suite = HaystackSuite("val", families="needle", duration_s=60, size=2)
    return str(export_suite(suite, tmp_path_factory.mktemp("export"), size=(32, 32)))


def look(annotation, **options):
    """Return the overview of a fresh environment, and how many frames it took to decode."""
    env = gym.make("gym_longvideo:LongVideoQA-v0", suite=annotation, frame_size=16, **options)
    observation, info = env.reset(seed=0, options={"index": 0})
    env.close()
    return observation["frames"], info["frames_decoded"]


def test_environments_of_a_process_share_a_memory_cache(annotation):
    frames, decoded = look(annotation, cache_mb=3)
    again, decoded_again = look(annotation, cache_mb=3)
    assert decoded >= 16 and decoded_again == 0
    np.testing.assert_array_equal(frames, again)
    assert look(annotation, cache_mb=0)[1] == decoded


def test_a_disk_cache_outlives_the_environment(annotation, tmp_path):
    frames, decoded = look(annotation, cache_dir=str(tmp_path))
    again, decoded_again = look(annotation, cache_dir=str(tmp_path))
    assert decoded >= 16 and decoded_again == 0
    np.testing.assert_array_equal(frames, again)
    assert list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_other_backends_play_the_same_episode(annotation, backend):
    pytest.importorskip(backend, exc_type=(ImportError, RuntimeError))
    frames, _ = look(annotation, seek="exact")
    others, _ = look(annotation, seek="exact", backend=backend)
    # Their scalers differ from ours; the pictures are the same.
    assert np.abs(frames.astype(int) - others).mean() < 12


def test_an_isolated_decoder_plays_the_same_episode(annotation):
    np.testing.assert_array_equal(look(annotation)[0], look(annotation, isolate=True)[0])
