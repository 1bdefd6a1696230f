"""Accuracy: which questions are right, and their means in the groups of each benchmark.

The arithmetic is torchmetrics'; here is what counts as a question, as right, and as a group.
Common toolkits deviate from the official scores, and from each other, in exactly that:

* MLVU's M-Avg is the unweighted mean over the tasks that are there. (VLMEvalKit averages over
  questions; lmms-eval divides by 7 or 9 even if a task has no sample.)
* A question that counts in several groups (LVBench's capabilities) counts once in the overall
  accuracy; so does one with a duration and a category. (lmms-eval's LongVideoBench counts twice.)
* A reply that cannot be read is wrong. Nothing is guessed. (lmms-eval draws an option at random.)
* A question without an answer is wrong. The scripts of LVBench and NExT-GQA leave out what has no
  prediction, so the accuracy among the answered is reported beside, overall and by group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.controls import record_key, rotation_of
from gym_longvideo.lenient import read_choice
from gym_longvideo.record import EpisodeRecord

Groups = Callable[[Mapping[str, Any]], Mapping[str, Sequence[str]]]


@dataclass(frozen=True)
class Question:
    """A question with the episodes that asked it: one, or one a rotation (circular control).

    Attributes:
        task_id: Of the question, without rotation.
        video_id: The cluster.
        task: ``EpisodeRecord.task`` of the first episode.
        records: The episodes, by rotation.
        complete: Whether every rotation is there.
    """

    task_id: str
    video_id: str
    task: Mapping[str, Any]
    records: tuple[EpisodeRecord, ...]
    complete: bool

    @property
    def scored(self) -> bool:
        """Whether it can be right or wrong: its answer is known and all rotations were played."""
        return self.task["answer_index"] is not None and self.complete

    @property
    def right(self) -> bool:
        """Whether every episode ended with the right answer, strictly read."""
        return all(record.outcome == "correct" for record in self.records)

    @property
    def lenient_right(self) -> bool:
        """The same as a forgiving parser reads the last replies."""
        return all(lenient_right(record) for record in self.records)

    @property
    def answered(self) -> bool:
        """Whether every episode ended with an answer."""
        return all(is_answered(record) for record in self.records)

    @property
    def chance(self) -> float:
        """Chance that even guesses are right."""
        return math.prod(1 / len(record.task["options"]) for record in self.records)


def questions(records: Iterable[EpisodeRecord]) -> list[Question]:
    """Return the questions of episodes, by task_id: the order of episodes moves no number.

    Raises:
        ValueError: If an episode is given twice, or is a fault or unfinished.
    """
    played: dict[str, dict[int | None, EpisodeRecord]] = {}
    for record in records:
        task_id, rotation = rotation_of(record)
        if record.outcome in ("", "infra_error"):
            raise ValueError(
                f"episode {task_id!r} has outcome {record.outcome!r}: a fault is no result; leave "
                "such records out"
            )
        rotations = played.setdefault(task_id, {})
        if rotation in rotations:
            raise ValueError(f"episode {record_key(record)!r} is recorded twice")
        rotations[rotation] = record
    found = []
    for task_id, rotations in sorted(played.items()):
        ordered = tuple(
            rotations[i] for i in sorted(rotations, key=lambda i: -1 if i is None else i)
        )
        task = ordered[0].task
        complete = None in rotations or set(rotations) == set(range(len(task["options"])))
        found.append(Question(task_id, str(task["video_id"]), task, ordered, complete))
    return found


def lenient_right(record: EpisodeRecord) -> bool:
    """Return whether a forgiving parser reads the right answer in the last reply.

    The reply itself is read, so that runs of every version are read alike. Numeric episodes have no
    replies: there the strict outcome stands.
    """
    last = record.turns[-1] if record.turns else {}
    if "reply" not in last or last["op"] == "answer":
        return record.outcome == "correct"
    choice = read_choice(last["reply"], record.task["options"])
    expected = record.task["answer_index"]
    return expected is not None and choice == expected


def is_answered(record: EpisodeRecord) -> bool:
    """Return whether an episode ended with an answer, right or not."""
    return record.outcome in ("correct", "wrong", "unscored")


def mean(values: Any, weights: Any = None) -> float | None:
    """Return a (weighted) mean in double precision; ``None`` if there is nothing to average."""
    import torch
    from torchmetrics.aggregation import MeanMetric

    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    if not weights.sum() > 0:
        return None
    metric = MeanMetric(nan_strategy="error").set_dtype(torch.float64)
    metric.update(torch.from_numpy(values), torch.from_numpy(weights))
    return metric.compute().item()


def membership(
    asked: Sequence[Question], groups: Groups | None
) -> dict[str, dict[str, np.ndarray]]:
    """Return (n,) bool masks by grouping and value.

    Values stand in the order of numbers if they are numbers, else as they first appear.

    Args:
        asked: n questions.
        groups: ``Dataset.groups``; ``None`` groups by task type alone.

    Raises:
        ValueError: If a question cannot be grouped, naming it.
    """
    groups = groups or by_task_type
    masks: dict[str, dict[str, np.ndarray]] = {}
    for i, question in enumerate(asked):
        try:
            found = groups(question.task)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"question {question.task_id!r} cannot be grouped ({type(error).__name__}: "
                f"{error}); is this the right benchmark for its records?"
            ) from error
        for name, values in found.items():
            for value in values:
                mask = masks.setdefault(name, {}).setdefault(str(value), np.zeros(len(asked), bool))
                mask[i] = True
    return {name: dict(sorted(of.items(), key=_numbers_first(of))) for name, of in masks.items()}


def by_task_type(task: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the groups of a task of no published benchmark."""
    return {"task_type": tuple(task["task_types"])} if task["task_types"] else {}


def accuracy(
    asked: Sequence[Question], *, lenient: bool = False, skip_unanswered: bool = False
) -> float | None:
    """Return the share of scored questions that are right; ``None`` without any.

    Args:
        asked: Questions; unscored ones do not count.
        lenient: Read the last replies forgivingly.
        skip_unanswered: Leave unanswered questions out, as LVBench's own script does.
    """
    right, scored, answered = outcomes(asked, lenient=lenient)
    return mean(right, scored & answered if skip_unanswered else scored)


def accuracy_by_group(
    asked: Sequence[Question], groups: Groups | None, *, lenient: bool = False
) -> dict[str, dict[str, float]]:
    """Return the accuracy of every group that has a scored question."""
    right, scored, _ = outcomes(asked, lenient=lenient)
    shares = {
        name: {value: mean(right, mask & scored) for value, mask in of.items()}
        for name, of in membership(asked, groups).items()
    }
    return {
        name: {value: share for value, share in of.items() if share is not None}
        for name, of in shares.items()
    }


def overall_accuracy(
    asked: Sequence[Question],
    groups: Groups | None = None,
    overall: str = "micro",
    *,
    lenient: bool = False,
) -> float | None:
    """Return the official overall accuracy.

    Args:
        asked: Questions.
        groups: ``Dataset.groups``.
        overall: ``Dataset.overall``: "micro", or "macro:NAME" for the unweighted mean over the
            values of a grouping that have a scored question.
        lenient: Read the last replies forgivingly.

    Raises:
        ValueError: If ``overall`` names a grouping that no question has.
    """
    name = macro_group(overall)
    if name is None or not any(question.scored for question in asked):
        return accuracy(asked, lenient=lenient)
    found = accuracy_by_group(asked, groups, lenient=lenient)
    if name not in found:
        raise ValueError(f"overall={overall!r}, but the questions have the groups {sorted(found)}")
    return mean(list(found[name].values()))


def macro_group(overall: str) -> str | None:
    """Return the grouping of "macro:NAME", or ``None`` for "micro"."""
    kind, _, name = overall.partition(":")
    if overall == "micro":
        return None
    if kind != "macro" or not name:
        raise ValueError(f'overall={overall!r} is unknown; use "micro" or "macro:GROUP"')
    return name


def outcomes(
    asked: Sequence[Question], *, lenient: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (n,) bool: which questions are right, which are scored, which are answered."""
    right = [question.lenient_right if lenient else question.right for question in asked]
    scored = [question.scored for question in asked]
    answered = [question.answered for question in asked]
    return np.array(right, bool), np.array(scored, bool), np.array(answered, bool)


def area_under_curve(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return the area under a curve with x scaled to 0..1: the mean height of the curve.

    Trapezoids; ``None`` for fewer than two different x.

    >>> area_under_curve([32, 8, 16], [0.6, 0.4, 0.5])  # 1/3 * 0.45 + 2/3 * 0.55
    0.5166666666666667
    """
    if len(set(x)) < 2:
        return None
    import torch
    from torchmetrics.utilities.compute import auc

    scaled = (np.array(x, np.float64) - min(x)) / (max(x) - min(x))
    return auc(torch.from_numpy(scaled), torch.tensor(y, dtype=torch.float64), reorder=True).item()


def _numbers_first(values: Iterable[str]) -> Callable[[tuple[str, Any]], float]:
    place = {value: i for i, value in enumerate(values)}
    whole = all(value.isdecimal() for value in place)
    return lambda item: float(item[0]) if whole else place[item[0]]
