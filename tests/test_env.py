"""The environment: spaces, determinism, the choice of tasks, faults, and what info may say."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from worlds import FailingSuite, GreySuite

from gym_longvideo.env import ANSWER, RETRIEVE, LongVideoQAEnv
from gym_longvideo.episode import Answer, Malformed, Retrieve
from gym_longvideo.settings import EnvSettings
from gym_longvideo.suite import utf8_prefix
from gym_longvideo.video import BackendUnavailableError, MachineError, VideoError


def make(suite=None, **kwargs):
    """100 grey frames, a pool of 20 (5 s apart), overview 4, 2 for each retrieval."""
    settings = {"frame_budget": 8, "pool_size": 20, "frame_size": 8, "order": "sequential"}
    return LongVideoQAEnv(suite or GreySuite(), **{**settings, **kwargs})


def retrieve(start, end):
    return np.array([RETRIEVE, start, end, 0])


def answer(choice):
    return np.array([ANSWER, 0, 0, choice])


def same(a, b):
    """Whether two observations or infos are equal, NaN-free, types included."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


def text_of(observation):
    return bytes(observation["question"]).rstrip(b"\0").decode()


# --- spaces -------------------------------------------------------------------------------------


def test_the_spaces_are_those_of_the_design():
    env = make(frame_budget=32, frame_size=(8, 12), max_turns=3, question_bytes=64)
    assert env.observation_space == spaces.Dict(
        frames=spaces.Box(0, 255, (16, 8, 12, 3), np.uint8),
        frame_index=spaces.Box(-1, 19, (16,), np.int64),
        frame_time=spaces.Box(-1.0, 1e6, (16,), np.float32),
        seen=spaces.Box(0, 1, (20,), np.int8),
        question=spaces.Box(0, 255, (64,), np.uint8),
        options=spaces.Box(0, 1, (4,), np.int8),
        turn=spaces.Box(0, 3, (1,), np.int64),
    )
    assert env.action_space == spaces.MultiDiscrete([2, 20, 20, 4])


def test_there_is_room_for_whichever_is_larger_overview_or_retrieval():
    env = make(frame_budget=None, overview_frames=1, frames_per_retrieval=5)
    assert env.observation_space["frames"].shape[0] == 5


def test_every_observation_of_random_play_lies_in_the_space():
    env = make(retrieval="timeline")
    env.action_space.seed(0)
    for episode in range(30):
        observation, _ = env.reset(seed=episode)
        over = False
        while not over:
            assert env.observation_space.contains(observation)
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
        assert env.observation_space.contains(observation)


def test_frame_time_is_bounded_because_the_checker_warns_of_infinite_bounds():
    class Unbounded(LongVideoQAEnv):
        def __init__(self, **kwargs):
            super().__init__(GreySuite(), frame_budget=8, pool_size=20, frame_size=8, **kwargs)
            shape = self.observation_space["frame_time"].shape
            self.observation_space = spaces.Dict(
                {**self.observation_space, "frame_time": spaces.Box(-1, np.inf, shape, np.float32)}
            )

    with pytest.warns(UserWarning, match="maximum value is infinity"):
        check_env(Unbounded(), skip_render_check=True)


@pytest.mark.parametrize("key", ["iou", "turn_rewards"])
def test_missing_numbers_are_no_nan_because_the_checker_compares_infos(key):
    class WithNaN(LongVideoQAEnv):
        def _info(self, *args):
            value = {"iou": float("nan"), "turn_rewards": np.full(3, np.nan)}[key]
            return {**super()._info(*args), key: value}

    env = WithNaN(GreySuite(), frame_budget=8, pool_size=20, frame_size=8)
    with pytest.raises(AssertionError, match=r"info"):
        check_env(env, skip_render_check=True)


def test_the_first_observation_shows_the_overview():
    env = make()
    observation, info = env.reset(seed=0)
    # The middle of four parts of 20: slots 2, 7, 12, 17; slot k stands for (k + .5) * 5 s.
    assert observation["frame_index"].tolist() == [2, 7, 12, 17]
    assert observation["frame_time"].tolist() == [12.0, 37.0, 62.0, 87.0]
    assert observation["frames"][:, 0, 0, 0].tolist() == [12, 37, 62, 87]
    assert np.flatnonzero(observation["seen"]).tolist() == [2, 7, 12, 17]
    assert observation["turn"] == 0
    assert observation["options"].tolist() == [1, 1, 0, 0]
    assert text_of(observation) == "Which grey is it in video 0?\nA. dark\nB. middle"
    assert info["frames_shown"] == 4 and info["interval"] == (-1, -1)


def test_a_retrieval_is_shown_zero_padded_and_seen_is_the_union():
    env = make()
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(retrieve(9, 8))
    assert observation["frame_index"].tolist() == [8, 9, -1, -1]
    assert observation["frame_time"].tolist() == [42.0, 47.0, -1.0, -1.0]
    assert observation["frames"][:, 0, 0, 0].tolist() == [42, 47, 0, 0]
    assert np.flatnonzero(observation["seen"]).tolist() == [2, 7, 8, 9, 12, 17]
    assert observation["turn"] == 1
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["interval"] == (8, 9) and info["iou"] == info["best_iou"] == 1.0


def test_the_best_iou_stays_when_a_later_view_is_worse():
    env = make()
    _, info = env.reset(seed=0)
    assert (info["iou"], info["best_iou"]) == (0.0, 0.0)
    assert env.step(retrieve(8, 9))[4]["best_iou"] == 1.0
    info = env.step(retrieve(9, 10))[4]  # slot 9 of {8, 9}, and slot 10
    assert (info["iou"], info["best_iou"]) == (1 / 3, 1.0)


def test_the_terminal_step_pays_the_whole_episode():
    env = make()
    env.reset(seed=0)
    env.step(retrieve(8, 9))
    _, reward, terminated, truncated, info = env.step(answer(0))
    assert (reward, terminated, truncated) == (pytest.approx(1.7), True, False)
    assert info["reward_terms"] == pytest.approx(
        {"accuracy": 1.0, "relevance": 0.5, "format": 0.2, "bonus": 0.0}
    )
    assert info["turn_rewards"].tolist() == pytest.approx([0.6, 1.1, 0.0])
    assert (info["is_success"], info["outcome"]) == (True, "correct")
    assert (info["answer_index"], info["segments"]) == (0, "[[40.0, 50.0]]")


@pytest.mark.parametrize("reward", ["video_mtr", "video_mtr_code", "ungated", "longvt", "accuracy"])
def test_reward_terms_sum_exactly_to_each_reward_and_turn_rewards_to_the_return(reward):
    env = make(reward=reward, max_turns=4)
    env.action_space.seed(1)
    for _ in range(20):
        env.reset()
        earned, over = 0.0, False
        while not over:
            _, step_reward, over, _, info = env.step(env.action_space.sample())
            assert step_reward == sum(info["reward_terms"].values())
            earned += step_reward
        assert earned == pytest.approx(info["turn_rewards"].sum(), abs=1e-12)


def test_flags_and_rewards_are_plain_python():
    env = make()
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(answer(0))
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert type(info["is_success"]) is bool


# --- malformed turns and ends -------------------------------------------------------------------


def test_running_out_of_turns_terminates_and_never_truncates():
    env = make()
    env.reset(seed=0)
    env.step(retrieve(0, 5))
    env.step(retrieve(8, 9))
    observation, reward, terminated, truncated, info = env.step(retrieve(8, 9))
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert (info["outcome"], info["is_success"]) == ("unanswered", False)
    assert "last turn" in info["malformed"]
    assert observation["turn"] == 3 and not observation["frames"].any()


def test_a_choice_that_does_not_exist_spends_the_turn():
    env = make()
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step(answer(3))
    assert (reward, terminated) == (0.0, False)
    assert info["malformed"] == "choice 3 does not exist; there are 2"
    assert (observation["frame_index"] == -1).all() and not observation["frames"].any()
    _, reward, _, _, info = env.step(answer(0))
    assert reward == pytest.approx(1.1) and info["malformed"] == ""


def test_a_malformed_action_makes_just_its_turn_malformed():
    env = make()
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(Malformed("no tag in the reply"))
    assert (reward, terminated, info["malformed"]) == (0.0, False, "no tag in the reply")
    _, reward, terminated, _, _ = env.step(Answer(0))
    assert (reward, terminated) == (pytest.approx(1.1), True)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_action_is_taken_as_its_array_is(wrapped):
    for action, array in (
        (Retrieve(9, 2), [0, 9, 2, 0]),
        (Answer(1), answer(1)),
        (Answer(3), answer(3)),
    ):
        told = []
        for taken in (action, np.array(array)):
            env = make()
            env = gym.wrappers.OrderEnforcing(env) if wrapped else env
            env.reset(seed=0)
            observation, *rest = env.step(taken)
            told.append([{k: v.tolist() for k, v in observation.items()}, *rest])
            assert env.unwrapped.record.turns
        assert repr(told[0]) == repr(told[1])


def test_an_action_beyond_the_pool_or_the_options_is_malformed():
    env = make()
    env.reset(seed=0)
    assert "leaves the pool" in env.step(Retrieve(0, 20))[4]["malformed"]
    assert "choice -1 does not exist" in env.step(Answer(-1))[4]["malformed"]


def test_an_action_of_numpys_numbers_goes_into_the_record():
    env = make()
    env.reset(seed=0)
    env.step(Retrieve(np.int64(3), np.int32(9)))
    env.step(Answer(np.int64(0)))
    assert '"interval": [3, 9]' in env.record.to_json()
    env.reset(seed=0)
    for empty in (Malformed(""), Malformed(None)):
        with pytest.raises(ValueError, match="must say why in words"):
            env.step(empty)


def test_settings_are_the_same_however_they_are_written():
    assert EnvSettings(frame_size=[28, 28]) == EnvSettings(frame_size=28)
    assert hash(EnvSettings(frame_size=(28, 14), frame_budget=np.int64(8)))
    assert json.dumps(dataclasses.asdict(EnvSettings(frame_budget=np.int64(8))))


@pytest.mark.parametrize("action", [Answer(1.0), Retrieve(0, None), Answer(True), Answer("B")])
def test_an_action_of_anything_but_whole_numbers_is_refused(action):
    env = make()
    env.reset(seed=0)
    with pytest.raises(
        ValueError, match=r"(Answer\.choice|Retrieve\.end)=.* must be a whole number"
    ):
        env.step(action)
    assert env.record.turns == []


def test_help_shows_every_setting_with_its_default():
    parameters = inspect.signature(LongVideoQAEnv).parameters
    assert list(parameters)[:4] == ["suite", "split", "suite_options", "render_mode"]
    assert parameters["max_turns"].default == 3 and parameters["seek"].default == "auto"
    with pytest.raises(
        TypeError, match=r"argument 'frame_bugdet' \(did you mean 'frame_budget'\?\)"
    ):
        make(frame_bugdet=8)


@pytest.mark.parametrize(
    "action",
    [
        np.array([2, 0, 0, 0]),
        np.array([0, 20, 0, 0]),
        np.array([0, -1, 0, 0]),
        np.array([1, 0, 0, 4]),
        np.array([1, 0, 0]),
        np.array([1, 0, 0, 0, 0]),
        np.array([[1, 0, 0, 0]]),
        np.array([0.5, 0, 0, 0]),
        np.array([np.nan, 0, 0, 0]),
        np.array([np.inf, 0, 0, 0]),
        np.array(3),
        3,
        None,
        "1000",
    ],
)
def test_an_action_outside_the_space_raises_and_changes_nothing(action):
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"outside MultiDiscrete\(\[2, 20, 20, 4\]\)"):
        env.step(action)
    assert env.episode.turn == 0
    assert env.step(answer(0))[1] == pytest.approx(1.1)


def test_actions_may_be_lists_or_whole_floats():
    env = make()
    env.reset(seed=0)
    assert env.step([0, 8, 9, 0])[4]["interval"] == (8, 9)
    assert env.step(np.array([1.0, 0.0, 0.0, 0.0], np.float32))[4]["outcome"] == "correct"


def test_before_a_reset_and_after_the_end_a_reset_is_needed():
    env = make()
    for call in (lambda: env.step(answer(0)), env.action_masks, lambda: env.record):
        with pytest.raises(ResetNeeded, match="call reset"):
            call()
    env.reset(seed=0)
    env.step(answer(0))
    with pytest.raises(ResetNeeded, match=r"the episode is over \(correct\); call reset"):
        env.step(answer(0))


# --- masks --------------------------------------------------------------------------------------


def test_masks_allow_exactly_what_is_well_formed():
    env = make(max_turns=2)
    env.reset(seed=0)
    masks = env.action_masks()
    assert masks.shape == (2 + 20 + 20 + 4,) and masks.dtype == bool
    assert masks[:2].tolist() == [True, True]
    assert masks[2:42].all()
    assert masks[42:].tolist() == [True, True, False, False]
    env.step(retrieve(0, 1))
    assert env.action_masks()[:2].tolist() == [False, True]  # the last turn


def test_a_spent_budget_masks_retrieving():
    env = make(max_turns=5)
    env.reset(seed=0)
    for _ in range(2):
        assert env.action_masks()[0]
        env.step(retrieve(0, 19))
    assert not env.action_masks()[0]
    observation, _, terminated, _, info = env.step(retrieve(0, 19))
    assert not terminated and "budget of 8 is spent" in info["malformed"]
    assert info["frames_shown"] == 8 and (observation["frame_index"] == -1).all()


@pytest.mark.parametrize("frames", [100, 7, 1])
@pytest.mark.parametrize("retrieval", ["pool", "timeline"])
def test_every_action_that_the_mask_allows_is_well_formed(frames, retrieval):
    env = make(GreySuite(frames=frames, segments_s=()), max_turns=4, retrieval=retrieval)
    rng, nvec = np.random.default_rng(0), env.action_space.nvec
    for _ in range(40):
        env.reset()
        over = False
        while not over:
            masks = np.split(env.action_masks(), np.cumsum(nvec)[:-1])
            action = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
            _, _, over, _, info = env.step(action)
            assert info["malformed"] == ""


def test_a_short_video_has_a_short_pool():
    env = make(GreySuite(frames=7, segments_s=()), max_turns=3)
    observation, _ = env.reset(seed=0)
    assert observation["frame_index"].tolist() == [0, 2, 4, 6]
    masks = env.action_masks()
    assert masks[2:22].tolist() == [True] * 7 + [False] * 13
    assert masks[22:42].tolist() == [True] * 7 + [False] * 13
    _, _, _, _, info = env.step(retrieve(3, 7))
    assert info["malformed"] == "interval (3, 7) leaves the pool; valid range is 0..6"
    observation, *_ = env.step(retrieve(1, 6))
    assert observation["frame_index"].tolist() == [1, 6, -1, -1]
    assert env.observation_space.contains(observation)


def test_a_video_of_one_frame_can_be_asked_about():
    env = make(GreySuite(frames=1, segments_s=()))
    observation, _ = env.reset(seed=0)
    assert observation["frame_index"].tolist() == [0, -1, -1, -1]
    assert env.step(retrieve(0, 0))[4]["malformed"] == ""
    assert env.step(answer(0))[2]


def test_an_overview_of_no_frames_shows_only_padding():
    env = make(overview_frames=0)
    observation, info = env.reset(seed=0)
    assert (observation["frame_index"] == -1).all() and not observation["seen"].any()
    assert (info["frames_shown"], info["iou"]) == (0, 0.0)


# --- timeline retrieval and the seconds that were asked for -------------------------------------


def test_timeline_retrieval_sees_between_pool_frames():
    env = make(GreySuite(segments_s=((40.0, 45.0),)), pool_size=5, retrieval="timeline")
    env.reset(seed=0)  # cells of 20 s
    observation, _, _, _, info = env.step(retrieve(2, 2))
    assert observation["frame_time"].tolist() == [45.0, 55.0, -1.0, -1.0]
    assert observation["frames"][:2, 0, 0, 0].tolist() == [45, 55]
    assert observation["frame_index"].tolist() == [2, 2, -1, -1]
    assert info["iou"] == 1.0


# --- determinism and freshness ------------------------------------------------------------------


def rollout(env, seed, steps=25):
    env.action_space.seed(seed)
    trace = [env.reset(seed=seed)]
    for _ in range(steps):
        result = env.step(env.action_space.sample())
        trace.append(result)
        if result[2] or result[3]:
            trace.append(env.reset())
    return trace


def assert_same_traces(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert all(same(x, y) for x, y in zip(left, right, strict=True))


def test_two_environments_with_one_seed_do_exactly_the_same():
    a, b = (make(GreySuite(tasks=9), order="shuffled") for _ in range(2))
    assert_same_traces(rollout(a, 3), rollout(b, 3))
    assert_same_traces(rollout(a, 4), rollout(a, 4))


def test_another_seed_asks_in_another_order():
    env = make(GreySuite(tasks=9), order="shuffled")
    orders = set()
    for seed in range(4):
        ids = [env.reset(seed=seed)[1]["task_id"]] + [env.reset()[1]["task_id"] for _ in range(8)]
        orders.add(tuple(ids))
    assert len(orders) == 4


def test_changing_what_was_returned_changes_nothing_later():
    env, twin = make(), make()
    observation, info = env.reset(seed=0)
    twin.reset(seed=0)
    for action in (retrieve(2, 9), answer(3), answer(0)):
        for value in observation.values():
            if isinstance(value, np.ndarray):
                value[...] = 1
        info["reward_terms"]["accuracy"] = 9.0
        info.clear()
        result, expected = env.step(action), twin.step(action)
        assert all(same(x, y) for x, y in zip(result, expected, strict=True))
        observation, info = result[0], result[4]


@pytest.mark.parametrize("retrieval", ["pool", "timeline"])
def test_a_pickled_copy_goes_on_identically_from_the_middle_of_an_episode(retrieval):
    env = make(GreySuite(tasks=9), order="shuffled", max_turns=4, retrieval=retrieval)
    env.reset(seed=5)
    env.step(retrieve(2, 9))
    copy = pickle.loads(pickle.dumps(env))
    for action in (retrieve(7, 12), answer(3), answer(0)):
        result, expected = copy.step(action), env.step(action)
        # The copy's decoder starts cold, so it may have more to decode.
        assert result[4].pop("frames_decoded") >= expected[4].pop("frames_decoded")
        assert all(same(x, y) for x, y in zip(result, expected, strict=True))
    for _ in range(12):
        result, expected = copy.reset(), env.reset()
        assert all(same(x, y) for x, y in zip(result, expected, strict=True))


def test_an_environment_can_be_pickled_before_its_first_reset_and_after_close():
    env = pickle.loads(pickle.dumps(make()))
    env.reset(seed=0)
    env.close()
    env.close()
    copy = pickle.loads(pickle.dumps(env))
    assert copy.step(answer(0))[1] == pytest.approx(1.1)


# --- which task comes next ----------------------------------------------------------------------


def test_reset_options_pick_a_task():
    env = make()
    assert env.reset(options={"task_id": "grey-4"})[1]["task_id"] == "grey-4"
    assert env.reset(options={"index": 2})[1]["task_id"] == "grey-2"
    assert env.reset(options={"index": np.int64(3)})[1]["task_id"] == "grey-3"
    assert env.reset(options={})[1]["task_id"] == "grey-0"  # picking leaves the order alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": 1}, r"unknown reset options \['task'\]; use \"task_id\" or \"index\""),
        ({"index": 6}, r"index=6 is outside the suite; use 0..5"),
        ({"index": -1}, r"index=-1 is outside the suite"),
        ({"index": 1.0}, r"index=1.0 is not a whole number"),
        ({"index": True}, r"index=True is not a whole number"),
        ({"task_id": "x"}, r"task_id='x' is not in suite 'grey', split 'train'"),
        ({"task_id": "grey-0", "index": 0}, r"name a task twice"),
    ],
)
def test_unknown_reset_options_raise(options, message):
    env = make()
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


def test_seeding_starts_the_order_over():
    env = make()
    ids = [env.reset()[1]["task_id"] for _ in range(3)]
    assert ids == ["grey-0", "grey-1", "grey-2"]
    assert env.reset(seed=1)[1]["task_id"] == "grey-0"
    assert env.reset()[1]["task_id"] == "grey-1"


def test_a_task_with_more_options_than_the_space_has_is_refused():
    with pytest.raises(ValueError, match=r"max_options=3 must be a whole number, 4 or more"):
        make(max_options=3)

    class Modest(GreySuite):
        max_options = 3  # not true: one task has 4

    env = make(Modest())
    env.reset(options={"index": 1})
    with pytest.raises(ValueError, match=r"'grey-2' has 4 options, more than max_options=3"):
        env.reset(options={"index": 2})


def test_a_segment_beyond_the_end_of_the_video_is_refused_or_skipped():
    suite = GreySuite()
    suite.tasks[0] = dataclasses.replace(suite.tasks[0], segments_s=((10, 20), (100, 110)))
    message = r"'grey-0' has a segment \(100, 110\) beyond the end of its video at 100.00 s"
    with pytest.raises(VideoError, match=message):
        make(suite).reset(options={"index": 0})
    env = make(suite, order="sequential", on_video_error="skip")
    assert env.reset()[1]["task_id"] == "grey-1"
    assert env.skipped[0][0] == "grey-0"


def test_frames_that_never_arrived_are_neither_seen_nor_counted():
    env = make(FailingSuite())
    before, info = env.reset()
    after, _, _, truncated, failed = env.step([0, 8, 9, 0])
    assert truncated
    np.testing.assert_array_equal(before["seen"], after["seen"])
    assert failed["frames_shown"] == info["frames_shown"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"isolate": "yes"}, "isolate='yes' is unknown"),
        ({"cache_dir": 3}, "cache_dir=3 must be the path of a directory"),
        ({"suite": "haystack", "suite_options": {"family": "needle"}}, "'family'.*families"),
        ({"suite": "haystack", "suite_options": {"split": "val"}}, "split"),
        ({"suite": "os:getcwd"}, "os:getcwd|split"),
    ],
)
def test_more_invalid_keywords_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        LongVideoQAEnv(**keywords)


def test_whole_numbers_of_numpy_are_whole_numbers():
    env = make(max_turns=np.int64(2), frame_budget=np.int64(16), question_bytes=np.int64(64))
    env.reset(options={"index": 0})
    env.step([1, 0, 0, 0])
    assert '"max_turns": 2' in env.record.to_json()


def test_knobs_are_added_to_those_of_an_id():
    options = {"duration_s": 3600.0}
    env = gym.make("LongVideo/Haystack-Chain-v0", suite_options=options).unwrapped
    assert env.suite.knobs.families == ("chain",) and env.suite.knobs.duration_s == 3600.0


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_turns": 0}, r"max_turns=0 must be a whole number, 1 or more"),
        ({"max_turns": 2.0}, r"max_turns=2.0 must be a whole number"),
        ({"max_turns": True}, r"max_turns=True must be a whole number"),
        ({"pool_size": 0}, r"pool_size=0 must be a whole number, 1 or more"),
        ({"pool_size": "128"}, r"pool_size='128' must be a whole number"),
        ({"question_bytes": 0}, r"question_bytes=0 must be"),
        ({"max_options": 0}, r"max_options=0 must be"),
        ({"frame_budget": 30}, r"frame_budget=30 cannot be split .* use a multiple of 4"),
        ({"frame_budget": -4}, r"frame_budget=-4 must be a whole number, 1 or more"),
        ({"frame_budget": None}, r"frame_budget=None needs both"),
        ({"overview_frames": 9}, r"overview_frames=9 is more than frame_budget=8"),
        ({"overview_frames": -1}, r"overview_frames=-1 must be"),
        ({"frames_per_retrieval": 0}, r"frames_per_retrieval=0 must be"),
        ({"frame_size": 0}, r"frame_size=0 must be 1 pixel or more"),
        ({"frame_size": (8, 0)}, r"frame_size=\(8, 0\) must be 1 pixel or more"),
        ({"frame_size": (8, 8, 3)}, r"frame_size=\(8, 8, 3\) is neither a side nor"),
        ({"frame_size": 8.5}, r"frame_size=8.5 is neither a side nor"),
        ({"frame_size": (8.5, 8)}, r"frame_size=\(8.5, 8\) is neither a side nor"),
        ({"frame_size": "88"}, r"frame_size='88' is neither a side nor"),
        ({"frame_size": None}, r"frame_size=None is neither a side nor"),
        ({"frame_size": True}, r"frame_size=True is neither a side nor"),
        ({"retrieval": "raw"}, r"retrieval='raw' is unknown; use one of \['pool', 'timeline'\]"),
        ({"order": "random"}, r"order='random' is unknown; use one of \['shuffled', 'seq"),
        ({"on_video_error": "ignore"}, r"on_video_error='ignore' is unknown; use one of"),
        ({"pool_rule": "even"}, r"pool_rule='even' is unknown; use one of"),
        ({"fit": "crop"}, r"fit='crop' is unknown; use one of"),
        ({"seek": "fast"}, r"seek='fast' is unknown; use one of"),
        ({"backend": "opencv"}, r"backend='opencv' is unknown; use one of .*'pyav'"),
        ({"render_mode": "human"}, r"render_mode='human' is unknown; use one of \[None, 'rgb"),
        ({"deadline_s": 0}, r"deadline_s=0 must be a number of seconds greater than 0, or None"),
        ({"deadline_s": "60"}, r"deadline_s='60' must be a number"),
        ({"deadline_s": float("nan")}, r"deadline_s=nan must be a number"),
        ({"cache_mb": -1}, r"cache_mb=-1 must be a number, 0 or more"),
        ({"cache_mb": float("inf")}, r"cache_mb=inf must be a number, 0 or more"),
        ({"cache_mb": None}, r"cache_mb=None must be a number, 0 or more"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\) needs 0 <= i < n"),
        ({"shard": (-1, 2)}, r"shard=\(-1, 2\) needs 0 <= i < n"),
        ({"shard": (6, 7)}, r"shard=\(6, 7\) is empty: the suite has only 6 tasks"),
        ({"shard": 2}, r"shard=2 is not a pair \(i, n\)"),
        ({"shard": (0.5, 2)}, r"shard=\(0.5, 2\) is not a pair"),
        ({"shard": "02"}, r"shard='02' is not a pair"),
        ({"reward": "dense"}, r"reward='dense' is unknown; use one of"),
        ({"reward": {"gate": "half"}}, r"reward gate='half' is unknown"),
        ({"suite": "grey"}, r"suite='grey' is unknown; use \"haystack\""),
        ({"suite": 3}, r"suite=3 is neither a name nor a Suite"),
        ({"suite": "no_such_module:make"}, r"suite='no_such_module:make' cannot be imported"),
        ({"suite": "math:no_such_thing"}, r"suite='math:no_such_thing' cannot be imported"),
        ({"suite_options": {"a": 1}}, r"suite_options=\{'a': 1\} go with a suite's name"),
        ({"suite_options": "needle"}, r"suite_options='needle' must map names to values"),
        ({"suite": "haystack", "split": "dev"}, r"split='dev' is unknown; use one of"),
    ],
)
def test_an_argument_without_a_meaning_is_refused_by_name_with_the_fix(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_json_able_forms_of_arguments_are_understood():
    env = make(frame_size=[8, 10], shard=[1, 3], reward={"penalty": 1.0})
    assert env.frame_size == (8, 10)
    assert env.order.indices.tolist() == [1, 4]
    assert env.reward.penalty == 1.0


# --- faults -------------------------------------------------------------------------------------


def test_a_broken_video_raises_at_reset_and_leaves_no_episode_behind():
    suite = GreySuite()
    suite.broken.add("grey-1")
    env = make(suite)
    env.reset()
    with pytest.raises(VideoError, match="grey-1: is not a video"):
        env.reset()
    with pytest.raises(ResetNeeded):  # not the previous episode with another video's pixels
        env.step(answer(0))
    assert env.reset()[1]["task_id"] == "grey-2"


def test_a_broken_video_can_be_skipped_and_is_counted():
    suite = GreySuite()
    suite.broken |= {"grey-0", "grey-1"}
    env = make(suite, on_video_error="skip")
    assert env.reset()[1]["task_id"] == "grey-2"
    assert [task_id for task_id, _ in env.skipped] == ["grey-0", "grey-1"]
    assert env.skipped[0][1].startswith("VideoOpenError: grey-0: is not a video")
    with pytest.raises(VideoError):  # a task asked for by name is never replaced
        env.reset(options={"task_id": "grey-0"})


def test_skipping_ends_when_no_video_of_the_shard_works():
    suite = GreySuite()
    suite.broken |= {task.task_id for task in suite.tasks}
    env = make(suite, on_video_error="skip", shard=(1, 2))
    with pytest.raises(VideoError, match=r"no task of the 3 in this shard .*'grey-5'"):
        env.reset()
    assert len(env.skipped) == 3


def test_skipping_finds_the_only_good_video_wherever_an_epoch_ends():
    suite = GreySuite(tasks=3)
    suite.broken |= {"grey-1", "grey-2"}
    env = make(suite, on_video_error="skip", order="shuffled")
    for seed in range(20):
        for options in ({"seed": seed}, {}, {}):
            env.skipped.clear()
            assert env.reset(**options)[1]["task_id"] == "grey-0"
            skipped = [task_id for task_id, _ in env.skipped]
            assert len(set(skipped)) == len(skipped)  # none is tried twice


def test_a_task_skipped_again_and_again_is_written_down_once():
    suite = GreySuite()
    suite.broken |= {"grey-0", "grey-1"}
    env = make(suite, on_video_error="skip", order="sequential", shard=(0, 2))
    for _ in range(20):
        env.reset()
    assert [task_id for task_id, _ in env.skipped] == ["grey-0"]


@pytest.mark.parametrize("kind", [MachineError, BackendUnavailableError])
def test_a_fault_of_the_machine_skips_no_task(kind):
    suite = GreySuite()
    original = suite.open_video

    def fail(task, **kwargs):
        raise kind("no file is to blame")

    env = make(suite, on_video_error="skip")
    suite.open_video = fail  # type: ignore[method-assign]
    with pytest.raises(kind):
        env.reset()
    assert env.skipped == []
    suite.open_video = original  # type: ignore[method-assign]
    env.reset()


def test_a_fault_in_mid_episode_truncates_without_reward():
    env = make(FailingSuite())
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(retrieve(8, 9))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["infra_error"] == "FrameDecodeError: grey: no frame at 40.0 s"
    assert (info["outcome"], info["is_success"]) == ("infra_error", False)
    assert info["turn_rewards"].tolist() == [0.0, 0.0, 0.0]
    assert not any(info["reward_terms"].values())
    assert env.observation_space.contains(observation) and not observation["frames"].any()
    with pytest.raises(ResetNeeded, match="infra_error"):
        env.step(answer(0))


def test_a_fault_pays_nothing_under_an_immediate_reward_either():
    env = make(FailingSuite(), reward="ungated")
    env.reset(seed=0)
    _, reward, _, truncated, info = env.step(retrieve(8, 9))
    assert (reward, truncated) == (0.0, True)
    assert info["turn_rewards"].tolist() == [0.0, 0.0, 0.0]


# --- info ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(6))
def test_neither_answer_nor_segments_appear_before_the_end(index):
    env = make()
    secrets = {"answer_index": -1, "segments": "", "is_success": False, "outcome": ""}
    for result in (env.reset(options={"index": index}), env.step(retrieve(0, 3))):
        assert {name: result[-1][name] for name in secrets} == secrets
        assert not result[-1]["turn_rewards"].any()
        assert "40.0" not in repr(result[-1]) and "50.0" not in repr(result[-1])
    assert env.step(answer(0))[4]["outcome"] != ""


def test_what_is_seen_does_not_depend_on_the_answer():
    traces = []
    for right in (0, 1):
        env = make(GreySuite(options=("x", "y"), answer_index=right))
        trace = [env.reset(seed=0), env.step(retrieve(0, 19)), env.step(answer(3))]
        traces.append(trace)
    assert_same_traces(*traces)


def test_each_info_has_one_type_for_ever():
    types = {}
    suites = [GreySuite(), GreySuite(segments_s=()), GreySuite(answer_index=None), FailingSuite()]
    for suite in suites:
        env = make(suite)
        for actions in (
            [answer(0)],
            [answer(3), retrieve(8, 9), retrieve(8, 9)],
            [retrieve(8, 9), answer(0)],
        ):
            infos = [env.reset(seed=0)[1] if suite is not suites[-1] else env.reset()[1]]
            for action in actions:
                result = env.step(action)
                infos.append(result[4])
                if result[2] or result[3]:
                    break
            for info in infos:
                assert info.keys() == infos[0].keys()
                for key, value in {**info, **info["reward_terms"]}.items():
                    kinds = (type(value), getattr(value, "shape", None))
                    assert types.setdefault(key, kinds) == kinds, key
    assert types["iou"][0] is float and types["options"][0] is tuple
    assert types["turn_rewards"] == (np.ndarray, (3,))
    assert types["outcome"][0] is types["segments"][0] is str


def test_no_seconds_of_the_clock_are_in_info_but_in_timings():
    env = make()
    env.reset(seed=0)
    info = env.step(answer(0))[4]
    assert not [key for key in info if key.endswith("_s") or "time" in key]
    assert env.timings["open_s"] > 0 and env.timings["decode_s"] > 0
    env.timings["open_s"] = -1.0
    assert env.timings["open_s"] > 0  # a copy


def test_without_segments_the_iou_is_minus_one():
    env = make(GreySuite(segments_s=()))
    _, info = env.reset(seed=0)
    assert (info["iou"], info["best_iou"]) == (-1.0, -1.0)
    _, _, _, _, info = env.step(retrieve(8, 9))
    assert (info["iou"], info["best_iou"]) == (-1.0, -1.0)
    assert env.step(answer(0))[1] == pytest.approx(1.2)


# --- the question as bytes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "size", "expected"),
    [
        ("abc", 2, "ab"),
        ("né", 2, "n"),
        ("né", 3, "né"),
        ("视频里", 7, "视频"),
        ("视频里", 9, "视频里"),
        ("a🎬b", 4, "a"),
        ("a🎬b", 5, "a🎬"),
    ],
)
def test_a_long_question_is_cut_on_a_character_boundary(question, size, expected):
    assert utf8_prefix(question, size).decode() == expected
    env = make(GreySuite(question=question), question_bytes=size)
    observation, info = env.reset(seed=0)
    assert text_of(observation) == expected
    assert info["question"] == question  # whole


@given(st.text(st.characters(exclude_categories=())), st.integers(0, 40))
def test_any_text_is_cut_to_valid_utf8(text, size):
    data = utf8_prefix(text, size)
    assert len(data) <= size
    cut = data.decode()
    whole = text.encode("utf-8", "replace").decode()
    assert whole.startswith(cut)
    assert len(cut) == len(whole) or len((cut + whole[len(cut)]).encode()) > size


def test_a_question_that_fills_its_bytes_exactly_is_whole():
    env = make(GreySuite(question="视频"), question_bytes=24)
    assert text_of(env.reset(seed=0)[0]) == "视频\nA. dark\nB. middle"


# --- rendering through the environment ----------------------------------------------------------


def test_without_a_render_mode_rendering_says_what_to_do():
    env = make()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match=r"render\(\) needs a mode: gym.make\(..., render_mode="):
        assert env.render() is None


def test_the_step_limit_is_part_of_the_process_and_no_wrapper():
    env = gym.make("gym_longvideo:LongVideoQA-v0", max_turns=5)
    assert env.spec.max_episode_steps is None
    assert "TimeLimit" not in str(env)
