"""Runs by servers: pushed weights, what is checked of them, and how a run ends when they fail."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from agents_models import DOT, load, perturb
from agents_training import Loose, differing, metrics_of, small, state_of
from fake_vllm import GENERATE, FakeVLLM, serving
from safetensors.torch import load_file
from test_agents_processes import launch

from agents import train
from agents.checkpoint import config_of
from agents.config import TrainConfig, make_train_config
from agents.keeping.saved import newest_readable
from agents.model.policy import LoRA, MLLMPolicy
from agents.model.sampling import Sampling
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.ppo_config import make_config
from agents.serving.errors import Mismatch, ServerError, Unreachable
from agents.serving.fleet import Fleet
from agents.serving.launch import Launched, command, environment, free_ports
from agents.serving.mismatch import RolloutGapError
from agents.serving.push import WORKER
from agents.serving.settings import ServingSettings
from agents.sharding import Sharding
from agents.trainer import Trainer

LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8.0, "ppo": {"critic": "adapter"}}
FULL: dict[str, Any] = {"ppo": {"critic": "head"}}
KINDS = pytest.mark.parametrize("kind", [LORA, FULL], ids=["lora", "full"])


@pytest.fixture(autouse=True)
def loose(monkeypatch):
    monkeypatch.setattr("gym_longvideo.wrappers.make_protocol", lambda _: Loose())


def policy_of(kind: dict[str, Any]) -> MLLMPolicy:
    return load(lora=LoRA(4, 8.0)) if kind is LORA else load()


def learner_of(kind: dict[str, Any], **options: Any) -> PPOLearner:
    critic = kind["ppo"]["critic"]
    config = make_config("tiny", critic=critic, beta=0.0, temperature=0.7)
    return PPOLearner(policy_of(kind), config, processes=Processes("cpu"), **options)


def fleet_of(learner: PPOLearner, out: Path, *servers: FakeVLLM, **options: Any) -> Fleet:
    given = {"timeout_s": 20.0, "frame_size": DOT, **options}
    return Fleet([each.url for each in servers], learner, out, learner.processes, **given)


def served(out: Path, *servers: FakeVLLM, kind: dict[str, Any] = FULL, **changes: Any):
    settings = {"server_timeout": 20.0, "server_patience": 0.3, **changes.pop("settings", {})}
    urls = ",".join(each.url for each in servers)
    serving_by = ServingSettings(rollout="vllm", servers=urls, **settings)
    return small(out, **{**kind, "serving": serving_by, **changes})


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of the policy's weights that are not the same."""
    names = [name for name in before if name.startswith("policy.")]
    return [name for name in names if not torch.equal(before[name], after[name])]


def run_of(config: TrainConfig) -> Trainer:
    return Trainer(config, processes=Processes("cpu"))


# --- pushed weights -------------------------------------------------------------------------------


def said_by(fleet: Fleet, seed: int = 0) -> float:
    """Return the mean gap of a reply from the first server to the learner's policy."""
    from agents.serving import probe

    policy = fleet._learner.policy
    dialogue = probe.small_dialogue(policy.codec, DOT)
    session = fleet.session(Sampling(temperature=0.7, max_new_tokens=8))
    (reply,) = session.reply([seed], [dialogue], fresh=True)
    return probe.gap(policy, dialogue, reply, 0.7)


@KINDS
def test_servers_play_with_the_weights_of_every_update(tmp_path, kind):
    learner = learner_of(kind)
    with serving(policy_of(kind), policy_of(kind)) as servers:
        with closing(fleet_of(learner, tmp_path, *servers)) as fleet:
            for update in range(3):
                assert said_by(fleet) < 1e-5
                before = len(servers[0].asked)
                fleet.sync()
                assert len(servers[0].asked) == before  # nothing has changed
                perturb(learner.actor_parameters, 0.05, seed=update)
                learner.step += 1
                if update == 2:
                    assert said_by(fleet) > 1e-3  # or nothing was moved
                fleet.sync()
            kept = [each for each in tmp_path.iterdir() if each.is_dir()]
            assert len(kept) == 1  # one push lies there: what a server that comes back needs
            tensors = [t for f in kept[0].glob("*.safetensors") for t in load_file(f)]
        assert not list(tmp_path.glob("longvideo-*"))
    trained = {name for name, p in learner.policy.base.named_parameters() if p.requires_grad}
    assert len(tensors) == len(learner.actor_parameters) and not any("visual" in t for t in tensors)
    if kind is FULL:
        assert set(tensors) == trained
        for server in servers:
            assert server.version.startswith("longvideo-") and not server.paused
            routes = [path for path, _ in server.asked]
            last = len(routes) - routes[::-1].index("/pause?mode=wait") - 1
            assert routes[last : last + 8] == [
                *("/pause?mode=wait", "/update_weight_version", "/collective_rpc"),
                *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"),
                *("/update_weight_version", "/resume"),
            ]
    else:
        assert all(len(server.adapters) == 1 for server in servers)  # old ones are unloaded


def test_sharded_weights_are_pushed_in_the_number_format_of_their_passes(tmp_path, monkeypatch):
    monkeypatch.setattr("agents.serving.push._PIECE", 50_000)
    processes = Processes("cpu")
    try:
        learner = learner_of(FULL, sharding=Sharding(processes, compute=torch.bfloat16))
        with serving(load()) as servers:
            with closing(fleet_of(learner, tmp_path, *servers, gap_limit=1.0)):
                (kept,) = tmp_path.glob("longvideo-*")
                files = sorted(kept.glob("*.safetensors"))
                tensors = {name: t for file in files for name, t in load_file(file).items()}
        assert len(files) > 2
        own = dict(load().base.named_parameters())
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
        for name, tensor in tensors.items():
            assert torch.equal(tensor, own[name].detach().bfloat16()), name
        assert len(tensors) == len(learner.actor_parameters)
    finally:
        processes.close()


def _no_dev(server: FakeVLLM) -> None:
    server.dev = False


def _set(name: str, value: Any) -> Any:
    return lambda server: setattr(server, name, value)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_set("raw", True), "--logprobs-mode processed_logprobs"),
        (_set("stretches", True), "it cuts images otherwise"),
        (_set("vocabulary", 500), "another vocabulary than"),
        (_set("vocabulary", 10**6), "a larger vocabulary than"),
        (_no_dev, "VLLM_SERVER_DEV_MODE=1"),
        (_set("lost", {"model.language_model.norm.weight"}), r"found no place for \['model\.lang"),
        (_set("deaf", True), "log-probabilities that differ by"),
        (_set("fault", lambda path, body, number: "drop"), "RemoteDisconnected"),
    ],
)
def test_a_server_that_does_not_run_our_model_is_refused_at_the_start(tmp_path, spoil, says):
    learner = learner_of(FULL)
    perturb(learner.actor_parameters, 0.1)
    with serving(load(), load()) as servers:
        spoil(servers[1])
        with pytest.raises(ServerError, match=says) as error:
            fleet_of(learner, tmp_path, *servers)
        assert servers[1].url in str(error.value) or "images" in says
    assert not list(tmp_path.glob("longvideo-*"))


def test_servers_with_two_names_for_the_model_are_refused(tmp_path):
    with serving(load(), load()) as servers:
        servers[1].name = "other"
        with pytest.raises(Mismatch, match="--served-model-name"):
            fleet_of(learner_of(FULL), tmp_path, *servers)


@KINDS
def test_a_server_that_was_started_anew_gets_the_weights_before_a_dialogue(tmp_path, kind):
    learner = learner_of(kind)
    with serving(policy_of(kind)) as (server,):
        with closing(fleet_of(learner, tmp_path, server)) as fleet:
            perturb(learner.actor_parameters, 0.05)
            learner.step += 1
            fleet.sync()
            server.forget()
            assert said_by(fleet) < 1e-5


# --- runs -----------------------------------------------------------------------------------------


@KINDS
def test_a_run_by_servers_learns_from_what_they_say(tmp_path, kind):
    with serving(policy_of(kind), policy_of(kind)) as servers:
        trainer = run_of(served(tmp_path / "a", *servers, kind=kind, iterations=3))
        before = state_of(trainer)
        trainer.run()
        assert all(len(each.generated()) > 10 for each in servers)
    lines = metrics_of(tmp_path / "a", timeless=False)
    for line in lines[:3]:
        assert line["losses/rollout_gap_max"] < 1e-4
        assert line["losses/rollout_is"] == pytest.approx(1.0, abs=1e-4)
        assert line["losses/rollout_is_clipped"] == 0.0
        assert 0 < line["perf/waiting"] < 1
    assert [line["step"] for line in lines] == [0, 1, 2, 3] and "eval/accuracy" in lines[2]
    assert moved(before, state_of(trainer))
    with serving(policy_of(kind)) as servers:  # goes on with others, from the weights it had
        config = served(tmp_path / "a", *servers, kind=kind, iterations=4,
                        resume=str(tmp_path / "a"))  # fmt: skip
        again = run_of(config)
        assert differing(state_of(trainer), state_of(again)) == []
        again.run()
    assert metrics_of(tmp_path / "a")[3]["losses/rollout_gap_max"] < 1e-4


def test_a_local_run_is_weighted_by_nothing(tmp_path):
    run_of(small(tmp_path, iterations=1, eval_every=0)).run()
    (line,) = metrics_of(tmp_path, timeless=False)
    assert "losses/rollout_is" not in line and 0 < line["perf/waiting"] < 1


def test_weights_that_nobody_pushed_stop_the_run_before_it_learns_from_them(tmp_path):
    with serving(load()) as (server,):
        trainer = run_of(served(tmp_path, server, iterations=5, eval_every=0))
        before = state_of(trainer)

        def spoils(path: str, body: Any, number: int) -> None:
            if path == GENERATE and trainer.step == 1:  # and says nothing of it
                perturb(list(server.policy.base.parameters()), 0.02, seed=number)

        server.fault = spoils
        with pytest.raises(RolloutGapError, match=r"more than rollout_gap_limit=0\.1"):
            trainer.run()
    assert trainer.step == 1 and trainer.learner.step == 1
    assert len(metrics_of(tmp_path)) == 1
    assert config_of(newest_readable(tmp_path)).serving.by_servers
    assert torch.equal(before["generator"], state_of(trainer)["generator"])  # servers draw


def test_a_server_that_dies_for_good_ends_the_run_with_a_checkpoint_to_go_on_from(tmp_path, capsys):
    with serving(load()) as (server,):
        server.fault = lambda path, body, number: (
            "drop" if (tmp_path / "run" / "metrics.jsonl").exists() else None
        )
        config = served(tmp_path / "run", server, iterations=4, eval_every=0)
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config.to_json()))
        assert train.main(["--config", str(file), "--out", str(tmp_path / "run")]) == 1
        said = capsys.readouterr().err
        assert "no server answered for 0.3 s" in said and "--resume" in said
        server.fault = lambda path, body, number: None
        server.forget()
        run_of(replace(config, resume=str(tmp_path / "run"))).run()
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 1, 2, 3]


@pytest.mark.parametrize("tokens", [1, 5], ids=["push", "rollout"])
def test_a_signal_ends_what_hangs_on_a_server(tmp_path, tokens):
    with serving(load()) as (server,):
        trainer = run_of(served(tmp_path, server, iterations=3, eval_every=0))

        def hangs(path: str, body: Any, number: int) -> str | None:
            asked = path == GENERATE and body["sampling_params"]["max_tokens"] == tokens
            if asked and trainer.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                return "hang"
            return None

        server.fault = hangs
        trainer.run()
    assert (trainer.step, trainer.stopped_by) == (1, signal.SIGTERM)


# --- servers of our own ---------------------------------------------------------------------------

STUB = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"pid": %d}' % os.getpid())
    def log_message(self, *args): pass
if sys.argv[2] == "broken":
    sys.exit("no such model")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def stub(tmp_path: Path, word: str = "well") -> list[tuple[list[str], int]]:
    (port,) = free_ports(1)
    return [([sys.executable, "-S", "-c", STUB, str(port), word], port)]


def pid_of(launched: Launched) -> int:
    from agents.serving.client import Server

    return Server(launched.urls[0]).get("/health", timeout_s=5)["pid"]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


@pytest.mark.skipif(sys.platform != "linux", reason="vLLM runs on Linux")
def test_a_server_that_is_killed_is_started_again_and_none_is_left_behind(tmp_path):
    with closing(Launched(stub(tmp_path), dict(os.environ), tmp_path)) as launched:
        first = pid_of(launched)
        os.kill(first, signal.SIGKILL)

        def again() -> bool:
            try:
                return pid_of(launched) != first
            except ServerError:
                return False

        until(again)
        second = pid_of(launched)
        launched._processes[0].stdin.close()  # as when we are killed ourselves
        until(lambda: not is_alive(second))
    until(lambda: not is_alive(launched._processes[0].pid))


def test_a_server_that_does_not_start_is_told_with_the_end_of_its_log(tmp_path):
    with pytest.raises(Unreachable, match=r"(?s)ended with code 1 .*no such model"):
        Launched(stub(tmp_path, "broken"), dict(os.environ), tmp_path)


def test_the_command_asks_for_all_that_is_needed():
    settings = ServingSettings(
        rollout="vllm", serve=True, vllm_python="/v/bin/python", vllm_args="--max-model-len 4096"
    )
    words = command("dir", 7, settings, dtype="float32", images=6, lora_rank=20)
    text = " ".join(words)
    assert words[:3] == ["/v/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    for part in ("--model dir", "--port 7", "--enable-scale-out", "--max-model-len 4096",
                 "--logprobs-mode processed_logprobs", "--max-lora-rank 32", "--dtype float32",
                 '{"image": 6, "video": 0}', "longvideo_vllm.PushedWeights"):  # fmt: skip
        assert part in text, part
    assert "--enable-lora" not in command("dir", 7, settings, dtype="float32", images=6)
    with pytest.raises(ValueError, match="512 at most"):
        command("dir", 7, settings, dtype="float32", images=6, lora_rank=513)
    env = environment("cpu")
    assert str(WORKER) in env["PYTHONPATH"] and env["VLLM_SERVER_DEV_MODE"] == "1"
    assert (WORKER / "longvideo_vllm.py").is_file()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rollout": "vllm"}, "name servers that run"),
        ({"rollout": "vllm", "servers": "http://a", "serve": True}, "one of the two"),
        ({"servers": "http://a"}, "add rollout='vllm'"),
        ({"serve": True}, "add rollout='vllm'"),
        ({"rollout": "vllm", "servers": "a,b"}, "is not an address"),
        ({"rollout": "sglang"}, "rollout"),
        ({"rollout_gap_limit": 0}, "rollout_gap_limit"),
        ({"vllm_args": "--a '"}, "vllm_args"),
    ],
)
def test_settings_without_meaning_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        ServingSettings(**settings)


def test_the_command_line_names_servers_and_refuses_a_nucleus():
    words = ["--rollout", "vllm", "--servers", "http://a:1,http://b:2"]
    config = train.parse(words)
    assert config.serving.urls == ["http://a:1", "http://b:2"]
    assert TrainConfig.from_json(config.to_json()) == config
    assert TrainConfig.from_json({}).serving == ServingSettings()  # as older runs wrote it
    with pytest.raises(ValueError, match=r"use ppo\.top_p=1"):
        make_train_config("paper", serving=config.serving)


# --- several processes ----------------------------------------------------------------------------

WORKER_CODE = """
import json, sys
import gym_longvideo.wrappers
from agents.parallel import Processes
from agents.config import TrainConfig
from agents.trainer import Trainer
from agents_training import Loose
gym_longvideo.wrappers.make_protocol = lambda _: Loose()
trainer = Trainer(TrainConfig.from_json(json.loads(sys.argv[1])), processes=Processes("cpu"))
trainer.run()
trainer.processes.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LORA, FULL], ids=["lora", "full"])
def test_processes_that_hold_the_weights_together_share_the_servers(tmp_path, kind):
    with serving(policy_of(kind)) as (server,):
        config = served(tmp_path, server, kind=kind, iterations=3, shard=2)
        launch(["-c", WORKER_CODE, json.dumps(config.to_json())], 2)
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(line["losses/rollout_gap_max"] < 1e-4 for line in lines[:3])
