"""Where the pictures of a file begin and end, and whether each is shown for as long.

Nothing here scans a long file, save FLV, where seeking does: the beginning takes a few packets, the
end one seek. Both are measured rather than believed, since declared durations are wrong for
truncated files and start offsets, edit lists hide the packets before the first displayed frame, and
where frames are reordered MP4 tells how far packets lie apart, not how long frames are shown.
"""

from __future__ import annotations

import re
from bisect import bisect_right, insort
from collections.abc import Sequence
from itertools import pairwise

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from gym_longvideo.video.border import pass_on_machine_fault
from gym_longvideo.video.packets import demux, timestamp
from gym_longvideo.video.request import Deadline

# Packets read at most to find the first keyframe and the first displayed frame.
_HEAD_PACKETS = 600
# Gaps between frames of an equal rate differ by less, however their times were rounded.
_EVEN_GAPS = 1.5
# A film of fewer frames is read through to see whether they are evenly spaced: only there can
# they be fewer than the frames of a pool. Those of more bytes are taken to be even.
_FEW_FRAMES = 1024
_FEW_BYTES = 64 << 20
# Files of these containers may be joined end to end by anyone, and are then read as one.
_JOINABLE = ("mpegts", "mpeg", "flv", "live_flv")
# Larger files are looked at in so many places, smaller ones read through.
_SAMPLED_ABOVE_BYTES = 16 << 20
_SAMPLES = 64
# Decode times that fall back by more seconds than this belong to another recording.
_SETBACK_S = 0.5
# ... if that many in a row do, and as many packets have been there: one may be damaged.
_WITNESSES = 3
# Packets among which those of frames shown later may lie (the deepest reordering of H.264 is 16).
_REORDER_DEPTH = 17


class ClockRestartedError(Exception):
    """The clock of a film starts again: recordings joined end to end, or taken up again.

    One moment has several pictures then, and no seek by time tells them apart.

    Attributes:
        seconds: Timestamp of the last picture before.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class _Clock:
    """Watches decode times in the order of the file."""

    def __init__(self, stream: VideoStream) -> None:
        assert stream.time_base is not None
        self._tick_s = stream.time_base
        self._highest: list[int] = []  # ascending; several, for a single one may be damage
        self._behind = 0

    def check(self, packet: Packet) -> None:
        """Raise ClockRestartedError once several packets lie long before several earlier ones."""
        if packet.dts is None:
            return
        insort(self._highest, packet.dts)
        reached = self._highest[-_WITNESSES] if len(self._highest) >= _WITNESSES else packet.dts
        del self._highest[:-_WITNESSES]
        late = (reached - packet.dts) * self._tick_s > _SETBACK_S
        self._behind = self._behind + 1 if late else 0
        if self._behind >= _WITNESSES:
            raise ClockRestartedError(float(reached * self._tick_s))


def find_start(
    container: InputContainer, stream: VideoStream, deadline: Deadline
) -> tuple[int, int, int, bool] | None:
    """Return (first displayed pts, pts and dts of the first keyframe, hidden packets exist)."""
    key: int | None = None
    origin = 0
    first: int | None = None
    edited = False
    seen: list[int] = []
    for number, packet in enumerate(demux(container, stream)):
        deadline.check()
        pts = timestamp(packet)
        if number >= _HEAD_PACKETS:
            break
        if pts is None:
            continue
        seen.append(pts)
        if key is None:
            if not packet.is_keyframe:
                continue
            key, origin = pts, pts if packet.dts is None else packet.dts
        edited = edited or packet.is_discard
        # Frames before the first keyframe in display order cannot be decoded.
        if not packet.is_discard and pts >= key and (first is None or pts < first):
            first = pts
        if first is not None and packet.dts is not None and packet.dts > first:
            break
    if key is None or first is None:
        return (seen[0], seen[0], seen[0], edited) if seen else None
    return first, key, origin, edited


def declared_seconds(container: InputContainer, stream: VideoStream, first_pts: int) -> float:
    """Return how long the container says that the film is; 0 if it does not say."""
    time_base = stream.time_base
    assert time_base is not None
    if stream.duration is not None:
        return float(stream.duration * time_base)
    declared = (container.duration or 0) / av.time_base
    match = re.match(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if match:
        declared = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    if container.format.name.startswith("matroska"):
        declared -= float(first_pts * time_base)  # Matroska declares the end, counted from zero
    return max(0.0, declared)


def find_end(
    container: InputContainer,
    stream: VideoStream,
    first_pts: int,
    declared_s: float,
    tick: int,
    deadline: Deadline,
) -> int | None:
    """Return the pts at which the last readable frame ends; ``None`` if nothing is readable.

    Raises:
        ClockRestartedError: What is behind the end has times of its own.
    """
    time_base = stream.time_base
    assert time_base is not None
    second = max(1, round(1 / time_base))
    position = first_pts + round((declared_s or 100 * 3600) / time_base)
    step = second
    while True:
        deadline.check()
        try:
            container.seek(max(position, first_pts), stream=stream)
        except av.error.FFmpegError as error:
            pass_on_machine_fault(error)
            if position <= first_pts:
                return None
        else:
            begin: int | None = None
            tail: list[tuple[int, int]] = []
            complete, clock = False, _Clock(stream)
            for packet in demux(container, stream):
                deadline.check()
                clock.check(packet)
                pts = timestamp(packet)
                if pts is None or packet.is_corrupt or packet.is_discard:
                    continue
                if begin is None:
                    begin, complete = pts, packet.is_keyframe
                tail.append((pts, packet.duration or tick))
            if begin is not None:
                end = _end_of(tail, _follows_decoding(container, stream))
                # MPEG-TS may land among the last few packets, behind the frame shown last.
                complete = complete or len(tail) >= _REORDER_DEPTH
                if end > first_pts and (complete or position <= first_pts):
                    return end
        if position <= first_pts:
            return None
        position, step = position - step, 2 * step


def _follows_decoding(container: InputContainer, stream: VideoStream) -> bool:
    """Tell whether durations of packets are those between decode times, in another order."""
    return container.format.name.startswith("mov") and bool(stream.codec_context.has_b_frames)


def _end_of(tail: Sequence[tuple[int, int]], follows_decoding: bool) -> int:
    """Return when the last of some frames ends.

    Args:
        tail: (pts, duration of the packet) in the order of the file.
        follows_decoding: Whether durations are those between decode times.
    """
    if follows_decoding:
        shown = sorted(pts for pts, _ in tail)
        gaps = [after - before for before, after in pairwise(shown)]
        if gaps and max(gaps) > _EVEN_GAPS * min(gaps):
            # Only the last packet's duration was not made up from the next one's decode time.
            return shown[-1] + tail[-1][1]
    return max(pts + duration for pts, duration in tail)


def count_frames(
    container: InputContainer,
    stream: VideoStream,
    first_pts: int,
    end_pts: int,
    estimate: int | None,
    deadline: Deadline,
) -> tuple[int | None, bool]:
    """Count the frames of a short film.

    Returns:
        Their number, and whether as many evenly spaced moments show each of them. Where there
        are more frames than any pool has, that is the estimate, and true without a look.
    """
    if estimate is None or estimate >= _FEW_FRAMES:
        return estimate, True
    if container.format.name in _JOINABLE:  # where seeking by time lands somewhere near
        container.seek(0, stream=stream, unsupported_byte_offset=True)
    else:
        container.seek(first_pts, stream=stream)
    shown, size = [], 0
    for packet in demux(container, stream):
        deadline.check()
        pts = timestamp(packet)
        size += packet.size
        if size > _FEW_BYTES:
            return estimate, True
        if pts is not None and first_pts <= pts < end_pts and not packet.is_discard:
            shown.append(pts)
        if len(shown) >= _FEW_FRAMES:
            return max(estimate, len(shown)), False
    shown.sort()
    even = shows_all(shown, end_pts)
    # Off by one where the last frame is cut short: there are no more whole ones then.
    if not shown or (even and abs(len(shown) - estimate) <= 1):
        return estimate, even
    return len(shown), even


def shows_all(shown: Sequence[int], end: int) -> bool:
    """Tell whether as many evenly spaced moments as there are frames show each of them.

    Args:
        shown: When the frames start being shown, ascending.
        end: When the last one ends.

    >>> shows_all([0, 33, 67, 100], 133)
    True
    >>> shows_all([0, 5, 10, 60], 61)
    False
    """
    count = len(shown)
    if not count:
        return True
    step = (end - shown[0]) / count
    at = [bisect_right(shown, shown[0] + (k + 0.5) * step) for k in range(count)]
    return at == list(range(1, count + 1))


def check_clock(
    container: InputContainer, stream: VideoStream, size: int, deadline: Deadline
) -> None:
    """Look through a file of ``size`` bytes, where it may be several recordings in one.

    Raises:
        ClockRestartedError: It is.
    """
    name = container.format.name
    if name not in _JOINABLE:
        return
    clock = _Clock(stream)
    sampled = size > _SAMPLED_ABOVE_BYTES and name.startswith("mpeg")
    # FLV can only be read on from where it is known to have come to.
    for place in range(_SAMPLES if sampled else 1):
        container.seek(size * place // _SAMPLES, stream=stream, unsupported_byte_offset=True)
        for packet in demux(container, stream):
            deadline.check()
            clock.check(packet)
            if sampled and packet.dts is not None:
                break
