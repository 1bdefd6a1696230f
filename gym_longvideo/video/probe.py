"""Opening a file with PyAV and measuring where its pictures begin and end.

Nothing here scans the file: the beginning takes a few packets, the end one seek. Both are measured
rather than believed, since declared durations are wrong for truncated files and start offsets, and
edit lists hide the packets before the first displayed frame.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from gym_longvideo.video.errors import (
    NoVideoStreamError,
    UnsupportedCodecError,
    VideoNotFoundError,
    VideoOpenError,
    VideoTruncatedError,
)
from gym_longvideo.video.source import VideoInfo

BACKEND = "pyav"
# How far below the declared duration the real end may lie before a file counts as truncated.
TRUNCATED_BELOW = 0.98
# Packets read at most to find the first keyframe and the first displayed frame.
_HEAD_PACKETS = 600
# Demuxing goes on after this many read errors (damaged files recover at the next packet).
_MAX_READ_ERRORS = 64
# FFmpeg opens pictures and plain text as one-frame "videos".
_STILL_FORMATS = re.compile(r"_pipe$|^image2|^tty$")


@dataclass
class OpenedVideo:
    """A container positioned for reading, and the facts the planner needs.

    Attributes:
        container: The open container.
        stream: Its video stream; all others are discarded by the demuxer.
        info: Facts about the video.
        time_base: Seconds per tick of the stream's timestamps.
        first_pts: Timestamp of the first displayed frame, in ticks.
        origin: Where the first keyframe stands in the file (decode time), in ticks.
        key_offset: Ticks by which a keyframe's pts exceeds its timestamp in the container's index
            (MP4 indexes decode times).
        edited: Whether an edit list hides packets at the beginning.
        indexed: Whether the container's index lists keyframes of the whole file.
        vague: Whether timestamps are guesses: MPEG program streams carry few, and AVI none, so that
            reordered frames of modern codecs are numbered in the wrong order.
        refreshes: Whether the stream turned out to use intra refresh, where a keyframe is only the
            beginning of a picture.
    """

    container: InputContainer
    stream: VideoStream
    info: VideoInfo
    time_base: Fraction
    first_pts: int
    origin: int
    key_offset: int
    edited: bool
    indexed: bool
    vague: bool
    refreshes: bool = False

    def close(self) -> None:
        """Close the container."""
        self.container.close()


def file_key(path: str) -> str:
    """Return a key that changes when the file may have changed (path, size, mtime)."""
    stat = os.stat(path)
    text = f"{os.path.realpath(path)}\n{stat.st_size}\n{stat.st_mtime_ns}"
    return hashlib.sha1(text.encode("utf-8", "surrogateescape")).hexdigest()


def timestamp(packet: Packet) -> int | None:
    """Return when a packet's frame is shown, in ticks (AVI gives only decode times)."""
    return packet.dts if packet.pts is None else packet.pts


def demux(
    container: InputContainer, stream: VideoStream, on_error: Callable[[], None] | None = None
) -> Iterator[Packet]:
    """Yield the stream's packets from where the container stands, riding over read errors."""
    for _ in range(_MAX_READ_ERRORS):
        try:
            for packet in container.demux(stream):
                if packet.size:  # the last one is empty: a flush signal
                    yield packet
            return
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            if on_error is not None:
                on_error()


def open_file(path: str, *, allow_truncated: bool = True) -> OpenedVideo:
    """Open a video file and measure it.

    Raises:
        VideoNotFoundError: No such file, a directory, or no permission.
        VideoOpenError: Not a readable video.
        NoVideoStreamError: No moving pictures inside.
        UnsupportedCodecError: No decoder for the codec.
        VideoTruncatedError: Ends early, and ``allow_truncated`` is false.
    """
    _check_file(path)
    try:
        # "file:" keeps a colon in a name from being read as a protocol, and the whitelist keeps
        # playlists from reaching out to the network.
        container = av.open("file:" + path, options={"protocol_whitelist": "file"})
    except av.error.FFmpegError as error:
        raise VideoOpenError(
            f"not a readable video ({error.strerror}); check that the download is complete",
            path=path,
            backend=BACKEND,
        ) from error
    try:
        opened = _measure(container, path)
        if opened.info.truncated and not allow_truncated:
            raise VideoTruncatedError(
                f"ends at {opened.info.duration_s:.2f} s of {opened.info.declared_s:.2f} s "
                "declared; fetch the file again, or pass allow_truncated=True",
                path=path,
                backend=BACKEND,
            )
    except av.error.FFmpegError as error:
        container.close()
        raise VideoOpenError(
            f"the container is damaged ({error.strerror}); remux or fetch the file again",
            path=path,
            backend=BACKEND,
        ) from error
    except BaseException:
        container.close()
        raise
    return opened


def _check_file(path: str) -> None:
    if not os.path.exists(path):
        raise VideoNotFoundError("no such file; check the path", path=path)
    if os.path.isdir(path):
        raise VideoNotFoundError("this is a directory; pass a video file inside it", path=path)
    if not os.access(path, os.R_OK):
        raise VideoNotFoundError("no permission to read this file; check its mode", path=path)
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise VideoOpenError("the file is empty (0 bytes); fetch it again", path=path)


def _measure(container: InputContainer, path: str) -> OpenedVideo:
    stream = _choose_stream(container, path)
    time_base = stream.time_base
    head = _find_start(container, stream)
    if head is None or time_base is None:
        raise VideoOpenError(
            "the pictures carry no timestamps; remux first: ffmpeg -i IN -c copy OUT.mp4",
            path=path,
            backend=BACKEND,
        )
    first_pts, first_key, origin, edited = head
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else None
    tick = round(1 / (fps * float(time_base))) if fps else 1
    declared_s = _declared_seconds(container, stream, first_pts)
    end_pts = _find_end(container, stream, first_pts, declared_s, tick)
    if end_pts is None:
        raise VideoOpenError(
            "holds no readable picture; fetch the file again", path=path, backend=BACKEND
        )
    duration_s = float((end_pts - first_pts) * time_base)
    shortfall_s = declared_s - duration_s
    truncated = duration_s < TRUNCATED_BELOW * declared_s and shortfall_s > 2 * tick * time_base
    rotation = 0
    if _may_be_rotated(path, container.format.name):
        rotation = _first_rotation(container, stream, first_pts)
    context = stream.codec_context
    width, height = context.width, context.height
    if rotation in (90, 270):
        width, height = height, width
    info = VideoInfo(
        path=path,
        container=container.format.name,
        codec=context.codec.canonical_name,
        width=width,
        height=height,
        rotation=rotation,
        fps=fps,
        duration_s=duration_s,
        declared_s=declared_s,
        start_s=float(first_pts * time_base),
        frame_count=_count_frames(stream.frames, duration_s, fps),
        truncated=truncated,
        key=file_key(path),
    )
    return OpenedVideo(
        container,
        stream,
        info,
        time_base,
        first_pts,
        origin,
        key_offset=_key_offset(stream, first_key),
        edited=edited,
        indexed=_is_indexed(container, stream),
        vague=container.format.name == "mpeg"
        or (container.format.name == "avi" and context.name in ("h264", "hevc")),
    )


def _choose_stream(container: InputContainer, path: str) -> VideoStream:
    if _STILL_FORMATS.search(container.format.name):
        raise NoVideoStreamError(
            f"a still picture or text ({container.format.name}); pass a video file",
            path=path,
            backend=BACKEND,
        )
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise NoVideoStreamError(
            "holds no moving pictures (audio or a cover image only); pass a video file",
            path=path,
            backend=BACKEND,
        )
    best = container.streams.best("video")
    stream = next((s for s in moving if best is not None and s.index == best.index), moving[0])
    if stream.codec_context is None:
        raise UnsupportedCodecError(
            "this build of PyAV has no decoder for the video codec; transcode the file to H.264",
            path=path,
            backend=BACKEND,
        )
    # FFmpeg's default of one thread per core starts slower than one thread decodes a group of
    # pictures, hangs after fork, and oversubscribes vectorised environments.
    stream.codec_context.thread_count = 1
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream


def _find_start(
    container: InputContainer, stream: VideoStream
) -> tuple[int, int, int, bool] | None:
    """Return (first displayed pts, pts and dts of the first keyframe, hidden packets exist)."""
    key: int | None = None
    origin = 0
    first: int | None = None
    edited = False
    seen: list[int] = []
    for number, packet in enumerate(demux(container, stream)):
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


def _declared_seconds(container: InputContainer, stream: VideoStream, first_pts: int) -> float:
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


def _find_end(
    container: InputContainer, stream: VideoStream, first_pts: int, declared_s: float, tick: int
) -> int | None:
    """Return the pts at which the last readable frame ends; ``None`` if nothing is readable."""
    time_base = stream.time_base
    assert time_base is not None
    second = max(1, round(1 / time_base))
    position = first_pts + round((declared_s or 100 * 3600) / time_base)
    step = second
    while True:
        try:
            container.seek(max(position, first_pts), stream=stream)
        except av.error.FFmpegError:
            if position <= first_pts:
                return None
        else:
            end: int | None = None
            begin: int | None = None
            for packet in demux(container, stream):
                pts = timestamp(packet)
                if pts is None or packet.is_corrupt or packet.is_discard:
                    continue
                if begin is None:
                    begin = first_pts if packet.is_keyframe else pts
                end = max(end or pts, pts + (packet.duration or tick))
            # MPEG-TS may land among the last few packets, behind the frame that is shown last.
            if begin is not None and end is not None and end - begin > second // 2:
                return end
            if end is not None and end > first_pts and position <= first_pts:
                return end
        if position <= first_pts:
            return None
        position, step = position - step, 2 * step


def _count_frames(declared: int, duration_s: float, fps: float | None) -> int | None:
    estimate = max(1, round(duration_s * fps)) if fps else None
    if not declared:
        return estimate
    # Edit lists hide frames and truncation cuts them off; the declared count knows of neither.
    if estimate is not None and estimate < declared - max(2, declared // 100):
        return estimate
    return declared


def _key_offset(stream: VideoStream, first_key: int) -> int:
    entries = stream.index_entries
    return first_key - entries[0].timestamp if len(entries) and entries[0].is_keyframe else 0


def _is_indexed(container: InputContainer, stream: VideoStream) -> bool:
    # Other demuxers, and MP4 in fragments, list only what they have come across so far.
    name, entries = container.format.name, len(stream.index_entries)
    if name.startswith("mov"):
        return 0 < stream.frames <= entries
    return entries > 0 and (name.startswith("matroska") or name == "avi")


def _first_rotation(container: InputContainer, stream: VideoStream, first_pts: int) -> int:
    container.seek(first_pts, stream=stream)
    for packet in demux(container, stream):
        for frame in packet.decode():
            stream.codec_context.flush_buffers()
            return frame.rotation % 360
    return 0


def _may_be_rotated(path: str, container: str) -> bool:
    """Tell cheaply whether a rotation may be set, so that most files open without decoding.

    PyAV shows the display matrix on decoded frames only. A wrong "no" would merely leave ``info``
    unrotated: frames are turned by their own matrix.
    """
    if container.startswith("mov"):
        with Path(path).open("rb") as file:
            return _has_turned_track(file, 0, os.path.getsize(path))
    if container.startswith("matroska"):
        with Path(path).open("rb") as file:
            return b"\x76\x70" in file.read(65536)  # id of the Projection element
    return False


def _has_turned_track(file: BinaryIO, start: int, end: int) -> bool:
    """Walk the boxes of an MP4 to its track headers; True if one has a turning matrix."""
    while start + 8 <= end:
        file.seek(start)
        header = file.read(16)
        if len(header) < 8:
            return False
        size, kind = struct.unpack(">I4s", header[:8])
        body = start + 8
        if size == 1 and len(header) == 16:
            size, body = struct.unpack(">Q", header[8:])[0], start + 16
        stop = end if size == 0 else start + size
        if stop < body:
            return False
        if kind in (b"moov", b"trak"):
            if _has_turned_track(file, body, min(stop, end)):
                return True
        elif kind == b"tkhd":
            file.seek(body)
            payload = file.read(104)
            at = 52 if payload[:1] == b"\x01" else 40
            if len(payload) >= at + 36:
                a, b, _, c, d = struct.unpack(">5i", payload[at : at + 20])
                if b or c or a < 0 or d < 0:
                    return True
        start = stop
    return False
