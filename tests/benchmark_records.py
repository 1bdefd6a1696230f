"""Episode records made by hand, and a run of them, for tests of the numbers of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.card import Card
from gym_longvideo.record import EpisodeRecord
from gym_longvideo.rewards import make_reward


@dataclass(frozen=True)
class FakeRun:
    """What ``benchmarks.runs.Run`` offers, without a directory."""

    card: Card
    records: Sequence[EpisodeRecord]
    costs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    faults: Sequence[dict[str, Any]] = ()


def card(policy: str = "someone", **protocol: Any) -> Card:
    settings = {"frame_budget": 32, "max_turns": 3, "reward": make_reward("video_mtr").to_dict()}
    fields = {
        "suite": {"name": "made-up", "split": "test"},
        "settings": settings,
        "text_protocol": "tags",
        "control": "none",
        "scorer": "strict",
    }
    return Card({**fields, **protocol}, {"kind": "scripted", "name": policy})


def run(records: Sequence[EpisodeRecord], policy: str = "someone", **protocol: Any) -> FakeRun:
    return FakeRun(card(policy, **protocol), tuple(records))


def retrieval(start: int, end: int, iou: float | None = None, shown: Sequence[int] = ()) -> dict:
    cells = list(shown) or list(range(start, end + 1))
    return {
        "op": "retrieve",
        "interval": [start, end],
        "choice": -1,
        "malformed": "",
        "frame_index": cells,
        "time_s": [],
        "shown_s": [],
        "iou": iou,
    }


def final(choice: int | None, **notes: Any) -> dict:
    """An answer, or with ``None`` a reply that is none."""
    return {
        "op": "malformed" if choice is None else "answer",
        "interval": [-1, -1],
        "choice": -1 if choice is None else choice,
        "malformed": "no action" if choice is None else "",
        "frame_index": [],
        "time_s": [],
        "shown_s": [],
        "iou": None,
        **notes,
    }


def record(
    task_id: str,
    choice: int | None = 0,
    *,
    expected: int | None = 0,
    video: str = "",
    question: str = "Which?",
    options: int = 4,
    texts: Sequence[str] = (),
    types: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
    retrievals: Sequence[dict] = (),
    segments: Sequence[Sequence[float]] = (),
    relevant: Sequence[int] = (),
    initial_iou: float | None = None,
    frames: int = 16,
    **notes: Any,
) -> EpisodeRecord:
    """An episode over a pool of 10 cells of 10 s each that ends with ``choice``."""
    outcome = "unscored" if expected is None else "correct" if choice == expected else "wrong"
    return EpisodeRecord(
        format=1,
        library="0",
        suite="made-up",
        split="test",
        settings={
            "max_turns": 3,
            "pool_size": 10,
            "pool_rule": "midpoint",
            "reward": make_reward("video_mtr").to_dict(),
        },
        task={
            "task_id": task_id,
            "video": f"{video or task_id}.mp4",
            "video_id": video or task_id,
            "question": question,
            "options": list(texts or "abcdef"[:options]),
            "answer_index": expected,
            "segments_s": [list(segment) for segment in segments],
            "task_types": list(types),
            "meta": dict(meta or {}),
        },
        pool={
            "duration_s": 100.0,
            "length": 10,
            "relevant": list(relevant),
            "truncated": False,
        },
        overview={"frame_index": [], "time_s": [], "shown_s": [], "iou": initial_iou},
        turns=[*retrievals, final(choice, **notes)],
        ledger=[],
        outcome="unanswered" if choice is None else outcome,
        error="",
        frames_shown=frames,
    )


def marks(pattern: str, prefix: str = "q", **fields: Any) -> list[EpisodeRecord]:
    """Records of right ("1"), wrong ("0") and unanswered ("-") questions."""
    choices = {"1": 0, "0": 1, "-": None}
    return [record(f"{prefix}{i}", choices[mark], **fields) for i, mark in enumerate(pattern)]
