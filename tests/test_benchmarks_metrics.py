"""Accuracy: every official score on a worked example, and where common toolkits deviate."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
from benchmark_records import marks, record

from benchmarks import find_dataset
from benchmarks.controls import record_key
from benchmarks.scores.questions import (
    accuracy,
    accuracy_by_group,
    area_under_curve,
    mean,
    membership,
    overall_accuracy,
    questions,
)

MLVU_DEV = ("plotQA", "findNeedle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
MLVU_TEST = (*MLVU_DEV[2:], "needleQA", "plotQA", "tutorialQA", "sportsQA")


def by_task(task):
    return {"task_type": tuple(task["task_types"])}


def mlvu(scores):
    """Questions of each task from its marks."""
    return questions(
        record
        for name, pattern in scores.items()
        for record in marks(pattern, f"{name}_", types=(name,))
    )


def test_accuracy_is_the_share_of_right_answers():
    asked = questions(marks("1101"))
    assert accuracy(asked) == 0.75
    # The same from the choices themselves, as torchmetrics counts them.
    from torchmetrics.functional.classification import multiclass_accuracy

    choices = torch.tensor([question.records[0].turns[-1]["choice"] for question in asked])
    truth = torch.tensor([question.task["answer_index"] for question in asked])
    assert multiclass_accuracy(choices, truth, num_classes=4, average="micro").item() == 0.75


def test_without_questions_there_is_no_accuracy():
    assert accuracy([]) is None
    assert overall_accuracy([], by_task, "macro:task_type") is None
    assert accuracy_by_group([], None) == {}


@pytest.mark.parametrize(("tasks", "split"), [(MLVU_DEV, "dev"), (MLVU_TEST, "test")])
def test_m_avg_of_mlvu_is_the_unweighted_mean_over_its_tasks(tasks, split):
    assert len(tasks) == {"dev": 7, "test": 9}[split]
    # The first task has eight questions and none right, each other one question, right.
    asked = mlvu({tasks[0]: "00000000", **dict.fromkeys(tasks[1:], "1")})
    others = len(tasks) - 1
    m_avg = overall_accuracy(asked, by_task, "macro:task_type")
    assert m_avg == pytest.approx(others / (others + 1))
    # VLMEvalKit calls the mean over questions M-Avg: another number.
    micro = overall_accuracy(asked, by_task, "micro")
    assert micro == pytest.approx(others / (others + 8))


def test_m_avg_of_mlvu_divides_by_the_tasks_that_are_there():
    asked = mlvu({"plotQA": "1100", "count": "1"})
    assert overall_accuracy(asked, by_task, "macro:task_type") == 0.75
    # lmms-eval divides by seven although five tasks have no sample: 1.5 / 7.
    assert overall_accuracy(asked, by_task, "macro:task_type") != pytest.approx(1.5 / 7)


def test_a_task_whose_questions_are_all_unscored_is_not_in_the_macro_mean():
    asked = [*mlvu({"plotQA": "10"}), *questions(marks("11", "x", expected=None, types=("ego",)))]
    assert overall_accuracy(asked, by_task, "macro:task_type") == 0.5


def test_a_question_of_lvbench_counts_in_each_of_its_capabilities_and_once_overall():
    asked = questions(
        [
            record("1", 0, types=("entity recognition", "reasoning")),
            record("2", 1, types=("reasoning",)),
            record("3", 1, types=("entity recognition", "reasoning", "summarization")),
        ]
    )
    assert accuracy_by_group(asked, by_task) == {
        "task_type": {
            "entity recognition": 1 / 2,
            "reasoning": pytest.approx(1 / 3),
            "summarization": 0.0,
        }
    }
    # Over labels it would be 2 / 6.
    assert overall_accuracy(asked, by_task) == pytest.approx(1 / 3)


def test_unanswered_questions_are_wrong_unless_they_are_skipped_as_lvbench_does():
    asked = questions(marks("110-"))
    assert accuracy(asked) == 0.5
    assert accuracy(asked, skip_unanswered=True) == pytest.approx(2 / 3)
    assert mean([question.answered for question in asked]) == 0.75


def test_longvideobench_counts_a_question_once_although_it_has_a_duration_and_a_category():
    def groups(task):
        return {
            "duration_group": (str(task["meta"]["duration_group"]),),
            "question_category": (task["meta"]["question_category"],),
        }

    rows = [(15, "S2E", 0), (60, "S2E", 1), (600, "TOS", 0), (3600, "TOS", 0), (3600, "S2E", 1)]
    asked = questions(
        record(str(i), choice, meta={"duration_group": group, "question_category": category})
        for i, (group, category, choice) in enumerate(rows)
    )
    found = accuracy_by_group(asked, groups)
    assert found["duration_group"] == {"15": 1.0, "60": 0.0, "600": 1.0, "3600": 0.5}
    assert list(found["duration_group"]) == ["15", "60", "600", "3600"]  # as numbers
    assert found["question_category"] == {"S2E": pytest.approx(1 / 3), "TOS": 1.0}
    assert overall_accuracy(asked, groups) == 0.6
    # lmms-eval counts each question once per grouping: num would be 10.
    masks = membership(asked, groups)
    assert sum(mask.sum() for of in masks.values() for mask in of.values()) == 2 * len(asked)


def test_nextgqa_scores_questions_of_type_tp_as_tn():
    asked = questions(
        record(str(i), choice, types=(kind,))
        for i, (kind, choice) in enumerate([("TN", 0), ("TP", 1), ("TP", 0), ("CW", 1)])
    )
    nextgqa = find_dataset("nextgqa")
    found = accuracy_by_group(asked, nextgqa.groups)["task_type"]
    assert found == {"TN": pytest.approx(2 / 3), "CW": 0.0}
    assert overall_accuracy(asked, nextgqa.groups, nextgqa.overall) == 0.5


def test_the_adapter_of_mlvu_asks_for_its_m_avg():
    asked = mlvu({"plotQA": "0001", "count": "11", "ego": "1"})
    official = overall_accuracy(asked, find_dataset("mlvu").groups, find_dataset("mlvu").overall)
    assert official == pytest.approx((0.25 + 1 + 1) / 3)


def test_videomme_has_four_groupings():
    videomme = find_dataset("videomme")

    def asked_about(i, duration, domain, sub_category, task_type, choice):
        meta = {"duration_group": duration, "domain": domain, "sub_category": sub_category}
        return record(f"00{i}-1", choice, types=(task_type,), meta=meta)

    asked = questions(
        [
            asked_about(1, "short", "Knowledge", "Astronomy", "Counting Problem", 0),
            asked_about(2, "short", "Knowledge", "Law", "OCR Problems", 1),
            asked_about(3, "long", "Sports", "Football", "Counting Problem", 0),
        ]
    )
    assert accuracy_by_group(asked, videomme.groups) == {
        "duration": {"short": 0.5, "long": 1.0},
        "domain": {"Knowledge": 0.5, "Sports": 1.0},
        "sub_category": {"Astronomy": 1.0, "Law": 0.0, "Football": 1.0},
        "task_type": {"Counting Problem": 1.0, "OCR Problems": 0.0},
    }
    assert overall_accuracy(asked, videomme.groups, videomme.overall) == pytest.approx(2 / 3)


def test_a_reply_that_nobody_can_read_is_wrong_and_never_a_guess():
    # lmms-eval draws an option: over 400 questions it would score about 0.25.
    records = marks("-" * 400, reply="I cannot tell.", lenient_choice=-1)
    asked = questions(records)
    assert accuracy(asked) == 0.0
    assert accuracy(asked, lenient=True) == 0.0


def test_strict_and_lenient_parse_stand_side_by_side():
    asked = questions(
        [
            record("a", None, reply="The answer is A.", lenient_choice=0),  # forgiven, and right
            record("b", None, reply="The answer is B.", lenient_choice=1),  # forgiven, and wrong
            record("c", 0, reply="<think></think><answer>A</answer>", lenient_choice=0),
            record("d", 0),  # the numeric view has no replies: the strict outcome stands
        ]
    )
    assert accuracy(asked) == 0.5
    assert accuracy(asked, lenient=True) == 0.75


def test_questions_without_a_public_answer_are_not_scored_even_if_unanswered():
    asked = questions(marks("1-", expected=None))
    assert [question.scored for question in asked] == [False, False]
    assert accuracy(asked) is None


def rotations(task_id, choices, options=3):
    """The right option wanders: it is option r in rotation r."""
    return [
        record(
            f"{task_id}@{r}",
            choice,
            expected=r,
            video=task_id,
            options=options,
            meta={"circular": [task_id, r]},
        )
        for r, choice in enumerate(choices)
        if choice != "fault"
    ]


def test_under_the_circular_control_a_question_is_right_only_if_every_rotation_is():
    asked = questions([*rotations("sure", [0, 1, 2]), *rotations("always a", [0, 0, 0])])
    assert [question.task_id for question in asked] == ["always a", "sure"]
    assert accuracy(asked) == 0.5
    assert [question.chance for question in asked] == [pytest.approx(1 / 27)] * 2


def test_a_question_that_lost_a_rotation_to_a_fault_is_not_scored():
    (question,) = questions(rotations("a", [0, "fault", 2]))
    assert not question.complete and not question.scored
    assert accuracy([question]) is None


def test_keys_name_the_rotation():
    assert record_key(record("a")) == "a"
    assert [record_key(r) for r in rotations("a", [0, 1, 2])] == ["a@0", "a@1", "a@2"]
    with pytest.raises(ValueError, match=r"'a': meta.circular=7 is not \[task_id, rotation\]"):
        record_key(record("a", meta={"circular": 7}))


def test_the_order_of_episodes_moves_nothing():
    records = marks("1011010", types=("a",))
    mixed = list(records)
    random.Random(1).shuffle(mixed)
    assert questions(mixed) == questions(records)


def test_an_episode_counts_once_and_a_fault_never():
    with pytest.raises(ValueError, match="'q0' is recorded twice"):
        questions([*marks("1"), *marks("0")])
    for outcome in ("infra_error", ""):
        broken = dataclasses.replace(record("bad"), outcome=outcome)
        with pytest.raises(ValueError, match=f"'bad' has outcome '{outcome}'"):
            questions([broken])


def test_a_question_that_cannot_be_grouped_is_named():
    def groups(task):
        return {"duration": (task["meta"]["duration"],)}

    with pytest.raises(ValueError, match=r"'q0' cannot be grouped \(KeyError: 'duration'"):
        accuracy_by_group(questions(marks("1")), groups)


def test_an_overall_that_does_not_exist_is_refused():
    asked = mlvu({"plotQA": "1"})
    with pytest.raises(ValueError, match=r"overall='macro:level', but .* \['task_type'\]"):
        overall_accuracy(asked, by_task, "macro:level")
    with pytest.raises(ValueError, match="overall='median' is unknown"):
        overall_accuracy(asked, by_task, "median")


def test_means_are_taken_in_double_precision():
    assert mean([0.1, 0.2, 0.3, 0.4]) == pytest.approx(0.25, abs=1e-15)
    assert mean([1.0, 5.0], [3, 1]) == 2.0
    assert mean([]) is None
    assert mean([1.0], [0]) is None


def test_the_area_under_a_curve_is_its_mean_height():
    assert area_under_curve([8, 16, 64], [0.5, 0.5, 0.5]) == pytest.approx(0.5)
    # (8 / 56) * 0.45 + (48 / 56) * 0.6
    expected = 8 / 56 * 0.45 + 48 / 56 * 0.6
    assert area_under_curve([64, 8, 16], [0.7, 0.4, 0.5]) == pytest.approx(expected, abs=1e-12)
    assert area_under_curve([8], [0.5]) is None
    assert area_under_curve([8, 8], [0.5, 0.6]) is None
    assert not math.isnan(area_under_curve([8, 8, 9], [0.5, 0.6, 0.7]))
