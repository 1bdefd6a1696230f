import json
import subprocess
import sys

import pytest

from benchmarks import ENV_IDS
from benchmarks.suites import lines, main, survey


def entry(entries, name, split):
    return next(each for each in entries if (each["name"], each["split"]) == (name, split))


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def lvb(number, video="a.mp4", choice=1):
    return {
        "id": str(number),
        "video_path": video,
        "question": "?",
        "candidates": ["x", "y"],
        "correct_choice": choice,
    }


def test_without_directories_all_benchmarks_are_described(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    for name, env_id in ENV_IDS.items():
        assert f"{name}: " in said and f"benchmarks:{env_id}\n" in said
    assert "  test, 5341 questions, no public answers\n" in said and "not found" not in said
    entries = list(survey())
    assert entry(entries, "mlvu", "dev")["questions"] == 2174
    assert all(each["licence"] and each["title"] for each in entries)
    assert len({(each["name"], each["split"]) for each in entries}) == len(entries)


def test_what_is_there_is_counted_in_each_directory(tmp_path, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    rows = [lvb(1), lvb(2), lvb(3, "b.mp4"), lvb(4, choice=9)]
    write(here / "LongVideoBench" / "lvb_val.json", rows)
    (here / "LongVideoBench" / "videos").mkdir()
    (here / "LongVideoBench" / "videos" / "b.mp4").touch()
    write(there / "longvideobench" / "lvb_val.json", rows[:1])
    found = entry(list(survey([here, there])), "longvideobench", "val")["found"]
    assert found[0] == {
        "root": str(here),
        "annotation": [str(here / "LongVideoBench" / "lvb_val.json")],
        "questions": 3,
        "unusable": 1,
        "videos": 2,
        "missing": 1,
        "refused": 0,
    }
    assert (found[1]["questions"], found[1]["missing"]) == (1, 1)
    assert main(["--root", str(here), str(there)]) == 0
    said = capsys.readouterr().out
    assert "3 questions, 1 rows unusable, 1 of 2 videos there" in said
    assert "  test, 5341 questions, no public answers: not found\n" in said
    assert main(["--root", str(here), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert entry(listed, "longvideobench", "val")["found"][0]["questions"] == 3


def test_links_that_will_not_be_opened_are_counted(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.mp4").touch()
    root = tmp_path / "LongVideoBench"
    write(root / "lvb_val.json", [lvb(1)])
    (root / "videos").symlink_to(tmp_path / "disk")
    found = entry(list(survey([root])), "longvideobench", "val")["found"][0]
    assert (found["videos"], found["missing"], found["refused"]) == (1, 0, 1)
    assert any("1 of them links that leave the root" in line for line in lines(
        list(survey([root])), looked=True))  # fmt: skip


def test_one_benchmark_is_not_taken_for_another(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    # A directory as lmms-eval fills it: most call their file alike.
    for name in ("videomme", "mlvu", "mlvu_test", "egoschema"):
        (tmp_path / name).mkdir()
        parquet.write_table(
            pa.table({"question": ["?"]}), tmp_path / name / "test-00000-of-00001.parquet"
        )
    found = {
        (each["name"], each["split"]): each["found"][0]["error"]
        for each in survey([tmp_path])
        if each["found"]
    }
    # Each is read by its own adapter alone, which says that this is none of its files.
    assert set(found) == {("videomme", "test"), ("mlvu", "dev"), ("mlvu", "test")}
    assert all("none of 1 rows is usable" in message for message in found.values())


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[{]", b"3", b"[]", b'[{"a": 1}]', b""])
def test_broken_files_are_named_and_stop_nothing(tmp_path, content, capsys):
    for name in (
        "lvb_val.json",
        "videomme.json",
        "1_plotQA.json",
        "eval_mlvu_test.json",
        "questions.json",
        "test.csv",
        "gsub_test.json",
        "video_info.meta.jsonl",
        "highlight_val_release.jsonl",
        "qvhighlights_val.json",
        "qv-nextgqa_merge_8k.json",
        "test-00000.parquet",
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "val.csv").mkdir()
    assert main(["--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("cannot be used") >= 8 and "jsonl: Your own questions" in said


def test_a_root_that_is_no_directory_is_said(tmp_path, capsys):
    assert main(["--root", str(tmp_path / "nowhere"), str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "nowhere is not a directory" in said.err and "videomme" in said.out


def test_text_counts_files_that_are_many(tmp_path):
    for i, kind in ((1, "plotQA"), (5, "order")):
        fields = {"video": "a.mp4", "question": "?", "candidates": ["x", "y"], "answer": "x"}
        write(tmp_path / f"{i}_{kind}.json", [{**fields, "question_type": kind}])
    text = "\n".join(lines(list(survey([tmp_path])), looked=True))
    assert "1_plotQA.json and 1 more: 2 questions, 0 rows unusable, 0 of 2 videos there" in text


def test_adapters_are_light():
    code = (
        "import sys, benchmarks.suites as s; list(s.survey()); import benchmarks.validate\n"
        "heavy = {'torch', 'torchmetrics', 'pyarrow', 'openai', 'matplotlib', 'tyro'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
