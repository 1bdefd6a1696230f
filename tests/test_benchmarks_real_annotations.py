"""Adapters on the published annotation itself (skipped where the files are absent).

The files may not be redistributed; GYM_LONGVIDEO_ANNOTATIONS names their directory.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

import benchmarks

ROOT = Path(
    os.environ.get("GYM_LONGVIDEO_ANNOTATIONS")
    or Path(__file__).parents[1] / "../shared/data/annotations"
)
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="no published annotation here")


def issues(suite):
    return Counter(issue for task in suite for issue in task.issues)


def kinds(suite):
    return Counter(invalid.kind for invalid in suite.invalid)


def with_issue(suite, issue):
    return [task.task_id for task in suite if issue in task.issues]


def test_mlvu_dev():
    suite = benchmarks.load_suite("mlvu", split="dev", root=ROOT / "mlvu" / "dev")
    assert (suite.rows, len(suite), suite.max_options) == (2175, 2174, 4)
    assert kinds(suite) == {"blank_question": 1}
    assert "7_topic_reasoning.json, record 26" in suite.invalid[0].place
    assert Counter(task.task_types for task in suite) == {
        ("plotQA",): 539,
        ("needle",): 355,
        ("ego",): 352,
        ("count",): 206,
        ("order",): 259,
        ("anomaly_reco",): 200,
        ("topic_reasoning",): 263,
    }
    assert len({task.video for task in suite}) == 1242
    assert len({task.video_id for task in suite}) == 1122
    durations = [task.duration_s for task in suite]
    assert (min(durations), round(max(durations))) == (180.0, 32550)
    # 16 with the blank question.
    assert issues(suite) == {
        "duplicate_options": 15,
        "ambiguous_answer_text": 5,
        "answer_repaired": 2,
    }
    assert with_issue(suite, "answer_repaired") == ["needle_34", "needle_338"]
    assert [suite[suite.index_of(f"needle_{i}")].answer_index for i in (34, 338)] == [1, 3]
    assert with_issue(suite, "ambiguous_answer_text") == [
        "plotQA_335",
        "plotQA_387",
        "plotQA_493",
        "anomaly_reco_66",
        "topic_reasoning_163",
    ]


def test_mlvu_test():
    suite = benchmarks.load_suite("mlvu", root=ROOT / "mlvu" / "test")
    assert (suite.rows, len(suite), suite.max_options) == (502, 502, 6)
    assert len({task.video_id for task in suite}) == 349
    assert Counter(task.task_types[0] for task in suite) == {
        "topic_reasoning": 91,
        "order": 70,
        "needleQA": 60,
        "count": 60,
        "ego": 53,
        "plotQA": 50,
        "tutorialQA": 43,
        "anomaly_reco": 39,
        "sportsQA": 36,
    }
    answers = Counter(task.answer_index for task in suite)
    assert answers[4] == answers[5] == 82
    assert issues(suite) == {"duplicate_options": 4}
    assert all(task.task_id.startswith("AR_") for task in suite if task.issues)
