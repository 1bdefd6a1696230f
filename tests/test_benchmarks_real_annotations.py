"""Adapters on the published annotation itself (skipped where the files are absent).

The files may not be redistributed; GYM_LONGVIDEO_ANNOTATIONS names their directory.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from agents.config import PAPER_FILTER
from agents.evaluation import check_held_out
from benchmarks.suite import relevant_share
from gym_longvideo import suite as general

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


@pytest.mark.parametrize("name", ["lvb_val.json", "validation-00000-of-00001.parquet"])
def test_longvideobench(name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    suite = benchmarks.load_suite("longvideobench", annotation=ROOT / "longvideobench" / name)
    assert (suite.rows, len(suite), suite.invalid) == (1337, 1337, [])
    assert len({task.video for task in suite}) == len({task.video_id for task in suite}) == 753
    assert Counter(len(task.options) for task in suite) == {5: 983, 4: 353, 3: 1}
    groups = Counter(task.meta["duration_group"] for task in suite)
    assert groups == {15: 189, 60: 172, 600: 412, 3600: 564}
    assert len({task.task_types for task in suite}) == 17
    renamed = [task for task in suite if task.task_id.startswith("@")]
    assert len(renamed) == 135
    assert all(Path(task.video).stem.isdecimal() for task in renamed)
    assert sum(task.meta["starting_timestamp_for_subtitles"] != 0 for task in suite) == 250
    found = issues(suite)
    assert found.pop("duplicate_options") == 8
    if name.endswith(".json"):
        levels = Counter(task.meta["level"] for task in suite)
        assert levels == {"L1-Perception": 625, "L2-Relation": 712}
        assert with_issue(suite, "garbage_evidence_frames") == ["Z-1lgAXOEc8_0"]
        del found["garbage_evidence_frames"]
        for task in suite:
            if task.task_id != "Z-1lgAXOEc8_0":
                assert task.meta["evidence_frames"] == task.meta["position"]
                assert max(task.meta["position"]) <= 24.09 * (task.duration_s or 0)
    assert not found


def test_longvideobench_has_the_same_tasks_in_both_forms():
    pytest.importorskip("pyarrow")
    directory = ROOT / "longvideobench"
    suite = benchmarks.load_suite("longvideobench", annotation=directory / "lvb_val.json")
    again = benchmarks.load_suite(
        "longvideobench", annotation=directory / "validation-00000-of-00001.parquet"
    )
    for task, other in zip(suite, again, strict=True):
        mine, theirs = dict(task.__dict__), dict(other.__dict__)
        meta, rest = mine.pop("meta"), theirs.pop("meta")
        # Parquet lacks the positions, so also what is wrong with them.
        mine["issues"] = tuple(name for name in task.issues if "evidence" not in name)
        assert mine == theirs
        assert rest == {key: meta[key] for key in rest}


@pytest.mark.parametrize(
    ("split", "questions", "videos", "repaired", "narrow"),
    [("val", 3358, 567, 3, 2955), ("test", 5553, 990, 36, 4994)],
)
def test_nextgqa(split, questions, videos, repaired, narrow):
    suite = benchmarks.load_suite("nextgqa", split=split, root=ROOT / "nextgqa")
    assert (suite.rows, len(suite), suite.invalid) == (questions, questions, [])
    assert len({task.video_id for task in suite}) == videos
    assert all(task.segments_s and task.answer_index is not None for task in suite)
    assert {len(task.options) for task in suite} == {5}
    durations = [task.duration_s or 0 for task in suite]
    assert min(durations) >= 10 and max(durations) <= 180
    assert max(len(task.segments_s) for task in suite) <= 16
    assert Path(suite[0].video).parent.name.isdecimal()
    kinds_found = {task.task_types[0] for task in suite}
    assert kinds_found == {"CW", "CH", "TN", "TC", "TP"}
    groups = {suite.dataset.groups({**task.__dict__})["task_type"][0] for task in suite}
    assert groups == kinds_found - {"TP"}
    found = issues(suite)
    assert found["repaired_segments"] == len(with_issue(suite, "repaired_segments")) == repaired
    if split == "test":
        assert with_issue(suite, "ambiguous_answer_text") == ["3842638015_4"]
        assert found["duplicate_options"] == 3
    assert set(found) <= {
        "repaired_segments",
        "duplicate_options",
        "ambiguous_answer_text",
        "global_segment",
    }
    shares = [relevant_share(task) or 0 for task in suite]
    assert sum(share <= 0.5 for share in shares) == narrow
    assert sum(shares) / len(shares) == pytest.approx(0.19, abs=0.06)


def test_egoschema_early_questions():
    directory = ROOT / "egoschema"
    suite = benchmarks.load_suite(
        "egoschema", split="full", annotation=directory / "questions_v20_early.json"
    )
    assert (suite.rows, len(suite), suite.max_options) == (20, 20, 5)
    assert not suite.invalid and all(task.answer_index is None for task in suite)
    with pytest.raises(ValueError, match="none of 20 rows is usable"):
        benchmarks.load_suite(
            "egoschema", split="full", annotation=directory / "questions_v20_corrent_answer.json"
        )


def test_egoschema_subset_answers(tmp_path):
    answers = json.loads((ROOT / "egoschema" / "subset_answers.json").read_text("utf-8"))
    assert Counter(answers.values()) == {0: 101, 1: 108, 2: 91, 3: 83, 4: 117}
    # The final questions are not at hand: made-up ones under the real ids.
    options = {f"option {i}": f"thing {i}" for i in range(5)}
    rows = [{"q_uid": uid, "question": "What?", **options} for uid in answers]
    (tmp_path / "questions.json").write_text(json.dumps([*rows, {**rows[0], "q_uid": "other"}]))
    (tmp_path / "subset_answers.json").write_text(json.dumps(answers))
    suite = benchmarks.load_suite("egoschema", root=tmp_path)
    assert {task.task_id: task.answer_index for task in suite} == answers
    assert len(suite) == suite.dataset.splits["subset"].tasks == 500
    # Of the early questions none is in the subset: each answer is listed as having none.
    with pytest.raises(ValueError, match="500 are broken"):
        benchmarks.load_suite(
            "egoschema", annotation=ROOT / "egoschema" / "questions_v20_early.json"
        )


@pytest.mark.parametrize(
    ("split", "queries", "videos"),
    [("train", 7218, 7100), ("val", 1550, 1519), ("test", 1542, 1529)],
)
def test_qvhighlights(split, queries, videos):
    root = ROOT / "qvhighlights"
    suite = benchmarks.load_suite("qvhighlights_grounding", split=split, root=root)
    assert (suite.rows, len(suite), suite.invalid) == (queries, queries, [])
    assert len({task.video_id for task in suite}) == videos
    assert all(task.segments_s for task in suite)
    # No segment is repaired or dropped.
    assert set(issues(suite)) == {"global_segment"}
    assert sum(task.duration_s == 150 for task in suite) / queries > 0.96
    assert max(len(task.segments_s) for task in suite) <= 25
    shares = [relevant_share(task) or 0 for task in suite]
    narrow = sum(share <= 0.5 for share in shares)
    if split == "train":
        assert narrow / queries == pytest.approx(0.85, abs=0.01)
        assert sorted(shares)[queries // 2] == pytest.approx(0.20, abs=0.01)
        single = sum(len(task.segments_s) == 1 for task in suite)
        assert single / queries == pytest.approx(0.67, abs=0.01)

    choice = benchmarks.load_suite("qvhighlights_segments", split=split, root=root)
    found = kinds(choice)
    assert set(found) == {"mostly_relevant", "no_room"}
    assert found["mostly_relevant"] == queries - narrow
    assert len(choice) + len(choice.invalid) == queries
    assert {len(set(task.options)) for task in choice} == {4}
    answers = Counter(task.answer_index for task in choice)
    assert min(answers.values()) > 0.2 * len(choice)


def test_qvhighlights_test_split_without_segments():
    path = ROOT / "qvhighlights" / "highlight_test_release.jsonl"
    suite = benchmarks.load_suite("qvhighlights_grounding", split="test", annotation=path)
    assert len(suite) == 1542 and not any(task.segments_s for task in suite)


def test_what_stands_in_for_the_papers_training_questions():
    options = {"root": ROOT, **PAPER_FILTER}
    suite: Any = general.load_suite("nextgqa:val,qvhighlights_segments:train", options=options)
    assert {name: len(part) for name, part in suite.parts.items()} == {
        "nextgqa": 1901,
        "qvhighlights_segments": 4535,
    }
    check_held_out(suite, general.load_suite("nextgqa:test", options={"root": ROOT}), {})
    with pytest.raises(ValueError, match="videos that are evaluated on"):
        check_held_out(suite, general.load_suite("nextgqa:val", options={"root": ROOT}), {})
