"""The relevant segments of a video, in seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_CLOCK = re.compile(r"^(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)$")
_STARTS = ("start", "start_s", "start_time", "start_sec", "begin", "from", "st")
_ENDS = ("end", "end_s", "end_time", "end_sec", "stop", "to", "ed")


def parse_segments(
    raw: Any, duration_s: float | None
) -> tuple[tuple[tuple[float, float], ...], bool]:
    """Return sorted (start, end) seconds, and whether any had to be clamped to the video.

    Understood: ``[[1, 2.5], ...]``, ``[1, 2.5]``, ``["00:01", "01:02.5"]``, "00:01-01:02", and
    ``[{"start": 1, "end": 2.5}, ...]``. Edges that leave the video by up to a second are clamped
    (NExT-GQA's integer durations); anything else that is reversed or outside is an error.

    >>> parse_segments("00:15-01:02", 90.0)
    (((15.0, 62.0),), False)
    """
    if raw is None or raw in ([], (), ""):
        return (), False
    if not isinstance(raw, (list, tuple, str)) and pair_of(raw) is None:
        raise ValueError(f"segments={raw!r} must be a list of [start, end] in seconds")
    segments, repaired = [], False
    for each in pairs_of(raw):
        pair = pair_of(each)
        if pair is None:
            raise ValueError(f"segment {each!r} must be [start, end] in seconds")
        start_s, end_s = (parse_time(value) for value in pair)
        if start_s >= end_s:
            raise ValueError(f"segment {list(pair)!r} is reversed or empty; start must be < end")
        limit_s = duration_s if duration_s is not None else float("inf")
        if start_s < -1.0 or end_s > limit_s + 1.0:
            raise ValueError(f"segment {list(pair)!r} is outside the video (0 to {limit_s} s)")
        clamped = (max(0.0, start_s), min(end_s, limit_s))
        if clamped[0] >= clamped[1]:
            raise ValueError(f"segment {list(pair)!r} is outside the video (0 to {limit_s} s)")
        repaired |= clamped != (start_s, end_s)
        segments.append(clamped)
    return tuple(sorted(segments)), repaired


def pairs_of(raw: Any) -> list[Any]:
    """Return the segments that a field lists, each as it stands there."""
    if isinstance(raw, str):
        return [re.split(r"[-\u2013]", raw)]
    if isinstance(raw, (list, tuple)):
        nested = raw and isinstance(raw[0], (list, tuple, Mapping))
        ranges = raw and all(isinstance(each, str) and "-" in each.strip()[1:] for each in raw)
        return [part for each in raw for part in pairs_of(each)] if ranges else (
            list(raw) if nested else [raw]
        )  # fmt: skip
    return [raw]


def pair_of(segment: Any) -> tuple[Any, Any] | None:
    """Return start and end of a segment, as they stand there, or None if it has no two."""
    if isinstance(segment, Mapping):
        ends = [
            next((segment[n] for n in names if n in segment), None) for names in (_STARTS, _ENDS)
        ]
        return None if None in ends else (ends[0], ends[1])
    if isinstance(segment, (list, tuple)) and len(segment) == 2:
        return segment[0], segment[1]
    return None


def parse_time(value: Any) -> float:
    """Return seconds from a number, "75.5", "MM:SS" or "H:MM:SS".

    >>> parse_time("1:02:03.5")
    3723.5
    """
    if isinstance(value, str) and (clock := _CLOCK.match(value.strip())):
        return int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])
    try:
        seconds = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = float("nan")
    if not abs(seconds) < float("inf"):
        raise ValueError(f"time {value!r} is neither seconds nor MM:SS")
    return seconds
