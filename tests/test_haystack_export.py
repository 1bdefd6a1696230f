"""Export: files that show what the procedural video shows, and an annotation that fits them."""

import json
import shutil

import av
import numpy as np
import pytest

from gym_longvideo.haystack import HaystackSuite, export
from gym_longvideo.haystack.export import export_suite
from gym_longvideo.haystack.oracle import evidence, solve
from gym_longvideo.suite import JsonlSuite

SUITE = HaystackSuite("test", duration_s=60.0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export")
    return export_suite(SUITE, directory, tasks=8, size=(64, 64), workers=2)


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = [
            (frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)
        ]
    return [time for time, _ in frames], np.stack([pixels for _, pixels in frames])


def records_of(annotation):
    return [json.loads(line) for line in annotation.read_text(encoding="utf-8").splitlines()]


def test_files_show_what_the_procedural_video_shows(exported):
    for index, record in enumerate(records_of(exported)[:4]):
        task = SUITE[index]
        times, pixels = decoded(exported.parent / record["video"])
        assert times == pytest.approx(np.arange(480) / 8)
        drawn = SUITE.open_video(task).read(times, size=(64, 64)).frames
        error = np.abs(drawn.astype(int) - pixels.astype(int)).mean((1, 2, 3))
        # Colours are stored at half the resolution, which costs fine patterns some of theirs.
        assert error.max() < 28 and error.mean() < 20
        # Every frame is nearest to the moment that it stands for.
        sample = slice(0, 480, 21)
        small = pixels[sample].astype(np.float32).reshape(-1, 64 * 64 * 3)
        reference = drawn[sample].astype(np.float32).reshape(-1, 64 * 64 * 3)
        distance = np.abs(small[:, None] - reference[None]).mean(-1)
        assert (distance.argmin(1) == np.arange(len(small))).all()


def test_the_annotation_says_what_the_tasks_say(exported):
    for record, index in zip(records_of(exported), range(8), strict=True):
        task = SUITE[index]
        assert record["id"] == task.task_id and record["question"] == task.question
        assert tuple(record["options"]) == task.options
        assert "ABCD".index(record["answer"]) == task.answer_index
        assert record["duration"] == 60.0 and record["task_type"] == task.task_types[0]
        for (start, end), (start_s, end_s) in zip(record["segments"], task.segments_s, strict=True):
            assert 0 <= start - start_s < 1 / 8 and 0 <= end - end_s < 1 / 8


def test_a_card_is_in_the_file_exactly_during_its_annotated_segment(exported):
    for record, index in zip(records_of(exported), range(8), strict=True):
        world = SUITE.world(SUITE[index])
        for start, end in record["segments"]:
            card = world.event_at(start)
            shown = [k / 8 for k in range(480) if card and world.event_at(k / 8) is card]
            assert (min(shown), max(shown)) == (start, end - 1 / 8)


def test_the_files_load_as_a_suite_and_the_oracle_still_works(exported):
    suite = JsonlSuite(exported, split="test")
    assert len(suite) == 8
    for index in range(8):
        task, original = suite[index], SUITE[index]
        assert (task.question, task.options) == (original.question, original.options)
        assert task.answer_index == original.answer_index
        assert solve(task, [group[0][0] for group in evidence(task)]) == original.answer_index
        assert solve(task, []) is None


def test_a_second_run_keeps_complete_files_and_makes_up_missing_ones(exported, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(exported.parent, directory)
    videos = sorted((directory / "videos").iterdir())
    stamps = {path: path.stat().st_mtime_ns for path in videos}
    videos[3].unlink()
    export_suite(SUITE, directory, tasks=8, size=(64, 64))
    assert sorted((directory / "videos").iterdir()) == videos
    for path in videos:
        assert (path.stat().st_mtime_ns == stamps[path]) == (path != videos[3])
    with pytest.raises(ValueError, match=r"holds an export with size=\[64, 64\], not \[32, 32\]"):
        export_suite(SUITE, directory, tasks=8, size=(32, 32))


def test_a_failed_encoding_leaves_no_file(tmp_path):
    class Broken:
        world = SUITE.world(SUITE[0])

        def read(self, times, *, size):
            raise RuntimeError("out of paint")

    with pytest.raises(RuntimeError, match="out of paint"):
        export.encode(Broken(), tmp_path / "a.mp4", 2, (32, 32))
    assert list(tmp_path.iterdir()) == []


def test_twins_can_be_exported_too(tmp_path):
    suite = HaystackSuite("test", families="needle", duration_s=60.0)
    twins = [suite.twin(suite[0], "swap"), suite.twin(suite[0], "remove")]
    records = records_of(export_suite(suite, tmp_path, tasks=[suite[0], *twins], size=(16, 16)))
    assert [record["id"] for record in records] == [
        "test-00000-needle",
        "test-00000-needle-swap",
        "test-00000-needle-remove",
    ]
    assert records[0]["answer"] != records[1]["answer"]
    assert records[2]["answer"] is None and records[2]["segments"] == []


def test_the_frame_rate_follows_the_needle_and_is_checked(tmp_path):
    assert export._frame_rate(5.16, None) == 2
    assert export._frame_rate(0.51, None) == 8
    with pytest.raises(ValueError, match=r"fps=1 shows a needle of 0.515625 s .* fps=4 or more"):
        export_suite(SUITE, tmp_path, tasks=1, fps=1)
    with pytest.raises(ValueError, match=r"size=\(33, 32\) must be even"):
        export_suite(SUITE, tmp_path, tasks=1, size=(33, 32))
    with pytest.raises(ValueError, match=r"tasks=999 must be 1\.\.256"):
        export_suite(SUITE, tmp_path, tasks=999)


def test_the_command_line_exports_and_explains_mistakes(tmp_path, capsys):
    common = ["--tasks", "1", "--minutes", "1", "--size", "16", "--workers", "1"]
    export.main([str(tmp_path), *common, "--families", "chain", "--knob", "similarity=0.5"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "annotation.jsonl")
    (record,) = records_of(tmp_path / "annotation.jsonl")
    assert record["task_type"] == "chain" and (tmp_path / record["video"]).exists()
    for wrong, message in (
        (["--knob", "similarity=9"], "similarity=9 must be a number in"),
        (["--knob", "similarty=1"], "similarty"),
        (["--knob", "similarity"], "must read NAME=JSON"),
        (["--families", "chains"], "'chains' is unknown"),
    ):
        assert export.main([str(tmp_path / "other"), *common, *wrong]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and message in said
