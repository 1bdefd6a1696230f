from __future__ import annotations

import copy
from typing import Any

import pytest

from agents.scripted import make_agent
from benchmarks.controls import ControlledSuite, chosen, control_settings, rotated, shuffled
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.suite import Suite
from gym_longvideo.task import Task
from gym_longvideo.video.errors import VideoNotFoundError

SUITE = HaystackSuite("val", size=20)
SMALL = {"frame_size": 28, "pool_size": 16, "frame_budget": 8}


def answer_text(task: Task) -> str:
    assert task.answer_index is not None
    return task.options[task.answer_index]


def test_a_controlled_suite_is_a_suite_and_its_indices_are_those_of_its_ids() -> None:
    for control in ("none", "shuffled", "circular"):
        suite = ControlledSuite(SUITE, control, indices=[3, 7])
        assert isinstance(suite, Suite)
        assert (suite.name, suite.split, suite.max_options) == ("haystack", "val", 4)
        assert len(suite) == (8 if control == "circular" else 2)
        assert [suite.index_of(key) for key in suite.keys()] == list(range(len(suite)))
        assert copy.deepcopy(suite) is suite
        for stranger in (len(suite), -1):
            with pytest.raises(IndexError, match=str(stranger)):
                suite[stranger]


@pytest.mark.parametrize("stranger", ["val-00004-count", "nobody", "val-00003-count@4", "@"])
@pytest.mark.parametrize("control", ["none", "circular"])
def test_an_id_that_is_not_played_is_named(control: str, stranger: str) -> None:
    with pytest.raises(KeyError, match=stranger):
        ControlledSuite(SUITE, control, indices=[3]).index_of(stranger)


def test_rotations_put_each_option_in_each_place_and_the_answer_moves_along() -> None:
    task = Task("a@1", "v.mp4", "Which?", ("w", "x", "y", "z"), 1, meta={"native": 5})
    turned = [rotated(task, rotation) for rotation in range(4)]
    assert [each.task_id for each in turned] == ["a@1@0", "a@1@1", "a@1@2", "a@1@3"]
    assert turned[1].options == ("x", "y", "z", "w") and turned[1].answer_index == 0
    assert turned[2].options == ("y", "z", "w", "x") and turned[2].answer_index == 3
    assert {answer_text(each) for each in turned} == {"x"}
    assert {each.options[0] for each in turned} == set("wxyz")
    assert turned[3].meta == {"native": 5, "circular": ["a@1", 3]}
    assert task.meta == {"native": 5} and turned[0].options == task.options


def test_repeated_option_texts_keep_the_letter_of_the_answer() -> None:
    task = Task("q", "v.mp4", "Which?", ("same", "same", "other"), 1)
    assert [rotated(task, rotation).answer_index for rotation in range(3)] == [1, 0, 2]
    order = shuffled(task).meta["shuffled"]
    assert order[shuffled(task).answer_index] == 1


def test_a_task_without_a_public_answer_stays_without() -> None:
    task = Task("q", "v.mp4", "Which?", ("x", "y"), None)
    assert rotated(task, 1).answer_index is None and shuffled(task).answer_index is None


def test_the_shuffle_is_the_same_everywhere_and_differs_by_task_and_seed() -> None:
    tasks = [Task(f"q{i}", "v.mp4", "Which?", tuple("uvwxyz"), 2) for i in range(30)]
    orders = [tuple(shuffled(task).meta["shuffled"]) for task in tasks]
    assert orders[0] == (0, 5, 2, 1, 4, 3)  # must never change
    assert len(set(orders)) > 25
    assert [tuple(shuffled(task, 1).meta["shuffled"]) for task in tasks] != orders
    for task in tasks:
        assert answer_text(shuffled(task)) == "w"
        assert sorted(shuffled(task).options) == list("uvwxyz")
    places = [shuffled(task).answer_index for task in tasks]
    assert set(places) == set(range(6))


def test_a_task_shuffled_twice_remembers_where_its_options_stood_at_first() -> None:
    task = Task("q", "v.mp4", "Which?", tuple("uvwxyz"), 2)
    twice = shuffled(shuffled(task, 1), 2)
    assert tuple(task.options[place] for place in twice.meta["shuffled"]) == twice.options
    assert twice.options != shuffled(task, 2).options


def test_the_oracle_answers_every_rotation_of_a_question() -> None:
    suite = ControlledSuite(SUITE, "circular", indices=range(4))
    env = LongVideoQAEnv(suite=suite, pool_size=128, frame_size=28)
    agent = make_agent("oracle")
    outcomes = []
    for index in range(len(suite)):
        observation, info = env.reset(options={"index": index})
        over = False
        while not over:
            observation, _, terminated, truncated, info = env.step(agent.act(env, observation))
            over = terminated or truncated
        outcomes.append(info["is_success"])
    assert len(outcomes) == 16 and sum(outcomes) >= 12
    for question in range(4):
        assert len({*outcomes[4 * question : 4 * question + 4]}) == 1


def test_a_suite_that_looks_its_own_ids_up_meets_only_its_own_ids() -> None:
    class Picky(HaystackSuite):
        def open_video(self, task: Task, *, backend: str = "pyav", isolate: bool = False):
            self.index_of(task.task_id)
            return super().open_video(task, backend=backend, isolate=isolate)

    suite = ControlledSuite(Picky("val", size=2), "circular")
    assert suite.open_video(suite[5]).info.duration_s == 600.0
    with pytest.raises(VideoNotFoundError):
        ControlledSuite(SUITE).open_video(HaystackSuite("test")[0])


def test_blind_shows_nothing_and_single_frame_one_frame_in_the_only_turn() -> None:
    for control, frames in (("blind", 0), ("single_frame", 1)):
        for given in (SMALL, {"frame_budget": None, "overview_frames": 4, "pool_size": 16}):
            env = LongVideoQAEnv(suite=SUITE, **control_settings(control, given))
            _, info = env.reset(options={"index": 0})
            assert info["frames_shown"] == frames and env.max_turns == 1
            assert not env.action_masks()[0]
    assert env.settings["overview_frames"] == 1
    env.reset(options={"index": 0})
    assert env.record.overview["frame_index"] == [8]  # the middle of 16


def test_controls_of_options_leave_the_settings_alone() -> None:
    for control in ("none", "shuffled", "circular"):
        assert control_settings(control, SMALL) == SMALL
    for make in (lambda: control_settings("deaf", {}), lambda: ControlledSuite(SUITE, "deaf")):
        with pytest.raises(ValueError, match="'deaf' is unknown; use one of"):
            make()


def test_fewer_episodes_are_a_part_of_more_and_in_the_order_of_the_suite() -> None:
    few, more = chosen(SUITE, 5), chosen(SUITE, 12)
    assert len(few) == 5 and set(few) < set(more) and more == sorted(more)
    assert chosen(SUITE, 5) == few != chosen(SUITE, 5, seed=1)
    assert chosen(SUITE, None) == chosen(SUITE, 20) == list(range(20))
    for wrong in (0, -1, True, 2.5):
        with pytest.raises(ValueError, match="episodes="):
            chosen(SUITE, wrong)  # type: ignore[arg-type]


def test_more_episodes_than_there_are_questions_are_refused_with_the_way_to_get_them() -> None:
    says = r"episodes=21 are more than the 20 questions of haystack, split 'val'.*\{\"size\": 21\}"
    with pytest.raises(ValueError, match=says):
        chosen(SUITE, 21)

    fixed = HaystackSuite("val", size=20)
    vars(fixed)["name"] = "fixed"
    with pytest.raises(ValueError, match="20 questions of fixed") as caught:
        chosen(fixed, 1000)
    assert "size" not in str(caught.value)  # nothing that this suite would take


def test_what_the_suite_says_of_itself_is_passed_on() -> None:
    inner = HaystackSuite("val", size=2)
    told: dict[str, Any] = {"options": {"where": 1}, "annotation_digests": {"a": "0123"}}
    vars(inner).update(told, dataset="its dataset")
    suite = ControlledSuite(inner, options={"families": "needle"})
    assert {name: getattr(suite, name) for name in told} == told
    assert suite.dataset == "its dataset"
    assert ControlledSuite(SUITE, options={"size": 20}).options == {"size": 20}
