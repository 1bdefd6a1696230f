import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from agents_models import model_dir
from agents_training import ENV, SUITE, are_same, metrics_of

from agents import train
from agents.checkpoint import CheckpointError, find
from agents.config import TrainConfig, make_train_config
from agents.model import tiny

ROOT = Path(__file__).parents[1]
SMALL = [
    *("--model", str(model_dir()), "--device", "cpu", "--threads", "1", "--batch", "4"),
    *("--env", json.dumps(ENV), "--suite-options", json.dumps(SUITE), "--max-new-tokens", "4"),
    *("--ppo.minibatch", "4", "--eval-episodes", "3", "--samples", "1"),
]


def test_help_lists_every_setting_with_a_line_of_help():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "agents.train", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and done.stderr == ""
    assert time.monotonic() - began < 30
    for text in ("--ppo.actor-lr", "--suite-options JSON", "--resume", "--eval-every", "torchrun"):
        assert text in done.stdout
    assert "Learning rate of the policy." in done.stdout
    assert str(tiny.WEIGHTS.name) in done.stdout


def test_the_command_line_overrides_the_preset():
    assert train.parse([]) == TrainConfig()
    config = train.parse(["--preset", "paper", "--ppo.actor-lr", "3e-6", "--batch", "16"])
    expected = make_train_config("paper", batch=16)
    assert config.ppo.actor_lr == 3e-6 and config.ppo.clip_high == expected.ppo.clip_high
    assert (config.batch, config.model, config.preset) == (16, expected.model, "paper")
    assert train.parse(["--env", '{"pool_size": 9}']).env == {"pool_size": 9}
    assert train.parse(["--bonus-stages", "0.2", "1", "--no-bonus"]).bonus_stages == ((0.2, 1.0),)
    assert train.parse(["--ppo.history", "None"]).ppo.history is None


def test_the_tiny_model_brings_its_videos_unless_others_are_asked_for():
    base = TrainConfig().make_env("train").unwrapped
    assert base.pool_size == tiny.ENV_OPTIONS["pool_size"]  # type: ignore[attr-defined]
    base = TrainConfig(env={"pool_size": 9}).make_env("val").unwrapped
    assert base.pool_size == 9 and base.suite.split == "val"  # type: ignore[attr-defined]
    other = TrainConfig(model=str(model_dir())).make_env("train").unwrapped
    assert other.pool_size == 128  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", "0"], "batch=0 must be a whole number"),
        (["--env", "nonsense"], "is no JSON"),
        (["--env", "[1]"], "is no JSON object"),
        (["--preset", "best"], "preset='best' is unknown"),
        (["--resume", "nowhere"], "nowhere is no checkpoint"),
        ([*SMALL, "--ppo.gamma-turn", "1.5"], "gamma_turn=1.5 must be a number in [0, 1]"),
        ([*SMALL, "--env", '{"frame_size": 30}'], "use frame_size=[28, 28]"),
        ([*SMALL, "--split", "dev"], "split='dev' is unknown"),
    ],
)
def test_arguments_without_meaning_end_with_a_line_that_says_so(arguments, says, capsys, tmp_path):
    try:
        code = train.main([*arguments, "--out", str(tmp_path)])
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    words = " ".join((captured.err + captured.out).replace("│", " ").split())
    assert code == 2 and says in words
    assert "Traceback" not in words


def test_a_run_trains_goes_on_and_refuses_to_overwrite_itself(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert train.main([*SMALL, *out, "--iterations", "1"]) == 0
    assert "done at step 1; checkpoint" in capsys.readouterr().out
    assert train.main([*SMALL, *out, "--iterations", "2"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    # All that is not said comes from the run itself.
    assert train.main(["--resume", str(tmp_path), "--iterations", "2"]) == 0
    assert find(tmp_path).name == "checkpoint-000002"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["suite_options"] == SUITE and config["ppo"]["minibatch"] == 4


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_code_1(
    tmp_path, capsys, monkeypatch
):
    def full(*_, **__):
        raise CheckpointError("the disk is full; the latest one is still there")

    monkeypatch.setattr("agents.checkpoint.Checkpoints.save", full)
    assert train.main([*SMALL, "--out", str(tmp_path), "--iterations", "1"]) == 1
    assert (
        capsys.readouterr()
        .err.rstrip()
        .endswith("error: the disk is full; the latest one is still there")
    )


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-m", "agents.train", *SMALL, "--out", str(tmp_path), "--eval-every", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    metrics = tmp_path / "metrics.jsonl"
    for _ in range(600):
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= 2:
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    said, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "SIGINT: saving a checkpoint, then stopping" in errors and "Traceback" not in errors
    assert "stopped by SIGINT at step" in said and "--resume" in said
    step = int(find(tmp_path).name[-6:])
    assert step >= 2 and len(metrics.read_text().splitlines()) == step


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on Windows")
def test_the_same_command_killed_and_given_again_ends_bit_by_bit_as_if_it_had_not_been(tmp_path):
    def command(out: Path) -> list[str]:
        more = ["--iterations", "12", "--save-every", "2", "--eval-every", "5", "--resume", "auto"]
        return [sys.executable, "-m", "agents.train", *SMALL, "--out", str(out), *more]

    subprocess.run(command(tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True)
    out, died = tmp_path / "killed", 0
    for lines in (1, 4, 9):
        run = subprocess.Popen(
            command(out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        metrics, deadline = out / "metrics.jsonl", time.monotonic() + 120
        while run.poll() is None and time.monotonic() < deadline:
            if metrics.is_file() and metrics.read_bytes().count(b"\n") >= lines:
                run.kill()
                break
            time.sleep(0.002)
        died += run.wait(timeout=60) == -signal.SIGKILL
    assert died == 3
    subprocess.run(command(out), cwd=ROOT, check=True, capture_output=True)
    whole, killed = tmp_path / "whole" / "checkpoint-000012", out / "checkpoint-000012"
    for name in ("policy/model.safetensors", "critic.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    states = [torch.load(each / "trainer.pt", weights_only=True) for each in (whole, killed)]
    assert are_same(*states) and not are_same(states[0], {**states[1], "workers": []})
    assert metrics_of(tmp_path / "whole") == metrics_of(out)
