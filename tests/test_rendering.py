"""Pictures of an episode: one fixed canvas, and nothing given away before the end."""

from __future__ import annotations

import numpy as np
import pytest
from worlds import GreySuite

from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.rendering import OUTCOMES, SEGMENT, TURN_COLOURS

RIGHT = np.array([1, 0, 0, 0])
LOOK = np.array([0, 8, 9, 0])


def make(mode="rgb_array", suite=None, **kwargs):
    settings = {"frame_budget": 8, "pool_size": 20, "frame_size": 8, "order": "sequential"}
    env = LongVideoQAEnv(suite or GreySuite(), render_mode=mode, **{**settings, **kwargs})
    env.reset(seed=0)
    return env


def count(picture, colour):
    return int((picture == np.array(colour, np.uint8)).all(axis=2).sum())


def assert_canvas(picture):
    assert picture.shape == (720, 1280, 3) and picture.dtype == np.uint8
    assert np.ptp(picture) > 150  # something is drawn


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"options": ("only",), "answer_index": 0},
        {"options": tuple(f"option number {i}" for i in range(12))},
        {"options": tuple(f"option {i}" for i in range(26))},
        {"question": "Why? " * 4000},
        {"question": "W" * 20_000},
        {"options": ("x" * 5000, "y\nz\n" * 50)},
        {"question": "第几个视频里有狗\n🎬", "options": ("甲", "乙")},
        {"segments_s": ()},
        {"answer_index": None},
        {"segments_s": ((0.0, 0.001), (99.0, 100.0))},
    ],
)
def test_the_canvas_has_one_size_whatever_the_task(fields):
    env = make(suite=GreySuite(**fields), max_options=26)
    for action in (None, LOOK, RIGHT):
        if action is not None:
            env.step(action)
        assert_canvas(env.render())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"overview_frames": 0},
        {"frame_budget": 80, "pool_size": 100},
        {"frame_size": (4, 40)},
        {"frame_size": (300, 2)},
        {"frame_size": 1},
        {"pool_size": 1},
        {"retrieval": "timeline"},
        {"max_turns": 9, "frame_budget": None, "overview_frames": 2, "frames_per_retrieval": 1},
    ],
)
def test_the_canvas_has_one_size_whatever_the_settings(kwargs):
    env = make(**kwargs)
    assert_canvas(env.render())
    for _ in range(env.max_turns):
        env.step(np.array([0, 0, env.pool_size - 1, 0]))
        assert_canvas(env.render())
    assert env.episode.outcome == "unanswered"


def test_segments_are_drawn_only_after_the_end():
    env = make()
    before = [env.render()]
    env.step(LOOK)
    before.append(env.render())
    assert [count(picture, SEGMENT) for picture in before] == [0, 0]
    env.step(RIGHT)
    # 40-50 s of 100 s on a bar 1232 pixels wide and 34 high, but for what was shown there.
    assert 2000 < count(env.render(), SEGMENT) < 124 * 35 + 200


def test_the_right_option_is_marked_only_after_the_end():
    env = make()
    assert count(env.render(), OUTCOMES["correct"]) == 0
    env.step(RIGHT)
    assert count(env.render(), OUTCOMES["correct"]) > 20


def test_a_wrong_answer_is_marked_beside_the_right_one():
    env = make()
    env.step(np.array([1, 0, 0, 1]))
    picture = env.render()
    assert count(picture, OUTCOMES["wrong"]) > 20 and count(picture, OUTCOMES["correct"]) > 20


def test_the_picture_before_the_end_does_not_depend_on_answer_or_segments():
    pictures = []
    for answer, segments in ((0, ((40.0, 50.0),)), (1, ((80.0, 99.0),))):
        env = make(suite=GreySuite(options=("x", "y"), answer_index=answer, segments_s=segments))
        pictures.append(env.render())
    assert np.array_equal(*pictures)


def test_the_frames_of_this_turn_are_on_the_sheet():
    env = make()
    picture = env.render()
    for value in (12, 37, 62, 87):
        assert count(picture, (value,) * 3) > 1000
    env.step(LOOK)
    picture = env.render()
    assert count(picture, (42,) * 3) > 1000 and count(picture, (12,) * 3) < 200


def test_each_turn_has_its_colour_on_the_timeline():
    env = make(max_turns=4)
    assert count(env.render(), TURN_COLOURS[0]) == 0
    env.step(LOOK)
    assert count(env.render(), TURN_COLOURS[0]) > 100
    assert count(env.render(), TURN_COLOURS[1]) == 0


def test_rendering_changes_nothing():
    env, twin = make(), make()
    for action in (LOOK, RIGHT):
        first, second = env.render(), env.render()
        assert np.array_equal(first, second)
        result, expected = env.step(action), twin.step(action)
        assert result[1:4] == expected[1:4]
        assert np.array_equal(result[0]["frames"], expected[0]["frames"])


def test_text_shows_question_options_and_what_was_seen():
    env = make("ansi")
    assert env.render() == "\n".join(
        [
            "Which grey is it in video 0?",
            "  A. dark",
            "  B. middle",
            "[..o....o....o....o..] overview",
            "turn 1 of 3, 4 frames left",
        ]
    )


def test_text_keeps_the_relevant_frames_until_the_end():
    env = make("ansi")
    env.step(LOOK)
    assert "#" not in env.render() and "relevant" not in env.render()
    env.step(np.array([1, 0, 0, 3]))
    env.step(RIGHT)
    lines = env.render().splitlines()
    assert lines[4:] == [
        "[........11..........] retrieved 8-9, IoU 1.00",
        "[....................] malformed: choice 3 does not exist; there are 2",
        "[....................] answered A",
        "[........##..........] relevant",
        "correct, reward 1.700, 6 frames shown",
    ]


def test_text_of_a_long_pool_stays_narrow():
    env = make("ansi", suite=GreySuite(frames=1000), pool_size=500)
    assert max(map(len, env.render().splitlines())) < 100
