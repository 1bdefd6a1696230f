"""HaystackVideo: a procedural video, drawn at the moment it is read and at the size asked for.

Backgrounds, cards and blocks are drawn once per size and kept (``ArrayCache``); a frame then is one
copy of a background, a share of one copy for all blocks, and seldom one for a card. Blocks are
opaque rectangles for that reason: a masked copy costs four times as much. That one copy serves the
blocks of several videos as well, so that a vector of environments is drawn together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from gym_longvideo.haystack.cache import ArrayCache
from gym_longvideo.haystack.dice import mix
from gym_longvideo.haystack.glyphs import Glyph, card_side, draw_card, draw_ink
from gym_longvideo.haystack.looks import BEACON, LOOKS, draw_look
from gym_longvideo.haystack.world import World
from gym_longvideo.video.source import Fit, FrameBatch, VideoInfo

NATIVE_SIDE = 224
CACHE = ArrayCache(limit_bytes=96 * 2**20)

_TRACKS = 256


def _track(index: int) -> tuple[float, float, float, float, int]:
    """Return a path: start and speed in x and y (frame widths, per second), and a shade."""
    bits = mix(0x68617973, index)
    x, y = (bits & 0xFFF) / 0x800, (bits >> 12 & 0xFFF) / 0x800
    speed_x = 0.02 + 0.13 * (bits >> 24 & 0xFF) / 255
    speed_y = 0.02 + 0.13 * (bits >> 32 & 0xFF) / 255
    return x, speed_x, y, speed_y, bits >> 40 & 3


_DRAWN = [_track(index) for index in range(_TRACKS)]
# By track; y before x, as in an array of pixels.
STARTS = np.array([(y, x) for x, _, y, _, _ in _DRAWN])
SPEEDS = np.array([(speed_y, speed_x) for _, speed_x, _, speed_y, _ in _DRAWN])
SHADES = np.array([shade for *_, shade in _DRAWN])
_SMALL = 128 * 128  # pixels up to which one copy for all frames pays, at 65 backgrounds kept
_SHADES = (70, 120, 170, 215)  # greys: never the colour of a glyph


class HaystackVideo:
    """A video that is a pure function of its world and the time.

    Implements the ``Video`` protocol. Any moment can be shown, so ``actual_s`` equals what was
    asked for and ``info.fps`` is None.
    """

    __slots__ = ("_event_ends_s", "_event_starts_s", "_looks", "_starts_s", "info", "key", "world")

    def __init__(self, world: World, key: str) -> None:
        self.world = world
        self.key = key
        self.info = VideoInfo(
            path=key,
            container="procedural",
            codec="procedural",
            width=NATIVE_SIDE,
            height=NATIVE_SIDE,
            rotation=0,
            fps=None,
            duration_s=world.duration_s,
            declared_s=world.duration_s,
            start_s=0.0,
            frame_count=None,
            truncated=False,
            key=key,
        )
        self._looks = np.array(world.looks)
        self._starts_s = np.array(world.starts_s)
        self._event_starts_s = np.array(world.event_starts_s)
        # Of the event before: there is none before the first.
        self._event_ends_s = np.array([-1.0, *[event.end_s for event in world.events]])

    def __reduce__(self) -> tuple[type[HaystackVideo], tuple[World, str]]:
        return HaystackVideo, (self.world, self.key)

    def read(
        self,
        times: Sequence[float] | np.ndarray,
        *,
        size: tuple[int, int] | None = None,
        fit: Fit = "stretch",
        tolerance_s: float = 0.0,
        deadline_s: float | None = 60.0,
    ) -> FrameBatch:
        """Draw the frames shown at the given playback times.

        Args:
            times: (N,) playback seconds in ``[0, duration_s]``, any order, duplicates allowed.
            size: (height, width) in pixels; 224 x 224 if ``None``. Frames are drawn at that size,
                not resized.
            fit: "stretch" fills ``size``; "letterbox" keeps the picture square between black bars.
            tolerance_s: Unused: every moment costs the same.
            deadline_s: Unused.

        Raises:
            ValueError: If a time is not finite or lies outside the video, or ``size`` or ``fit``
                makes no sense.
        """
        requested = np.array(times, dtype=np.float64)
        outside = ~((requested >= 0.0) & (requested <= self.world.duration_s))  # NaN is, too
        if outside.any():
            raise ValueError(
                f"time {requested[outside][0]} is outside the video; use seconds in "
                f"[0, {self.world.duration_s}]"
            )
        height, width = size if size is not None else (NATIVE_SIDE, NATIVE_SIDE)
        count = len(requested)
        frames = np.empty((count, height, width, 3), np.uint8)
        self.draw(requested, frames, fit)
        return FrameBatch(frames, requested, requested.copy(), np.zeros(count, np.uint8), count)

    def draw(self, times: np.ndarray, frames: np.ndarray, fit: Fit = "stretch") -> None:
        """Draw the frames shown at the given playback times into an array.

        Args:
            times: (N,) float64 playback seconds, all in ``[0, duration_s]``.
            frames: (N, H, W, 3) uint8, C-contiguous; written to.
            fit: As for ``read``.

        Raises:
            ValueError: If the size or ``fit`` makes no sense.
        """
        self.draw_together([(self, times, 0)], frames, fit)

    @staticmethod
    def draw_together(
        parts: Sequence[tuple[HaystackVideo, np.ndarray, int]],
        frames: np.ndarray,
        fit: Fit = "stretch",
    ) -> None:
        """Draw frames of several videos into one array, the same pixels as one after the other.

        Args:
            parts: Of each video: itself; (n,) float64 playback seconds, all in
                ``[0, duration_s]``; and where in ``frames`` the first of its n frames stands.
            frames: (N, H, W, 3) uint8, C-contiguous; only the frames of ``parts`` are written to.
            fit: As for ``read``.

        Raises:
            ValueError: If the size or ``fit`` makes no sense.
        """
        _, height, width, _ = frames.shape
        if height < 8 or width < 8:
            raise ValueError(
                f"size=({height}, {width}) is too small to draw in; use 8 pixels or more"
            )
        if fit not in ("stretch", "letterbox"):
            raise ValueError(f"fit={fit!r} is unknown; use 'stretch' or 'letterbox'")
        top = left = 0
        bars = fit == "letterbox" and height != width
        if bars:
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            height = width = side
        picture = frames[:, top : top + height, left : left + width]
        moving: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        for video, times, first in parts:
            if not len(times):
                continue
            after, world = first + len(times), video.world
            if bars:
                frames[first:after] = 0
            scenes = video._starts_s.searchsorted(times, "right") - 1
            _draw_backgrounds(video._looks.take(scenes), picture[first:after])
            if world.blocks:
                moved = moving.setdefault(world.blocks, [])
                moved.append((times, scenes * 37 + world.motion, np.arange(first, after)))
        for blocks, moved in moving.items():
            times, tracks, places = (np.concatenate(part) for part in zip(*moved, strict=True))
            tracks = tracks[:, None] + np.arange(blocks)
            _draw_blocks(frames, places, times, tracks, (top, left), (height, width))
        for video, times, first in parts:
            video._draw_cards(times, picture[first : first + len(times)])

    def _draw_cards(self, times: np.ndarray, square: np.ndarray) -> None:
        world = self.world
        if not world.events:
            return
        started = self._event_starts_s.searchsorted(times, "right")
        height, width = square.shape[1:3]
        for place in (times < self._event_ends_s[started]).nonzero()[0].tolist():
            event = world.events[started[place] - 1]
            card = _card(event.glyph, world.glyph_scale, height, width)
            tall, broad = card.shape[:2]
            y, x = int(event.y * (height - tall)), int(event.x * (width - broad))
            square[place, y : y + tall, x : x + broad] = card

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _draw_backgrounds(looks: np.ndarray, square: np.ndarray) -> None:
    """Draw the backgrounds of (n,) looks into (n, H, W, 3) uint8 frames."""
    height, width = square.shape[1:3]
    if height * width <= _SMALL:
        _backgrounds(height, width).take(looks, axis=0, out=square, mode="clip")
    else:
        for place, look in enumerate(looks.tolist()):
            square[place] = _background(look, height, width)


def _backgrounds(height: int, width: int) -> np.ndarray:
    """Return the (looks, H, W, 3) uint8 backgrounds, from the cache if they were drawn before."""
    backgrounds = CACHE.get((height, width))
    if backgrounds is None:
        drawn = [draw_look(look, height, width) for look in range(len(LOOKS))]
        backgrounds = CACHE.put((height, width), np.stack(drawn))
    return backgrounds


def _background(look: int, height: int, width: int) -> np.ndarray:
    background = CACHE.get((look, height, width))
    if background is None:
        background = CACHE.put((look, height, width), draw_look(look, height, width))
    return background


def _draw_blocks(
    frames: np.ndarray,
    places: np.ndarray,
    times: np.ndarray,
    tracks: np.ndarray,
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Draw the blocks of all frames at once.

    Args:
        frames: (N, H, W, 3) uint8, C-contiguous; written to.
        places: (n,) int64, which of the frames.
        times: (n,) playback seconds.
        tracks: (n, B) int64 tracks of the blocks; later ones cover earlier ones.
        corner: (top, left) of the picture within the frames.
        size: (height, width) of the picture.
    """
    side = max(3, min(size) // 8)
    at = SPEEDS.take(tracks, axis=0, mode="wrap") * times[:, None, None]
    at += STARTS.take(tracks, axis=0, mode="wrap")
    at %= 2.0
    at = np.minimum(at, 2.0 - at)  # there and back
    room, strides, picture_at, line_at = _layout(frames.shape[1:], corner, size, side)
    at *= room
    frame_at = places * frames[0].nbytes + picture_at
    # A line of a block is one item to copy, and the frames are an array of all places where such an
    # item may begin: then all lines are one assignment, several times faster than loops. Where
    # blocks overlap, the last one stays, as in any assignment to repeated indices.
    lines = (at.astype(np.int64) @ strides + frame_at[:, None])[..., None] + line_at
    blocks = _blocks(side).take(SHADES.take(tracks, mode="wrap"), axis=0)
    items = np.ndarray(frames.nbytes - 3 * side + 1, blocks.dtype, frames, strides=(1,))  # type: ignore[call-overload]
    items[lines.ravel()] = blocks.ravel()


@lru_cache(maxsize=256)
def _layout(
    shape: tuple[int, ...], corner: tuple[int, int], size: tuple[int, int], side: int
) -> tuple[np.ndarray, ...]:
    """Return what ``_draw_blocks`` needs to know of frames of a shape, whatever is drawn.

    Returns:
        (2,) room that a block has for moving; (2,) bytes from row to row and from column to column;
        () bytes of a frame before its picture; (side,) bytes before each line of a block.
    """
    _, width, colours = shape
    strides = np.array([width * colours, colours])
    room = np.array([size[0] - side, size[1] - side], np.float64)
    return room, strides, strides @ corner, np.arange(side) * strides[0]


def _blocks(side: int) -> np.ndarray:
    """Return the blocks, (shades, side) lines of 3 * side bytes, from the cache if drawn before."""
    blocks = CACHE.get(("blocks", side))
    if blocks is None:
        tiles = np.full((len(_SHADES), side, side, 3), 40, np.uint8)
        edge = max(1, side // 7)
        tiles[:, edge:-edge, edge:-edge] = np.array(_SHADES)[:, None, None, None]
        lines = tiles.reshape(len(_SHADES), side, 3 * side).view(f"V{3 * side}")[..., 0]
        blocks = CACHE.put(("blocks", side), lines)
    return blocks


def _card(glyph: Glyph, scale: float, height: int, width: int) -> np.ndarray:
    """Return the (C, C, 3) uint8 card of a glyph, from the cache if it was drawn before."""
    key = (glyph, scale, height, width)
    card = CACHE.get(key)
    if card is None:
        side = max(1, round(min(height, width) * scale))
        while side > 1 and card_side(side) > min(height, width):
            side -= 1
        ink = _picture(int(glyph.name), side) if glyph.kind == "look" else draw_ink(glyph, side)
        card = CACHE.put(key, draw_card(ink, glyph.colour))
    return card


def _picture(look: int, side: int) -> np.ndarray:
    """Return a (side, side, 3) uint8 picture of a look, three periods of its pattern across."""
    if LOOKS[look].pattern == BEACON:
        return draw_look(look, side, side)
    full = round(side * 8 / 3)
    at = (full - side) // 2
    return draw_look(look, full, full)[at : at + side, at : at + side]
