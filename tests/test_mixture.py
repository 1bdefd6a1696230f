"""Several suites as one: which tasks an epoch has, and what may not be in it."""

import json
from collections import Counter
from pathlib import Path

import gymnasium as gym
import pytest

from agents.config import PAPER_FILTER, TrainConfig, make_train_config
from agents.evaluation import check_held_out
from benchmarks.evaluate import suite_to_play
from gym_longvideo.mixture import MixtureSuite
from gym_longvideo.suite import Suite, load_suite, named_split, parts_of

HAYSTACK = {"size": 4, "families": "needle", "duration_s": 60}


def annotation(path: Path, count: int, prefix: str = "v", split: str = "") -> str:
    """Write an annotation of so many questions, each about a video of its own; return its path."""
    lines = [
        {"id": f"q{i}", "video": f"{prefix}{i}.mp4", "question": f"Which of {i}?",
         "options": ["x", "y"], "answer": "A", **({"split": split} if split else {})}
        for i in range(count)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def loaded(path: Path, count: int, prefix: str = "v") -> Suite:
    return load_suite(annotation(path, count, prefix), split="train")


def test_a_mixture_has_the_tasks_of_its_parts_under_names_of_their_own(tmp_path):
    parts = {"a": loaded(tmp_path / "a.jsonl", 2), "b": loaded(tmp_path / "b.jsonl", 3)}
    suite = MixtureSuite(parts)
    assert isinstance(suite, Suite) and suite.name == "a,b" and suite.split == "train,train"
    ids = [suite[i].task_id for i in range(len(suite))]
    assert ids == ["a/q0", "a/q1", "b/q0", "b/q1", "b/q2"]
    assert [suite.index_of(each) for each in ids] == [0, 1, 2, 3, 4]
    for wrong in ("q0", "a/q2", "c/q0"):
        with pytest.raises(KeyError):
            suite.index_of(wrong)
    with pytest.raises(IndexError, match="5 is outside"):
        suite[5]


@pytest.mark.parametrize(
    ("weight", "wanted"), [(1, {1: 8}), (3, {3: 8}), (0.5, {1: 4}), (1.25, {1: 6, 2: 2})]
)
def test_a_weight_says_how_often_an_epoch_has_each_task(tmp_path, weight, wanted):
    parts = {"a": loaded(tmp_path / "a.jsonl", 8), "b": loaded(tmp_path / "b.jsonl", 2)}
    suite = MixtureSuite(parts, {"a": weight})
    found = Counter(suite[i].task_id for i in range(len(suite)))
    assert Counter(n for task, n in found.items() if task.startswith("a/")) == wanted
    assert all(n == 1 for task, n in found.items() if task.startswith("b/"))
    again = MixtureSuite(parts, {"a": weight})
    assert [again[i].task_id for i in range(len(again))] == [
        suite[i].task_id for i in range(len(suite))
    ]
    assert all(suite[suite.index_of(task)].task_id == task for task in found)


def test_weights_that_mean_nothing_are_refused(tmp_path):
    parts = {"a": loaded(tmp_path / "a.jsonl", 2)}
    with pytest.raises(ValueError, match="'b'"):
        MixtureSuite(parts, {"b": 1})
    for weight in (0, -1, float("nan"), "1"):
        with pytest.raises(ValueError, match=r"weights\['a'\]"):
            MixtureSuite(parts, {"a": weight})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="leaves none of its 2 tasks"):
        MixtureSuite(parts, {"a": 0.1})
    with pytest.raises(ValueError, match="at least one"):
        MixtureSuite({})


def test_names_with_commas_are_one_suite_and_each_part_has_its_own_split(tmp_path):
    mine = annotation(tmp_path / "mine.jsonl", 3)
    options = {"weights": {"haystack": 2}, "haystack": HAYSTACK}
    suite = load_suite(f"haystack:val, {mine}", options=options)
    assert isinstance(suite, MixtureSuite)
    assert suite.split == "val,train" and len(suite) == 2 * 4 + 3
    env = gym.make(
        "gym_longvideo:LongVideoQA-v0",
        suite=f"haystack:val,{mine}",
        suite_options={"haystack": HAYSTACK},
        frame_size=8,
    )
    _, info = env.reset(options={"index": 1}, seed=0)
    assert info["task_id"].startswith("haystack/")
    env.close()


def test_a_path_with_a_comma_stays_a_path(tmp_path):
    path = annotation(tmp_path / "a,b.jsonl", 2)
    assert parts_of(path) == [path] and len(load_suite(path)) == 2
    assert named_split("nextgqa:val,mlvu") == ("nextgqa:val,mlvu", None)


def test_wrong_mixtures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="names 'haystack' twice"):
        load_suite("haystack:train,haystack:val")
    with pytest.raises(ValueError, match="must map names to values"):
        load_suite("haystack,mlvu", options={"haystack": 3})
    with pytest.raises(ValueError, match="unknown"):
        load_suite("haystack,no_such_suite")


def test_an_evaluation_on_videos_that_are_trained_on_is_refused_by_name(tmp_path):
    one, other = loaded(tmp_path / "a.jsonl", 3), loaded(tmp_path / "b.jsonl", 5)
    apart = loaded(tmp_path / "c.jsonl", 2, prefix="w")
    with pytest.raises(ValueError, match=r"3 of the 5 videos .*\(b:train\).*v0.mp4, v1.mp4, v2"):
        check_held_out(MixtureSuite({"a": one, "c": apart}), other, {})
    check_held_out(MixtureSuite({"a": one, "b": other}), apart, {})
    check_held_out(one, other, {"split_by": "none"})
    check_held_out(load_suite("haystack", options=HAYSTACK), one, {})


def test_the_papers_training_names_its_parts_its_filter_and_what_is_held_out():
    config = make_train_config(
        "paper",
        suite="nextgqa:val,qvhighlights_segments:train",
        eval_suite="nextgqa:test",
        root="DATA",
        suite_options={"weights": {"nextgqa": 2}},
    )
    trained, held = config.suite_of(config.split), config.eval_suite_of()
    assert trained["suite"] == "nextgqa:val,qvhighlights_segments:train"
    assert trained["suite_options"] == {"root": "DATA", **PAPER_FILTER, "weights": {"nextgqa": 2}}
    assert held == {"suite": "nextgqa", "split": "test", "suite_options": {"root": "DATA"}}
    assert TrainConfig.from_json(config.to_json()) == config
    plain = make_train_config("paper", model="tiny")
    assert "longer_than_s" not in plain.suite_of("train")["suite_options"]  # of haystack


def test_a_benchmark_that_is_trained_on_is_evaluated_on_another_split_or_suite():
    with pytest.raises(ValueError, match="trained and evaluated on"):
        TrainConfig(suite="nextgqa:val")
    assert TrainConfig(suite="nextgqa:val", eval_suite="nextgqa:test").eval_split == "test"


def test_mixtures_are_not_evaluated_but_their_parts_are(tmp_path):
    with pytest.raises(ValueError, match="mixes 2 suites, which is for training"):
        suite_to_play(f"haystack:val,{annotation(tmp_path / 'm.jsonl', 2)}")
