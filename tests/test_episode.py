"""The decision process: which frames a turn shows, what the budget allows, how an episode ends."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_longvideo.episode import (
    Answer,
    Budget,
    Episode,
    Malformed,
    Retrieve,
    cell_edges,
    longest_gap,
    overview_frame_index,
    relevant_frame_index,
    stride_frame_index,
)
from gym_longvideo.rewards import PRESETS, LedgerRow, make_reward
from gym_longvideo.task import Task

# 100 s, a pool frame in the middle of every 10 s.
POOL = np.arange(10) * 10.0 + 5.0
SMALL = Budget(8, 4, 2)


def make_episode(
    *,
    segments=((40.0, 60.0),),
    answer=1,
    options=("x", "y", "z"),
    budget=SMALL,
    max_turns=3,
    retrieval="pool",
    reward="video_mtr",
    fps=None,
    pool=POOL,
):
    task = Task("t", "v", "Which?", options, answer, segments)
    reward = make_reward(reward)
    return Episode(task, pool, 100.0, fps, max_turns, budget, retrieval, reward)


def total(paid: LedgerRow) -> float:
    return paid.total


# --- which frames -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "count", "frame_index"),
    [
        (128, 4, [16, 48, 80, 112]),
        (10, 4, [1, 3, 6, 8]),
        (5, 5, [0, 1, 2, 3, 4]),
        (3, 8, [0, 1, 2]),
        (10, 1, [5]),
        (10, 0, []),
    ],
)
def test_the_overview_takes_the_middle_of_equal_parts_of_the_pool(length, count, frame_index):
    assert overview_frame_index(length, count).tolist() == frame_index


@pytest.mark.parametrize(
    ("seen", "gap"),
    [([0, 0, 0], (0, 2)), ([1, 0, 1, 0], (1, 1)), ([1, 1], None), ([1, 1, 0, 0], (2, 3))],
)
def test_the_longest_gap_is_the_first_of_equals(seen, gap):
    assert longest_gap(np.array(seen)) == gap


@pytest.mark.parametrize(
    ("start", "end", "count", "frame_index"),
    [
        (10, 20, 3, [10, 15, 20]),
        (0, 127, 8, [0, 18, 36, 54, 73, 91, 109, 127]),
        (4, 6, 8, [4, 5, 6]),
        (7, 7, 8, [7]),
        (2, 9, 1, [5]),
        (0, 3, 3, [0, 2, 3]),
    ],
)
def test_a_retrieval_takes_its_interval_at_an_even_stride(start, end, count, frame_index):
    assert stride_frame_index(start, end, count).tolist() == frame_index


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 40))
def test_strided_cells_are_distinct_ordered_and_reach_both_ends(start, length, count):
    frame_index = stride_frame_index(start, start + length, count)
    assert len(frame_index) == min(count, length + 1)
    assert (np.diff(frame_index) > 0).all()
    assert frame_index[0] >= start and frame_index[-1] <= start + length
    if count > 1 and length:
        assert (frame_index[0], frame_index[-1]) == (start, start + length)
        assert np.ptp(np.diff(frame_index)) <= 1


def test_relevant_cells_are_the_pool_frames_inside_any_segment():
    assert sorted(relevant_frame_index(((40.0, 60.0), (90.0, 99.0)), POOL)) == [4, 5, 9]
    assert sorted(relevant_frame_index(((45.0, 55.0),), POOL)) == [4, 5]  # both ends count
    assert relevant_frame_index((), POOL) == frozenset()


def test_a_segment_between_two_pool_frames_is_stood_for_by_the_nearest():
    assert sorted(relevant_frame_index(((46.0, 49.0),), POOL)) == [4]  # the middle is 47.5
    assert sorted(relevant_frame_index(((51.0, 54.0),), POOL)) == [5]
    assert sorted(relevant_frame_index(((99.0, 100.0),), POOL)) == [9]


def test_cell_edges_lie_half_way_between_pool_frames_and_at_both_ends_of_the_video():
    assert cell_edges(POOL, 100.0).tolist() == [float(10 * i) for i in range(11)]
    assert cell_edges(np.array([1.0, 4.0]), 9.0).tolist() == [0.0, 2.5, 9.0]
    assert cell_edges(np.array([5.0]), 10.0).tolist() == [0.0, 10.0]


def test_an_episode_begins_with_the_overview_as_its_best_view():
    episode = make_episode()
    assert episode.overview.frame_index.tolist() == [1, 3, 6, 8]
    assert episode.overview.times.tolist() == [15.0, 35.0, 65.0, 85.0]
    assert (episode.initial_iou, episode.best_iou, episode.frames_left) == (0.0, 0.0, 4)
    assert (episode.turn, episode.over, episode.may_retrieve) == (0, False, True)


def test_a_pool_retrieval_shows_pool_frames_of_the_interval_in_either_order():
    for ends in ((3, 6), (6, 3)):
        episode = make_episode(budget=Budget(12, 4, 4))
        view, _ = episode.step(Retrieve(*ends))
        assert view.frame_index.tolist() == [3, 4, 5, 6]
        assert view.times.tolist() == [35.0, 45.0, 55.0, 65.0]
        assert view.on_pool
        assert episode.turns[0].interval == (3, 6)
        assert episode.turns[0].iou == 0.5  # {4, 5} of {3, 4, 5, 6}
        assert episode.best_iou == 0.5


def test_a_timeline_retrieval_samples_between_the_borders_of_the_interval():
    episode = make_episode(retrieval="timeline", budget=Budget(12, 4, 4))
    view, _ = episode.step(Retrieve(4, 5))  # 40 s to 60 s in four parts of 5 s
    assert view.times.tolist() == [42.5, 47.5, 52.5, 57.5]
    assert view.frame_index.tolist() == [4, 4, 5, 5]
    assert not view.on_pool
    assert episode.turns[0].iou == 1.0
    assert episode.frames_left == 4


def test_a_timeline_retrieval_asks_for_no_more_frames_than_the_video_has_there():
    slow = make_episode(retrieval="timeline", budget=Budget(12, 4, 4), fps=0.2)
    view, _ = slow.step(Retrieve(4, 4))  # 10 s at 0.2 frames a second
    assert view.times.tolist() == [42.5, 47.5]
    still = make_episode(retrieval="timeline", budget=Budget(12, 4, 4), fps=0.01)
    view, _ = still.step(Retrieve(4, 4))
    assert view.times.tolist() == [45.0]


# --- the budget ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "overview", "retrieval"), [(32, 16, 8), (64, 32, 16), (80, 40, 20), (4, 2, 1)]
)
def test_the_budget_splits_into_half_and_quarters(total, overview, retrieval):
    assert Budget.split(total) == Budget(total, overview, retrieval)


def test_either_part_of_the_budget_can_be_given():
    assert Budget.split(32, overview=0) == Budget(32, 0, 8)
    assert Budget.split(32, retrieval=5) == Budget(32, 16, 5)
    assert Budget.split(30, overview=10, retrieval=10) == Budget(30, 10, 10)
    assert Budget.split(None, overview=6, retrieval=3, max_turns=4) == Budget(15, 6, 3)
    assert Budget.split(None, overview=0, retrieval=3, max_turns=1) == Budget(1, 0, 3)


@pytest.mark.parametrize(
    ("given_budget", "message"),
    [
        ((30, None, None), r"frame_budget=30 cannot be split .* use a multiple of 4"),
        ((30, 10, None), r"frame_budget=30 cannot be split"),
        ((0, None, None), r"frame_budget=0 must be a whole number, 1 or more"),
        ((32.0, None, None), r"frame_budget=32.0 must be a whole number"),
        ((True, None, None), r"frame_budget=True must be a whole number"),
        ((32, -1, None), r"overview_frames=-1 must be a whole number, 0 or more"),
        ((32, 40, None), r"overview_frames=40 is more than frame_budget=32"),
        ((32, None, 0), r"frames_per_retrieval=0 must be a whole number, 1 or more"),
        ((None, None, 4), r"frame_budget=None needs both"),
        ((None, 4, None), r"frame_budget=None needs both"),
    ],
)
def test_an_impossible_budget_is_refused_with_the_fix(given_budget, message):
    whole, overview, retrieval = given_budget
    with pytest.raises(ValueError, match=message):
        Budget.split(whole, overview=overview, retrieval=retrieval)


def test_a_spent_budget_makes_retrievals_malformed():
    pool = np.arange(128) + 0.5
    episode = make_episode(budget=Budget.split(32), max_turns=5, pool=pool)
    for _ in range(2):
        view, _ = episode.step(Retrieve(0, 127))
        assert len(view.frame_index) == 8
    assert (episode.frames_left, episode.may_retrieve, episode.over) == (0, False, False)
    view, paid = episode.step(Retrieve(0, 127))
    assert len(view.frame_index) == 0 and total(paid) == 0.0
    action = episode.turns[-1].action
    assert isinstance(action, Malformed) and "budget of 32 is spent" in action.reason
    assert episode.frames_shown == 32


def test_the_last_retrieval_shows_what_is_left_of_the_budget():
    episode = make_episode(budget=Budget(7, 4, 2), max_turns=5)
    shown = [len(episode.step(Retrieve(0, 9))[0].frame_index) for _ in range(2)]
    assert shown == [2, 1]
    assert episode.frames_shown == 7


def test_an_overview_of_no_frames_is_legal_and_judged_as_seeing_nothing():
    episode = make_episode(budget=Budget(4, 0, 2))
    assert len(episode.overview.frame_index) == 0
    assert episode.initial_iou == 0.0
    episode.step(Retrieve(4, 5))
    _, paid = episode.step(Answer(1))
    assert total(paid) == pytest.approx(1.7)  # .6 + 1.1


# --- turns and ends -----------------------------------------------------------------------------


def test_a_retrieval_is_paid_only_when_the_answer_is_right():
    right, wrong = make_episode(), make_episode()
    for episode in (right, wrong):
        _, paid = episode.step(Retrieve(4, 5))
        assert paid == LedgerRow()
    _, paid = right.step(Answer(1))
    assert (right.outcome, paid.accuracy, paid.relevance) == ("correct", 1.0, 0.5)
    assert paid.format == pytest.approx(0.2)
    assert right.turn_rewards() == pytest.approx([0.6, 1.1, 0.0])
    _, paid = wrong.step(Answer(0))
    assert (wrong.outcome, paid) == ("wrong", LedgerRow(format=0.1))
    assert wrong.turn_rewards() == pytest.approx([0.0, 0.1, 0.0])


def test_immediate_presets_pay_each_turn_at_once():
    episode = make_episode(reward="ungated")
    _, first = episode.step(Retrieve(4, 5))
    _, second = episode.step(Answer(0))
    assert (total(first), total(second)) == pytest.approx((0.6, 0.1))
    assert episode.turn_rewards() == pytest.approx([0.6, 0.1, 0.0])


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (Answer(3), "choice 3 does not exist; there are 3"),
        (Answer(-1), "choice -1 does not exist"),
        (Retrieve(0, 10), r"interval \(0, 10\) leaves the pool; valid range is 0..9"),
        (Retrieve(-1, 5), r"interval \(-1, 5\) leaves the pool"),
        (Malformed("no tag"), "no tag"),
    ],
)
def test_a_malformed_action_spends_its_turn_and_shows_nothing(action, reason):
    episode = make_episode()
    seen = set(episode.seen)
    view, paid = episode.step(action)
    assert len(view.frame_index) == 0 and total(paid) == 0.0
    log = episode.turns[0]
    assert isinstance(log.action, Malformed)
    assert log.interval == (-1, -1) and math.isnan(log.iou)
    assert re.search(reason, log.action.reason)
    assert (episode.turn, episode.over, episode.seen) == (1, False, seen)
    _, paid = episode.step(Answer(1))
    assert total(paid) == pytest.approx(1.1)  # the malformed turn earned no format reward


def test_a_retrieval_in_the_last_turn_ends_the_episode_unanswered():
    episode = make_episode()
    episode.step(Retrieve(0, 1))
    episode.step(Retrieve(4, 5))
    assert not episode.may_retrieve
    _, paid = episode.step(Retrieve(4, 5))
    assert (episode.outcome, total(paid), episode.turn) == ("unanswered", 0.0, 3)
    assert isinstance(episode.turns[-1].action, Malformed)


def test_with_one_turn_there_is_nothing_but_to_answer():
    episode = make_episode(max_turns=1)
    assert not episode.may_retrieve
    episode.step(Retrieve(0, 1))
    assert episode.outcome == "unanswered"


def test_an_ended_episode_takes_no_more_steps():
    episode = make_episode()
    episode.step(Answer(0))
    with pytest.raises(RuntimeError, match=r"the episode is over \(wrong\)"):
        episode.step(Answer(1))


def test_a_task_without_a_public_answer_ends_unscored():
    episode = make_episode(answer=None)
    episode.step(Retrieve(4, 5))
    _, paid = episode.step(Answer(1))
    assert (episode.outcome, paid) == ("unscored", LedgerRow(format=0.1))


def test_without_segments_nothing_is_judged_and_the_answer_is_still_paid():
    episode = make_episode(segments=())
    assert math.isnan(episode.initial_iou)
    episode.step(Retrieve(4, 5))
    assert math.isnan(episode.turns[0].iou) and math.isnan(episode.best_iou)
    _, paid = episode.step(Answer(1))
    assert (paid.accuracy, paid.relevance, paid.format) == pytest.approx((1.0, 0.0, 0.2))


def test_a_fault_takes_the_held_rewards_but_not_those_already_paid():
    held = make_episode()
    held.step(Retrieve(4, 5))
    held.fail("disk on fire")
    assert (held.outcome, held.error) == ("infra_error", "disk on fire")
    assert held.turn_rewards().tolist() == [0.0, 0.0, 0.0]
    paid = make_episode(reward="ungated")
    paid.step(Retrieve(4, 5))
    paid.step(Retrieve(0, 1))
    paid.fail("disk on fire")
    assert paid.turn_rewards() == pytest.approx([0.6, 0.0, 0.0])


# --- invariants ---------------------------------------------------------------------------------

actions = st.one_of(
    st.builds(Retrieve, st.integers(-2, 12), st.integers(-2, 12)),
    st.builds(Answer, st.integers(-1, 4)),
    st.just(Malformed("noise")),
)


@given(
    st.lists(actions, min_size=6, max_size=6),
    st.integers(1, 6),
    st.sampled_from([SMALL, Budget(5, 0, 3), Budget(3, 3, 1), Budget.split(4)]),
    st.sampled_from(["pool", "timeline"]),
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from([(), ((40.0, 60.0),), ((1.0, 2.0), (70.0, 99.0))]),
)
def test_any_actions_keep_to_budget_and_turns_and_the_ledger_sums_to_what_was_paid(
    actions, max_turns, budget, retrieval, reward, segments
):
    episode = make_episode(
        max_turns=max_turns, budget=budget, retrieval=retrieval, reward=reward, segments=segments
    )
    shown, paid = len(episode.overview.frame_index), []
    for action in actions:
        if episode.over:
            break
        might = episode.may_retrieve
        view, row = episode.step(action)
        assert len(view.frame_index) == len(view.times) <= budget.retrieval
        assert might or not len(view.frame_index)
        assert set(view.frame_index.tolist()) <= episode.seen
        shown += len(view.frame_index)
        paid.append(row)
        assert episode.frames_shown == shown <= budget.total
    assert episode.over and episode.turn <= max_turns
    assert math.fsum(row.total for row in paid) == pytest.approx(
        math.fsum(episode.turn_rewards()), abs=1e-12
    )
    for column in range(4):
        assert math.fsum(row[column] for row in paid) == pytest.approx(
            math.fsum(row[column] for row in episode.rows), abs=1e-12
        )
