"""Families: the eight kinds of questions, each a function from dice to a draft.

In every family the answer is drawn uniformly among the options and the options independently of it,
and no proper part of the evidence leaves fewer than two options: that is why counts go from 0 to
the number of cards, why counters only step by one amount, and why four orders of three cards are
chosen such that each order of two of them occurs twice. So a blind guess is right one time in
``options``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

from gym_longvideo.haystack import wording
from gym_longvideo.haystack.dice import Dice
from gym_longvideo.haystack.draft import NONE_OF_THESE, Card, Draft
from gym_longvideo.haystack.glyphs import COLOURS, KINDS, SHAPES, TURNS, Glyph
from gym_longvideo.haystack.knobs import (
    GAP_CELLS,
    LONGEST_STRIDES,
    MOST_SCENES_BESIDE_LONGEST,
    Knobs,
)
from gym_longvideo.haystack.looks import LOOKS, relatives
from gym_longvideo.haystack.world import OVERVIEW_FRAMES, cut_scenes, least_scene_s

_COLOURS = tuple(COLOURS)
_HEADINGS = ("north", "east", "south", "west")
_QUARTERS = {"right": 1, "around": 2, "left": 3}


def needle(dice: Dice, knobs: Knobs) -> Draft:
    """What does the card in a scene show?"""
    draft = _held_up(dice, knobs, "needle", 1)
    kind = _ask_for_glyph(draft, dice, knobs)
    draft.question = _word(dice, knobs, wording.NEEDLE).format(
        look=_look(draft), ask=wording.ASK[kind]
    )
    return draft


def timestamp(dice: Dice, knobs: Knobs) -> Draft:
    """What does the card at a given time show? The middle of the card is at a whole second."""
    draft = _held_up(dice, knobs, "timestamp", 1, spare_s=2.0)
    kind = _ask_for_glyph(draft, dice, knobs)
    words, ask = _word(dice, knobs, wording.TIMESTAMP), wording.ASK[kind]

    def question(draft: Draft) -> str:
        card, start_s = draft.evidence[0], draft.starts_s()[draft.scene]
        least_s = knobs.guard_s + card.length_s / 2
        second = round(start_s + card.offset_s + card.length_s / 2)
        if second < start_s + least_s:
            second += 1
        elif second > start_s + draft.lengths_s[draft.scene] - least_s:
            second -= 1
        card.offset_s = second - start_s - card.length_s / 2
        return words.format(clock=wording.clock(second), ask=ask)

    draft.question = question
    return draft


def absent(dice: Dice, knobs: Knobs) -> Draft:
    """What does the card show, if any of these? "None of these" is last and as likely as any."""
    draft = _held_up(dice, knobs, "absent", 1)
    kind = dice.pick(knobs.glyphs)
    names = _options(dice, knobs, kind, knobs.options - 1)
    rest = [name for name in KINDS[kind] if name not in names]
    draft.options = (*names, NONE_OF_THESE)
    draft.answer = dice.below(knobs.options)
    shown = [*names, dice.pick(rest)]
    glyphs = [_glyph(dice, kind, name) for name in shown]

    def depict(draft: Draft, answer: int) -> None:
        draft.evidence[0].glyph = glyphs[answer]

    draft.depict = depict
    depict(draft, draft.answer)
    _distract(draft, dice, knobs, [(kind, name) for name in shown])
    draft.question = _word(dice, knobs, wording.ABSENT).format(
        look=_look(draft), ask=wording.ASK[kind]
    )
    return draft


def chain(dice: Dice, knobs: Knobs) -> Draft:
    """What does the card show in the scene that is pictured on a card in another scene?"""
    draft = _held_up(dice, knobs, "chain", 1)
    target = draft.scene
    far = [scene for scene in range(len(draft.looks)) if abs(scene - target) > 1]
    asked = dice.pick(far)
    # The look that was drawn for the scene asked about goes to the scene with the pointer.
    draft.looks[asked], draft.looks[target] = draft.looks[target], draft.looks[asked]
    picture = Glyph("look", str(draft.looks[target]), "")
    pointer = _card(dice, knobs, draft, asked, picture)
    draft.kept = (asked,)
    kind = _ask_for_glyph(draft, dice, knobs, busy=(asked,))
    draft.evidence.insert(0, pointer)
    draft.question = _word(dice, knobs, wording.CHAIN).format(
        look=LOOKS[draft.looks[asked]].name, ask=wording.ASK_THERE[kind]
    )
    return draft


def order(dice: Dice, knobs: Knobs) -> Draft:
    """In which order are the cards of a scene held up?"""
    draft = _held_up(dice, knobs, "order", knobs.cards_in("order"))
    kind = dice.pick(knobs.glyphs)
    names = sorted(_options(dice, knobs, kind, len(draft.evidence)))
    orders = list(permutations(names))
    if knobs.shuffle_options:
        orders = dice.sample(orders, len(orders))
    if len(orders) > knobs.options:
        # Leave out one order, and for four options its reverse: of any two cards both orders
        # remain, and at least twice each.
        dropped = orders[-1] if knobs.shuffle_options else tuple(names)
        gone = {dropped, dropped[::-1]} if knobs.options == 4 else {dropped}
        orders = [names for names in orders if names not in gone]
    glyphs = {name: _glyph(dice, kind, name) for name in names}
    draft.options = tuple(", then ".join(names) for names in orders)
    draft.answer = dice.below(len(orders))

    def depict(draft: Draft, answer: int) -> None:
        for card, name in zip(draft.evidence, orders[answer], strict=True):
            card.glyph = glyphs[name]

    draft.depict = depict
    depict(draft, draft.answer)
    _distract(draft, dice, knobs, [(kind, name) for name in names])
    number = wording.NUMBERS[len(names)]
    draft.question = _word(dice, knobs, wording.ORDER).format(
        look=_look(draft), Number=number.capitalize(), number=number, names=", ".join(names)
    )
    return draft


def count(dice: Dice, knobs: Knobs) -> Draft:
    """How many cards of a scene show this? As many cards as make every number from 0 possible."""
    draft = _held_up(dice, knobs, "count", knobs.cards_in("count"))
    cards = len(draft.evidence)
    kind = dice.pick(knobs.glyphs)
    names = _options(dice, knobs, kind, knobs.options)
    wanted = dice.pick(names)
    foils = [name for name in names if name != wanted]
    numbers = _in_order(dice, knobs, range(cards + 1))
    draft.options = tuple(str(number) for number in numbers)
    draft.answer = dice.below(len(numbers))

    def depict(draft: Draft, answer: int) -> None:
        hits = set(dice.sample(range(cards), numbers[answer]))
        for place, card in enumerate(draft.evidence):
            card.glyph = _glyph(dice, kind, wanted if place in hits else dice.pick(foils))

    draft.depict = depict
    depict(draft, draft.answer)
    _distract(draft, dice, knobs, [(kind, name) for name in names])
    number = wording.NUMBERS[cards]
    draft.question = _word(dice, knobs, wording.COUNT).format(
        look=_look(draft),
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
    draft = _held_up(dice, knobs, "state", knobs.cards_in("state"))
    if knobs.options == 2:
        return _lamp(draft, dice, knobs)
    if knobs.options == 4 and dice.unit() < 0.5:
        return _compass(draft, dice, knobs)
    return _counter(draft, dice, knobs)


def _counter(draft: Draft, dice: Dice, knobs: Knobs) -> Draft:
    cards = len(draft.evidence)
    step = 1 + dice.below(5)
    start = cards * step + dice.below(10)
    raises = _in_order(dice, knobs, range(cards + 1))
    draft.options = tuple(str(start + step * (2 * ups - cards)) for ups in raises)
    draft.answer = dice.below(len(raises))
    texts = (f"-{step}", f"+{step}")

    def depict(draft: Draft, answer: int) -> None:
        ups = set(dice.sample(range(cards), raises[answer]))
        for place, card in enumerate(draft.evidence):
            card.glyph = Glyph("text", texts[place in ups], dice.pick(_COLOURS))

    draft.depict = depict
    depict(draft, draft.answer)
    _distract(draft, dice, knobs, [("text", text) for text in texts])
    draft.question = _word(dice, knobs, wording.COUNTER).format(
        look=_look(draft), start=start, step=step, number=wording.NUMBERS[cards]
    )
    return draft


def _compass(draft: Draft, dice: Dice, knobs: Knobs) -> Draft:
    start = dice.below(4)
    headings = _in_order(dice, knobs, range(4))
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
            card.glyph = Glyph("turn", turn, dice.pick(_COLOURS))

    draft.depict = depict
    depict(draft, draft.answer)
    _distract(draft, dice, knobs, [("turn", turn) for turn in TURNS])
    draft.question = _word(dice, knobs, wording.COMPASS).format(
        look=_look(draft), start=_HEADINGS[start]
    )
    return draft


def _lamp(draft: Draft, dice: Dice, knobs: Knobs) -> Draft:
    cards = len(draft.evidence)
    start = dice.below(2)
    ends = _in_order(dice, knobs, range(2))
    draft.options = tuple(("off", "on")[end] for end in ends)
    draft.answer = dice.below(2)

    def depict(draft: Draft, answer: int) -> None:
        flips = [dice.below(2) for _ in range(cards - 1)]
        flips.append((ends[answer] - start - sum(flips)) % 2)
        for card, flip in zip(draft.evidence, flips, strict=True):
            card.glyph = Glyph("shape", "cross" if flip else "circle", dice.pick(_COLOURS))

    draft.depict = depict
    depict(draft, draft.answer)
    _distract(draft, dice, knobs, [("shape", "cross"), ("shape", "circle")])
    draft.question = _word(dice, knobs, wording.LAMP).format(
        look=_look(draft), start=("off", "on")[start]
    )
    return draft


def holistic(dice: Dice, knobs: Knobs) -> Draft:
    """Which scene is first, last, next to another or longest? The overview tells."""
    rule = dice.pick(("first", "last", "after", "before", "longest"))
    scenes = knobs.scenes
    if rule == "longest":
        scenes = min(scenes, 1 + MOST_SCENES_BESIDE_LONGEST)
        chosen = dice.below(scenes)
        lengths_s = _one_longest(dice, knobs, scenes, chosen)
    else:
        lengths_s, _ = cut_scenes(dice, knobs.duration_s, scenes, 0.0, 0.0)
        chosen = {"first": 0, "last": scenes - 1, "after": 1 + dice.below(scenes - 1)}.get(
            rule, dice.below(scenes - 1)
        )
    looks = dice.sample(range(knobs.looks), scenes)
    other = {"after": chosen - 1, "before": chosen + 1}.get(rule)
    draft = Draft(
        family="holistic",
        lengths_s=lengths_s,
        looks=looks,
        scene=chosen,
        rule="after" if rule == "before" else rule,
        around=(chosen,) if other is None else (chosen, other),
    )
    elsewhere = [scene for scene in range(scenes) if scene not in (chosen, other)]
    shown = [looks[scene] for scene in (chosen, *dice.sample(elsewhere, knobs.options - 1))]
    shown = dice.sample(shown, len(shown)) if knobs.shuffle_options else sorted(shown)
    draft.options = tuple(LOOKS[look].name for look in shown)
    draft.answer = shown.index(looks[chosen])

    def depict(draft: Draft, answer: int) -> None:
        there = draft.looks.index(shown[answer])
        here = draft.scene
        draft.looks[there], draft.looks[here] = draft.looks[here], draft.looks[there]

    draft.depict = depict
    kind = dice.pick(knobs.glyphs)
    _distract(draft, dice, knobs, [(kind, name) for name in KINDS[kind]], busy=())
    words = {
        "first": wording.FIRST,
        "last": wording.LAST,
        "after": wording.AFTER,
        "before": wording.BEFORE,
        "longest": wording.LONGEST,
    }[rule]
    draft.question = _word(dice, knobs, words).format(
        look="" if other is None else LOOKS[looks[other]].name
    )
    return draft


BUILDERS: dict[str, Callable[[Dice, Knobs], Draft]] = {
    "needle": needle,
    "timestamp": timestamp,
    "order": order,
    "count": count,
    "state": state,
    "chain": chain,
    "holistic": holistic,
    "absent": absent,
}


def _held_up(dice: Dice, knobs: Knobs, family: str, cards: int, spare_s: float = 0.0) -> Draft:
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
        wanted_s = depth * knobs.duration_s - sum(lengths_s[:scene]) - used_s / 2 - knobs.guard_s
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


def _ask_for_glyph(draft: Draft, dice: Dice, knobs: Knobs, busy: tuple[int, ...] = ()) -> str:
    """Let the only card show one of the options; return the kind of glyph."""
    kind = dice.pick(knobs.glyphs)
    names = _options(dice, knobs, kind, knobs.options)
    draft.options = tuple(names)
    draft.answer = dice.below(len(names))
    glyphs = [_glyph(dice, kind, name) for name in names]

    def depict(draft: Draft, answer: int) -> None:
        draft.evidence[-1].glyph = glyphs[answer]

    draft.depict = depict
    depict(draft, draft.answer)
    _distract(draft, dice, knobs, [(kind, name) for name in names], busy)
    return kind


def _distract(
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
        draft.others.append(_card(dice, knobs, draft, scene, _glyph(dice, kind, name)))


def _card(dice: Dice, knobs: Knobs, draft: Draft, scene: int, glyph: Glyph) -> Card:
    """Return a card that is held up at any time in a scene."""
    latest_s = draft.lengths_s[scene] - knobs.needle_s - knobs.guard_s
    offset_s = dice.between(knobs.guard_s, latest_s)
    return Card(scene, offset_s, knobs.needle_s, glyph, dice.unit(), dice.unit())


def _glyph(dice: Dice, kind: str, name: str) -> Glyph:
    if kind == "colour":
        return Glyph("shape", dice.pick(SHAPES), name)
    return Glyph(kind, name, dice.pick(_COLOURS))


def _options(dice: Dice, knobs: Knobs, kind: str, count: int) -> list[str]:
    names = KINDS[kind]
    return dice.sample(names, count) if knobs.shuffle_options else list(names[:count])


def _in_order(dice: Dice, knobs: Knobs, numbers: range) -> list[int]:
    return dice.sample(numbers, len(numbers)) if knobs.shuffle_options else list(numbers)


def _word(dice: Dice, knobs: Knobs, words: Sequence[str]) -> str:
    return dice.pick(words) if knobs.paraphrase else words[0]


def _look(draft: Draft) -> str:
    return LOOKS[draft.looks[draft.scene]].name


def _one_longest(dice: Dice, knobs: Knobs, scenes: int, chosen: int) -> list[float]:
    """Return lengths with one scene long enough that a 16-frame overview proves it the longest."""
    least_s = least_scene_s(knobs.duration_s)
    longest_s = knobs.duration_s * LONGEST_STRIDES / OVERVIEW_FRAMES
    shares = [dice.unit() + 1e-3 for _ in range(scenes)]
    spare_s = knobs.duration_s - longest_s - (scenes - 1) * least_s
    spare_s /= sum(shares)
    return [
        (longest_s if scene == chosen else least_s) + share * spare_s
        for scene, share in enumerate(shares)
    ]
