"""Copies of a benchmark: a question has the same id in each, and videos are found beside each."""

from __future__ import annotations

import csv
import json

import pytest
from benchmark_records import record, run

import benchmarks
from benchmarks.datasets.nextgqa import NEXTGQA
from benchmarks.evaluate import _lines
from benchmarks.scores.summary import summarize
from benchmarks.validate import ValidateConfig, lines, validate


def ids(suite):
    return {(task.question, task.options): task.task_id for task in suite}


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


# --- Video-MME ------------------------------------------------------------------------------------


def videomme(video, number):
    return {
        "video_id": f"{video + 1:03d}",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Astronomy",
        "videoID": f"film{video}",
        "question_id": f"{video + 1:03d}-{number + 1}",
        "task_type": "Counting Problem",
        "question": f"{video} and {number}?",
        "options": ["A. x", "B. y", "C. z", "D. u"],
        "answer": "C",
    }


def vlmevalkit(rows):
    kept = ("duration", "domain", "sub_category", "task_type", "question", "answer")
    return [
        {"index": i, "video": row["videoID"], "candidates": row["options"]}
        | {name: row[name] for name in kept}
        for i, row in enumerate(rows)
    ]


def test_videomme_is_the_same_in_vlmevalkits_copy(tmp_path):
    rows = [videomme(video, number) for video in range(4) for number in range(3)]
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "videomme.json").write_text(json.dumps(rows))
    copy = vlmevalkit(rows)
    table(tmp_path / "whole" / "Video-MME.tsv", copy)
    table(tmp_path / "part" / "Video-MME.tsv", [copy[7], copy[2], copy[6]])
    table(tmp_path / "other" / "Video-MME.tsv", [copy[0], {**copy[1], "video": "film9"}])
    suites = {
        name: benchmarks.load_suite("videomme", root=tmp_path / name)
        for name in ("official", "whole", "part", "other")
    }
    official = ids(suites["official"])
    assert ids(suites["whole"]) == official
    assert ids(suites["part"]).items() <= official.items() and len(suites["part"]) == 3
    assert [task.video_id for task in suites["whole"]][:4] == ["001"] * 3 + ["002"]
    assert [task.task_id for task in suites["other"]] == ["0", "1"]  # no copy of that file


def test_videos_of_videomme_may_lie_two_folders_deep(tmp_path):
    (tmp_path / "videomme.json").write_text(json.dumps([videomme(0, 0)]))
    (tmp_path / "videos" / "data").mkdir(parents=True)
    (tmp_path / "videos" / "data" / "film0.mp4").touch()
    assert not benchmarks.load_suite("videomme", root=tmp_path).missing


# --- MLVU -----------------------------------------------------------------------------------------


def mlvu(kind, number, **changes):
    row = {"video": f"{number}.mp4", "duration": 300, "question": f"{kind} {number}?"}
    row |= {"candidates": ["x", "y"], "answer": "y", "question_type": kind}
    return {**row, **changes}


def test_mlvu_is_the_same_in_lmms_evals_copy(tmp_path):
    topics = [mlvu("topic_reasoning", i) for i in range(264)]
    topics[26] |= {"question": "", "candidates": ["", ""], "answer": ""}
    needles = [mlvu("findNeedle", i) for i in range(3)]
    official = tmp_path / "official" / "json"
    official.mkdir(parents=True)
    (official / "7_topic_reasoning.json").write_text(json.dumps(topics))
    (official / "2_needle.json").write_text(json.dumps(needles))
    copy = [
        {
            "video_name": row["video"],
            "duration": row["duration"],
            "question": row["question"] + "\n(A) x\n(B) y\n",
            "candidates": row["candidates"],
            "answer": "B",
            "task_type": {"findNeedle": "needle"}.get(row["question_type"], row["question_type"]),
            "question_id": f"Q{i}",
        }
        for i, row in enumerate([*needles, *topics[:26], *topics[27:]])
    ]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mlvu.json").write_text(json.dumps(copy))
    table(tmp_path / "tsv" / "MLVU_MCQ.tsv", [
        {**row, "task_type": row.pop("question_type"), "index": i}
        for i, row in enumerate([*map(dict, needles), *map(dict, topics)])
    ])  # fmt: skip
    suites = [
        benchmarks.load_suite("mlvu", split="dev", root=tmp_path / name)
        for name in ("official", "copy", "tsv")
    ]
    assert ids(suites[0]) == ids(suites[1]) == ids(suites[2])
    assert suites[0].index_of("topic_reasoning_263") >= 0 and len(suites[1]) == 266


# --- LVBench --------------------------------------------------------------------------------------


def lvbench(tmp_path, place):
    choices = "\n(A) a cat\n(B) a dog\n(C) a hat\n(D) a kite"
    asked = {"answer": "D", "question_type": ["reasoning"], "time_reference": "00:15-00:15"}
    rows = [
        {
            "key": key,
            "type": "cartoon",
            "qa": [
                {"uid": f"{n}{i}", "question": f"Who is {key}{i}?{choices}", **asked}
                for i in range(2)
            ],
            "video_info": {"duration_minutes": 60.0},
        }
        for n, key in enumerate(["Cm73ma6Ibcs", "28CIeC8cZks"], start=1)
    ]
    clean = [
        {
            "video": f"{line:08d}",
            "question": f"who is {row['key']}{i}?",
            "candidates": ["(A) a cat", "(B) a dog", "(C) a hat", "(D) a kite"],
            "answer": "(D) a kite",
            "question_type": "reasoning",
        }
        for line, row in enumerate(rows)
        for i in range(2)
    ]
    (tmp_path / "video_info.meta.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "clean.json").write_text(json.dumps(clean))
    (tmp_path / "videos").mkdir()
    for name in place:
        (tmp_path / "videos" / f"{name}.mp4").touch()
    official = benchmarks.load_suite("lvbench", root=tmp_path)
    again = benchmarks.load_suite("lvbench", root=tmp_path, annotation=tmp_path / "clean.json")
    return official, again


@pytest.mark.parametrize(
    "place", [["Cm73ma6Ibcs", "28CIeC8cZks"], ["00000000", "00000001"]], ids=["keys", "numbers"]
)
def test_the_clean_list_of_lvbench_finds_videos_and_ids_by_the_official_file(tmp_path, place):
    official, clean = lvbench(tmp_path, place)
    assert not official.missing and not clean.missing
    assert [(task.task_id, task.video, task.video_id) for task in official] == [
        (task.task_id, task.video, task.video_id) for task in clean
    ]
    # A point in time means the second that begins there.
    assert {task.segments_s for task in official} == {((15.0, 16.0),)}


# --- NExT-GQA -------------------------------------------------------------------------------------


def test_without_its_file_of_segments_nextgqa_says_what_is_lost(tmp_path):
    fields = {"video_id": "101", "question": "why", "answer": "y", "qid": "0", "type": "CW"}
    fields |= dict(zip(("a0", "a1", "a2", "a3", "a4"), "xyzuv", strict=True))
    (tmp_path / "test.csv").write_text("\n".join(map(",".join, [fields, fields.values()])))
    (tmp_path / "101.mp4").write_bytes(b"x")
    config = ValidateConfig("nextgqa", root=tmp_path)
    report = validate(config)
    assert (report["segments"], report["playable"], report["usable"]) == (0, 1, True)
    said = "\n".join(lines(report))
    assert "segments: 0 of 1 questions have some" in said
    assert "they come from gsub_<split>.json, beside the CSV" in said
    gsub = {"101": {"duration": 30, "location": {"0": [[1, 2]]}}}
    (tmp_path / "gsub_test.json").write_text(json.dumps(gsub))
    said = "\n".join(lines(validate(config)))
    assert "segments: 1 of 1 questions have some" in said and "come from" not in said


def test_the_summary_says_why_grounding_is_missing():
    bare = run([record("a", segments=())])
    summary = summarize(bare, NEXTGQA)
    assert summary["grounding"] is None
    assert "none of 1 questions has segments; they come from gsub_" in summary["grounding_missing"]
    assert any("gsub_" in line for line in _lines({**summary, "directory": "x"}))
    assert summarize(bare)["grounding_missing"] == ""
    whole = summarize(run([record("a", segments=((1.0, 2.0),))]), NEXTGQA)
    assert whole["grounding_missing"] == "" and whole["grounding"] is not None


# --- what would be played -------------------------------------------------------------------------


def test_validate_calls_nothing_usable_that_would_be_refused(tmp_path):
    plain = {"video": "a.mp4", "question": "Which?", "options": ["x", "y"], "answer": "A"}
    rows = [{**plain, "id": i} for i in range(8)] + [{**plain, "id": "z", "question": ""}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.mp4").write_bytes(b"x")
    report = validate(ValidateConfig("jsonl", root=tmp_path))
    assert not report["usable"] and report["playable"] == 8
    assert any("1 of 9 rows are unusable, more than a tenth" in each for each in report["advice"])
    rows[-1] = {**plain, "id": "z", "video": "b.mp4"}
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = validate(ValidateConfig("jsonl", root=tmp_path))
    assert report["usable"] and "would be played: 8 of 9 questions" in lines(report)
