"""Compare two runs question by question, or merge the parts of one.

    longvideo compare RUN_A RUN_B --across settings.max_turns
    longvideo compare RUN RUN_SHUFFLED --across control

Only the policy may differ, and the knobs that are named; "control" stands for all that follows from
a control, and the questions must then be the same but for the order of their options. A difference
is B - A over the questions that both have; its 95 % interval comes from resampling videos, so that
it holds although questions about one video are alike. The p-value of the discordant pairs (exact
McNemar) stands beside as an extra: it takes questions for independent.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.card import Card, CardMismatch, require_same
from benchmarks.controls import as_annotated, control_knobs, record_key
from benchmarks.datasets.dataset import Dataset
from benchmarks.registry import dataset_of
from benchmarks.scores.bootstrap import mcnemar
from benchmarks.scores.questions import Question, questions
from benchmarks.scores.summary import Results, RunLike, Sheet
from benchmarks.suite import VIDEO_BYTES
from gym_longvideo.command import as_command, check_directory
from gym_longvideo.record import EpisodeRecord

FORMAT = 1
VIDEOS = "videos"  # stands in ``across`` for video files of another size
CONTROL = "control"  # stands in it for all that follows from a control, too
_WITHIN = (-1.0, 1.0)


def compare(
    a: RunLike,
    b: RunLike,
    dataset: Dataset | None = None,
    *,
    across: Sequence[str] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two runs on the questions that both have scored.

    Returns:
        "a", "b" (policy and hash), "across" (knob -> its two values), "questions", "only_a",
        "only_b" (questions the other lacks), "other_videos" (questions whose video files are of
        another size), "videos"; "accuracy_a", "accuracy_b", "difference"
        (official overall), "difference_micro", "lenient_difference", each {"value", "low", "high"};
        "groups" of differences; "discordant" (questions that only one has right) and "mcnemar_p".

    Raises:
        CardMismatch: If knobs differ that ``across`` does not name.
        ValueError: If the runs have no scored question in common, were asked about other video
            files and ``across`` does not say "videos", or, where it says "control", if a question
            is another one.
    """
    varied = _varied((a.card, b.card), [knob for knob in across if knob != VIDEOS])
    asked_a = {question.task_id: question for question in questions(a.records) if question.scored}
    asked_b = {question.task_id: question for question in questions(b.records) if question.scored}
    common = [task_id for task_id in asked_a if task_id in asked_b]
    if not common:
        raise ValueError(
            f"the runs have no scored question in common ({len(asked_a)} and {len(asked_b)} "
            "scored); let both play the same tasks"
        )
    if CONTROL in across:
        _require_same_questions(a, b)
    others = [task_id for task_id in common if _other_video(asked_a[task_id], asked_b[task_id])]
    if others and VIDEOS not in across:
        raise ValueError(
            f"{len(others)} of {len(common)} questions were asked about other video files (the "
            f"first: {others[0]}: {_bytes(asked_a[others[0]])} and {_bytes(asked_b[others[0]])} "
            f"bytes); play both runs on the same files, or pass across={VIDEOS!r}"
        )
    groups, overall = (dataset.groups, dataset.overall) if dataset else (None, "micro")
    sheets = [
        Sheet([asked[i] for i in common], groups, overall, resamples=resamples, seed=seed)
        for asked in (asked_a, asked_b)
    ]
    sheet_a, sheet_b = sheets
    gain = sheet_b.right.astype(float) - sheet_a.right
    lenient_gain = sheet_b.lenient.astype(float) - sheet_a.lenient
    only_a, only_b = int((gain < 0).sum()), int((gain > 0).sum())
    return {
        "format": FORMAT,
        "a": {"policy": dict(a.card.policy), "hash": a.card.hash},
        "b": {"policy": dict(b.card.policy), "hash": b.card.hash},
        "across": {knob: [_named(value) for value in values] for knob, values in varied.items()},
        "questions": len(common),
        "only_a": len(asked_a) - len(common),
        "only_b": len(asked_b) - len(common),
        "other_videos": len(others),
        "videos": sheet_a.bootstrap.clusters,
        "accuracy_a": sheet_a.overall(sheet_a.right),
        "accuracy_b": sheet_b.overall(sheet_b.right),
        "difference": sheet_a.overall(gain, within=_WITHIN),
        "difference_micro": sheet_a.estimate(gain, within=_WITHIN),
        "lenient_difference": sheet_a.overall(lenient_gain, within=_WITHIN),
        "groups": sheet_a.by_group(gain, within=_WITHIN),
        "discordant": {"only_a": only_a, "only_b": only_b},
        "mcnemar_p": mcnemar(only_a, only_b),
    }


def _varied(cards: Sequence[Card], across: Sequence[str]) -> dict[str, list[Any]]:
    """Return the knobs that may and do differ, or refuse."""
    if CONTROL in across:
        following = control_knobs(card.protocol for card in cards)
        try:
            require_same(cards)
        except CardMismatch as error:
            across = [*across, *sorted(following & error.knobs.keys())]
    try:
        return require_same(cards, across=across)
    except CardMismatch as error:
        if CONTROL not in error.knobs:
            raise
        advice = f"{CONTROL!r} stands for all that follows from a control"
        raise CardMismatch(f"{error}\n{advice}", error.knobs) from None


def _require_same_questions(a: RunLike, b: RunLike) -> None:
    """Refuse runs of other questions, where controls have made the digests differ."""
    asked_a, asked_b = (
        {question.task_id: question.records[0] for question in questions(run.records)}
        for run in (a, b)
    )
    if (lone := asked_a.keys() ^ asked_b.keys()) and _complete(a) and _complete(b):
        raise ValueError(
            f"the runs put other questions: {len(lone)} are in one of them alone (the first: "
            f"{min(lone)!r}); play both over one annotation"
        )
    for task_id in sorted(asked_a.keys() & asked_b.keys()):
        one, other = as_annotated(asked_a[task_id]), as_annotated(asked_b[task_id])
        for name, value in one.items():
            if value != other[name]:
                raise ValueError(
                    f"question {task_id!r} is another one in the second run ({name}: {value!r} and "
                    f"{other[name]!r}); play both over one annotation"
                )


def _complete(run: RunLike) -> bool:
    return len(run.records) == run.card.protocol["suite"].get("tasks")


def _bytes(question: Question) -> Any:
    return question.task["meta"].get(VIDEO_BYTES)


def _other_video(a: Question, b: Question) -> bool:
    return None not in (_bytes(a), _bytes(b)) and _bytes(a) != _bytes(b)


def merge_runs(runs: Sequence[RunLike]) -> Results:
    """Return the runs as one: parts of one evaluation, played in several places.

    Raises:
        CardMismatch: If their cards differ in anything, naming it.
        ValueError: Without runs, or if two of them recorded an episode differently.
    """
    if not runs:
        raise ValueError("there is nothing to merge; name at least one run")
    require_same([run.card for run in runs], policy=True)
    records: dict[str, EpisodeRecord] = {}
    costs: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for record in run.records:
            key = record_key(record)
            if key in records and records[key].to_json() != record.to_json():
                raise ValueError(
                    f"episode {key!r} went differently in two runs of one card; a policy that is "
                    "not deterministic cannot be merged where parts overlap"
                )
            records.setdefault(key, record)
        for key, cost in run.costs.items():
            costs.setdefault(key, cost)
    faults = tuple(fault for run in runs for fault in run.faults)
    return Results(runs[0].card, tuple(records.values()), costs, faults)


def table(result: Mapping[str, Any]) -> str:
    """Return a comparison as text."""
    a, b = (result[side]["policy"].get("name", side) for side in "ab")
    lines = [f"A: {a} ({result['a']['hash']})", f"B: {b} ({result['b']['hash']})"]
    lines += [f"{knob}: {two[0]} in A, {two[1]} in B" for knob, two in result["across"].items()]
    lines.append(f"{result['questions']} questions about {result['videos']} videos")
    if result["other_videos"]:
        lines.append(f"{result['other_videos']} questions were asked about other video files")
    if result["only_a"] or result["only_b"]:
        lines.append(
            f"left out: {result['only_a']} that only A has, {result['only_b']} that only B has"
        )
    lines += ["", f"{'':28s}{'value':>8s}  95 % interval, clustered by video"]
    names = ("accuracy_a", "accuracy_b", "difference", "difference_micro", "lenient_difference")
    for label, name in zip(
        ("accuracy of A", "accuracy of B", "B - A", "B - A over questions", "B - A, lenient parse"),
        names,
        strict=True,
    ):
        lines.append(_line(label, result[name]))
    for grouping, rows in result["groups"].items():
        lines += ["", f"B - A by {grouping}"]
        lines += [f"{_line(f'  {group}', row)}  n={row['n']}" for group, row in rows.items()]
    pairs = result["discordant"]
    lines += [
        "",
        f"only A right: {pairs['only_a']}, only B right: {pairs['only_b']}; exact McNemar "
        f"p = {result['mcnemar_p']:.3g} (takes questions for independent)",
    ]
    return "\n".join(lines)


def _line(label: str, row: Mapping[str, Any]) -> str:
    return f"{label:28.28s}{row['value']:8.3f}  {row['low']:.3f} to {row['high']:.3f}"


def _named(value: Any) -> Any:
    """Return a knob's value, JSON-able: a card without the knob says so."""
    return value if isinstance(value, (str, int, float, list, dict, type(None))) else repr(value)


@dataclass(frozen=True)
class CompareConfig:
    """Which runs to compare.

    Attributes:
        run_a: Directory of run A.
        run_b: Directory of run B.
        across: Knobs that are meant to differ, e.g. settings.max_turns; "control" for all that
            follows from a control, "videos" for other files.
        out: Where to write the comparison as JSON.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """

    run_a: Path
    run_b: Path
    across: tuple[str, ...] = ()
    out: Path | None = None
    resamples: int = 2000
    seed: int = 0


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line; return the exit code."""
    from agents.command import parse
    from benchmarks.runs import read_run, write_json

    config = parse(CompareConfig, arguments, "compare", positional=True)
    if config.out is not None:
        check_directory(config.out.parent)
    a, b = read_run(config.run_a), read_run(config.run_b)
    result = compare(
        a,
        b,
        dataset_of(a.card),
        across=config.across,
        resamples=config.resamples,
        seed=config.seed,
    )
    print(table(result))
    if config.out is not None:
        write_json(config.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
