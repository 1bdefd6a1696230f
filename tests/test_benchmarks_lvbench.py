import json

import pytest

import benchmarks
from gym_longvideo.video.errors import VideoNotFoundError


def question(uid, **changes):
    fields = {
        "uid": uid,
        "question": "What is on the roof?\n(A) a cat\n(B) a dog\n(C) a hat\n(D) a kite",
        "answer": "D",
        "question_type": ["entity recognition"],
        "time_reference": "00:15-00:19",
    }
    return {**fields, **changes}


def line(key, *questions, **changes):
    fields = {
        "key": key,
        "type": "cartoon",
        "qa": list(questions),
        "video_info": {
            "duration_minutes": 100.0,
            "fps": 24.0,
            "resolution": {"width": 1280, "height": 720},
        },
    }
    return {**fields, **changes}


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def test_a_line_of_the_official_file_is_a_video_with_its_questions(tmp_path):
    types = ["entity recognition", "reasoning", "summarization"]
    lines = [
        line("vidA", question("55"), question(3630, answer="A", question_type=types)),
        line("vidB", question("7"), type="sport"),
    ]
    write(tmp_path / "video_info.meta.jsonl", lines)
    suite = benchmarks.load_suite("lvbench", root=tmp_path)
    assert [task.task_id for task in suite] == ["55", "3630", "7"]
    task = suite[1]
    assert task.question == "What is on the roof?" and task.answer_index == 0
    assert task.options == ("a cat", "a dog", "a hat", "a kite")
    assert task.duration_s == 6000.0 and task.segments_s == ((15.0, 19.0),)
    assert task.video_id == "vidA" and task.video.endswith("all_videos/vidA.mp4")
    groups = suite.dataset.groups({**task.__dict__})
    assert groups == {"task_type": tuple(types), "video_type": ("cartoon",)}
    sport = benchmarks.load_suite("lvbench", root=tmp_path, where={"video_type": "sport"})
    assert [task.task_id for task in sport] == ["7"]
    assert suite.dataset.splits["test"].tasks == 1549


@pytest.mark.parametrize(
    ("reference", "segments", "issues"),
    [
        ("83:20-83:30", ((5000.0, 5010.0),), ()),
        ("08:17-None", (), ("odd_segment",)),
        ("None-None", (), ("odd_segment",)),
        ("33:52-33:46", (), ("reversed_segment",)),
        ("63:20-03:35", (), ("reversed_segment",)),
        ("12:00-12:00", ((720.0, 721.0),), ()),
        ("100:00-100:00", ((5999.0, 6000.0),), ()),
        ("101:00-101:00", (), ("outside_segment",)),
        ("00:00-99:00", ((0.0, 5940.0),), ("global_segment",)),
        ("00:00-100:01", ((0.0, 6000.0),), ("repaired_segments", "global_segment")),
        ("", (), ()),
        (None, (), ()),
    ],
)
def test_time_references_that_make_no_sense_are_named(tmp_path, reference, segments, issues):
    write(tmp_path / "video_info.meta.jsonl", [line("v", question("1", time_reference=reference))])
    suite = benchmarks.load_suite("lvbench", root=tmp_path)
    assert suite[0].segments_s == segments and suite[0].issues == issues
    assert suite[0].answer_index == 3


def test_options_that_differ_in_capitals_alone_are_duplicates(tmp_path):
    alike = "Who?\n(A) Anna\n(B) anna\n(C) Bo\n(D) Cy"
    same = "Who?\n(A) Anna\n(B) Anna\n(C) Bo\n(D) Cy"
    write(
        tmp_path / "video_info.meta.jsonl",
        [line("v", question("1", question=alike, answer="B"), question("2", question=same))],
    )
    suite = benchmarks.load_suite("lvbench", root=tmp_path)
    assert suite[0].issues == suite[1].issues == ("duplicate_options",)
    assert suite[0].answer_index == 1  # the letter, not the first of two like texts


@pytest.mark.parametrize(
    ("place", "index"),
    [
        ("all_videos/vidB.mp4", 1),
        ("videos/vidB.mkv", 1),
        ("vidB.MP4", 1),
        ("all_videos/00000001.mp4", 1),
    ],
)
def test_videos_are_named_by_key_or_by_line(tmp_path, place, index):
    lines = [line("vidA", question("1")), line("vidB", question("2"))]
    write(tmp_path / "video_info.meta.jsonl", lines)
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.touch()
    if path.stem.isdecimal():
        (path.parent / "00000000.mp4").touch()
    suite = benchmarks.load_suite("lvbench", root=tmp_path)
    assert suite[index].video == str(path) and suite[index].video_id == "vidB"


@pytest.mark.parametrize("options", [None, ["a cat", "a dog", "a hat", "a kite"]])
def test_lmms_eval_has_a_row_a_question(tmp_path, options):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    row = {**question("55"), "key": "vidA", "video_path": "vidA.mp4", "type": "cartoon"}
    if options:
        row |= {"question": "What is on the roof?", "options": options}
    cache = tmp_path / "hub" / "datasets--lmms-lab--LVBench" / "snapshots" / "a" / "data"
    cache.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist([row]), cache / "train-00000-of-00001.parquet")
    (tmp_path / "lvbench").mkdir()
    (tmp_path / "lvbench" / "vidA.mp4").touch()
    task = benchmarks.load_suite("lvbench", root=tmp_path)[0]
    assert task.question == "What is on the roof?" and task.options[3] == "a kite"
    assert task.answer_index == 3 and task.video == str(tmp_path / "lvbench" / "vidA.mp4")
    assert task.task_types == ("entity recognition",) and task.segments_s == ((15.0, 19.0),)


def test_videochat_flash_numbers_the_videos_and_gives_letter_and_text(tmp_path):
    row = {
        "video": "00000007",
        "question": "What year is it?",
        "candidates": ["(A) 1636", "(B) 1366", "(C) 1363", "(D) 1633"],
        "answer": "(D) 1633",
        "question_type": "key information retrieval",
    }
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "lvbench_clean.json").write_text(json.dumps([row, {**row, "answer": 5}]))
    suite = benchmarks.load_suite("lvbench", root=tmp_path, on_invalid="skip")
    task = suite[0]
    assert task.options == ("1636", "1366", "1363", "1633") and task.answer_index == 3
    assert task.video.endswith("00000007.mp4") and task.video_id == "00000007"
    assert task.task_types == ("key information retrieval",) and task.task_id == "0"
    assert [invalid.kind for invalid in suite.invalid] == ["answer_not_in_options"]


def test_broken_lines_cost_their_questions_only(tmp_path):
    good = json.dumps(line("v", question("1"), 7, question("2", question=None), question("1")))
    text = good + '\n{"key": \n[]\n' + json.dumps(line("w", question("3"), video_info=None))
    (tmp_path / "video_info.meta.jsonl").write_text(text)
    suite = benchmarks.load_suite("lvbench", root=tmp_path, on_invalid="skip")
    assert [task.task_id for task in suite] == ["1", "3"] and suite[1].duration_s is None
    assert [invalid.kind for invalid in suite.invalid] == [
        "blank_question",
        "blank_question",
        "duplicate_id",
        "malformed_row",
        "malformed_row",
    ]


def test_packed_videos_are_named_with_their_command(tmp_path):
    write(tmp_path / "video_info.meta.jsonl", [line("v", question("1"))])
    (tmp_path / "all_videos_split.zip.001").touch()
    suite = benchmarks.load_suite("lvbench", root=tmp_path)
    with pytest.raises(VideoNotFoundError, match=r"cat all_videos_split\.zip\.\* > all_videos"):
        suite.open_video(suite[0])
