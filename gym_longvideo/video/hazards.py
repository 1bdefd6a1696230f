"""What in a file other decoders are known to get wrong, found out cheaply with PyAV.

decord 0.6 returns wrong frames without a word for edit lists, open groups of pictures and AVI,
hangs on MPEG-TS, and fails on pixels that are not square; torchcodec 0.13 errs on MPEG-TS, AVI and
intra refresh; both show high dynamic range as a grey haze. A refusal is better.
"""

from __future__ import annotations

import av.error

from gym_longvideo.video.border import border, pass_on_machine_fault
from gym_longvideo.video.errors import UnsupportedCodecError, VideoOpenError
from gym_longvideo.video.packets import demux, timestamp
from gym_longvideo.video.probe import OpenedVideo, open_file
from gym_longvideo.video.source import VideoInfo

# Open groups of pictures and intra refresh show within the first keyframes, if at all.
_KEYFRAMES = 4
_PACKETS = 1500


def find_hazards(opened: OpenedVideo) -> set[str]:
    """Name the properties of a file that make other decoders fail.

    Returns:
        Some of "MPEG-TS", "AVI", "edit list", "HDR", "open GOP", "intra refresh", "damage",
        "pixels that are not square", "a cover picture before the film", and the codec as
        "codec av1".
    """
    hazards = {f"codec {opened.info.codec}"}
    if opened.info.container == "mpegts":
        hazards.add("MPEG-TS")
    if opened.info.container == "avi":
        hazards.add("AVI")
    if opened.edited:
        hazards.add("edit list")
    if opened.stream.sample_aspect_ratio not in (None, 0, 1):
        hazards.add("pixels that are not square")
    if opened.info.hdr:
        hazards.add("HDR")
    container, stream = opened.container, opened.stream
    best = container.streams.best("video")
    if best is not None and best.index != stream.index:
        hazards.add("a cover picture before the film")
    keys = []
    key_pts: int | None = None
    try:
        container.seek(opened.origin, stream=stream)
        for number, packet in enumerate(demux(container, stream)):
            pts = timestamp(packet)
            if number >= _PACKETS or len(keys) > _KEYFRAMES:
                break
            if pts is None:
                continue
            if packet.is_keyframe:
                key_pts = pts
                keys.append(packet)
            elif key_pts is not None and pts < key_pts and opened.info.codec in ("h264", "hevc"):
                hazards.add("open GOP")  # shown before the keyframe that it follows in the file
        if opened.info.codec == "h264":
            context = stream.codec_context
            for packet in keys[1:]:
                context.flush_buffers()
                if not context.decode(packet) + context.decode(None):
                    hazards.add("intra refresh")  # a recovery point has no picture by itself
            context.flush_buffers()
    except av.error.FFmpegError as error:
        pass_on_machine_fault(error)
        hazards.add("damage")
    return hazards


def refuse(path: str, backend: str, known_bad: set[str], *, allow_truncated: bool) -> VideoInfo:
    """Probe a file for a backend.

    Raises:
        UnsupportedCodecError: If the file holds what the backend is known to get wrong.
        VideoError: If it cannot be opened at all.
    """
    opened = open_file(path, allow_truncated=allow_truncated)
    try:
        with border(path, backend, VideoOpenError, "the container is damaged"):
            found = sorted(find_hazards(opened) & known_bad)
    finally:
        opened.close()
    if found:
        raise UnsupportedCodecError(
            f"{backend} is known to fail on this kind of file ({', '.join(found)}); use "
            'backend="pyav"',
            path=path,
            backend=backend,
        )
    return opened.info
