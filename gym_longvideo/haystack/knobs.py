"""Knobs: what can be turned on a haystack, and which settings make sense together."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from gym_longvideo import checks
from gym_longvideo.haystack.glyphs import KINDS
from gym_longvideo.haystack.looks import LOOKS
from gym_longvideo.haystack.world import (
    GUARD_CELLS,
    NEEDLE_CELLS,
    OVERVIEW_FRAMES,
    POOL_CELLS,
    SCENE_STRIDES,
    least_scene_s,
)

FAMILIES = ("needle", "timestamp", "order", "count", "state", "chain", "holistic", "absent")
GAP_CELLS = (1.1, 2.0)  # between the cards of one scene: a pool frame always falls between them
# Where one scene is shown for most of the time there is room for few others.
LONGEST_STRIDES = 10
MOST_SCENES = int(OVERVIEW_FRAMES / SCENE_STRIDES)
MOST_SCENES_BESIDE_LONGEST = int((OVERVIEW_FRAMES - LONGEST_STRIDES) / SCENE_STRIDES)


@dataclass(frozen=True)
class Knobs:
    """Settings of a suite; every value is JSON-able.

    Attributes:
        families: Families to ask, in turn.
        duration_s: Length of every video in seconds.
        needle_s: How long a card is held up; by default 1.1 / 128 of the duration, so that one of
            128 pool frames always shows it.
        distractors: Cards in scenes that are not asked about (at most one each).
        blocks: Moving grey blocks in each scene.
        scenes: Scenes of a video (a video one scene of which is longest has at most six).
        depth: Relative position in the video that needles are drawn from; None for (0, 1).
        within: Relative position of the needle inside its scene; None for wherever ``depth`` leads.
        looks: Looks in use, a prefix of LOOKS.
        similarity: Chance that a scene shares colour or pattern with the scene asked about.
        target_looks: Scenes asked about have one of the first so many looks, other scenes never;
            None for no such rule. 1 is a white frame on black ("beacon") in every question.
        glyphs: Kinds of glyphs on cards, keys of KINDS.
        glyph_scale: Side of a glyph as a share of the frame's shorter side.
        options: Choices per question.
        shuffle_options: Whether choices vary and come in random order; False for always the same
            choices in one order (where a family allows it), so that a choice means a glyph.
        paraphrase: Whether questions are worded in several ways.
    """

    families: tuple[str, ...]
    duration_s: float
    needle_s: float
    distractors: int
    blocks: int
    scenes: int
    depth: tuple[float, float] | None
    within: tuple[float, float] | None
    looks: int
    similarity: float
    target_looks: int | None
    glyphs: tuple[str, ...]
    glyph_scale: float
    options: int
    shuffle_options: bool
    paraphrase: bool

    def __post_init__(self) -> None:
        _check_names("families", self.families, FAMILIES)
        _check_names("glyphs", self.glyphs, tuple(KINDS))
        checks.number("duration_s", self.duration_s, 60.0, 1e6, unit="seconds")
        checks.number("similarity", self.similarity, 0, 1)
        checks.number("glyph_scale", self.glyph_scale, 0.1, 0.6, unit="frame sides")
        checks.keep_whole(self, "options", 2, 6)
        checks.keep_whole(self, "scenes", 3, MOST_SCENES)
        checks.keep_whole(self, "distractors", 0, self.scenes - 1)
        checks.keep_whole(self, "blocks", 0, 16)
        _check_range("depth", self.depth)
        _check_range("within", self.within)
        checks.keep_whole(self, "target_looks", 1, len(LOOKS) - self.scenes, optional=True)
        # A chain shows a second scene of importance; it never has one of the target looks either.
        checks.keep_whole(self, "looks", (self.target_looks or 0) + self.scenes, len(LOOKS))
        for name in ("shuffle_options", "paraphrase"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False")
        self._check_fit()

    def _check_fit(self) -> None:
        stride_s = self.duration_s / OVERVIEW_FRAMES
        checks.number("needle_s", self.needle_s, 0.0, self.duration_s, unit="seconds")
        if not 0 < self.needle_s < stride_s:
            raise ValueError(
                f"needle_s={self.needle_s} must be above 0 and below the overview's stride of "
                f"{stride_s:g} s; an overview would always show it otherwise"
            )
        if "order" in self.families and self.options == 3:
            raise ValueError(
                "options=3 cannot be balanced for order questions; use 2, 4, 5 or 6, or leave "
                "'order' out of families"
            )
        if "holistic" in self.families and self.scenes < self.options + 1:
            raise ValueError(
                f"scenes={self.scenes} are too few for holistic questions with "
                f"options={self.options}; use scenes={self.options + 1} or more"
            )
        if "chain" in self.families and self.scenes < 4:
            raise ValueError(f"scenes={self.scenes} are too few for chains; use 4 or more")
        cards = max(self.cards_in(family) for family in self.families)
        needed_s = self.needed_s(cards) + (2.0 if "timestamp" in self.families else 0.0)
        room_s = self.duration_s - (self.scenes - 1) * least_scene_s(self.duration_s)
        if needed_s > room_s:
            raise ValueError(
                f"needle_s={self.needle_s:g} needs a scene of {needed_s:.1f} s for {cards} cards, "
                f"but scenes={self.scenes} leave {room_s:.1f} s; lower needle_s, scenes or options"
            )

    @cached_property
    def cell_s(self) -> float:
        """Seconds between two frames of a pool of 128."""
        return self.duration_s / POOL_CELLS

    @cached_property
    def guard_s(self) -> float:
        """Seconds that a card stays clear of the edges of its scene."""
        return self.cell_s * GUARD_CELLS

    def cards_in(self, family: str) -> int:
        """Return how many cards the scene asked about shows."""
        match family:
            case "order":
                return 2 if self.options == 2 else 3
            case "count":
                return self.options - 1
            case "state":
                return 3 if self.options in (2, 4) else self.options - 1
        return 0 if family == "holistic" else 1

    def needed_s(self, cards: int) -> float:
        """Return the seconds within which so many cards fit, whatever the gaps."""
        gaps_s = max(0, cards - 1) * GAP_CELLS[1] * self.cell_s
        return cards * self.needle_s + gaps_s + 2 * self.guard_s

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)


def default_needle_s(duration_s: float) -> float:
    """Return a needle that one of 128 pool frames always shows, and a 16-frame overview seldom."""
    return duration_s * NEEDLE_CELLS / POOL_CELLS


def _check_names(name: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [value for value in values if value not in known]
    if unknown or not values or len(set(values)) < len(values):
        fault = f"{unknown[0]!r} is unknown" if unknown else "empty, or names one twice"
        raise ValueError(f"{name}={values!r}: {fault}; use different ones of {', '.join(known)}")


def _check_range(name: str, value: tuple[float, float] | None) -> None:
    if value is None:
        return
    numbers = isinstance(value, tuple) and all(isinstance(edge, int | float) for edge in value)
    if not numbers or len(value) != 2 or not 0.0 <= value[0] <= value[1] <= 1.0:
        raise ValueError(f"{name}={value!r} must be None or (low, high) with 0 <= low <= high <= 1")
