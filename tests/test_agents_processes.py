"""Two processes with half a batch each must do what one does with all of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from agents_models import adapted, load, model_dir, several
from agents_training import ENV, SUITE

from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.ppo_config import PPOConfig

HERE = Path(__file__).parent
# What broke, by place in the joint batch: the second process has the last two.
FAULTS = {"whole": (), "one fault": (2,), "nothing left": (2, 3)}


def learned(kind: str, faults: tuple[int, ...], part: slice) -> dict:
    """Make one update on a part of a batch; return the gradients, the parameters and metrics.

    Plain gradient descent, because AdamW turns the rounding of a gradient near zero into a step.
    """
    torch.manual_seed(0)  # adapters and heads are drawn from the global generator
    policy = adapted() if kind == "adapter" else load()
    config = PPOConfig(
        critic=kind,  # type: ignore[arg-type]
        minibatch=4,
        beta=0.05,
        entropy_coef=0.01,
        critic_warmup=0,
        aggregation="sequence-mean" if kind == "head" else "token-mean",
        grad_clip=0.5,
    )
    learner = PPOLearner(policy, config)
    grads = []
    for name in ("actor", "critic"):
        parameters = getattr(learner, f"{name}_parameters")
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        step = optimizer.step

        def record(step=step, parameters=parameters):
            grads.append([torch.zeros(1) if p.grad is None else p.grad.clone() for p in parameters])
            step()

        optimizer.step = record
        setattr(learner, f"{name}_optimizer", optimizer)
    episodes = several(policy.codec)
    rng = np.random.default_rng(0)
    for i, episode in enumerate(episodes):
        episode.infra_error = "broken" if i in faults else ""
        for turn in episode.turns:
            turn.reward, turn.retrieved = float(rng.normal()), bool(rng.integers(2))
    metrics = learner.update(episodes[part])
    return {
        "grads": grads,
        "parameters": [
            p.detach().clone() for p in (*learner.actor_parameters, *learner.critic_parameters)
        ],
        "metrics": {k: v for k, v in metrics.items() if not k.endswith("_s")},
    }


def worker(out: str) -> None:
    """Run in a process of its own: learn from this process's half of every case."""
    torch.set_num_threads(1)
    model_dir()  # beforehand: among several processes transformers lets only the first one write
    processes = Processes("cpu")
    half = slice(2 * processes.rank, 2 * processes.rank + 2)
    done = {
        f"{kind} {case}": learned(kind, faults, half)
        for kind in ("model", "adapter", "head")
        for case, faults in FAULTS.items()
    }
    done["largest"] = processes.largest(float(processes.rank))
    done["gathered"] = processes.gather({"rank": processes.rank})
    torch.save(done, Path(out) / f"{processes.rank}.pt")
    processes.close()


def launch(command: list[str], count: int, **more: str) -> list[str]:
    """Run a command in ``count`` processes that know each other; return what they said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        **more,
    }
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **shared, "RANK": str(i), "LOCAL_RANK": str(i), "PYTHONPATH": path},
            cwd=HERE.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]
    said = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0] * count, "\n".join(said)
    return said


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    out = tmp_path_factory.mktemp("halves")
    launch(["-c", f"import test_agents_processes as t; t.worker({str(out)!r})"], 2)
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("kind", ["model", "adapter", "head"])
def test_two_processes_learn_what_one_learns_from_the_joint_batch(halves, kind, case):
    joint = learned(kind, FAULTS[case], slice(0, 4))
    assert max(float(g.abs().max()) for g in joint["grads"][1]) > 1e-4
    for half in halves:
        theirs = half[f"{kind} {case}"]
        for ours, other in zip(joint["grads"], theirs["grads"], strict=True):
            for a, b in zip(ours, other, strict=True):
                assert torch.allclose(a, b, atol=1e-6, rtol=1e-5)
        for a, b in zip(joint["parameters"], theirs["parameters"], strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        assert theirs["metrics"] == pytest.approx(joint["metrics"], rel=1e-4, abs=1e-6)


def test_processes_can_tell_each_other_things(halves):
    assert [half["largest"] for half in halves] == [1.0, 1.0]
    assert halves[0]["gathered"] == halves[1]["gathered"] == [{"rank": 0}, {"rank": 1}]


def arguments(out: Path) -> list[str]:
    """Return the command line of a short run."""
    return [
        *("-m", "agents.train", "--model", str(model_dir()), "--out", str(out)),
        *("--env", json.dumps(ENV), "--suite-options", json.dumps(SUITE), "--threads", "1"),
        *("--batch", "4", "--ppo.minibatch", "4", "--max-new-tokens", "4", "--eval-episodes", "3"),
        *("--device", "cpu", "--samples", "1"),
    ]


@pytest.mark.slow
def test_two_processes_train_save_and_resume_and_one_of_them_writes(tmp_path):
    said = launch([*arguments(tmp_path), "--iterations", "2"], 2)
    assert "done at step 2" in said[0] and "done" not in said[1]
    said = launch([*arguments(tmp_path), "--iterations", "3", "--resume", str(tmp_path)], 2)
    assert "done at step 3" in said[0]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["eval/episodes"] == 3  # two of one process, one of the other
    assert lines[0]["charts/response_tokens"] > 4 * 4  # tokens of all four episodes
    records = (tmp_path / "records" / "eval-000000.jsonl").read_text().splitlines()
    assert len({json.loads(line)["task"]["task_id"] for line in records}) == 3
    state = torch.load(tmp_path / "checkpoint-000003" / "trainer.pt", weights_only=True)
    first, second = state["workers"]
    assert not torch.equal(first["generator"], second["generator"])
    assert first["pending"] != second["pending"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_launchers_start_a_run(tmp_path, launcher):
    pytest.importorskip("accelerate")
    scripts = Path(sys.executable).parent
    command = {
        "accelerate": [scripts / "accelerate", "launch", "--cpu", "--num_processes", "2"],
        "torchrun": [scripts / "torchrun", "--nproc-per-node", "2"],
    }[launcher]
    done = subprocess.run(
        [*map(str, command), *arguments(tmp_path), "--iterations", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=HERE.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done at step 1") == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM between processes on Windows")
def test_a_signal_to_the_second_process_alone_saves_what_both_can_go_on_from(tmp_path):
    straight = tmp_path / "straight"
    launch([*arguments(straight), "--iterations", "4", "--eval-every", "0"], 2)
    out = tmp_path / "out"
    same = [*arguments(out), "--iterations", "4", "--eval-every", "0", "--resume", "auto"]
    code = (
        "import os, runpy, signal, sys\n"
        "from agents.ppo import PPOLearner\n"
        "genuine = PPOLearner.update\n"
        "def update(learner, episodes):\n"
        "    if learner.step == 1 and learner.processes.rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return genuine(learner, episodes)\n"
        "PPOLearner.update = update\n"
        f"sys.argv[1:] = {same[2:]!r}\n"
        "from agents import train\n"
        "sys.exit(0 if train.main() == 128 + signal.SIGTERM else 1)\n"
    )
    said = launch(["-c", code], 2)
    assert "stopped by SIGTERM at step 2" in said[0]
    launch(same, 2)
    ends = [
        torch.load(run / "checkpoint-000004" / "trainer.pt", weights_only=True)
        for run in (straight, out)
    ]
    for ours, theirs in zip(*(end["workers"] for end in ends), strict=True):
        assert ours["pending"] == theirs["pending"] and ours["count"] == theirs["count"]
        assert torch.equal(ours["generator"], theirs["generator"])
