"""A benchmark on disk, from its published layout to the report, as a person would go about it."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import validate
from benchmarks.evaluate import evaluate
from benchmarks.report.__main__ import write_report
from benchmarks.runs import read_run
from gym_longvideo import EpisodeRecord
from gym_longvideo.__main__ import main as longvideo

pytest.importorskip("transformers")
pytest.importorskip("pyarrow")
pytest.importorskip("torchmetrics")
pytest.importorskip("matplotlib")

from agents.model.tiny import ENV_OPTIONS, WEIGHTS
from examples import made_up_benchmark

NAMES = tuple(made_up_benchmark.LAYOUTS)
# An overview of 16 frames shows every second card, and is one of those the model was made with.
ENV: dict[str, Any] = {**ENV_OPTIONS, "overview_frames": 16, "frame_budget": 32}


@dataclass(frozen=True)
class MadeUp:
    """Benchmarks on disk, and how many questions each has."""

    root: Path
    tasks: int

    def split(self, name: str) -> str:
        return made_up_benchmark.LAYOUTS[name][1]

    def exported(self) -> dict[str, dict[str, Any]]:
        """Return what the export says, by task."""
        files = (self.root / "export").glob("*/annotation.jsonl")
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return {line["id"]: line for line in lines}

    def run(self, name: str, policy: str | Path) -> Path:
        """Evaluate, or do nothing if that was done before."""
        out = self.root / "evaluated" / name / Path(policy).name
        if not (out / "summary.json").exists():
            options = {"root": self.root}
            split = self.split(name)
            evaluate(str(policy), name, split=split, suite_options=options, out=out, env=ENV)
        return out

    def summary(self, name: str, policy: str | Path) -> dict[str, Any]:
        return json.loads((self.run(name, policy) / "summary.json").read_text())

    def records(self, name: str, policy: str | Path) -> dict[str, EpisodeRecord]:
        """Return the records by the stem of the video, which is that of the exported task."""
        records = read_run(self.run(name, policy)).records
        return {Path(record.task["video"]).stem: record for record in records}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()  # on busy cores a tiny model waits for them, not for itself
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[7, pytest.param(48, marks=pytest.mark.slow)])
def made(request, tmp_path_factory) -> MadeUp:
    root, tasks = tmp_path_factory.mktemp("made-up"), request.param
    minutes = ("1", "2") if tasks < 10 else ("1", "10")
    arguments = [root, "--tasks", tasks, "--size", 56, "--minutes", *minutes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["made_up_benchmark", *map(str, arguments)])
        made_up_benchmark.main()
    return MadeUp(root, tasks)


def right(record: EpisodeRecord) -> bool:
    return record.turns[-1]["choice"] == record.task["answer_index"]


@pytest.mark.parametrize("name", NAMES)
def test_validate_calls_it_usable_whole_and_decodable(made: MadeUp, name: str, capsys) -> None:
    root, split = str(made.root), made.split(name)
    assert validate.main([name, "--root", root, "--split", split, "--decode"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"questions: {made.tasks} of {made.tasks} rows usable, 0 not" in said[1]
    assert "differs" in said[1]  # it is not the published benchmark
    assert said[2:] == [
        f"videos: {made.tasks} of {made.tasks} there",
        f"decoded: {made.tasks} of {made.tasks}",
        "usable",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_has_no_segments_and_gives_the_annotated_answer_at_once(
    made: MadeUp, name: str
) -> None:
    summary = made.summary(name, "oracle")
    assert summary["accuracy"]["value"] == summary["lenient_accuracy"]["value"] == 1.0
    assert (summary["episodes"], summary["faults"]) == (made.tasks, 0)
    assert summary["cost"]["turns"] == 1.0
    assert summary["grounding"] is None
    chosen = {
        video: "ABCD"[record.turns[-1]["choice"]]
        for video, record in made.records(name, "oracle").items()
    }
    assert chosen == {task: line["answer"] for task, line in made.exported().items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_tiny_mllm_plays_every_question_and_reads_the_cards_it_is_shown(
    made: MadeUp, name: str
) -> None:
    summary = made.summary(name, WEIGHTS)
    assert [summary[key] for key in ("episodes", "videos", "faults")] == [made.tasks] * 2 + [0]
    assert summary["answered"] == 1.0
    assert summary["behaviour"]["malformed_rate"] == 0.0
    assert summary["cost"]["visual_tokens"] >= 16  # one a frame
    exported = made.exported()
    shown = [
        right(record)
        for video, record in made.records(name, WEIGHTS).items()
        for start, end in exported[video]["segments"]
        if any(start <= t < end for t in record.overview["shown_s"])
    ]
    assert len(shown) >= made.tasks // 4
    assert sum(shown) / len(shown) >= 0.6  # chance is 0.25


def test_the_same_questions_are_answered_alike_in_whatever_layout(made: MadeUp) -> None:
    replies = []
    for name in NAMES:
        records = made.records(name, WEIGHTS)
        replies.append({
            video: (record.task["question"], record.task["options"], record.turns[-1]["choice"])
            for video, record in records.items()
        })  # fmt: skip
    assert len(replies[0]) == made.tasks
    assert replies[0] == replies[1] == replies[2]


def test_groups_and_overall_are_those_of_the_benchmarks(made: MadeUp) -> None:
    many = made.tasks
    longer = many // 2  # the first video is a short one
    sizes = {
        name: {
            group: {value: found["n"] for value, found in values.items()}
            for group, values in made.summary(name, WEIGHTS)["groups"].items()
        }
        for name in NAMES
    }
    assert sizes["videomme"] == {
        "duration": {"short": many - longer, "medium": longer},
        "domain": {"Made up": many},
        "sub_category": {"Haystack": many},
        "task_type": {"Object Recognition": many},
    }
    third = len(range(0, many, 3))
    assert sizes["mlvu"] == {"task_type": {"plotQA": third, "needle": many - third}}
    assert sizes["longvideobench"] == {
        "duration_group": {"60": many - longer, "600": longer},
        "topic_category": {"Made up": many},
        "level": {"L1-Perception": many},
        "task_type": {"S2O": many},
    }
    for name in NAMES:
        summary, records = made.summary(name, WEIGHTS), made.records(name, WEIGHTS).values()
        micro = sum(map(right, records)) / many
        assert summary["accuracy_micro"]["value"] == pytest.approx(micro)
        if name == "mlvu":
            of = {"plotQA": 0, "needle": 0}
            for record in records:
                of[record.task["task_types"][0]] += right(record)
            official = (of["plotQA"] / third + of["needle"] / (many - third)) / 2
            assert official != pytest.approx(micro)  # else nothing is told apart here
        else:
            official = micro
        assert summary["accuracy"]["value"] == pytest.approx(official)


@pytest.mark.parametrize("name", NAMES)
def test_the_report_has_all_runs_and_no_published_row_beside_them(
    made: MadeUp, name: str, tmp_path: Path
) -> None:
    runs = [made.run(name, policy) for policy in ("oracle", WEIGHTS)]
    files = write_report(runs, tmp_path)
    with files["overall.csv"].open() as file:
        overall = {row["run"]: row for row in csv.DictReader(file)}
    assert set(overall) == {"oracle", "tiny"}
    with files["published.csv"].open() as file:
        assert list(csv.DictReader(file)) == []
    for page in ("report.md", "report.html"):
        text = files[page].read_text(encoding="utf-8")
        assert "No published row stands beside these runs" in text
        assert "Video-MTR" not in text
        assert "100.0 (" in text


def test_the_commands_that_the_example_prints_work(tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "made up"
    sizes = ["--tasks", "1", "--minutes", "1", "--size", "32", "--like", "longvideobench"]
    monkeypatch.setattr(sys, "argv", ["made_up_benchmark", str(out), *sizes])
    made_up_benchmark.main()
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    commands = [words[1:] for words in commands if words[:1] == ["longvideo"]]
    assert [words[0] for words in commands] == ["validate", "evaluate", "evaluate", "report"]
    for words in commands:
        assert longvideo(words) == 0
    assert (out / "report" / "longvideobench" / "report.html").stat().st_size > 1000
