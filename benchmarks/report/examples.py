"""Examples: a few episodes to read, drawn by lot from the right ones and from the others.

The lot depends on the ids of the tasks alone, so every run of a suite shows the same ones where it
can, and nobody picked them. An episode is laid out in lanes over the time of its video: where the
relevant segments are, what the overview showed, what each turn retrieved.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.scores.grounding import pool_edges
from gym_longvideo.protocol import clock
from gym_longvideo.record import EpisodeRecord

LONGEST = 2000  # characters of a question, an option or a reply that are shown


@dataclass(frozen=True)
class Lane:
    """A row of the timeline.

    Attributes:
        label: What it shows.
        kind: "segment", "overview" or "retrieval".
        spans: (start, end) as shares of the video.
        ticks: Frames shown, as shares of the video.
        note: What it amounts to, e.g. seconds and IoU.
    """

    label: str
    kind: str
    spans: tuple[tuple[float, float], ...] = ()
    ticks: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Choice:
    """An option: its letter and text, whether it is right, whether it was chosen."""

    letter: str
    text: str
    right: bool
    chosen: bool


@dataclass(frozen=True)
class Example:
    """An episode as the page shows it.

    Attributes:
        run: Name of the run.
        task_id: Of the task.
        video_id: Of the video.
        outcome: As in the record.
        question: The question.
        choices: Its options.
        lanes: Its timeline.
        duration: Of the video, as a clock shows it.
        steps: What happened in each turn: what was done, and the reply in words ("" if none).
    """

    run: str
    task_id: str
    video_id: str
    outcome: str
    question: str
    choices: tuple[Choice, ...]
    lanes: tuple[Lane, ...]
    duration: str
    steps: tuple[tuple[str, str], ...]


def pick(records: Iterable[EpisodeRecord], count: int) -> list[EpisodeRecord]:
    """Return up to ``count`` episodes that were right, then as many wrong or unanswered ones."""
    drawn = sorted(records, key=lambda record: _lot(record.task["task_id"]))
    right = [record for record in drawn if record.outcome == "correct"]
    wrong = [record for record in drawn if record.outcome in ("wrong", "unanswered")]
    return [*right[:count], *wrong[:count]]


def make_example(run: str, record: EpisodeRecord) -> Example:
    """Lay out an episode."""
    task, duration_s = record.task, float(record.pool["duration_s"])
    chosen = next((t["choice"] for t in record.turns[::-1] if t["op"] == "answer"), -1)
    return Example(
        run=run,
        task_id=cut(str(task["task_id"])),
        video_id=cut(str(task["video_id"])),
        outcome=record.outcome,
        question=cut(task["question"]),
        choices=tuple(
            Choice(string.ascii_uppercase[i], cut(text), i == task["answer_index"], i == chosen)
            for i, text in enumerate(task["options"])
        ),
        lanes=tuple(_lanes(record, duration_s)),
        duration=clock(duration_s),
        steps=tuple(_steps(record, duration_s)),
    )


def cut(text: str, longest: int = LONGEST) -> str:
    """Return text of a readable length, saying how much is left out.

    >>> cut("abcdef", 4)
    'abcd ... (2 more characters)'
    """
    if len(text) <= longest:
        return text
    return f"{text[:longest]} ... ({len(text) - longest:,} more characters)"


def interval_s(record: EpisodeRecord, interval: Iterable[int]) -> tuple[float, float]:
    """Return the playback seconds that a retrieved interval spans."""
    edges = pool_edges(record)
    start, end = interval
    return float(edges[start]), float(edges[end + 1])


def _lanes(record: EpisodeRecord, duration_s: float) -> Iterable[Lane]:
    whole = duration_s or 1.0
    segments = [(start, min(end, duration_s)) for start, end in record.task["segments_s"]]
    if segments:
        note = ", ".join(_span(*segment) for segment in segments[:3])
        note += f" and {len(segments) - 3} more" if len(segments) > 3 else ""
        spans = tuple((start / whole, end / whole) for start, end in segments)
        yield Lane("relevant", "segment", spans, note=note)
    overview = record.overview
    ticks = tuple(min(1.0, time_s / whole) for time_s in overview["shown_s"])
    yield Lane("overview", "overview", ticks=ticks, note=_frames(len(ticks), overview["iou"]))
    for k, turn in enumerate(record.turns, 1):
        if turn["op"] == "retrieve":
            start, end = interval_s(record, turn["interval"])
            ticks = tuple(min(1.0, time_s / whole) for time_s in turn["shown_s"])
            note = f"{_span(start, end)}, {_frames(len(ticks), turn['iou'])}"
            span = ((start / whole, min(1.0, end / whole)),)
            yield Lane(f"turn {k}", "retrieval", span, ticks, note)


def _steps(record: EpisodeRecord, duration_s: float) -> Iterable[tuple[str, str]]:
    for k, turn in enumerate(record.turns, 1):
        if turn["op"] == "retrieve":
            did = f"retrieves {_span(*interval_s(record, turn['interval']))}"
        elif turn["op"] == "answer":
            did = f"answers {string.ascii_uppercase[turn['choice']]}"
        else:
            did = f"malformed: {cut(str(turn['malformed']), 300)}"
        yield f"turn {k} {did}", cut(str(turn.get("reply", "")))


def _frames(count: int, iou: float | None) -> str:
    text = f"{count} frame{'' if count == 1 else 's'}"
    return text if iou is None else f"{text}, IoU {iou:.2f}"


def _span(start_s: float, end_s: float) -> str:
    return f"{clock(start_s)} to {clock(end_s)}"


def _lot(task_id: str) -> bytes:
    return hashlib.sha256(task_id.encode("utf-8", "replace")).digest()
