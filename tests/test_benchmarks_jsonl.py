import json

import pytest

import benchmarks

FORMS = {
    "plain": {"video": "a.mp4", "question": "?", "options": ["x", "y"], "answer": "B"},
    "candidates": {"video_name": "a.mp4", "query": "?", "candidates": ["x", "y"], "answer": "y"},
    "columns": {"path": "a.mp4", "problem": "?", "a0": "x", "a1": "y", "answer_index": 1},
    "spaced": {"vid": "a.mp4", "question": "?", "option 0": "x", "option 1": "y", "truth": 1},
    "padded": {
        "videoID": "a.mp4",
        "question": "?",
        "option0": "x",
        "option1": "y",
        "option2": "N/A",
        "correct_choice": 1,
    },
    "prefixed": {
        "path": "./a.mp4",
        "problem": "?",
        "options": ["A. x", "B. y"],
        "solution": "<answer>B</answer>",
    },
    "embedded": {"video": "a.mp4", "question": "?\n(A) x\n(B) y", "answer": "(B) y"},
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("form", FORMS)
def test_usual_names_are_understood(tmp_path, form):
    write(tmp_path / "mine.jsonl", [FORMS[form]])
    (tmp_path / "a.mp4").touch()
    suite = benchmarks.load_suite("jsonl", root=tmp_path)
    task = suite[0]
    assert (task.question, task.options, task.answer_index) == ("?", ("x", "y"), 1)
    assert task.video == str(tmp_path / "a.mp4") and not suite.missing


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("segments", [[1, 2.5]]),
        ("relevant_windows", [1, 2.5]),
        ("time_reference", "00:01-00:02.5"),
        ("location", [["0:01", "0:02.5"]]),
        ("gt_windows", [[1, 2.5], [9, 4]]),
    ],
)
def test_segments_are_understood_and_bad_ones_dropped(tmp_path, name, raw):
    write(tmp_path / "mine.jsonl", [{**FORMS["plain"], name: raw, "duration": 60}])
    task = benchmarks.load_suite("jsonl", root=tmp_path)[0]
    assert task.segments_s == ((1.0, 2.5),)
    assert task.issues == (("reversed_segment",) if name == "gt_windows" else ())


@pytest.mark.parametrize("name", ["id", "qid", "uid", "q_uid", "problem_id", "question_id"])
def test_ids_are_understood(tmp_path, name):
    write(tmp_path / "mine.jsonl", [{**FORMS["plain"], name: 7}])
    assert benchmarks.load_suite("jsonl", root=tmp_path)[0].task_id == "7"


def test_tables_have_empty_cells_and_numbers_as_text(tmp_path):
    text = (
        "video,question,a0,a1,a2,answer,duration,segments,split\n"
        'a.mp4,?,x,y,,B,60.5,"[[1, 2]]",\n'
        "a.mp4,?,,y,z,z,short,,\n"
        "a.mp4,?,x,y,,,,,\n"
        "a.mp4,?,x,y,,Q,,,\n"
    )
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    suite = benchmarks.load_suite("jsonl", root=tmp_path, on_invalid="skip")
    assert [task.answer_index for task in suite] == [1, 2, None]
    assert suite[0].options == ("x", "y") and suite[0].segments_s == ((1.0, 2.0),)
    assert suite[0].duration_s == 60.5
    # An empty option keeps its letter; a class of durations is no number of seconds.
    assert suite[1].options == ("", "y", "z") and suite[1].meta["duration"] == "short"
    assert [invalid.kind for invalid in suite.invalid] == ["answer_not_in_options"]
    assert ", line 5" in suite.invalid[0].place


def test_splits_are_files_or_a_field(tmp_path):
    plain = FORMS["plain"]
    rows = [{**plain, "id": 1, "split": "train"}, {**plain, "id": 2}, {**plain, "id": 3}]
    rows[2]["split"] = "test"
    write(tmp_path / "mine.jsonl", rows)
    ids = {
        split: [task.task_id for task in benchmarks.load_suite("jsonl", root=tmp_path, split=split)]
        for split in ("all", "train", "test", "val")
    }
    assert ids == {"all": ["1", "2", "3"], "train": ["1", "2"], "test": ["2", "3"], "val": ["2"]}
    write(tmp_path / "test.jsonl", [{**plain, "id": 9}])
    suite = benchmarks.load_suite("jsonl", root=tmp_path, split="test")
    assert [task.task_id for task in suite] == ["9"]


def test_an_object_of_rows_gives_their_keys_as_ids(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"q1": FORMS["plain"], "q2": FORMS["plain"]}))
    suite = benchmarks.load_suite("jsonl", annotation=tmp_path / "mine.json")
    assert [task.task_id for task in suite] == ["q1", "q2"]


def test_bad_rows_are_listed_with_their_line(tmp_path):
    lines = [
        json.dumps(FORMS["plain"]),
        "{",
        "[]",
        json.dumps({**FORMS["plain"], "video": "../b.mp4"}),
        json.dumps({**FORMS["plain"], "issues": 5, "id": "x"}),
        json.dumps({**FORMS["plain"], "id": "x"}),
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    suite = benchmarks.load_suite("jsonl", root=tmp_path, on_invalid="skip")
    assert len(suite) == 2 and suite.rows == 6
    assert [invalid.place.rpartition(" ")[2] for invalid in suite.invalid] == ["2", "3", "4", "6"]
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2: not valid JSON"):
        benchmarks.load_suite("jsonl", root=tmp_path, on_invalid="raise")
    (tmp_path / "mine.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(ValueError, match=r"mine\.jsonl: not UTF-8"):
        benchmarks.load_suite("jsonl", root=tmp_path, on_invalid="skip")
