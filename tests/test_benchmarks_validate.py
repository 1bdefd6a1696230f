import json
import os
import time

import av
import numpy as np
import pytest

import benchmarks
from benchmarks.validate import ValidateConfig, decode, defects, inspect, lines, main, validate


class _Hang:
    """Sleeps where it is called, which is in the child: it is pickled as a built-in function."""

    def __reduce__(self):
        return eval, ("lambda path: __import__('time').sleep(60)",)

    def __call__(self, path):
        raise AssertionError("this process must not decode")


class _Kill(_Hang):
    def __reduce__(self):
        return eval, ("lambda path: __import__('os').kill(__import__('os').getpid(), 9)",)


def video(path, seconds=2, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = size
        for i in range(8 * seconds):
            pixels = np.full((*size, 3), i * 8 % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def row(name="a.mp4", **changes):
    fields = {
        "video": name,
        "question": "?",
        "options": ["x", "y", "z"],
        "answer": "B",
        "duration": 2,
    }
    return {**fields, **changes}


def write(tmp_path, *rows):
    text = "".join(json.dumps(fields) + "\n" for fields in rows)
    (tmp_path / "mine.jsonl").write_text(text, encoding="utf-8")


def test_defects_are_counted_by_kind_and_listed(tmp_path):
    video(tmp_path / "a.mp4")
    write(
        tmp_path,
        row(id="good"),
        row(id="twice", options=["x", "y", "Y"]),
        row(id="text", options=["x", "y", "y"], answer="y"),
        row(id="unknown", answer=None),
        row(id="cut", segments=[[0.5, 2.4]]),
        row(id="whole", segments=[[0, 1.99]]),
        row(id="moments", segments=[[1, 1], [2, 1], [9, 9.5], ["a", "b"]]),
        row("b.mp4", id="gone"),
        row(id="blank", question=" "),
        row(id="wrong", answer="Q"),
        row(id="good"),
        row(id="bare", options=[]),
        row("../c.mp4", id="outside"),
        5,
    )
    suite = benchmarks.load_suite("jsonl", root=tmp_path, on_invalid="skip")
    report = inspect(suite)
    assert (report["rows"], report["tasks"], report["videos"]) == (14, 8, 2)
    assert report["missing"] == [str(tmp_path / "videos" / "b.mp4")]
    assert {kind: len(places) for kind, places in report["unusable"].items()} == {
        "blank_question": 1,
        "answer_not_in_options": 1,
        "duplicate_id": 1,
        "no_options": 1,
        "malformed_row": 2,
    }
    assert report["kept"] == {
        "answer_text_repeated": ["twice"],
        "duplicate_options": ["text"],
        "ambiguous_answer_text": ["text"],
        "repaired_segments": ["cut"],
        "global_segment": ["whole"],
        "empty_segment": ["moments"],
        "reversed_segment": ["moments"],
        "outside_segment": ["moments"],
        "odd_segment": ["moments"],
    }
    assert report["unscorable"] == ["unknown"]
    assert defects(report)["malformed_row"] == 2 and defects(report)["global_segment"] == 1


def test_a_benchmark_with_its_videos_is_usable(tmp_path, capsys):
    video(tmp_path / "a.mp4")
    video(tmp_path / "b.mp4", seconds=9)
    write(tmp_path, row(), row("b.mp4"), row("c.mp4"))
    out = tmp_path / "report.json"
    (tmp_path / "annotation").mkdir()
    os.rename(tmp_path / "mine.jsonl", tmp_path / "annotation" / "mine.jsonl")
    arguments = ["jsonl", "--annotation", str(tmp_path / "annotation"), "--video-root"]
    code = main([*arguments, str(tmp_path), "--decode", "--workers", "2", "--json", str(out)])
    said = capsys.readouterr().out
    assert code == 0
    assert "questions: 3 of 3 rows usable, 0 not\n" in said
    assert "videos: 2 of 3 there" in said and "decoded: 2 of 2" in said
    assert "1 of 3 videos are missing: fetch them, or pass --video-root" in said
    report = json.loads(out.read_text())
    assert report["usable"] and report["decoded"] == 2 and report["broken"] == {}
    # 9 s where the annotation says 2.
    assert list(report["other_duration"]) == [str(tmp_path / "b.mp4")]


def test_a_scored_split_without_answers_is_not_usable(tmp_path, capsys):
    video(tmp_path / "a.mp4")
    fields = {"question_id": "AR_0", "question": "?", "candidates": ["x", "y"], "video": "a.mp4"}
    (tmp_path / "test_multi_choice_tasks.json").write_text(json.dumps([fields]))
    assert main(["mlvu", "--split", "test", "--root", str(tmp_path)]) == 1
    assert "test_mcq_gt.json" in capsys.readouterr().out


def test_without_any_video_it_is_not_usable_and_says_what_to_do(tmp_path, capsys):
    (tmp_path / "lvb_val.json").write_text(
        json.dumps([{"id": "1", "video_path": "a.mp4", "question": "?", "candidates": ["x", "y"],
                     "correct_choice": 1, "duration": 5.0}])
    )  # fmt: skip
    (tmp_path / "videos.tar.part.aa").touch()
    assert main(["longvideobench", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "NOT USABLE" in said and "cat videos.tar.part.* | tar -x" in said
    assert "differs from the 1337 published" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "benchmark 'nothing' is unknown"),
        (["mlvu"], "pass root="),
        (["mlvu", "--root", "{}/nowhere"], "is not a directory"),
        (["mlvu", "--root", "{}"], "no annotation of MLVU"),
        (["mlvu", "--root", "{}", "--split", "train"], "no split 'train'"),
        (["jsonl", "--root", "{}"], "none of 1 rows is usable"),
        (
            ["jsonl", "--root", "{}", "--workers", "0"],
            "workers=0 must be a whole number, 1 or more",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(tmp_path, capsys, arguments, message):
    write(tmp_path, row(question=""))
    code = main([each.format(tmp_path) for each in arguments])
    said = capsys.readouterr().err
    # An argument that is not allowed says nothing about a benchmark.
    wrong = "nothing" in arguments or "--workers" in arguments
    assert (code, wrong) == ((2, True) if said.startswith("error: ") else (1, False))
    assert ("NOT USABLE" in said) != wrong and message in said and "Traceback" not in said


def test_empty_files_folders_and_links_out_of_the_root_are_no_videos(tmp_path):
    root = tmp_path / "root"
    video(tmp_path / "outside.mp4")
    root.mkdir()
    (root / "empty.mp4").touch()
    (root / "folder.mp4").mkdir()
    (root / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (root / "dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    names = ("empty", "folder", "link", "dangling")
    write(root, *(row(f"{name}.mp4") for name in names))
    report = validate(ValidateConfig("jsonl", root=root, decode=True))
    assert [os.path.basename(path) for path in report["empty"]] == [
        "empty.mp4",
        "folder.mp4",
        "dangling.mp4",
    ]
    assert [os.path.basename(path) for path in report["refused"]] == ["link.mp4", "dangling.mp4"]
    assert not report["usable"] and len(report["advice"]) == 2
    assert lines(report)[-3] == "NOT USABLE"
    trusted = validate(ValidateConfig("jsonl", root=root, decode=True, allow_outside=True))
    assert trusted["usable"] and trusted["decoded"] == 1


def test_a_file_that_is_no_video_costs_only_itself(tmp_path):
    video(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"not a video" * 100)
    write(tmp_path, row(), row("b.mp4"))
    report = validate(ValidateConfig("jsonl", root=tmp_path, decode=True, workers=2))
    assert report["usable"] and report["decoded"] == 1
    assert list(report["broken"]) == [str(tmp_path / "b.mp4")]
    assert "fetch the videos again" in " ".join(report["advice"])
    os.remove(tmp_path / "a.mp4")
    report = validate(ValidateConfig("jsonl", root=tmp_path, decode=True))
    assert not report["usable"] and report["decoded"] == 0


def test_a_decoder_that_hangs_or_dies_costs_only_its_file():
    started = time.monotonic()
    hung = decode({"1": None, "2": None}, workers=2, timeout_s=0.5, opener=_Hang())
    assert "did not answer within 0.5 s" in hung["broken"]["1"] and len(hung["broken"]) == 2
    assert time.monotonic() - started < 30
    died = decode({"3": None}, workers=1, timeout_s=20, opener=_Kill())
    assert "the decoder process died" in died["broken"]["3"]
