"""Questions about the scenes themselves, which an overview answers: retrieving is waste."""

from __future__ import annotations

from gym_longvideo.haystack import wording
from gym_longvideo.haystack.dice import Dice, total
from gym_longvideo.haystack.draft import Draft
from gym_longvideo.haystack.families.staging import choose_wording, distract
from gym_longvideo.haystack.glyphs import KINDS
from gym_longvideo.haystack.knobs import LONGEST_STRIDES, MOST_SCENES_BESIDE_LONGEST, Knobs
from gym_longvideo.haystack.looks import LOOKS
from gym_longvideo.haystack.world import OVERVIEW_FRAMES, cut_scenes, least_scene_s


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
    distract(draft, dice, knobs, [(kind, name) for name in KINDS[kind]], busy=())
    words = {
        "first": wording.FIRST,
        "last": wording.LAST,
        "after": wording.AFTER,
        "before": wording.BEFORE,
        "longest": wording.LONGEST,
    }[rule]
    draft.question = choose_wording(dice, knobs, words).format(
        look="" if other is None else LOOKS[looks[other]].name
    )
    return draft


def _one_longest(dice: Dice, knobs: Knobs, scenes: int, chosen: int) -> list[float]:
    """Return lengths with one scene long enough that a 16-frame overview proves it the longest."""
    least_s = least_scene_s(knobs.duration_s)
    longest_s = knobs.duration_s * LONGEST_STRIDES / OVERVIEW_FRAMES
    shares = [dice.unit() + 1e-3 for _ in range(scenes)]
    spare_s = knobs.duration_s - longest_s - (scenes - 1) * least_s
    spare_s /= total(shares)
    return [
        (longest_s if scene == chosen else least_s) + share * spare_s
        for scene, share in enumerate(shares)
    ]
