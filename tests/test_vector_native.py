"""The native vector environment: bit by bit what Gymnasium's own makes of single environments."""

from __future__ import annotations

import pickle
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import Error, ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from worlds import FailingSuite, GreySuite

import gym_longvideo
from benchmarks.speed import steps as speed
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.episode import Answer, Malformed, Retrieve
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.vector import LongVideoQAVectorEnv, stack_infos
from gym_longvideo.video import VideoOpenError

ID = "gym_longvideo:LongVideoQA-v0"
TINY = {"frame_budget": 8, "pool_size": 16, "frame_size": 8}
MODES = list(AutoresetMode)
RETRIEVE = np.tile([0, 3, 6, 0], (3, 1))
ANSWER = np.tile([1, 0, 0, 0], (3, 1))


def same(ours, theirs, path=""):
    """Fail unless two results are equal in every value, type, shape and key."""
    assert type(ours) is type(theirs), path
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for key in ours:
            same(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(ours, tuple):
        assert len(ours) == len(theirs), path
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, f"{path}[{i}]")
    elif isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), path
        if ours.dtype == object:
            same(tuple(ours), tuple(theirs), path)
        else:
            assert np.array_equal(ours, theirs), path
    else:
        assert ours == theirs, path


def pair(count, mode, suite="haystack", **kwargs):
    """Return ours, and Gymnasium's vector of the same environments."""
    single = partial(LongVideoQAEnv, suite, **kwargs)
    ours = LongVideoQAVectorEnv(count, suite, autoreset_mode=mode, **kwargs)
    return ours, SyncVectorEnv([single] * count, autoreset_mode=mode)


def play_both(ours, theirs, steps, choose):
    """Play the same actions in both, compare everything, return how many episodes ended."""
    same(ours.reset(seed=5), theirs.reset(seed=5))
    ended = 0
    for step in range(steps):
        masks = ours.action_masks()
        same(tuple(masks), theirs.call("action_masks"))
        actions = choose(step, masks)
        found, wanted = ours.step(actions), theirs.step(actions)
        same(found, wanted, f"step {step}")
        over = found[2] | found[3]
        ended += over.sum()
        if theirs.autoreset_mode == AutoresetMode.DISABLED and over.any():
            again = [envs.reset(options={"reset_mask": over}) for envs in (ours, theirs)]
            same(*again, f"reset after step {step}")
    return ended


def randomly(envs, masked):
    """Return a choice of random actions; masked ones are legal."""
    rng = np.random.default_rng(0)
    sizes = envs.single_action_space.nvec

    def choose(step, masks):
        if not masked:
            return rng.integers(0, sizes, (envs.num_envs, 4))
        parts = np.split(masks, np.cumsum(sizes)[:-1], axis=1)
        return np.stack([[rng.choice(np.flatnonzero(row)) for row in part] for part in parts], 1)

    return choose


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("masked", "kwargs"),
    [
        (False, {**TINY, "max_turns": 4}),
        (True, {**TINY, "suite_options": {"families": ["chain", "holistic"], "options": 3}}),
        (False, {**TINY, "frame_size": (12, 20), "fit": "letterbox", "retrieval": "timeline"}),
        (True, {**TINY, "reward": "ungated", "order": "sequential", "shard": (1, 7)}),
    ],
)
def test_haystack_is_the_same_bit_by_bit(mode, masked, kwargs):
    ours, theirs = pair(5, mode, **kwargs)
    assert play_both(ours, theirs, 150, randomly(ours, masked)) > 100


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suite", [GreySuite(), FailingSuite(99), FailingSuite(99, segments_s=())])
def test_decoded_videos_are_the_same_and_faults_truncate(mode, suite):
    ours, theirs = pair(3, mode, suite, frame_budget=8, pool_size=20, frame_size=8, max_options=5)
    assert play_both(ours, theirs, 40, randomly(ours, False)) > 20
    if isinstance(suite, FailingSuite):
        ours.reset(seed=0)
        assert ours.step(RETRIEVE)[3].all()


def test_videos_that_can_only_be_drawn_one_by_one_are_the_same(monkeypatch):
    class Drawn:
        def __init__(self, video):
            self.info, self.read, self.draw, self.close = (
                getattr(video, name) for name in ("info", "read", "draw", "close")
            )

    plain = HaystackSuite.open_video
    monkeypatch.setattr(
        HaystackSuite, "open_video", lambda self, task, **options: Drawn(plain(self, task))
    )
    ours, theirs = pair(2, AutoresetMode.SAME_STEP, **TINY)
    assert play_both(ours, theirs, 10, randomly(ours, False)) > 3


def test_frames_from_a_cache_are_the_same():
    ours, theirs = pair(3, AutoresetMode.NEXT_STEP, **TINY, cache_mb=1.0)
    same(ours.reset(seed=0)[0], theirs.reset(seed=0)[0])
    for actions in (RETRIEVE, ANSWER, ANSWER, RETRIEVE):
        same(ours.step(actions)[0], theirs.step(actions)[0])


@pytest.mark.parametrize("side", [(8, 8), (24, 16), (130, 140)])
@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_videos_drawn_together_have_the_pixels_of_each_alone(side, fit):
    suites = [HaystackSuite(blocks=blocks, duration_s=90.0) for blocks in (0, 2, 2, 5)]
    videos = [suite.open_video(suite[i]) for i, suite in enumerate(suites)]
    moments = [np.linspace(0.0, 90.0, count) for count in (4, 9, 0, 30)]
    frames = np.full((50, *side, 3), 3, np.uint8)
    firsts = (1, 5, 20, 20)
    videos[0].draw_together(list(zip(videos, moments, firsts, strict=True)), frames, fit)
    for video, times, first in zip(videos, moments, firsts, strict=True):
        alone = np.empty((len(times), *side, 3), np.uint8)
        video.draw(times, alone, fit)
        assert np.array_equal(frames[first : first + len(times)], alone)
    assert (frames[[0, *range(14, 20)]] == 3).all(), "frames of no part were written to"


@pytest.mark.parametrize("name", ["LongVideoQA-v0", *gym_longvideo.HAYSTACK_IDS])
@pytest.mark.parametrize("prefix", ["", "gym_longvideo:"])
def test_every_id_makes_it(name, prefix):
    made = gym.make_vec(
        prefix + name, num_envs=2, vectorization_mode="vector_entry_point", max_turns=2
    )
    assert isinstance(made.unwrapped, LongVideoQAVectorEnv) and made.spec.id == name
    single = gym.make(prefix + name, max_turns=2)
    assert made.single_observation_space == single.observation_space
    assert made.observation_space == batch_space(single.observation_space, 2)
    assert made.action_space == batch_space(single.action_space, 2)
    assert made.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    observation, info = made.reset(seed=4)
    assert observation in made.observation_space
    assert info["task_id"][0] == single.reset(seed=4)[1]["task_id"]
    assert info["task_id"][1] == single.reset(seed=5)[1]["task_id"]
    again = gym.make_vec(gym.envs.registration.EnvSpec.from_json(made.spec.to_json()))
    same(again.reset(seed=4), (observation, info))


def test_questions_read_as_in_a_single_environment():
    envs = LongVideoQAVectorEnv(3, **TINY, autoreset_mode="SameStep")
    assert envs.autoreset_mode is AutoresetMode.SAME_STEP
    observation, info = envs.reset(seed=0)
    for _ in range(4):
        for text, question, options in zip(
            observation["question"], info["question"], info["options"], strict=True
        ):
            written = bytes(text).rstrip(b"\0").decode()
            assert written.startswith(question) and all(each in written for each in options)
        observation, _, _, _, info = envs.step(ANSWER)


def test_final_observations_and_infos_belong_to_those_that_ended():
    envs = LongVideoQAVectorEnv(3, **TINY, autoreset_mode=AutoresetMode.SAME_STEP)
    _, first = envs.reset(seed=0)
    actions = RETRIEVE.copy()
    actions[1] = ANSWER[0]
    observation, reward, terminated, _, info = envs.step(actions)
    assert terminated.tolist() == info["_final_obs"].tolist() == [False, True, False]
    assert info["_final_info"].tolist() == info["final_info"]["_outcome"].tolist()
    assert info["final_obs"][0] is None and info["final_obs"][2] is None
    assert info["final_obs"][1]["turn"] == 1 and observation["turn"].tolist() == [[1], [0], [1]]
    final = info["final_info"]
    assert final["task_id"].tolist() == [None, first["task_id"][1], None]
    assert final["reward_terms"]["_format"].tolist() == [False, True, False]
    assert reward[1] == final["turn_rewards"][1].sum() and final["outcome"][1] in (
        "correct",
        "wrong",
    )
    assert info["task_id"][1] != first["task_id"][1] and info["_task_id"].all()


@pytest.mark.parametrize("copy", [True, False])
def test_a_batch_lasts_if_it_is_a_copy_and_is_written_in_place_if_not(copy):
    envs = LongVideoQAVectorEnv(3, **TINY, copy=copy)
    before = envs.reset(seed=0)[0]
    kept = {key: array.copy() for key, array in before.items()}
    after = envs.step(RETRIEVE)[0]
    for key, array in before.items():
        assert np.shares_memory(array, after[key]) != copy
        assert np.array_equal(array, kept[key] if copy else after[key])
    assert not np.array_equal(kept["frames"], after["frames"])
    assert (after["frame_index"][:, 2:] == -1).all() and not after["frames"][:, 2:].any()


def test_seeds_options_and_masks_reach_the_environments():
    envs = LongVideoQAVectorEnv(3, **TINY, autoreset_mode="Disabled")
    _, info = envs.reset(seed=[7, None, 7])
    assert info["task_id"][0] == info["task_id"][2]
    _, info = envs.reset(options={"index": 3})
    assert [int(task_id.split("-")[1]) for task_id in info["task_id"]] == [3, 3, 3]
    stepped = envs.step(RETRIEVE)[0]
    options = {"index": 9, "reset_mask": np.array([False, True, False])}
    observation, info = envs.reset(options=options)
    assert "reset_mask" in options, "the caller's options are changed"
    assert info["_task_id"].tolist() == [False, True, False]
    assert info["task_id"].tolist() == [None, envs.get_attr("suite")[0][9].task_id, None]
    assert observation["turn"].tolist() == [[1], [0], [1]]
    for key in observation:
        assert np.array_equal(observation[key][[0, 2]], stepped[key][[0, 2]])


def test_actions_by_name_are_taken_and_one_that_is_wrong_moves_nothing():
    envs = LongVideoQAVectorEnv(3, **TINY)
    envs.reset(seed=0)
    observation, _, terminated, _, info = envs.step([Retrieve(1, 4), Malformed("no"), Answer(0)])
    assert terminated.tolist() == [False, False, True]
    assert info["malformed"].tolist() == ["", "no", ""]
    assert info["interval"][0] == (1, 4) and observation["frame_index"][0, 0] == 1
    # The third is reset next, so whatever is given for it is ignored.
    for wrong in (
        [[0, 1, 2, 0], [0, 1, 99, 0], [0, 0, 0, 0]],
        np.array([[0, 1, 2, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]]),
    ):
        with pytest.raises(ValueError, match="is outside MultiDiscrete"):
            envs.step(wrong)
    for wrong in (RETRIEVE[:2], np.array(3), 5, None, RETRIEVE.tolist() * 2):
        with pytest.raises(ValueError, match="one action for each of the 3 environments"):
            envs.step(wrong)
    assert [episode.turn for episode in envs.get_attr("episode")] == [1, 1, 1]
    found = envs.step([[0, 1, 2, 0], [0, 1, 2, 0], [0, 99, 0, 0]])
    assert found[0]["turn"].tolist() == [[2], [2], [0]]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"frame_sise": 8}, "unexpected keyword argument 'frame_sise' .did you mean 'frame_size'"),
        ({"autoreset": True}, "did you mean 'autoreset_mode'"),
        ({"max_episode_steps": 3}, 'needs vectorization_mode="sync" or "async"'),
        ({"autoreset_mode": "same"}, "NextStep"),
        ({"copy": "no"}, "copy='no'"),
        ({"num_envs": 0}, "num_envs=0 must be a whole number, 1 or more"),
        ({"render_mode": "human"}, "render_mode='human'"),
        ({"suite": "nowhere"}, "suite='nowhere' is unknown"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        gym.make_vec(ID, **{"num_envs": 2, "vectorization_mode": "vector_entry_point", **kwargs})


def test_wrappers_are_for_the_vectors_of_gymnasium():
    with pytest.raises(Error, match="wrappers"):
        gym.make_vec(ID, 2, "vector_entry_point", wrappers=[gym.Wrapper])
    made = gym.make_vec(ID, 2, "sync", wrappers=[gym.Wrapper], **TINY)
    assert type(made) is SyncVectorEnv


@pytest.mark.parametrize(
    ("seed", "options", "message"),
    [
        ([1, 2], None, "neither a whole number nor a list of 3"),
        (1.5, None, "seed=1.5 is neither"),
        (-1, None, "seed=-1"),
        ([1, 2, -3], None, r"seed\[2\]=-3"),
        (None, {"reset_mask": [True] * 3}, "must be a bool array of shape"),
        (None, {"reset_mask": np.ones(2, bool)}, r"shape \(3,\)"),
        (None, {"reset_mask": np.ones(3, int)}, "bool array"),
        (None, {"reset_mask": np.zeros(3, bool)}, "True somewhere"),
        (None, {"task": 3}, "unknown reset options"),
    ],
)
def test_a_reset_that_makes_no_sense_is_refused(seed, options, message):
    envs = LongVideoQAVectorEnv(3, **TINY)
    envs.reset(seed=0)
    before = [episode.task.task_id for episode in envs.get_attr("episode")]
    with pytest.raises(ValueError, match=message):
        envs.reset(seed=seed, options=options)
    assert [episode.task.task_id for episode in envs.get_attr("episode")] == before


def test_stepping_where_there_is_no_episode_is_refused():
    envs = LongVideoQAVectorEnv(3, **TINY, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ResetNeeded, match="no episode yet"):
        envs.step(RETRIEVE)
    with pytest.raises(ResetNeeded, match="no episode yet"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.reset(seed=0)
    actions = RETRIEVE.copy()
    actions[1] = ANSWER[1]
    envs.step(actions)
    with pytest.raises(ResetNeeded, match=r"environments \[1\] are over.*reset_mask"):
        envs.step(RETRIEVE)
    assert [episode.turn for episode in envs.get_attr("episode")] == [1, 1, 1]


def test_a_video_that_cannot_be_opened_raises_and_a_reset_goes_on():
    suite = GreySuite(4)
    suite.broken = {"grey-1"}
    settings = {"order": "sequential", "frame_budget": 4, "pool_size": 8, "frame_size": 8}
    envs = LongVideoQAVectorEnv(2, suite, **settings)
    envs.reset(seed=0)
    envs.step(ANSWER[:2])
    with pytest.raises(VideoOpenError, match="is not a video"):
        envs.step(ANSWER[:2])
    with pytest.raises(ResetNeeded, match="call reset"):
        envs.step(ANSWER[:2])
    suite.broken.clear()
    assert envs.reset()[1]["task_id"].tolist() == ["grey-2", "grey-1"]


@pytest.mark.parametrize("copy", [True, False])
def test_a_pickled_copy_plays_on_alike(copy):
    envs = LongVideoQAVectorEnv(3, **TINY, autoreset_mode="SameStep", copy=copy)
    envs.reset(seed=2)
    envs.step(RETRIEVE)
    twin = pickle.loads(pickle.dumps(envs))
    for actions in (RETRIEVE, ANSWER, RETRIEVE, ANSWER):
        same(twin.step(actions), envs.step(actions))


def test_the_single_environments_can_be_asked():
    envs = LongVideoQAVectorEnv(2, **TINY, render_mode="ansi")
    envs.reset(seed=0)
    tasks = [episode.task for episode in envs.get_attr("episode")]
    for task, text in zip(tasks, envs.render(), strict=True):
        assert task.question in text
    assert envs.np_random_seed == (0, 1)
    records = envs.get_attr("record")
    assert [each.task["task_id"] for each in records] == [task.task_id for task in tasks]
    envs.set_attr("on_video_error", ["skip", "raise"])
    assert envs.call("on_video_error") == ("skip", "raise")
    envs.close()
    envs.close()
    assert envs.closed


def test_infos_of_some_leave_blanks_for_the_others():
    infos = [{"text": "a", "pair": (1, 2), "terms": {"x": 1.0}, "row": np.ones(2)}]
    found = stack_infos(infos, [1], 3)
    sums = {key: value for key, value in found.items() if not key.startswith("_")}
    assert found["text"].tolist() == [None, "a", None] and found["pair"][1] == (1, 2)
    assert found["terms"]["x"].tolist() == [0.0, 1.0, 0.0]
    assert found["row"].tolist() == [[0, 0], [1, 1], [0, 0]]
    for key in sums:
        assert found[f"_{key}"].tolist() == [False, True, False]
    found["_text"][:] = True
    assert not found["_pair"].all(), "masks share memory"


def test_a_learner_can_count_returns_and_draw_masked_actions():
    envs = RecordEpisodeStatistics(gym.make_vec(ID, num_envs=4, **TINY))
    assert isinstance(envs.unwrapped, LongVideoQAVectorEnv), "the default of make_vec"
    choose = randomly(envs.unwrapped, masked=True)
    storage = np.zeros((24, *envs.observation_space["frames"].shape), np.uint8)
    observation, _ = envs.reset(seed=1)
    returns, total = [], np.zeros(4)
    for step in range(len(storage)):
        storage[step] = observation["frames"]
        masks = np.stack(envs.unwrapped.call("action_masks"))
        observation, reward, terminated, truncated, info = envs.step(choose(step, masks))
        total += reward
        for i in np.flatnonzero(terminated | truncated):
            returns.append(total[i])
            assert info["episode"]["r"][i] == pytest.approx(total[i])
            assert info["malformed"][i] == ""
            total[i] = 0.0
    assert len(returns) > 8 and max(returns) > 0.5 and storage.any()
    envs.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_the_measurement_names_its_rivals(monkeypatch):
    monkeypatch.setattr(speed, "HaystackSuite", partial(HaystackSuite, size=4))
    ratios = speed.run_vector(8, rounds=1, num_envs=2, steps=2)
    assert ratios.keys() == {"sync", "async"} and min(ratios.values()) > 0
