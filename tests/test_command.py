"""One command line: dispatch, help, errors in a line, and configurations that are taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents.command import from_json, to_json
from agents.config import TrainConfig, make_train_config
from benchmarks.evaluate_config import EvaluateConfig
from gym_longvideo import __main__ as cli
from gym_longvideo.__main__ import COMMANDS, main
from gym_longvideo.command import check_directory

ROOT = Path(__file__).parents[1]
RUN = Path(__file__).parent / "golden" / "run-tiny"
SMALL = ["--suite", "haystack", "--split", "val", "--suite-options", '{"size": 4}', "--quiet"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_defaults_and_runs_nothing(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    said = capsys.readouterr()
    assert f"usage: longvideo {command}" in said.out and said.err == ""
    assert "(default: " in said.out
    for ugly in ("{None}", "[STR", "[[", "Optional"):
        assert ugly not in said.out


def test_without_a_command_all_are_listed(capsys):
    assert main([]) == main(["--help"]) == main(["speed"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evalute"], "there is no command 'evalute' (did you mean 'evaluate'?); use some of ["),
        (["speed", "vidoe"], "did you mean 'speed video'?"),
        (["evaluate"], "--suite, --policy must be given"),
        (["evaluate", "--suite", "haystack"], "--policy must be given"),
        (["evaluate", *SMALL, "--policy", "random", "--sede", "1"], "--sede, 1; perhaps you meant"),
        (["evaluate", *SMALL, "--policy", "random", "--seed", "x"], "--seed: 'x' is no whole numb"),
        (
            ["evaluate", *SMALL, "--policy", "random", "--control", "deaf"],
            "'--control'. Expected",
        ),
        (["evaluate", *SMALL, "--policy", "random", "--env", "3"], "--env: '3' is no JSON object"),
        (["evaluate", *SMALL, "--policy", "runs/nowhere"], "no directory runs/nowhere; use one of"),
        (
            ["evaluate", *SMALL, "--policy", "tiny", "--protocol", "xml"],
            "protocol='xml' is unknown",
        ),
        (["evaluate", *SMALL, "--policy", "tiny", "--out", "/proc/no"], "cannot be written to"),
        (["train", "--env", '{"pool_sise": 9}'], "did you mean 'pool_size'?"),
        (["train", "--reward", "dense"], "reward='dense' is unknown; use one of ['accuracy'"),
        (["train", "--protocol", "xml"], "protocol='xml' is unknown; use one of ['tags'"),
        (["train", "--model", "/no/where"], "no directory /no/where; use one of"),
        (["train", "--model", "random"], "is a policy of the kind 'scripted'"),
        (["train", "--suite", "nextgca"], "suite='nextgca' is unknown; use \"haystack\", one of ["),
        (["train", "--device", "gpu"], "device='gpu' is unknown"),
        (["train", "--device", "cuda:63"], "device='cuda:63'"),
        (["train", "--out", "/proc/no"], "out='/proc/no' cannot be written to"),
        (["train", "--config", "/no/where"], "--config /no/where cannot be read"),
        (["compare", str(RUN)], "RUN-B must be given"),
        (["rescore", str(RUN), "--parser", "xml"], "parser='xml' is unknown"),
        (["validate", "videomm"], "benchmark 'videomm' is unknown; use one of ['videomme'"),
        (["probe", "--reward", "{"], "--reward '{' is no JSON"),
        (["probe", "--retrieval", "x"], "argument --retrieval: invalid choice: 'x'"),
        (["export"], "required: directory"),
        (["report", "--out"], "--out"),
    ],
)
def test_what_is_wrong_is_one_line_on_stderr_before_anything_is_loaded(
    words, says, capsys, monkeypatch
):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("agents.model.policy.MLLMPolicy.from_pretrained", load)
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and says in said.err, said.err
    assert said.err.count("\n") == 1 and said.out == ""


def test_the_command_line_imports_nothing_but_the_command_that_is_asked_for():
    code = (
        "import sys; from gym_longvideo.__main__ import main; main([]); "
        "print({'torch', 'agents', 'benchmarks', 'tyro'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_a_missing_extra_is_named(monkeypatch, capsys):
    def absent(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli.importlib, "import_module", absent)
    assert main(["train"]) == 2
    assert capsys.readouterr().err == (
        'error: longvideo train needs torch: pip install "gym-longvideo[agents]"\n'
    )


def test_a_directory_that_cannot_be_written_to_is_not_left_behind(tmp_path, monkeypatch):
    def full(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"a/b' cannot be written to: .*No space left"):
        check_directory(tmp_path / "a" / "b")
    assert not any(tmp_path.iterdir())


LOUD = """
import sys
from gym_longvideo.command import as_command

@as_command
def main(words):
    {body}

sys.exit(main())
"""


def unread(arguments, *, both=False):
    """Run Python with an output that nobody reads; return its exit code and what stderr holds."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            stdout=writer,
            stderr=writer if both else subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "body",
    [
        "print('once'); return 0",  # buffered until the end
        "[print('line', i) for i in range(100_000)]; return 0",
        "print('now', flush=True); return 1",
        "print('help'); raise SystemExit(0)",
    ],
)
@pytest.mark.parametrize("options", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_a_command_whose_output_nobody_reads_ends_without_a_word(body, options):
    assert unread([*options, "-c", LOUD.format(body=body)]) == (141, "")


def test_a_command_whose_errors_nobody_reads_ends_too():
    assert unread(["-c", LOUD.format(body="raise ValueError('x')")], both=True)[0] == 141


def test_a_broken_pipe_to_something_else_is_an_error():
    body = "print('kept'); raise BrokenPipeError(32, 'a worker went away')"
    code = LOUD.format(body=body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "kept\n")
    assert done.stderr == "error: [Errno 32] a worker went away\n"


@pytest.mark.parametrize("words", [[], ["validate", "jsonl"], ["suites"]])
def test_every_command_ends_without_a_word_when_nobody_reads(words, tmp_path):
    if words[:1] == ["validate"]:
        row = {"video": "a.mp4", "question": "?", "options": ["x", "y"], "answer": "B"}
        (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
        words = [*words, "--root", str(tmp_path)]
    assert unread(["-m", "gym_longvideo", *words]) == (141, "")


def test_a_run_writes_the_configuration_that_gives_it_again(tmp_path, capsys):
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    options = ["--policy", "random", "--pool-size", "32", "--episodes", "3", "--seek", "auto"]
    assert main(["evaluate", *SMALL, *options, "--out", str(first)]) == 0
    config = ["--config", str(first / "config.json")]
    assert main(["evaluate", *config, "--out", str(again)]) == 0
    assert main(["evaluate", *config, "--out", str(other), "--pool-size", "16"]) == 0
    cards = [json.loads((each / "card.json").read_text()) for each in (first, again, other)]
    assert cards[0]["hash"] == cards[1]["hash"] != cards[2]["hash"]
    settings = [card["protocol"]["settings"] for card in cards]
    assert settings[2] == {**settings[0], "pool_size": 16} and settings[0]["seek"] == "auto"
    records = [(each / "records.jsonl").read_bytes().splitlines() for each in (first, again)]
    assert sorted(records[0]) == sorted(records[1])


def test_a_configuration_with_an_unknown_key_is_refused(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"suite": "haystack", "polcy": "random"}))
    assert main(["evaluate", "--config", str(path)]) == 2
    assert "the configuration has no 'polcy' (did you mean 'policy'?)" in capsys.readouterr().err
    path.write_text(json.dumps({"settings": {"pool": 3}}))
    assert main(["evaluate", "--config", str(path), *SMALL, "--policy", "random"]) == 2
    assert "has no 'pool'" in capsys.readouterr().err


def test_a_training_run_can_be_given_again_from_its_configuration(tmp_path):
    from agents.train import parse

    config = make_train_config("paper", batch=16, env={"frame_size": 28, "seek": "exact"})
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert parse(["--config", str(tmp_path)]) == config
    changed = parse([f"--config={tmp_path}", "--ppo.epochs", "2", "--batch", "8"])
    assert (changed.ppo.epochs, changed.batch, changed.env) == (2, 8, config.env)


def test_configurations_survive_json():
    evaluation = EvaluateConfig("videomme", "random", env={"reward": "accuracy"}, episodes=5)
    assert from_json(EvaluateConfig, to_json(evaluation)) == evaluation
    assert EvaluateConfig.of(
        **{k: v for k, v in evaluation.arguments().items() if k not in ("progress", "protocol")}
    ) == EvaluateConfig("videomme", "random", env={"reward": "accuracy"}, episodes=5)
    training = TrainConfig(bonus_stages=((0.2, 1.0),))
    assert from_json(TrainConfig, to_json(training)) == training
