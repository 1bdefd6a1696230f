"""Films to measure on: a minute is encoded, its packets are repeated with shifted timestamps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gym_longvideo.files import replace

HEIGHT, WIDTH, FPS = 720, 1280, 30
GROUPS = {"gop250": "keyint=250:scenecut=40", "gop48": "keyint=48:min-keyint=48:scenecut=0"}


def make_film(path: Path, group: str, *, unit_s: int, minutes: int) -> Path:
    """Write a 720p H.264 file: ``unit_s`` seconds encoded, then repeated.

    Textured boxes cross a panning background, and scenes change every 5 to 9 seconds.
    """
    if path.exists():
        return path
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    unit = path.with_suffix(".unit.mp4")
    rng = np.random.default_rng(0)
    with av.open(str(unit), "w") as output:
        options = {"x264-params": GROUPS[group], "crf": "23"}
        stream = output.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"  # type: ignore
        # PyAV's default of slice threads would cut pictures into slices, as no published video is.
        stream.thread_type = "FRAME"  # type: ignore
        left, layers = 0, []
        for i in tqdm(range(unit_s * FPS), f"encoding {path.name}", unit="frame", leave=False):
            if not left:
                left = int(rng.integers(5 * FPS, 9 * FPS))
                layers = [_texture(rng, cells) for cells in (90, 60, 20)]
            left -= 1
            picture = _window(layers[0], left).copy()
            for x, layer in zip((left * 3 % 880, left * 5 % 880), layers[1:], strict=True):
                picture[200:520, x : x + 400] = _window(layer, 2 * left)[200:520, :400]
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            output.mux(stream.encode(frame))  # type: ignore
        output.mux(stream.encode(None))  # type: ignore
    repeat(unit, path, times=minutes * 60 // unit_s, unit_s=unit_s)
    unit.unlink()
    return path


def repeat(unit: Path, path: Path, *, times: int, unit_s: int) -> None:
    """Write a file's packets several times over, without encoding again."""
    import av

    temporary = path.with_suffix(".part.mp4")
    with av.open(str(unit)) as source, av.open(str(temporary), "w") as output:
        stream = source.streams.video[0]
        target = output.add_stream_from_template(stream)
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in source.demux(stream) if p.size]
        ticks = round(unit_s / stream.time_base)  # type: ignore
        for turn in range(times):
            for content, pts, dts, is_keyframe in packets:
                packet = av.Packet(content)
                packet.pts, packet.dts = pts + turn * ticks, dts + turn * ticks  # type: ignore
                packet.is_keyframe, packet.stream = is_keyframe, target
                packet.time_base = stream.time_base  # type: ignore
                output.mux(packet)
    replace(temporary, path)


def _texture(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Draw a random (960, 1712, 3) texture, so many cells high, larger than the picture."""
    from av import VideoFrame

    coarse = rng.integers(30, 226, (cells, cells * 107 // 60, 3), np.uint8)
    frame = VideoFrame.from_ndarray(coarse, "rgb24")
    return frame.reformat(width=1712, height=960, interpolation="BICUBIC").to_ndarray()


def _window(texture: np.ndarray, step: int) -> np.ndarray:
    top, side = step % 240, step % 432
    return texture[top : top + HEIGHT, side : side + WIDTH]
