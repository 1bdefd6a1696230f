"""Questions that take all cards of a scene: order, count and state.

No proper part of the cards leaves fewer than two options: that is why counts go from 0 to the
number of cards, why counters only step by one amount, and why four orders of three cards are chosen
such that each order of two of them occurs twice.
"""

from __future__ import annotations

from itertools import permutations

from gym_longvideo.haystack import wording
from gym_longvideo.haystack.dice import Dice
from gym_longvideo.haystack.draft import Draft
from gym_longvideo.haystack.families.staging import (
    GLYPH_COLOURS,
    arrange,
    asked_look,
    choose_names,
    choose_wording,
    distract,
    make_glyph,
    stage,
)
from gym_longvideo.haystack.glyphs import TURNS, Glyph
from gym_longvideo.haystack.knobs import Knobs

_HEADINGS = ("north", "east", "south", "west")
_QUARTERS = {"right": 1, "around": 2, "left": 3}


def order(dice: Dice, knobs: Knobs) -> Draft:
    """In which order are the cards of a scene held up?"""
    draft = stage(dice, knobs, "order", knobs.cards_in("order"))
    kind = dice.pick(knobs.glyphs)
    names = sorted(choose_names(dice, knobs, kind, len(draft.evidence)))
    orders = list(permutations(names))
    if knobs.shuffle_options:
        orders = dice.sample(orders, len(orders))
    if len(orders) > knobs.options:
        # Leave out one order, and for four options its reverse: of any two cards both orders
        # remain, and at least twice each.
        dropped = orders[-1] if knobs.shuffle_options else tuple(names)
        gone = {dropped, dropped[::-1]} if knobs.options == 4 else {dropped}
        orders = [names for names in orders if names not in gone]
    glyphs = {name: make_glyph(dice, kind, name) for name in names}
    draft.options = tuple(", then ".join(names) for names in orders)
    draft.answer = dice.below(len(orders))

    def depict(draft: Draft, answer: int) -> None:
        for card, name in zip(draft.evidence, orders[answer], strict=True):
            card.glyph = glyphs[name]

    draft.depict = depict
    depict(draft, draft.answer)
    distract(draft, dice, knobs, [(kind, name) for name in names])
    number = wording.NUMBERS[len(names)]
    draft.question = choose_wording(dice, knobs, wording.ORDER).format(
        look=asked_look(draft), Number=number.capitalize(), number=number, names=", ".join(names)
    )
    return draft


def count(dice: Dice, knobs: Knobs) -> Draft:
    """How many cards of a scene show this? As many cards as make every number from 0 possible."""
    draft = stage(dice, knobs, "count", knobs.cards_in("count"))
    cards = len(draft.evidence)
    kind = dice.pick(knobs.glyphs)
    names = choose_names(dice, knobs, kind, knobs.options)
    wanted = dice.pick(names)
    foils = [name for name in names if name != wanted]
    numbers = arrange(dice, knobs, range(cards + 1))
    draft.options = tuple(str(number) for number in numbers)
    draft.answer = dice.below(len(numbers))

    def depict(draft: Draft, answer: int) -> None:
        hits = set(dice.sample(range(cards), numbers[answer]))
        for place, card in enumerate(draft.evidence):
            card.glyph = make_glyph(dice, kind, wanted if place in hits else dice.pick(foils))

    draft.depict = depict
    depict(draft, draft.answer)
    distract(draft, dice, knobs, [(kind, name) for name in names])
    number = wording.NUMBERS[cards]
    draft.question = choose_wording(dice, knobs, wording.COUNT).format(
        look=asked_look(draft),
        Number=number.capitalize(),
        number=number,
        cards="card is" if cards == 1 else "cards are",
        thing=wording.thing(kind, wanted),
    )
    return draft


def state(dice: Dice, knobs: Knobs) -> Draft:
    """What is the state after the operations on the cards of a scene?

    A counter; with four options also a compass, with two a lamp instead.
    """
    draft = stage(dice, knobs, "state", knobs.cards_in("state"))
    if knobs.options == 2:
        return _lamp(draft, dice, knobs)
    if knobs.options == 4 and dice.unit() < 0.5:
        return _compass(draft, dice, knobs)
    return _counter(draft, dice, knobs)


def _counter(draft: Draft, dice: Dice, knobs: Knobs) -> Draft:
    cards = len(draft.evidence)
    step = 1 + dice.below(5)
    start = cards * step + dice.below(10)
    raises = arrange(dice, knobs, range(cards + 1))
    draft.options = tuple(str(start + step * (2 * ups - cards)) for ups in raises)
    draft.answer = dice.below(len(raises))
    texts = (f"-{step}", f"+{step}")

    def depict(draft: Draft, answer: int) -> None:
        ups = set(dice.sample(range(cards), raises[answer]))
        for place, card in enumerate(draft.evidence):
            card.glyph = Glyph("text", texts[place in ups], dice.pick(GLYPH_COLOURS))

    draft.depict = depict
    depict(draft, draft.answer)
    distract(draft, dice, knobs, [("text", text) for text in texts])
    draft.question = choose_wording(dice, knobs, wording.COUNTER).format(
        look=asked_look(draft), start=start, step=step, number=wording.NUMBERS[cards]
    )
    return draft


def _compass(draft: Draft, dice: Dice, knobs: Knobs) -> Draft:
    start = dice.below(4)
    headings = arrange(dice, knobs, range(4))
    draft.options = tuple(_HEADINGS[heading] for heading in headings)
    draft.answer = dice.below(4)

    def depict(draft: Draft, answer: int) -> None:
        # The turns before the last are drawn anew until the last one is a turn at all.
        turned = (headings[answer] - start) % 4
        while True:
            turns = [dice.pick(TURNS) for _ in draft.evidence[1:]]
            rest = (turned - sum(_QUARTERS[turn] for turn in turns)) % 4
            if rest:
                break
        turns.append(TURNS[(1, 2, 0)[rest - 1]])
        for card, turn in zip(draft.evidence, turns, strict=True):
            card.glyph = Glyph("turn", turn, dice.pick(GLYPH_COLOURS))

    draft.depict = depict
    depict(draft, draft.answer)
    distract(draft, dice, knobs, [("turn", turn) for turn in TURNS])
    draft.question = choose_wording(dice, knobs, wording.COMPASS).format(
        look=asked_look(draft), start=_HEADINGS[start]
    )
    return draft


def _lamp(draft: Draft, dice: Dice, knobs: Knobs) -> Draft:
    cards = len(draft.evidence)
    start = dice.below(2)
    ends = arrange(dice, knobs, range(2))
    draft.options = tuple(("off", "on")[end] for end in ends)
    draft.answer = dice.below(2)

    def depict(draft: Draft, answer: int) -> None:
        flips = [dice.below(2) for _ in range(cards - 1)]
        flips.append((ends[answer] - start - sum(flips)) % 2)
        for card, flip in zip(draft.evidence, flips, strict=True):
            card.glyph = Glyph("shape", "cross" if flip else "circle", dice.pick(GLYPH_COLOURS))

    draft.depict = depict
    depict(draft, draft.answer)
    distract(draft, dice, knobs, [("shape", "cross"), ("shape", "circle")])
    draft.question = choose_wording(dice, knobs, wording.LAMP).format(
        look=asked_look(draft), start=("off", "on")[start]
    )
    return draft
