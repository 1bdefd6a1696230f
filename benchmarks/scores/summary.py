"""Summary: everything that a run says, as one JSON-able dict.

It is computed from records alone and can be computed again at any time. The order of episodes moves
no number, so that a run that was interrupted gives the summary of one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from benchmarks.card import Card, require_same
from benchmarks.controls import record_key
from benchmarks.datasets.dataset import Dataset
from benchmarks.scores.behaviour import behaviour, costs, trouble
from benchmarks.scores.bootstrap import ClusterBootstrap
from benchmarks.scores.grounding import (
    annotated_windows,
    best_set_iou,
    grounding_columns,
    overlaps,
    predicted_window,
)
from benchmarks.scores.questions import (
    Groups,
    Question,
    accuracy_by_group,
    area_under_curve,
    is_answered,
    macro_group,
    mean,
    membership,
    outcomes,
    questions,
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
    def costs(self) -> Mapping[str, Mapping[str, Any]]:
        """Key of the episode -> its costs."""
        ...

    @property
    def faults(self) -> Sequence[Mapping[str, Any]]:
        """Faults, each with the key of its episode."""
        ...


@dataclass(frozen=True)
class Results:
    """A run that lies in no directory: merged or rescored.

    Attributes:
        card: How the records came about.
        records: Finished episodes.
        costs: Key of the episode -> its costs.
        faults: Faults, each with the key of its episode.
    """

    card: Card
    records: tuple[EpisodeRecord, ...]
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    faults: tuple[Mapping[str, Any], ...] = ()


class Sheet:
    """Means over the questions of a run, with their intervals.

    Args:
        asked: Its questions.
        groups: ``Dataset.groups``.
        overall: ``Dataset.overall``.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """

    def __init__(
        self,
        asked: Sequence[Question],
        groups: Groups | None,
        overall: str,
        *,
        resamples: int,
        seed: int,
    ) -> None:
        self.right, self.scored, self.answered = outcomes(asked)
        self.lenient = outcomes(asked, lenient=True)[0]
        self.groups = membership(asked, groups)
        self.macro = macro_group(overall)
        if self.macro is not None and asked and self.macro not in self.groups:
            raise ValueError(
                f"overall={overall!r}, but the questions have the groups {sorted(self.groups)}"
            )
        self.bootstrap = ClusterBootstrap(
            [question.video_id for question in asked], resamples=resamples, seed=seed
        )

    def estimate(self, values: Any, weights: Any = None, **options: Any) -> dict[str, Any]:
        """Return {"value", "low", "high"} of the (weighted) mean of (n,) values."""
        values = np.asarray(values, np.float64)
        weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
        return self.estimates(values[:, None], weights[:, None], **options)[0]

    def estimates(
        self, values: np.ndarray, weights: np.ndarray, **options: Any
    ) -> list[dict[str, Any]]:
        """Return {"value", "low", "high"} of each of s means of (n, s) values."""
        ranges = self.bootstrap.intervals(values * weights, weights, **options)
        means = [mean(values[:, k], weights[:, k]) for k in range(values.shape[1])]
        return [_estimate(value, ends) for value, ends in zip(means, ranges, strict=True)]

    def overall(self, values: np.ndarray, **options: Any) -> dict[str, Any]:
        """Return the official overall of (n,) values: micro, or macro over a grouping."""
        if self.macro is None or not len(values):
            return self.estimate(values, self.scored, **options)
        masks = self._masks(self.macro)
        columns = np.repeat(np.asarray(values, np.float64)[:, None], masks.shape[1], axis=1)
        groups = [mean(columns[:, k], masks[:, k]) for k in range(masks.shape[1])]
        value = mean([share for share in groups if share is not None])
        return _estimate(value, self.bootstrap.macro_interval(columns * masks, masks, **options))

    def by_group(
        self, values: np.ndarray, *, among: np.ndarray | None = None, **options: Any
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Return {"value", "low", "high", "n"} of (n,) values by grouping and group.

        Args:
            values: (n,) summands.
            among: (n,) bool: which questions count, besides being scored; all if ``None``.
            **options: Of the bootstrap's intervals.
        """
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for name, of in self.groups.items():
            masks = self._masks(name)
            if among is not None:
                masks *= among[:, None]
            columns = np.repeat(np.asarray(values, np.float64)[:, None], masks.shape[1], axis=1)
            rows = self.estimates(columns, masks, **options)
            counts = masks.sum(axis=0)
            found[name] = {
                group: {**row, "n": int(n)}
                for group, row, n in zip(of, rows, counts, strict=True)
                if n
            }
        return {name: rows for name, rows in found.items() if rows}

    def _masks(self, name: str) -> np.ndarray:
        """Return (n, s) float64: which scored questions belong to the groups of a grouping."""
        return (np.stack(list(self.groups[name].values()), axis=1) & self.scored[:, None]) * 1.0


def summarize(
    run: RunLike, dataset: Dataset | None = None, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Return all numbers of a run.

    Every estimate is {"value", "low", "high"}: a mean and its 95 % interval, clustered by video;
    all three are ``None`` where there is nothing to average. Means without an interval are a number
    or ``None``.

    An unanswered question is wrong. The scripts of LVBench and NExT-GQA leave it out instead: what
    they would print is ``accuracy_answered``, ``answered`` in each row of ``groups``, and
    ``grounding["official"]``.

    Args:
        run: Records with their card, costs and faults.
        dataset: Says what the groups are and what the official overall accuracy is; without one
            they are task types, and the mean over questions.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: If an episode is recorded twice, is a fault, or cannot be grouped.
    """
    asked = questions(run.records)
    groups, overall = (dataset.groups, dataset.overall) if dataset else (None, "micro")
    sheet = Sheet(asked, groups, overall, resamples=resamples, seed=seed)
    records = [record for question in asked for record in question.records]
    played = {record_key(record) for record in records}
    suite = run.card.protocol.get("suite", {})
    by_group = sheet.by_group(sheet.right)
    for name, shares in accuracy_by_group(asked, groups, lenient=True).items():
        for group, share in shares.items():
            by_group[name][group]["lenient"] = share
    of_answered = sheet.by_group(sheet.right, among=sheet.answered)
    for name, rows in by_group.items():
        for group, row in rows.items():
            nothing = {**_estimate(None, None), "n": 0}
            row["answered"] = of_answered.get(name, {}).get(group, nothing)
    return {
        "format": FORMAT,
        "hash": run.card.hash,
        "protocol_hash": run.card.protocol_hash,
        "suite": {"name": suite.get("name"), "split": suite.get("split")},
        "policy": dict(run.card.policy),
        "control": run.card.protocol.get("control"),
        "scorer": run.card.protocol.get("scorer"),
        "overall": overall,
        "episodes": len(records),
        "questions": len(asked),
        "scored": int(sheet.scored.sum()),
        "incomplete": sum(not question.complete for question in asked),
        "faults": len({str(fault.get("key")) for fault in run.faults} - played),
        "videos": sheet.bootstrap.clusters,
        "accuracy": sheet.overall(sheet.right),
        "accuracy_micro": sheet.estimate(sheet.right, sheet.scored),
        "lenient_accuracy": sheet.overall(sheet.lenient),
        "accuracy_answered": {
            **sheet.estimate(sheet.right, sheet.scored & sheet.answered),
            "n": int((sheet.scored & sheet.answered).sum()),
        },
        "answered": mean([is_answered(record) for record in records]),
        "groups": by_group,
        "chance": mean([question.chance for question in asked], sheet.scored),
        "return": _returns(asked, sheet),
        "grounding": _grounding(asked, sheet),
        "grounding_missing": _why_no_grounding(asked, dataset),
        "cost": costs(records, run.costs),
        "behaviour": behaviour(records),
        "trouble": trouble(records),
        "budget_curve": None,
        "card": {"protocol": dict(run.card.protocol), "policy": dict(run.card.policy)},
    }


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
    if it is in each of them. "official" has the same under the convention of NExT-GQA's script,
    which leaves out what has no prediction ("predicted" is of all in either) and takes windows
    that leave the video as they are annotated; ``None`` without any.
    """
    rows = [(i, record) for i, question in enumerate(asked) for record in question.records]
    rows = [(i, record) for i, record in rows if record.task["segments_s"]]
    if not rows:
        return None
    index = np.array([i for i, _ in rows])
    windows = [predicted_window(record) for _, record in rows]
    there = np.array([window is not None for window in windows])
    sets = [best_set_iou(record) for _, record in rows]

    def per_question(column: np.ndarray) -> np.ndarray:
        return np.bincount(index, column, minlength=len(asked))

    every = np.ones(len(rows))

    def estimates(kept: np.ndarray, *, uncut: bool = False) -> dict[str, Any]:
        truth = [annotated_windows(record, uncut=uncut) for _, record in rows]
        values, weights = grounding_columns(
            *overlaps(windows, truth), there, sheet.right[index], sheet.scored[index]
        )
        values["set_iou"] = np.array([0.0 if best is None else best for best in sets])
        weights["set_iou"] = np.array([best is not None for best in sets], float)
        columns, counts = [], []
        for name, column in values.items():
            among = every if name == "predicted" else kept
            weighed = per_question(weights[name] * among)
            share = per_question(column * weights[name] * among) / np.maximum(weighed, 1)
            columns.append(np.floor(share) if name == "Acc@GQA" else share)
            counts.append(weighed / np.maximum(per_question(among), 1))
        found = sheet.estimates(np.stack(columns, axis=1), np.stack(counts, axis=1))
        n = int((per_question(kept) > 0).sum())
        return {**dict(zip(values, found, strict=True)), "n": n}

    official = estimates(there * 1.0, uncut=True) if there.any() else None
    return {**estimates(every), "official": official}


def _why_no_grounding(asked: Sequence[Question], dataset: Dataset | None) -> str:
    """Return why a benchmark with segments has no grounding metrics in this run, or ""."""
    segments_from = getattr(dataset, "segments_from", "")
    if not segments_from:
        return ""
    if any(record.task["segments_s"] for question in asked for record in question.records):
        return ""
    return (
        f"no grounding metrics: none of {len(asked)} questions has segments; they come from "
        f"{segments_from}, which was not there"
    )


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
