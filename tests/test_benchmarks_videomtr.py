"""Synthetic rows: no file of the training set was at hand, its schema is reconstructed."""

import json

import pytest

import benchmarks


def row(number=1, **changes):
    fields = {
        "problem_id": number,
        "problem": "What does the robot carry?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. a box", "B. a cat", "C. a lamp", "D. a plant"],
        "solution": "<answer>C</answer>",
        "path": "./QVHighlights/videos/clip.mp4",
        "data_source": "QVHighlights",
        "duration": 150,
        "relevant_windows": [[30, 60]],
        "relevant_sample_frames": [13, 14, 20, 25],
    }
    fields = {**fields, **changes}
    return {key: value for key, value in fields.items() if value != "absent"}


def load(tmp_path, *rows, **options):
    path = tmp_path / "data" / "train" / "qv-nextgqa_merge_8k.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return benchmarks.load_suite("videomtr", root=tmp_path, **options)


def test_a_full_record_is_a_task(tmp_path):
    suite = load(tmp_path, row())
    task = suite[0]
    assert (suite.split, task.task_id, task.answer_index) == ("train", "1", 2)
    assert task.options == ("a box", "a cat", "a lamp", "a plant")
    assert task.segments_s == ((30.0, 60.0),) and task.duration_s == 150.0
    assert task.meta["evidence_frames"] == [13, 14, 20, 25]
    assert task.meta["evidence_unit"] == "pool_index" and task.issues == ()
    assert suite.dataset.groups({**task.__dict__}) == {"data_source": ("QVHighlights",)}
    assert suite.dataset.splits["train"].tasks == 7896


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"solution": "C"}, 2),
        ({"solution": "<answer> c </answer>"}, 2),
        ({"options": ["a box", "a cat", "a lamp", "a plant"]}, 2),
        ({"options": "A. a box\nB. a cat\nC. a lamp\nD. a plant\n"}, 2),
        ({"options": {"A": "a box", "B": "a cat", "C": "a lamp", "D": "a plant"}}, 2),
        ({"options": None, "problem": "What?\n(A) a box\n(B) a cat\n(C) a lamp\n(D) a plant"}, 2),
        ({"options": ["a box", "a cat", "a lamp", "a plant", "a car"], "solution": "E"}, 4),
        ({"problem_id": "v_3"}, 2),
        ({"problem_id": "absent"}, 2),
        ({"problem_type": "absent", "data_type": "absent", "data_source": "absent"}, 2),
        ({"relevant_windows": "absent", "relevant_sample_frames": "absent"}, 2),
        ({"duration": "absent"}, 2),
        ({"duration": "150.0"}, 2),
        ({"relevant_windows": [30, 60]}, 2),
    ],
)
def test_whatever_may_be_missing_or_other_is_tolerated(tmp_path, changes, answer):
    suite = load(tmp_path, row(**changes))
    assert len(suite) == 1 and suite[0].answer_index == answer and not suite.invalid
    assert suite[0].options[:2] == ("a box", "a cat") and suite[0].issues == ()
    if changes.get("duration") != "absent":
        assert suite[0].duration_s == 150.0


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({}, "QVHighlights/videos/clip.mp4"),
        ({}, "videos/clip.mp4"),
        ({"path": "./Evaluation/MLVU/video/clip.mp4"}, "MLVU/video/clip.mp4"),
        ({"path": "QVHighlights/videos/clip.mp4"}, "QVHighlights/videos/clip.mp4"),
        ({"path": "clip.mp4"}, "QVHighlights/videos/clip.mp4"),
        ({"path": "absent", "vid": "clip"}, "videos/clip.mp4"),
        ({"path": "./NExT-GQA/videos/0001/clip.mp4"}, "NExT-GQA/videos/0001/clip.mp4"),
    ],
)
def test_paths_are_found_below_the_root(tmp_path, changes, place):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    suite = load(tmp_path, row(**changes))
    assert suite[0].video == str(tmp_path / place) and not suite.missing


def test_absolute_paths_count_below_the_root_only(tmp_path):
    inside = tmp_path / "videos" / "clip.mp4"
    suite = load(
        tmp_path, row(1, path=str(inside)), row(2, path="/elsewhere/clip.mp4"), on_invalid="skip"
    )
    assert suite[0].video == str(inside)
    assert "leaves the root" in suite.invalid[0].message
    trusting = load(
        tmp_path, row(2, path="/elsewhere/clip.mp4"), allow_outside=True, on_invalid="skip"
    )
    assert trusting[0].video == "/elsewhere/clip.mp4"


@pytest.mark.parametrize(
    ("duration", "frames", "kept"),
    [
        (150, [0, 63], [0, 63]),
        (150, [0, 64], [0]),
        (39, [37, 38], [37]),
        ("absent", [63, 64], [63]),
        (150, [-1, "x", 5], [5]),
    ],
)
def test_frames_beyond_their_pool_are_dropped_and_named(tmp_path, duration, frames, kept):
    windows = [[3, 5]]
    fields = row(duration=duration, relevant_windows=windows, relevant_sample_frames=frames)
    task = load(tmp_path, fields)[0]
    assert task.meta["evidence_frames"] == kept
    assert task.issues == (() if kept == frames else ("garbage_evidence_frames",))
    assert task.meta["relevant_sample_frames"] == frames


def test_an_id_shared_by_two_questions_is_told_apart_and_repeats_are_not(tmp_path):
    other = row("5", path="./NExT-GQA/videos/x.mp4", problem="Why?")
    third = row(5, problem="When?")
    suite = load(tmp_path, row(5), other, third, row(5), on_invalid="skip")
    assert [task.task_id for task in suite] == ["5", "5#2", "5#3"]
    assert suite[1].issues == ("shared_id",)
    assert [invalid.kind for invalid in suite.invalid] == ["duplicate_id"]


def test_what_is_no_choice_about_a_video_is_left_out_and_counted(tmp_path):
    suite = load(
        tmp_path,
        row(1),
        row(2, problem_type="free-form", options=[]),
        row(3, data_type="image"),
        row(4, options=[]),
        row(5, solution="<answer>Z</answer>"),
        row(6, solution=None),
        row(7, path="absent"),
        row(8, problem=None),
        [],
        on_invalid="skip",
    )
    assert [task.task_id for task in suite] == ["1"]
    assert [invalid.kind for invalid in suite.invalid] == [
        "not_multiple_choice",
        "not_a_video",
        "no_options",
        "answer_not_in_options",
        "no_answer",
        "malformed_row",
        "blank_question",
        "malformed_row",
    ]


def test_the_filter_of_the_paper_needs_segments_and_a_duration(tmp_path):
    rows = [
        row(1),
        row(2, relevant_windows=[[0, 90]]),
        row(3, duration=29, relevant_windows=[[0, 5]]),
        row(4, duration="absent"),
    ]
    suite = load(tmp_path, *rows, relevant_share_below=0.5, longer_than_s=30)
    assert [task.task_id for task in suite] == ["1"] and suite.filtered == 3
