"""Behaviour and cost: how a policy goes about it, and what that takes. Means without intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.metrics import is_answered, mean, record_key
from gym_longvideo.record import EpisodeRecord

MEASURED = (
    "frames_decoded",
    "visual_tokens",
    "prompt_tokens",
    "reply_tokens",
    "decode_s",
    "prefill_s",
    "generate_s",
)


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

    def by_group(self, values: np.ndarray, **options: Any) -> dict[str, dict[str, dict[str, Any]]]:
        """Return {"value", "low", "high", "n"} of (n,) values by grouping and group."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for name, of in self.groups.items():
            masks = self._masks(name)
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
    by_group, lenient = sheet.by_group(sheet.right), sheet.by_group(sheet.lenient)
    for name, rows in by_group.items():
        for group, row in rows.items():
            row["lenient"] = lenient[name][group]["value"]
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
        "accuracy_answered": sheet.estimate(sheet.right, sheet.scored & sheet.answered),
        "answered": mean([is_answered(record) for record in records]),
        "groups": by_group,
        "chance": mean([question.chance for question in asked], sheet.scored),
        "return": _returns(asked, sheet),
        "grounding": _grounding(asked, sheet),
        "cost": costs(records, run.costs),
        "behaviour": behaviour(records),
        "budget_curve": None,
        "card": {"protocol": dict(run.card.protocol), "policy": dict(run.card.policy)},
    }


def costs(
    records: Sequence[EpisodeRecord], costs: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | None]:
    """Return means over episodes; what was not measured does not count, ``None`` if nothing was."""
    found: dict[str, float | None] = {
        "turns": mean([len(record.turns) for record in records]),
        "frames_shown": mean([record.frames_shown for record in records]),
    }
    lines = [costs.get(record_key(record), {}) for record in records]
    for name in MEASURED:
        values = [line[name] for line in lines if line.get(name) is not None]
        found[name] = mean(values)
    return found


def behaviour(records: Sequence[EpisodeRecord]) -> dict[str, float | None]:
    """Return how a policy goes about it; shares, ``None`` where there is nothing to share.

    retrieval_rate and malformed_rate are shares of turns; episodes_retrieving and unanswered_rate
    of episodes; repeat_rate of retrievals (the interval was retrieved before in the episode);
    interval_share is the mean width of a retrieval as a share of the pool; first_hit_rate is the
    share of first retrievals that show a relevant frame, where relevance is annotated.
    """
    operations = [turn["op"] for record in records for turn in record.turns]
    repeats: list[bool] = []
    widths: list[float] = []
    first_hits: list[bool] = []
    retrieving: list[bool] = []
    for record in records:
        retrievals = [turn for turn in record.turns if turn["op"] == "retrieve"]
        retrieving.append(bool(retrievals))
        seen: set[tuple[int, int]] = set()
        for turn in retrievals:
            start, end = turn["interval"]
            repeats.append((start, end) in seen)
            seen.add((start, end))
            widths.append((end - start + 1) / record.pool["length"])
        if retrievals and record.pool["relevant"]:
            hit = set(retrievals[0]["frame_index"]) & set(record.pool["relevant"])
            first_hits.append(bool(hit))
    return {
        "retrieval_rate": mean([op == "retrieve" for op in operations]),
        "episodes_retrieving": mean(retrieving),
        "malformed_rate": mean([op == "malformed" for op in operations]),
        "repeat_rate": mean(repeats),
        "interval_share": mean(widths),
        "unanswered_rate": mean([not is_answered(record) for record in records]),
        "first_hit_rate": mean(first_hits),
    }
