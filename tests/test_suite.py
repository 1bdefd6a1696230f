"""JSON Lines suites: files, splits, missing videos, paths that lead out; and loading by name."""

from __future__ import annotations

import copy
import json
import pickle
import time

import gymnasium as gym
import pytest
from worlds import GreySuite

from gym_longvideo import JsonlSuite, Suite, load_suite
from gym_longvideo.haystack.suite import HaystackSuite
from gym_longvideo.suite import question_text, suite_names
from gym_longvideo.task import Task
from gym_longvideo.video import VideoError, VideoNotFoundError


def record(**fields):
    plain = {"video": "a.mp4", "question": "Which?", "options": ["x", "y"], "answer": "A"}
    return {**plain, **fields}


def write(folder, *records, name="tasks.jsonl"):
    """Write lines (dicts or raw text) and return the path of the file."""
    lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_file_of_lines_is_a_suite(tmp_path):
    path = write(tmp_path, record(id="one"), "", record(id="two", options=["x", "y", "z"]))
    suite = JsonlSuite(path)
    assert isinstance(suite, Suite)
    assert (len(suite), suite.name, suite.split, suite.max_options) == (2, "tasks", "train", 3)
    assert [suite[i].task_id for i in range(2)] == ["one", "two"]
    assert suite.index_of("two") == 1
    assert suite[0].video == str(tmp_path / "a.mp4")
    assert suite[0].video_id == "a.mp4"  # as annotated, so that results compare across machines
    with pytest.raises(KeyError, match="three"):
        suite.index_of("three")
    with pytest.raises(IndexError):
        suite[2]


def test_a_json_list_is_a_suite_too(tmp_path):
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([record(), record(question="And?")], indent=1), encoding="utf-8")
    assert [task.question for task in JsonlSuite(path)] == ["Which?", "And?"]


def test_a_byte_order_mark_and_separators_inside_strings_do_no_harm(tmp_path):
    line = json.dumps(record(question="one\u2028two \u0085"), ensure_ascii=False)
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n{line}\r\n".encode())
    suite = JsonlSuite(path)
    assert len(suite) == 2 and suite[0].question == "one\u2028two"


def test_tasks_without_an_id_are_called_by_their_place_in_the_file(tmp_path):
    (tmp_path / "a.mp4").touch()
    lines = [record(video="gone.mp4"), record(), record(split="val"), record()]
    path = write(tmp_path, *lines)
    everything = {task.task_id for task in JsonlSuite(path)}
    on_disk = {task.task_id for task in JsonlSuite(path, on_missing_video="skip")}
    # The same question has the same id whichever videos this machine happens to have.
    assert everything == {"0", "1", "3"} and on_disk == {"1", "3"}


def test_a_split_leaves_out_records_of_other_splits(tmp_path):
    path = write(tmp_path, record(id=1), record(id=2, split="val"), record(id=3, split="train"))
    assert [task.task_id for task in JsonlSuite(path)] == ["1", "3"]
    assert [task.task_id for task in JsonlSuite(path, split="val")] == ["1", "2"]


# --- what is wrong with a file --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("null", "a record must be an object, not NoneType"),
        (record(question=" "), "question=' ' must be a string"),
        (record(answer="zebra"), "answer='zebra' is not among the options"),
        (record(answer="C"), "answer='C' is not among the 2 options"),
        (record(segments=[[5, 3]]), "reversed or empty"),
        (record(segments=[[5, 30]], duration=10), "outside the video"),
        (record(id="same"), "id 'same' is given twice; ids must be unique"),
        (record(options=[]), "must be a list of choices"),
        (record(options=["x"] * 27), "there are letters for 26"),
    ],
)
def test_an_unusable_line_is_named_with_its_file_and_number(tmp_path, line, message):
    path = write(tmp_path, record(id="same"), "", line)
    with pytest.raises(ValueError, match=message) as caught:
        JsonlSuite(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    skipped = JsonlSuite(path, on_invalid="skip")
    assert len(skipped) == 1
    assert len(skipped.invalid) == 1 and f"{path}, line 3: " in skipped.invalid[0]


def test_an_unusable_entry_of_a_list_is_named_with_its_number(tmp_path):
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([record(), record(answer=None), record(answer="q")]))
    with pytest.raises(ValueError, match=r"tasks.json, record 2: answer='q'"):
        JsonlSuite(path)


@pytest.mark.parametrize("text", ["", "\n\n", "[]", " \n"])
def test_a_file_without_tasks_is_refused(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=r"tasks.jsonl: no usable task for split 'train'"):
        JsonlSuite(path)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(json.dumps(record(question="né"), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match=r"tasks.jsonl: not UTF-8 .* save the file as UTF-8"):
        JsonlSuite(path)


def test_a_broken_list_is_refused(tmp_path):
    path = write(tmp_path, '[{"question": "Which?"', name="tasks.json")
    with pytest.raises(ValueError, match=r"tasks.json: not valid JSON"):
        JsonlSuite(path)


def test_files_and_folders_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no annotation at .*none.jsonl"):
        JsonlSuite(tmp_path / "none.jsonl")
    path = write(tmp_path, record())
    with pytest.raises(FileNotFoundError, match=r"video_root=.*nowhere' is not a directory"):
        JsonlSuite(path, video_root=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"on_invalid": "warn"}, r"on_invalid='warn' is unknown; use one of \['raise', 'skip'\]"),
        ({"on_missing_video": "ask"}, r"on_missing_video='ask' is unknown; use one of \['keep'"),
    ],
)
def test_unknown_policies_are_refused(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        JsonlSuite(write(tmp_path, record()), **kwargs)


# --- videos ---------------------------------------------------------------------------------------


def test_missing_videos_can_be_kept_skipped_or_refused(tmp_path):
    (tmp_path / "here.mp4").touch()
    path = write(tmp_path, record(id="a", video="here.mp4"), record(id="b", video="gone.mp4"))
    assert len(JsonlSuite(path)) == 2
    suite = JsonlSuite(path, on_missing_video="skip")
    assert [task.task_id for task in suite] == ["a"]
    assert suite.invalid == [f"task 'b': {tmp_path / 'gone.mp4'} is missing"]
    with pytest.raises(ValueError, match=r"line 2: .*gone.mp4: is missing; on_missing_video="):
        JsonlSuite(path, on_missing_video="raise")


def test_a_missing_video_is_a_video_error_when_it_is_opened(tmp_path):
    suite = JsonlSuite(write(tmp_path, record()))
    with pytest.raises(VideoNotFoundError, match=r"a.mp4"):
        suite.open_video(suite[0])


def test_videos_may_lie_under_another_root(tmp_path):
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    path = write(tmp_path / "notes", record(video="deep/../deep/a.mp4"))
    suite = JsonlSuite(path, video_root=tmp_path / "videos")
    assert suite[0].video == str(tmp_path / "videos" / "deep" / "a.mp4")


@pytest.mark.parametrize("video", ["../secret.mp4", "deep/../../secret.mp4", "/etc/secret.mp4"])
def test_a_path_that_leaves_the_root_is_refused_unless_allowed(tmp_path, video):
    root = tmp_path / "root"
    root.mkdir()
    path = write(root, record(video=video))
    with pytest.raises(ValueError, match=r"leaves video_root=.*allow_outside=True if you trust"):
        JsonlSuite(path)
    assert JsonlSuite(path, allow_outside=True)[0].video.endswith("secret.mp4")


def test_a_root_whose_name_merely_begins_alike_is_outside(tmp_path):
    (tmp_path / "root").mkdir()
    path = write(tmp_path / "root", record(video="../root2/a.mp4"))
    with pytest.raises(ValueError, match="leaves video_root"):
        JsonlSuite(path)


def test_a_link_that_leads_out_is_refused_unless_allowed(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.mp4").write_text("not a video")
    (root / "a.mp4").symlink_to(tmp_path / "secret.mp4")
    path = write(root, record())
    suite = JsonlSuite(path)
    with pytest.raises(VideoNotFoundError, match=r"is a link to .*secret.mp4, outside"):
        suite.open_video(suite[0])
    allowed = JsonlSuite(path, allow_outside=True)
    with pytest.raises(VideoError) as caught:  # it is looked into, and is no video
        allowed.open_video(allowed[0])
    assert "outside" not in str(caught.value)


def test_a_link_inside_the_root_is_followed(tmp_path):
    (tmp_path / "real.mp4").write_text("not a video")
    (tmp_path / "a.mp4").symlink_to(tmp_path / "real.mp4")
    suite = JsonlSuite(write(tmp_path, record()))
    with pytest.raises(VideoError) as caught:
        suite.open_video(suite[0])
    assert "outside" not in str(caught.value)


def test_five_thousand_records_load_in_two_seconds_without_their_videos(tmp_path):
    lines = [record(id=i, video=f"{i}.mp4", segments=[[1, 2]]) for i in range(5000)]
    path = write(tmp_path, *lines)
    started = time.process_time()
    suite = JsonlSuite(path)
    assert time.process_time() - started < 2.0
    assert len(suite) == 5000 and suite.index_of("4999") == 4999


# --- loading --------------------------------------------------------------------------------------


def make_grey(split, tasks=3):
    suite = GreySuite(tasks)
    suite.split = split
    return suite


def test_a_suite_is_named_by_haystack_a_path_a_callable_or_is_one_already(tmp_path):
    path = write(tmp_path, record(split="val"))
    assert isinstance(load_suite("haystack", split="val", options={"size": 3}), HaystackSuite)
    assert load_suite(str(path), split="val", options={"name": "mine"}).name == "mine"
    suite = load_suite("test_suite:make_grey", split="test", options={"tasks": 2})
    assert (suite.split, len(suite)) == ("test", 2)
    mine = GreySuite()
    assert load_suite(mine, split="val") is mine


def test_suites_are_shared_by_copies_and_survive_pickling(tmp_path):
    suite = JsonlSuite(write(tmp_path, record()))
    assert copy.deepcopy(suite) is suite
    again = pickle.loads(pickle.dumps(suite))
    assert list(again) == list(suite) and again.max_options == 2


def test_an_annotation_makes_an_environment(tmp_path):
    path = write(tmp_path, record(id="q"))
    env = gym.make("gym_longvideo:LongVideoQA-v0", suite=str(path), frame_size=8)
    assert env.observation_space["options"].shape == (2,)
    with pytest.raises(VideoNotFoundError):  # no such file; nothing was opened before
        env.reset(seed=0)
    assert json.loads(env.spec.to_json())["kwargs"]["suite"] == str(path)


def test_the_question_is_followed_by_lettered_options():
    task = Task("t", "v", "Which?", tuple("pqr"), 0)
    assert question_text(task) == "Which?\nA. p\nB. q\nC. r"


def test_nan_in_an_annotation_is_read_as_null(tmp_path):
    line = '{"video": "a.mp4", "question": "?", "options": ["x", "y"], "answer": "A", "score": NaN}'
    (tmp_path / "my.jsonl").write_text(line)
    assert JsonlSuite(tmp_path / "my.jsonl")[0].meta == {"score": None}


def test_installed_suites_are_found_by_name_everywhere(tmp_path):
    benchmarks = pytest.importorskip("benchmarks")
    names = suite_names()
    assert set(names) == {"haystack", *benchmarks.ENV_IDS}
    path = tmp_path / "a.csv"
    path.write_text("video,question,options,answer\na.mp4,Which?,\"['x', 'y']\",A\n")
    for suite in (
        load_suite("jsonl", split=None, options={"annotation": path}),
        load_suite(str(path), split=None),
        gym.make("gym_longvideo:LongVideoQA-v0", suite="jsonl", split="all",
                 suite_options={"annotation": str(path)}).unwrapped.suite,  # type: ignore[attr-defined]
    ):  # fmt: skip
        assert (suite.name, suite.split, len(suite)) == ("jsonl", "all", 1)


def test_a_name_may_carry_a_split_of_its_own():
    assert load_suite("haystack:test", split="val").split == "test"
    assert load_suite("haystack", split=None).split == "train"
    with pytest.raises(ValueError, match="split='dev' is unknown"):
        load_suite("haystack:dev")
    with pytest.raises(ValueError, match="suite='haystak:val' cannot be imported"):
        load_suite("haystak:val")


def files_of_people(tmp_path, videos=30, **fields):
    rows = [
        {"id": f"{i}-{k}", "video": f"v{i}.mp4", "question": f"Which {k}?", "options": ["x", "y"],
         "answer": "A", **fields}
        for i in range(videos) for k in range(2)
    ]  # fmt: skip
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path, rows


def ids(suite):
    return {suite[index].task_id for index in range(len(suite))}


def test_records_that_name_no_split_are_split_by_video_on_request(tmp_path):
    path, rows = files_of_people(tmp_path)
    assert len(JsonlSuite(path)) == len(JsonlSuite(path, split="val")) == 60  # unless it is asked
    parts = {
        name: load_suite(str(path), split=name, options={"split_by": "video"})
        for name in ("train", "val", "test")
    }
    assert {name: len(part) for name, part in parts.items()} == {"train": 48, "val": 6, "test": 6}
    videos = {n: {p[i].video for i in range(len(p))} for n, p in parts.items()}
    assert len(set.union(*videos.values())) == 30 == sum(map(len, videos.values()))
    # Neither the order of the records nor the way a path is spelled moves a question.
    turned = [{**row, "video": f"./{row['video']}"} for row in rows[::-1]]
    (tmp_path / "turned.jsonl").write_text("\n".join(map(json.dumps, turned)))
    again = JsonlSuite(tmp_path / "turned.jsonl", split="val", split_by="video")
    assert ids(again) == ids(parts["val"])
    # The suite of tables holds out the same.
    from benchmarks import load_suite as load_benchmark

    (tmp_path / "mine.csv").write_text(
        "id,video,question,option0,option1,answer\n"
        + "".join(f"{r['id']},{r['video']},{r['question']},x,y,A\n" for r in rows)
    )
    table = load_benchmark(
        "jsonl", annotation=tmp_path / "mine.csv", video_root=tmp_path, split="val",
        split_by="video",
    )  # fmt: skip
    assert ids(table) == ids(parts["val"])


def test_records_that_name_their_split_keep_it_and_few_videos_are_refused(tmp_path):
    path, _ = files_of_people(tmp_path, videos=2, split="val")
    assert len(JsonlSuite(path, split="val", split_by="video")) == 4
    path, _ = files_of_people(tmp_path, videos=9)
    with pytest.raises(ValueError, match=r'of 9 videos name no split.*give each record a "split"'):
        JsonlSuite(path, split_by="video")
    path, _ = files_of_people(tmp_path, videos=10, split=None)  # as tables have it
    parts = [JsonlSuite(path, split=n, split_by="video") for n in ("train", "val", "test")]
    assert list(map(len, parts)) == [16, 2, 2]
    with pytest.raises(ValueError, match="split_by='id' is unknown"):
        JsonlSuite(path, split_by="id")
