"""Draft: a question and its video while they are still being made up.

Cards are placed relative to their scenes, so that a twin can exchange whole scenes; what the answer
looks like on the cards is a function (``depict``), so that a twin can show another answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, get_args

from gym_longvideo.haystack.dice import Dice
from gym_longvideo.haystack.glyphs import Glyph
from gym_longvideo.haystack.knobs import Knobs
from gym_longvideo.haystack.looks import LOOKS
from gym_longvideo.haystack.oracle import Span
from gym_longvideo.haystack.world import Event, World, least_scene_s
from gym_longvideo.task import Task

Twin = Literal["swap", "move", "remove"]
TWINS: tuple[str, ...] = get_args(Twin)
NONE_OF_THESE = "None of these"


@dataclass(slots=True)
class Card:
    """A card: when (seconds from the start of its scene), what, and where in the frame (0 to 1)."""

    scene: int
    offset_s: float
    length_s: float
    glyph: Glyph
    x: float
    y: float


@dataclass(slots=True)
class Draft:
    """A task in the making.

    Attributes:
        family: Name of the family.
        lengths_s: Length of each scene.
        looks: Look of each scene.
        scene: Scene that holds the answer (the one asked about, except in a chain).
        question: The question; a function of the draft where it speaks of a time.
        options: Choices.
        answer: Index of the right one, None if nothing tells it any more.
        evidence: Cards that are needed, in the order in which one would look for them.
        others: Cards that are not.
        depict: Changes the draft so that another option is the right one.
        kept: Scenes that a move must leave alone.
        rule: How seen moments prove the answer, see ``oracle.solve``.
        around: Scenes that the rule speaks of.
    """

    family: str
    lengths_s: list[float]
    looks: list[int]
    scene: int
    question: str | Callable[[Draft], str] = ""
    options: tuple[str, ...] = ()
    answer: int | None = None
    evidence: list[Card] = field(default_factory=list)
    others: list[Card] = field(default_factory=list)
    depict: Callable[[Draft, int], None] | None = None
    kept: tuple[int, ...] = ()
    rule: str = "cards"
    around: tuple[int, ...] = ()

    def starts_s(self) -> list[float]:
        """Return when each scene begins."""
        return [0.0, *accumulate(self.lengths_s[:-1])]

    def apply(self, twin: Twin, dice: Dice) -> None:
        """Turn the draft into a counterfactual of itself.

        Raises:
            ValueError: If the family has no such twin.
        """
        if twin not in TWINS:
            raise ValueError(f"kind={twin!r} is no twin; use one of {', '.join(TWINS)}")
        if twin != "swap" and not self.evidence:
            raise ValueError(
                f"kind={twin!r} needs a card, and a {self.family} question has none; use 'swap'"
            )
        match twin:
            case "swap":
                count = len(self.options)
                assert self.answer is not None and self.depict is not None
                other = (self.answer + 1 + dice.below(count - 1)) % count
                self.depict(self, other)
                self.answer = other
            case "move":
                self._exchange(
                    dice.pick(
                        [
                            scene
                            for scene in range(len(self.looks))
                            if scene != self.scene and scene not in self.kept
                        ]
                    )
                )
            case "remove":
                if not isinstance(self.question, str):
                    self.question = self.question(self)  # it speaks of the card that goes
                if self.family == "chain":  # the pointer stays, and leads to nothing
                    self.others.append(self.evidence[0])
                self.evidence.clear()
                if self.family == "absent":
                    self.answer, self.rule = len(self.options) - 1, "nothing"
                    self.around = (self.scene,)
                else:
                    self.answer, self.rule = None, "never"

    def _exchange(self, other: int) -> None:
        """Let two scenes change places, with everything in them."""
        places = {self.scene: other, other: self.scene}
        lengths_s, looks, here = self.lengths_s, self.looks, self.scene
        lengths_s[here], lengths_s[other] = lengths_s[other], lengths_s[here]
        looks[here], looks[other] = looks[other], looks[here]
        for card in (*self.evidence, *self.others):
            card.scene = places.get(card.scene, card.scene)
        self.scene = other

    def finish(
        self, knobs: Knobs, motion: int, *, task_id: str, video: str, video_id: str, twin: str
    ) -> tuple[Task, World]:
        """Fix every time and return the task with its world."""
        duration_s, starts_s = knobs.duration_s, self.starts_s()
        question = self.question if isinstance(self.question, str) else self.question(self)
        spans: list[Span] = []
        events: list[Event] = []
        for card in (*self.evidence, *self.others):
            start_s = starts_s[card.scene] + card.offset_s
            end_s = start_s + card.length_s
            spans.append((start_s, end_s))
            events.append(Event(start_s, end_s, card.glyph, card.x, card.y))
        del spans[len(self.evidence) :]
        events.sort()
        around: list[Span] = []
        if self.around:
            edges = [*starts_s, duration_s]
            around = [(edges[scene], edges[scene + 1]) for scene in self.around]
        world = World(
            duration_s=duration_s,
            starts_s=tuple(starts_s),
            looks=tuple(self.looks),
            events=tuple(events),
            event_starts_s=tuple([event.start_s for event in events]),
            motion=motion,
            blocks=knobs.blocks,
            glyph_scale=knobs.glyph_scale,
        )
        task = Task(
            task_id=task_id,
            video=video,
            question=question,
            options=self.options,
            answer_index=self.answer,
            segments_s=tuple(sorted(spans)),
            video_id=video_id,
            duration_s=duration_s,
            task_types=(self.family,),
            meta={
                "family": self.family,
                "rule": self.rule,
                "evidence": tuple(spans),
                "scenes": tuple(around),
                "least_scene_s": least_scene_s(duration_s),
                "needle_s": knobs.needle_s,
                "look": LOOKS[self.looks[self.scene]].name,
                "twin": twin,
            },
        )
        return task, world
