import json

import pytest

import benchmarks
from benchmarks.datasets.dataset import Defect
from benchmarks.datasets.repair import (
    clean_segments,
    diagnose,
    embedded_options,
    index_answer,
    text_answer,
)


@pytest.mark.parametrize(
    ("raw", "segments", "issues"),
    [
        ("00:15-01:02", [[15.0, 62.0]], []),
        ("00:15 - 01:02", [[15.0, 62.0]], []),
        ("83:20-83:30", [[5000.0, 5010.0]], []),
        ("08:17-None", [], ["odd_segment"]),
        ("None-None", [], ["odd_segment"]),
        ("later", [], ["odd_segment"]),
        (7, [], ["odd_segment"]),
        ("33:52-33:46", [], ["reversed_segment"]),
        ("00:15-00:15", [], ["empty_segment"]),
        ("99:00-99:30", [], ["outside_segment"]),
        ("00:00-83:55", [[0.0, 5035.0]], ["global_segment"]),
        # The limit is 5040 s: a hundredth of it is forgiven, more is not.
        ("83:40-84:30", [[5020.0, 5040.0]], ["repaired_segments"]),
        ("83:40-84:51", [], ["outside_segment"]),
        ([[-0.2, 3], [5, 4], [9.5, 12]], [[0.0, 3.0], [9.5, 12.0]], None),
        ([12, 13.5], [[12.0, 13.5]], []),
    ],
)
def test_segments_that_make_no_sense_are_dropped_and_named(raw, segments, issues):
    found = clean_segments(raw, 5040.0)
    assert found["segments"] == segments
    expected = ["repaired_segments", "reversed_segment"] if issues is None else issues
    assert found["issues"] == expected
    changed = set(expected) - {"global_segment"}
    assert (found.get("annotated_segments") == raw) == bool(changed)


@pytest.mark.parametrize("raw", [None, [], "", ()])
def test_no_segments_are_no_defect(raw):
    assert clean_segments(raw, 10.0) == {}


def test_a_text_is_sought_before_letters_and_numbers():
    assert text_answer("B", ["A", "C", "B"]) == (2, {})
    assert text_answer("1", ["2", "1", "5"]) == (1, {})
    assert text_answer("B", ["cat", "dog"]) == ("B", {})
    assert text_answer(" Dog ", ["cat", "dog"]) == (1, {})
    assert text_answer(1, ["cat", "dog"]) == (1, {})
    with pytest.raises(Defect, match=r"'3' is not among the options \['2', '1'\]"):
        text_answer("3", ["2", "1"])


def test_an_index_may_be_written_as_text():
    found = [index_answer(value) for value in ("3", "-1", "2.0", 1.0, 0, None, "B")]
    assert found == [3, -1, 2, 1, 0, None, "B"]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Which?\n(A) x\n(B) y", ("Which?", ["x", "y"])),
        ("See (A) and (B)?\n(A) x\n(B) y\nz\n", ("See (A) and (B)?", ["x", "y\nz"])),
        ("Which?\n(A) x\n(C) y", None),
        ("Which?\n(A) x", None),
        ("Which?", None),
        (3, None),
    ],
)
def test_options_are_found_at_the_end_of_a_question(question, expected):
    assert embedded_options(question) == expected


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"question": " "}, "blank_question"),
        ({"options": []}, "no_options"),
        ({"answer": "Z"}, "answer_not_in_options"),
        ({"answer": "<answer>3 cats</answer>"}, "answer_not_in_options"),
        ({"segments": [[5, 2]]}, "bad_segment"),
        ({"video": ""}, "malformed_row"),
    ],
)
def test_what_is_wrong_with_a_record_has_a_name(changes, kind):
    record = {"video": "v.mp4", "question": "?", "options": ["x", "y"], "answer": "A"}
    assert diagnose({**record, **changes}) == kind


def test_rows_that_no_real_file_has_cost_themselves_only(tmp_path):
    rows = [
        {"questions": [3]},
        {"videoID": "v", "question_id": "1", "question": "?", "options": ["x", "y"], "answer": "A"},
        {"videoID": "v", "question_id": "2", "question": "?", "options": 7, "answer": "A"},
    ]
    (tmp_path / "videomme.json").write_text(json.dumps(rows))
    suite = benchmarks.load_suite("videomme", root=tmp_path, on_invalid="skip")
    assert [task.task_id for task in suite] == ["1"]
    assert [invalid.kind for invalid in suite.invalid] == ["blank_question", "no_options"]


def test_a_record_is_kept_without_what_is_broken(tmp_path):
    row = {"videoID": "v", "question": "?", "options": ["x", "y"], "answer": "A"}
    rows = [
        {**row, "question_id": "1", "segments": [[9, 2]]},
        {**row, "question_id": "2", "answer": "Z"},
        {**row, "question_id": "3", "question": ""},
    ]
    (tmp_path / "videomme.json").write_text(json.dumps(rows))
    suite = benchmarks.load_suite("videomme", root=tmp_path, on_invalid="keep")
    assert [(task.answer_index, task.issues) for task in suite] == [
        (0, ("no_segments",)),
        (None, ("unscorable",)),
    ]
    assert [invalid.kind for invalid in suite.invalid] == ["blank_question"]


def test_an_absolute_path_below_the_root_is_no_escape(tmp_path):
    video = tmp_path / "data" / "v.mp4"
    video.parent.mkdir()
    video.touch()
    row = {"question": "?", "options": ["x", "y"], "answer": "A", "video": str(video)}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    suite = benchmarks.load_suite("jsonl", root=tmp_path, on_invalid="skip")
    assert suite[0].video == str(video) and not suite.missing


def test_missing_numbers_of_parquet_are_null(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from benchmarks.datasets.rows import read_table

    parquet.write_table(pa.table({"x": [1.5, float("nan")]}), tmp_path / "a.parquet")
    assert [row.fields for row in read_table(tmp_path / "a.parquet")] == [{"x": 1.5}, {"x": None}]
