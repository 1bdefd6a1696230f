"""HaystackVideo: a procedural video, drawn at the moment it is read and at the size asked for.

Backgrounds, cards and blocks are drawn once per size and kept (``ArrayCache``); a frame then is one
copy of a background, a few small copies for the blocks, and seldom one for a card. Blocks are
opaque rectangles for that reason: a masked copy costs four times as much.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

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


TRACKS = tuple(_track(index) for index in range(_TRACKS))
_SHADES = (70, 120, 170, 215)  # greys: never the colour of a glyph


class HaystackVideo:
    """A video that is a pure function of its world and the time.

    Implements the ``Video`` protocol. Any moment can be shown, so ``actual_s`` equals what was
    asked for and ``info.fps`` is None.
    """

    __slots__ = ("key", "world")

    def __init__(self, world: World, key: str) -> None:
        self.world = world
        self.key = key

    def __reduce__(self) -> tuple[type[HaystackVideo], tuple[World, str]]:
        return HaystackVideo, (self.world, self.key)

    @property
    def info(self) -> VideoInfo:
        """Facts about the video; its native size is 224 x 224 pixels."""
        duration_s = self.world.duration_s
        return VideoInfo(
            path=self.key,
            container="procedural",
            codec="procedural",
            width=NATIVE_SIDE,
            height=NATIVE_SIDE,
            rotation=0,
            fps=None,
            duration_s=duration_s,
            declared_s=duration_s,
            start_s=0.0,
            frame_count=None,
            truncated=False,
            key=self.key,
        )

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
        height, width = size if size is not None else (NATIVE_SIDE, NATIVE_SIDE)
        count = len(requested)
        if height < 8 or width < 8:
            raise ValueError(
                f"size=({height}, {width}) is too small to draw in; use 8 pixels or more"
            )
        if fit == "stretch" or height == width:
            frames = np.empty((count, height, width, 3), np.uint8)
            self._paint(frames, requested.tolist(), height, width)
        elif fit == "letterbox":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            frames = np.zeros((count, height, width, 3), np.uint8)
            square = frames[:, top : top + side, left : left + side]
            self._paint(square, requested.tolist(), side, side)
        else:
            raise ValueError(f"fit={fit!r} is unknown; use 'stretch' or 'letterbox'")
        return FrameBatch(frames, requested, requested.copy(), np.zeros(count, np.uint8), count)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _paint(self, frames: np.ndarray, times: list[float], height: int, width: int) -> None:
        world = self.world
        duration_s, starts_s, looks = world.duration_s, world.starts_s, world.looks
        event_starts_s, events, blocks = world.event_starts_s, world.events, world.blocks
        cached = CACHE.get
        block = max(3, min(height, width) // 8)
        high, wide = height - block, width - block
        for place, time_s in enumerate(times):
            if not 0.0 <= time_s <= duration_s:  # also refuses NaN
                raise ValueError(
                    f"time {time_s} is outside the video; use seconds in [0, {duration_s}]"
                )
            scene = bisect_right(starts_s, time_s) - 1
            look = looks[scene]
            background = cached((look, height, width))
            if background is None:
                background = CACHE.put((look, height, width), draw_look(look, height, width))
            frames[place] = background
            track = world.motion + 37 * scene
            for number in range(track, track + blocks):
                x, speed_x, y, speed_y, shade = TRACKS[number % _TRACKS]
                x = (x + speed_x * time_s) % 2.0
                y = (y + speed_y * time_s) % 2.0
                left = int((x if x < 1.0 else 2.0 - x) * wide)
                top = int((y if y < 1.0 else 2.0 - y) * high)
                tile = cached((shade, block))
                if tile is None:
                    tile = CACHE.put((shade, block), _draw_block(shade, block))
                frames[place, top : top + block, left : left + block] = tile
            at = bisect_right(event_starts_s, time_s) - 1
            if at >= 0 and time_s < events[at].end_s:
                event = events[at]
                card = _card(event.glyph, world.glyph_scale, height, width)
                tall, broad = card.shape[:2]
                top, left = int(event.y * (height - tall)), int(event.x * (width - broad))
                frames[place, top : top + tall, left : left + broad] = card


def _draw_block(shade: int, side: int) -> np.ndarray:
    tile = np.full((side, side, 3), 40, np.uint8)
    edge = max(1, side // 7)
    tile[edge:-edge, edge:-edge] = _SHADES[shade]
    return tile


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
