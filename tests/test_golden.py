"""What was is: episodes, checkpoints and runs of earlier versions give what they gave then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_episodes import EPISODES, KINDS, episodes, golden

GOLDEN = Path(__file__).parent / "golden"


def test_two_hundred_episodes_are_what_they_were() -> None:
    before = golden()
    assert len(before) == EPISODES * len(KINDS) == 200
    for then, now in zip(before, episodes(), strict=True):
        assert now == then, then["kind"]


def test_the_golden_episodes_hold_every_outcome_and_every_sort_of_action() -> None:
    records = [episode["record"] for episode in golden()]
    turns = [turn for record in records for turn in record["turns"]]
    assert {record["outcome"] for record in records} == {"correct", "wrong", "unanswered"}
    assert {turn["op"] for turn in turns} == {"retrieve", "answer", "malformed"}
    assert len({turn["malformed"].partition(" ")[0] for turn in turns}) > 4


def test_runs_written_before_give_the_numbers_that_they_gave() -> None:
    pytest.importorskip("torchmetrics")
    from benchmarks.runs import read_run
    from benchmarks.scores.summary import summarize

    for name in ("run-trained", "run-tiny"):
        summary = json.loads((GOLDEN / name / "summary.json").read_text())
        found = json.loads(json.dumps(summarize(read_run(GOLDEN / name))))
        assert {key: found[key] for key in summary} == summary


def test_runs_written_before_still_compare() -> None:
    pytest.importorskip("torchmetrics")
    from benchmarks.compare import compare
    from benchmarks.runs import read_run

    before = json.loads((GOLDEN / "compare.json").read_text())
    now = compare(read_run(GOLDEN / "run-trained"), read_run(GOLDEN / "run-tiny"))
    assert json.loads(json.dumps(now)) == before
