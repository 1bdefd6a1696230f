from __future__ import annotations

import errno
import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from chat_server import RIGHT, Handler, serve

from agents.model.tiny import ENV_OPTIONS, SUITE_OPTIONS, WEIGHTS
from benchmarks.controls import CONTROLS
from benchmarks.evaluate import evaluate, main, suite_to_play
from benchmarks.evaluate_config import EvaluateConfig
from benchmarks.players.player import Job, Played
from benchmarks.players.scripted import ScriptedPlayer
from benchmarks.runs import RunError, RunWriter, read_run
from benchmarks.suite import BenchmarkSuite
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.haystack.export import export_suite
from gym_longvideo.task import Task
from gym_longvideo.video.errors import VideoOpenError

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"frame_size": 28, "pool_size": 32, "frame_budget": 8}
FLAGS = ["--frame-size", "28", "--pool-size", "32", "--frame-budget", "8", "--quiet"]


def lines(directory: Path) -> list[bytes]:
    return (directory / "records.jsonl").read_bytes().splitlines()


def command(out: Path, policy: str, size: int, *more: str) -> list[str]:
    suite = ["--suite", "haystack", "--split", "val", "--suite-options", json.dumps({"size": size})]
    program = [sys.executable, "-m", "benchmarks.evaluate", *suite, "--policy", policy]
    return [*program, "--out", str(out), *FLAGS, *more]


def start(out: Path, policy: str, size: int, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(out, policy, size, *more),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def wait_for(process: subprocess.Popen[str], path: Path, size: int) -> bool:
    """Wait until a file is so large; return whether the process still runs."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_size >= size:
            return process.poll() is None
        time.sleep(0.001)
    return False


def kill_and_go_on(out: Path, policy: str, size: int, whole: int, seed: int) -> int:
    """Kill a run at three random sizes of its file, then let it end; return how often it died."""
    dice = random.Random(seed)
    died = 0
    for moment in sorted(dice.uniform(0.05, 0.9) for _ in range(3)):
        process = start(out, policy, size)
        if wait_for(process, out / "records.jsonl", int(moment * whole)):
            process.send_signal(signal.SIGKILL)
            died += process.wait(timeout=60) == -signal.SIGKILL
        process.communicate(timeout=120)
    last = start(out, policy, size)
    _, said = last.communicate(timeout=300)
    assert last.returncode == 0, said
    return died


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize(("policy", "seed"), [("bisect", 1)])
def test_a_thousand_episodes_killed_three_times_give_the_records_of_an_uninterrupted_run(
    tmp_path: Path, policy: str, seed: int
) -> None:
    size = 1000
    whole = evaluate(
        policy,
        "haystack",
        out=tmp_path / "whole",
        split="val",
        suite_options={"size": size},
        env=SMALL,
    )
    expected = lines(tmp_path / "whole")
    assert len(expected) == len(set(expected)) == size == whole["episodes"]
    length = (tmp_path / "whole" / "records.jsonl").stat().st_size
    died = kill_and_go_on(tmp_path / "killed", policy, size, length, seed)
    found = lines(tmp_path / "killed")
    assert died == 3
    assert len(found) == size and set(found) == set(expected)
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed")
    ]
    for summary in summaries:  # seconds differ
        del summary["cost"]["decode_s"]
    assert summaries[0] == summaries[1]
    assert set(read_run(tmp_path / "killed").costs) == set(read_run(tmp_path / "whole").costs)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for one process")
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = start(tmp_path, "bisect", 4000)
    assert wait_for(process, tmp_path / "records.jsonl", 10_000)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "same command" in said and "Traceback" not in said
    done = len(read_run(tmp_path).records)
    assert 0 < done < 4000
    assert (tmp_path / "records.jsonl").read_bytes().endswith(b"\n")


@pytest.mark.parametrize("stop", [1, 17, 39])
def test_a_run_that_was_torn_in_a_line_gives_the_same_records(tmp_path: Path, stop: int) -> None:
    options: dict[str, Any] = {"split": "val", "suite_options": {"size": 40}, "env": SMALL}
    evaluate("random", "haystack", out=tmp_path / "whole", **options)
    evaluate("random", "haystack", out=tmp_path / "torn", **options)
    records = tmp_path / "torn" / "records.jsonl"
    kept = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(kept[:stop]) + kept[stop][:-9])
    (tmp_path / "torn" / "summary.json").unlink()
    evaluate("random", "haystack", out=tmp_path / "torn", **options)
    assert set(lines(tmp_path / "torn")) == set(lines(tmp_path / "whole"))
    assert len(lines(tmp_path / "torn")) == 40


def test_a_finished_run_is_not_played_again(tmp_path: Path) -> None:
    def nobody(make_env: Any) -> Any:
        player = ScriptedPlayer("random", make_env)
        player.play = lambda jobs: iter(()) if not jobs else pytest.fail("played")
        return player

    first = evaluate("random", HaystackSuite("val", size=5), out=tmp_path, env=SMALL)
    before = lines(tmp_path)
    again = evaluate(nobody, HaystackSuite("val", size=5), out=tmp_path, env=SMALL)
    assert again == first and lines(tmp_path) == before


class Shut(HaystackSuite):
    """A suite some of whose videos do not open."""

    shut: frozenset[int] = frozenset()

    def open_video(self, task: Task, *, backend: str = "pyav", isolate: bool = False) -> Any:
        if self.index_of(task.task_id) in self.shut:
            raise VideoOpenError("is empty", path=task.video)
        return super().open_video(task, backend=backend, isolate=isolate)


def test_videos_that_do_not_open_are_faults_and_tried_again(tmp_path: Path) -> None:
    suite = Shut("val", size=8)
    suite.shut = frozenset({2, 5})
    summary = evaluate("oracle", suite, out=tmp_path, env={**SMALL, "pool_size": 128})
    assert summary["episodes"] == 6 and summary["faults"] == 2
    assert (
        summary["accuracy"]["value"]
        == sum(record.outcome == "correct" for record in read_run(tmp_path).records) / 6
    )
    suite.shut = frozenset({5})
    assert evaluate("oracle", suite, out=tmp_path, env={**SMALL, "pool_size": 128})["episodes"] == 7
    run = read_run(tmp_path)
    attempts = [(fault["key"], fault["attempt"]) for fault in run.faults]
    assert sorted(attempts) == [(suite[2].task_id, 1), (suite[5].task_id, 1), (suite[5].task_id, 2)]
    assert all("VideoOpenError" in fault["error"] for fault in run.faults)
    assert len({record.task["task_id"] for record in run.records}) == 7


def test_ids_that_are_given_twice_are_named(tmp_path: Path) -> None:
    class Same(HaystackSuite):
        def __getitem__(self, index: int) -> Task:
            return super().__getitem__(0 if index == 2 else index)

    with pytest.raises(ValueError, match=r"'val-00000-needle' is in the suite twice"):
        evaluate("random", Same("val", size=3), out=tmp_path, env=SMALL)


def test_a_run_of_which_nothing_could_be_played_says_why(tmp_path: Path) -> None:
    suite = Shut("val", size=3)
    suite.shut = frozenset(range(3))
    with pytest.raises(RunError, match=r"not one of 3 episodes.*is empty"):
        evaluate("random", suite, out=tmp_path, env=SMALL)


def test_a_full_disk_ends_the_run_and_it_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    genuine = os.write
    left = [30_000]

    def full(file: int, data: Any) -> int:
        if left[0] < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(data)
        return genuine(file, data)

    arguments = command(tmp_path, "random", 40)[3:]
    monkeypatch.setattr(os, "write", full)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "No space left" in said and "episodes are safe" in said
    monkeypatch.undo()
    done = len(read_run(tmp_path).records)
    assert 0 < done < 40
    assert main(arguments) == 0
    assert len(lines(tmp_path)) == len(set(lines(tmp_path))) == 40


def test_two_evaluations_of_one_run_at_once_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(tmp_path, "random", 4)[3:]
    assert main(arguments) == 0
    run = read_run(tmp_path)
    capsys.readouterr()
    with RunWriter(tmp_path, run.card):
        assert main(arguments) == 1
    assert "another process writes" in capsys.readouterr().err
    assert main(arguments) == 0


def test_another_command_in_the_directory_of_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, "random", 4)[3:]) == 0
    before = lines(tmp_path)
    for more, knob in (
        (["--max-turns", "2"], "protocol.settings.max_turns: 3 != 2"),
        (["--control", "shuffled"], "protocol.control"),
        (["--seed", "1"], "protocol.seed: 0 != 1"),
        (["--episodes", "2"], "protocol.episodes"),
        (["--seek", "auto"], "protocol.settings.seek"),
        (["--suite-options", '{"size": 5}'], "protocol.suite.tasks: 4 != 5"),
        (["--policy", "bisect"], "policy.name"),
    ):
        capsys.readouterr()
        assert main([*command(tmp_path, "random", 4)[3:], *more]) == 2
        said = capsys.readouterr().err
        assert knob in said and "another card" in said
    assert lines(tmp_path) == before
    # What moves no number may change.
    assert main([*command(tmp_path, "random", 4)[3:], "--concurrency", "3"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--suite", "nowhere", "--policy", "random"], "'nowhere'"),
        (["--suite", "nowhere.jsonl", "--policy", "random"], "nowhere.jsonl"),
        (["--suite", "haystack", "--policy", "clever"], "'clever' is unknown"),
        (["--suite", "haystack", "--policy", "random", "--split", "x"], "split='x'"),
        (["--suite", "haystack", "--policy", "random", "--root", "/data"], "root"),
        (["--suite", "haystack", "--policy", "random", "--frame-budget", "7"], "frame_budget=7"),
        (["--suite", "haystack", "--policy", "random", "--env", '{"suite": "x"}'], "'suite'"),
        (["--suite", "haystack", "--policy", "random", "--env", '{"depth": 1}'], "depth"),
        (["--suite", "haystack", "--policy", "random", "--episodes", "0"], "episodes=0"),
        (["--suite", "haystack", "--policy", "random", "--episodes", "1000"], '{"size": 1000}'),
        (["--suite", "nowhere.parquet", "--policy", "random"], "nowhere.parquet"),
        (["--suite", "haystack", "--policy", "http://127.0.0.1:9/v1"], "which model"),
        (["--suite", "no.such:thing", "--policy", "random"], "no.such:thing"),
    ],
)
def test_arguments_without_meaning_are_named(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "run"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and says in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("control", CONTROLS)
def test_every_control_is_played(control: str, tmp_path: Path) -> None:
    suite = HaystackSuite("val", size=6)
    summary = evaluate(
        "oracle", suite, out=tmp_path, env={**SMALL, "pool_size": 128}, control=control, episodes=4
    )
    run = read_run(tmp_path)
    assert run.card.protocol["control"] == summary["control"] == control
    assert len(run.records) == (16 if control == "circular" else 4)
    shown = {record.frames_shown for record in run.records}
    if control in ("blind", "single_frame"):
        assert shown == {0 if control == "blind" else 1}
    if control == "circular":
        asked = [record.task["meta"]["circular"] for record in run.records]
        assert sorted(rotation for _, rotation in asked) == sorted([0, 1, 2, 3] * 4)
    if control == "shuffled":
        for record in run.records:
            original = suite[suite.index_of(record.task["task_id"])]
            order = record.task["meta"]["shuffled"]
            assert record.task["options"] == [original.options[place] for place in order]


def test_the_card_says_what_was_played_and_paths_do_not_move_it(tmp_path: Path) -> None:
    suite = HaystackSuite("val", families="needle", size=2, duration_s=60.0)
    hashes = []
    for name in ("a", "b"):
        annotation = export_suite(suite, tmp_path / name, size=(32, 32))
        summary = evaluate("oracle", str(annotation), out=tmp_path / f"run-{name}", env=SMALL)
        hashes.append(summary["hash"])
    card = read_run(tmp_path / "run-a").card
    assert hashes[0] == hashes[1] == card.hash
    assert card.policy == {"kind": "scripted", "name": "oracle", "options": {}}
    assert card.protocol["text_protocol"] == "numeric" and card.protocol["seed"] == 0
    assert card.protocol["settings"]["seek"] == "exact"
    assert (card.protocol["suite"]["name"], card.protocol["suite"]["split"]) == ("jsonl", "all")


def test_real_files_are_decoded_and_the_time_is_counted(tmp_path: Path) -> None:
    suite = HaystackSuite("val", families="needle", size=3, duration_s=60.0)
    annotation = export_suite(suite, tmp_path / "data", size=(32, 32))
    (tmp_path / "data" / "videos" / f"{suite[1].task_id}.mp4").write_bytes(b"no video")
    summary = evaluate("oracle", str(annotation), out=tmp_path / "run", env=SMALL, concurrency=2)
    assert summary["episodes"] == 2 and summary["faults"] == 1
    costs = read_run(tmp_path / "run").costs.values()
    assert all(cost["decode_s"] > 0 and cost["frames_decoded"] >= 4 for cost in costs)


def test_an_endpoint_that_goes_away_costs_nothing_and_the_run_goes_on_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def frail(handler: Handler, body: dict[str, Any], number: int) -> None:
        if number >= 5:
            handler.error(500, "out of memory")
        else:
            handler.reply(body)

    def arguments(url: str) -> list[str]:
        return [
            *command(tmp_path, url, 12)[3:], "--model", "m", "--retries", "0", "--patience", "3",
            "--concurrency", "1",
        ]  # fmt: skip

    with serve(frail) as server:
        assert main(arguments(server.url)) == 1
    said = capsys.readouterr().err
    assert "3 episodes in a row" in said and "out of memory" in said
    assert len(read_run(tmp_path).records) == 5 and len(read_run(tmp_path).faults) == 3
    with serve(lambda h, body, n: h.reply(body)) as server:
        assert main(arguments(server.url)) == 0
        assert len(server.requests) == 7
    run = read_run(tmp_path)
    assert len(run.records) == 12
    assert all(record.turns[-1]["reply"] == RIGHT for record in run.records)
    assert run.card.policy["kind"] == "endpoint" and run.card.policy["name"] == "m"
    assert "127.0.0.1" not in (tmp_path / "card.json").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["faults"] == 0 and summary["cost"]["prompt_tokens"] == 100


def test_the_tiny_model_is_evaluated(tmp_path: Path) -> None:
    summary = evaluate(
        str(WEIGHTS),
        "haystack",
        split="val",
        out=tmp_path,
        suite_options={**SUITE_OPTIONS, "size": 4},
        env=ENV_OPTIONS,
        policy_options={"device": "cpu", "max_new_tokens": 48},
    )
    assert summary["episodes"] == 4
    cost = summary["cost"]
    assert cost["visual_tokens"] == cost["frames_shown"] >= 8
    assert cost["prefill_s"] > 0 and cost["generate_s"] > 0 and cost["reply_tokens"] > 1
    card = read_run(tmp_path).card
    assert card.protocol["text_protocol"] == "tags" and card.policy["name"] == "tiny"
    assert all(record.turns[0]["reply"] for record in read_run(tmp_path).records)


def test_a_player_of_ones_own_is_played(tmp_path: Path) -> None:
    class Mine(ScriptedPlayer):
        def play(self, jobs: Any) -> Any:
            for played in super().play([Job(*job) for job in jobs]):
                yield Played(*played)

    summary = evaluate(
        lambda make_env: Mine("random", make_env),
        HaystackSuite("val", size=3),
        out=tmp_path,
        env=SMALL,
    )
    assert summary["episodes"] == 3 and summary["directory"] == str(tmp_path)


def test_suites_are_found_by_name_by_path_and_by_callable(tmp_path: Path) -> None:
    assert suite_to_play("haystack").split == "test"
    assert suite_to_play("haystack", split="val", options={"size": 3}).split == "val"
    annotation = tmp_path / "a.jsonl"
    row = {"video": "a.mp4", "question": "Which?", "options": ["x", "y"], "answer": "A"}
    annotation.write_text(json.dumps(row) + "\n")
    loaded = suite_to_play(str(annotation))
    assert isinstance(loaded, BenchmarkSuite) and loaded.name == "jsonl" and len(loaded) == 1
    assert suite_to_play(str(annotation)).split == "all"
    with pytest.raises(ValueError, match=r"a\.jsonl.*b\.jsonl.*one of them"):
        suite_to_play(str(annotation), options={"annotation": "b.jsonl"})
    assert suite_to_play("gym_longvideo.haystack:needle").name == "haystack"
    suite = HaystackSuite("val", size=3)
    assert suite_to_play(suite) is suite


ROWS: list[dict[str, Any]] = [
    {"id": f"q{i}", "video": "a.mp4", "question": "Which?", "options": list("wxyz"), "answer": "B"}
    for i in range(12)
]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_an_annotation_of_ones_own_loses_its_broken_rows_and_takes_every_option(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    annotation = tmp_path / f"mine.{suffix}"
    rows = [*ROWS, {**ROWS[0], "id": "broken", "answer": "Q"}]
    if suffix == "json":
        annotation.write_text(json.dumps(rows))
    elif suffix == "jsonl":
        annotation.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        named = [f"{row['id']},a.mp4,Which?,w,x,y,z,{row['answer']}" for row in rows]
        annotation.write_text(
            "\n".join(["id,video,question,option0,option1,option2,option3,answer", *named])
        )
    loaded = suite_to_play(str(annotation), options={"shuffle_options": 7})
    assert isinstance(loaded, BenchmarkSuite)
    assert len(loaded) == 12 and len(loaded.invalid) == 1 and "'Q'" in str(loaded.invalid[0])
    orders = [loaded[i].options for i in range(12)]
    assert len(set(orders)) > 6
    assert all(loaded[i].options[loaded[i].answer_index or 0] == "x" for i in range(12))
    with pytest.raises(RunError, match="not one of 12 episodes"):  # there is no such video
        evaluate("random", str(annotation), out=tmp_path / "run", env=SMALL)
    assert "1 rows were left out" in caplog.text
    # All ask about one video.
    assert "12 of 12 questions lack their video" in caplog.text
    assert "videos are missing" not in caplog.text


def test_a_suite_without_answers_is_called_unscored_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    suite = HaystackSuite("val", families="needle", size=2, duration_s=60.0)
    annotation = export_suite(suite, tmp_path / "data", size=(32, 32))
    arguments = ["--suite", str(annotation), "--policy", "random", *FLAGS]
    assert main([*arguments, "--out", str(tmp_path / "scored")]) == 0
    assert "unscored" not in capsys.readouterr().out + caplog.text
    rows = [json.loads(line) for line in annotation.read_text().splitlines()]
    blank = [{**row, "answer": None} for row in rows]
    annotation.write_text("".join(json.dumps(row) + "\n" for row in blank))
    assert main([*arguments, "--out", str(tmp_path / "unscored")]) == 0
    assert "unscored: no task has a public answer\n" in capsys.readouterr().out
    assert "unscored: no task has a public answer; there will be no accuracy" in caplog.text


def test_what_a_model_cannot_read_counts_against_it(tmp_path: Path) -> None:
    def short(handler: Handler, body: dict[str, Any], number: int) -> None:
        if any(task.question in str(body["messages"]) for task in long):
            error = {"message": "too long", "code": "context_length_exceeded"}
            handler.json({"error": error}, 400)
        else:
            handler.reply(body)

    suite = HaystackSuite("val", size=12)
    long = [suite[index] for index in (1, 4, 7)]
    refused = {
        suite[i].task_id for i in range(12) if suite[i].question in {t.question for t in long}
    }
    with serve(short) as server:
        summary = evaluate(
            server.url,
            suite,
            out=tmp_path,
            env=SMALL,
            policy_options={"model": "m", "patience": 1, "backoff_s": 0.0},
        )
    assert summary["episodes"] == summary["scored"] == 12 and summary["faults"] == 0
    right = sum(suite[i].answer_index == 0 and suite[i].task_id not in refused for i in range(12))
    assert 3 <= len(refused) < 12 and right > 0
    assert summary["accuracy"]["value"] == pytest.approx(right / 12)
    for record in read_run(tmp_path).records:
        turns = record.turns
        if record.task["task_id"] in refused:
            assert record.outcome == "unanswered"
            assert [(turn["op"], turn["reply"], turn["refused"]) for turn in turns] == [
                ("malformed", "", "context")
            ] * 3
        else:
            assert all("refused" not in turn for turn in turns)


def test_a_model_that_is_unknown_to_its_server_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(handler: Handler, body: dict[str, Any], number: int) -> None:
        handler.error(404, "the model `m` does not exist")

    with serve(unknown) as server:
        arguments = [*command(tmp_path, server.url, 40)[3:], "--model", "m", "--concurrency", "1"]
        assert main([*arguments, "--patience", "2"]) == 1
        assert len(server.requests) <= 9  # two episodes, one that was begun; three forms each
    assert "does not exist" in capsys.readouterr().err
    assert not read_run(tmp_path).records


def test_the_command_line_makes_the_arguments_of_evaluate() -> None:
    config = EvaluateConfig("videomme", "http://h/v1", model="m", root="/d", request={"top_k": 1})
    assert config._suite_options() == {"root": "/d"}
    assert config._policy_options()["model"] == "m"
    assert config._policy_options()["request"] == {"top_k": 1}
    assert config._env()["seek"] == "exact"
    assert EvaluateConfig("haystack", "random")._policy_options() == {}
    assert EvaluateConfig("haystack", "some/model")._policy_options() == {"max_new_tokens": 0}
    arguments = EvaluateConfig("haystack", "random", quiet=True).arguments()
    assert arguments.keys() == inspect.signature(evaluate).parameters.keys()
    assert arguments["progress"] is False
    changed = EvaluateConfig("haystack", "random", env={"seek": "auto", "reward": "outcome"})
    assert changed._env()["seek"] == "auto" and changed._env()["reward"] == "outcome"


def test_progress_shows_rate_and_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part for part in command(tmp_path, "random", 30)[3:] if part != "--quiet"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "30/30" in said.err and "ep/s" in said.err and "accuracy=" in said.err
    assert "30 episodes, 0 faults" in said.out


def test_a_run_without_a_name_gets_one_that_every_system_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = HaystackSuite("val", size=2)
    suite.name = "mine:val/2"
    summary = evaluate("uniform_single_turn", suite, env=SMALL)
    (directory,) = (tmp_path / "runs").iterdir()
    assert directory.name.startswith("evaluate-mine-val-2-") and summary["episodes"] == 2
