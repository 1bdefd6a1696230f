import json
from itertools import pairwise

import pytest

import benchmarks
from benchmarks.datasets.dataset import Defect
from benchmarks.datasets.segment_choice import choose
from benchmarks.registry import find_dataset


def row(qid=5, **changes):
    fields = {
        "qid": qid,
        "query": "A robot waters a plant.",
        "duration": 150,
        "vid": "clip_60.0_210.0",
        "relevant_windows": [[10, 20], [40, 44]],
        "relevant_clip_ids": [5, 6, 7, 8, 9, 20, 21],
        "saliency_scores": [[4, 1, 1]] * 7,
    }
    return {**fields, **changes}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(fields) + "\n" for fields in rows), encoding="utf-8")
    return path.parent


@pytest.mark.parametrize("folder", ["data", "."])
@pytest.mark.parametrize("split", ["train", "val"])
def test_grounding_asks_where_and_offers_no_choice(tmp_path, folder, split):
    write(tmp_path / folder / f"highlight_{split}_release.jsonl", [row()])
    video = tmp_path / "videos" / "clip_60.0_210.0.mp4"
    video.parent.mkdir()
    video.touch()
    suite = benchmarks.load_suite("qvhighlights_grounding", split=split, root=tmp_path)
    task = suite[0]
    assert task.task_id == "5" and task.video == str(video) and not suite.missing
    assert task.segments_s == ((10.0, 20.0), (40.0, 44.0)) and task.duration_s == 150.0
    assert len(task.options) == 1 and task.answer_index is None
    assert "A robot waters a plant." in task.question
    assert not suite.dataset.splits[split].scored
    assert "saliency_scores" not in task.meta
    assert suite.dataset.groups({**task.__dict__}) == {"length": ("short",)}


def test_the_test_split_takes_the_file_with_segments_if_it_is_there(tmp_path):
    bare = {key: value for key, value in row().items() if key[:8] not in ("relevant", "saliency")}
    write(tmp_path / "highlight_test_release.jsonl", [bare])
    suite = benchmarks.load_suite("qvhighlights_grounding", split="test", root=tmp_path)
    assert suite[0].segments_s == () and suite.dataset.groups({**suite[0].__dict__}) == {}
    with pytest.raises(ValueError, match="there is no segment to choose"):
        benchmarks.load_suite("qvhighlights_segments", split="test", root=tmp_path)
    write(tmp_path / "highlight_test_with_gt.jsonl", [row()])
    suite = benchmarks.load_suite("qvhighlights_grounding", split="test", root=tmp_path)
    assert suite[0].segments_s[0] == (10.0, 20.0)


def seconds(option):
    return [int(clock[:2]) * 60 + int(clock[3:]) for clock in option.split("-")]


@pytest.mark.parametrize(
    "segments", [[[10, 20], [40, 44]], [[0, 30]], [[70, 76], [120, 150]], [[60, 90]]]
)
def test_wrong_ranges_are_as_long_as_the_right_one_and_overlap_nothing(segments):
    longest = max(segments, key=lambda segment: segment[1] - segment[0])
    for key in range(40):
        options, answer = choose(segments, 150.0, str(key))
        ranges = [seconds(option) for option in options]
        assert ranges[answer] == longest and len(ranges) == 4
        assert {end - start for start, end in ranges} == {longest[1] - longest[0]}
        taken = sorted([*(each for i, each in enumerate(ranges) if i != answer), *segments])
        assert all(end <= start for (_, end), (start, _) in pairwise(taken))
        assert taken[0][0] >= 0 and taken[-1][1] <= 150


def test_the_choice_depends_on_the_key_alone_and_favours_no_place():
    assert choose([[10, 20]], 60.0, "5") == choose([[10, 20]], 60.0, "5")
    assert choose([[10, 20]], 60.0, "5").options == [
        "00:22-00:32",
        "00:10-00:20",
        "00:48-00:58",
        "00:00-00:10",
    ]
    drawn = [choose([[60, 70]], 150.0, str(key)) for key in range(600)]
    for place in range(4):
        assert 110 < sum(answer == place for _, answer in drawn) < 190
    # Wrong ranges before and after the right one, about as often: 60 s before, 80 s after.
    starts = [seconds(option)[0] for options, _ in drawn for option in options]
    assert 0.35 < sum(start < 60 for start in starts) / (3 * 600) < 0.5
    assert {start for start in starts if start != 60} >= {0, 2, 4, 50, 70, 72, 138, 140}


@pytest.mark.parametrize(
    ("segments", "duration_s", "kind"),
    [
        ([], 150.0, "no_segments"),
        ([[0, 76]], 150.0, "mostly_relevant"),
        ([[0, 40], [60, 96]], 150.0, "mostly_relevant"),
        # Half is allowed, but three more of 74 s do not fit.
        ([[0, 74]], 150.0, "no_room"),
        ([[0, 10]], 0.0, "malformed_row"),
    ],
)
def test_queries_that_allow_no_choice_are_named(segments, duration_s, kind):
    with pytest.raises(Defect) as caught:
        choose(segments, duration_s, "5")
    assert caught.value.kind == kind


def test_segment_choices_are_tasks_and_the_others_are_counted(tmp_path):
    rows = [row(), row(6, relevant_windows=[[0, 100]]), row(7, relevant_windows=[[0, 60]]), row(5)]
    write(tmp_path / "highlight_val_release.jsonl", rows)
    suite = benchmarks.load_suite("qvhighlights_segments", root=tmp_path, on_invalid="skip")
    assert suite.split == "val" and len(suite) == 1 and suite.max_options == 4
    task = suite[0]
    assert task.options[task.answer_index] == "00:10-00:20"
    assert task.question == "When does the following happen: A robot waters a plant."
    assert [invalid.kind for invalid in suite.invalid] == [
        "mostly_relevant",
        "no_room",
        "duplicate_id",
    ]
    assert "not published" in suite.dataset.title and suite.dataset.name != "qvhighlights"


def test_segments_outside_the_video_and_rows_without_a_video_are_named(tmp_path):
    rows = [
        row(1, relevant_windows=[[140, 151], [20, 10]]),
        row(2, relevant_windows=[[500, 510]]),
        {"qid": 3, "query": "?", "duration": 150},
        row(4, duration=None),
    ]
    write(tmp_path / "highlight_val_release.jsonl", rows)
    suite = benchmarks.load_suite("qvhighlights_grounding", root=tmp_path, on_invalid="skip")
    assert [(task.task_id, task.issues) for task in suite] == [
        ("1", ("repaired_segments", "reversed_segment")),
        ("2", ("outside_segment",)),
        ("4", ()),
    ]
    assert suite[0].segments_s == ((140.0, 150.0),)
    assert [invalid.kind for invalid in suite.invalid] == ["malformed_row"]


def test_a_converted_file_has_questions_and_the_original_is_refused(tmp_path):
    record = {
        "problem_id": 5,
        "problem": "What does the robot water?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. a plant", "B. a car", "C. a cat", "D. the lawn"],
        "solution": "<answer>A</answer>",
        "path": "./QVHighlights/videos/clip_60.0_210.0.mp4",
        "data_source": "QVHighlights",
        "relevant_windows": [[10, 20]],
        "duration": 150,
    }
    (tmp_path / "qvhighlights_val.json").write_text(json.dumps([record]))
    video = tmp_path / "videos" / "clip_60.0_210.0.mp4"
    video.parent.mkdir()
    video.touch()
    suite = benchmarks.load_suite("qvhighlights", root=tmp_path)
    task = suite[0]
    assert task.task_id == "5" and task.video == str(video) and task.answer_index == 0
    assert task.options[0] == "a plant" and task.segments_s == ((10.0, 20.0),)
    write(tmp_path / "o" / "qvhighlights_val.jsonl", [row()])
    with pytest.raises(ValueError, match="which qvhighlights_segments and qvhighlights_grounding"):
        benchmarks.load_suite("qvhighlights", root=tmp_path / "o")


def test_the_three_are_different_datasets_of_one_module():
    found = {name: find_dataset(name) for name in benchmarks.ENV_IDS if name.startswith("qvh")}
    assert len(found) == 3 and all(each.name == name for name, each in found.items())
    counts = {name: split.tasks for name, split in found["qvhighlights_grounding"].splits.items()}
    assert counts == {"train": 7218, "val": 1550, "test": 1542}
