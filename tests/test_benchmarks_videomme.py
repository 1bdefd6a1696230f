import json

import pytest

import benchmarks


def row(**changes):
    fields = {
        "video_id": "007",
        "duration": "medium",
        "domain": "Knowledge",
        "sub_category": "Astronomy",
        "url": "https://www.youtube.com/watch?v=-ab_cd",
        "videoID": "-ab_cd",
        "question_id": "007-2",
        "task_type": "Counting Problem",
        "question": "How many\nplanets?",
        "options": ["A. One.", "B. Two.", "C. Two.", "D. A. Lincoln."],
        "answer": "C",
    }
    return {**fields, **changes}


def load(tmp_path, *rows, name="videomme.json", **options):
    (tmp_path / name).write_text(json.dumps(rows), encoding="utf-8")
    return benchmarks.load_suite("videomme", root=tmp_path, **options)


def test_the_letter_counts_where_its_text_stands_twice(tmp_path):
    suite = load(tmp_path, row())
    task = suite[0]
    assert task.answer_index == 2 and task.issues == ("duplicate_options",)
    assert task.question == "How many\nplanets?" and task.duration_s is None
    assert suite.dataset.groups({**task.__dict__})["duration"] == ("medium",)


@pytest.mark.parametrize("url", ["-ab_cd", "https://youtu.be/-ab_cd", "https://x.y/w?v=-ab_cd"])
def test_a_result_file_has_the_name_of_the_video_in_its_url(tmp_path, url):
    inner = {key: row()[key] for key in ("question_id", "task_type", "question", "options")}
    inner |= {"answer": "B", "response": ""}
    item = {"video_id": "007", "duration": "long", "url": url, "questions": [inner, 5]}
    suite = load(tmp_path, item, on_invalid="skip")
    task = suite[0]
    assert task.video.endswith("/-ab_cd.mp4") and task.video_id == "007"
    assert task.answer_index == 1 and task.meta["duration_group"] == "long"
    assert "response" not in task.meta
    assert [invalid.kind for invalid in suite.invalid] == ["blank_question"]


def test_vlmevalkit_calls_everything_otherwise(tmp_path):
    fields = {
        "index": "17",
        "video": "-ab_cd",
        "video_path": "./video/-ab_cd.mp4",
        "duration": "short",
        "domain": "Knowledge",
        "candidates": str(row()["options"]),
        "sub_category": "Astronomy",
        "task_type": "Counting Problem",
        "subtitle_path": "./subtitle/-ab_cd.srt",
        "question": "How many?",
        "answer": "D",
    }
    text = "\t".join(fields) + "\n" + "\t".join(fields.values()) + "\n"
    (tmp_path / "Video-MME.tsv").write_text(text, encoding="utf-8")
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "-ab_cd.mp4").touch()
    suite = benchmarks.load_suite("videomme", root=tmp_path)
    task = suite[0]
    assert (task.task_id, task.video_id, task.answer_index) == ("006-3", "006", 3)
    assert task.video == str(tmp_path / "video" / "-ab_cd.mp4") and not suite.missing
    assert (
        task.options[3] == "A. Lincoln." and task.meta["subtitle_path"] == "./subtitle/-ab_cd.srt"
    )
    assert suite.dataset.groups({**task.__dict__})["duration"] == ("short",)


@pytest.mark.parametrize("whole", [True, False])
def test_video_r1_adds_or_replaces_fields(tmp_path, whole):
    record = {
        "problem_id": 4,
        "problem": "How many?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. One.", "B. Two.", "C. Six.", "D. Ten."],
        "solution": "<answer>D</answer>",
        "path": "./Evaluation/Video-MME/data/-ab_cd.mp4",
    }
    if whole:
        record = {**row(), **record, "answer": "D"}
    suite = load(tmp_path, record, name="eval_videomme.json")
    task = suite[0]
    assert task.task_id == ("007-2" if whole else "4") and task.answer_index == 3
    assert task.video.endswith("-ab_cd.mp4") and task.options[3] == "Ten."
    assert task.video_id == ("007" if whole else "-ab_cd")


def test_rows_without_a_video_and_the_broken_template_are_errors(tmp_path):
    bad = row(question_id="007-3")
    del bad["videoID"], bad["url"]
    suite = load(tmp_path, row(), bad, on_invalid="skip")
    assert len(suite) == 1 and "must be a path" in suite.invalid[0].message
    (tmp_path / "videomme.json").write_text('[{"video_id": "001",}]')
    with pytest.raises(ValueError, match=r"videomme\.json: not valid JSON"):
        benchmarks.load_suite("videomme", root=tmp_path, on_invalid="skip")
