"""Wrappers: the text view, discrete actions, and frames stacked along the channels."""

from __future__ import annotations

import dataclasses
import pickle
import re

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from worlds import FailingSuite, GreySuite

from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.episode import Answer, Malformed
from gym_longvideo.protocol import PROTOCOLS
from gym_longvideo.video import VideoError
from gym_longvideo.wrappers import (
    ChannelStack,
    DiscreteIntervals,
    FlatBox,
    TextProtocol,
    UnicodeText,
)

RIGHT = "<think>seen</think><answer>A</answer>"
WRONG = "<think>seen</think><answer>B</answer>"
LOOK = "<think>closer</think><retrieve>8, 9</retrieve>"


def grey(suite=None, **kwargs):
    settings = {"frame_budget": 8, "pool_size": 20, "frame_size": 8, "order": "sequential"}
    return LongVideoQAEnv(suite or GreySuite(), **{**settings, **kwargs})


def haystack(frame_size):
    settings = {"frame_budget": 8, "pool_size": 20, "frame_size": frame_size}
    return gym.make("gym_longvideo:LongVideoQA-v0", **settings)


# --- text -----------------------------------------------------------------------------------------


def test_text_in_text_and_frames_out():
    env = TextProtocol(grey())
    observation, info = env.reset(seed=0)
    assert observation["text"].count("<image>") == 4
    assert "frame_idx:2\n<image>\nframe_idx:7\n<image>" in observation["text"]
    assert observation["frames"].shape == (4, 8, 8, 3)
    assert observation["frames"][:, 0, 0, 0].tolist() == [12, 37, 62, 87]
    assert info["lenient_choice"] == -1
    observation, reward, terminated, truncated, info = env.step(LOOK)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["interval"] == (8, 9) and info["lenient_choice"] == -1
    assert observation["text"].startswith("Turn 2 of 3. 2 frames are shown")
    observation, reward, terminated, _, info = env.step(RIGHT)
    assert (reward, terminated) == (pytest.approx(1.7), True)
    assert (info["outcome"], info["lenient_choice"]) == ("correct", 0)
    assert observation["text"] == "" and not observation["frames"].any()


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_marks_and_frames_match_whatever_a_question_says(protocol):
    class Marked(GreySuite):
        def __getitem__(self, index):
            task = super().__getitem__(index)
            options = ("like <image>", *task.options[1:])
            return dataclasses.replace(task, question="What is in <image>?", options=options)

    env = TextProtocol(grey(Marked()), protocol=protocol)
    observation, _ = env.reset(seed=0)
    assert observation["text"].count("<image>") == 4
    assert "What is in (image)?" in observation["text"] and "like (image)" in observation["text"]
    content = env.messages()[-1]["content"]
    words = [part["text"] if part["type"] == "text" else "<image>" for part in content]
    assert "".join(words) == observation["text"]
    assert len(re.findall(r"\n(frame_idx|time):[\d.:s ]+\n<image>\n", observation["text"])) >= 2


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_each_observation_lies_in_the_space(protocol):
    env = TextProtocol(grey(), protocol=protocol)
    env.action_space.seed(0)
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            assert env.observation_space.contains(observation)
            observation, _, over, _, _ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)


def test_a_reply_that_is_no_action_spends_the_turn_and_is_told_so():
    env = TextProtocol(grey())
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step("It is the first one, A.")
    assert (reward, terminated) == (0.0, False)
    assert info["malformed"] == "no <think>...</think> at the start"
    assert info["lenient_choice"] == 0
    assert "Your last reply was not a valid action (no <think>" in observation["text"]
    assert "No new frames are shown." in observation["text"]
    _, reward, _, _, _ = env.step(RIGHT)
    assert reward == pytest.approx(1.1)


def test_a_retrieval_in_the_last_turn_is_malformed_also_in_words():
    env = TextProtocol(grey(max_turns=1))
    observation, _ = env.reset(seed=0)
    assert "You must give your final answer now." in observation["text"]
    _, reward, terminated, truncated, info = env.step(LOOK)
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["outcome"] == "unanswered" and "last turn" in info["malformed"]


def test_messages_are_the_whole_dialogue_with_images():
    env = TextProtocol(grey())
    env.reset(seed=0)
    env.step(LOOK)
    messages = env.messages()
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == [{"type": "text", "text": LOOK}]
    images = [part["image"] for part in messages[3]["content"] if part["type"] == "image"]
    assert [int(image[0, 0, 0]) for image in images] == [42, 47]
    assert all(image.shape == (8, 8, 3) and image.dtype == np.uint8 for image in images)
    env.step(RIGHT)
    assert [message["role"] for message in env.messages()][-1] == "assistant"
    env.reset()
    assert [message["role"] for message in env.messages()] == ["system", "user"]


def test_changing_a_copy_of_the_dialogue_changes_nothing():
    env = TextProtocol(grey())
    env.reset(seed=0)
    messages = env.messages()
    messages[1]["content"].clear()
    messages.clear()
    assert len(env.messages()[1]["content"]) == 10  # head, four markers, four images, question


def test_a_record_keeps_the_reply_and_its_lenient_reading():
    env = TextProtocol(grey())
    env.reset(seed=0)
    env.step("I'd say A.")
    env.step(WRONG)
    turns = env.unwrapped.record.turns
    assert [turn["reply"] for turn in turns] == ["I'd say A.", WRONG]
    assert [turn["lenient_choice"] for turn in turns] == [0, 1]
    assert [turn["op"] for turn in turns] == ["malformed", "answer"]


def test_a_fault_in_mid_episode_passes_through_the_text_view():
    env = TextProtocol(grey(FailingSuite()))
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(LOOK)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["infra_error"] and observation["text"] == ""


def test_the_text_view_wants_strings_and_a_reset():
    env = TextProtocol(grey())
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(RIGHT)
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        _ = env.turn
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action 3 is not a string"):
        env.step(3)
    env.step(RIGHT)
    for reply in (RIGHT, "noise"):
        with pytest.raises(gym.error.ResetNeeded, match="the episode is over"):
            env.step(reply)


def test_after_a_failed_reset_the_text_view_needs_another():
    suite = GreySuite()
    suite.broken.add("grey-1")
    env = TextProtocol(grey(suite))
    env.reset()
    with pytest.raises(VideoError):
        env.reset()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(RIGHT)
    env.reset()
    assert env.step(RIGHT)[2]


def test_a_protocol_of_ones_own_can_be_passed():
    class Shout:
        name = "shout"

        def system(self, turn):
            return "Shout a letter."

        def render(self, turn):
            return [{"type": "text", "text": f"{turn.question} {turn.options}"}]

        def parse(self, reply, turn):
            known = len(reply) == 1 and reply in "ABCD"[: len(turn.options)]
            return Answer("ABCD".index(reply)) if known else Malformed("shout one letter")

    env = TextProtocol(grey(), protocol=Shout())
    observation, _ = env.reset(seed=0)
    assert observation["text"] == "Which grey is it in video 0? ('dark', 'middle')"
    assert env.step("what?")[4]["malformed"] == "shout one letter"
    assert env.step("A")[1] == pytest.approx(1.1)


def test_a_pickled_text_view_goes_on_identically():
    env = TextProtocol(grey())
    env.reset(seed=0)
    env.step(LOOK)
    copy = pickle.loads(pickle.dumps(env))
    expected, result = env.step("hm"), copy.step("hm")
    assert result[0]["text"] == expected[0]["text"]
    assert copy.step(RIGHT)[1] == env.step(RIGHT)[1] == pytest.approx(1.7)
    assert [m["role"] for m in copy.messages()] == [m["role"] for m in env.messages()]


def test_any_unicode_is_in_the_text_space_but_samples_are_printable():
    space = UnicodeText(40)
    space.seed(0)
    assert space.contains("视频 🎬\n<think>") and space.contains("")
    assert not space.contains("x" * 41) and not space.contains(b"x") and not space.contains(3)
    samples = [space.sample() for _ in range(50)]
    assert all(sample.isascii() and space.contains(sample) for sample in samples)
    assert space == UnicodeText(40) != UnicodeText(41)
    assert space != spaces.Text(40)
    assert repr(space) == "UnicodeText(40)"


# --- discrete actions -----------------------------------------------------------------------------


def test_discrete_actions_are_intervals_of_bins_and_then_answers():
    env = DiscreteIntervals(grey(), n_bins=4)  # 4 parts of 5 pool frames, 10 intervals, 4 options
    assert env.action_space == spaces.Discrete(14)
    env.reset(seed=0)
    assert [env.action(i).tolist() for i in (0, 1, 3, 4, 9)] == [
        [0, 0, 4, 0],
        [0, 0, 9, 0],
        [0, 0, 19, 0],
        [0, 5, 9, 0],
        [0, 15, 19, 0],
    ]
    assert [env.action(i).tolist() for i in (10, 13)] == [[1, 0, 0, 0], [1, 0, 0, 3]]
    assert env.step(4)[4]["interval"] == (5, 9)
    assert env.step(np.int64(10))[4]["outcome"] == "correct"


def test_discrete_masks_follow_turns_and_options():
    env = DiscreteIntervals(grey(max_turns=2), n_bins=4)
    env.reset(seed=0)
    assert env.action_masks().tolist() == [True] * 12 + [False] * 2
    env.step(0)
    assert env.action_masks().tolist() == [False] * 10 + [True] * 2 + [False] * 2


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 100])
def test_every_discrete_action_that_the_mask_allows_is_well_formed(frames):
    env = DiscreteIntervals(grey(GreySuite(frames=frames, segments_s=()), max_turns=2), n_bins=4)
    env.reset(seed=0)
    for action in np.flatnonzero(env.action_masks()):
        env.reset()
        allowed = env.action_masks()[action]
        info = env.step(action)[4]
        assert (info["malformed"] == "") == allowed


@pytest.mark.parametrize("n_bins", [0, 21, 2.0, True, "4"])
def test_impossible_numbers_of_bins_are_refused(n_bins):
    with pytest.raises(ValueError, match=f"n_bins={n_bins!r} must"):
        DiscreteIntervals(grey(), n_bins=n_bins)


def test_a_discrete_action_outside_the_space_raises():
    env = DiscreteIntervals(grey(), n_bins=4)
    env.reset(seed=0)
    for action in (-1, 14):
        with pytest.raises(ValueError, match="is outside Discrete"):
            env.step(action)


def test_a_discrete_action_before_a_reset_needs_one():
    env = DiscreteIntervals(grey(), n_bins=4)
    with pytest.raises(gym.error.ResetNeeded):
        env.action(0)


# --- channels -------------------------------------------------------------------------------------


def test_channels_3i_to_3i_plus_2_are_frame_i():
    env = ChannelStack(grey(frame_size=(12, 16)))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (12, 16, 12) and observation.dtype == np.uint8
    assert env.observation_space.contains(observation)
    assert observation[0, 0].tolist() == [12] * 3 + [37] * 3 + [62] * 3 + [87] * 3


def test_stacked_channels_may_come_first():
    last = ChannelStack(grey(frame_size=(12, 16)))
    first = ChannelStack(grey(frame_size=(12, 16)), channels_first=True)
    assert first.observation_space.shape == (12, 12, 16)
    one, other = last.reset(seed=0)[0], first.reset(seed=0)[0]
    assert first.observation_space.contains(other)
    assert np.array_equal(one.transpose(2, 0, 1), other)


def test_a_flat_box_scales_each_part_by_its_bounds():
    env = FlatBox(grey())
    inner = env.unwrapped
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    env.step(np.array([0, 8, 9, 0]))
    raw = inner._observation()
    flat = env.observation(raw)
    sizes = [raw[key].size for key in FlatBox.KEYS]
    parts = dict(zip(FlatBox.KEYS, np.split(flat, np.cumsum(sizes)[:-1]), strict=True))
    assert np.allclose(parts["frames"], raw["frames"].ravel() / 255)
    assert np.allclose(parts["frame_index"], (raw["frame_index"] + 1) / inner.pool_size)
    assert np.array_equal(parts["seen"], raw["seen"])
    assert np.array_equal(parts["options"], raw["options"])
    assert parts["turn"].tolist() == [np.float32(1 / 3)]
    short = FlatBox(grey(), keys=("turn", "frame_index"))
    assert short.observation_space.shape == (1 + len(raw["frame_index"]),)


@pytest.mark.parametrize("keys", [(), ("colour",), "turn"])
def test_a_flat_box_of_nothing_known_is_refused(keys):
    with pytest.raises(ValueError, match=r"use some of .*'frame_index'"):
        FlatBox(grey(), keys=keys)


def test_more_channels_than_pixels_are_warned_of():
    with pytest.warns(UserWarning, match="12 channels at 8x8: SB3 takes the smallest side"):
        ChannelStack(grey())


# --- all ------------------------------------------------------------------------------------------

WRAPPERS = {
    "text": lambda env: TextProtocol(env, protocol="tags_seconds", max_length=4096),
    "discrete": lambda env: DiscreteIntervals(env, n_bins=5),
    "channels": ChannelStack,
    "channels first": lambda env: ChannelStack(env, channels_first=True),
    "flat": lambda env: FlatBox(env, keys=["frames", "turn"]),
    "both": lambda env: ChannelStack(DiscreteIntervals(env, n_bins=3)),
}


@pytest.mark.parametrize("name", list(WRAPPERS))
def test_a_wrapper_is_rebuilt_from_the_json_of_its_spec(name):
    env = WRAPPERS[name](haystack(frame_size=16))
    again = EnvSpec.from_json(env.spec.to_json()).make()
    assert type(again) is type(env)
    assert again.action_space == env.action_space
    assert again.observation_space == env.observation_space
    again.reset(seed=0)


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.parametrize("name", list(WRAPPERS))
def test_a_wrapped_environment_passes_the_checker(name):
    check_env(WRAPPERS[name](grey(frame_size=16)), skip_render_check=True)


@pytest.mark.parametrize("wrapper", [TextProtocol, DiscreteIntervals, ChannelStack, FlatBox])
def test_a_wrapper_says_so_when_it_gets_the_wrong_environment(wrapper):
    with pytest.raises(TypeError, match=r"wrap LongVideoQA-v0"):
        wrapper(gym.make("CartPole-v1"))


@pytest.mark.parametrize("action", [1.7, "3", None, np.array([3, 4]), -1, 10**6])
def test_discrete_intervals_refuses_what_is_no_action(action):
    env = DiscreteIntervals(gym.make("gym_longvideo:LongVideoQA-v0"))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="is outside"):
        env.action(action)


def test_text_protocol_refuses_what_cannot_work():
    env = gym.make("gym_longvideo:LongVideoQA-v0", retrieval="timeline")
    with pytest.raises(ValueError, match="use protocol='tags_seconds' or 'tool_call'"):
        TextProtocol(env)
    with pytest.raises(ValueError, match="protocol=3 is unknown"):
        TextProtocol(env, protocol=3)
    with pytest.raises(ValueError, match="max_length=0 must be"):
        TextProtocol(env, protocol="tool_call", max_length=0)
