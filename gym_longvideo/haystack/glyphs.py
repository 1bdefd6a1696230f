"""Glyphs: the large signs on the cards, and the cards themselves.

Shapes are drawn from formulas, characters from a 5 x 7 bitmap font of our own, so nothing depends
on the fonts of a machine. A glyph is a kind, a name and a colour; what a question asks about is one
of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (226, 24, 30),
    "blue": (24, 70, 230),
    "green": (12, 140, 48),
    "orange": (255, 128, 0),
    "purple": (134, 30, 176),
    "black": (16, 16, 16),
    "pink": (255, 112, 190),
    "brown": (128, 72, 24),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "moon")
LETTERS = ("A", "E", "K", "T", "X", "H", "M", "Z")
DIGITS = ("1", "2", "3", "4", "5", "6", "7", "8")
SYMBOLS: dict[str, str] = {
    "question mark": "?",
    "hash sign": "#",
    "equals sign": "=",
    "exclamation mark": "!",
    "percent sign": "%",
    "dollar sign": "$",
    "asterisk": "*",
    "ampersand": "&",
}
TURNS = ("left", "right", "around")
# What a question may ask for, and the names it may have.
KINDS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "letter": LETTERS,
    "digit": DIGITS,
    "symbol": tuple(SYMBOLS),
    "colour": tuple(COLOURS),
}
CARD_MARGIN = 0.2  # white around the glyph, as a share of the glyph's side
_EDGE = (24, 24, 24)
_OVERSAMPLING = 4

_FONT = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
    "+": "00000 00100 00100 11111 00100 00100 00000",
    "-": "00000 00000 00000 11111 00000 00000 00000",
    "?": "01110 10001 00001 00110 00100 00000 00100",
    "!": "00100 00100 00100 00100 00100 00000 00100",
    "#": "01010 01010 11111 01010 11111 01010 01010",
    "=": "00000 00000 11111 00000 11111 00000 00000",
    "%": "11001 11001 00010 00100 01000 10011 10011",
    "$": "00100 01111 10100 01110 00101 11110 00100",
    "*": "00000 10101 01110 11111 01110 10101 00000",
    "&": "01100 10010 10100 01000 10101 10010 01101",
}


class Glyph(NamedTuple):
    """A sign on a card.

    Attributes:
        kind: "shape", "letter", "digit", "symbol", "text", "turn", or "look" (a picture of a
            scene).
        name: Which one: a shape's name, the characters, a turn, or the index of a look in digits.
        colour: A key of COLOURS; "" for pictures.
    """

    kind: str
    name: str
    colour: str


def draw_card(ink: np.ndarray, colour: str) -> np.ndarray:
    """Put a glyph on a white card with a dark edge.

    Args:
        ink: (S, S) float32 cover of the glyph, or (S, S, 3) uint8 picture.
        colour: A key of COLOURS; unused for pictures.

    Returns:
        (C, C, 3) uint8 with C = S + 2 * (margin + edge), see ``card_side``.
    """
    side = ink.shape[0]
    total = card_side(side)
    edge = _edge(side)
    card = np.empty((total, total, 3), np.uint8)
    card[:] = _EDGE
    card[edge:-edge, edge:-edge] = 255
    at = (total - side) // 2
    if ink.ndim == 2:
        tone = 255 - ink[..., None] * (255 - np.array(COLOURS[colour], np.float32))
        card[at : at + side, at : at + side] = (tone + 0.5).astype(np.uint8)
    else:
        card[at : at + side, at : at + side] = ink
    return card


def card_side(glyph_side: int) -> int:
    """Return the side of a card in pixels for a glyph of ``glyph_side`` pixels."""
    return glyph_side + 2 * (max(1, round(glyph_side * CARD_MARGIN / 2)) + _edge(glyph_side))


def _edge(glyph_side: int) -> int:
    return max(1, round(glyph_side / 12))


def draw_ink(glyph: Glyph, side: int) -> np.ndarray:
    """Return (side, side) float32 in [0, 1]: the cover of a glyph.

    Raises:
        ValueError: If there is no such glyph (pictures of looks are not drawn here).
    """
    fine = side * _OVERSAMPLING
    # From -1 to 1, x to the right and y up.
    x = ((np.arange(fine) + 0.5) * (2 / fine) - 1)[None, :]
    y = (1 - (np.arange(fine) + 0.5) * (2 / fine))[:, None]
    match glyph.kind:
        case "shape":
            inside = _shape(glyph.name, x, y)
        case "turn":
            inside = _turn(glyph.name, x, y)
        case "letter" | "digit" | "text":
            inside = _text(glyph.name, fine)
        case "symbol":
            inside = _text(SYMBOLS[glyph.name], fine)
        case _:
            raise ValueError(f"glyph={glyph!r} has no drawing; use a kind of glyphs.KINDS")
    return inside.reshape(side, _OVERSAMPLING, side, _OVERSAMPLING).mean(
        axis=(1, 3), dtype=np.float32
    )


def _shape(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    radius = np.sqrt(x * x + y * y)
    match name:
        case "circle":
            return radius < 0.95
        case "square":
            return (abs(x) < 0.84) & (abs(y) < 0.84)
        case "triangle":
            return (y > -0.85) & (abs(x) < (0.95 - y) * 0.53)
        case "star":
            # Between an outer and an inner radius, five times around.
            turn = (np.arctan2(x, y) / (2 * np.pi) * 5) % 1.0
            angle = abs(turn - 0.5) * (2 * np.pi / 5)  # 0 in a notch, pi/5 at a tip
            tip, notch, wedge = 1.0, 0.42, np.pi / 5
            return radius * (
                np.sin(angle) * (tip * np.cos(wedge) - notch) * -1
                + tip * np.sin(wedge) * np.cos(angle)
            ) < tip * notch * np.sin(wedge)
        case "cross":
            return ((abs(x) < 0.3) & (abs(y) < 0.95)) | ((abs(y) < 0.3) & (abs(x) < 0.95))
        case "heart":
            u, v = x * 1.18, y * 1.18 + 0.12
            return (u * u + v * v - 1) ** 3 - u * u * v**3 < 0
        case "diamond":
            return abs(x) * 1.45 + abs(y) < 0.98
        case "moon":
            return (radius < 0.95) & ((x - 0.48) ** 2 + y * y > 0.78**2)
    raise ValueError(f"shape={name!r} is unknown; use one of {SHAPES}")


def _turn(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if name == "around":  # up and down
        shaft = (abs(x) < 0.2) & (abs(y) < 0.5)
        return shaft | ((abs(y) > 0.35) & (abs(x) < (0.97 - abs(y)) * 1.1))
    along = -x if name == "left" else x
    shaft = (abs(y) < 0.24) & (along > -0.95) & (along < 0.2)
    return shaft | ((along > 0.0) & (abs(y) < (0.97 - along) * 0.95))


def _text(text: str, fine: int) -> np.ndarray:
    rows = [[] for _ in range(7)]
    for place, character in enumerate(text):
        for row, bits in zip(rows, _FONT[character].split(), strict=True):
            if place:
                row.append(False)
            row.extend(bit == "1" for bit in bits)
    cells = np.array(rows, bool)
    unit = fine / max(7.0, cells.shape[1])
    column = np.floor((np.arange(fine) - fine / 2) / unit + cells.shape[1] / 2).astype(int)
    line = np.floor((np.arange(fine) - fine / 2) / unit + 3.5).astype(int)
    inside = np.zeros((fine, fine), bool)
    wide, high = (column >= 0) & (column < cells.shape[1]), (line >= 0) & (line < 7)
    inside[np.ix_(high, wide)] = cells[np.ix_(line[high], column[wide])]
    return inside
