"""Runs made by hand, for tests of what is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.card import Card
from benchmarks.controls import record_key
from benchmarks.runs import RunWriter
from gym_longvideo.record import EpisodeRecord

SETTINGS = {
    "suite_options": {},
    "max_turns": 3,
    "frame_budget": 32,
    "overview_frames": 16,
    "frames_per_retrieval": 8,
    "pool_size": 128,
    "pool_rule": "midpoint",
    "frame_size": [224, 224],
    "retrieval": "pool",
    "seek": "exact",
    "backend": "pyav",
}


def make_card(policy: str = "model", *, tasks: int = 4, **changes: Any) -> Card:
    """Return a card; keyword arguments change its suite, its settings or its other knobs."""
    suite = {
        "name": "videomme",
        "split": "test",
        "tasks": tasks,
        "digest": "0" * 12,
        "annotation": {"test.parquet": "1" * 12},
        "options": {"where": {}, "shuffle_options": None, "subtitles": "none"},
    }
    settings = dict(SETTINGS)
    protocol: dict[str, Any] = {
        "text_protocol": "tags",
        "control": "none",
        "episodes": None,
        "seed": 0,
        "scorer": "strict",
    }
    for name, value in changes.items():
        place = suite if name in suite else settings if name in settings else protocol
        place[name] = value
    return Card({"suite": suite, "settings": settings, **protocol}, {"kind": "x", "name": policy})


def make_record(
    task_id: str, outcome: str = "correct", *, card: Card | None = None, **task: Any
) -> EpisodeRecord:
    """Return an episode of a 100 s video: a retrieval of 20 to 30 s, then an answer."""
    card = card or make_card()
    suite = card.protocol["suite"]
    answer = {"correct": 0, "wrong": 1}.get(outcome, -1)
    turns = [
        turn(
            "retrieve", interval=[20, 29], reply="<think>There?</think><retrieve>20, 29</retrieve>"
        ),
        turn("answer", choice=answer, reply=f"<think></think><answer>{'AB'[answer]}</answer>")
        if answer >= 0
        else turn("malformed", malformed="no action", reply="I do not know."),
    ]
    return EpisodeRecord(
        format=1,
        library="0",
        suite=suite["name"],
        split=suite["split"],
        settings={"pool_rule": "midpoint", "pool_size": 100},
        task={
            "task_id": task_id,
            "video": f"{task_id}.mp4",
            "video_id": task_id.partition("-")[0],
            "question": f"What happens in {task_id}?",
            "options": ["this", "that"],
            "answer_index": None if outcome == "unscored" else 0,
            "segments_s": [[20.0, 25.0]],
            "task_types": ["Counting Problem"],
            "meta": {"duration_group": "short"},
            **task,
        },
        pool={
            "duration_s": 100.0,
            "length": 100,
            "relevant": [20, 21, 22, 23, 24],
            "truncated": False,
        },
        overview={
            "frame_index": [10, 60],
            "time_s": [10.5, 60.5],
            "shown_s": [10.5, 60.5],
            "iou": 0.0,
        },
        turns=turns,
        ledger=[{"accuracy": 0.0, "relevance": 0.0, "format": 0.1, "bonus": 0.0}] * 2,
        outcome=outcome,
        error="",
        frames_shown=12,
    )


def turn(op: str, **fields: Any) -> dict[str, Any]:
    """Return a turn of a record."""
    start, end = fields.get("interval", [-1, -1])
    cells = list(range(start, end + 1)) if op == "retrieve" else []
    times = [cell + 0.5 for cell in cells]
    return {
        "op": op,
        "interval": [start, end],
        "choice": -1,
        "malformed": "",
        "frame_index": cells,
        "time_s": times,
        "shown_s": times,
        "iou": 0.5 if cells else None,
        "lenient_choice": fields.get("choice", -1),
        **fields,
    }


def write_run(
    directory: Path, card: Card, records: list[EpisodeRecord], *, faults: int = 0
) -> Path:
    """Write a run and return its directory."""
    with RunWriter(directory, card) as writer:
        for record in records:
            cost = {"frames_decoded": 12, "decode_s": 0.25, "generate_s": None, "requests": 2}
            writer.add(record_key(record), record, cost)
        for i in range(faults):
            writer.fault(f"broken-{i}", "the endpoint <b>hangs</b>")
    return directory


def played(card: Card, right: int, wrong: int = 0, **task: Any) -> list[EpisodeRecord]:
    """Return so many right and wrong episodes, each of a video of its own."""
    outcomes = ["correct"] * right + ["wrong"] * wrong
    return [make_record(f"{i:04}-1", each, card=card, **task) for i, each in enumerate(outcomes)]


def read_lines(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    import csv

    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def load(path: Path) -> Any:
    """Return the contents of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
