import json

import pytest

import benchmarks
from benchmarks.registry import find_dataset
from gym_longvideo.video.errors import VideoNotFoundError


def row(kind="plotQA", **changes):
    fields = {
        "video": "film_1.mp4",
        "duration": 300,
        "question": "Which colour has the cube?",
        "candidates": ["red", "blue", "green", "white"],
        "answer": "blue",
        "question_type": kind,
    }
    return {**fields, **changes}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_dev(folder):
    write(folder / "1_plotQA.json", [row(), row(duration=300.5, video="film_2.mp4")])
    write(folder / "2_needle.json", [row("findNeedle")])
    write(folder / "7_topic_reasoning.json", [row("topic_reasoning")])
    write(folder / "8_sub_scene.json", [row("subPlot", candidates=None)])
    write(folder / "9_summary.json", [{"video": "x.mp4", "question_type": "summary"}])


@pytest.mark.parametrize("folder", ["MLVU/json", "MVLU/json", "json", "data", "."])
def test_dev_is_read_where_its_repositories_have_it(tmp_path, folder):
    write_dev(tmp_path / folder)
    suite = benchmarks.load_suite("mlvu", split="dev", root=tmp_path)
    assert [task.task_id for task in suite] == [
        "plotQA_0",
        "plotQA_1",
        "needle_0",
        "topic_reasoning_0",
    ]
    assert suite.rows == 4 and not suite.invalid
    task = suite[0]
    assert task.answer_index == 1 and task.duration_s == 300.0 and task.video_id == "film_1.mp4"
    assert suite.dataset.groups({**suite[2].__dict__}) == {"task_type": ("needle",)}
    assert suite.dataset.overall == "macro:task_type"


@pytest.mark.parametrize(
    "place",
    [
        "video/1_plotQA/film_1.mp4",
        "video/plotQA/film_1.mp4",
        "MLVU/video/1_plotQA/film_1.mp4",
        "MLVU/video/plotQA/film_1.mp4",
        "video/film_1.mp4",
        "film_1.MP4",
    ],
)
def test_videos_are_found_in_the_folder_of_their_task_or_flat(tmp_path, place):
    write_dev(tmp_path / "MLVU" / "json")
    # A file of the same name, of another task, must not be taken instead.
    folder = place.rpartition("/")[0]
    if "plotQA" in folder:
        other = (tmp_path / folder).parent / ("2_needle" if "1_" in place else "needle")
        other.mkdir(parents=True)
        (other / "film_1.mp4").touch()
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()
    suite = benchmarks.load_suite("mlvu", split="dev", root=tmp_path)
    assert suite[0].video == str(tmp_path / place)
    if "plotQA" in folder:
        assert suite[2].video == str(other / "film_1.mp4")


def test_answers_are_texts_even_where_options_are_numbers_or_letters(tmp_path):
    rows = [
        row("count", candidates=["2", "1", "5", "4"], answer="1"),
        row("count", candidates=[2, 1, 5, 4], answer="5"),
        row("count", candidates=["B", "C", "A", "D"], answer="A"),
        row("count", candidates=["2", "1", "5", "4"], answer="3"),
        row("count", candidates=["2", "1", "5", "4"], answer="none of these"),
    ]
    write(tmp_path / "4_count.json", rows)
    suite = benchmarks.load_suite("mlvu", split="dev", root=tmp_path, on_invalid="skip")
    assert [task.answer_index for task in suite] == [1, 2, 2]
    assert [invalid.kind for invalid in suite.invalid] == ["answer_not_in_options"] * 2
    assert [task.task_id for task in suite] == ["count_0", "count_1", "count_2"]


def test_defects_are_named_and_what_can_be_asked_is_kept(tmp_path):
    rows = [
        row(candidates=["red", "blue", "red", "white"]),
        row(candidates=["blue", "red", "blue", "white"]),
        row(question="", candidates=["", "", "", ""], answer=""),
        row(candidates=["red", "Catching the drone"], answer="Catching a flying drone quadcopter"),
    ]
    write(tmp_path / "1_plotQA.json", rows)
    suite = benchmarks.load_suite("mlvu", split="dev", root=tmp_path, on_invalid="skip")
    assert [task.task_id for task in suite] == ["plotQA_0", "plotQA_1", "plotQA_3"]
    assert suite[0].issues == ("duplicate_options",)
    assert suite[1].issues == ("duplicate_options", "ambiguous_answer_text")
    assert suite[1].answer_index == 0 and suite[1].meta["accepted_indices"] == [0, 2]
    assert suite[2].issues == ("answer_repaired",) and suite[2].answer_index == 1
    assert suite[2].meta["annotated_answer"] == "Catching a flying drone quadcopter"
    assert [invalid.kind for invalid in suite.invalid] == ["blank_question"]


LMMS = {
    "video_name": "film_1.mp4",
    "duration": "300.5",
    "question": "Arrange (1) and (2):\n(A) 1->2\n(B) 2->1\n",
    "candidates": ["1->2", "2->1"],
    "answer": "B",
    "task_type": "order",
    "question_id": "Q7",
}


@pytest.mark.parametrize("candidates", [True, False])
@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_form_of_lmms_eval_has_options_in_the_question_and_letters(tmp_path, split, candidates):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    fields = {key: value for key, value in LMMS.items() if candidates or key != "candidates"}
    name, home = ("MLVU_dev", "mlvu") if split == "dev" else ("MLVU_Test", "mlvu_test")
    cache = tmp_path / "hub" / f"datasets--sy1998--{name}" / "snapshots" / "a" / home
    cache.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist([fields]), cache / "test-00000-of-00001.parquet")
    (tmp_path / home).mkdir()
    (tmp_path / home / "film_1.mp4").touch()
    suite = benchmarks.load_suite("mlvu", split=split, root=tmp_path)
    task = suite[0]
    assert task.task_id == ("order_0" if split == "dev" else "AO_0")
    assert task.question == "Arrange (1) and (2):"
    assert task.options == ("1->2", "2->1") and task.answer_index == 1
    assert task.duration_s == 300.5 and task.task_types == ("order",)
    assert task.video == str(tmp_path / home / "film_1.mp4") and not suite.missing


def test_vlmevalkit_gives_the_ids_of_the_official_files(tmp_path):
    rows = [row(), row("needle"), row("needle", candidates=["it's", 'a "b"'], answer="it's")]
    names = ["task_type", "prefix", "duration", "video", "question", "answer", "candidates"]
    lines = ["\t".join([*names, "index"])]
    for i, fields in enumerate(rows):
        prefix = "./MLVU/video/x"
        fields = {**fields, "task_type": fields["question_type"], "prefix": prefix}
        candidates = str(fields["candidates"]).replace('"', '""')
        values = [str(fields[name]) for name in names[:-1]]
        lines.append("\t".join([*values, f'"{candidates}"', str(i)]))
    (tmp_path / "MLVU_MCQ.tsv").write_text("\n".join(lines), encoding="utf-8")
    suite = benchmarks.load_suite("mlvu", split="dev", root=tmp_path)
    assert [task.task_id for task in suite] == ["plotQA_0", "needle_0", "needle_1"]
    assert suite[2].options == ("it's", 'a "b"') and suite[2].answer_index == 0
    assert suite[0].duration_s == 300.0


def test_the_test_split_has_texts_in_its_ground_truth_and_six_options(tmp_path):
    options = ["red", "blue", "green", "white", "black", 7]
    rows = [
        row("needleQA", question_id="NQA_0", candidates=options, answer="black"),
        row("count", question_id="AC_0", candidates=options, answer="7"),
    ]
    write(tmp_path / "MLVU_Test" / "test-ground-truth" / "test_mcq_gt.json", rows)
    write(tmp_path / "MLVU_Test" / "test_multi_choice_tasks.json", rows[:1])
    video = tmp_path / "MLVU_Test" / "MLVU_Test" / "video" / "film_1.mp4"
    video.parent.mkdir(parents=True)
    video.touch()
    suite = benchmarks.load_suite("mlvu", root=tmp_path)
    assert suite.split == "test" and suite.max_options == 6
    assert [task.answer_index for task in suite] == [4, 5]
    assert suite[0].task_types == ("needleQA",) and suite[0].video == str(video)


def test_the_test_split_without_ground_truth_can_be_asked_but_not_scored(tmp_path):
    fields = row("needleQA", question_id="NQA_0")
    del fields["answer"]
    write(tmp_path / "MLVU_Test" / "test_question.json", [fields])
    suite = benchmarks.load_suite("mlvu", root=tmp_path)
    assert suite[0].answer_index is None and suite[0].task_id == "NQA_0"


def test_a_record_of_the_video_r1_kind_has_its_task_in_its_id(tmp_path):
    record = {
        "problem_id": "AR_3",
        "problem": "What is unusual?",
        "data_type": "video",
        "options": [f"{letter}. thing {letter}" for letter in "ABCDEF"],
        "solution": "<answer>F</answer>",
        "problem_type": "multiple choice",
        "path": "./Evaluation/MLVU_Test/MLVU_Test/video/film_1.mp4",
        "data_source": "MLVU_Test",
    }
    write(tmp_path / "data" / "eval" / "eval_mlvu_test.json", [record])
    for place in ("video/film_1.mp4", "Evaluation/MLVU_Test/MLVU_Test/video/film_1.mp4"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        suite = benchmarks.load_suite("mlvu", root=tmp_path)
        assert suite[0].video == str(path)
    task = suite[0]
    assert task.task_types == ("anomaly_reco",) and task.task_id == "AR_3"
    assert task.question == "What is unusual?" and task.answer_index == 5
    assert task.options[0] == "thing A" and task.video_id == "film_1.mp4"


def test_packed_videos_are_named_with_their_command(tmp_path):
    write(tmp_path / "test-ground-truth" / "test_mcq_gt.json", [row(question_id="PQA_0")])
    (tmp_path / "MLVU_Test").mkdir()
    (tmp_path / "MLVU_Test" / "test_video.tar.gz.part-aa").touch()
    suite = benchmarks.load_suite("mlvu", root=tmp_path)
    with pytest.raises(VideoNotFoundError, match=r"cat test_video\.tar\.gz\.part-\* \| tar -xz"):
        suite.open_video(suite[0])


def test_what_is_published_is_said():
    found = find_dataset("mlvu")
    assert found.splits["dev"].tasks == 2174 and found.splits["test"].tasks == 502
