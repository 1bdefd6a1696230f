"""One annotation record of any common layout becomes a task, or an error that says why not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_longvideo.annotation import (
    ANSWER,
    IDENTITY,
    OPTIONS,
    QUESTION,
    SEGMENTS,
    VIDEO,
    parse_answer,
    parse_options,
    parse_record,
    parse_segments,
    parse_time,
)
from gym_longvideo.task import Task

PLAIN = {"video": "a.mp4", "question": "Which?", "options": ["x", "y", "z"], "answer": "B"}


def parse(**fields):
    return parse_record({**PLAIN, **fields}, default_id="7")


def without(*names):
    return {key: value for key, value in PLAIN.items() if key not in names}


# --- names ----------------------------------------------------------------------------------------


def test_a_minimal_record_is_a_task():
    assert parse() == Task("7", "a.mp4", "Which?", ("x", "y", "z"), 1)


@pytest.mark.parametrize("name", QUESTION)
def test_every_alias_of_the_question_is_read(name):
    record = {**without("question"), name: " What now? "}
    assert parse_record(record, default_id="0").question == "What now?"


@pytest.mark.parametrize("name", VIDEO)
def test_every_alias_of_the_video_is_read(name):
    assert parse_record({**without("video"), name: "b.mkv"}, default_id="0").video == "b.mkv"


@pytest.mark.parametrize("name", ANSWER)
def test_every_alias_of_the_answer_is_read(name):
    assert parse_record({**without("answer"), name: 2}, default_id="0").answer_index == 2


@pytest.mark.parametrize("name", OPTIONS)
def test_every_alias_of_the_options_is_read(name):
    record = {**without("options"), name: ["p", "q"]}
    assert parse_record(record, default_id="0").options == ("p", "q")


@pytest.mark.parametrize("name", SEGMENTS)
def test_every_alias_of_the_segments_is_read(name):
    assert parse(**{name: [[3, 5]]}).segments_s == ((3.0, 5.0),)


@pytest.mark.parametrize("name", IDENTITY)
def test_every_alias_of_the_identity_is_read(name):
    assert parse(**{name: 42}).task_id == "42"
    assert parse(**{name: "q-1"}).task_id == "q-1"


def test_the_first_alias_present_wins():
    assert parse(problem="Other?", solution="C").question == "Which?"


def test_native_fields_that_were_not_read_stay_in_meta():
    task = parse(duration="short", domain="Sports", video_id="clip-9", task_type="Counting", id=3)
    assert task.meta == {"duration": "short", "domain": "Sports", "video_id": "clip-9"}
    assert (task.duration_s, task.video_id, task.task_types) == (None, "clip-9", ("Counting",))
    task = parse(duration=12, question_category=["E2O", "T3E"])
    assert task.meta == {} and task.duration_s == 12.0
    assert task.task_types == ("E2O", "T3E")
    assert parse(duration_s=12.5).duration_s == 12.5


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "options"),
    [
        ({"options": ["A. a cat", "B. a dog"]}, ("a cat", "a dog")),
        ({"options": ["(A) cat", "(B) dog"]}, ("cat", "dog")),
        ({"options": ["A: cat", "B: dog"]}, ("cat", "dog")),
        ({"options": ["A) cat", "B) dog"]}, ("cat", "dog")),
        ({"options": ["A. Lincoln", "Obama"]}, ("A. Lincoln", "Obama")),
        ({"options": ["A. Lincoln", "C. Obama"]}, ("A. Lincoln", "C. Obama")),
        ({"options": ["B. x", "A. y"]}, ("B. x", "A. y")),
        ({"options": ["A man", "B movie"]}, ("A man", "B movie")),
        ({"options": ["A. x"]}, ("A. x",)),
        ({"options": [" x ", "y"]}, ("x", "y")),
        ({"options": [1, 2.5, "three"]}, ("1", "2.5", "three")),
        ({"options": ["A. x", "B. x"]}, ("x", "x")),
        ({"option0": "p", "option1": "q", "option2": "r"}, ("p", "q", "r")),
        ({"option1": "p", "option2": "q"}, ("p", "q")),
        ({"option 0": "p", "option 1": "q"}, ("p", "q")),
        ({"option_0": "p", "option_1": "q"}, ("p", "q")),
        ({"a0": "p", "a1": "q", "a2": "r", "a3": "s", "a4": "t"}, tuple("pqrst")),
        ({"option0": "p", "option1": "q", "option2": "N/A", "option3": "N/A"}, ("p", "q")),
        ({"option0": "p", "option1": "q", "option2": None, "option3": ""}, ("p", "q")),
        ({"option0": "yes", "option1": "N/A"}, ("yes", "N/A")),
        ({"option0": "p", "option1": "N/A", "option2": "r"}, ("p", "N/A", "r")),
    ],
)
def test_options_are_read_from_lists_and_columns_without_their_letters(record, options):
    assert parse_options(record) == options


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, r"options=\[\] must be a list of choices .*option0"),
        ({"options": []}, r"options=\[\] must be"),
        ({"options": "ABC"}, r"options='ABC' must be a list"),
        ({"options": {}}, r"options=\{\} must be a list"),
        ({"options": 4}, r"options=4 must be a list"),
        ({"options": ["x", None]}, r"options contain None; use strings"),
        ({"options": ["x", True]}, r"options contain True"),
        ({"options": ["x", ["y"]]}, r"options contain \['y'\]"),
    ],
)
def test_what_is_no_list_of_choices_is_refused(record, message):
    with pytest.raises(ValueError, match=message):
        parse_options(record)


def test_more_options_than_letters_are_refused():
    options = [f"option {i}" for i in range(27)]
    with pytest.raises(ValueError, match="27 options; there are letters for 26"):
        parse(options=options, answer=0)
    with pytest.raises(ValueError, match="not among the 27 options"):
        parse(options=options, answer=27)


# --- answers --------------------------------------------------------------------------------------

COLOURS = ("red", "green", "blue", "1633")


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B)", 1),
        (" B ", 1),
        (2, 2),
        (0, 0),
        ("2", 2),
        ("<answer>B</answer>", 1),
        (" <answer> B </answer> ", 1),
        ("(D) 1633", 3),
        ("D. 1633", 3),
        ("green", 1),
        ("GREEN", 1),
        ("1633", 3),
    ],
)
def test_an_answer_is_a_letter_an_index_a_tag_a_letter_with_text_or_a_text(answer, index):
    assert parse_answer(answer, COLOURS) == (index, False)


@pytest.mark.parametrize("answer", [None, -1, "-1"])
def test_an_answer_that_is_not_public_is_none(answer):
    assert parse_answer(answer, COLOURS) == (None, False)


def test_a_number_that_is_an_option_means_that_option():
    assert parse_answer("2", ("3", "2", "1")) == (1, False)
    assert parse_answer(2, ("3", "2", "1")) == (2, False)  # but a whole number is an index
    assert parse_answer("-1", ("-2", "-1")) == (1, False)


def test_a_text_that_stands_under_two_letters_takes_the_first_and_says_so():
    assert parse_answer("x", ("w", "x", "x")) == (1, True)
    task = parse(options=["w", "x", "x"], answer="x")
    assert task.issues == ("duplicate_options", "ambiguous_answer_text")
    assert parse(options=["w", "x", "x"], answer="C").issues == ("duplicate_options",)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("E", r"answer='E' is not among the 4 options; use A..D or 0..3"),
        (4, r"answer=4 is not among the 4 options"),
        (-2, r"answer=-2 is not among"),
        ("7", r"answer='7' is not among the 4 options"),
        ("yellow", r"answer='yellow' is not among the options .*give a letter"),
        ("", r"answer='' is not among"),
        ("<answer>yellow</answer>", r"is not among"),
        (True, r"answer=True must be a letter"),
        (1.0, r"answer=1.0 must be a letter"),
        (["B"], r"answer=\['B'\] must be a letter"),
    ],
)
def test_an_answer_that_is_no_option_is_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        parse_answer(answer, COLOURS)


@given(st.text(), st.lists(st.text(min_size=1), min_size=1, max_size=6).map(tuple))
def test_any_text_is_an_option_or_a_value_error(answer, options):
    try:
        index, _ = parse_answer(answer, options)
    except ValueError:
        return
    assert 0 <= index < len(options)


# --- segments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "segments"),
    [
        (None, ()),
        ([], ()),
        ((), ()),
        ("", ()),
        ([[1, 2.5]], ((1.0, 2.5),)),
        ([1, 2.5], ((1.0, 2.5),)),
        ((1, 2.5), ((1.0, 2.5),)),
        (["00:15", "01:02.5"], ((15.0, 62.5),)),
        ("00:15-01:02", ((15.0, 62.0),)),
        ("00:15 - 01:02", ((15.0, 62.0),)),
        ("1:00:00-1:00:05", ((3600.0, 3605.0),)),
        ("75:00-76:30", ((4500.0, 4590.0),)),
        ([[8, 9], [1, 2]], ((1.0, 2.0), (8.0, 9.0))),
        ([["3", "4.5"]], ((3.0, 4.5),)),
    ],
)
def test_segments_are_pairs_of_seconds_or_clock_times_and_come_sorted(raw, segments):
    assert parse_segments(raw, None) == (segments, False)


@pytest.mark.parametrize(
    ("raw", "segments"),
    [
        ([[8, 11]], ((8.0, 10.0),)),
        ([[-0.5, 3]], ((0.0, 3.0),)),
        ([[-1, 11], [2, 3]], ((0.0, 10.0), (2.0, 3.0))),
    ],
)
def test_edges_up_to_a_second_outside_the_video_are_clamped_and_told(raw, segments):
    assert parse_segments(raw, 10.0) == (segments, True)
    assert parse(segments=raw, duration=10).issues == ("repaired_segments",)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([[5, 3]], r"segment \[5, 3\] is reversed or empty; start must be < end"),
        ([[5, 5]], r"reversed or empty"),
        ([[8, 11.5]], r"segment \[8, 11.5\] is outside the video \(0 to 10.0 s\)"),
        ([[-2, 3]], r"is outside the video"),
        ([[10.2, 10.8]], r"is outside the video"),
        ([[20, 30]], r"is outside the video"),
        ([[1, 2, 3]], r"segment \[1, 2, 3\] must be \[start, end\] in seconds"),
        ([[1, 2], 3], r"segment 3 must be \[start, end\]"),
        ([1, 2, 3], r"must be \[start, end\]"),
        ([[1, None]], r"time None is neither seconds nor MM:SS"),
        ([[1, "soon"]], r"time 'soon' is neither"),
        ([[1, float("nan")]], r"time nan is neither"),
        ([[0, float("inf")]], r"time inf is neither"),
        ([[True, 2]], r"time True is neither"),
        (5, r"segments=5 must be a list"),
        ({"start": 1}, r"must be a list"),
        ("from start", r"must be \[start, end\]"),
    ],
)
def test_segments_that_are_no_part_of_the_video_are_refused(raw, message):
    with pytest.raises(ValueError, match=message):
        parse_segments(raw, 10.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(3, 3.0), ("75.5", 75.5), ("01:02", 62.0), ("1:02:03.5", 3723.5), (" 00:07 ", 7.0), (0, 0.0)],
)
def test_times_are_seconds_or_clock_times(value, seconds):
    assert parse_time(value) == seconds


# --- whole records --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "  "}, r"question='  ' must be a string that says something"),
        ({"question": None}, r"question=None must be a string"),
        ({"question": 3}, r"question=3 must be a string"),
        ({"video": ""}, r"video='' must be a path"),
        ({"video": 17}, r"video=17 must be a path"),
        ({"video": "a\0b.mp4"}, r"video='a\\x00b.mp4' must be a path"),
        ({"id": 1.5}, r"id=1.5 must be a string or a whole number"),
        ({"id": True}, r"id=True must be"),
        ({"id": ["a"]}, r"id=\['a'\] must be"),
        ({"duration": -3}, r"duration=-3 must be a number of seconds greater than 0"),
        ({"duration": float("nan")}, r"duration=nan must be"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_with_its_value(fields, message):
    with pytest.raises(ValueError, match=message):
        parse(**fields)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("question", r"no question: expected one of .*'problem'.* found \['answer', 'options'"),
        ("video", r"no video: expected one of .*'video_path'"),
        ("answer", r"no answer: expected one of .*'correct_choice'"),
        ("options", r"options=\[\] must be a list of choices"),
    ],
)
def test_a_missing_field_is_named_with_its_aliases(name, message):
    with pytest.raises(ValueError, match=message):
        parse_record(without(name), default_id="0")


@pytest.mark.parametrize("record", [None, 3, "text", ["a"]])
def test_what_is_no_object_is_refused(record):
    with pytest.raises(ValueError, match="a record must be an object, not"):
        parse_record(record, default_id="0")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = ["video", "question", "options", "answer", "segments", "id", "duration", "task_type", "a0"]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values), st.booleans())
def test_any_json_object_is_a_task_or_a_value_error(record, complete):
    try:
        task = parse_record({**PLAIN, **record} if complete else record, default_id="0")
    except ValueError:
        return
    assert isinstance(task, Task)


# --- tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": ()}, r"task 't': options is empty"),
        ({"answer_index": 2}, r"answer_index=2 is not one of the 2 options; use 0..1, or None"),
        ({"answer_index": -1}, r"answer_index=-1 is not one of"),
        ({"segments_s": ((5.0, 3.0),)}, r"segment \(5.0, 3.0\) is not 0 <= start < end"),
        ({"segments_s": ((-1.0, 3.0),)}, r"segment \(-1.0, 3.0\)"),
        ({"options": ("x",) * 27}, r"there are letters for 26"),
    ],
)
def test_an_impossible_task_is_refused(fields, message):
    plain = {"task_id": "t", "video": "v", "question": "?", "options": ("x", "y")}
    with pytest.raises(ValueError, match=message):
        Task(**{**plain, "answer_index": 0, **fields})


def test_results_are_clustered_by_video_unless_the_task_says_otherwise():
    assert Task("t", "v.mp4", "?", ("x",), 0).video_id == "v.mp4"
    assert Task("t", "v.mp4", "?", ("x",), 0, video_id="film").video_id == "film"


def test_a_letter_names_its_option_even_where_options_are_letters():
    assert parse_answer("A", ("H", "A", "X")) == (0, True)
    assert parse_answer("B", ("H", "A", "X")) == (1, False)
    assert parse_answer("X", ("H", "A", "X")) == (2, False)  # no 24th option: its text
    with pytest.raises(ValueError, match="'Q' is not among the 3 options"):
        parse_answer("Q", ("H", "A", "X"))


def test_odd_types_are_named_or_tolerated():
    line = {"video": "v.mp4", "question": "?", "options": ["x", "y"], "answer": "A"}
    assert parse_record({**line, "task_type": None}, default_id="0").task_types == ()
    assert parse_record({**line, "task_type": 3}, default_id="0").task_types == ("3",)
    assert parse_record({**line, "video_id": None}, default_id="0").video_id == "v.mp4"
    assert parse_record({**line, "video_id": 0}, default_id="0").video_id == "0"
    with pytest.raises(ValueError, match="duration=1000"):
        parse_record({**line, "duration": 10**400}, default_id="0")
    with pytest.raises(ValueError, match="is neither seconds nor MM:SS"):
        parse_record({**line, "segments": [[0, 10**400]]}, default_id="0")
