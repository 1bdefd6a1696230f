"""World: what a procedural video shows, as plain facts about time.

Scenes fill the timeline, each longer than the stride of a 16-frame overview; cards are held up for
far shorter. Everything about a moment follows from the world and the time alone.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from gym_longvideo.haystack.dice import Dice
from gym_longvideo.haystack.glyphs import Glyph

POOL_CELLS = 128  # the paper's pool; the default needle is a little longer than one of its cells
OVERVIEW_FRAMES = 16
# Relative to the overview's stride: every 16-frame overview, at midpoints or linspace, sees each
# scene.
SCENE_STRIDES = 1.15
NEEDLE_CELLS = 1.1
GUARD_CELLS = 0.05  # a card is up strictly inside its scene


class Event(NamedTuple):
    """A card that is held up.

    Attributes:
        start_s: First moment at which it is visible.
        end_s: First moment at which it no longer is.
        glyph: What is on it.
        x: Where its left edge is, 0 the leftmost and 1 the rightmost place in the frame.
        y: Where its upper edge is, 0 the highest and 1 the lowest place in the frame.
    """

    start_s: float
    end_s: float
    glyph: Glyph
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a video shows.

    Attributes:
        duration_s: Length of the video in seconds.
        starts_s: When each scene begins; the first is 0.
        looks: Index into LOOKS of each scene, all different.
        events: Cards by start, never two at once.
        event_starts_s: Their starts.
        motion: Chooses the tracks of the moving blocks.
        blocks: Moving blocks in each scene.
        glyph_scale: Side of a glyph as a share of the frame's shorter side.
    """

    duration_s: float
    starts_s: tuple[float, ...]
    looks: tuple[int, ...]
    events: tuple[Event, ...]
    event_starts_s: tuple[float, ...]
    motion: int
    blocks: int
    glyph_scale: float

    def scene_at(self, time_s: float) -> int:
        """Return the index of the scene shown at a time."""
        return bisect_right(self.starts_s, time_s) - 1

    def event_at(self, time_s: float) -> Event | None:
        """Return the card shown at a time, if any."""
        place = bisect_right(self.event_starts_s, time_s) - 1
        if place >= 0 and time_s < self.events[place].end_s:
            return self.events[place]
        return None

    def span_s(self, scene: int) -> tuple[float, float]:
        """Return the start and end of a scene in seconds."""
        last = scene + 1 == len(self.starts_s)
        return self.starts_s[scene], self.duration_s if last else self.starts_s[scene + 1]


def least_scene_s(duration_s: float) -> float:
    """Return the length below which no scene of a video falls."""
    return duration_s * (SCENE_STRIDES / OVERVIEW_FRAMES)


def cut_scenes(
    dice: Dice, duration_s: float, count: int, depth: float, needed_s: float
) -> tuple[list[float], int]:
    """Cut the timeline into scenes.

    Args:
        dice: Where the cuts are drawn from.
        duration_s: Length of the video.
        count: Number of scenes.
        depth: Relative position in the video that the scene asked about should contain.
        needed_s: Least length of that scene.

    Returns:
        The lengths of the scenes in seconds, and the index of the scene asked about.
    """
    least_s = least_scene_s(duration_s)
    unit, slack = dice.unit, duration_s - count * least_s
    cuts = sorted([unit() for _ in range(count - 1)])
    ends = [place * least_s + cut * slack for place, cut in enumerate(cuts, start=1)]
    chosen = bisect_right(ends, depth * duration_s)
    extra = max(0.0, needed_s - least_s)
    slack -= extra
    lengths = [
        least_s + (high - low) * slack for low, high in zip([0.0, *cuts], [*cuts, 1.0], strict=True)
    ]
    lengths[chosen] += extra
    return lengths, chosen
