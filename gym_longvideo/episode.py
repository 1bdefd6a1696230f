"""Episode: the decision process itself, free of Gymnasium and of pixels.

It knows the turns, the frame budget, which frames an action shows and what every turn earned. The
environment around it reads the pixels; both the numeric and the text view step the same object. A
new kind of action is one more dataclass in ``Action`` and one more branch in ``Episode.step``.

Source: Video-MTR, arXiv 2508.20478v2, section 3.1 and Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from gym_longvideo import checks
from gym_longvideo.rewards import BiLevelReward, LedgerRow, Op, TurnFacts, frame_iou
from gym_longvideo.task import Task

Outcome = Literal["", "correct", "wrong", "unanswered", "unscored", "infra_error"]
Retrieval = Literal["pool", "timeline"]
Sampling = Literal["even", "linspace"]
IntervalOrder = Literal["either", "ascending"]
Evidence = Literal["segments", "listed"]


@dataclass(frozen=True)
class Retrieve:
    """Show frames of an interval of the pool (inclusive indices, either order)."""

    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """Choose an option (0-based) and end the episode."""

    choice: int


@dataclass(frozen=True)
class Malformed:
    """Something that is no action; it spends the turn."""

    reason: str


Action = Retrieve | Answer | Malformed
_OPS: dict[type, Op] = {Retrieve: "retrieve", Answer: "answer", Malformed: "malformed"}


@dataclass(frozen=True)
class Budget:
    """How many frames an episode may show.

    Attributes:
        total: Frames in all (B).
        overview: Frames of the overview (n0).
        retrieval: Most frames of one retrieval (f_max).
    """

    total: int
    overview: int
    retrieval: int

    @classmethod
    def split(
        cls,
        total: int | None,
        *,
        overview: int | None = None,
        retrieval: int | None = None,
        max_turns: int = 3,
    ) -> Budget:
        """Split ``total`` as the paper does: half for the overview, a quarter for each retrieval.

        Args:
            total: B; ``None`` for as many frames as ``overview`` and ``retrieval`` add up to.
            overview: n0 instead of B/2; 0 is legal.
            retrieval: f_max instead of B/4.
            max_turns: K_max, used only where ``total`` is ``None``.

        Raises:
            ValueError: If the split is not whole or does not fit.

        >>> Budget.split(32)
        Budget(total=32, overview=16, retrieval=8)
        """
        for name, value, least in (
            ("frame_budget", total, 1),
            ("overview_frames", overview, 0),
            ("frames_per_retrieval", retrieval, 1),
        ):
            if value is not None:
                checks.whole(name, value, least)
        if total is None:
            if overview is None or retrieval is None:
                raise ValueError(
                    "frame_budget=None needs both overview_frames= and frames_per_retrieval="
                )
            total = max(1, overview + retrieval * (max_turns - 1))
        if (overview is None or retrieval is None) and total % 4:
            raise ValueError(
                f"frame_budget={total} cannot be split into overview {total // 2} + 2 x "
                f"{total // 4}; use a multiple of 4, or pass overview_frames= and "
                "frames_per_retrieval="
            )
        overview = total // 2 if overview is None else overview
        retrieval = total // 4 if retrieval is None else retrieval
        if overview > total:
            raise ValueError(
                f"overview_frames={overview} is more than frame_budget={total}; raise the budget, "
                "or pass frame_budget=None"
            )
        return cls(int(total), int(overview), int(retrieval))


class View(NamedTuple):
    """Which frames a turn shows.

    Attributes:
        frame_index: (n,) int64 pool index of each frame.
        times: (n,) float64 playback seconds of each frame.
        on_pool: Whether the frames are pool frames (else raw frames between them).
    """

    frame_index: np.ndarray
    times: np.ndarray
    on_pool: bool


EMPTY_VIEW = View(np.zeros(0, np.int64), np.zeros(0), True)


@dataclass
class TurnLog:
    """What happened in one turn, for the record and the renderer.

    Attributes:
        action: The action, ``Malformed`` if it was not allowed.
        view: The frames it asked for.
        iou: Set IoU of those frames with the relevant ones, NaN if not judged.
        interval: Inclusive pool indices of a retrieval, (-1, -1) otherwise.
        shown_s: Playback seconds of the frames that were really shown (keyframes may stand in).
        notes: What a wrapper wants recorded with the turn (JSON-able).
    """

    action: Action
    view: View = EMPTY_VIEW
    iou: float = math.nan
    interval: tuple[int, int] = (-1, -1)
    shown_s: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> TurnFacts:
        """What the reward needs of this turn."""
        return TurnFacts(_OPS[type(self.action)], self.iou)


@lru_cache(maxsize=64)
def overview_frame_index(pool_length: int, count: int, sampling: Sampling = "even") -> np.ndarray:
    """Return at most ``count`` int64 pool indices, spread over the pool.

    The array is shared, and cannot be written to.

    Args:
        pool_length: Frames of the pool.
        count: Frames wanted; all of a pool that has fewer.
        sampling: "even" takes the middle of equal parts; "linspace" the first frame, the last one,
            and equal steps between, rounded down.

    >>> overview_frame_index(128, 4).tolist(), overview_frame_index(128, 4, "linspace").tolist()
    ([16, 48, 80, 112], [0, 42, 84, 127])
    """
    count = min(count, pool_length)
    if sampling == "linspace":
        frame_index = np.linspace(0, pool_length - 1, count).astype(np.int64)
        frame_index.setflags(write=False)
        return frame_index
    frame_index = (2 * np.arange(count) + 1) * pool_length // (2 * max(count, 1))
    frame_index.setflags(write=False)
    return frame_index


def stride_frame_index(start: int, end: int, count: int, sampling: Sampling = "even") -> np.ndarray:
    """Return at most ``count`` int64 pool indices of ``start..end`` (inclusive) at an even stride.

    Args:
        start: First frame of the interval.
        end: Its last frame.
        count: Frames wanted; all of an interval that has fewer, each once.
        sampling: "even" rounds to the nearest frame, half up, and takes one frame from the middle;
            "linspace" rounds down, and takes one frame from the start.

    >>> stride_frame_index(10, 20, 3).tolist()
    [10, 15, 20]
    >>> stride_frame_index(4, 6, 8).tolist()
    [4, 5, 6]
    >>> stride_frame_index(0, 9, 4).tolist(), stride_frame_index(0, 8, 4, "linspace").tolist()
    ([0, 3, 6, 9], [0, 2, 5, 8])
    """
    length = end - start + 1
    if length <= count:
        return np.arange(start, end + 1)
    if sampling == "linspace":
        return np.linspace(start, end, count).astype(np.int64)
    if count == 1:
        return np.array([(start + end) // 2])
    # Round half up: the same indices everywhere, and distinct because length > count.
    return start + (2 * np.arange(count) * (length - 1) + (count - 1)) // (2 * (count - 1))


def longest_gap(seen: np.ndarray) -> tuple[int, int] | None:
    """Return the ends (inclusive) of the longest run of pool frames not yet seen.

    Args:
        seen: (m,) of 0 and 1, or bool.

    Returns:
        The first of equally long runs; ``None`` if all were seen.

    >>> longest_gap(np.array([0, 1, 0, 0, 1, 0, 0]))
    (2, 3)
    """
    borders = np.concatenate(([-1], np.flatnonzero(seen), [len(seen)]))
    lengths = np.diff(borders) - 1
    k = int(lengths.argmax())
    return (int(borders[k]) + 1, int(borders[k + 1]) - 1) if lengths[k] else None


def relevant_frame_index(
    segments_s: tuple[tuple[float, float], ...], pool_times: np.ndarray
) -> frozenset[int]:
    """Return the pool frames inside the segments (G).

    A segment shorter than the pool's spacing may hold no pool frame; the frame nearest to its
    middle then stands for it, so that every annotated segment can be found.

    >>> sorted(relevant_frame_index(((11.0, 30.0), (41.0, 42.0)), np.arange(0.0, 60.0, 10.0)))
    [2, 3, 4]
    """
    found: set[int] = set()
    for start_s, end_s in segments_s:
        first = int(pool_times.searchsorted(start_s))
        after = int(pool_times.searchsorted(end_s, "right"))
        if first == after:
            first = int(np.abs(pool_times - (start_s + end_s) / 2).argmin())
            after = first + 1
        found.update(range(first, after))
    return frozenset(found)


def listed_frame_index(task: Task) -> frozenset[int]:
    """Return the pool frames that an annotation itself lists as relevant; empty if it lists none.

    They are ``evidence_frames`` of its record, where ``evidence_unit`` is "pool_index".

    Raises:
        ValueError: If one is not a whole number.
    """
    if task.meta.get("evidence_unit") != "pool_index":
        return frozenset()
    listed = task.meta.get("evidence_frames") or ()
    return frozenset(
        checks.whole(f"task {task.task_id!r}: each of evidence_frames", each, 0) for each in listed
    )


@dataclass
class Episode:
    """One question, at most ``max_turns`` turns, one ledger.

    Attributes:
        task: The question.
        pool_times: (m,) float64 playback seconds of the pool frames.
        duration_s: Playable seconds of the video.
        fps: Frame rate, ``None`` if any moment can be shown.
        turns: What happened so far.
        truncated_video: Whether the file ends well before its declared duration.
        outcome: "" while the episode runs.
        error: What broke, for the outcome "infra_error".
        overview_shown_s: Playback seconds of the overview's frames as really shown.
        sampling: Which pool frames stand for the pool and for an interval.
        interval_order: Whether the ends of an interval may come in either order.
        listed: Relevant pool frames; none for those inside the segments of the task.
    """

    task: Task
    pool_times: np.ndarray
    duration_s: float
    fps: float | None
    max_turns: int
    budget: Budget
    retrieval: Retrieval
    reward: BiLevelReward
    turns: list[TurnLog] = field(default_factory=list)
    truncated_video: bool = False
    outcome: Outcome = ""
    error: str = ""
    overview_shown_s: list[float] = field(default_factory=list)
    sampling: Sampling = "even"
    interval_order: IntervalOrder = "either"
    listed: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        inside = relevant_frame_index(self.task.segments_s, self.pool_times)
        self.relevant = self.listed or inside
        self._rows: list[LedgerRow] = []
        self.seen: set[int] = set()
        self.frames_shown = 0
        frame_index = overview_frame_index(
            len(self.pool_times), self.budget.overview, self.sampling
        )
        self.overview = self._show(View(frame_index, self.pool_times[frame_index], True))
        self.initial_iou = frame_iou(frame_index.tolist(), self.relevant)
        self.best_iou = self.initial_iou

    @property
    def turn(self) -> int:
        """Turns used so far."""
        return len(self.turns)

    @property
    def rows(self) -> list[LedgerRow]:
        """The ledger; settled rows once the episode is over, provisional before."""
        if len(self._rows) < self.turn:  # settled only when asked for: in escrow nobody asks
            self._rows = self.reward.settle(
                [log.facts for log in self.turns],
                initial_iou=self.initial_iou,
                correct=self.outcome == "correct",
            )
        return self._rows

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        return bool(self.outcome)

    @property
    def frames_left(self) -> int:
        """Frames that the budget still allows."""
        return self.budget.total - self.frames_shown

    @property
    def may_retrieve(self) -> bool:
        """Whether a retrieval would be well-formed now."""
        return not self.over and self.turn < self.max_turns - 1 and self.frames_left > 0

    def objection(self, action: Action) -> str:
        """Say why an action is malformed now, "" if it is fine."""
        match action:
            case Malformed(reason):
                return reason
            case Answer(choice):
                if not 0 <= choice < len(self.task.options):
                    return f"choice {choice} does not exist; there are {len(self.task.options)}"
            case Retrieve(start, end):
                last = len(self.pool_times) - 1
                if self.turn >= self.max_turns - 1:
                    return "no retrieval in the last turn; an answer was due"
                if self.frames_left <= 0:
                    return f"the frame budget of {self.budget.total} is spent; an answer was due"
                if not (0 <= start <= last and 0 <= end <= last):
                    return f"interval ({start}, {end}) leaves the pool; valid range is 0..{last}"
                if start > end and self.interval_order == "ascending":
                    return f"interval ({start}, {end}) ends before it starts"
        return ""

    def step(self, action: Action) -> tuple[View, LedgerRow]:
        """Take one turn.

        Returns:
            The frames to show now, and what is paid now by component (all zero while in escrow).
        """
        if self.over:
            raise RuntimeError(f"the episode is over ({self.outcome}); start another")
        if reason := self.objection(action):
            action = Malformed(reason)
        log = TurnLog(action)
        self.turns.append(log)
        match action:
            case Retrieve(start, end):
                log.interval = (min(start, end), max(start, end))
                log.view = self._show(self._view(*log.interval))
                log.iou = frame_iou(log.view.frame_index.tolist(), self.relevant)
                if not math.isnan(log.iou):
                    self.best_iou = max(self.best_iou, log.iou)
            case Answer(choice):
                expected = self.task.answer_index
                self.outcome = (
                    "unscored" if expected is None else "correct" if choice == expected else "wrong"
                )
        if not self.over and self.turn == self.max_turns:
            self.outcome = "unanswered"
        return log.view, self._pay()

    def fail(self, error: str) -> None:
        """End the episode by a fault of the machinery in its last turn.

        The frames of that turn never arrived. What is still in escrow is not paid; where turns are
        paid at once, those before keep their pay.
        """
        self.outcome, self.error = "infra_error", error
        if self.turns:
            self.frames_shown -= len(self.turns[-1].view.frame_index)
            self.turns[-1].view = EMPTY_VIEW
        if self.reward.timing == "terminal":
            self._rows = [LedgerRow()] * self.turn
        elif self.rows:
            self.rows[-1] = LedgerRow()

    def turn_rewards(self) -> np.ndarray:
        """Return (max_turns,) float64: what each turn finally earned, 0.0 for turns not taken."""
        earned = np.zeros(self.max_turns)
        earned[: len(self.rows)] = [row.total for row in self.rows]
        return earned

    def _show(self, view: View) -> View:
        self.seen.update(view.frame_index.tolist())
        self.frames_shown += len(view.frame_index)
        return view

    def _view(self, start: int, end: int) -> View:
        count = min(self.budget.retrieval, self.frames_left)
        if self.retrieval == "pool":
            frame_index = stride_frame_index(start, end, count, self.sampling)
            return View(frame_index, self.pool_times[frame_index], True)
        edges = cell_edges(self.pool_times, self.duration_s)
        start_s, end_s = edges[start], edges[end + 1]
        if self.fps is not None:
            count = max(1, min(count, int((end_s - start_s) * self.fps)))
        times = start_s + (np.arange(count) + 0.5) * (end_s - start_s) / count
        frame_index = np.clip(np.searchsorted(edges, times, side="right") - 1, start, end)
        return View(frame_index, times, False)

    def _pay(self) -> LedgerRow:
        """Return what is paid in this step."""
        if self.reward.timing == "immediate":
            return self.rows[-1]
        if not self.over:
            return LedgerRow()
        return LedgerRow(*(math.fsum(column) for column in zip(*self.rows, strict=True)))


def cell_edges(pool_times: np.ndarray, duration_s: float) -> np.ndarray:
    """Return (m + 1,) seconds: the borders of the pool cells, half way between pool frames."""
    return np.concatenate(([0.0], (pool_times[1:] + pool_times[:-1]) / 2, [duration_s]))
