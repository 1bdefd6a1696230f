import json

import gymnasium as gym
import pytest

import benchmarks
from benchmarks.datasets.layout import VideoFinder, find_layout
from benchmarks.registry import find_dataset
from benchmarks.speed.loading import measure
from benchmarks.suite import relevant_share
from gym_longvideo.task import Task
from gym_longvideo.video.errors import VideoNotFoundError


def row(number, **changes):
    video = (number - 1) // 3 + 1
    fields = {
        "video_id": f"{video:03d}",
        "duration": ("short", "medium", "long")[video % 3],
        "domain": "Knowledge",
        "sub_category": "Astronomy",
        "url": f"https://www.youtube.com/watch?v=vid{video}",
        "videoID": f"vid{video}",
        "question_id": f"{video:03d}-{(number - 1) % 3 + 1}",
        "task_type": "Counting Problem",
        "question": f"How many, {number}?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. A. Lincoln."],
        "answer": "ABCD"[number % 4],
    }
    return {**fields, **changes}


def write(directory, rows, name="videomme.json"):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(json.dumps(rows), encoding="utf-8")
    return directory


def write_parquet(path, rows):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def test_a_repository_directory_gives_tasks_without_touching_videos(tmp_path):
    write_parquet(tmp_path / "videomme" / "test-00000-of-00001.parquet", [row(1), row(2), row(3)])
    suite = benchmarks.load_suite("videomme", root=tmp_path)
    assert len(suite) == 3 and suite.max_options == 4 and len(suite.missing) == 3
    task = suite[0]
    assert task.task_id == "001-1" and task.video_id == "001"
    assert task.options == ("One.", "Two.", "Three.", "A. Lincoln.") and task.answer_index == 1
    assert task.video == str(tmp_path / "data" / "vid1.mp4")
    assert suite.dataset.groups({**task.__dict__}) == {
        "duration": ("medium",),
        "domain": ("Knowledge",),
        "sub_category": ("Astronomy",),
        "task_type": ("Counting Problem",),
    }


def test_a_hub_cache_is_read_at_its_main_revision(tmp_path):
    cache = tmp_path / "hub" / "datasets--lmms-lab--Video-MME"
    write(cache / "snapshots" / "old", [row(1), row(2)])
    write(cache / "snapshots" / "new", [row(1)])
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("old\n")
    assert len(benchmarks.load_suite("videomme", root=tmp_path)) == 2
    assert len(benchmarks.load_suite("videomme", root=cache)) == 2


def test_annotation_in_the_hub_cache_and_videos_in_an_lmms_eval_directory(tmp_path):
    write(tmp_path / "hub" / "datasets--lmms-lab--Video-MME" / "snapshots" / "a", [row(1)])
    video = tmp_path / "videomme" / "data" / "vid1.MP4"
    video.parent.mkdir(parents=True)
    video.touch()
    suite = benchmarks.load_suite("videomme", root=tmp_path)
    assert suite[0].video == str(video) and not suite.missing


def test_vlmevalkit_keeps_lists_as_python_literals(tmp_path):
    fields = {**row(1), "options": str(row(1)["options"])}
    text = "\t".join(fields) + "\n" + "\t".join(map(str, fields.values())) + "\n"
    (tmp_path / "Video-MME.tsv").write_text(text, encoding="utf-8")
    assert benchmarks.load_suite("videomme", root=tmp_path)[0].options[0] == "One."


def test_the_official_result_format_has_the_questions_of_a_video_together(tmp_path):
    questions = [row(1), row(2), row(3)]
    item = {"video_id": "001", "duration": "short", "url": "vid1", "questions": questions}
    suite = benchmarks.load_suite("videomme", root=write(tmp_path, [item]))
    assert [task.task_id for task in suite] == ["001-1", "001-2", "001-3"]


def test_annotation_and_videos_may_be_given_apart(tmp_path):
    write(tmp_path / "a", [row(1)])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "vid1.mkv").touch()
    suite = benchmarks.load_suite(
        "videomme", annotation=tmp_path / "a" / "videomme.json", video_root=tmp_path / "b"
    )
    assert suite[0].video.endswith("b/vid1.mkv") and not suite.missing


def test_filters_shuffles_and_what_is_left_out(tmp_path):
    rows = [row(1), row(4), row(7), row(7), row(10, answer="Z"), row(13, question=" ")]
    write(tmp_path, rows)
    suite = benchmarks.load_suite(
        "videomme", root=tmp_path, where={"duration": "long"}, on_invalid="skip"
    )
    assert [task.meta["duration_group"] for task in suite] == ["long"]
    suite = benchmarks.load_suite("videomme", root=tmp_path, shuffle_options=3, on_invalid="skip")
    assert len(suite) == 3 and suite.rows == 6
    assert [invalid.kind for invalid in suite.invalid] == [
        "duplicate_id",
        "answer_not_in_options",
        "blank_question",
    ]
    plain = benchmarks.load_suite("videomme", root=tmp_path, on_invalid="skip")
    for task, before in zip(suite, plain, strict=True):
        assert tuple(before.options[i] for i in task.meta["shuffled"]) == task.options
        assert task.options[task.answer_index] == before.options[before.answer_index]
    kept = benchmarks.load_suite("videomme", root=tmp_path, on_invalid="keep")
    assert len(kept) == 4 and kept[3].answer_index is None and "unscorable" in kept[3].issues
    with pytest.raises(ValueError, match=r"record 3: id '003-1' is given twice"):
        benchmarks.load_suite("videomme", root=tmp_path, on_invalid="raise")
    with pytest.raises(ValueError, match=r"where names 'colour'; videomme knows"):
        benchmarks.load_suite("videomme", root=tmp_path, where={"colour": "red"}, on_invalid="skip")
    with pytest.raises(ValueError, match="passes the filters"):
        benchmarks.load_suite("videomme", root=tmp_path, longer_than_s=30, on_invalid="skip")
    with pytest.raises(ValueError, match=r"there are {'duration': \['long', 'medium', 'short'\]}"):
        benchmarks.load_suite(
            "videomme", root=tmp_path, where={"duration": "lang"}, on_invalid="skip"
        )


def test_the_relevant_share_counts_overlaps_once():
    task = Task("1", "v", "?", ("x",), 0, ((0.0, 10.0), (5.0, 20.0), (30.0, 40.0)), duration_s=100)
    assert relevant_share(task) == pytest.approx(0.3)
    assert relevant_share(Task("1", "v", "?", ("x",), 0)) is None


def test_missing_videos_name_the_archives_and_the_command(tmp_path):
    write(tmp_path, [row(1)])
    (tmp_path / "videos_chunked_01.zip").touch()
    suite = benchmarks.load_suite("videomme", root=tmp_path)
    with pytest.raises(VideoNotFoundError, match=r"videos_chunked_01\.zip, still packed: for f in"):
        suite.open_video(suite[0])
    with pytest.raises(ValueError, match="still packed"):
        benchmarks.load_suite("videomme", root=tmp_path, on_missing_video="skip")
    with pytest.raises(VideoNotFoundError):
        benchmarks.load_suite("videomme", root=tmp_path, on_missing_video="raise")


def test_paths_that_leave_the_root_are_refused(tmp_path):
    root = write(tmp_path / "root", [row(1, videoID="../vid1"), row(4)])
    (tmp_path / "vid1.mp4").touch()
    suite = benchmarks.load_suite("videomme", root=root, on_invalid="skip")
    assert len(suite) == 1 and "leaves the root" in suite.invalid[0].message
    (root / "data").mkdir()
    (root / "data" / "vid2.mp4").symlink_to(tmp_path / "vid1.mp4")
    suite = benchmarks.load_suite("videomme", root=root, on_invalid="skip")
    with pytest.raises(VideoNotFoundError, match="outside the root"):
        suite.open_video(suite[0])


def test_links_of_a_hub_cache_to_its_blobs_are_trusted(tmp_path):
    cache = tmp_path / "datasets--lmms-lab--Video-MME"
    snapshot = write(cache / "snapshots" / "a" / "x", [row(1)]).parent
    (cache / "blobs").mkdir()
    (cache / "blobs" / "0").touch()
    (snapshot / "vid1.mp4").symlink_to("../../blobs/0")
    found = find_dataset("videomme")
    layout = find_layout(found, "test", annotation=snapshot / "x", video_root=snapshot)
    finder = VideoFinder(layout, found.folders, allow_outside=False)
    path, there = finder.find("vid1.mp4")
    assert there and finder.trusts(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass root="),
        ({"root": "nowhere"}, "root='nowhere' is not a directory"),
        ({"root": "."}, "no annotation of Video-MME, split 'test'"),
        ({"annotation": "x.json"}, "no such file"),
        ({"root": ".", "split": "train"}, r"no split 'train'; use one of \['test'\]"),
        ({"root": ".", "subtitles": True}, "does not know subtitles=True"),
        ({"root": ".", "on_invalid": "ignore"}, "on_invalid='ignore' is unknown"),
        ({"root": ".", "longer_than_s": "30"}, "longer_than_s='30' must be a number"),
        ({"root": ".", "where": "long"}, "must map groups to values"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        benchmarks.load_suite("videomme", **arguments)


def test_an_unknown_benchmark_names_those_there_are():
    with pytest.raises(ValueError, match=r"'videomm' is unknown; use one of \['videomme'"):
        benchmarks.load_suite("videomm")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1', "not valid JSON"),
        (b"\xff\xfe[]", "not UTF-8"),
        (b"3", "not a list of rows"),
        (b"[1, 2]", "none of 2 rows is usable, 2 are broken"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    (tmp_path / "videomme.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        benchmarks.load_suite("videomme", root=tmp_path)


def test_an_environment_is_one_line(tmp_path):
    write(tmp_path, [row(1), row(2)])
    env = gym.make("benchmarks:LongVideo/VideoMME-v0", root=str(tmp_path), frame_budget=16)
    base = env.unwrapped
    assert len(base.suite) == 2 and base.settings["seek"] == "exact" and base.budget.total == 16
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert len(again.unwrapped.suite) == 2


def test_loading_opens_no_video(tmp_path, monkeypatch):
    write(tmp_path, [row(i) for i in range(1, 301)])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "vid1.mp4").write_bytes(b"no video at all")
    monkeypatch.setattr("benchmarks.suite.open_video", lambda *_, **__: pytest.fail("opened"))
    suite = benchmarks.load_suite("videomme", root=tmp_path)
    gym.make("benchmarks:LongVideo/VideoMME-v0", suite=suite)
    assert len(suite) == 300 and len(suite.missing) == 297


def test_the_script_of_speeds_measures_what_it_names():
    pytest.importorskip("pyarrow")
    found = measure(rows=30, repeats=1)
    names = ["pyarrow", "load_suite", "gym.make(suite=)", "gym.make(root=), again"]
    assert list(found) == names and min(found.values()) > 0


def test_a_suite_is_read_again_when_its_files_change(tmp_path):
    write(tmp_path, [row(1)])

    def made():
        return gym.make("benchmarks:LongVideo/VideoMME-v0", root=str(tmp_path)).unwrapped.suite

    first = made()
    assert made() is first and first.missing
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "vid1.mp4").write_bytes(b"video")
    second = made()
    assert not second.missing and second[0].meta["video_bytes"] == 5
    write(tmp_path, [row(1), row(2)])
    assert len(made()) == 2
