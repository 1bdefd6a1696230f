"""Staging: put cards into scenes, and choose looks, glyphs and words.

Shared by all families. Every draw is made here or in a family, from the dice of the task.
"""

from __future__ import annotations

from collections.abc import Sequence

from gym_longvideo.haystack.dice import Dice, total
from gym_longvideo.haystack.draft import Card, Draft
from gym_longvideo.haystack.glyphs import COLOURS, KINDS, SHAPES, Glyph
from gym_longvideo.haystack.knobs import GAP_CELLS, Knobs
from gym_longvideo.haystack.looks import LOOKS, relatives
from gym_longvideo.haystack.world import cut_scenes

GLYPH_COLOURS = tuple(COLOURS)


def stage(dice: Dice, knobs: Knobs, family: str, cards: int, spare_s: float = 0.0) -> Draft:
    """Cut the scenes and put so many blank cards into the one asked about, one after another."""
    low, high = knobs.depth if knobs.depth is not None else (0.0, 1.0)
    depth = dice.between(low, high)
    offsets_s, used_s = [0.0], knobs.needle_s
    for _ in range(cards - 1):
        used_s += dice.between(*GAP_CELLS) * knobs.cell_s
        offsets_s.append(used_s)
        used_s += knobs.needle_s
    needed_s = used_s + 2 * knobs.guard_s + spare_s
    lengths_s, scene = cut_scenes(dice, knobs.duration_s, knobs.scenes, depth, needed_s)
    room_s = lengths_s[scene] - 2 * knobs.guard_s - used_s
    if knobs.within is None:
        wanted_s = depth * knobs.duration_s - total(lengths_s[:scene]) - used_s / 2 - knobs.guard_s
        lead_s = min(max(wanted_s, 0.0), room_s)
    else:
        lead_s = room_s * dice.between(*knobs.within)
    blank = Glyph("", "", "")
    lead_s += knobs.guard_s
    held = [
        Card(scene, lead_s + offset_s, knobs.needle_s, blank, dice.unit(), dice.unit())
        for offset_s in offsets_s
    ]
    return Draft(family, lengths_s, _pick_looks(dice, knobs, scene), scene, evidence=held)


def _pick_looks(dice: Dice, knobs: Knobs, scene: int) -> list[int]:
    """Return a different look for each scene."""
    targets = knobs.target_looks or 0
    look = dice.below(targets or knobs.looks)
    if knobs.similarity == 0.0:
        looks = dice.sample(range(targets, knobs.looks), knobs.scenes)
        if look in looks:  # it would be there twice
            looks[looks.index(look)] = looks[scene]
        looks[scene] = look
        return looks
    alike = dice.sample(
        [other for other in relatives(look, knobs.looks) if other >= targets], knobs.looks
    )
    rest = dice.sample(
        [other for other in range(targets, knobs.looks) if other != look], knobs.looks
    )
    looks: list[int] = []
    taken = {look}
    for place in range(knobs.scenes):
        if place == scene:
            looks.append(look)
            continue
        source = alike if alike and dice.unit() < knobs.similarity else rest
        other = next((other for other in source if other not in taken), None)
        if other is None:
            other = next(other for other in rest if other not in taken)
        taken.add(other)
        looks.append(other)
    return looks


def ask_for_glyph(draft: Draft, dice: Dice, knobs: Knobs, busy: tuple[int, ...] = ()) -> str:
    """Let the only card show one of the options; return the kind of glyph."""
    kind = dice.pick(knobs.glyphs)
    names = choose_names(dice, knobs, kind, knobs.options)
    draft.options = tuple(names)
    draft.answer = dice.below(len(names))
    glyphs = [make_glyph(dice, kind, name) for name in names]

    def depict(draft: Draft, answer: int) -> None:
        draft.evidence[-1].glyph = glyphs[answer]

    draft.depict = depict
    depict(draft, draft.answer)
    distract(draft, dice, knobs, [(kind, name) for name in names], busy)
    return kind


def distract(
    draft: Draft,
    dice: Dice,
    knobs: Knobs,
    glyphs: list[tuple[str, str]],
    busy: tuple[int, ...] = (),
) -> None:
    """Put cards of the same sort into other scenes; what they show tells nothing."""
    taken = (*busy, draft.scene) if draft.evidence else busy
    free = [scene for scene in range(len(draft.looks)) if scene not in taken]
    for scene in dice.sample(free, knobs.distractors):
        kind, name = dice.pick(glyphs)
        draft.others.append(place_card(dice, knobs, draft, scene, make_glyph(dice, kind, name)))


def place_card(dice: Dice, knobs: Knobs, draft: Draft, scene: int, glyph: Glyph) -> Card:
    """Return a card that is held up at any time in a scene."""
    latest_s = draft.lengths_s[scene] - knobs.needle_s - knobs.guard_s
    offset_s = dice.between(knobs.guard_s, latest_s)
    return Card(scene, offset_s, knobs.needle_s, glyph, dice.unit(), dice.unit())


def make_glyph(dice: Dice, kind: str, name: str) -> Glyph:
    """Return a glyph of that name (of that colour, if colours are asked about)."""
    if kind == "colour":
        return Glyph("shape", dice.pick(SHAPES), name)
    return Glyph(kind, name, dice.pick(GLYPH_COLOURS))


def choose_names(dice: Dice, knobs: Knobs, kind: str, count: int) -> list[str]:
    """Return that many names of a kind, always the same ones if options are not shuffled."""
    names = KINDS[kind]
    return dice.sample(names, count) if knobs.shuffle_options else list(names[:count])


def arrange(dice: Dice, knobs: Knobs, numbers: range) -> list[int]:
    """Return the numbers in the order in which they become options."""
    return dice.sample(numbers, len(numbers)) if knobs.shuffle_options else list(numbers)


def choose_wording(dice: Dice, knobs: Knobs, words: Sequence[str]) -> str:
    """Return one of the wordings, the plain one if questions are not paraphrased."""
    return dice.pick(words) if knobs.paraphrase else words[0]


def asked_look(draft: Draft) -> str:
    """Return the name of the look of the scene asked about."""
    return LOOKS[draft.looks[draft.scene]].name
