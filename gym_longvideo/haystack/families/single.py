"""Questions that one card answers: needle, timestamp, absent; and chain, where one points to it."""

from __future__ import annotations

from gym_longvideo.haystack import wording
from gym_longvideo.haystack.dice import Dice
from gym_longvideo.haystack.draft import NONE_OF_THESE, Draft
from gym_longvideo.haystack.families.staging import (
    ask_for_glyph,
    asked_look,
    choose_names,
    choose_wording,
    distract,
    make_glyph,
    place_card,
    stage,
)
from gym_longvideo.haystack.glyphs import KINDS, Glyph
from gym_longvideo.haystack.knobs import Knobs
from gym_longvideo.haystack.looks import LOOKS


def needle(dice: Dice, knobs: Knobs) -> Draft:
    """What does the card in a scene show?"""
    draft = stage(dice, knobs, "needle", 1)
    kind = ask_for_glyph(draft, dice, knobs)
    draft.question = choose_wording(dice, knobs, wording.NEEDLE).format(
        look=asked_look(draft), ask=wording.ASK[kind]
    )
    return draft


def timestamp(dice: Dice, knobs: Knobs) -> Draft:
    """What does the card at a given time show? The middle of the card is at a whole second."""
    draft = stage(dice, knobs, "timestamp", 1, spare_s=2.0)
    kind = ask_for_glyph(draft, dice, knobs)
    words, ask = choose_wording(dice, knobs, wording.TIMESTAMP), wording.ASK[kind]

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
    draft = stage(dice, knobs, "absent", 1)
    kind = dice.pick(knobs.glyphs)
    names = choose_names(dice, knobs, kind, knobs.options - 1)
    rest = [name for name in KINDS[kind] if name not in names]
    draft.options = (*names, NONE_OF_THESE)
    draft.answer = dice.below(knobs.options)
    shown = [*names, dice.pick(rest)]
    glyphs = [make_glyph(dice, kind, name) for name in shown]

    def depict(draft: Draft, answer: int) -> None:
        draft.evidence[0].glyph = glyphs[answer]

    draft.depict = depict
    depict(draft, draft.answer)
    distract(draft, dice, knobs, [(kind, name) for name in shown])
    draft.question = choose_wording(dice, knobs, wording.ABSENT).format(
        look=asked_look(draft), ask=wording.ASK[kind]
    )
    return draft


def chain(dice: Dice, knobs: Knobs) -> Draft:
    """What does the card show in the scene that is pictured on a card in another scene?"""
    draft = stage(dice, knobs, "chain", 1)
    target = draft.scene
    far = [scene for scene in range(len(draft.looks)) if abs(scene - target) > 1]
    asked = dice.pick(far)
    # The look that was drawn for the scene asked about goes to the scene with the pointer.
    draft.looks[asked], draft.looks[target] = draft.looks[target], draft.looks[asked]
    picture = Glyph("look", str(draft.looks[target]), "")
    pointer = place_card(dice, knobs, draft, asked, picture)
    draft.kept = (asked,)
    kind = ask_for_glyph(draft, dice, knobs, busy=(asked,))
    draft.evidence.insert(0, pointer)
    draft.question = choose_wording(dice, knobs, wording.CHAIN).format(
        look=LOOKS[draft.looks[asked]].name, ask=wording.ASK_THERE[kind]
    )
    return draft
