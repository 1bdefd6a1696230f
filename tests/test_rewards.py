"""What turns earn: hand-worked numbers, the loopholes of a gate, and invariants."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_longvideo.rewards import (
    PRESETS,
    BiLevelReward,
    LedgerRow,
    TurnFacts,
    frame_iou,
    make_reward,
)

CODE = PRESETS["video_mtr_code"]
PAPER = PRESETS["video_mtr"]
ANSWER, BAD = TurnFacts("answer"), TurnFacts("malformed")


def look(iou: float) -> TurnFacts:
    return TurnFacts("retrieve", iou)


def totals(reward: BiLevelReward, turns: list[TurnFacts], correct: bool, start: float = 0.1):
    return [row.total for row in reward.settle(turns, initial_iou=start, correct=correct)]


def approx(*values: float):
    return pytest.approx(list(values), abs=1e-12)


# --- the paper's reward: IoU .10 (overview) -> .40 -> .25 --------------------------------------


def test_a_better_then_a_worse_retrieval_then_the_right_answer_earn_0_6_and_minus_0_05_and_1_1():
    slope_1 = make_reward({"preset": "video_mtr", "penalty": 1.0})
    turns = [look(0.40), look(0.25), ANSWER]
    assert totals(slope_1, turns, True) == approx(0.6, -0.05, 1.1)
    assert sum(totals(slope_1, turns, True)) == pytest.approx(1.65)


def test_the_default_penalty_takes_off_half_of_the_drop():
    # .1 - .5 * (.40 - .25) = .025
    assert totals(PAPER, [look(0.40), look(0.25), ANSWER], True) == approx(0.6, 0.025, 1.1)


def test_each_component_of_the_worked_example_stands_in_its_own_column():
    rows = PAPER.settle([look(0.40), look(0.25), ANSWER], initial_iou=0.1, correct=True)
    assert [row.accuracy for row in rows] == [0.0, 0.0, 1.0]
    assert [row.relevance for row in rows] == approx(0.5, -0.075, 0.0)
    assert [row.format for row in rows] == [0.1, 0.1, 0.1]
    assert [row.bonus for row in rows] == [0.0, 0.0, 0.0]


def test_a_wrong_answer_leaves_nothing_but_its_own_format_reward():
    assert totals(PAPER, [look(0.40), look(0.25), ANSWER], False) == approx(0.0, 0.0, 0.1)


def test_a_malformed_second_turn_earns_nothing_and_costs_nothing():
    assert totals(PAPER, [look(0.40), BAD, ANSWER], True) == approx(0.6, 0.0, 1.1)


def test_an_immediate_right_answer_earns_1_1_and_a_wrong_one_0_1():
    assert totals(PAPER, [ANSWER], True) == approx(1.1)
    assert totals(PAPER, [ANSWER], False) == approx(0.1)


def test_the_best_view_so_far_stays_the_baseline_after_a_drop():
    # .10 -> .40 -> .25 -> .30: the third beats the second but not the first.
    rewards = totals(PAPER, [look(0.40), look(0.25), look(0.30), ANSWER], True)
    assert rewards == approx(0.6, 0.1 - 0.5 * 0.15, 0.1 - 0.5 * 0.10, 1.1)


def test_looking_again_at_the_same_relevance_earns_only_format():
    assert totals(PAPER, [look(0.1), look(0.1), ANSWER], True) == approx(0.1, 0.1, 1.1)


def test_the_overview_counts_as_the_first_baseline():
    assert totals(PAPER, [look(0.2), ANSWER], True, start=0.3) == approx(0.1 - 0.05, 1.1)


def test_without_relevant_segments_a_retrieval_earns_format_alone():
    rows = PAPER.settle([look(math.nan), ANSWER], initial_iou=math.nan, correct=True)
    assert [row.relevance for row in rows] == [0.0, 0.0]
    assert [row.total for row in rows] == approx(0.1, 1.1)


# --- the loopholes of the released gate ---------------------------------------------------------


def test_a_good_retrieval_before_an_invalid_answer_earns_nothing():
    assert totals(PAPER, [look(0.4), BAD], False) == [0.0, 0.0]


def test_a_good_retrieval_in_the_last_turn_is_no_right_answer():
    assert totals(PAPER, [look(0.05), look(0.05), BAD], False) == [0.0, 0.0, 0.0]
    # Even if a caller lists it as a retrieval: relevance never passes a closed gate.
    assert totals(PAPER, [look(0.05), look(0.05), look(0.4)], False) == approx(0.0, 0.0, 0.1)


def test_format_rewards_before_a_wrong_answer_do_not_pass_the_gate():
    assert totals(PAPER, [look(0.4), ANSWER], False) == approx(0.0, 0.1)


# --- the other presets --------------------------------------------------------------------------


def test_the_released_code_pays_improvement_over_the_previous_view_without_penalty_or_gate():
    # .10 -> .40 -> .25 -> .30, wrong: .3 beats .25, the previous view.
    rewards = totals(CODE, [look(0.40), look(0.25), look(0.30), ANSWER], False)
    assert rewards == approx(0.6, 0.1, 0.6, 0.1)


def test_the_released_code_prefers_two_retrievals_and_a_wrong_answer_to_a_right_one():
    right_at_once = sum(totals(CODE, [ANSWER], True))
    wrong_after_two = sum(totals(CODE, [look(0.2), look(0.3), ANSWER], False))
    assert right_at_once == pytest.approx(1.1)
    assert wrong_after_two == pytest.approx(1.3)
    # The paper's gate turns that round.
    assert sum(totals(PAPER, [look(0.2), look(0.3), ANSWER], False)) == pytest.approx(0.1)


def test_the_released_code_takes_0_1_off_the_answer_for_each_earlier_turn():
    # One improving retrieval, answer in turn 2: (.1 + .5) + (1 - .1 * (2 - 1)) + .1 = 1.6.
    assert totals(CODE, [look(0.2), ANSWER], True) == approx(0.6, 1.0)
    # Two: 2 * .6 + .8 + .1 = 2.1.
    assert sum(totals(CODE, [look(0.2), look(0.3), ANSWER], True)) == pytest.approx(2.1)
    # A wasted turn costs the answer as much as any other.
    assert totals(CODE, [BAD, ANSWER], True) == approx(0.0, 1.0)


def test_the_released_code_wants_more_than_0_001_of_gain():
    assert totals(CODE, [look(0.101), ANSWER], False) == approx(0.1, 0.1)
    assert totals(CODE, [look(0.1011), ANSWER], False) == approx(0.6, 0.1)


def test_ungated_is_the_paper_without_its_gate():
    turns = [look(0.40), look(0.25), ANSWER]
    reward = make_reward("ungated")
    assert totals(reward, turns, False) == approx(0.6, 0.025, 0.1)
    assert totals(reward, turns, True) == totals(PAPER, turns, True)


def test_accuracy_pays_the_answer_and_nothing_else():
    reward = make_reward("accuracy")
    assert totals(reward, [look(0.4), look(0.2), ANSWER], True) == [0.0, 0.0, 1.0]
    assert totals(reward, [look(0.4), BAD, ANSWER], False) == [0.0, 0.0, 0.0]


def test_longvt_pays_the_iou_of_the_last_retrieval_also_when_the_answer_is_wrong():
    reward = make_reward("longvt")
    assert totals(reward, [look(0.4), look(0.25), ANSWER], False) == approx(0.1, 0.35, 0.1)
    assert totals(reward, [look(0.4), BAD, ANSWER], True) == approx(0.5, 0.0, 1.1)
    assert totals(reward, [ANSWER], True) == approx(1.1)


def test_videoseal_scales_the_answer_by_the_best_retrieved_iou_up_to_0_05():
    reward = make_reward("videoseal")
    assert totals(reward, [look(0.02), ANSWER], True) == approx(0.0, 0.4)
    assert totals(reward, [look(0.02), look(0.01), ANSWER], True) == approx(0.0, 0.0, 0.4)
    assert totals(reward, [look(0.5), ANSWER], True) == approx(0.0, 1.0)
    assert totals(reward, [look(0.5), ANSWER], False) == approx(0.0, 0.0)
    assert totals(reward, [ANSWER], True) == approx(0.0)


def test_baseline_initial_compares_every_retrieval_with_the_overview():
    reward = BiLevelReward(baseline="initial", penalty=0.0)
    assert totals(reward, [look(0.4), look(0.2), ANSWER], True) == approx(0.6, 0.6, 1.1)


# --- sets of frames -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "relevant", "expected"),
    [
        ([2, 3, 4], [3, 4, 5], 2 / 4),
        ([3, 4, 5], [3, 4, 5], 1.0),
        ([0, 1], [3], 0.0),
        ([], [3], 0.0),
        ([3, 3, 3, 4], [3], 1 / 2),
    ],
)
def test_iou_is_shared_frames_over_all_frames(shown, relevant, expected):
    assert frame_iou(shown, relevant) == expected


def test_iou_does_not_exist_where_nothing_is_relevant():
    assert math.isnan(frame_iou([1, 2], []))


# --- invariants ---------------------------------------------------------------------------------

ious = st.one_of(st.just(math.nan), st.floats(0.0, 1.0))
turn_lists = st.lists(
    st.builds(TurnFacts, st.sampled_from(["retrieve", "answer", "malformed"]), ious),
    min_size=1,
    max_size=6,
).map(lambda turns: [t if t.op == "retrieve" else TurnFacts(t.op) for t in turns])
rewards = st.one_of(
    st.sampled_from(sorted(PRESETS)).map(make_reward),
    st.builds(
        BiLevelReward,
        penalty=st.floats(0.0, 2.0),
        relevance=st.floats(0.0, 2.0),
        accuracy_decay=st.floats(0.0, 0.3),
        min_gain=st.floats(0.0, 0.1),
        baseline=st.sampled_from(["best", "previous", "initial"]),
        rule=st.sampled_from(["improvement", "last_iou"]),
        gate=st.sampled_from(["hard", "soft", "none"]),
    ),
)


@given(rewards, turn_lists, ious)
def test_behind_a_closed_gate_an_episode_earns_at_most_one_format_reward(reward, turns, start):
    if reward.gate == "none":
        reward = make_reward({**reward.to_dict(), "gate": "hard", "timing": "terminal"})
    rows = reward.settle(turns, initial_iou=start, correct=False)
    assert math.fsum(row.total for row in rows) <= reward.format
    assert all(row.accuracy == row.relevance == 0.0 for row in rows)


@given(rewards, turn_lists, ious, st.booleans())
def test_the_components_of_a_row_sum_to_its_total(reward, turns, start, correct):
    rows = reward.settle(turns, initial_iou=start, correct=correct)
    assert len(rows) == len(turns)
    for row in rows:
        assert row.total == sum(row)
        assert math.isfinite(row.total)


@given(turn_lists, ious, st.booleans(), st.sampled_from(["ungated", "video_mtr_code"]))
def test_paying_each_turn_at_once_gives_what_settling_at_the_end_gives(turns, start, correct, name):
    reward = make_reward(name)
    last = len(turns)
    paid = [
        reward.settle(turns[:k], initial_iou=start, correct=correct and k == last)[-1]
        for k in range(1, last + 1)
    ]
    assert paid == reward.settle(turns, initial_iou=start, correct=correct)


@given(turn_lists, ious)
def test_an_open_gate_pays_exactly_what_no_gate_pays(turns, start):
    ungated = make_reward("ungated").settle(turns, initial_iou=start, correct=True)
    assert PAPER.settle(turns, initial_iou=start, correct=True) == ungated


@given(rewards)
def test_a_reward_survives_json(reward):
    assert make_reward(json.loads(json.dumps(reward.to_dict()))) == reward


# --- making one ---------------------------------------------------------------------------------


def test_a_mapping_changes_some_fields_of_a_preset():
    assert make_reward({"preset": "video_mtr_code", "format": 0.0}).baseline == "previous"
    assert make_reward({"penalty": 1.0}) == BiLevelReward(penalty=1.0)
    assert make_reward(PAPER) is PAPER
    assert make_reward({"preset": CODE}) == CODE


@pytest.mark.parametrize(
    ("given_reward", "message"),
    [
        ("video-mtr", r"reward='video-mtr' is unknown; use one of .*'video_mtr'"),
        (3, r"reward=3 is neither"),
        (None, r"reward=None is neither"),
        ({"preset": 3}, r"reward=3 is neither"),
        ({"preset": "nope"}, r"'nope' is unknown"),
        ({"penatly": 1.0}, r"no field \['penatly'\]; use some of .*'penalty'"),
        ({"gate": "open"}, r"gate='open' is unknown; use one of .*'hard'"),
        ({"baseline": "first"}, r"baseline='first' is unknown"),
        ({"rule": "f1"}, r"rule='f1' is unknown"),
        ({"timing": "late"}, r"timing='late' is unknown"),
        ({"format": "0.1"}, r"format='0.1' must be a number"),
        ({"format": True}, r"format=True must be a number"),
        ({"accuracy": math.nan}, r"accuracy=nan must be a number"),
        ({"relevance": math.inf}, r"relevance=inf must be a number"),
        ({"gate_scale": 0.0}, r"gate_scale=0.0 must be greater than 0"),
        ({"penalty": -0.5}, r"penalty=-0.5 would pay for worse retrievals; use 0 or more"),
        ({"timing": "immediate"}, r"timing='immediate' .* use gate='none'"),
        ({"gate": "none", "rule": "last_iou", "timing": "immediate"}, r"rule='last_iou'"),
    ],
)
def test_an_impossible_reward_is_refused_with_its_value(given_reward, message):
    with pytest.raises(ValueError, match=message):
        make_reward(given_reward)


def test_an_empty_row_is_worth_nothing():
    assert LedgerRow().total == 0.0


def test_the_soft_gate_is_open_where_nothing_relevant_is_annotated():
    turns = [TurnFacts("retrieve"), TurnFacts("answer")]
    rows = PRESETS["videoseal"].settle(turns, initial_iou=math.nan, correct=True)
    assert [row.total for row in rows] == [0.0, 1.0]
    judged = [TurnFacts("retrieve", 0.025), TurnFacts("answer")]
    rows = PRESETS["videoseal"].settle(judged, initial_iou=0.0, correct=True)
    assert [row.total for row in rows] == [0.0, 0.5]
