"""Which of four time ranges? A question made of annotated segments, the same on every machine.

The right range is the longest segment. The others are as long, overlap no segment and not each
other, and lie anywhere else with equal right. Whatever is drawn comes from a hash of a key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.datasets.dataset import Defect

MOST_RELEVANT = 0.5  # a segment to be found among others must leave room for them
CHOICES = 4
_STEP_S = 2.0  # QVHighlights annotates clips of two seconds, so edges are even


class SegmentChoice(NamedTuple):
    """Options ("00:10-00:20"), and the index of the right one."""

    options: list[str]
    answer: int


def choose(segments: Sequence[Sequence[float]], duration_s: float, key: str) -> SegmentChoice:
    """Make the choice.

    Args:
        segments: (start, end) in seconds, sorted and disjoint.
        duration_s: Of the video, in seconds.
        key: What all draws depend on.

    Raises:
        Defect: If there is no segment, they cover too much, or no room is left.

    >>> choose([(10, 20)], 60.0, "5")
    SegmentChoice(options=['00:22-00:32', '00:10-00:20', '00:48-00:58', '00:00-00:10'], answer=1)
    """
    if not segments:
        raise Defect("no_segments", "there is no segment to choose")
    if not duration_s > 0:
        raise Defect("malformed_row", f"duration={duration_s} must be greater than 0")
    share = sum(end - start for start, end in segments) / duration_s
    if share > MOST_RELEVANT:
        raise Defect(
            "mostly_relevant",
            f"the segments cover {share:.0%} of the video; half is the most",
            meant=True,
        )
    start_s, end_s = max(segments, key=lambda segment: segment[1] - segment[0])
    ranges = [(start_s, end_s), *_others(segments, end_s - start_s, duration_s, key)]
    order = sorted(range(CHOICES), key=lambda i: _draw(f"{key}:order:{i}"))
    options = [f"{_clock(ranges[i][0])}-{_clock(ranges[i][1])}" for i in order]
    return SegmentChoice(options, order.index(0))


def _others(
    segments: Sequence[Sequence[float]], length_s: float, duration_s: float, key: str
) -> list[tuple[float, float]]:
    edges = [0.0, *(edge for segment in segments for edge in segment), duration_s]
    gaps = list(zip(edges[::2], edges[1::2], strict=True))
    # A gap is drawn as often as it has room; what is left over there is spread by the shifts.
    slots = [gap for gap in gaps for _ in range(int((gap[1] - gap[0]) // length_s))]
    if len(slots) < CHOICES - 1:
        raise Defect(
            "no_room",
            f"beside the segments there is no room for three others of {length_s:g} s",
            meant=True,
        )
    drawn = sorted(range(len(slots)), key=lambda i: _draw(f"{key}:slot:{i}"))[: CHOICES - 1]
    found = []
    for gap in dict.fromkeys(slots[i] for i in drawn):
        count = sum(slots[i] == gap for i in drawn)
        spare = int((gap[1] - gap[0] - count * length_s) // _STEP_S)
        shifts = sorted(_draw(f"{key}:shift:{gap[0]}:{i}") % (spare + 1) for i in range(count))
        for i, shift in enumerate(shifts):
            start_s = gap[0] + shift * _STEP_S + i * length_s
            found.append((start_s, start_s + length_s))
    return found


def _draw(key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"segment choice:{key}".encode()).digest()[:8], "big")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:02d}:{rest:02d}"
