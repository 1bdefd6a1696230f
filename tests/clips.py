"""Makes small video files in which every frame carries its own number.

The number is drawn as a barcode of big black and white blocks, readable at small sizes and after
lossy coding, so a test can say exactly which frame came back. PyAV encodes; nothing else is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 12  # numbers 0..4095: 4 columns by 3 rows of blocks
COLUMNS, ROWS = 4, 3
WIDTH, HEIGHT, FPS = 128, 96, 30


def barcode(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Draw a number as an (height, width, 3) uint8 picture."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    cells = np.array(bits, np.uint8).reshape(ROWS, COLUMNS) * 200 + 28
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(cells[rows][:, columns][..., None], 3, axis=2)


def read_barcode(pixels: np.ndarray) -> int:
    """Read the number back from the centres of the blocks."""
    height, width = pixels.shape[:2]
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, COLUMNS)
        top, bottom = (row * 4 + 1) * height // 12, max((row * 4 + 3) * height // 12, 1)
        left, right = (column * 4 + 1) * width // 16, max((column * 4 + 3) * width // 16, 1)
        block = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
        number |= int(block.mean() > 128) << bit
    return number


def read_barcodes(frames: np.ndarray) -> list[int]:
    return [read_barcode(frame) for frame in frames]


def encode(
    path: Path,
    codec: str = "libx264",
    *,
    frames: int = 90,
    fps: int = FPS,
    pts: Sequence[int] | None = None,
    ticks: int | None = None,
    options: dict[str, str] | None = None,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pix_fmt: str = "yuv420p",
    bframes: int | None = None,
    container: str | None = None,
    picture: Callable[[int], np.ndarray] | None = None,
) -> Path:
    """Encode frames numbered from 0.

    Args:
        path: File to write; its suffix picks the container.
        codec: Encoder name.
        frames: How many.
        fps: Frames per second.
        pts: Timestamps in units of 1/ticks; by default a constant rate.
        ticks: Timestamp units per second.
        options: Encoder options.
        size: (height, width).
        pix_fmt: Pixel format to encode.
        bframes: Most consecutive B-frames.
        container: Container name, if the suffix does not tell.
        picture: Draws frame i; by default its barcode.
    """
    picture = picture or (lambda i: barcode(i, *size))
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.thread_count = 1
        if ticks:
            stream.time_base = Fraction(1, ticks)
            stream.codec_context.time_base = Fraction(1, ticks)
        if bframes is not None:
            stream.max_b_frames = bframes
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts = i if pts is None else pts[i]
            frame.time_base = Fraction(1, ticks or fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def h264(path: Path, *, gop: int = 24, bframes: int = 3, extra: str = "", **kwargs) -> Path:
    """Encode H.264 with a fixed group of pictures (no scene cuts)."""
    params = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:b-adapt=0" + extra
    return encode(path, "libx264", options={"x264-params": params, "preset": "veryfast"}, **kwargs)


def remux(
    source: Path,
    path: Path,
    *,
    shift: Fraction = Fraction(0),
    keep: Callable[[av.Packet], bool] = lambda packet: True,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Copy packets without re-encoding.

    Args:
        source: File to copy from.
        path: File to write.
        shift: Seconds added to every timestamp; negative ones make MP4 write an edit list.
        keep: Which packets to copy.
        rotation: Counter-clockwise display rotation to declare, in degrees.
        options: Options of the container.
    """
    with av.open(str(source)) as reader, av.open(str(path), "w", options=options or {}) as writer:
        stream = reader.streams.video[0]
        target = writer.add_stream_from_template(stream)
        if rotation:
            target.set_display_rotation(rotation)
        ticks = round(shift / stream.time_base)
        for packet in reader.demux(stream):
            if packet.size == 0 or not keep(packet):
                continue
            packet.pts += ticks
            if packet.dts is not None:
                packet.dts += ticks
            packet.stream = target
            writer.mux(packet)
    return path


def tone(path: Path, seconds: float = 1.0) -> Path:
    """Encode sound without pictures."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        count = int(seconds * 16000) // 1024
        for i in range(count):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 16000, i * 1024
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def shown_numbers(times: Iterable[float], starts: Sequence[float]) -> list[int]:
    """Which frame is shown at each time, given when each starts being shown."""
    return [int(np.searchsorted(starts, t + 1e-9, side="right")) - 1 for t in times]


def _steps(count: int) -> list[int]:
    """Timestamps of a variable frame rate: steps of 1 to 5 ticks."""
    return np.cumsum([0] + [1 + (7 * i) % 5 for i in range(count - 1)]).tolist()


def _rotated(turns: int) -> Callable[[int], np.ndarray]:
    """Draw frames that read upright once turned counter-clockwise ``turns`` times."""

    def picture(i: int) -> np.ndarray:
        height, width = (WIDTH, HEIGHT) if turns % 2 else (HEIGHT, WIDTH)
        return np.ascontiguousarray(np.rot90(barcode(i, height, width), -turns))

    return picture


_HEVC = "keyint=24:min-keyint=24:scenecut=0:pools=1:log-level=none"

# Name of a clip -> how to make it. All show frame numbers 0..89 at 30 frames per second, except
# where the name says otherwise.
CATALOG: dict[str, Callable[[Library, Path], Path]] = {
    "cfr.mp4": lambda lib, p: h264(p),
    "cfr.mkv": lambda lib, p: h264(p),
    "no-b-frames.mp4": lambda lib, p: h264(p, bframes=0),
    "vfr.mp4": lambda lib, p: h264(p, pts=_steps(90), ticks=90),
    "vfr.mkv": lambda lib, p: h264(p, pts=_steps(90), ticks=90),
    "open-gop.mp4": lambda lib, p: h264(p, extra=":open-gop=1"),
    "intra-refresh.mp4": lambda lib, p: h264(p, bframes=0, extra=":intra-refresh=1"),
    "interlaced.mp4": lambda lib, p: h264(p, extra=":interlaced=1:tff=1"),
    # Cut at frame 35, in the middle of a group: the packets from 24 on are kept, but hidden.
    "edit-list.mp4": lambda lib, p: remux(
        lib["cfr.mp4"], p, shift=Fraction(-35, FPS), keep=lambda k: k.pts * k.time_base >= 0.79
    ),
    "start-offset.mkv": lambda lib, p: remux(lib["cfr.mkv"], p, shift=Fraction(100)),
    "fragmented.mp4": lambda lib, p: remux(
        lib["cfr.mp4"], p, options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    ),
    "h264.ts": lambda lib, p: h264(p),
    "open-gop.ts": lambda lib, p: h264(p, extra=":open-gop=1"),
    "hevc.mp4": lambda lib, p: encode(
        p, "libx265", options={"x265-params": _HEVC, "preset": "veryfast"}
    ),
    "vp8.webm": lambda lib, p: encode(
        p, "libvpx", options={"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16"}
    ),
    "vp9.webm": lambda lib, p: encode(
        p, "libvpx-vp9", options={"g": "24", "cpu-used": "8", "deadline": "realtime"}
    ),
    "av1.mp4": lambda lib, p: encode(
        p, "libsvtav1", options={"preset": "12", "g": "24", "svtav1-params": "lp=1"}
    ),
    "mpeg4.avi": lambda lib, p: encode(
        p, "mpeg4", options={"g": "24", "sc_threshold": "1000000000"}, bframes=2
    ),
    "mjpeg.avi": lambda lib, p: encode(p, "mjpeg", pix_fmt="yuvj420p"),
    "odd-size.mkv": lambda lib, p: h264(p, size=(97, 131), pix_fmt="yuv444p"),
    "one-frame.mp4": lambda lib, p: h264(p, frames=1),
    "five-frames.mp4": lambda lib, p: h264(p, frames=5),
    "rotated-90.mp4": lambda lib, p: remux(
        lib._make("rotated-90.raw.mp4", lambda q: h264(q, picture=_rotated(1))), p, rotation=90
    ),
    "rotated-180.mp4": lambda lib, p: remux(
        lib._make("rotated-180.raw.mp4", lambda q: h264(q, picture=_rotated(2))), p, rotation=180
    ),
    "gif.gif": lambda lib, p: encode(p, "gif", fps=25, pix_fmt="rgb8"),
    "flv.flv": lambda lib, p: encode(p, "flv"),
    "program-stream.mpg": lambda lib, p: encode(p, "mpeg2video", options={"g": "24"}, bframes=2),
    "raw.h264": lambda lib, p: h264(p),
    "sound.m4a": lambda lib, p: tone(p),
}

# First displayed number, where it is not 0.
FIRST_NUMBER = {"edit-list.mp4": 35}


class Library:
    """Clips of the catalog, made when first asked for.

    Args:
        directory: Where the files go.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __getitem__(self, name: str) -> Path:
        return self._make(name, lambda path: CATALOG[name](self, path))

    def _make(self, name: str, maker: Callable[[Path], Path]) -> Path:
        path = self._directory / name
        return path if path.exists() else maker(path)


def frame_starts(path: Path) -> tuple[list[float], list[int]]:
    """Decode a file from beginning to end, as any player does: the truth to compare with.

    Returns:
        When each frame starts being shown, in playback seconds, and its number.
    """
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), (frame.rotation // 90) % 4)
            shown = frame.dts if frame.pts is None else frame.pts
            found.append((shown * stream.time_base, read_barcode(pixels)))
    first = min(start for start, _ in found)
    return [float(start - first) for start, _ in found], [number for _, number in found]
