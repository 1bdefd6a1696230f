"""Exactness: what proves an answer, what geometry predicts, and what a budget allows."""

import copy
import math
import random

import numpy as np
import pytest

from gym_longvideo.episode import overview_frame_index, stride_frame_index
from gym_longvideo.haystack import FAMILIES, HaystackSuite, oracle

POOL = (np.arange(128) + 0.5) / 128  # of the duration
OVERVIEW = overview_frame_index(128, 16)
CARD_FAMILIES = [family for family in FAMILIES if family != "holistic"]


def overview(suite):
    return POOL[OVERVIEW] * suite.knobs.duration_s


def rate(suite, times_of, count=2000):
    solved = 0
    for index in range(count):
        task = suite[index]
        solved += suite.solve(task, times_of(task)) is not None
    return solved / count


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("knobs", [{}, {"options": 6}, {"options": 2, "duration_s": 7200.0}])
def test_minimal_evidence_proves_the_answer_and_nothing_less_does(family, knobs):
    suite = HaystackSuite("train", families=family, **knobs)
    dice = random.Random(0)
    for index in range(150):
        task = suite[index]
        groups = suite.evidence(task)
        assert suite.minimal_frames(task) == len(groups) > 0
        spans = [dice.choice(group) for group in groups]
        times = [dice.uniform(start, math.nextafter(end, 0)) for start, end in spans]
        dice.shuffle(times)
        assert suite.solve(task, times) == task.answer_index
        for dropped in range(len(times)):
            assert suite.solve(task, times[:dropped] + times[dropped + 1 :]) is None


@pytest.mark.parametrize("family", CARD_FAMILIES)
def test_cards_are_evidence_from_their_first_moment_to_before_their_end(family):
    suite = HaystackSuite("train", families=family)
    for index in range(50):
        task = suite[index]
        starts = [group[0][0] for group in suite.evidence(task)]
        ends = [group[0][1] for group in suite.evidence(task)]
        assert suite.solve(task, starts) == task.answer_index
        assert suite.solve(task, [math.nextafter(end, 0) for end in ends]) == task.answer_index
        assert suite.solve(task, ends) is None
        assert suite.solve(task, [math.nextafter(start, 0) for start in starts]) is None
        assert task.segments_s == tuple(sorted(zip(starts, ends, strict=True)))


@pytest.mark.parametrize("family", FAMILIES)
def test_more_frames_never_unprove_an_answer(family):
    suite = HaystackSuite("train", families=family)
    dice = random.Random(1)
    for index in range(40):
        task = suite[index]
        seen: list[float] = []
        proved = False
        for time in dice.sample(list(POOL * 600), 128):
            seen.append(time)
            now = suite.solve(task, seen) is not None
            assert now or not proved
            proved = now
        assert proved  # the whole pool always does


@pytest.mark.parametrize("family", ["needle", "timestamp", "absent"])
@pytest.mark.parametrize("needle_s", [None, 2.0, 20.0])
def test_an_overview_shows_a_needle_as_often_as_it_is_long(family, needle_s):
    suite = HaystackSuite("train", families=family, needle_s=needle_s)
    expected = suite.knobs.needle_s / 37.5
    error = math.sqrt(expected * (1 - expected) / 2000)
    assert abs(rate(suite, lambda task: overview(suite)) - expected) < 4 * error


def test_an_overview_shows_both_needles_of_a_chain_as_rarely_as_chance_has_it():
    suite = HaystackSuite("train", families="chain")
    expected = (1.1 / 8) ** 2
    error = math.sqrt(expected * (1 - expected) / 2000)
    assert abs(rate(suite, lambda task: overview(suite)) - expected) < 4 * error


@pytest.mark.parametrize("family", ["order", "count", "state"])
def test_an_overview_never_shows_several_cards_of_one_scene(family):
    suite = HaystackSuite("train", families=family)
    # All cards lie within one stride of the overview, so at most one of them can be met.
    assert all(
        suite[index].segments_s[-1][1] - suite[index].segments_s[0][0] < 37.5 for index in range(99)
    )
    assert rate(suite, lambda task: overview(suite), 500) == 0.0


@pytest.mark.parametrize("options", [2, 4, 6])
@pytest.mark.parametrize("duration_s", [60.0, 600.0, 36000.0])
def test_an_overview_always_answers_a_holistic_question(options, duration_s):
    suite = HaystackSuite("train", families="holistic", options=options, duration_s=duration_s)
    assert rate(suite, lambda task: overview(suite), 300) == 1.0
    assert rate(suite, lambda task: [], 50) == 0.0
    times = overview(suite)
    assert all(suite.oracle_intervals(suite[i], POOL * duration_s, times) == [] for i in range(50))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [2, 4, 6])
@pytest.mark.parametrize("duration_s", [60.0, 600.0, 86400.0])
def test_two_retrievals_of_eight_frames_suffice_after_the_overview(family, options, duration_s):
    suite = HaystackSuite("train", families=family, options=options, duration_s=duration_s)
    pool = POOL * duration_s
    for index in range(100):
        task = suite[index]
        seen = overview(suite).tolist()
        for _ in range(2):
            intervals = suite.oracle_intervals(task, pool, seen, frames=8)
            if not intervals:
                break
            start, end = intervals[0]
            cells = stride_frame_index(start, end, 8)
            assert 0 <= start <= end < 128 and end - start < 8
            seen += pool[cells].tolist()
        assert suite.solve(task, seen) == task.answer_index
        assert suite.oracle_intervals(task, pool, seen) == []


def test_a_chain_is_retrieved_pointer_first():
    suite = HaystackSuite("train", families="chain")
    backwards = 0
    for index in range(60):
        task = suite[index]
        (pointer, target) = suite.evidence(task)
        first, second = suite.oracle_intervals(task, POOL * 600)
        assert pointer[0][0] <= POOL[first[0]] * 600 < pointer[0][1]
        assert target[0][0] <= POOL[second[0]] * 600 < target[0][1]
        backwards += first > second
    assert 15 < backwards < 45


def test_one_shot_retrieval_does_not_solve_a_chain_where_adaptive_retrieval_does():
    suite = HaystackSuite("train", families="chain", size=1000)
    pool = POOL * 600
    dice = random.Random(2)

    def any_interval(task):
        start, end = sorted((dice.randrange(128), dice.randrange(128)))
        return [*overview(suite), *pool[stride_frame_index(start, end, 8)]]

    def scene_asked_about(task):
        # As much as the question tells: the scene with the pointer, seen as densely as allowed.
        world = suite.world(task)
        start_s, end_s = world.span_s(world.scene_at(suite.evidence(task)[0][0][0]))
        cells = np.flatnonzero((pool >= start_s) & (pool < end_s))
        return [*overview(suite), *pool[stride_frame_index(cells[0], cells[-1], 8)]]

    p = 1.1 / 8  # the overview shows a needle
    # A random interval adds at most 8 of 128 frames: q is the chance that a needle is among 24.
    q = p + 8 * 1.1 / 128
    assert rate(suite, any_interval, 1000) < q * q + 4 * math.sqrt(q * q / 1000)
    # Dense in the pointer's scene, the target must have been met by the overview.
    assert rate(suite, scene_asked_about, 1000) < p + 4 * math.sqrt(p * (1 - p) / 1000)


def test_seeing_the_cards_of_other_scenes_proves_nothing():
    suite = HaystackSuite("train")
    for index in range(200):
        task = suite[index]
        if task.task_types[0] == "holistic":
            continue
        needles = set(task.segments_s)
        others = [e for e in suite.world(task).events if (e.start_s, e.end_s) not in needles]
        assert others
        assert suite.solve(task, [event.start_s for event in others]) is None


def test_a_needle_between_pool_frames_leaves_the_oracle_without_a_retrieval():
    suite = HaystackSuite("train", families="needle", needle_s=0.5)
    missed = [
        index
        for index in range(200)
        if suite.oracle_intervals(suite[index], POOL * 600, overview(suite)) == []
    ]
    assert 150 < len(missed) < 198  # a pool frame shows 0.5 of 4.69 seconds


def test_solving_needs_only_the_task_and_not_the_suite():
    suite = HaystackSuite("train", families="order")
    task = copy.deepcopy(suite[4])
    times = [group[0][0] for group in suite.evidence(task)]
    assert HaystackSuite("val", families="needle").solve(task, times) == task.answer_index


def test_what_lies_between_pool_frames_is_aimed_at_only_where_it_can_be_shown():
    suite = HaystackSuite("val", families="chain", needle_s=0.5, size=32)
    pool = POOL * suite.knobs.duration_s
    for task in suite:
        plain = oracle.oracle_intervals(task, pool)
        both = oracle.oracle_intervals(task, pool, between=True)
        assert both[: len(plain)] == plain
        hidden = [
            (start + end) / 2
            for ((start, end),) in oracle.evidence(task)
            if not any(start <= time_s < end for time_s in pool)
        ]
        nearest = [int(np.abs(pool - middle).argmin()) for middle in hidden]
        assert both[len(plain) :] == [(cell, cell) for cell in nearest]
