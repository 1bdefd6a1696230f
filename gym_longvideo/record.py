"""EpisodeRecord: everything that happened in an episode, as JSON.

A record holds facts (which frames were shown, what was answered), never only the numbers computed
from them, so ``rescore`` can pay the same episode under another reward without running anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gym_longvideo.episode import Answer, Episode, Malformed
from gym_longvideo.rewards import BiLevelReward, LedgerRow, TurnFacts, make_reward
from gym_longvideo.version import __version__

FORMAT = 1


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode. All fields are JSON-able; IoUs that do not exist are ``None``.

    Attributes:
        format: Version of this layout.
        library: Version of gym_longvideo that wrote it.
        suite: Name of the suite.
        split: Split of the suite.
        settings: Settings of the environment that can move a result.
        task: task_id, video, video_id, question, options, answer_index, segments_s, task_types,
            meta.
        pool: duration_s and length of the pool, the relevant pool indices, and whether the file is
            truncated.
        overview: frame_index, time_s (asked for), shown_s (true times) and iou of the overview.
        turns: One entry a turn: op, interval, choice, malformed, frame_index, time_s, shown_s, iou,
            and whatever a wrapper added (the reply of a language model, say).
        ledger: One entry a turn: accuracy, relevance, format, bonus (what it finally earned; empty
            while the episode runs and its rewards are in escrow).
        outcome: As in the environment's info; "" if the episode was not over.
        error: What broke, for outcome "infra_error".
        frames_shown: Frames shown in all.
    """

    format: int
    library: str
    suite: str
    split: str
    settings: dict[str, Any]
    task: dict[str, Any]
    pool: dict[str, Any]
    overview: dict[str, Any]
    turns: list[dict[str, Any]]
    ledger: list[dict[str, float]]
    outcome: str
    error: str
    frames_shown: int

    @classmethod
    def of(
        cls, episode: Episode, *, suite: str, split: str, settings: Mapping[str, Any]
    ) -> EpisodeRecord:
        """Record an episode (finished or not)."""
        task = episode.task
        turns = []
        for log in episode.turns:
            turns.append(
                {
                    "op": log.facts.op,
                    "interval": list(log.interval),
                    "choice": log.action.choice if isinstance(log.action, Answer) else -1,
                    "malformed": log.action.reason if isinstance(log.action, Malformed) else "",
                    "frame_index": log.view.frame_index.tolist(),
                    "time_s": log.view.times.tolist(),
                    "shown_s": log.shown_s,
                    "iou": _or_none(log.iou),
                    **log.notes,
                }
            )
        return cls(
            format=FORMAT,
            library=__version__,
            suite=suite,
            split=split,
            settings=dict(settings),
            task={
                "task_id": task.task_id,
                "video": task.video,
                "video_id": task.video_id,
                "question": task.question,
                "options": list(task.options),
                "answer_index": task.answer_index,
                "segments_s": [list(segment) for segment in task.segments_s],
                "task_types": list(task.task_types),
                "meta": dict(task.meta),
            },
            pool={
                "duration_s": float(episode.duration_s),
                "length": len(episode.pool_times),
                "relevant": sorted(episode.relevant),
                "truncated": episode.truncated_video,
            },
            overview={
                "frame_index": episode.overview.frame_index.tolist(),
                "time_s": episode.overview.times.tolist(),
                "shown_s": episode.overview_shown_s,
                "iou": _or_none(episode.initial_iou),
            },
            turns=turns,
            ledger=[row._asdict() for row in episode.rows]
            if episode.over or episode.reward.timing == "immediate"
            else [],
            outcome=episode.outcome,
            error=episode.error,
            frames_shown=episode.frames_shown,
        )

    @property
    def total_reward(self) -> float:
        """Sum of the ledger."""
        return math.fsum(value for row in self.ledger for value in row.values())

    def to_json(self) -> str:
        """Return one line of JSON (strict: no NaN)."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> EpisodeRecord:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: If the line is no record, or one of another layout.
        """
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"not an episode record: {error}") from None
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
            raise ValueError(
                f"episode record of format {found!r}; this version of gym_longvideo reads {FORMAT}"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"not an episode record: {error}") from None


def rescore(
    record: EpisodeRecord, reward: str | Mapping[str, Any] | BiLevelReward
) -> list[LedgerRow]:
    """Say what each turn of a recorded episode would have earned under another reward.

    Raises:
        ValueError: If the episode is not over, or broke (faults are not rewards).
    """
    if record.outcome in ("", "infra_error"):
        raise ValueError(
            f"episode {record.task['task_id']!r} has outcome {record.outcome!r}: no reward"
        )
    facts = [TurnFacts(turn["op"], _or_nan(turn["iou"])) for turn in record.turns]
    return make_reward(reward).settle(
        facts, initial_iou=_or_nan(record.overview["iou"]), correct=record.outcome == "correct"
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
