"""The suite: tasks, ids, splits, knobs, and that nothing but the video tells the answer."""

import builtins
import collections
import json
import math
import pickle
import re
import time

import pytest

from gym_longvideo.haystack import FAMILIES, HaystackSuite
from gym_longvideo.haystack.looks import LOOKS
from gym_longvideo.suite import Suite
from gym_longvideo.video.errors import VideoNotFoundError


def chi_square(counts, cells):
    expected = sum(counts.values()) / cells
    return sum((counts[cell] - expected) ** 2 / expected for cell in range(cells))


def test_haystack_is_a_suite():
    suite = HaystackSuite("val")
    assert isinstance(suite, Suite)
    assert (suite.name, suite.split, suite.max_options, len(suite)) == ("haystack", "val", 4, 256)
    assert len(HaystackSuite("train")) == 4096


def test_every_family_is_asked_equally_often_and_in_every_shard():
    suite = HaystackSuite("test")
    families = [task.task_types[0] for task in (suite[index] for index in range(256))]
    assert set(collections.Counter(families).values()) == {32}
    for shard in range(8):
        assert set(families[shard::8]) == set(FAMILIES)


def test_tasks_are_the_same_whether_or_not_python_makes_up_for_rounding(monkeypatch):
    """Python 3.12 and later do, in the sum of floats."""

    def compensated(values, start=0):
        values = list(values)
        exact = any(isinstance(value, float) for value in values)
        return start + (math.fsum(values) if exact else int(math.fsum(values)))

    built = {}
    for add in (sum, compensated):
        monkeypatch.setattr(builtins, "sum", add)
        monkeypatch.setattr("gym_longvideo.haystack.suite._built", {})  # or the first are kept
        for families in ("all", "holistic"):
            suite = HaystackSuite("train", families=families)
            built.setdefault(families, []).append([suite[index] for index in range(400)])
    for families, (before, after) in built.items():
        assert after == before, families


def test_ids_lead_back_to_their_tasks_and_unknown_ids_are_refused():
    suite = HaystackSuite("val")
    for index in (0, 7, 255):
        assert suite.index_of(suite[index].task_id) == index
    for wrong in ("val-00001-needle-swap", "val-00256-needle", "train-00000-needle", "x", ""):
        with pytest.raises(KeyError, match="is not in"):
            suite.index_of(wrong)
    for index in (-1, 256):
        with pytest.raises(IndexError, match="out of range"):
            suite[index]


def test_tasks_are_the_same_in_any_copy_and_any_order():
    suite = HaystackSuite("train", seed=5)
    copy = pickle.loads(pickle.dumps(HaystackSuite("train", seed=5)))
    forward = [suite[index] for index in range(40)]
    backward = [copy[index] for index in reversed(range(40))]
    assert forward == backward[::-1]
    assert HaystackSuite("train", seed=6)[0] != forward[0]


def test_splits_share_no_video():
    worlds = {}
    for split in ("train", "val", "test"):
        suite = HaystackSuite(split)
        for index in range(256):
            world = suite.world(suite[index])
            assert worlds.setdefault((world.starts_s, world.looks), (split, index)) == (
                split,
                index,
            )


def test_a_video_opens_in_an_equal_suite_and_not_in_another():
    task = HaystackSuite("val", families="needle")[3]
    video = HaystackSuite("val", families="needle").open_video(task, backend="decord")
    assert video.info.path == task.video
    for other in (
        HaystackSuite("val"),
        HaystackSuite("val", families="needle", seed=1),
        HaystackSuite("train", families="needle"),
        HaystackSuite("val", families="needle", size=2),
    ):
        with pytest.raises(VideoNotFoundError, match="same settings"):
            other.open_video(task)


def test_meta_is_json_and_segments_lie_in_the_video():
    suite = HaystackSuite("train", duration_s=3600.0)
    for index in range(64):
        task = suite[index]
        meta = json.loads(json.dumps(task.meta))
        assert meta["family"] == task.task_types[0]
        assert list(task.segments_s) == sorted(task.segments_s)
        assert all(0 < start < end < 3600 for start, end in task.segments_s)
        assert bool(task.segments_s) == (meta["family"] != "holistic")
        assert task.duration_s == 3600


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [2, 4, 6])
def test_answers_are_uniform_over_positions(family, options):
    suite = HaystackSuite("train", families=family, options=options, size=900)
    tasks = [suite[index] for index in range(900)]
    assert all(len(set(task.options)) == options for task in tasks)
    counts = collections.Counter(task.answer_index for task in tasks)
    assert chi_square(counts, options) < 25  # p < 0.001 at five degrees of freedom


@pytest.mark.parametrize("family", FAMILIES)
def test_a_blind_reader_of_question_and_options_stays_at_chance(family):
    """Naive Bayes over words and over option texts, trained on one half and tried on the other."""
    suite = HaystackSuite("train", families=family, size=1600)
    tasks = [suite[index] for index in range(1600)]
    by_word = collections.defaultdict(lambda: [1.0] * 4)
    by_option = collections.defaultdict(lambda: [1.0, 4.0])  # times right, times offered
    for task in tasks[:800]:
        for word in set(re.findall(r"[\w+-]+", task.question)):
            by_word[word][task.answer_index] += 1
        for place, option in enumerate(task.options):
            by_option[option][0] += place == task.answer_index
            by_option[option][1] += 1

    def by_question(task):
        words = set(re.findall(r"[\w+-]+", task.question))
        scores = [
            sum(math.log(by_word[word][place] / sum(by_word[word])) for word in words)
            for place in range(4)
        ]
        return scores.index(max(scores))

    def by_popularity(task):
        scores = [by_option[option][0] / by_option[option][1] for option in task.options]
        return scores.index(max(scores))

    for reader in (by_question, by_popularity):
        right = sum(reader(task) == task.answer_index for task in tasks[800:]) / 800
        assert abs(right - 0.25) < 0.062, f"{reader.__name__}: {right}"  # 4 standard deviations


def test_questions_vary_and_are_well_formed():
    suite = HaystackSuite("train")
    questions = [suite[index].question for index in range(400)]
    assert len(set(questions)) > 330
    for question in questions:
        assert question[0].isupper() and question.endswith("?")
        assert "{" not in question and "  " not in question
        assert not re.search(r"\ba [aeio]|\ban [^aeiou]", question), question


def test_the_beacon_variant_asks_one_question_with_one_list_of_options():
    suite = HaystackSuite(
        "train", families="needle", target_looks=1, shuffle_options=False, glyphs="shape"
    )
    tasks = [suite[index] for index in range(300)]
    assert {task.question for task in tasks} == {
        "In the scene with a white frame on black, a card is held up for a short while. "
        "Which shape is on it?"
    }
    assert {task.options for task in tasks} == {("circle", "square", "triangle", "star")}
    for task in tasks:
        world = suite.world(task)
        assert world.looks.count(0) == 1
        assert world.looks[world.scene_at(task.segments_s[0][0])] == 0


def test_depth_and_within_place_the_needle():
    for low, high in ((0.0, 0.1), (0.45, 0.55), (0.9, 1.0)):
        suite = HaystackSuite("train", families="needle", depth=(low, high))
        for index in range(60):
            (start, end), *_ = suite[index].segments_s
            assert low - 0.012 < (start + end) / 1200 < high + 0.012
    suite = HaystackSuite("train", families="needle", within=(0.5, 0.5))
    for index in range(60):
        task = suite[index]
        world = suite.world(task)
        scene = world.span_s(world.scene_at(task.segments_s[0][0]))
        assert sum(task.segments_s[0]) == pytest.approx(sum(scene))


def test_depth_is_uniform_by_default():
    suite = HaystackSuite("train", families="needle", size=2000)
    depths = collections.Counter(
        int(sum(suite[index].segments_s[0]) / 1200 * 10) for index in range(2000)
    )
    assert chi_square(depths, 10) < 35


def test_similarity_makes_scenes_share_colour_or_pattern():
    def shared(similarity):
        suite = HaystackSuite("train", families="needle", similarity=similarity)
        hits = 0
        for index in range(50):
            task = suite[index]
            world = suite.world(task)
            look = LOOKS[world.looks[world.scene_at(task.segments_s[0][0])]]
            others = [LOOKS[other] for other in world.looks if LOOKS[other] != look]
            assert len(others) == 9
            hits += sum(o.colour == look.colour or o.pattern == look.pattern for o in others)
        return hits / 450

    assert shared(0.0) < 0.35 and shared(1.0) > 0.95


def test_distractors_and_blocks_can_be_turned_off():
    suite = HaystackSuite("train", families="needle", distractors=0, blocks=0)
    assert len(suite.world(suite[0]).events) == 1
    suite = HaystackSuite("train", families="needle", distractors=9)
    assert len(suite.world(suite[0]).events) == 10


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"split": "dev"}, "split='dev' is unknown; use one of \\['train', 'val', 'test'\\]"),
        ({"families": "find"}, "families=.*'find' is unknown; use"),
        ({"families": ()}, "families=.*empty"),
        ({"size": 0}, "size=0 must be"),
        ({"seed": 1.5}, "seed=1.5 must be"),
        ({"duration_s": 10.0}, "duration_s=10.0 must be a number of seconds in \\[60, 1e\\+06\\]"),
        ({"duration_s": math.nan}, "duration_s=nan must be"),
        ({"duration_s": "600"}, "duration_s='600' must be"),
        ({"needle_s": 0.0}, "needle_s=0.0 must be above 0"),
        ({"needle_s": 40.0}, "needle_s=40.0 .* below the overview's stride of 37.5 s"),
        ({"needle_s": 37.0, "scenes": 13}, "needle_s=37 needs a scene of .* lower needle_s"),
        ({"options": 7}, r"options=7 must be a whole number in \[2, 6\]"),
        ({"options": 3}, "options=3 cannot be balanced for order questions"),
        ({"scenes": 14}, r"scenes=14 must be a whole number in \[3, 13\]"),
        ({"scenes": 4}, "scenes=4 are too few for holistic questions.* use scenes=5"),
        ({"distractors": 10}, r"distractors=10 must be a whole number in \[0, 9\]"),
        ({"blocks": -1}, "blocks=-1"),
        ({"needle_s": "5"}, "needle_s='5' must be a number"),
        ({"depth": 0.5}, "depth=0.5 must be None or"),
        ({"depth": ("a", "b")}, "depth=.* must be None or"),
        ({"depth": (0.5, 0.4)}, "depth=.*low <= high"),
        ({"within": (0.5, 1.4)}, "within=.*low <= high"),
        ({"looks": 9}, r"looks=9 must be a whole number in \[10, 65\]"),
        ({"looks": 10, "target_looks": 1}, r"looks=10 must be a whole number in \[11, 65\]"),
        ({"target_looks": 0}, "target_looks=0"),
        ({"similarity": 2.0}, r"similarity=2.0 must be a number in \[0, 1\]"),
        ({"glyphs": "emoji"}, "glyphs=.*'emoji' is unknown"),
        ({"glyph_scale": 0.9}, "glyph_scale=0.9 must be a number of frame sides in"),
        ({"shuffle_options": 1}, "shuffle_options=1 must be True or False"),
    ],
)
def test_a_knob_that_makes_no_sense_is_refused_with_its_value(knob, message):
    with pytest.raises(ValueError, match=message):
        HaystackSuite(**knob)


def test_making_a_suite_and_tasks_is_cheap():
    start = time.perf_counter()
    suite = HaystackSuite("train")
    made = time.perf_counter()
    for index in range(400):
        suite[index]
    # Twenty times what was measured: machines differ, orders of magnitude do not.
    assert made - start < 2e-2
    assert time.perf_counter() - made < 400 * 1e-3
