"""An independent reader answers each question from what its video shows, and twins from theirs.

The reader knows the rules of the questions, and nothing of how they were made.
"""

import re
from itertools import product

import pytest

from gym_longvideo.haystack import FAMILIES, HaystackSuite
from gym_longvideo.haystack.glyphs import COLOURS, KINDS, TURNS, Glyph
from gym_longvideo.haystack.looks import LOOKS

NAMES = {look.name: index for index, look in enumerate(LOOKS)}
HEADINGS = ["north", "east", "south", "west"]


def cards_of(world, look):
    """The glyphs shown in the scene with a look, in order."""
    scene = world.looks.index(look)
    start_s, end_s = world.span_s(scene)
    return [event.glyph for event in world.events if start_s <= event.start_s < end_s]


def asked_look(question):
    return max((name for name in NAMES if f"with {name}" in question), key=len, default=None)


def reading(glyph, question):
    if "colour" in question:
        return glyph.colour
    return glyph.name


def option_for(task, glyphs, world):
    """Return the text of the option that these cards of the scene asked about make right."""
    question, family = task.question, task.task_types[0]
    match family:
        case "needle" | "timestamp":
            return reading(glyphs[0], question)
        case "absent":
            found = reading(glyphs[0], question)
            return found if found in task.options else "None of these"
        case "chain":
            assert glyphs[0].kind == "look"
            (there,) = cards_of(world, int(glyphs[0].name))
            return reading(there, question)
        case "order":
            colours = task.options[0].split(", then ")[0] in {"red", "blue", "green", "orange"}
            colours = colours or all(
                glyph.colour in task.options[0] and glyph.name not in task.options[0]
                for glyph in glyphs
            )
            return ", then ".join(glyph.colour if colours else glyph.name for glyph in glyphs)
        case "count":
            wanted = re.search(r"(?:show|it) (?:an?|the) ([\w ]+)\?", question)[1]
            wanted = re.sub(r"^(letter|digit) ", "", wanted)
            if wanted.endswith(" shape"):
                return str(sum(glyph.colour == wanted[:-6] for glyph in glyphs))
            return str(sum(glyph.name == wanted for glyph in glyphs))
        case "state":
            if "robot" in question:
                start = HEADINGS.index(re.search("|".join(HEADINGS), question)[0])
                quarters = {"right": 1, "around": 2, "left": 3}
                return HEADINGS[(start + sum(quarters[glyph.name] for glyph in glyphs)) % 4]
            if "lamp" in question:
                on = re.search(r"lamp is (on|off) (?:at first|before)", question)[1] == "on"
                return "on" if (on + sum(glyph.name == "cross" for glyph in glyphs)) % 2 else "off"
            start = int(re.search(r"(?:starts at|Begin with|score is) (\d+)", question)[1])
            return str(start + sum(int(glyph.name) for glyph in glyphs))
    raise AssertionError(family)


def holistic_answer(task, world):
    question = task.question
    spans = [world.span_s(scene) for scene in range(len(world.looks))]
    look = asked_look(question) or next((n for n in NAMES if f"one with {n} " in question), None)
    if look is None:
        if re.search("first|open|beginning", question):
            scene = 0
        elif re.search(r"last scene|end", question):
            scene = len(spans) - 1
        else:
            scene = max(range(len(spans)), key=lambda s: spans[s][1] - spans[s][0])
    else:
        step = 1 if re.search("after|follows|next", question) else -1
        scene = world.looks.index(NAMES[look]) + step
    return LOOKS[world.looks[scene]].name


def read(task, world):
    if task.task_types[0] == "holistic":
        return holistic_answer(task, world)
    if task.task_types[0] == "timestamp":
        parts = re.search(r"(?:(\d+):)?(\d+):(\d\d)", task.question)
        time_s = int(parts[1] or 0) * 3600 + int(parts[2]) * 60 + int(parts[3])
        return option_for(task, [world.event_at(time_s).glyph], world)
    return option_for(task, cards_of(world, NAMES[asked_look(task.question)]), world)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "knobs",
    [{}, {"options": 2}, {"options": 6, "similarity": 0.8}, {"duration_s": 5400.0}],
    ids=["default", "two", "six", "long"],
)
def test_an_independent_reader_finds_the_answer(family, knobs):
    suite = HaystackSuite("train", families=family, **knobs)
    for index in range(120):
        task = suite[index]
        answer = read(task, suite.world(task))
        assert task.options.index(answer) == task.answer_index, (task.question, task.options)


def others_like(glyph):
    """Everything that a card with such a glyph might have shown instead."""
    match glyph.kind:
        case "text":
            return [glyph._replace(name=sign + glyph.name[1:]) for sign in "+-"]
        case "turn":
            return [glyph._replace(name=name) for name in TURNS]
    return [Glyph(glyph.kind, *pair) for pair in product(KINDS[glyph.kind], COLOURS)]


@pytest.mark.parametrize("family", ["count", "state"])
@pytest.mark.parametrize("options", [2, 4, 6])
def test_without_one_card_at_least_two_options_remain(family, options):
    """Whatever card is unseen, something that it may have shown makes another option right."""
    suite = HaystackSuite("train", families=family, options=options)
    for index in range(60):
        task = suite[index]
        world = suite.world(task)
        glyphs = cards_of(world, NAMES[asked_look(task.question)])
        for unseen, glyph in enumerate(glyphs):
            possible = {
                option_for(task, [*glyphs[:unseen], other, *glyphs[unseen + 1 :]], world)
                for other in others_like(glyph)
            }
            assert len(possible & set(task.options)) >= 2


@pytest.mark.parametrize("options", [2, 4, 5, 6])
@pytest.mark.parametrize("shuffle_options", [True, False])
def test_the_order_of_two_cards_never_tells_the_order_of_three(options, shuffle_options):
    suite = HaystackSuite(
        "train", families="order", options=options, shuffle_options=shuffle_options
    )
    for index in range(60):
        orders = [option.split(", then ") for option in suite[index].options]
        cards = orders[0]
        assert len(orders) == options and len({tuple(order) for order in orders}) == options
        if options == 2:
            assert orders[0] == orders[1][::-1]
            continue
        for a, b in product(cards, cards):
            if a != b:
                assert sum(order.index(a) < order.index(b) for order in orders) >= 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [2, 4])
def test_a_swap_changes_the_answer_and_only_what_is_shown(family, options):
    suite = HaystackSuite("train", families=family, options=options)
    for index in range(60):
        task = suite[index]
        twin = suite.twin(task, "swap")
        world, other = suite.world(task), suite.world(twin)
        assert (twin.question, twin.options) == (task.question, task.options)
        assert twin.answer_index != task.answer_index
        assert twin.options.index(read(twin, other)) == twin.answer_index
        assert twin.segments_s == task.segments_s and other.starts_s == world.starts_s
        assert twin.video != task.video and twin.video_id == task.video_id == task.video
        times = [group[0][0] for group in suite.evidence(twin)]
        assert suite.solve(twin, times) == twin.answer_index
        if family != "holistic":
            changed = [
                a for a, b in zip(world.events, other.events, strict=True) if a.glyph != b.glyph
            ]
            assert {(event.start_s, event.end_s) for event in changed} <= set(task.segments_s)
            frames = [
                suite.open_video(which).read([changed[0].start_s], size=(24, 24)).frames
                for which in (task, twin)
            ]
            assert (frames[0] != frames[1]).any()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "holistic"])
def test_a_move_changes_the_segments_and_not_the_answer(family):
    suite = HaystackSuite("train", families=family)
    for index in range(60):
        task = suite[index]
        twin = suite.twin(task, "move")
        assert (twin.options, twin.answer_index) == (task.options, task.answer_index)
        assert (twin.question == task.question) == (family != "timestamp")
        assert twin.segments_s != task.segments_s
        assert twin.options.index(read(twin, suite.world(twin))) == twin.answer_index
        times = [group[0][0] for group in suite.evidence(twin)]
        assert suite.solve(twin, times) == twin.answer_index


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "holistic"])
def test_a_removal_leaves_nothing_that_answers(family):
    suite = HaystackSuite("train", families=family)
    everything = [step * 0.5 for step in range(1200)]
    for index in range(60):
        task = suite[index]
        twin = suite.twin(task, "remove")
        assert twin.question == task.question and twin.segments_s == ()
        kept = {(event.start_s, event.end_s) for event in suite.world(twin).events}
        gone = set(task.segments_s) - kept
        assert len(gone) == (1 if family == "chain" else len(task.segments_s))
        if family == "absent":
            assert twin.options[twin.answer_index] == "None of these"
            assert suite.solve(twin, everything) == twin.answer_index
            # Only having looked everywhere in the scene proves that there was no card.
            for start, end in task.segments_s:
                rest = [time for time in everything if not start < time < end]
                assert suite.solve(twin, rest) is None
            groups = suite.evidence(twin)
            assert suite.solve(twin, [sum(group[0]) / 2 for group in groups]) == twin.answer_index
        else:
            assert twin.answer_index is None and suite.solve(twin, everything) is None
            assert suite.evidence(twin) == () and suite.minimal_frames(twin) == 0


def test_twins_that_cannot_be_are_refused():
    suite = HaystackSuite("train", families=("holistic", "needle"))
    for kind in ("move", "remove"):
        with pytest.raises(ValueError, match="a holistic question has none; use 'swap'"):
            suite.twin(suite[0], kind)
    with pytest.raises(ValueError, match="kind='copy' is no twin; use one of swap, move, remove"):
        suite.twin(suite[1], "copy")
    with pytest.raises(ValueError, match="is a twin itself"):
        suite.twin(suite.twin(suite[1], "swap"), "move")
