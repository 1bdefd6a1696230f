"""The retrieval bonus: its ladder and latch, and the wrapper that pays it to any learner."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
import threading
import time
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from worlds import FailingSuite, GreySuite

from agents.curriculum import (
    BootstrapCurriculum,
    RetrievalBonus,
    RetrievalWindow,
    executed_retrieve,
)
from gym_longvideo import EpisodeRecord, rescore
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.rewards import BiLevelReward, TurnFacts
from gym_longvideo.wrappers import DiscreteIntervals, TextProtocol

ID = "gym_longvideo:LongVideoQA-v0"
TINY = {"frame_budget": 8, "pool_size": 20, "frame_size": 8}
REWARD = BiLevelReward(penalty=1.0)
GOOD, POOR = np.array([0, 8, 9, 0]), np.array([0, 0, 1, 0])  # IoU 1 and 0; the overview has 0
RIGHT, WRONG, INVALID = np.array([1, 0, 0, 0]), np.array([1, 0, 0, 1]), np.array([1, 0, 0, 3])


def grey(suite=None, **kwargs):
    """Two options, of which the first is right; the relevant frames are 8 and 9 of 20."""
    suite = suite or GreySuite(options=("dark", "light"), answer_index=0)
    settings = {**TINY, "order": "sequential", "reward": REWARD, "max_options": 4}
    return LongVideoQAEnv(suite, **{**settings, **kwargs})


def play(env, *actions):
    """Step through an episode; return its rewards and infos."""
    env.reset(seed=0)
    steps = [env.step(action) for action in actions]
    assert steps[-1][2] or steps[-1][3]
    return [step[1] for step in steps], [step[4] for step in steps]


# --- turn rewards: the worked episode, and the loopholes of the released gate ---------------------


def settled(*turns: TurnFacts, correct: bool, bonus: float = 0.0) -> list[float]:
    """Settle an episode as the environment does and add a bonus as a learner does."""
    rows = REWARD.settle(turns, initial_iou=0.10, correct=correct)
    return [
        row.total + bonus * (turn.op == "retrieve") for row, turn in zip(rows, turns, strict=True)
    ]


LOOK, DROP, ANSWER = TurnFacts("retrieve", 0.40), TurnFacts("retrieve", 0.25), TurnFacts("answer")
BAD = TurnFacts("malformed")


@pytest.mark.parametrize(
    ("turns", "correct", "bonus", "expected"),
    [
        ((LOOK, DROP, ANSWER), True, 0.0, (0.6, -0.05, 1.1)),
        ((LOOK, DROP, ANSWER), False, 0.0, (0.0, 0.0, 0.1)),
        ((LOOK, DROP, ANSWER), False, 1.0, (1.0, 1.0, 0.1)),
        ((LOOK, DROP, ANSWER), True, 0.5, (1.1, 0.45, 1.1)),
        ((LOOK, BAD, ANSWER), True, 0.0, (0.6, 0.0, 1.1)),
        ((LOOK, BAD, ANSWER), True, 0.5, (1.1, 0.0, 1.1)),
        ((ANSWER,), True, 1.0, (1.1,)),
    ],
)
def test_turn_rewards_of_the_worked_episode_with_gate_and_bonus(turns, correct, bonus, expected):
    assert settled(*turns, correct=correct, bonus=bonus) == pytest.approx(list(expected))


def test_two_retrievals_and_a_wrong_answer_beat_a_right_episode_while_the_bonus_lasts():
    wrong = sum(settled(LOOK, DROP, ANSWER, correct=False, bonus=1.0))
    assert wrong == pytest.approx(2.1)
    assert wrong > sum(settled(LOOK, DROP, ANSWER, correct=True)) == pytest.approx(1.65)


@pytest.mark.parametrize(
    ("max_turns", "actions", "outcome", "expected"),
    [
        # The released gate leaves (.6, 0), takes (.1, .1, .6) for a right answer, leaves (.1, .1).
        (2, (GOOD, INVALID), "unanswered", (0.0, 0.0)),
        (3, (POOR, POOR, GOOD), "unanswered", (0.0, 0.0, 0.0)),
        (3, (GOOD, WRONG), "wrong", (0.0, 0.1, 0.0)),
        # And the rest of the endings.
        (3, (GOOD, INVALID, RIGHT), "correct", (0.6, 0.0, 1.1)),
        (3, (GOOD, POOR, INVALID), "unanswered", (0.0, 0.0, 0.0)),
        (3, (GOOD, POOR, RIGHT), "correct", (0.6, -0.9, 1.1)),
        (3, (RIGHT,), "correct", (1.1, 0.0, 0.0)),
    ],
)
def test_the_gate_has_none_of_the_loopholes_and_the_bonus_hits_executed_retrievals_only(
    max_turns, actions, outcome, expected
):
    _, infos = play(grey(max_turns=max_turns), *actions)
    assert infos[-1]["outcome"] == outcome
    assert infos[-1]["turn_rewards"].tolist() == pytest.approx(list(expected))

    # A schedule that always pays 1: a retrieval of the last turn is malformed and gets nothing.
    always = BootstrapCurriculum(grey(max_turns=max_turns), stages=[(1.0, 1.0)], window=10**6)
    always.window.count(False)  # so that the rate stays below 1
    _, infos = play(always, *actions)
    bonus = np.zeros(max_turns)
    for k, action in enumerate(actions):
        bonus[k] = action[0] == 0 and k < max_turns - 1
    assert [info["reward_terms"]["bonus"] for info in infos] == bonus[: len(actions)].tolist()
    assert infos[-1]["turn_rewards"].tolist() == pytest.approx(list(bonus + expected))


# --- the schedule ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retrieves", "turns", "expected"),
    [
        (0, 96, 1.0),
        (999, 10_000, 1.0),
        (1, 10, 0.5),
        (1_000, 10_000, 0.5),
        (3, 30, 0.5),
        (4_999, 10_000, 0.5),
        (1, 2, 0.0),
        (2, 3, 0.0),
    ],
)
def test_the_ladder_pays_1_below_a_tenth_and_a_half_below_a_half(retrieves, turns, expected):
    bonus = RetrievalBonus()
    assert bonus.update(retrieves, turns) == expected
    assert bonus.at(retrieves / turns) == expected


def test_the_rate_is_a_share_of_turns_and_not_of_episodes():
    # [R, R, A], [A], [R, A], [A]: 3 of 7 turns, though half of the episodes retrieve.
    assert RetrievalBonus().update(3, 7) == 0.5
    assert RetrievalBonus().update(2, 4) == 0.0


def test_the_bonus_ends_for_good_after_patience_batches_in_a_row():
    bonus = RetrievalBonus(patience=3)
    for retrieves in (50, 60):
        assert bonus.update(retrieves, 100) == 0.0 and bonus.enabled
    bonus.update(50, 100)
    assert not bonus.enabled and bonus.streak == 3
    assert [bonus.update(retrieves, 100) for retrieves in (0, 5, 20, 49)] == [0.0] * 4
    assert not bonus.enabled and bonus.at(0.0) == 0.0


def test_a_batch_below_the_last_threshold_starts_the_count_over():
    bonus = RetrievalBonus(patience=2)
    for retrieves, streak in ((50, 1), (49, 0), (80, 1)):
        bonus.update(retrieves, 100)
        assert bonus.streak == streak and bonus.enabled
    bonus.update(80, 100)
    assert not bonus.enabled


def test_a_batch_without_turns_changes_nothing():
    bonus = RetrievalBonus(patience=2)
    bonus.update(1, 1)
    assert bonus.update(0, 0) == 0.0
    assert (bonus.streak, bonus.enabled) == (1, True)


def test_the_default_patience_is_3():
    assert RetrievalBonus().patience == 3
    assert RetrievalBonus().stages == ((0.1, 1.0), (0.5, 0.5))


def test_the_schedule_goes_on_from_its_state_in_json():
    first, second = RetrievalBonus(), RetrievalBonus()
    for retrieves in (60, 60):
        first.update(retrieves, 96)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.streak == 2 and second.enabled
    second.update(60, 96)
    assert not second.enabled and first.enabled
    third = RetrievalBonus()
    third.load_state_dict(second.state_dict())
    assert not third.enabled and third.update(0, 96) == 0.0


def test_other_ladders_are_possible():
    bonus = RetrievalBonus(stages=[[0.2, 3], [0.4, 2], [1.0, 1]], patience=1)
    assert [bonus.at(rate) for rate in (0.0, 0.2, 0.4, 1.0)] == [3.0, 2.0, 1.0, 0.0]
    assert bonus.update(9, 10) == 1.0 and bonus.enabled
    assert bonus.update(10, 10) == 0.0 and not bonus.enabled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": ()}, r"stages=\(\) must be \(threshold, bonus\) pairs"),
        ({"stages": (0.1, 0.5)}, r"must be \(threshold, bonus\) pairs"),
        ({"stages": "no"}, r"stages='no' must be"),
        ({"stages": ((0.5, 0.5), (0.1, 1.0))}, r"threshold 0\.1 .* list the stages by rising"),
        ({"stages": ((1.5, 1.0),)}, r"threshold 1\.5"),
        ({"stages": ((0.0, 1.0),)}, r"threshold 0\.0"),
        ({"stages": ((math.nan, 1.0),)}, r"threshold nan"),
        ({"stages": ((0.5, -1.0),)}, r"bonus -1\.0 .* must be finite, 0 or more"),
        ({"stages": ((0.5, math.inf),)}, r"bonus inf"),
        ({"patience": 0}, r"patience=0 must be a whole number, 1 or more"),
        ({"patience": 2.5}, r"patience=2\.5 must be"),
        ({"patience": True}, r"patience=True must be"),
    ],
)
def test_a_schedule_without_meaning_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RetrievalBonus(**arguments)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((3, 2), r"retrieves=3 is more than turns=2"),
        ((-1, 2), r"retrieves=-1 must be"),
        ((0.5, 2), r"retrieves=0\.5 must be"),
        ((0, -1), r"turns=-1 must be"),
    ],
)
def test_counts_that_are_none_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        RetrievalBonus().update(*counts)


def test_a_foreign_state_is_refused():
    with pytest.raises(ValueError, match=r"state has the keys \['level'\]"):
        RetrievalBonus().load_state_dict({"level": 3})
    with pytest.raises(ValueError, match=r"state has the keys"):
        RetrievalWindow().load_state_dict(RetrievalBonus().state_dict())


def test_the_schedule_needs_no_torch():
    code = "import sys, agents.curriculum; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the window -----------------------------------------------------------------------------------


def feed(window: RetrievalWindow, turns: str) -> list[float]:
    """Count turns written as "R" and "." and return the bonus in force at each."""
    return [window.count(turn == "R")[0] for turn in turns]


def test_what_is_in_force_stands_on_the_turns_before():
    window = RetrievalWindow(size=4)
    assert window.in_force() == (1.0, 0.0)
    assert window.count(True) == (1.0, 0.0)
    assert window.count(False) == (0.0, 1.0)
    assert window.count(False) == (0.0, 0.5)
    assert window.count(False) == (0.5, pytest.approx(1 / 3))
    assert window.count(False) == (0.5, 0.25)
    assert window.count(False) == (1.0, 0.0)  # the retrieval has left the window


def test_the_latch_counts_windows_that_do_not_overlap():
    window = RetrievalWindow(RetrievalBonus(patience=2), size=4)
    feed(window, "RR..")
    assert window.bonus.streak == 1
    feed(window, "RRR")  # rate 3/4 over the last four turns, but no new window yet
    assert window.bonus.streak == 1 and window.bonus.enabled
    feed(window, ".")
    assert window.bonus.streak == 2 and not window.bonus.enabled
    assert feed(window, "........") == [0.0] * 8
    assert window.in_force() == (0.0, 0.0)


def test_a_window_below_the_threshold_starts_the_count_over():
    window = RetrievalWindow(RetrievalBonus(patience=2), size=4)
    feed(window, "RR.." + "R..." + "RRRR")
    assert window.bonus.streak == 1 and window.bonus.enabled


def test_the_window_goes_on_from_its_state_in_json():
    whole, part = (RetrievalWindow(RetrievalBonus(patience=2), size=5) for _ in range(2))
    turns = "R..RR.RR.R..R" * 3
    expected = feed(whole, turns)
    head = feed(part, turns[:17])
    again = RetrievalWindow(RetrievalBonus(patience=2), size=5)
    again.load_state_dict(json.loads(json.dumps(part.state_dict())))
    assert head + feed(again, turns[17:]) == expected
    assert again.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match=r"a longer window than window=2"):
        RetrievalWindow(size=2).load_state_dict(part.state_dict())


def test_threads_that_share_a_window_take_turns_and_lose_none():
    class Watched(RetrievalBonus):
        batches = inside = overlaps = 0

        def at(self, rate):
            self.inside += 1
            time.sleep(0)  # let another thread in, if the window does
            self.overlaps += self.inside > 1
            self.inside -= 1
            return super().at(rate)

        def update(self, retrieves, turns):
            self.batches += 1
            return super().update(retrieves, turns)

    window = RetrievalWindow(Watched(), size=7)
    threads = [
        threading.Thread(target=lambda: [window.count(i % 3 == 0) for i in range(100)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert window.bonus.overlaps == 0
    assert window.bonus.batches == 800 // 7
    assert window.state_dict()["since_update"] == 800 % 7


# --- the wrapper ----------------------------------------------------------------------------------


def test_a_retrieval_is_paid_at_once_and_stays_paid_if_the_answer_is_wrong():
    env = BootstrapCurriculum(grey())
    rewards, infos = play(env, POOR, WRONG)
    assert rewards == pytest.approx([1.0, 0.1])
    assert infos[0]["reward_terms"] == {
        "accuracy": 0.0,
        "relevance": 0.0,
        "format": 0.0,
        "bonus": 1.0,
    }
    assert infos[-1]["turn_rewards"].tolist() == pytest.approx([1.0, 0.1, 0.0])


def test_the_bonus_in_force_and_its_rate_stand_in_every_info():
    env = BootstrapCurriculum(grey(), window=4)
    _, info = env.reset(seed=0)
    assert (info["retrieval_bonus"], info["retrieval_rate"]) == (1.0, 0.0)
    seen = []
    for action in (RIGHT, GOOD, RIGHT, RIGHT):
        _, _, over, _, info = env.step(action)
        assert type(info["retrieval_bonus"]) is type(info["retrieval_rate"]) is float
        seen.append((info["retrieval_bonus"], round(info["retrieval_rate"], 4)))
        if over:
            env.reset()
    assert seen == [(1.0, 0.0), (1.0, 0.0), (0.0, 0.5), (0.5, 0.3333)]


@pytest.mark.parametrize("reward", ["video_mtr", "ungated", "video_mtr_code", "accuracy"])
def test_components_add_up_to_the_return_whatever_the_preset(reward):
    env = BootstrapCurriculum(grey(reward=reward), window=8)
    env.action_space.seed(1)
    paid = 0.0
    for seed in range(40):
        env.reset(seed=seed)
        rewards, terms, over = [], [], False
        while not over:
            _, step_reward, over, _, info = env.step(env.action_space.sample())
            rewards.append(step_reward)
            terms.append(sum(info["reward_terms"].values()))
            paid += info["reward_terms"]["bonus"]
        assert rewards == terms
        earned = info["turn_rewards"]
        assert earned.shape == (3,) and earned.dtype == np.float64
        assert earned.sum() == pytest.approx(sum(rewards))
    assert paid > 0


def test_but_for_the_bonus_the_environment_is_unchanged():
    plain, wrapped = grey(), BootstrapCurriculum(grey(), window=4)
    plain.action_space.seed(5)
    bonus = 0.0
    for seed in range(12):
        first, second = plain.reset(seed=seed), wrapped.reset(seed=seed)
        over = False
        while not over:
            for key, value in first[0].items():
                assert np.array_equal(value, second[0][key])
            action = plain.action_space.sample()
            first, second = plain.step(action), wrapped.step(action)
            assert first[2:4] == second[2:4]
            extra = second[4]["reward_terms"]["bonus"]
            assert second[1] == pytest.approx(first[1] + extra)
            assert set(second[4]) - set(first[4]) == {"retrieval_bonus", "retrieval_rate"}
            bonus += extra
            over = first[2]
    assert bonus > 0


def test_the_record_never_hears_of_the_bonus():
    plain, wrapped = grey(), BootstrapCurriculum(grey())
    for env in (plain, wrapped):
        play(env, GOOD, POOR, WRONG)
    record = wrapped.unwrapped.record
    assert record.to_json() == plain.record.to_json()
    assert record.total_reward == pytest.approx(0.1)
    again = rescore(EpisodeRecord.from_json(record.to_json()), REWARD)
    assert [row.bonus for row in again] == [0.0] * 3
    assert wrapped.unwrapped.episode.turn_rewards().tolist() == pytest.approx([0, 0, 0.1])


def test_the_environments_own_info_is_not_changed():
    class Keeping(gym.Wrapper):
        def step(self, action):
            result = super().step(action)
            self.kept, self.copy = result[4], copy.deepcopy(result[4])
            return result

    keeping = Keeping(grey(max_turns=2))
    env = BootstrapCurriculum(keeping)
    env.reset(seed=0)
    for action in (GOOD, RIGHT):
        _, _, _, _, info = env.step(action)
        assert keeping.kept["reward_terms"] == keeping.copy["reward_terms"]
        assert info["reward_terms"] is not keeping.kept["reward_terms"]
    assert keeping.kept["turn_rewards"].tolist() == keeping.copy["turn_rewards"].tolist()
    assert info["turn_rewards"].tolist() == pytest.approx([1.6, 1.1])


def test_a_turn_that_broke_is_neither_paid_nor_counted():
    env = BootstrapCurriculum(grey(FailingSuite()))
    rewards, infos = play(env, GOOD)
    assert infos[0]["infra_error"] and infos[0]["interval"] == (8, 9)
    assert not executed_retrieve(infos[0])
    assert rewards == [0.0] and not infos[0]["turn_rewards"].any()
    assert env.window.state_dict()["recent"] == []


def test_a_new_episode_starts_with_nothing_paid_but_the_window_goes_on():
    env = BootstrapCurriculum(grey(), window=2)
    env.reset(seed=0)
    env.step(GOOD)  # abandoned
    _, infos = play(env, RIGHT)
    assert infos[0]["turn_rewards"].tolist() == pytest.approx([1.1, 0, 0])
    assert env.window.state_dict()["recent"] == [1, 0]


def test_environments_that_share_a_window_share_its_rate_and_latch():
    window = RetrievalWindow(RetrievalBonus(patience=1), size=4)
    envs = [BootstrapCurriculum(grey(), bonus=window) for _ in range(2)]
    for env in envs:
        play(env, GOOD, RIGHT)
    assert window.state_dict()["recent"] == [1, 0, 1, 0]
    assert not window.bonus.enabled
    for env in envs:
        rewards, _ = play(env, POOR, WRONG)
        assert rewards == pytest.approx([0.0, 0.1])


def test_environments_that_share_a_schedule_share_only_its_latch():
    bonus = RetrievalBonus(patience=2)
    envs = [BootstrapCurriculum(grey(), bonus=bonus, window=2) for _ in range(2)]
    play(envs[0], GOOD, RIGHT)
    assert (bonus.streak, envs[1].window.in_force()) == (1, (1.0, 0.0))
    play(envs[1], GOOD, RIGHT)
    assert not bonus.enabled
    assert [env.window.in_force()[0] for env in envs] == [0.0, 0.0]


def test_a_vector_of_environments_shares_one_window():
    window = RetrievalWindow(size=6)
    envs = gym.make_vec(
        ID,
        num_envs=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP},
        wrappers=[partial(BootstrapCurriculum, bonus=window)],
        **TINY,
    )
    _, info = envs.reset(seed=0)
    assert info["retrieval_bonus"].tolist() == [1.0, 1.0]
    _, reward, _, _, info = envs.step(np.array([[1, 0, 0, 0], [0, 3, 4, 0]]))
    assert reward[1] == 1.0
    assert info["reward_terms"]["bonus"][1] == 1.0 and info["retrieval_bonus"][1] == 1.0
    _, reward, _, _, info = envs.step(np.array([[0, 3, 4, 0], [0, 3, 4, 0]]))
    # The first stands on one retrieval of two turns, the second on two of three.
    assert info["retrieval_rate"].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert reward.tolist() == [0.0, 0.0]
    assert window.state_dict()["recent"] == [0, 1, 1, 1]
    envs.step(np.array([[1, 0, 0, 0], [1, 0, 0, 0]]))
    _, _, _, _, info = envs.step(np.array([[1, 0, 0, 0], [1, 0, 0, 0]]))
    assert info["final_info"]["turn_rewards"].shape == (2, 3)
    envs.close()


@pytest.mark.parametrize("inner", [TextProtocol, DiscreteIntervals])
def test_it_goes_around_and_inside_the_other_wrappers(inner):
    outside, inside = BootstrapCurriculum(inner(grey())), inner(BootstrapCurriculum(grey()))
    look = {
        TextProtocol: "<think>closer</think><retrieve>8, 9</retrieve>",
        DiscreteIntervals: np.int64(0),
    }[inner]
    for env in (outside, inside):
        env.reset(seed=0)
        _, reward, _, _, info = env.step(look)
        assert (reward, info["reward_terms"]["bonus"], info["retrieval_bonus"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("arguments", [{}, {"window": 12, "stages": ((0.2, 0.7),), "patience": 5}])
def test_the_wrapper_is_rebuilt_from_the_json_of_its_spec(arguments):
    env = BootstrapCurriculum(gym.make(ID, **TINY), **arguments)
    again = EnvSpec.from_json(env.spec.to_json()).make()
    assert type(again) is BootstrapCurriculum
    assert again.window.size == env.window.size == arguments.get("window", 96)
    assert again.window.bonus.stages == env.window.bonus.stages
    assert again.window.bonus.patience == env.window.bonus.patience
    again.reset(seed=0)
    assert not gym.make(ID, **TINY).spec.nondeterministic


def test_a_pickled_wrapper_goes_on_identically_and_apart():
    env = BootstrapCurriculum(grey(), window=4)
    play(env, GOOD, RIGHT)
    twin = pickle.loads(pickle.dumps(env))
    assert play(twin, GOOD, RIGHT)[0] == play(env, GOOD, RIGHT)[0]
    assert twin.window is not env.window
    assert twin.window.state_dict() == env.window.state_dict()


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_the_checkers_pass_with_and_without_the_wrapper():
    env = BootstrapCurriculum(gym.make(ID, **TINY))
    check_env(env, skip_render_check=True)
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bonus": RetrievalBonus(), "patience": 3}, r"patience=3 belong to the bonus"),
        ({"bonus": RetrievalBonus(), "stages": ((0.1, 1.0),)}, r"belong to the bonus"),
        ({"bonus": RetrievalWindow(size=6), "window": 7}, r"window=7 contradicts .* of 6 turns"),
        ({"bonus": 1.0}, r"bonus=1\.0 is neither"),
        ({"window": 0}, r"window=0 must be a whole number, 1 or more"),
        ({"stages": ((0.1, -1.0),)}, r"bonus -1\.0"),
    ],
)
def test_arguments_of_the_wrapper_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BootstrapCurriculum(grey(), **arguments)


def test_another_environment_is_refused():
    with pytest.raises(TypeError, match=r"CartPoleEnv is no LongVideoQAEnv"):
        BootstrapCurriculum(gym.make("CartPole-v1"))
