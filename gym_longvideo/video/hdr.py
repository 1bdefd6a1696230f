"""High dynamic range shown as what a model knows: SDR, with paper white at 255.

PQ (SMPTE ST 2084) and hybrid log-gamma (ITU-R BT.2100) are undone to light relative to the
reference white of ITU-R BT.2408, wide primaries are turned into those of BT.709, what is brighter
than white is clipped, and the rest is encoded as sRGB. swscale only scales the planes: its own
conversion of more than 8 bits to RGB is off by one part in 256, and takes PQ for gamma.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from gym_longvideo.video.errors import UnsupportedCodecError

# Numbers of ITU-T H.273. Light of 1.0 is reference white: 203 nits of PQ, 75 % of HLG.
_TRANSFERS: dict[int, Literal["pq", "hlg"]] = {16: "pq", 18: "hlg"}
_WHITE_NITS, _WHITE_HLG = 203.0, 0.75
# Luma weights of red and blue by matrix; where it is not told (2), that of BT.2020.
_LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114)}
_LUMA |= dict.fromkeys((2, 9, 10), (0.2627, 0.0593))
# Linear RGB to linear BT.709, by primaries; BT.2020 where they are not told (2). ITU-R BT.2087.
_WIDE = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
_P3 = [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]
_PRIMARIES = {1: np.eye(3), 12: np.array(_P3), **dict.fromkeys((2, 9), np.array(_WIDE))}
_CODES = 65536


def transfer_of(number: int | None) -> Literal["", "pq", "hlg"]:
    """Name the transfer function with this number if it is one of high dynamic range."""
    return _TRANSFERS.get(int(number or 0), "")


def to_sdr(
    frame: VideoFrame,
    reformatter: VideoReformatter,
    height: int,
    width: int,
    interpolation: Interpolation,
) -> np.ndarray:
    """Return a frame as (height, width, 3) uint8 RGB.

    Raises:
        UnsupportedCodecError: Its colours are of a kind that is not known here.
    """
    if frame.colorspace not in _LUMA or frame.color_primaries not in _PRIMARIES:
        raise UnsupportedCodecError(
            f"high dynamic range with colour matrix {int(frame.colorspace)} and primaries "
            f"{int(frame.color_primaries)} is not read; convert the file to SDR"
        )
    planes = reformatter.reformat(
        frame, width=width, height=height, format="yuv444p16le", interpolation=interpolation,
        threads=1,
    )  # fmt: skip
    luma, blue, red = (_plane(planes, i).astype(np.float32) / 256 for i in range(3))
    if frame.color_range == 2:  # full
        luma, blue, red = luma / 255.0, (blue - 128) / 255.0, (red - 128) / 255.0
    else:
        luma, blue, red = (luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224
    of_red, of_blue = _LUMA[int(frame.colorspace)]
    rgb = np.empty((height, width, 3), np.float32)
    rgb[..., 0] = luma + 2 * (1 - of_red) * red
    rgb[..., 2] = luma + 2 * (1 - of_blue) * blue
    rgb[..., 1] = (luma - of_red * rgb[..., 0] - of_blue * rgb[..., 2]) / (1 - of_red - of_blue)
    light = _light(_TRANSFERS[int(frame.color_trc)])[_codes(rgb)]
    return _srgb()[_codes(light @ _PRIMARIES[int(frame.color_primaries)].T.astype(np.float32))]


def _plane(frame: VideoFrame, index: int) -> np.ndarray:
    plane = frame.planes[index]
    rows = np.frombuffer(memoryview(plane), "<u2").reshape(-1, plane.line_size // 2)
    return rows[: frame.height, : frame.width]


def _codes(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, 1) * (_CODES - 1) + 0.5).astype(np.uint16)


@cache
def _light(transfer: Literal["pq", "hlg"]) -> np.ndarray:
    """Return light relative to reference white for each code of 16 bits."""
    codes = np.linspace(0, 1, _CODES)
    if transfer == "pq":
        return (_pq(codes) / _WHITE_NITS).astype(np.float32)
    return (_hlg(codes) / _hlg(np.array([_WHITE_HLG]))).astype(np.float32)


def _pq(code: np.ndarray) -> np.ndarray:
    """Return nits, by the constants of SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
    power = code ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg(code: np.ndarray) -> np.ndarray:
    """Return light of the scene, by the constants of ITU-R BT.2100."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


@cache
def _srgb() -> np.ndarray:
    """Return the sRGB value, uint8, for each of so many equal steps of light up to white."""
    light = np.linspace(0, 1, _CODES)
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * code).astype(np.uint8)
