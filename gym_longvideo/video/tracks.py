"""Which stream of a file is the film, and how its pictures are to be shown."""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from gym_longvideo.video.errors import NoVideoStreamError, UnsupportedCodecError, VideoOpenError
from gym_longvideo.video.packets import demux

# 8192 x 8192: nothing larger is read, for a picture of any size can be asked for in few bytes.
MAX_PIXELS = 1 << 26
# FFmpeg opens pictures and plain text as one-frame "videos".
_STILL_FORMATS = re.compile(r"_pipe$|^image2|^tty$")
# Packets read at most to tell a film from a cover picture.
_COVER_PACKETS = 300
# Pixels are hardly ever more than twice as wide as high; beyond this the number is damage. Next to
# square it comes of a size rounded to whole pixels, and no one sees it.
_WIDEST, _SQUARE = 10, Fraction(1, 50)
# Boxes of an MP4 looked at on the way to its track headers; fragments have two each.
_MOST_BOXES = 20_000


def choose_stream(container: InputContainer, path: str, backend: str) -> VideoStream:
    """Return the stream of moving pictures; let the demuxer discard all others.

    Raises:
        NoVideoStreamError: There are none.
        UnsupportedCodecError: There is no decoder for them.
        VideoOpenError: The size of its pictures is unknown, or too large.
    """
    if _STILL_FORMATS.search(container.format.name):
        raise NoVideoStreamError(
            f"a still picture or text ({container.format.name}); pass a video file",
            path=path,
            backend=backend,
        )
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise NoVideoStreamError(
            "holds no moving pictures (audio or a cover image only); pass a video file",
            path=path,
            backend=backend,
        )
    if len(moving) > 1:
        moving = _without_covers(container, moving)
    best = container.streams.best("video")
    stream = next((s for s in moving if best is not None and s.index == best.index), moving[0])
    context = stream.codec_context
    if context is None:
        raise UnsupportedCodecError(
            "this build of PyAV has no decoder for the video codec; transcode the file to H.264",
            path=path,
            backend=backend,
        )
    if not 0 < context.width * context.height <= MAX_PIXELS:
        raise VideoOpenError(
            f"its pictures are {context.width}x{context.height} pixels, or larger than the "
            f"{MAX_PIXELS} pixels that are read; check the file, or scale it down",
            path=path,
            backend=backend,
        )
    # FFmpeg's default of one thread per core starts slower than one thread decodes a group of
    # pictures, hangs after fork, and oversubscribes vectorised environments.
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_PIXELS)}  # sizes may change in mid-stream
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream


def _without_covers(container: InputContainer, streams: list[VideoStream]) -> list[VideoStream]:
    """Leave out streams of a single picture that are not declared to be covers."""
    found = Counter({stream.index: stream.frames for stream in streams})
    if not all(found.values()):  # most containers do not count
        found.clear()
        for number, packet in enumerate(demux(container, *streams)):
            if number >= _COVER_PACKETS or all(found[s.index] > 1 for s in streams):
                break
            found[packet.stream.index] += 1
        container.seek(0)
    return [s for s in streams if found[s.index] > 1] or streams


def shown_size(stream: VideoStream, rotation: int) -> tuple[int, int, Fraction]:
    """Return width and height as displayed, and how much wider than high a pixel is."""
    context = stream.codec_context
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if abs(aspect - 1) < _SQUARE or not Fraction(1, _WIDEST) <= aspect <= _WIDEST:
        aspect = Fraction(1)
    width, height = max(1, round(context.width * aspect)), context.height
    if width * height > MAX_PIXELS:
        width, aspect = context.width, Fraction(1)
    return (height, width, aspect) if rotation in (90, 270) else (width, height, aspect)


def first_rotation(container: InputContainer, stream: VideoStream, first_pts: int) -> int:
    """Decode one frame; return its counter-clockwise rotation in degrees."""
    container.seek(first_pts, stream=stream)
    for packet in demux(container, stream):
        for frame in packet.decode():
            stream.codec_context.flush_buffers()
            return frame.rotation % 360
    return 0


def may_be_rotated(path: str, container: str) -> bool:
    """Tell cheaply whether a rotation may be set, so that most files open without decoding.

    PyAV shows the display matrix on decoded frames only. A wrong "no" would merely leave ``info``
    unrotated: frames are turned by their own matrix.
    """
    if container.startswith("mov"):
        with Path(path).open("rb") as file:
            return _has_turned_track(file, os.path.getsize(path))
    if container.startswith("matroska"):
        with Path(path).open("rb") as file:
            return b"\x76\x70" in file.read(65536)  # id of the Projection element
    return False


def _has_turned_track(file: BinaryIO, size: int) -> bool:
    """Walk the boxes of an MP4 to its track headers; True if one has a turning matrix."""
    spans = [(0, size)]
    for _ in range(_MOST_BOXES):
        while spans and spans[-1][0] + 8 > spans[-1][1]:
            spans.pop()
        if not spans:
            return False
        start, end = spans.pop()
        file.seek(start)
        header = file.read(16)
        if len(header) < 8:
            return False
        length, kind = struct.unpack(">I4s", header[:8])
        body = start + 8
        if length == 1 and len(header) == 16:
            length, body = struct.unpack(">Q", header[8:])[0], start + 16
        stop = end if length == 0 else start + length
        if stop < body:
            return False
        spans.append((stop, end))
        if kind in (b"moov", b"trak"):
            spans.append((body, min(stop, end)))
        elif kind == b"tkhd":
            file.seek(body)
            payload = file.read(104)
            at = 52 if payload[:1] == b"\x01" else 40
            if len(payload) >= at + 36:
                a, b, _, c, d = struct.unpack(">5i", payload[at : at + 20])
                if b or c or a < 0 or d < 0:
                    return True
    return False
