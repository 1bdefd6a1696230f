"""Looks: what the background of a scene looks like, a finite vocabulary of colour x pattern.

A look has a short English name, so that questions and options can speak of a scene. Patterns are
drawn in a saturated colour on a dark shade of it, with a period of an eighth of the frame: at
56 pixels that is seven pixels, which survives video compression.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 32, 38),
    "yellow": (250, 230, 30),
    "blue": (38, 84, 240),
    "green": (34, 168, 62),
    "pink": (255, 138, 196),
    "cyan": (24, 206, 216),
    "orange": (255, 120, 0),
    "purple": (140, 52, 196),
}
PATTERNS: dict[str, str] = {
    "plain": "a plain {colour} background",
    "horizontal": "{colour} horizontal stripes",
    "dots": "{colour} dots",
    "vertical": "{colour} vertical stripes",
    "checks": "{colour} checks",
    "diagonal": "{colour} diagonal stripes",
    "rings": "{colour} rings",
    "grid": "{colour} grid lines",
}
BEACON = "beacon"
_PERIODS = 8.0
_SHADE = 0.16
_OVERSAMPLING = 3


class Look(NamedTuple):
    """One background.

    Attributes:
        colour: A key of COLOURS, "white" for the beacon.
        pattern: A key of PATTERNS, or BEACON.
        name: How a question calls it, as in "the scene with {name}".
    """

    colour: str
    pattern: str
    name: str


def _vocabulary() -> tuple[Look, ...]:
    # Diagonals of the table colour x pattern: any prefix is as varied as it can be.
    colours, patterns = list(COLOURS), list(PATTERNS)
    looks = [Look("white", BEACON, "a white frame on black")]
    for shift in range(len(patterns)):
        for place, colour in enumerate(colours):
            pattern = patterns[(place + shift) % len(patterns)]
            looks.append(Look(colour, pattern, PATTERNS[pattern].format(colour=colour)))
    return tuple(looks)


LOOKS = _vocabulary()


def relatives(look: int, vocabulary: int) -> list[int]:
    """Return the looks among the first ``vocabulary`` that share a colour or a pattern."""
    colour, pattern, _ = LOOKS[look]
    return [
        other
        for other in range(vocabulary)
        if other != look and (LOOKS[other].colour == colour or LOOKS[other].pattern == pattern)
    ]


def draw_look(look: int, height: int, width: int) -> np.ndarray:
    """Draw a background natively at a size.

    Args:
        look: Index into LOOKS.
        height: Pixels.
        width: Pixels.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    colour, pattern, _ = LOOKS[look]
    if pattern == BEACON:
        image = np.full((height, width, 3), 12, np.uint8)
        edge = max(2, round(min(height, width) / 11))
        image[:edge] = image[-edge:] = 255
        image[:, :edge] = image[:, -edge:] = 255
        return image
    ink = np.array(COLOURS[colour], np.float32)
    cover = _cover(pattern, height, width)[..., None]
    return (ink * (_SHADE + (1 - _SHADE) * cover) + 0.5).astype(np.uint8)


def _cover(pattern: str, height: int, width: int) -> np.ndarray:
    """Return (height, width) float32 in [0, 1]: how much of a pixel the pattern's ink covers."""
    if pattern == "plain":
        return np.ones((height, width), np.float32)
    fine, side = _OVERSAMPLING, min(height, width)
    # Measured in periods from the middle of the frame, so that a centred crop shows the pattern
    # too.
    y = (((np.arange(height * fine) + 0.5) / fine - height / 2) * (_PERIODS / side))[:, None]
    x = (((np.arange(width * fine) + 0.5) / fine - width / 2) * (_PERIODS / side))[None, :]
    match pattern:
        case "horizontal":
            inside = (y + 0.25 + 0 * x) % 1.0 < 0.5
        case "vertical":
            inside = (x + 0.25 + 0 * y) % 1.0 < 0.5
        case "diagonal":
            inside = ((x + y) * 0.71) % 1.0 < 0.5
        case "checks":
            inside = (np.floor(x) + np.floor(y)) % 2 < 1
        case "dots":
            inside = ((x % 1.0) - 0.5) ** 2 + ((y % 1.0) - 0.5) ** 2 < 0.37**2
        case "rings":
            inside = (np.sqrt(x * x + y * y) + 0.25) % 1.0 < 0.5
        case "grid":
            inside = ((x + 0.12) % 1.0 < 0.24) | ((y + 0.12) % 1.0 < 0.24)
        case _:
            raise ValueError(f"pattern={pattern!r} is unknown; use one of {list(PATTERNS)}")
    blocks = inside.reshape(height, fine, width, fine)
    return blocks.mean(axis=(1, 3), dtype=np.float32)
