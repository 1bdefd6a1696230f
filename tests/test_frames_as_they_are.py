"""Frames as they are: text views keep the aspect ratio of each video, numeric ones their Box."""

from __future__ import annotations

import json
import math

import gymnasium as gym
import numpy as np
import pytest
from agents_families import KINDS, family_dir
from agents_training import small
from clips import encode
from hypothesis import given
from hypothesis import strategies as st

from agents.config import TrainConfig
from agents.parallel import Processes
from agents.source import MadeFor, PolicySource, check_frames, frame_cost, frame_tokens
from agents.trainer import Trainer
from benchmarks.evaluate import evaluate
from benchmarks.runs import read_run
from gym_longvideo.settings import EnvSettings, EpisodeSettings
from gym_longvideo.suite import JsonlSuite
from gym_longvideo.wrappers import TextProtocol

SEEN = {"max_pixels": 128 * 28 * 28, "pixel_unit": 28}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three films: wide, tall and small, with a question each."""
    root = tmp_path_factory.mktemp("films")
    sizes = {"wide.mp4": (360, 640), "tall.mp4": (640, 360), "small.mp4": (64, 96)}
    for name, (height, width) in sizes.items():
        encode(root / name, size=(height, width), frames=60)
    asked = {"question": "?", "options": ["x", "y"], "answer": "A"}
    lines = [json.dumps({"video": name, "id": name, **asked}) for name in sizes]
    (root / "mine.jsonl").write_text("\n".join(lines))
    return JsonlSuite(root / "mine.jsonl")


def make(suite, **settings):
    settings = {"frame_budget": 8, "pool_size": 8, "frame_size": 56, **settings}
    return TextProtocol(gym.make("gym_longvideo:LongVideoQA-v0", suite=suite, **settings))


def images(env):
    parts = env.messages()[-1]["content"]
    return [part["image"] for part in parts if part["type"] == "image"]


@pytest.mark.parametrize(
    ("task", "shape"),
    [("wide.mp4", (224, 420)), ("tall.mp4", (420, 224)), ("small.mp4", (56, 84))],
)
def test_text_frames_have_the_shape_of_their_video(films, task, shape):
    env = make(films, **SEEN)
    observation, _ = env.reset(options={"task_id": task})
    shown = images(env)
    assert {image.shape for image in shown} == {(*shape, 3)} and len(shown) == 4
    assert observation["frames"].shape == (4, 56, 56, 3)
    # The numeric frames are the same pictures, fitted as ever.
    plain = make(films)
    fitted = plain.reset(options={"task_id": task})[0]["frames"]
    gap = np.abs(fitted.astype(int) - observation["frames"])
    assert gap.mean() < 3
    _, _, _, _, info = env.step("<think></think><retrieve>2, 6</retrieve>")
    assert {image.shape for image in images(env)} == {(*shape, 3)} and not info["malformed"]


def test_letterbox_is_of_the_numeric_frames_alone(films):
    env = make(films, fit="letterbox", **SEEN)
    observation, _ = env.reset(options={"task_id": "wide.mp4"})
    assert not observation["frames"][0, :8].any() and images(env)[0][:8].any()


def test_drawn_videos_have_their_shape_too():
    env = make("haystack", **SEEN)
    observation, _ = env.reset(seed=0)
    assert {image.shape for image in images(env)} == {(224, 224, 3)}
    assert np.array_equal(observation["frames"], make("haystack").reset(seed=0)[0]["frames"])


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.integers(4, 512), st.sampled_from([14, 28, 32])
)
def test_shapes_keep_to_unit_floor_ceiling_and_aspect(height, width, tokens, unit):
    settings = EpisodeSettings(max_pixels=tokens * unit * unit, pixel_unit=unit)
    tall, broad = settings.shape_of(height, width)
    assert tall % unit == broad % unit == 0 and tall * broad <= settings.max_pixels
    rows, columns = tall // unit, broad // unit
    if min(rows, columns) > 2 and rows * columns < tokens - max(rows, columns):
        assert abs(math.log(tall / broad) - math.log(height / width)) < 1 / min(rows, columns)
    if max(height, width) <= 8 * min(height, width):
        assert rows * columns >= 3  # four units, up to rounding


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_pixels": 3135}, "max_pixels=3135 must be"),
        ({"max_pixels": 10**5, "pixel_unit": 0}, "pixel_unit=0 must be"),
        ({"max_pixels": 2.5}, "max_pixels=2.5"),
    ],
)
def test_limits_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        EnvSettings(**settings)


def test_settings_without_limits_are_what_they_were():
    assert not {"max_pixels", "pixel_unit"} & set(EpisodeSettings().resolved())
    seen = EpisodeSettings(**SEEN)
    assert seen.resolved()["max_pixels"] == 100352
    (said,) = MadeFor().departures("tags", seen)[:1]
    assert "max_pixels=100352 (trained with None)" in said


def test_what_frames_cost_is_said_per_frame_turn_and_episode():
    seen = EpisodeSettings(frame_budget=32, **SEEN)
    assert frame_tokens(seen) == 128
    assert frame_cost(seen).endswith("is 128 tokens, a turn 2,048 at most, an episode 4,096")
    with pytest.raises(ValueError, match=r"pixel_unit=28 does not fit x.* use pixel_unit=32"):
        check_frames(seen, 32, "x")


@pytest.mark.parametrize(("kind", "unit"), [("qwen2_5_vl", 28), ("qwen3_vl", 32)])
def test_large_models_see_128_tokens_of_their_own_unit(kind, unit, monkeypatch):
    monkeypatch.setattr("agents.source._LARGE", 64)
    settings = PolicySource.of(family_dir(kind)).settings
    assert settings == {"frame_size": 224, "max_pixels": 128 * unit * unit, "pixel_unit": unit}
    config = TrainConfig(model=str(family_dir(kind)))
    assert config.made_for().settings.max_pixels == 128 * unit * unit


@pytest.mark.parametrize("kind", KINDS)
def test_families_train_and_play_with_frames_of_several_shapes(kind, films, tmp_path):
    unit = 28 if kind.startswith("qwen2") else 32
    seen = {"max_pixels": 24 * unit * unit, "pixel_unit": unit, "frame_budget": 4, "pool_size": 8}
    trainer = Trainer(
        small(
            tmp_path / "run", model=str(family_dir(kind)), suite=str(films.path), env=seen,
            suite_options={"split_by": "none"}, iterations=1, eval_every=0, envs=2, batch=3,
            max_new_tokens=4,
        ),
        processes=Processes("cpu"),
    )  # fmt: skip
    trainer.run()
    shapes = {key[0][:2] for key in trainer.policy.encoder._kept} or {(1, 1)}
    assert trainer.step == 1 and shapes
    summary = evaluate(
        str(tmp_path / "run"), str(films.path), out=tmp_path / "played", episodes=3,
        suite_options={"split_by": "none"}, policy_options={"device": "cpu"},
    )  # fmt: skip
    run = read_run(summary["directory"])
    assert summary["episodes"] == 3 and summary["faults"] == 0
    assert run.card.policy["frame_tokens"] == 24
    assert run.card.protocol["settings"]["pixel_unit"] == unit


def test_a_unit_that_is_not_the_models_is_refused(films, tmp_path):
    config = small(
        tmp_path / "run", model=str(family_dir("qwen3_vl")), suite=str(films.path),
        suite_options={"split_by": "none"}, eval_every=0, env={**SEEN, "frame_budget": 4},
    )  # fmt: skip
    with pytest.raises(ValueError, match="a token of 32 x 32 pixels; use pixel_unit=32"):
        Trainer(config, processes=Processes("cpu"))
