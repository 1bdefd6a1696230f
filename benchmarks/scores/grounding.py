"""Grounding: how well a predicted window fits annotated ones. Pure functions on seconds.

Follows code/TempGQA/eval_ground.py of NExT-GQA: per question the best overlap over the annotated
windows, for IoU and for IoP each on its own (they may be different windows). One decision differs
by default: that script skips questions without a prediction, so that a policy gains by predicting
only where it is sure; here they count 0, and ``predicted`` says how many there are.
``skip_missing``, or "official" in a summary, gives the script's number. "official" takes windows
that leave the video as they are annotated, too; elsewhere they are cut when they are read.

R1@m of QVHighlights (standalone_eval of moment_detr) for a single predicted window is the same
thing: the share of queries whose best IoU reaches m. Both scripts divide by the hull, from the
first start to the last end. Where windows overlap that is their union, but to the last digit only
if it is computed so, and thresholds are reached by equality. torchmetrics has IoU of boxes only,
and that needs torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gym_longvideo import checks
from gym_longvideo.episode import cell_edges
from gym_longvideo.record import EpisodeRecord
from gym_longvideo.video.pool import pool_times

Window = tuple[float, float]

IOU_THRESHOLDS = (0.3, 0.5, 0.7)
IOP_THRESHOLDS = (0.3, 0.5)
GROUNDED_IOP = 0.5  # Acc@GQA: the answer is right, and so much of the prediction is relevant
# Source frames a second assumed where a record does not tell: an error of a fraction of a frame.
_FPS = 30


def overlap(predicted: Window, annotated: Window) -> tuple[float, float]:
    """Return IoU and IoP (the share of the prediction that is relevant) of two windows.

    IoU is the intersection over the hull. A prediction without length has IoU 0, and IoP 1 if it
    lies inside.

    >>> overlap((10.0, 20.0), (15.0, 35.0))
    (0.2, 0.5)
    >>> overlap((7.0, 17.5), (0.1, 15.7))[0]  # (15.7 - 7) / (17.5 - 0.1); by lengths 0.49999...
    0.5
    >>> overlap((5.0, 5.0), (0.0, 8.0)), overlap((9.0, 9.0), (0.0, 8.0))
    ((0.0, 1.0), (0.0, 0.0))

    Raises:
        ValueError: If a window ends before it starts.
    """
    (start, end), (first, last) = predicted, annotated
    if not (start <= end and first <= last):
        raise ValueError(f"windows {predicted} and {annotated} must be (start, end), start <= end")
    if start == end:
        return 0.0, 1.0 if first <= start <= last else 0.0
    common = max(0.0, min(end, last) - max(start, first))
    return common / (max(end, last) - min(start, first)), common / (end - start)


def best_overlap(predicted: Window, annotated: Sequence[Window]) -> tuple[float, float]:
    """Return the best IoU and the best IoP over annotated windows.

    >>> best_overlap((0.0, 10.0), [(0.0, 4.0), (8.0, 30.0)])  # both are those of the first window
    (0.4, 0.4)
    >>> best_overlap((0.0, 10.0), [(0.0, 4.0), (5.0, 40.0)])  # IoU of the first, IoP of the second
    (0.4, 0.5)
    """
    pairs = [overlap(predicted, window) for window in annotated]
    return max((iou for iou, _ in pairs), default=0.0), max((iop for _, iop in pairs), default=0.0)


def overlaps(
    predicted: Sequence[Window | None], annotated: Sequence[Sequence[Window]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) float64 best IoU and best IoP of n questions; 0 where nothing was predicted."""
    pairs = [
        (0.0, 0.0) if window is None else best_overlap(window, truth)
        for window, truth in zip(predicted, annotated, strict=True)
    ]
    table = np.array(pairs, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def grounding(
    predicted: Sequence[Window | None],
    annotated: Sequence[Sequence[Window]],
    right: Sequence[bool],
    *,
    skip_missing: bool = False,
) -> dict[str, float | None]:
    """Return the grounding metrics of n questions; ``None`` where there is nothing to average.

    Args:
        predicted: (n,) windows in seconds, ``None`` where there is none.
        annotated: (n,) lists of annotated windows.
        right: (n,) whether the answer is right.
        skip_missing: Leave questions without a prediction out, as NExT-GQA's own script does.
    """
    from benchmarks.scores.questions import mean

    there = np.array([window is not None for window in predicted], bool)
    values, weights = grounding_columns(
        *overlaps(predicted, annotated), there, np.array(right, bool), np.ones(len(there), bool)
    )
    kept = there.astype(float) if skip_missing else np.ones(len(there))
    return {
        name: mean(column, weights[name] * (1.0 if name == "predicted" else kept))
        for name, column in values.items()
    }


def grounding_columns(
    iou: np.ndarray, iop: np.ndarray, there: np.ndarray, right: np.ndarray, scored: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the (n,) values and (n,) weights whose means are the metrics.

    Args:
        iou: (n,) best IoU.
        iop: (n,) best IoP.
        there: (n,) whether a window was predicted.
        right: (n,) whether the answer is right.
        scored: (n,) whether the answer is known.
    """
    every, known = np.ones(len(iou)), scored.astype(float)
    grounded = iop >= GROUNDED_IOP
    values = {
        "mIoU": iou,
        "mIoP": iop,
        **{f"IoU@{m}": iou >= m for m in IOU_THRESHOLDS},
        **{f"IoP@{m}": iop >= m for m in IOP_THRESHOLDS},
        "Acc@GQA": right & grounded,
        "ungrounded_given_correct": ~grounded,
        "predicted": there,
    }
    weights = dict.fromkeys(values, every)
    weights |= {"Acc@GQA": known, "ungrounded_given_correct": known * right}
    return {name: column.astype(float) for name, column in values.items()}, weights


def recall_at_1(
    predicted: Sequence[Window | None], annotated: Sequence[Sequence[Window]], threshold: float
) -> float | None:
    """Return R1@threshold of QVHighlights: the share of queries whose best IoU reaches it."""
    from benchmarks.scores.questions import mean

    return mean(overlaps(predicted, annotated)[0] >= threshold)


def predicted_window(record: EpisodeRecord) -> Window | None:
    """Return the interval of an episode's last retrieval in seconds; ``None`` without any.

    It reaches from the left edge of its first pool cell to the right edge of its last one. Records
    do not keep the pool's times: under ``pool_rule="midpoint"`` they are exact; under the
    other rules the edges are right to a source frame.
    """
    intervals = [turn["interval"] for turn in record.turns if turn["op"] == "retrieve"]
    if not intervals:
        return None
    start, end = intervals[-1]
    edges = pool_edges(record)
    return float(edges[start]), float(edges[end + 1])


def pool_edges(record: EpisodeRecord) -> np.ndarray:
    """Return (m + 1,) seconds: the borders of the pool cells of a recorded episode."""
    duration_s, length = float(record.pool["duration_s"]), int(record.pool["length"])
    if record.settings.get("pool_rule", "midpoint") == "midpoint":
        return np.arange(length + 1) * duration_s / length
    return cell_edges(recorded_pool_times(record), duration_s)


def recorded_pool_times(record: EpisodeRecord) -> np.ndarray:
    """Return (m,) seconds of the pool frames of a recorded episode; see ``predicted_window``."""
    duration_s, length = float(record.pool["duration_s"]), int(record.pool["length"])
    if record.settings.get("pool_rule", "midpoint") == "midpoint":
        return pool_times(duration_s, length)
    # A pool shorter than asked for holds every source frame, unless that is one a second.
    rule = record.settings["pool_rule"]
    whole = rule == "linspace" and length < int(record.settings.get("pool_size", length))
    frames = length if whole else max(length, round(duration_s * _FPS))
    return pool_times(duration_s, length, "linspace", frame_count=frames)


def annotated_windows(record: EpisodeRecord, *, uncut: bool = False) -> list[Window]:
    """Return the annotated segments of an episode's task in seconds.

    Args:
        record: The episode.
        uncut: Take those that were cut to the video as the annotation has them.
    """
    raw = record.task["meta"].get("annotated_segments") if uncut else None
    pairs = [pair for pair in raw if _is_window(pair)] if isinstance(raw, (list, tuple)) else []
    return [(float(start), float(end)) for start, end in pairs or record.task["segments_s"]]


def _is_window(pair: Any) -> bool:
    if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
        return False
    return all(checks.is_number(second) for second in pair) and pair[0] < pair[1]


def best_set_iou(record: EpisodeRecord) -> float | None:
    """Return the best set IoU of a view with the relevant pool frames, the overview included."""
    views = [record.overview["iou"], *(turn["iou"] for turn in record.turns)]
    judged = [iou for iou in views if iou is not None]
    return max(judged) if judged else None
