"""From a decoded frame to pixels: colour conversion, scaling, rotation and letterboxing.

Scaling happens inside swscale straight from YUV with the AREA filter: six times cheaper than
converting the full picture to RGB first, and free of the aliasing of FAST_BILINEAR.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from gym_longvideo.video import hdr
from gym_longvideo.video.hdr import transfer_of
from gym_longvideo.video.source import Fit


def letterbox(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int, int, int]:
    """Fit a picture into a frame without distorting it.

    Args:
        inner: (height, width) of the picture.
        outer: (height, width) of the frame.

    Returns:
        (top, left, height, width) of the picture inside the frame.

    >>> letterbox((100, 200), (64, 64))
    (16, 0, 32, 64)
    """
    scale = min(outer[0] / inner[0], outer[1] / inner[1])
    height = min(outer[0], max(1, round(inner[0] * scale)))
    width = min(outer[1], max(1, round(inner[1] * scale)))
    return (outer[0] - height) // 2, (outer[1] - width) // 2, height, width


class Painter:
    """Draws decoded frames into RGB arrays. Not thread-safe: one per reader.

    Args:
        aspect: How much wider than high a pixel of the frames is.
    """

    def __init__(self, aspect: Fraction = Fraction(1)) -> None:
        self._aspect = aspect
        # One reformatter keeps one scaling context; a new one per frame costs more than scaling.
        self._reformatter = VideoReformatter()

    def draw(self, frame: VideoFrame, out: np.ndarray, fit: Fit = "stretch") -> None:
        """Draw a frame, upright, into ``out``.

        Args:
            frame: A decoded frame, of any size and pixel format.
            out: (H, W, 3) uint8 RGB, written in place.
            fit: "stretch" to ``out``, or "letterbox" with black bars.
        """
        quarter_turns = (frame.rotation // 90) % 4
        upright = (frame.height, max(1, round(frame.width * self._aspect)))
        if quarter_turns % 2:
            upright = (upright[1], upright[0])
        if fit == "letterbox":
            top, left, height, width = letterbox(upright, (out.shape[0], out.shape[1]))
            if (height, width) != out.shape[:2]:
                out[...] = 0
                out = out[top : top + height, left : left + width]
        height, width = out.shape[:2]
        if quarter_turns % 2:
            height, width = width, height
        pixels = self._rgb(frame, height, width)
        out[...] = np.rot90(pixels, quarter_turns) if quarter_turns else pixels

    def _rgb(self, frame: VideoFrame, height: int, width: int) -> np.ndarray:
        # At native size the filter only concerns chroma; the default keeps pixels bit-identical to
        # what any other FFmpeg program shows.
        native = (height, width) == (frame.height, frame.width)
        interpolation = Interpolation.BILINEAR if native else Interpolation.AREA
        if transfer_of(frame.color_trc):
            return hdr.to_sdr(frame, self._reformatter, height, width, interpolation)
        scaled = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=interpolation,
            threads=1,
        )
        plane = scaled.planes[0]
        # Rows are padded to plane.line_size, and the buffer dies with the frame: the caller copies.
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:height]
        return rows[:, : 3 * width].reshape(height, width, 3)


def resize(
    pixels: np.ndarray,
    out: np.ndarray,
    fit: Fit = "stretch",
    shown: tuple[int, int] | None = None,
) -> None:
    """Draw an (h, w, 3) uint8 RGB array into ``out`` as ``Painter.draw`` would.

    For backends that hand out RGB at native size, so that one scaler serves them all.

    Args:
        pixels: The picture, upright.
        out: (H, W, 3) uint8 RGB, written in place.
        fit: "stretch" to ``out``, or "letterbox" with black bars.
        shown: (height, width) as displayed, where pixels are not square.
    """
    height, width = pixels.shape[:2]
    aspect = Fraction(1) if shown is None else Fraction(shown[1] * height, shown[0] * width)
    if pixels.shape == out.shape and (fit == "stretch" or aspect == 1):
        out[...] = pixels
    else:
        Painter(aspect).draw(
            VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24"), out, fit
        )
