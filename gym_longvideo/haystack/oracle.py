"""Oracle: exactly which moments of a haystack video answer its question.

Everything here is a pure function of ``Task.meta`` and times, so it also works on tasks read back
from an exported annotation. The rules, named in ``meta["rule"]``, say what a viewer can *conclude*
who knows how these videos are made: that a scene lasts at least ``least_scene_s`` and that no two
scenes look alike.

* ``cards``: each card of the evidence was seen. No conclusion is drawn from not having seen
  something.
* ``first``, ``last``: a moment so close to the start (the end) was seen that no other scene fits
  before (after) it.
* ``after``: both scenes were seen so close together that no other scene fits between.
* ``longest``: one scene was seen at two moments more than half the video apart.
* ``nothing``: the scene was seen so densely that no card can have been missed (twins without a
  needle).
* ``never``: nothing answers it (twins without a needle).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from gym_longvideo.task import Task

Span = tuple[float, float]
Times = Sequence[float] | np.ndarray

_SLACK = 1e-9  # of the duration: rounding in times that were summed up


def solve(task: Task, times: Times) -> int | None:
    """Return the answer if the frames at these times prove it, else None.

    Args:
        task: A task of a haystack suite, or one read back from its export.
        times: Playback seconds of the frames seen, in any order.
    """
    seen = sorted(float(time_s) for time_s in times)
    return task.answer_index if _proves(task, seen) else None


def _proves(task: Task, seen: list[float]) -> bool:
    meta = task.meta
    duration_s, least_s = float(task.duration_s or 0.0), meta["least_scene_s"]
    slack_s = duration_s * _SLACK
    scenes = meta["scenes"]
    match meta["rule"]:
        case "cards":
            return all(_within(seen, span) for span in meta["evidence"])
        case "first":
            return bool(seen) and seen[0] < least_s
        case "last":
            return bool(seen) and seen[-1] > duration_s - least_s
        case "after":
            (_, edge), _ = sorted(scenes)
            before, after = bisect_left(seen, edge) - 1, bisect_left(seen, edge)
            if before < 0 or after == len(seen):
                return False
            return seen[after] - seen[before] <= least_s + slack_s
        case "longest":
            start_s, end_s = scenes[0]  # the last scene is still shown at the very end
            inside = _within(seen, (start_s, end_s if end_s < duration_s else float("inf")))
            return bool(inside) and inside[-1] - inside[0] > duration_s / 2
        case "nothing":
            (start_s, end_s), needle_s = scenes[0], meta["needle_s"]
            edges = [start_s, *_within(seen, scenes[0]), end_s]
            return all(b - a <= needle_s + slack_s for a, b in pairwise(edges))
    return False


def evidence(task: Task) -> tuple[tuple[Span, ...], ...]:
    """Return minimal evidence: all of these groups, of each any frame in any of its spans.

    For ``first``, ``last``, ``after`` and ``longest`` the spans are sufficient, and each is needed,
    but frames elsewhere may do as well; ``solve`` is the exact rule.

    Returns:
        Groups of (start, end) in seconds, half open; empty where nothing proves an answer.
    """
    meta = task.meta
    duration_s, least_s = float(task.duration_s or 0.0), meta["least_scene_s"]
    match meta["rule"]:
        case "cards":
            return tuple(((start_s, end_s),) for start_s, end_s in meta["evidence"])
        case "first":
            return (((0.0, least_s),),)
        case "last":
            return (((duration_s - least_s * (1 - 1e-6), duration_s),),)
        case "after":
            (_, edge), _ = sorted(meta["scenes"])
            return (((edge - least_s / 2, edge),), ((edge, edge + least_s / 2),))
        case "longest":
            start_s, end_s = meta["scenes"][0]
            reach_s = (end_s - start_s - duration_s / 2) / 2
            return (((start_s, start_s + reach_s),), ((end_s - reach_s, end_s),))
        case "nothing":
            (start_s, end_s), needle_s = meta["scenes"][0], meta["needle_s"]
            # Seen in the middle of each part of half a needle, no gap is longer than a needle.
            parts = max(1, int(np.ceil(2 * (end_s - start_s) / needle_s)))
            edges = np.linspace(start_s, end_s, parts + 1).tolist()
            return tuple(((a, b),) for a, b in pairwise(edges))
    return ()


def minimal_frames(task: Task) -> int:
    """Return the fewest frames that prove the answer; 0 where none do."""
    return len(evidence(task))


def oracle_intervals(
    task: Task,
    pool_times: Times,
    seen_times: Iterable[float] = (),
    *,
    frames: int = 8,
    between: bool = False,
) -> list[tuple[int, int]]:
    """Return the retrievals that a clairvoyant would make, next one first.

    Evidence not yet seen is covered in the order in which one would look for it (a chain's pointer
    first), neighbours together as long as every pool frame of the interval is shown.

    Args:
        task: A task of a haystack suite.
        pool_times: (M,) playback seconds of the pool, ascending.
        seen_times: Playback seconds of the frames seen so far.
        frames: Most frames of a retrieval.
        between: Whether a retrieval also shows what lies between pool frames
            (``retrieval="timeline"``).

    Returns:
        Inclusive pairs of pool indices. Spans that hold no pool frame are left out (a needle
        shorter than the pool's spacing), so the list may be empty although the answer is not
        proved; with ``between`` the cell around their middle comes after all others.
    """
    pool = [float(time_s) for time_s in pool_times]
    seen = sorted(float(time_s) for time_s in seen_times)
    if _proves(task, seen):
        return []
    intervals: list[tuple[int, int]] = []
    hidden: list[tuple[int, int]] = []
    for group in evidence(task):
        if any(_within(seen, span) for span in group):
            continue
        for start_s, end_s in group:
            first, last = bisect_left(pool, start_s), bisect_left(pool, end_s) - 1
            if first <= last:
                break
        else:
            if between:
                middle = sum(group[0]) / 2
                cell = min(range(len(pool)), key=lambda cell: abs(pool[cell] - middle))
                hidden.append((cell, cell))
            continue
        last = min(last, first + frames - 1)
        if intervals:
            low, high = min(intervals[-1][0], first), max(intervals[-1][1], last)
            if high - low < frames:
                intervals[-1] = (low, high)
                continue
        intervals.append((first, last))
    return intervals + hidden


def _within(seen: list[float], span: Span) -> list[float]:
    """Return the sorted times in a half-open span."""
    return seen[bisect_left(seen, span[0]) : bisect_left(seen, span[1])]
