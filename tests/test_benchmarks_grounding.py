"""Grounding: overlaps worked out by hand, and the rules of NExT-GQA and QVHighlights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from benchmark_records import final, record, retrieval

from benchmarks.scores.grounding import (
    annotated_windows,
    best_overlap,
    best_set_iou,
    grounding,
    overlap,
    pool_edges,
    predicted_window,
    recall_at_1,
)
from gym_longvideo.episode import cell_edges
from gym_longvideo.video.pool import pool_times


@pytest.mark.parametrize(
    ("predicted", "annotated", "iou", "iop"),
    [
        ((0, 10), (0, 10), 1.0, 1.0),
        ((0, 10), (5, 15), 5 / 15, 0.5),
        ((0, 40), (10, 20), 0.25, 0.25),
        ((12, 14), (10, 20), 0.2, 1.0),
        ((0, 10), (10, 20), 0.0, 0.0),
        ((0, 10), (30, 40), 0.0, 0.0),  # the script has a negative share, and takes 0 for the best
        ((5, 15), (20, 20), 0.0, 0.0),  # an annotated moment
        ((15, 15), (10, 20), 0.0, 1.0),  # no length, inside
        ((10, 10), (10, 20), 0.0, 1.0),  # no length, on the edge
        ((25, 25), (10, 20), 0.0, 0.0),  # no length, outside
    ],
)
def test_overlap_of_two_windows(predicted, annotated, iou, iop):
    assert overlap(predicted, annotated) == (pytest.approx(iou), pytest.approx(iop))


@pytest.mark.parametrize(
    ("predicted", "annotated", "hull", "threshold", "reached"),
    # What the scripts divide by; by lengths, each would fall on the other side of its threshold.
    [
        ((7.0, 17.5), (0.1, 15.7), 17.5 - 0.1, 0.5, True),  # 8.7 / 17.4
        ((10.1, 22.4), (6.8, 17.9), 22.4 - 6.8, 0.5, True),  # 7.8 / 15.6
        ((5.6, 12.0), (7.7, 10.9), 12.0 - 5.6, 0.5, True),  # inside: 3.2 / 6.4
        ((8.7, 26.0), (13.5, 33.7), 33.7 - 8.7, 0.5, False),  # 12.5 / 25, as doubles have it
        ((7.8, 17.4), (2.6, 34.6), 34.6 - 2.6, 0.3, False),  # 9.6 / 32, likewise
    ],
)
def test_iou_is_the_share_of_the_hull_to_the_last_digit(
    predicted, annotated, hull, threshold, reached
):
    common = min(predicted[1], annotated[1]) - max(predicted[0], annotated[0])
    assert overlap(predicted, annotated)[0] == overlap(annotated, predicted)[0] == common / hull
    assert common / hull == pytest.approx(threshold)
    found = grounding([predicted], [[(90.0, 95.0), annotated]], [True])
    assert found[f"IoU@{threshold}"] == float(reached)
    assert recall_at_1([predicted], [[annotated]], threshold) == float(reached)


def test_windows_that_reading_cut_are_had_as_annotated():
    cut = record("a", segments=[(0, 5), (28, 30)])
    assert annotated_windows(cut, uncut=True) == [(0, 5), (28, 30)]
    cut.task["meta"]["annotated_segments"] = [[-0.2, 5], [28, 30.5], [9, 3], ["1", None], 7]
    assert annotated_windows(cut) == [(0, 5), (28, 30)]
    assert annotated_windows(cut, uncut=True) == [(-0.2, 5), (28, 30.5)]
    cut.task["meta"]["annotated_segments"] = "00:28-00:31"  # read by rules of another benchmark
    assert annotated_windows(cut, uncut=True) == [(0, 5), (28, 30)]


def test_a_reversed_window_is_refused():
    with pytest.raises(ValueError, match=r"\(9, 3\) .* must be \(start, end\)"):
        overlap((9, 3), (0, 10))


def test_the_best_iou_and_the_best_iop_may_come_from_different_windows():
    # (0, 4): IoU 0.4, IoP 0.4. (5, 40): IoU 5 / 40, IoP 0.5.
    assert best_overlap((0, 10), [(0, 4), (5, 40)]) == (0.4, 0.5)


def test_several_windows_are_not_joined():
    # Against the union of both halves IoP would be 0.8.
    assert best_overlap((0, 10), [(0, 4), (6, 10)]) == (0.4, 0.4)


QUESTIONS = {
    "predicted": [(0, 10), (0, 40), None, (12, 14), (50, 60)],
    "annotated": [[(0, 10)], [(10, 20)], [(0, 10)], [(10, 20)], [(0, 4), (55, 100)]],
    "right": [True, True, True, False, True],
}
# IoU: 1, 0.25, none, 0.2, 5 / 50. IoP: 1, 0.25, none, 1, 0.5.


def test_grounding_metrics_by_hand():
    found = grounding(**QUESTIONS)
    assert found == {
        "mIoU": pytest.approx((1 + 0.25 + 0 + 0.2 + 0.1) / 5),
        "mIoP": pytest.approx((1 + 0.25 + 0 + 1 + 0.5) / 5),
        "IoU@0.3": 0.2,
        "IoU@0.5": 0.2,
        "IoU@0.7": 0.2,
        "IoP@0.3": 0.6,
        "IoP@0.5": 0.6,
        "Acc@GQA": 0.4,  # the first and the last
        "ungrounded_given_correct": 0.5,  # two of the four right ones
        "predicted": 0.8,
    }


def test_skipping_missing_predictions_gives_the_number_of_the_official_script():
    found = grounding(**QUESTIONS, skip_missing=True)
    assert found["mIoU"] == pytest.approx(1.55 / 4)
    assert found["mIoP"] == pytest.approx(2.75 / 4)
    assert found["IoP@0.5"] == 0.75
    assert found["Acc@GQA"] == 0.5
    assert found["ungrounded_given_correct"] == pytest.approx(1 / 3)
    assert found["predicted"] == 0.8  # of all, in either case


def test_predicting_only_where_it_is_sure_gains_nothing_by_default():
    everywhere = grounding([(0, 10), (50, 60)], [[(0, 10)], [(0, 10)]], [True, True])
    once = grounding([(0, 10), None], [[(0, 10)], [(0, 10)]], [True, True])
    assert once["mIoU"] == everywhere["mIoU"] == 0.5
    skipping = grounding([(0, 10), None], [[(0, 10)], [(0, 10)]], [True, True], skip_missing=True)
    assert skipping["mIoU"] == 1.0


def test_thresholds_are_reached_by_equality():
    found = grounding([(0, 10)], [[(5, 10)]], [True])
    assert (found["IoU@0.5"], found["IoP@0.5"], found["Acc@GQA"]) == (1.0, 1.0, 1.0)


def test_without_questions_there_is_no_grounding():
    assert set(grounding([], [], []).values()) == {None}
    assert grounding([(0, 1)], [[(0, 1)]], [False])["ungrounded_given_correct"] is None


def test_recall_at_one_of_qvhighlights_takes_the_best_window():
    # Best IoUs: 16 / 20 with the second window, 10 / 20, none.
    predicted = [(20.0, 40.0), (0.0, 10.0), None]
    annotated = [[(0.0, 4.0), (20.0, 36.0)], [(0.0, 20.0)], [(0.0, 2.0)]]
    assert recall_at_1(predicted, annotated, 0.5) == pytest.approx(2 / 3)
    assert recall_at_1(predicted, annotated, 0.7) == pytest.approx(1 / 3)
    same = grounding(predicted, annotated, [True] * 3)
    assert (same["IoU@0.5"], same["IoU@0.7"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_the_last_retrieval_is_the_prediction_from_edge_to_edge():
    # Ten cells of ten seconds.
    assert predicted_window(record("a", retrievals=[retrieval(0, 9), retrieval(2, 4)])) == (20, 50)
    assert predicted_window(record("a", retrievals=[retrieval(9, 9)])) == (90, 100)
    assert predicted_window(record("a")) is None
    assert predicted_window(record("a", retrievals=[final(None)])) is None


@pytest.mark.parametrize("rule", ["linspace", "per_second"])
@pytest.mark.parametrize(
    ("fps", "frames", "size"), [(25.0, 2500, 64), (1.0, 40, 64), (25.0, 1000, 64)]
)
def test_the_edges_of_a_pool_of_source_frames_are_right_to_one(fps, frames, size, rule):
    times = pool_times(frames / fps, size, rule, frame_count=frames, fps=fps)
    made = record("a")
    made = dataclasses.replace(
        made,
        settings={**made.settings, "pool_rule": rule, "pool_size": size},
        pool={**made.pool, "duration_s": frames / fps, "length": len(times)},
    )
    difference = np.abs(pool_edges(made) - cell_edges(times, frames / fps))
    assert difference.max() <= 1 / fps + 1e-9
    if (
        frames < size and rule == "linspace"
    ):  # every source frame is in the pool: nothing is left to guess
        assert difference.max() < 1e-9


def test_the_best_set_iou_counts_the_overview():
    looked = [retrieval(0, 1, iou=0.2), retrieval(2, 3, iou=0.4)]
    assert best_set_iou(record("a", retrievals=looked, initial_iou=0.3)) == 0.4
    assert best_set_iou(record("a", retrievals=looked, initial_iou=0.5)) == 0.5
    assert best_set_iou(record("a")) is None
