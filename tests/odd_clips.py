"""Makes small videos of kinds that are easily read wrongly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import clips
import numpy as np

# A recorded talk: twelve slides of 5 seconds and one for the nine minutes after them, shown again
# at the end.
SLIDES_S = (*range(0, 65, 5), 600)


def talk(path: Path, *, bframes: int = 3, starts_s: Sequence[float] = SLIDES_S) -> Path:
    """Encode slides numbered from 0, each shown until the next; the last once more, for 0.04 s."""
    return clips.h264(
        path,
        frames=len(starts_s),
        fps=25,
        ticks=1000,
        pts=[round(1000 * start) for start in starts_s],
        bframes=bframes,
        gop=1000,
        picture=lambda i: clips.barcode(min(i, len(starts_s) - 2)),
    )


def joined(path: Path, *parts: Path) -> Path:
    """Write files one after the other, as recordings that went on in one file."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def joined_flv(path: Path, *parts: Path) -> Path:
    """Write the tags of FLV files one after the other, under one header."""
    contents = [part.read_bytes() for part in parts]
    path.write_bytes(contents[0] + b"".join(content[13:] for content in contents[1:]))
    return path


def with_cover(path: Path, film: Path, *, codec: str = "mjpeg", first: bool = True) -> Path:
    """Put a large picture beside a film, as a video stream that nothing calls a cover."""
    with av.open(str(film)) as reader, av.open(str(path), "w") as writer:
        source = reader.streams.video[0]

        def add_cover() -> av.VideoStream:
            stream = writer.add_stream(codec, rate=25)
            stream.width, stream.height = 640, 360
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            return stream

        if first:
            cover, target = add_cover(), writer.add_stream_from_template(source)
        else:
            target, cover = writer.add_stream_from_template(source), add_cover()
        picture = av.VideoFrame.from_ndarray(np.zeros((360, 640, 3), np.uint8), "rgb24")
        picture.pts = 0
        for packet in [*cover.encode(picture), *cover.encode(None)]:
            writer.mux(packet)
        for packet in reader.demux(source):
            if packet.size:
                packet.stream = target
                writer.mux(packet)
    return path


def titled(path: Path, film: Path, title: bytes) -> Path:
    """Copy a film to Matroska, with a title of any bytes."""
    mark = b"T" * len(title)
    with av.open(str(film)) as reader, av.open(str(path), "w") as writer:
        source = reader.streams.video[0]
        writer.metadata["title"] = mark.decode()
        target = writer.add_stream_from_template(source)
        target.metadata["title"] = mark.decode()
        for packet in reader.demux(source):
            if packet.size:
                packet.stream = target
                writer.mux(packet)
    content = path.read_bytes()
    assert content.count(mark) >= 2
    path.write_bytes(content.replace(mark, title))
    return path


def disc(path: Path, aspect: Fraction, *, size: tuple[int, int] = (96, 72)) -> Path:
    """Encode a disc that is round when pixels are shown ``aspect`` times as wide as high."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    round_ = ((x - width / 2 + 0.5) * float(aspect)) ** 2 + (y - height / 2 + 0.5) ** 2 < 30**2
    picture = np.repeat(np.where(round_, 235, 16).astype(np.uint8)[..., None], 3, axis=2)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for i in range(30):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 30)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def hdr(path: Path, transfer: int, luma: Callable[[int], np.ndarray], primaries: int = 9) -> Path:
    """Encode grey pictures of ten bits, limited range, as HEVC with BT.2020 and a transfer."""
    with av.open(str(path), "w") as output:
        options = {"x265-params": "log-level=none:pools=1", "preset": "veryfast", "crf": "5"}
        stream = output.add_stream("libx265", rate=12, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = transfer, primaries, 9
        for i in range(12):
            planes = np.full((144, 128), 512, np.uint16)
            planes[:96] = luma(i)
            frame = av.VideoFrame.from_ndarray(planes, "yuv420p10le")
            frame.color_trc, frame.color_primaries, frame.colorspace = transfer, primaries, 9
            frame.color_range = 1
            frame.pts, frame.time_base = i, Fraction(1, 12)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
