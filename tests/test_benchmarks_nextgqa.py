import csv
import json

import pytest

import benchmarks

COLUMNS = ["video_id", "frame_count", "width", "height", "question", "answer", "qid", "type"]
OPTIONS = ["a0", "a1", "a2", "a3", "a4"]


def row(qid=0, **changes):
    fields = {
        "video_id": "101",
        "frame_count": "900",
        "width": "640",
        "height": "480",
        "question": "why did the robot turn",
        "answer": "to look",
        "qid": str(qid),
        "type": "CW",
        "a0": "to leave",
        "a1": "to sit",
        "a2": "to look",
        "a3": "to dance",
        "a4": "3",
    }
    return {**fields, **changes}


def write(directory, rows, split="test", windows=None, first="video_id", folders=None):
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [first, *COLUMNS[1:], *OPTIONS])
        writer.writeheader()
        for fields in rows:
            fields = dict(fields)
            writer.writerow({first: fields.pop("video_id"), **fields})
    if windows is not None:
        gsub = {"101": {"duration": 30, "location": windows, "fps": 29.97}}
        (directory / f"gsub_{split}.json").write_text(json.dumps(gsub))
    if folders is not None:
        (directory / "map_vid_vidorID.json").write_text(json.dumps(folders))


@pytest.mark.parametrize("folder", ["datasets/nextgqa", "nextgqa", "."])
@pytest.mark.parametrize("split", ["val", "test"])
def test_segments_come_from_the_file_beside(tmp_path, folder, split):
    windows = {"0": [[20, 23.5], [1.2, 5.8]], "1": [[0, 3]]}
    write(tmp_path / folder, [row(0), row(1)], split, windows, folders={"101": "0007/101"})
    suite = benchmarks.load_suite("nextgqa", split=split, root=tmp_path)
    task = suite[0]
    assert task.task_id == "101_0" and task.video_id == "101" and task.duration_s == 30.0
    assert task.segments_s == ((1.2, 5.8), (20.0, 23.5)) and task.issues == ()
    assert task.options == ("to leave", "to sit", "to look", "to dance", "3")
    assert task.answer_index == 2 and suite[1].segments_s == ((0.0, 3.0),)


def test_edges_that_leave_the_video_are_cut_and_said_so(tmp_path):
    windows = {"0": [[-0.2, 5], [28, 30.5]], "1": [[40, 50], [2, 3]]}
    write(tmp_path, [row(0), row(1)], windows=windows)
    suite = benchmarks.load_suite("nextgqa", root=tmp_path)
    assert suite[0].segments_s == ((0.0, 5.0), (28.0, 30.0))
    assert suite[0].issues == ("repaired_segments",)
    assert suite[0].meta["annotated_segments"] == [[-0.2, 5], [28, 30.5]]
    assert suite[1].segments_s == ((2.0, 3.0),) and suite[1].issues == ("outside_segment",)


@pytest.mark.parametrize("place", ["NExTVideo/0007/101.mp4", "NExTVideo/101.mp4", "101.mkv"])
def test_videos_are_found_by_the_map_or_flat(tmp_path, place):
    write(tmp_path, [row()], windows={}, folders={"101": "0007/101"})
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()
    suite = benchmarks.load_suite("nextgqa", root=tmp_path)
    assert suite[0].video == str(tmp_path / place) and not suite.missing
    assert suite[0].video_id == "101"


def test_without_map_and_segments_there_are_still_tasks(tmp_path):
    write(tmp_path, [row()])
    (tmp_path / "101.mp4").touch()
    suite = benchmarks.load_suite("nextgqa", root=tmp_path)
    assert not suite.missing and suite[0].segments_s == () and suite[0].duration_s is None


def test_an_answer_is_a_text_here_and_an_index_in_plain_next_qa(tmp_path):
    write(tmp_path / "a", [row(answer="3")])
    write(tmp_path / "b", [row(answer="3")], first="video")
    assert benchmarks.load_suite("nextgqa", root=tmp_path / "a")[0].answer_index == 4
    task = benchmarks.load_suite("nextgqa", root=tmp_path / "b")[0]
    assert task.answer_index == 3 and task.video_id == "101" and task.task_id == "101_0"


def test_a_text_that_stands_twice_or_nowhere_is_named(tmp_path):
    rows = [row(0, a4="to look"), row(1, a0="to sit"), row(2, answer="to fly")]
    write(tmp_path, rows)
    suite = benchmarks.load_suite("nextgqa", root=tmp_path, on_invalid="skip")
    assert suite[0].issues == ("duplicate_options", "ambiguous_answer_text")
    assert suite[0].answer_index == 2 and suite[0].meta["accepted_indices"] == [2, 4]
    assert suite[1].issues == ("duplicate_options",)
    assert [invalid.kind for invalid in suite.invalid] == ["answer_not_in_options"]


def test_types_are_merged_as_the_official_score_does(tmp_path):
    kinds = ["CW", "CH", "TN", "TC", "TP"]
    write(tmp_path, [row(i, type=kind) for i, kind in enumerate(kinds)])
    suite = benchmarks.load_suite("nextgqa", root=tmp_path)
    groups = [suite.dataset.groups({**task.__dict__}) for task in suite]
    assert [group["task_type"][0] for group in groups] == ["CW", "CH", "TN", "TC", "TN"]
    assert [group["kind"][0] for group in groups] == ["causal"] * 2 + ["temporal"] * 3
    assert suite[4].task_types == ("TP",)
    suite = benchmarks.load_suite("nextgqa", root=tmp_path, where={"task_type": "TN"})
    assert len(suite) == 2


def test_bad_files_are_named(tmp_path):
    write(tmp_path, [row()], windows={})
    (tmp_path / "gsub_test.json").write_text("[]")
    with pytest.raises(ValueError, match=r"gsub_test\.json: holds list, not an object"):
        benchmarks.load_suite("nextgqa", root=tmp_path)
    (tmp_path / "gsub_test.json").write_text("{")
    with pytest.raises(ValueError, match=r"gsub_test\.json: not valid JSON"):
        benchmarks.load_suite("nextgqa", root=tmp_path)
    (tmp_path / "gsub_test.json").write_text('{"101": {"duration": 30, "location": {"0": 5}}}')
    suite = benchmarks.load_suite("nextgqa", root=tmp_path)
    assert suite[0].issues == ("odd_segment",) and suite[0].segments_s == ()
    (tmp_path / "test.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(ValueError, match="none of 2 rows is usable"):
        benchmarks.load_suite("nextgqa", root=tmp_path)
