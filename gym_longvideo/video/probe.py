"""Opening a file with PyAV: only the named one, only what is a film, and only for so long."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from gym_longvideo.video import span, tracks
from gym_longvideo.video.border import border, file_key, pass_on_machine_fault
from gym_longvideo.video.errors import (
    DecodeTimeoutError,
    VideoNotFoundError,
    VideoOpenError,
    VideoTruncatedError,
)
from gym_longvideo.video.hdr import transfer_of
from gym_longvideo.video.request import Deadline
from gym_longvideo.video.source import VideoInfo

BACKEND = "pyav"
# Seconds that opening and measuring a file may take.
OPEN_DEADLINE_S = 60.0
# How far below the declared duration the real end may lie before a file counts as truncated.
TRUNCATED_BELOW = 0.98
# Containers that hold all they show. Playlists and lists of files (hls, dash, concat, ...) make
# FFmpeg open what they name. Pictures, text, sound and bare streams are here for a better message.
_CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "live_flv", "kux", "gif", "asf"),
    *("ogg", "rm", "mxf", "nut", "wtv", "ivf", "dv", "gxf", "swf", "dhav", "nsv", "nuv", "flic"),
    *("apng", "webp", "h264", "hevc", "vvc", "m4v", "mpegvideo", "mjpeg", "h263", "h261", "av1"),
    *("obu", "vc1", "yuv4mpegpipe", "tty", "mp3", "aac", "wav", "flac", "amr"),
    *(name for name in av.formats_available if name.endswith("_pipe")),
)
_WHITELIST = ",".join(_CONTAINERS)


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
        aspect: How much wider than high a pixel is.
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
    aspect: Fraction
    refreshes: bool = False

    def close(self) -> None:
        """Close the container."""
        self.container.close()


def open_file(
    path: str, *, allow_truncated: bool = True, deadline: Deadline | None = None
) -> OpenedVideo:
    """Open a video file and measure it.

    Args:
        path: A regular local file. Nothing but this file is opened, whatever it says.
        allow_truncated: Whether to accept a file that ends well before its declared duration.
        deadline: When to give up; by default after ``OPEN_DEADLINE_S``.

    Raises:
        VideoNotFoundError: No such file, a directory, or no permission.
        VideoOpenError: Not a readable video.
        NoVideoStreamError: No moving pictures inside.
        UnsupportedCodecError: No decoder for the codec.
        VideoTruncatedError: Ends early, and ``allow_truncated`` is false.
        DecodeTimeoutError: Opening takes too long.
        MachineError: The machine is short of something.
    """
    deadline = deadline or Deadline(OPEN_DEADLINE_S, path, BACKEND)
    with border(path, BACKEND, VideoOpenError, "the container is damaged"):
        key = _check_file(path)
        container = _open(path, deadline)
        try:
            opened = _measure(container, path, key, deadline)
            if opened.info.truncated and not allow_truncated:
                raise VideoTruncatedError(
                    f"ends at {opened.info.duration_s:.2f} s of {opened.info.declared_s:.2f} s "
                    "declared; fetch the file again, or pass allow_truncated=True",
                    path=path,
                    backend=BACKEND,
                )
        except span.ClockRestartedError as error:
            container.close()
            raise VideoOpenError(
                f"its clock starts again after {error.seconds:.1f} s (recordings joined end to "
                "end), so that one moment has several pictures; remux first: ffmpeg -i IN -c copy "
                "OUT.mp4 (for FLV: ffmpeg -f live_flv -i IN -c copy OUT.mp4)",
                path=path,
                backend=BACKEND,
            ) from None
        except BaseException:
            container.close()
            raise
    return opened


def _check_file(path: str) -> str:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a path with a null byte
        raise VideoNotFoundError("no such file; check the path", path=path) from None
    except PermissionError:
        raise VideoNotFoundError(
            "no permission to look here; check its folder", path=path
        ) from None
    if stat.S_ISDIR(found.st_mode):
        raise VideoNotFoundError("this is a directory; pass a video file inside it", path=path)
    if not stat.S_ISREG(found.st_mode):
        raise VideoOpenError("a pipe, socket or device; pass a regular file", path=path)
    if not os.access(path, os.R_OK):
        raise VideoNotFoundError("no permission to read this file; check its mode", path=path)
    if found.st_size == 0:
        raise VideoOpenError("the file is empty (0 bytes); fetch it again", path=path)
    return file_key(path)


def _open(path: str, deadline: Deadline) -> InputContainer:
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _WHITELIST,
        "max_pixels": str(tracks.MAX_PIXELS),
    }
    more: dict[str, Any] = {}
    if int(av.__version__.partition(".")[0]) < 19:  # later ones never refuse a title
        more["metadata_errors"] = "replace"
    deadline.check()
    try:
        # "file:" keeps a colon in a name from being read as a protocol. A time limit for reading,
        # too, would take the GIL at every block.
        return av.open("file:" + path, options=options, timeout=(deadline.left_s, None), **more)
    except av.error.ExitError as error:
        raise DecodeTimeoutError(
            "opening took too long; check the file, or the disk it lies on",
            path=path,
            backend=BACKEND,
        ) from error
    except av.error.FFmpegError as error:
        pass_on_machine_fault(error)
        hint = ""
        if isinstance(error, av.error.ArgumentError):
            hint = "; playlists and lists of files are not opened"
        raise VideoOpenError(
            f"not a readable video ({error.strerror}); check that the download is complete{hint}",
            path=path,
            backend=BACKEND,
        ) from error


def _measure(container: InputContainer, path: str, key: str, deadline: Deadline) -> OpenedVideo:
    stream = tracks.choose_stream(container, path, BACKEND)
    time_base = stream.time_base
    head = span.find_start(container, stream, deadline)
    if head is None or time_base is None:
        raise VideoOpenError(
            "the pictures carry no timestamps; remux first: ffmpeg -i IN -c copy OUT.mp4",
            path=path,
            backend=BACKEND,
        )
    first_pts, first_key, origin, edited = head
    span.check_clock(container, stream, os.path.getsize(path), deadline)
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else None
    tick = max(1, round(1 / (fps * float(time_base)))) if fps else 1
    declared_s = span.declared_seconds(container, stream, first_pts)
    end_pts = span.find_end(container, stream, first_pts, declared_s, tick, deadline)
    if end_pts is None:
        raise VideoOpenError(
            "holds no readable picture; fetch the file again", path=path, backend=BACKEND
        )
    duration_s = float((end_pts - first_pts) * time_base)
    shortfall_s = declared_s - duration_s
    truncated = duration_s < TRUNCATED_BELOW * declared_s and shortfall_s > 2 * tick * time_base
    estimate = _estimate_frames(stream.frames, duration_s, fps)
    frame_count, even = span.count_frames(container, stream, first_pts, end_pts, estimate, deadline)
    rotation = 0
    if tracks.may_be_rotated(path, container.format.name):
        rotation = tracks.first_rotation(container, stream, first_pts)
    context = stream.codec_context
    width, height, aspect = tracks.shown_size(stream, rotation)
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
        frame_count=frame_count,
        truncated=truncated,
        key=key,
        even=even,
        hdr=transfer_of(context.color_trc),
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
        aspect=aspect,
    )


def _estimate_frames(declared: int, duration_s: float, fps: float | None) -> int | None:
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
