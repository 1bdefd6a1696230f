"""Several processes with a share of a batch each must do what one does with all of it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from agents_models import adapted, load, model_dir, several
from agents_peers import together
from agents_training import ENV, SUITE, Loose, are_same, metrics_of, small, trained

from agents.config import TrainConfig
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.ppo_config import PPOConfig
from agents.sharding import Sharding
from agents.trainer import Trainer
from gym_longvideo.haystack.suite import HaystackSuite
from gym_longvideo.video.errors import VideoOpenError

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
    processes = Processes("cpu")  # each with a whole copy of the weights
    learner = PPOLearner(policy, config, processes=processes, sharding=Sharding(processes, shard=1))
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
    """Run in one of several processes: all that needs them, in one start of Python."""
    torch.set_num_threads(1)
    model_dir()  # beforehand: among several processes transformers lets only the first one write
    processes = Processes("cpu")
    if processes.size == 2:
        learn_halves(Path(out), processes)
    play_runs(Path(out), processes)
    processes.close()


def learn_halves(out: Path, processes: Processes) -> None:
    """Learn from this process's half of every case."""
    half = slice(2 * processes.rank, 2 * processes.rank + 2)
    done = {
        f"{kind} {case}": learned(kind, faults, half)
        for kind in ("model", "adapter", "head")
        for case, faults in FAULTS.items()
    }
    done["largest"] = processes.largest(float(processes.rank))
    done["gathered"] = processes.gather({"rank": processes.rank})
    torch.save(done, out / f"{processes.rank}.pt")


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
    more_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, more_path)])
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
def of_two(tmp_path_factory):
    return work(tmp_path_factory.mktemp("processes"), 2)


def work(out: Path, size: int) -> Path:
    together(worker, size, str(out))
    return out


@pytest.fixture(scope="module")
def halves(of_two):
    return [torch.load(of_two / f"{rank}.pt", weights_only=False) for rank in range(2)]


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


# --- whole runs on any number of processes --------------------------------------------------------

RUNS = {
    "even": {"batch": 6, "eval_every": 0, "ppo": {"minibatch": 3, "epochs": 2}},
    "odd": {"batch": 5, "lora_rank": 4, "lora_alpha": 8.0, "ppo": {"critic": "adapter"}},
    "few": {"batch": 2, "eval_every": 0},  # of three processes one has no episode
}


def whole(name: str, out: Path, iterations: int, resume: bool = False) -> TrainConfig:
    """Return the configuration of a run that evaluates two tasks, if any."""
    more = {"iterations": iterations, "resume": str(out) if resume else ""}
    return small(out, **{"eval_episodes": 2, **RUNS[name], **more})


def prepared(patch) -> None:
    """Let untrained models earn something, and one video of five be broken."""
    patch.setattr("gym_longvideo.wrappers.make_protocol", lambda _: Loose())
    genuine = HaystackSuite.open_video

    def open_video(suite, task, **options):
        if suite.split == "train" and suite.index_of(task.task_id) == 3:
            raise VideoOpenError("is not a video", path=task.video)
        return genuine(suite, task, **options)

    patch.setattr(HaystackSuite, "open_video", open_video)


def play_runs(out: Path, processes: Processes) -> None:
    """Two processes begin runs; any number goes on with copies of them."""
    prepared(pytest.MonkeyPatch())
    size = processes.size

    def run(*args, **options):
        Trainer(whole(*args, **options), processes=processes).run()

    for name in RUNS:
        here = out / name
        if size == 2:
            run(name, here / "begun", 2)
            if processes.main:
                for count in (1, 2, 3):
                    shutil.copytree(here / "begun", here / f"on-{count}")
            processes.wait()
        run(name, here / f"on-{size}", 4, resume=True)
    if size == 3:
        run("odd", out / "odd" / "begun-3", 2)


@pytest.fixture(scope="module")
def runs(of_two):
    out = work(of_two, 3)
    with pytest.MonkeyPatch.context() as patch:
        prepared(patch)
        for name in RUNS:
            trained(whole(name, out / name / "on-1", 4, resume=True))
    return out


def agree(ours: Path, theirs: Path) -> None:
    """Compare what two runs logged: what episodes were like exactly, losses up to rounding."""
    for one, other in zip(metrics_of(ours), metrics_of(theirs), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            close = {"rel": 1e-12}  # sums in another order
            if key.startswith("losses/"):
                # A gap is nothing but rounding, of log-probabilities of about 4.
                close = {"rel": 1e-4, "abs": 1e-4 if "rollout_gap" in key else 5e-6}
            assert other[key] == pytest.approx(value, nan_ok=True, **close), (one["step"], key)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("size", [1, 3])
def test_a_run_on_two_processes_goes_on_equally_on_any_number(runs, name, size):
    lines = metrics_of(runs / name / "on-2")[:4]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    # A video is skipped, of which the run that goes on counts its own, and returns differ.
    assert lines[1]["charts/skipped_videos"] > 0 and lines[3]["charts/skipped_videos"] > 0
    assert len({line["charts/return"] for line in lines}) > 2
    agree(runs / name / "on-2", runs / name / f"on-{size}")


def test_a_run_is_equal_on_two_and_on_three_processes(runs):
    agree(runs / "odd" / "begun", runs / "odd" / "begun-3")


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
    assert [list(each["pending"]) for each in (first, second)] == [[0, 2], [1, 3]]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_launchers_start_a_run(tmp_path, launcher):
    pytest.importorskip("accelerate")  # peft brings it
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
    assert are_same(*ends) and len(ends[0]["workers"]) == 2
