"""The seek planner: decode the frames shown at given moments, and as little else as possible.

No frame index is built. For each group of moments between two keyframes the planner seeks once,
demuxes ahead until it knows which packets are wanted (a packet whose decode time lies past ``t``
proves that no frame shown by ``t`` is still to come), decodes up to the last of them, drains and
stops. Frames that nobody asked for and nothing refers to are skipped by the decoder.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import av.error
from av.packet import Packet
from av.video.frame import VideoFrame

from gym_longvideo.video.border import pass_on_machine_fault
from gym_longvideo.video.errors import FrameDecodeError
from gym_longvideo.video.packets import demux, timestamp
from gym_longvideo.video.probe import BACKEND, OpenedVideo
from gym_longvideo.video.request import Deadline
from gym_longvideo.video.source import FrameStatus

# emit(moments in ticks, frame, status): the frame shown at all of these moments.
Emit = Callable[[Sequence[int], VideoFrame, FrameStatus], None]

# Decoders of these codecs honour skip_frame per packet. libdav1d latches it when it opens and then
# drops wanted frames; VP9 gains nothing.
_SKIPPING_CODECS = ("h264", "hevc")
# Packets held back while looking ahead; beyond either bound decoding starts before all is known.
_AHEAD_PACKETS = 1024
_AHEAD_BYTES = 32 << 20
# Without decode times a moment is settled once this many later packets were seen (the deepest
# reordering H.264 and HEVC allow is 16).
_REORDER_DEPTH = 17
# Without an index, seconds to look ahead for a keyframe that may stand in.
_FORWARD_S = 10
# Earlier keyframes tried when decoding from the nearest one does not yield the wanted frame.
_MAX_LANDINGS = 9


class SeekPlanner:
    """Decodes the frames of one opened video that are shown at given moments.

    All times are in ticks of the stream. Not thread-safe.
    """

    def __init__(self, opened: OpenedVideo) -> None:
        self._opened = opened
        self._context = opened.stream.codec_context
        self._second = max(1, round(1 / opened.time_base))
        # Of two packets that hold the fields of one frame, the first must not be skipped. PyAV 17
        # does not tell: then nothing is.
        progressive = getattr(self._context, "field_order", None) in (0, 1)
        self._may_skip = self._context.name in _SKIPPING_CODECS and progressive
        # What a read finds out about intra refresh serves only the next one: how much is decoded
        # must not depend on which of several readers comes first.
        self._refreshes = opened.refreshes
        self.frames_decoded = 0

    def pieces(self, moments: Sequence[int], tolerance: float) -> list[list[int]]:
        """Cut ascending moments where the index shows that no decoded frame serves both sides.

        To collect the pieces one by one is the same work as to collect all moments at once.
        """
        if not self._opened.indexed or not moments:
            return [list(moments)]
        entries = self._opened.stream.index_entries
        offset = self._opened.key_offset
        pieces = [[moments[0]]]
        for one, other in pairwise(moments):
            before = entries.search_timestamp(other - offset)
            if tolerance > 0:  # the keyframe after the one may stand in for it
                apart = 0 <= entries.search_timestamp(one - offset, backward=False) < before
            else:
                apart = entries.search_timestamp(one - offset) != before
            if apart:
                pieces.append([])
            pieces[-1].append(other)
        return pieces

    def collect(
        self, moments: Sequence[int], tolerance: float, emit: Emit, deadline: Deadline
    ) -> None:
        """Decode the frames shown at the given moments.

        Args:
            moments: Ascending, distinct, in ticks, none before the first displayed frame.
            tolerance: Ticks by which a keyframe may miss a moment and still stand in for it.
            emit: Receives each frame once, with the moments it answers, in no particular order.
            deadline: Checked at every packet.

        Raises:
            FrameDecodeError: A moment has no decodable frame.
            DecodeTimeoutError: The deadline passed.
        """
        left = list(moments)
        if tolerance > 0:
            left = self._snap(left, tolerance, emit, deadline)
        while left:
            group = left[: self._same_group(left)]
            left = left[self._read_group(group, emit, deadline) :]

    # -- keyframes standing in for exact frames -------------------------------------------------

    def _snap(
        self, moments: Sequence[int], tolerance: float, emit: Emit, deadline: Deadline
    ) -> list[int]:
        """Answer with keyframes where they are near enough; return the moments left over."""
        chosen: dict[int, tuple[Packet, list[int]]] = {}
        left = []
        for moment in moments:
            key = self._nearest_key(moment, tolerance, deadline)
            pts = None if key is None else timestamp(key)
            if key is None or pts is None:
                left.append(moment)
            else:
                chosen.setdefault(pts, (key, []))[1].append(moment)
        for pts, (key, answered) in chosen.items():
            deadline.check()
            frame = self._decode_alone(key)
            if frame is None:  # a recovery point of intra refresh: no picture by itself
                left += answered
                continue
            # MP4 derives durations from decode times: where frames are reordered they are wrong.
            shown_until = pts + (1 if self._context.has_b_frames else key.duration or 1)
            hits = [t for t in answered if pts <= t < shown_until]
            misses = [t for t in answered if not pts <= t < shown_until]
            broken = key.is_corrupt or frame.is_corrupt or self._opened.vague
            if hits:
                emit(hits, frame, FrameStatus.SUSPECT if broken else FrameStatus.OK)
            if misses:
                emit(misses, frame, FrameStatus.SUSPECT if broken else FrameStatus.SNAPPED)
        return sorted(left)

    def _nearest_key(self, moment: int, tolerance: float, deadline: Deadline) -> Packet | None:
        for position in self._key_positions(moment, tolerance):
            if not self._seek(position):
                continue
            best: Packet | None = None
            best_distance = math.inf
            for packet in self._demux():
                deadline.check()
                pts = timestamp(packet)
                if pts is None:
                    continue
                if packet.is_keyframe and not packet.is_discard:
                    distance = abs(pts - moment)
                    if distance < best_distance:
                        best, best_distance = packet, distance
                # Look on only while a later keyframe could still be nearer.
                reach = min(best_distance, tolerance, _FORWARD_S * self._second)
                if pts - moment >= reach or self._opened.indexed:
                    break
            if best is not None and best_distance <= tolerance:
                return best
        return None

    def _key_positions(self, moment: int, tolerance: float) -> list[int]:
        """Return where to look for a keyframe near a moment, the most promising place first."""
        if not self._opened.indexed:
            # Seeking lands anywhere in such files: try here, then from further back.
            steps = [s for s in (0, 1, 2, 4, 8, 16) if s * self._second <= tolerance]
            return [moment - s * self._second for s in steps]
        entries = self._opened.stream.index_entries
        offset = self._opened.key_offset
        found = set()
        for backward in (True, False):
            at = entries.search_timestamp(moment - offset, backward=backward)
            if at >= 0 and not entries[at].is_discard:
                found.add(entries[at].timestamp + offset)
        # The index may be off by the reordering delay, so half a second of grace here; the
        # packet's own timestamp decides.
        near = [t for t in found if abs(t - moment) <= tolerance + self._second / 2]
        return sorted(near, key=lambda t: (abs(t - moment), t))

    def _decode_alone(self, key: Packet) -> VideoFrame | None:
        self._set_skip("DEFAULT")
        self._context.flush_buffers()
        try:
            frames = self._context.decode(key) + self._context.decode(None)
        except av.error.FFmpegError as error:
            pass_on_machine_fault(error)
            frames = []
        self._context.flush_buffers()
        self.frames_decoded += len(frames)
        pts = timestamp(key)
        return next((f for f in frames if _shown_at(f) == pts), None)

    # -- exact frames ---------------------------------------------------------------------------

    def _same_group(self, moments: Sequence[int]) -> int:
        """Return how many leading moments may share a group, as far as the index can tell.

        The demuxer finds out in any case, but only by reading on to the next keyframe.
        """
        if not self._opened.indexed:
            return len(moments)
        entries = self._opened.stream.index_entries
        offset = self._opened.key_offset
        own = entries.search_timestamp(moments[0] - offset)
        for count, moment in enumerate(moments):
            if entries.search_timestamp(moment - offset) != own:
                return count
        return len(moments)

    def _read_group(self, moments: list[int], emit: Emit, deadline: Deadline) -> int:
        """Decode the leading moments that share a group of pictures; return how many they were."""
        position, step = moments[0], self._second
        done: int | None = None
        landed_at: int | None = None
        missing = moments
        if self._refreshes:
            _, landed_at = self._land(position, moments[0], deadline)
            position, done = landed_at - 1, len(moments)
        for landing in range(_MAX_LANDINGS):
            packets, key_at = self._land(position, missing[0], deadline)
            run = _GroupRun(self, missing, emit, deadline, first_landing=done is None)
            consumed = run.decode(packets)
            if done is None:
                # The first landing decides which moments are of this group.
                done = consumed
            missing = run.missing
            self._opened.refreshes |= run.recovering
            if not missing:
                break
            if landing == _MAX_LANDINGS - 1 or (landed_at is not None and key_at >= landed_at):
                missing = run.use_later_frame()  # nothing earlier to start from
                break
            landed_at = key_at
            # Nothing good came out by the wanted frame: intra refresh has not recovered yet, or
            # the group is damaged. Decode from an earlier keyframe.
            position = key_at - 1 if landing == 0 else key_at - step
            step *= 2
        if missing:
            seconds = [
                round(float((t - self._opened.first_pts) * self._opened.time_base), 3)
                for t in missing
            ]
            raise FrameDecodeError(
                f"no frame could be decoded for {seconds} s; the file is damaged there",
                path=self._opened.info.path,
                backend=BACKEND,
            )
        return done or len(moments)

    def _land(self, position: int, moment: int, deadline: Deadline) -> tuple[Iterator[Packet], int]:
        """Seek to a keyframe shown no later than ``moment``.

        Seeking goes by decode time in MP4 and by guesswork in MPEG-TS, so the keyframe found may be
        shown after the moment; then go further back.

        Returns:
            Packets from that keyframe on, and where it stands (decode time) in the file.
        """
        step = self._second
        origin = self._opened.origin
        first_try = True
        while True:
            deadline.check()
            position = max(position, origin)
            at: int | None = None
            if self._seek(position):
                packets = self._demux()
                for packet in packets:
                    deadline.check()
                    pts = timestamp(packet)
                    if pts is None:
                        continue
                    at = pts if packet.dts is None else packet.dts
                    if packet.is_keyframe and (pts <= moment or position == origin):
                        return _chain(packet, packets), at
                    if packet.is_keyframe or pts > moment + self._second:
                        break
            if position == origin:
                return iter(()), origin
            # Just before the keyframe found (open groups of pictures), then in ever larger steps.
            if first_try:
                position = min(position, position if at is None else at) - 1
                first_try = False
            else:
                position, step = position - step, 2 * step

    def _seek(self, position: int) -> bool:
        # Broken tables make seeking fail with misleading errors (even PermissionError): the
        # caller goes further back instead.
        try:
            self._opened.container.seek(position, stream=self._opened.stream)
        except av.error.FFmpegError as error:
            pass_on_machine_fault(error)
            return False
        return True

    def _demux(self) -> Iterator[Packet]:
        return demux(self._opened.container, self._opened.stream)

    def _set_skip(self, which: str) -> None:
        if self._may_skip and self._context.skip_frame != which:
            self._context.skip_frame = which  # pyright: ignore[reportAttributeAccessIssue]


class _GroupRun:
    """One pass of the decoder over one group of pictures."""

    def __init__(
        self,
        planner: SeekPlanner,
        moments: list[int],
        emit: Emit,
        deadline: Deadline,
        *,
        first_landing: bool,
    ) -> None:
        self._planner = planner
        self._moments = moments
        self._emit = emit
        self._deadline = deadline
        self._first_landing = first_landing
        self._queue: deque[Packet] = deque()
        self._queued_bytes = 0
        self._seen: list[int] = []  # timestamps of displayable packets, ascending
        self._beyond = 0
        self._settled = 0  # moments whose frame is known
        self._end = len(moments)  # moments of this group
        self._wanted: dict[int, list[int]] = {}  # timestamp of a frame -> the moments it answers
        self._previous: VideoFrame | None = None
        self._later: VideoFrame | None = None
        self._trouble = False
        self._started = False
        self._key_pts: int | None = None
        self.recovering = False
        self.missing: list[int] = []

    def decode(self, packets: Iterator[Packet]) -> int:
        """Decode; emit what was found; leave the rest in ``missing``. Return the group's size."""
        self._look_ahead(packets)
        self._settle(math.inf)
        wanted_at = [i for i, p in enumerate(self._queue) if timestamp(p) in self._wanted]
        for _ in range(wanted_at[-1] + 1 if wanted_at else 0):
            self._send(self._queue.popleft())
            if self.recovering:
                break
        if self._started:
            try:
                for frame in self._planner._context.decode(None):
                    self._receive(frame)
            except av.error.FFmpegError as error:
                pass_on_machine_fault(error)
                self._trouble = True
            self._planner._context.flush_buffers()
        for pts in sorted(self._wanted):
            self._give_up(pts)
        return self._end

    def use_later_frame(self) -> list[int]:
        """Answer what is missing with the first frame that did come out; return what still is."""
        if self._later is not None and self.missing:
            self._emit(self.missing, self._later, FrameStatus.SUBSTITUTED)
            self.missing = []
        return self.missing

    def _look_ahead(self, packets: Iterator[Packet]) -> None:
        first = self._moments[0]
        for packet in packets:
            self._deadline.check()
            pts = timestamp(packet)
            if pts is None:
                continue
            if packet.is_keyframe and self._seen and self._first_landing:
                if pts > first:
                    # Later moments belong to the next group: seeking there is cheaper.
                    self._end = max(self._settled, bisect_left(self._moments, pts, 0, self._end))
                elif not self._started and not packet.is_discard:
                    self._queue.clear()
                    self._seen.clear()
                    self._queued_bytes = 0
            self._queue.append(packet)
            self._queued_bytes += packet.size
            if not packet.is_discard:
                insort(self._seen, pts)
                if packet.is_keyframe and len(self._seen) == 1:
                    self._key_pts = pts
            if packet.dts is not None:
                self._settle(packet.dts)
            elif self._settled < self._end and pts > self._moments[self._settled]:
                self._beyond += 1
                if self._beyond >= _REORDER_DEPTH:
                    self._settle(self._moments[self._settled] + 1)
            if self._settled >= self._end:
                return
            while len(self._queue) > _AHEAD_PACKETS or self._queued_bytes > _AHEAD_BYTES:
                self._send(self._queue.popleft())
            if self.recovering:
                return

    def _settle(self, frontier: float) -> None:
        """Fix the frames of all moments before ``frontier``: all their candidates were seen."""
        while self._settled < self._end and self._moments[self._settled] < frontier:
            moment = self._moments[self._settled]
            best = self._best(moment)
            if best is None:
                self.missing.append(moment)
            else:
                self._wanted.setdefault(best, []).append(moment)
            self._settled += 1
            self._beyond = 0

    def _best(self, moment: int) -> int | None:
        at = bisect_right(self._seen, moment)
        return self._seen[at - 1] if at else None

    def _send(self, packet: Packet) -> None:
        planner = self._planner
        pts = timestamp(packet)
        # Sent early, a packet may yet turn out to be wanted by a moment not settled.
        wanted = pts in self._wanted or any(
            self._best(t) == pts for t in self._moments[self._settled : self._end]
        )
        planner._set_skip("DEFAULT" if wanted else "NONREF")
        self._started = True
        self._deadline.check()
        self._queued_bytes -= packet.size
        self._trouble = self._trouble or packet.is_corrupt
        try:
            for frame in planner._context.decode(packet):
                self._receive(frame)
        except av.error.FFmpegError as error:
            pass_on_machine_fault(error)
            self._trouble = True

    def _receive(self, frame: VideoFrame) -> None:
        self._planner.frames_decoded += 1
        self._trouble = self._trouble or frame.is_corrupt
        pts = _shown_at(frame)
        if pts is None or self.recovering:
            return
        if self._previous is None and self._skips_to_recovery(pts):
            self.recovering = True
            return
        # Frames come out in display order: one that was passed over will not come any more.
        for missed in sorted(w for w in self._wanted if w < pts):
            self._give_up(missed)
        moments = self._wanted.pop(pts, None)
        if moments is not None:
            doubtful = self._trouble or self._planner._opened.vague
            self._emit(moments, frame, FrameStatus.SUSPECT if doubtful else FrameStatus.OK)
        self._previous = frame
        if self._later is None:
            self._later = frame

    def _skips_to_recovery(self, first_shown: int) -> bool:
        """Tell intra refresh by the keyframe's picture being held back.

        The decoder then trusts the stream's count of frames until recovery, which x264 writes too
        low: decoding from one keyframe earlier is what gives clean pictures.
        """
        return (
            self._first_landing
            and not self._trouble
            and self._planner._context.name == "h264"
            and self._key_pts is not None
            and first_shown > self._key_pts
        )

    def _give_up(self, pts: int) -> None:
        """Answer the moments of a frame that did not come out, if any earlier one did."""
        moments = self._wanted.pop(pts)
        if self._previous is None:
            self.missing = sorted(self.missing + moments)
            return
        # VP8 and VP9 store reference frames that are never shown as packets of their own.
        hidden = not self._trouble and self._planner._opened.info.codec in ("vp8", "vp9", "av1")
        self._emit(moments, self._previous, FrameStatus.OK if hidden else FrameStatus.SUBSTITUTED)


def _shown_at(frame: VideoFrame) -> int | None:
    return frame.dts if frame.pts is None else frame.pts


def _chain(first: Packet, rest: Iterator[Packet]) -> Iterator[Packet]:
    yield first
    yield from rest
