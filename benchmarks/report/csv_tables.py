"""Tidy tables of a report: one observation a row, shares between 0 and 1, empty where unknown.

A text that a spreadsheet would take for a formula, or one with apostrophes before such a text, has
one apostrophe more: take that one off, and it is what it was. Numbers stay numbers.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.report.published import BENCHMARKS, protocol_differences, published, refusal
from benchmarks.report.sections import Section, budget_families, frame_budget

Row = dict[str, Any]
_WHO = ("section", "run", "policy", "protocol_hash", "card_hash")
_INTERVAL = ("value", "low", "high")
_COSTS = (
    *("frames_decoded", "visual_tokens", "prompt_tokens", "reply_tokens"),
    *("decode_s", "prefill_s", "generate_s", "requests", "retries"),
)

COLUMNS: dict[str, tuple[str, ...]] = {
    "overall": (
        *(*_WHO, "suite", "split", "control", "metric", *_INTERVAL, "n"),
        *("videos", "episodes", "expected", "faults", "complete"),
    ),
    "groups": (*_WHO, "group", "group_value", "metric", *_INTERVAL, "n"),
    "grounding": (*_WHO, "metric", *_INTERVAL, "n"),
    "cost": (*_WHO, "metric", "mean", "n"),
    "behaviour": (*_WHO, "metric", "value", "n"),
    "budget": (*_WHO, "frame_budget", "frames_shown", *_INTERVAL, "n", "faults", "complete"),
    "published": (
        *("section", "benchmark", "split", "model", "variant", "frames", "turns", "group"),
        *("group_value", "accuracy", "mean_turns", "latency_ms", "n", "source", "place"),
        "differences",
    ),
    "episodes": (
        *(*_WHO, "key", "task_id", "video_id", "task_types", "outcome", "choice", "answer_index"),
        *("options", "turns", "retrievals", "malformed", "best_iou", "frames_shown"),
        *_COSTS,
    ),
}

# Full-width signs are signs to spreadsheets of some languages.
_FORMULA = re.compile("'*[=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)


def csv_tables(sections: Sequence[Section]) -> dict[str, str]:
    """Return the text of each CSV file, by the name of its table."""
    makers = {
        "overall": _overall,
        "groups": _groups,
        "grounding": _grounding,
        "cost": _means,
        "behaviour": _behaviour,
        "budget": _budget,
        "published": _published,
        "episodes": _episodes,
    }
    return {name: _text(COLUMNS[name], make(sections)) for name, make in makers.items()}


def _text(columns: Sequence[str], rows: Iterator[Row]) -> str:
    lines = [_line(columns, dict(zip(columns, columns, strict=True)))]
    lines += [_line(columns, {key: _cell(value) for key, value in row.items()}) for row in rows]
    return "\n".join(lines) + "\n"


def _line(columns: Sequence[str], row: Row) -> str:
    # The csv of Python 3.11 quotes a carriage return only where lines end with one.
    out = io.StringIO()
    csv.DictWriter(out, columns, lineterminator="\r\n").writerow(row)
    return out.getvalue().removesuffix("\r\n")


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return repr(round(value, 6))
    if not isinstance(value, str):
        return value
    # A lone surrogate, legal in JSON, cannot be written as UTF-8; NUL breaks readers of CSV.
    text = value.encode("utf-8", "replace").decode("utf-8").replace("\0", "")
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _each(sections: Sequence[Section]) -> Iterator[tuple[Row, Any]]:
    for section in sections:
        for entry in section.entries:
            who = {
                "section": section.letter,
                "run": entry.name,
                "policy": entry.policy,
                "protocol_hash": entry.card.protocol_hash,
                "card_hash": entry.card.hash,
            }
            yield who, entry


def _interval(found: Any) -> Row:
    if isinstance(found, Mapping):
        return {key: found.get(key) for key in _INTERVAL}
    return {"value": found}


def _overall(sections: Sequence[Section]) -> Iterator[Row]:
    for who, entry in _each(sections):
        summary = entry.summary
        rest = {
            "suite": summary["suite"]["name"],
            "split": summary["suite"]["split"],
            "control": summary["control"],
            "videos": summary["videos"],
            "episodes": summary["episodes"],
            "expected": entry.expected,
            "faults": entry.faults,
            "complete": entry.complete,
        }
        for metric in ("accuracy", "accuracy_micro", "lenient_accuracy", "answered", "chance"):
            n = summary["episodes" if metric in ("answered", "chance") else "scored"]
            yield {**who, "metric": metric, **_interval(summary[metric]), "n": n, **rest}


def _groups(sections: Sequence[Section]) -> Iterator[Row]:
    for who, entry in _each(sections):
        for group, values in entry.summary["groups"].items():
            for value, found in values.items():
                place = {**who, "group": group, "group_value": value}
                yield {**place, "metric": "accuracy", **_interval(found), "n": found["n"]}
                if answered := found.get("answered"):
                    row = {"metric": "accuracy_answered", **_interval(answered)}
                    yield {**place, **row, "n": answered["n"]}


def _grounding(sections: Sequence[Section]) -> Iterator[Row]:
    for who, entry in _each(sections):
        grounding = dict(entry.summary.get("grounding") or {})
        official = grounding.pop("official", None) or {}
        for prefix, block in (("", grounding), ("official ", official)):
            n = block.get("n")
            for metric, found in block.items():
                if metric != "n":
                    yield {
                        **who,
                        "metric": prefix + metric,
                        **_interval(found),
                        "n": n["value"] if isinstance(n, Mapping) else n,
                    }


def _means(sections: Sequence[Section]) -> Iterator[Row]:
    for who, entry in _each(sections):
        for metric, mean in entry.summary["cost"].items():
            yield {**who, "metric": metric, "mean": mean, "n": entry.summary["episodes"]}


def _behaviour(sections: Sequence[Section]) -> Iterator[Row]:
    for who, entry in _each(sections):
        for metric, value in entry.summary["behaviour"].items():
            yield {**who, "metric": metric, "value": value, "n": entry.summary["episodes"]}


def _budget(sections: Sequence[Section]) -> Iterator[Row]:
    for family in budget_families(sections):
        for section, entry in family:
            who, _ = next(_each([Section(section.letter, (entry,))]))
            yield {
                **who,
                "frame_budget": frame_budget(section),
                "frames_shown": entry.summary["cost"].get("frames_shown"),
                **_interval(entry.summary["accuracy"]),
                "n": entry.summary["scored"],
                "faults": entry.faults,
                "complete": entry.complete,
            }


def _published(sections: Sequence[Section]) -> Iterator[Row]:
    for section in sections:
        if refusal(section.protocol):
            continue
        policies = [entry.policy for entry in section.entries]
        for row in published(*section.suite[:2]):
            group, value = row.group or ("", "")
            yield {
                "section": section.letter,
                "benchmark": row.benchmark,
                "split": row.split,
                "model": row.model,
                "variant": row.variant,
                "frames": row.frames,
                "turns": row.turns,
                "group": group,
                "group_value": value,
                "accuracy": row.accuracy / 100,
                "mean_turns": row.mean_turns,
                "latency_ms": row.latency_ms,
                "n": None if row.group else BENCHMARKS[row.benchmark].questions,
                "source": row.source,
                "place": row.place,
                "differences": "; ".join(protocol_differences(row, section.protocol, policies)),
            }


def _episodes(sections: Sequence[Section]) -> Iterator[Row]:
    for who, entry in _each(sections):
        for record in entry.run.records:
            task, turns = record.task, record.turns
            circular = task["meta"].get("circular")
            key = f"{circular[0]}@{circular[1]}" if circular else task["task_id"]
            cost = entry.run.costs.get(key, {})
            ious = [turn["iou"] for turn in turns if turn["iou"] is not None]
            choices = [turn["choice"] for turn in turns if turn["op"] == "answer"]
            yield {
                **who,
                "key": key,
                "task_id": task["task_id"],
                "video_id": task["video_id"],
                "task_types": "; ".join(task["task_types"]),
                "outcome": record.outcome,
                "choice": choices[-1] if choices else None,
                "answer_index": task["answer_index"],
                "options": len(task["options"]),
                "turns": len(turns),
                "retrievals": sum(turn["op"] == "retrieve" for turn in turns),
                "malformed": sum(turn["op"] == "malformed" for turn in turns),
                "best_iou": max(ious) if ious else None,
                "frames_shown": record.frames_shown,
                **{name: cost.get(name) for name in _COSTS},
            }
