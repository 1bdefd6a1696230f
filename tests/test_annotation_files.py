"""Annotation as people have it: what only a whole file tells, and what libraries print."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

import benchmarks
from benchmarks.datasets.rows import read_table
from gym_longvideo.annotation.fields import canonical
from gym_longvideo.annotation.options import read_literal, without_options
from gym_longvideo.annotation.records import read_records
from gym_longvideo.suite import JsonlSuite

CASES = Path(__file__).parents[2] / "shared" / "cases" / "annotations"
PLAIN = {"video": "a.mp4", "question": "Which?", "options": ["x", "y", "z"], "answer": "B"}


def core(path, **options):
    return JsonlSuite(path, **options)


def bench(path, **options):
    return benchmarks.load_suite("jsonl", annotation=path, **options)


BOTH = pytest.mark.parametrize("load", [core, bench])


def write(directory, rows, name="mine.json"):
    path = directory / name
    lines = "\n".join(json.dumps(row) for row in rows)
    path.write_text(lines if name.endswith("l") else json.dumps(rows), encoding="utf-8")
    return path


def answers(suite):
    return [task.options[task.answer_index] for task in suite]


# --- letters, numbers and texts -------------------------------------------------------------------

LETTERS = [
    {**PLAIN, "options": ["c", "a", "t"], "answer": "c"},
    {**PLAIN, "options": ["d", "o", "g"], "answer": "d"},
    {**PLAIN, "options": ["b", "e", "a"], "answer": "b"},
]


@BOTH
def test_letters_that_are_options_are_texts_where_the_file_answers_with_texts(tmp_path, load):
    assert answers(load(write(tmp_path, LETTERS))) == ["c", "d", "b"]
    # Elsewhere in the file an answer is a text of several letters.
    rows = [{**PLAIN, "options": ["B", "A", "C"], "answer": "A"}, {**PLAIN, "answer": "x"}]
    assert answers(load(write(tmp_path, rows))) == ["A", "x"]


@BOTH
def test_letters_that_are_options_are_letters_where_the_file_answers_with_letters(tmp_path, load):
    rows = [*LETTERS[:1], {**PLAIN, "answer": "a"}, {**PLAIN, "answer": "C"}]
    suite = load(write(tmp_path, rows))
    assert answers(suite) == ["t", "x", "z"]
    assert all(not task.issues for task in suite)


@BOTH
def test_a_number_beside_settles_it_row_by_row(tmp_path, load):
    rows = [
        {**LETTERS[0], "answer_index": 0},
        {**PLAIN, "options": ["c", "4", "a"], "answer": "c", "answer_number": 2},
        {**PLAIN, "answer": "B"},
    ]
    assert answers(load(write(tmp_path, rows))) == ["c", "a", "y"]


@BOTH
@pytest.mark.parametrize("others", ["", "Ax"])
def test_what_nothing_settles_is_refused(tmp_path, load, others):
    rows = [{**PLAIN, "options": ["C", "A", "T"], "answer": "C"}]
    path = write(tmp_path, rows + [{**PLAIN, "answer": answer} for answer in others])
    says = r"'C' names 'T' \(by letter\) or 'C' \(by text\) .* write the 0-based index as a number"
    with pytest.raises(ValueError, match=says):
        load(path, on_invalid="raise")


@BOTH
def test_numbers_that_are_options_follow_the_file_too(tmp_path, load):
    counted = {**PLAIN, "options": ["3", "2", "0", "1"], "answer": "2"}
    assert answers(load(write(tmp_path, [counted]))) == ["2"]
    assert answers(load(write(tmp_path, [counted, {**PLAIN, "answer": "0"}]))) == ["0", "x"]
    assert answers(load(write(tmp_path, [{**counted, "answer": 2}]))) == ["0"]
    # Whole numbers that no index can be show that whole numbers are texts.
    even = {**PLAIN, "options": [2, 4, 6, 8]}
    rows = [{**even, "answer": 8}, {**even, "answer": 2}]
    assert answers(load(write(tmp_path, rows))) == ["8", "2"]


def test_a_stray_row_does_not_turn_a_file(tmp_path):
    texts = [{**PLAIN, "id": i, "answer": "y"} for i in range(12)]
    rows = [*texts, {**PLAIN, "id": "stray", "answer": "B"}, {**LETTERS[0], "id": "last"}]
    assert answers(core(write(tmp_path, rows)))[-2:] == ["y", "c"]


# --- ids ------------------------------------------------------------------------------------------


@BOTH
def test_ids_within_a_video_are_told_apart_by_it(tmp_path, load):
    rows = [{**PLAIN, "qid": 0}, {**PLAIN, "qid": 1}, {**PLAIN, "qid": 0, "video": "d/b.mp4"}]
    suite = load(write(tmp_path, rows))
    assert [task.task_id for task in suite] == ["a_0", "a_1", "d/b_0"]


@BOTH
def test_a_rare_repeat_changes_no_other_id(tmp_path, load):
    rows = [{**PLAIN, "question_id": f"Q{i}", "video": f"{i}.mp4"} for i in range(30)]
    rows.append({**rows[7], "video": "other.mp4"})
    ids = [task.task_id for task in load(write(tmp_path, rows))]
    assert ids[7] == "7_Q7" and ids[-1] == "other_Q7" and ids[8] == "Q8" and len(set(ids)) == 31


@BOTH
def test_another_question_under_an_id_is_kept_and_the_same_one_is_not(tmp_path, load):
    rows = [{**PLAIN, "id": 1}, {**PLAIN, "id": 1, "question": "What?"}, {**PLAIN, "id": 1}]
    suite = load(write(tmp_path, rows), on_invalid="skip")
    assert [task.task_id for task in suite] == ["1", "1#2"] and len(suite.invalid) == 1


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("['a cat' 'a dog' 'a cow']", ["a cat", "a dog", "a cow"]),
        ("['a cat'\n 'a dog' \"it's\"]", ["a cat", "a dog", "it's"]),
        ("array(['x', 'y'], dtype=object)", ["x", "y"]),
        ("[1 2 3]", [1, 2, 3]),
        ("['x', 'y']", ["x", "y"]),
        ('["x", null]', ["x", None]),
        ("['only']", ["only"]),
        ("{'A': 'x', 'B': 'y'}", {"A": "x", "B": "y"}),
        ("[see the video]", "[see the video]"),
        ("['a' 'b', 'c']", ["ab", "c"]),
    ],
)
def test_lists_are_read_as_libraries_print_them(text, options):
    assert read_literal(text) == options


def test_a_table_of_numpy_lists_has_all_its_options(tmp_path):
    with (tmp_path / "mine.tsv").open("w", newline="") as stream:
        table = csv.writer(stream, delimiter="\t")
        table.writerow(["video", "question", "candidates", "answer"])
        table.writerow(["a.mp4", "Which?", "['a cat' 'a dog'\n 'a cow']", "a dog"])
    (task,) = bench(tmp_path / "mine.tsv")
    assert task.options == ("a cat", "a dog", "a cow") and task.answer_index == 1


@BOTH
def test_a_question_has_at_least_two_options(tmp_path, load):
    path = write(tmp_path, [{**PLAIN, "options": ["catdog"], "answer": "catdog"}])
    with pytest.raises(ValueError, match=r"options=\['catdog'\] must be 2 or more"):
        load(path)


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"options": {"A": "cat", "B": "dog", "C": "cow"}},
        {"Options": {"c": "cow", "a": "cat", "b": "dog"}},
        {"choices": [{"label": "A", "text": "cat"}, {"text": "dog"}, {"C": "cow"}]},
        {"candidates": '{"A": "cat", "B": "dog", "C": "cow"}'},
        {"options": "A. cat\nB. dog\nC. cow"},
        {"A": "cat", "B": "dog", "C": "cow", "D": ""},
        {"Option A": "cat", "Option B": "dog", "Option C": "cow"},
        {"choice_1": "cat", "choice_2": "dog", "choice_3": "cow"},
    ],
)
def test_options_are_read_from_objects_and_lettered_columns(tmp_path, load, options):
    (task,) = load(write(tmp_path, [{"video": "a.mp4", "question": "?", **options, "answer": "C"}]))
    assert task.options == ("cat", "dog", "cow") and task.answer_index == 2


@BOTH
@pytest.mark.parametrize("answer", ["2", 2])
def test_the_keys_of_an_object_of_options_name_the_answer(tmp_path, load, answer):
    row = {**PLAIN, "options": {"2": "dog", "1": "cat", "3": "cow"}, "answer": answer}
    (task,) = load(write(tmp_path, [row]))
    assert task.options == ("cat", "dog", "cow") and task.answer_index == 1


@pytest.mark.parametrize(
    ("question", "left"),
    [
        ("Which?\n(A) a cup\n(B) a book", "Which?"),
        ("Which? (A) a cup (B) a book.", "Which?"),
        ("Which?\nOptions:\nA. A cup\nB.  a  book", "Which?"),
        ("Which? A) a cup, B) a book\nAnswer with a letter.", "Which?\nAnswer with a letter."),
        ("Which?\n(A) a book\n(B) a cup", "Which?\n(A) a book\n(B) a cup"),
        ("Is (A) a cup there?", "Is (A) a cup there?"),
        ("(A) a cup (B) a book", "(A) a cup (B) a book"),
    ],
)
def test_a_list_that_the_question_repeats_is_taken_out_of_it(question, left):
    assert without_options(question, ["a cup", "a book"]) == left


# --- names, files and segments --------------------------------------------------------------------


def test_names_are_read_in_any_capitals():
    names = {
        "Question": 1,
        "Right Answer": 2,
        "Video-Name": 3,
        "videoID": 4,
        "video": 5,
        "Video": 6,
    }
    assert canonical(names) == {
        "question": 1, "right_answer": 2, "video_name": 3, "videoID": 4, "video": 5, "Video": 6,
    }  # fmt: skip


@BOTH
@pytest.mark.parametrize(
    ("field", "segments"),
    [
        ({"clue_intervals": [[3.0, 9.5]]}, ((3.0, 9.5),)),
        (
            {"segments": [{"start": 3, "end": 9.5}, {"start": 1, "end": 2}]},
            ((1.0, 2.0), (3.0, 9.5)),
        ),
        ({"segments": {"start_time": "00:03", "end_time": "00:09.5"}}, ((3.0, 9.5),)),
        ({"spans": ["00:03-00:09", "00:20-00:21"]}, ((3.0, 9.0), (20.0, 21.0))),
    ],
)
def test_segments_are_read_from_objects_and_other_names(tmp_path, load, field, segments):
    row = {
        "video_uid": "a.mp4",
        "question": "?",
        "options": ["x", "y"],
        "right_answer": "B",
        **field,
    }
    (task,) = load(write(tmp_path, [row]))
    assert (task.segments_s, task.answer_index) == (segments, 1)
    assert task.video.endswith("a.mp4")


@BOTH
def test_a_video_without_its_extension_is_found(tmp_path, load):
    (tmp_path / "a.mkv").touch()
    (task,) = load(write(tmp_path, [{**PLAIN, "video": "a"}]))
    assert task.video == str(tmp_path / "a.mkv")


@BOTH
@pytest.mark.parametrize(
    "text",
    [
        "\n".join(json.dumps({**PLAIN, "id": i}) for i in range(3)),
        json.dumps({"info": {"version": 1}, "questions": [{**PLAIN, "id": i} for i in range(3)]}),
        json.dumps({str(i): PLAIN for i in range(3)}, indent=1),
    ],
    ids=["lines", "a list inside", "an object of rows"],
)
def test_a_json_file_may_hold_lines_or_a_list_in_an_object(tmp_path, load, text):
    (tmp_path / "mine.json").write_text(text)
    assert len(load(tmp_path / "mine.json")) == 3


def test_a_broken_line_in_a_json_file_is_named(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(PLAIN) + "\n{\n" + json.dumps(PLAIN))
    places = [(place, type(fields)) for place, fields in read_records(path)]
    assert places[1] == (f"{path}, line 2", ValueError) and len(places) == 3
    path.write_text("{\n" + json.dumps(PLAIN))
    with pytest.raises(ValueError, match="not valid JSON"):
        list(read_records(path))


@BOTH
def test_what_is_not_read_names_the_columns_that_there_are(tmp_path, load):
    row = {"video": "a.mp4", "question": "?", "answer": "A", "alternatives": ["x", "y"]}
    with pytest.raises(ValueError, match=r"option0\.\. / a0\.\. / A.*columns are .*'alternatives'"):
        load(write(tmp_path, [row]))
    row = {"film": "a.mp4", "question": "?", "answer": "A", "options": ["x", "y"]}
    with pytest.raises(ValueError, match=r"no video: expected one of .*'video_name'.*'film'"):
        load(write(tmp_path, [row]))


def test_a_cell_that_is_too_long_loses_its_row_alone(tmp_path):
    limit = csv.field_size_limit()
    path = tmp_path / "mine.csv"
    long = "x" * (limit + 1)
    path.write_text(f"video,question,a0,a1,answer\na.mp4,{long},x,y,A\nb.mp4,Which?,x,y,B\n")
    rows = list(read_table(path))
    assert isinstance(rows[0].fields, ValueError) and "question has 131,073" in str(rows[0].fields)
    assert isinstance(rows[1].fields, dict) and rows[1].fields["video"] == "b.mp4"
    assert csv.field_size_limit() == limit


# --- how many rows may be lost --------------------------------------------------------------------


def test_a_file_that_loses_more_than_a_tenth_of_its_rows_is_refused(tmp_path):
    rows = [{**PLAIN, "id": i} for i in range(20)]
    rows[3] = rows[4] = {**PLAIN, "question": ""}
    assert len(bench(write(tmp_path, rows))) == 18
    rows[5] = {**PLAIN, "answer": "none"}
    path = write(tmp_path, rows)
    with pytest.raises(
        ValueError, match=r"3 of 20 rows are unusable, more than a tenth; the first"
    ):
        bench(path)
    skipped = bench(path, on_invalid="skip")
    assert len(skipped) == 17
    # Missing videos and repeats of a question are no rows lost.
    assert len(bench(write(tmp_path, [{**PLAIN, "id": i % 9} for i in range(18)]))) == 9


def test_how_rows_may_be_lost_is_no_knob_of_a_card(tmp_path):
    path = write(tmp_path, [PLAIN])
    assert bench(path).options == bench(path, on_invalid="skip").options


# --- the inputs that were read wrongly ------------------------------------------------------------

needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the project")


@needs_cases
@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("dict_options.json", ["horse"]),
        ("ids_within_video.jsonl", ["z", "x", "v"]),
        ("letters_are_texts.json", ["c", "d", "b"]),
        ("options_in_question.json", ["a book"]),
        ("video_name.tsv", ["dog", "bell"]),
    ],
)
def test_cases(name, right):
    suite = bench(CASES / name)
    assert answers(suite) == right
    assert max(Counter(task.task_id for task in suite).values()) == 1
    assert all("(A)" not in task.question for task in suite)
