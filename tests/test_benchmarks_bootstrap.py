"""Clustered intervals: exact small cases, coverage, and the cases in which there is no spread."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from benchmarks.scores.bootstrap import ClusterBootstrap, agreed, mcnemar


def interval(values, clusters, **options):
    values = np.asarray(values, float)[:, None]
    bootstrap = ClusterBootstrap(clusters, resamples=options.pop("resamples", 2000))
    return bootstrap.intervals(values, np.ones_like(values), **options)[0]


def test_a_video_counts_as_a_whole():
    # Two videos, one all right and one all wrong: a resample holds 0, 1 or 2 of the first.
    bootstrap = ClusterBootstrap(["a"] * 3 + ["b"] * 3, resamples=4000)
    values = np.array([1, 1, 1, 0, 0, 0.0])[:, None]
    drawn = bootstrap.ratios(values, np.ones((6, 1)))[:, 0]
    shares, counts = np.unique(drawn, return_counts=True)
    assert shares.tolist() == [0.0, 0.5, 1.0]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert interval([1, 1, 1, 0, 0, 0], ["a"] * 3 + ["b"] * 3) == (0.0, 1.0)


def test_alike_questions_widen_the_interval():
    right = np.tile([1, 0], 50).repeat(3)
    apart = interval(right, [str(i) for i in range(300)])
    together = interval(right, [str(i // 3) for i in range(300)])
    # The standard error grows by the square root of three.
    ratio = (together[1] - together[0]) / (apart[1] - apart[0])
    assert ratio == pytest.approx(math.sqrt(3), rel=0.1)


def test_intervals_are_those_of_a_normal_distribution_where_it_applies():
    right = np.arange(1000) % 5 == 0
    low, high = interval(right, [str(i) for i in range(1000)])
    half = 1.96 * math.sqrt(0.2 * 0.8 / 1000)
    assert (low, high) == (
        pytest.approx(0.2 - half, abs=0.004),
        pytest.approx(0.2 + half, abs=0.004),
    )


def test_the_seed_moves_an_interval_and_the_order_of_questions_does_not():
    values = np.random.default_rng(0).random(60)
    clusters = [f"v{i % 20}" for i in range(60)]
    assert interval(values, clusters) == interval(values, clusters)
    order = np.random.default_rng(1).permutation(60)
    shuffled = interval(values[order], [clusters[i] for i in order])
    assert shuffled == pytest.approx(interval(values, clusters), abs=1e-12)
    other = ClusterBootstrap(clusters, seed=1).intervals(values[:, None], np.ones((60, 1)))[0]
    assert other != interval(values, clusters)


def test_groups_are_resampled_with_all_videos():
    # One question a video; a group of half of them has a random size in each resample.
    bootstrap = ClusterBootstrap([str(i) for i in range(40)])
    mask = (np.arange(40) < 20).astype(float)
    right = (np.arange(40) % 2).astype(float)
    drawn = bootstrap.ratios((right * mask)[:, None], mask[:, None])[:, 0]
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.std() == pytest.approx(math.sqrt(0.25 / 20), rel=0.1)


def test_all_right_is_no_certainty():
    # The exact binomial bound with ten videos as trials: 0.025 ** (1 / 10).
    low, high = interval(np.ones(30), [str(i // 3) for i in range(30)])
    assert (low, high) == (pytest.approx(0.69150, abs=1e-5), 1.0)
    low, high = interval(np.zeros(30), [str(i // 3) for i in range(30)])
    assert (low, high) == (0.0, pytest.approx(0.30850, abs=1e-5))


def test_one_video_says_next_to_nothing():
    low, high = interval([1, 1, 0], ["only"] * 3)
    assert (low, high) == (pytest.approx(0.025 * 2 / 3), pytest.approx(2 / 3 + 0.975 / 3))
    assert agreed(1.0, 1) == (pytest.approx(0.025), 1.0)


def test_without_data_there_is_no_interval():
    empty = ClusterBootstrap([])
    nothing = np.zeros((0, 2))
    assert empty.intervals(nothing, nothing) == [None, None]
    assert empty.macro_interval(nothing, nothing) is None
    masked = ClusterBootstrap(["a", "b"]).intervals(np.zeros((2, 1)), np.zeros((2, 1)))
    assert masked == [None]


def test_unbounded_statistics_have_no_widened_interval():
    assert interval([3.0, 3.0, 3.0], ["a", "b", "c"], within=None) == (3.0, 3.0)


def test_the_macro_mean_weighs_groups_not_questions():
    # Group x: 90 questions, a third right. Group y: 10 questions, all right.
    clusters = [str(i) for i in range(100)]
    right = np.concatenate([np.tile([1, 0, 0], 30), np.ones(10)])
    masks = np.stack([np.arange(100) < 90, np.arange(100) >= 90], axis=1).astype(float)
    low, high = ClusterBootstrap(clusters).macro_interval(right[:, None] * masks, masks)
    # Only x varies, with half its weight: 2/3 -+ 0.5 * 1.96 * sqrt(2/9 / 90).
    half = 0.5 * 1.96 * math.sqrt(2 / 9 / 90)
    assert (low, high) == (
        pytest.approx(2 / 3 - half, abs=0.01),
        pytest.approx(2 / 3 + half, abs=0.01),
    )
    assert low > 0.43 + 0.1  # far from the mean over questions, 0.4


def test_a_macro_mean_that_is_all_right_is_no_certainty():
    masks = np.eye(4).repeat(5, axis=0)
    low, high = ClusterBootstrap([str(i) for i in range(20)]).macro_interval(masks, masks)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 20)), 1.0)


def test_a_group_that_a_resample_lost_does_not_count_in_its_macro_mean():
    # The only video of y is missing in a third of all resamples of three; none of them is NaN.
    masks = np.array([[1, 0], [1, 0], [0, 1.0]])
    ends = ClusterBootstrap(["a", "b", "c"]).macro_interval(
        np.array([[1, 0], [0, 0], [0, 1.0]]), masks
    )
    assert ends == (0.0, 1.0)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (3, 3, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (2, 8, 112 / 1024), (0, 1, 1.0)],
)
def test_the_exact_p_value_of_mcnemar(only_a, only_b, p):
    # (2, 8): 2 * (1 + 10 + 45) / 2**10.
    assert mcnemar(only_a, only_b) == pytest.approx(p)


def test_mcnemar_does_not_overflow():
    # Normal approximation: z = 100 / sqrt(10000) = 1.
    assert mcnemar(4950, 5050) == pytest.approx(0.3222, abs=0.002)


def test_resamples_are_checked():
    with pytest.raises(ValueError, match="resamples=0 must be 1 or more"):
        ClusterBootstrap(["a"], resamples=0)


def test_a_hundred_statistics_of_2700_questions_take_well_under_two_seconds():
    rng = np.random.default_rng(0)
    values, masks = rng.random((2700, 100)), rng.random((2700, 100)) < 0.3
    start = time.process_time()
    bootstrap = ClusterBootstrap([str(i // 3) for i in range(2700)])
    found = bootstrap.intervals(values * masks, masks.astype(float))
    assert time.process_time() - start < 2.0
    covered = sum(ends is not None and ends[0] < 0.5 < ends[1] for ends in found)
    assert 88 <= covered <= 100  # 95, give or take three standard deviations
