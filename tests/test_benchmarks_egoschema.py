import csv
import json

import pytest

import benchmarks
from benchmarks.card import Card
from benchmarks.runs import RunWriter
from benchmarks.submission import main, submission
from gym_longvideo.record import EpisodeRecord


def question(uid, **changes):
    fields = {
        "q_uid": uid,
        "google_drive_id": "drive",
        "question": "What is C doing?",
        **{f"option {i}": f"C does thing {i}." for i in range(5)},
    }
    return {**fields, **changes}


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def write_parquet(path, rows):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def test_the_subset_is_what_has_a_public_answer(tmp_path):
    write(tmp_path / "questions.json", [question("u-1"), question("u-2"), question("u-3")])
    write(tmp_path / "subset_answers.json", {"u-3": 4, "u-1": 0, "u-9": 2})
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "u-1.mp4").touch()
    suite = benchmarks.load_suite("egoschema", root=tmp_path, on_invalid="skip")
    assert suite.split == "subset" and len(suite.missing) == 1
    assert [(task.task_id, task.answer_index) for task in suite] == [("u-1", 0), ("u-3", 4)]
    assert suite[0].video == str(tmp_path / "videos" / "u-1.mp4") and suite[0].duration_s == 180.0
    assert suite[0].options[3] == "C does thing 3."
    assert [(invalid.kind, "u-9" in invalid.place) for invalid in suite.invalid] == [
        ("missing_question", True)
    ]


def test_the_full_set_can_be_asked_but_not_scored(tmp_path):
    write(tmp_path / "questions.json", [question("u-1"), question("u-2")])
    write(tmp_path / "subset_answers.json", {"u-1": 0})
    suite = benchmarks.load_suite("egoschema", split="full", root=tmp_path)
    assert [task.answer_index for task in suite] == [None, None]
    assert not suite.dataset.splits["full"].scored and suite.dataset.splits["full"].tasks == 5031


def test_the_subset_needs_its_answers(tmp_path):
    write(tmp_path / "questions.json", [question("u-1")])
    with pytest.raises(ValueError, match=r"needs subset_answers\.json beside the questions"):
        benchmarks.load_suite("egoschema", root=tmp_path)
    write(tmp_path / "subset_answers.json", [3])
    with pytest.raises(ValueError, match=r"subset_answers\.json: holds list, not an object"):
        benchmarks.load_suite("egoschema", root=tmp_path)
    write(tmp_path / "subset_answers.json", {"u-1": 7})
    with pytest.raises(ValueError, match="answer=7 is not among the 5 options"):
        benchmarks.load_suite("egoschema", root=tmp_path)


def test_early_versions_lack_questions_or_misspell_the_answer(tmp_path):
    early = question("u-2", corrent_answer=3)
    del early["question"]
    write(tmp_path / "early.json", [question("u-1", corrent_answer=2), early])
    suite = benchmarks.load_suite(
        "egoschema", split="full", annotation=tmp_path / "early.json", on_invalid="skip"
    )
    assert [(task.task_id, task.answer_index) for task in suite] == [("u-1", 2)]
    assert [invalid.kind for invalid in suite.invalid] == ["blank_question"]


def test_copies_keyed_by_id_have_the_truth_inside(tmp_path):
    rows = {"u-1": question("u-1", truth=3), "u-2": {**question(""), "truth": 1}}
    del rows["u-1"]["q_uid"]
    write(tmp_path / "subset_anno.json", rows)
    suite = benchmarks.load_suite("egoschema", root=tmp_path)
    assert [(task.task_id, task.answer_index) for task in suite] == [("u-1", 3), ("u-2", 1)]


@pytest.mark.parametrize(("config", "split"), [("Subset", "subset"), ("MC", "full")])
def test_lmms_eval_writes_indices_as_text(tmp_path, config, split):
    # Options that are numbers: the third, not the one that reads "2".
    row = {
        "question_idx": "1",
        "question": "How many?",
        "video_idx": "u-1",
        "option": ["A. 2", "B. 3", "C. 4", "D. 5", "E. 6"],
        "answer": "2" if split == "subset" else None,
    }
    cache = tmp_path / "hub" / "datasets--lmms-lab--egoschema" / "snapshots" / "a"
    write_parquet(cache / config / "test-00000-of-00001.parquet", [row])
    video = tmp_path / "egoschema" / "videos" / "u-1.mp4"
    video.parent.mkdir(parents=True)
    video.touch()
    suite = benchmarks.load_suite("egoschema", split=split, root=tmp_path)
    task = suite[0]
    assert task.task_id == "u-1" and task.video == str(video)
    assert task.options == ("2", "3", "4", "5", "6")
    assert task.answer_index == (2 if split == "subset" else None)


def test_the_table_of_ig_vlm_has_the_text_of_the_answer(tmp_path):
    columns = ["video_name", "question_id", "question", "answer", "a0", "a1", "a2", "a3", "a4"]
    with (tmp_path / "EgoSchema.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerow(["u-1.mp4", "0", "What, and why?", "d, too", "a", "b", "c", "d, too", "a"])
        writer.writerow(["u-2", "1", "What?", "nothing", "a", "b", "c", "d", "e"])
    suite = benchmarks.load_suite("egoschema", root=tmp_path, on_invalid="skip")
    task = suite[0]
    assert task.task_id == "u-1" and task.answer_index == 3
    assert task.issues == ("duplicate_options",) and task.video.endswith("u-1.mp4")
    assert [invalid.kind for invalid in suite.invalid] == ["answer_not_in_options"]


def record(uid, choice, suite="egoschema", **meta):
    turn = {"op": "malformed" if choice < 0 else "answer", "interval": [-1, -1], "choice": choice}
    task = {"task_id": uid, "video_id": uid, "options": list("abcde"), "meta": meta}
    return EpisodeRecord(
        format=1,
        library="0",
        suite=suite,
        split="full",
        settings={},
        task=task,
        pool={},
        overview={},
        turns=[turn],
        ledger=[],
        outcome="unanswered" if choice < 0 else "unscored",
        error="",
        frames_shown=8,
    )


def test_a_submission_puts_options_back_in_their_order():
    records = [
        record("u-1", 2),
        record("u-2", -1),
        record("u-3", 0, shuffled=[3, 1, 0, 2, 4]),
    ]
    assert submission(records) == {"u-1": 2, "u-3": 3}
    with pytest.raises(ValueError, match="rotates the options"):
        submission([record("u-1", 2, circular=["u-1", 1])])


def write_run(directory, records):
    with RunWriter(directory, Card({}, {"name": "someone"})) as writer:
        for each in records:
            writer.add(each.task["task_id"], each, {})


def test_a_run_becomes_a_file_for_the_server(tmp_path, capsys):
    write_run(tmp_path / "run", [record("u-1", 2), record("u-2", -1)])
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == {"u-1": 2}
    said = capsys.readouterr().out
    assert "1 of this run were not answered, 5029 not played" in said


def test_no_run_and_a_run_of_another_benchmark_are_refused(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "s.json")]) == 2
    write_run(tmp_path / "run", [record("u-1", 2, suite="mlvu")])
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "s.json")]) == 2
    said = capsys.readouterr().err
    assert "no run of longvideo evaluate" in said and "no run of egoschema" in said
    assert not (tmp_path / "s.json").exists()
