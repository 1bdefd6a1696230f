import json

import pytest

import benchmarks
from gym_longvideo.video.errors import VideoNotFoundError


def row(number=0, **changes):
    fields = {
        "video_id": "@user-123",
        "question": f"When the bell rings, what is on the table, {number}?",
        "question_wo_referring_query": "What is on the table?",
        "candidates": ["a cup", "a hat", "a key", "a map"],
        "correct_choice": 2,
        "position": [24, 480],
        "topic_category": "MA-Making",
        "question_category": "T2O",
        "level": "L1-Perception",
        "id": f"@user-123_{number}",
        "video_path": "123.mp4",
        "subtitle_path": "123_en.json",
        "duration_group": 600,
        "starting_timestamp_for_subtitles": 90,
        "duration": 200.5,
        "view_count": 10,
    }
    return {**fields, **changes}


def columns(fields):
    """Return a row as the Parquet files have it."""
    options = [*fields["candidates"], *["N/A"] * 5][:5]
    left_out = ("candidates", "position", "level", "question_wo_referring_query", "view_count")
    kept = {key: value for key, value in fields.items() if key not in left_out}
    kept["starting_timestamp_for_subtitles"] = float(kept["starting_timestamp_for_subtitles"])
    return {**kept, **{f"option{i}": option for i, option in enumerate(options)}}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_parquet(path, rows):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def test_videos_are_named_by_their_path_not_by_their_id(tmp_path):
    write(tmp_path / "lvb_val.json", [row()])
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "123.mp4").touch()
    suite = benchmarks.load_suite("longvideobench", root=tmp_path)
    task = suite[0]
    assert task.video == str(tmp_path / "videos" / "123.mp4") and not suite.missing
    assert task.video_id == "@user-123" and task.task_id == "@user-123_0"
    assert task.answer_index == 2 and task.duration_s == 200.5
    assert task.meta["subtitle_path"] == "123_en.json"
    assert task.meta["starting_timestamp_for_subtitles"] == 90.0
    assert suite.dataset.groups({**task.__dict__}) == {
        "duration_group": ("600",),
        "topic_category": ("MA-Making",),
        "level": ("L1-Perception",),
        "task_type": ("T2O",),
    }


def test_positions_are_evidence_in_frames_and_no_segments(tmp_path):
    rows = [row(0), row(1, position=[5, 61388250, -3]), row(2, position=[])]
    write(tmp_path / "lvb_val.json", rows)
    suite = benchmarks.load_suite("longvideobench", root=tmp_path)
    assert suite[0].meta["evidence_frames"] == [24, 480] and suite[0].segments_s == ()
    assert suite[0].meta["evidence_unit"] == "source_frame" and suite[0].issues == ()
    assert suite[1].meta["evidence_frames"] == [5]
    assert suite[1].meta["position"] == [5, 61388250, -3]
    assert suite[1].issues == ("garbage_evidence_frames",)
    assert "evidence_frames" not in suite[2].meta


def test_parquet_gives_the_tasks_of_json(tmp_path):
    rows = [
        row(0),
        row(1, candidates=["N/A", "a hat", "a key"]),
        row(2, candidates=["3", "1", "2", "7", "N/A or so"], correct_choice=3),
        row(3, candidates=["a cup", "a cup", "a key"]),
    ]
    write(tmp_path / "json" / "lvb_val.json", rows)
    write_parquet(
        tmp_path / "p" / "validation-00000-of-00001.parquet", [columns(fields) for fields in rows]
    )
    suite = benchmarks.load_suite("longvideobench", root=tmp_path / "json")
    again = benchmarks.load_suite("longvideobench", root=tmp_path / "p")
    assert [len(task.options) for task in suite] == [4, 3, 5, 3]
    for task, other in zip(suite, again, strict=True):
        for name in ("task_id", "question", "options", "answer_index", "issues", "task_types"):
            assert getattr(task, name) == getattr(other, name)
        assert other.video_id == task.video_id and other.duration_s == task.duration_s
        assert other.meta == {key: task.meta[key] for key in other.meta}


def test_the_test_split_has_no_answers(tmp_path):
    write(tmp_path / "lvb_test_wo_gt.json", [row(correct_choice=-1), row(1, correct_choice=None)])
    suite = benchmarks.load_suite("longvideobench", split="test", root=tmp_path)
    assert [task.answer_index for task in suite] == [None, None]
    assert not suite.dataset.splits["test"].scored
    write_parquet(tmp_path / "p" / "test-00000-of-00001.parquet", [columns(row(correct_choice=-1))])
    suite = benchmarks.load_suite("longvideobench", split="test", root=tmp_path / "p")
    assert suite[0].answer_index is None


def test_vlmevalkit_adds_a_folder_and_writes_numbers_as_text(tmp_path):
    fields = {**row(candidates=["3", "1", "2"]), "index": 0, "video": "@user-123"}
    fields["video_path"] = "./videos/123.mp4"
    text = "\t".join(fields) + "\n" + "\t".join(map(str, fields.values())) + "\n"
    cache = tmp_path / "datasets--longvideobench--LongVideoBench"
    (cache / "videos").mkdir(parents=True)
    (cache / "videos" / "123.mp4").touch()
    (cache / "LongVideoBench.tsv").write_text(text, encoding="utf-8")
    suite = benchmarks.load_suite("longvideobench", root=tmp_path)
    task = suite[0]
    assert task.video.endswith("videos/123.mp4") and not suite.missing
    # The third option, not the one that reads "2".
    assert task.answer_index == 2 and task.duration_s == 200.5
    assert task.meta["evidence_frames"] == [24, 480] and task.meta["duration_group"] == 600


def test_lmms_eval_keeps_videos_below_datasets(tmp_path):
    write_parquet(
        tmp_path
        / "hub/datasets--longvideobench--LongVideoBench/snapshots/a/validation-00000.parquet",
        [columns(row())],
    )
    video = tmp_path / "datasets" / "longvideobench" / "videos" / "123.mp4"
    video.parent.mkdir(parents=True)
    video.touch()
    suite = benchmarks.load_suite("longvideobench", root=tmp_path)
    assert suite[0].video == str(video)


def test_answers_out_of_range_and_rows_without_video_are_listed(tmp_path):
    rows = [row(), row(1, correct_choice=4), row(2, video_path=None), row(3, correct_choice=-2)]
    write(tmp_path / "lvb_val.json", rows)
    suite = benchmarks.load_suite("longvideobench", root=tmp_path, on_invalid="skip")
    assert len(suite) == 1
    assert [invalid.kind for invalid in suite.invalid] == [
        "answer_not_in_options",
        "malformed_row",
        "answer_not_in_options",
    ]


def test_packed_videos_are_named_with_their_command(tmp_path):
    write(tmp_path / "lvb_val.json", [row()])
    (tmp_path / "videos.tar.part.aa").touch()
    suite = benchmarks.load_suite("longvideobench", root=tmp_path)
    with pytest.raises(VideoNotFoundError, match=r"cat videos\.tar\.part\.\* \| tar -x"):
        suite.open_video(suite[0])
