"""Summary: everything that a run says, as one JSON-able dict.

It is computed from records alone and can be computed again at any time. The order of episodes moves
no number, so that a run that was interrupted gives the summary of one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from benchmarks.behaviour import behaviour, costs
from benchmarks.bootstrap import ClusterBootstrap
from benchmarks.card import Card, require_same
from benchmarks.dataset import Dataset
from benchmarks.grounding import (
    annotated_windows,
    best_set_iou,
    grounding_columns,
    overlaps,
    predicted_window,
)
from benchmarks.metrics import (
    Groups,
    Question,
    area_under_curve,
    is_answered,
    macro_group,
    mean,
    membership,
    outcomes,
    questions,
    record_key,
)
from gym_longvideo.record import EpisodeRecord

FORMAT = 1
BUDGET_KNOBS = (
    "settings.frame_budget",
    "settings.overview_frames",
    "settings.frames_per_retrieval",
    "settings.max_turns",
)


class RunLike(Protocol):
    """What a summary needs of a run."""

    @property
    def card(self) -> Card:
        """How the records came about."""
        ...

    @property
    def records(self) -> Sequence[EpisodeRecord]:
        """Finished episodes; no faults."""
        ...

    @property
    def budget_curve(
    summaries: Iterable[Mapping[str, Any]], *, across: Sequence[str] = BUDGET_KNOBS
) -> dict[str, Any]:
    """Return accuracy against frames shown, for summaries of one policy under several budgets.

    Returns:
        "points", by frames: {"frames", "accuracy" (an estimate), "hash"}; and "auc", the area under
        the curve with frames scaled to 0..1, which is the mean accuracy over the budgets; ``None``
        for fewer than two.

    Raises:
        CardMismatch: If they differ in more than budgets, or are of several policies.
    """
    found = [summary for summary in summaries if summary["accuracy"]["value"] is not None]
    cards = [Card(**summary["card"]) for summary in found]
    if cards:
        present = {name for name in across if any(_has(card.protocol, name) for card in cards)}
        require_same(cards, across=sorted(present), policy=True)
    points = [
        {
            "frames": summary["cost"]["frames_shown"],
            "accuracy": summary["accuracy"],
            "hash": summary["hash"],
        }
        for summary in found
    ]
    points.sort(key=lambda point: point["frames"])
    frames = [point["frames"] for point in points]
    return {
        "points": points,
        "auc": area_under_curve(frames, [point["accuracy"]["value"] for point in points]),
    }


def dataset_of(card: Card) -> Dataset | None:
    """Return the published benchmark that a card names; ``None`` for other suites."""
    from benchmarks.registry import ENV_IDS, dataset

    suite = card.protocol.get("suite", {})
    # Only benchmarks have digests of their annotation: another suite may bear the same name.
    return dataset(suite["name"]) if suite.get("annotation") and suite["name"] in ENV_IDS else None


def _returns(asked: Sequence[Question], sheet: Sheet) -> dict[str, Any]:
    """Return the mean return of an episode, and its parts."""
    parts = ("accuracy", "relevance", "format", "bonus")
    sums = np.zeros((len(asked), len(parts)))
    for i, question in enumerate(asked):
        for record in question.records:
            for row in record.ledger:
                sums[i] += [row.get(part, 0.0) for part in parts]
        sums[i] /= len(question.records)
    means = {part: mean(sums[:, k], sheet.scored) for k, part in enumerate(parts)}
    return {**sheet.estimate(sums.sum(axis=1), sheet.scored, within=None), **means}


def _grounding(asked: Sequence[Question], sheet: Sheet) -> dict[str, Any] | None:
    """Return the grounding metrics of the questions with annotated windows, ``None`` without any.

    Under the circular control, overlaps are means over the rotations, and a question is grounded
    if it is in each of them.
    """
    rows = [(i, record) for i, question in enumerate(asked) for record in question.records]
    rows = [(i, record) for i, record in rows if record.task["segments_s"]]
    if not rows:
        return None
    index = np.array([i for i, _ in rows])
    windows = [predicted_window(record) for _, record in rows]
    iou, iop = overlaps(windows, [annotated_windows(record) for _, record in rows])
    values, weights = grounding_columns(
        iou,
        iop,
        np.array([window is not None for window in windows]),
        sheet.right[index],
        sheet.scored[index],
    )
    sets = [best_set_iou(record) for _, record in rows]
    values["set_iou"] = np.array([0.0 if best is None else best for best in sets])
    weights["set_iou"] = np.array([best is not None for best in sets], float)

    def per_question(column: np.ndarray) -> np.ndarray:
        return np.bincount(index, column, minlength=len(asked))

    episodes = per_question(np.ones(len(rows)))
    columns, counts = [], []
    for name, column in values.items():
        weighed = per_question(weights[name])
        share = per_question(column * weights[name]) / np.maximum(weighed, 1)
        columns.append(np.floor(share) if name == "Acc@GQA" else share)
        counts.append(weighed / np.maximum(episodes, 1))
    estimates = sheet.estimates(np.stack(columns, axis=1), np.stack(counts, axis=1))
    named = dict(zip(values, estimates, strict=True))
    return {**named, "n": int((episodes > 0).sum())}


def _estimate(value: float | None, ends: tuple[float, float] | None) -> dict[str, Any]:
    low, high = ends or (None, None)
    return {"value": value, "low": low, "high": high}


def _has(protocol: Mapping[str, Any], name: str) -> bool:
    found: Any = protocol
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return True
