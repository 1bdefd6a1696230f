"""Processes that hold weights together stop together: whatever happens to one, none hangs."""

import json
import os
import signal
from pathlib import Path

import pytest
from agents_models import model_dir
from agents_peers import together
from agents_training import metrics_of, small

from agents.keeping.saved import latest
from agents.parallel import ProcessError
from agents.ppo import PPOLearner
from agents.rollout import RolloutCollector
from agents.trainer import Trainer

CULPRIT = 1  # the process to which it happens


def config_of(out: str, **changes):
    """Return the configuration of a run of four iterations with an odd number of episodes."""
    kept = {"batch": 5, "eval_every": 0, "iterations": 4, "max_new_tokens": 4}
    return small(Path(out), **{**kept, "ppo": {"critic": "model"}, **changes})


def at_call(count: int, owner: type, name: str, happens) -> None:
    """Let something happen in the culprit when a method is called for so many times."""
    genuine, calls = getattr(owner, name), []

    def method(self, *args, **options):
        calls.append(name)
        if len(calls) == count and int(os.environ["RANK"]) == CULPRIT:
            happens()
        return genuine(self, *args, **options)

    pytest.MonkeyPatch().setattr(owner, name, method)


def broken() -> None:
    raise OSError("a cable came loose")


def fault_in_a_rollout(out: str) -> None:
    model_dir()
    at_call(2, RolloutCollector, "collect", broken)
    trainer = Trainer(config_of(out))
    own = trainer.processes.rank == CULPRIT
    with pytest.raises(OSError if own else ProcessError, match="cable" if own else "another"):
        trainer.run()
    trainer.processes.close()


def test_a_fault_in_one_rollout_ends_all_and_the_run_is_saved(tmp_path):
    together(fault_in_a_rollout, 3, str(tmp_path), seconds=100)
    assert latest(tmp_path).name == "checkpoint-000001"
    together(goes_on, 2, str(tmp_path))


def goes_on(out: str) -> None:
    model_dir()
    trainer = Trainer(config_of(out, resume="auto"))
    assert trainer.step == 1
    trainer.run()
    trainer.processes.close()
    assert [line["step"] for line in metrics_of(Path(out))] == [0, 1, 2, 3]


def fault_in_an_update(out: str, where: str) -> None:
    model_dir()
    at_call(5 if where == "actor_step" else 2, PPOLearner, where, broken)  # of three a batch
    trainer = Trainer(config_of(out, save_every=1))
    with pytest.raises((OSError, RuntimeError, ProcessError)):
        trainer.run()
    os._exit(0)  # as a process ends that broke: others must notice by themselves


@pytest.mark.parametrize("where", ["actor_step", "prepare"])
def test_a_fault_in_one_update_ends_all_and_the_checkpoint_before_remains(tmp_path, where):
    together(fault_in_an_update, 3, str(tmp_path), where, seconds=100)
    last = latest(tmp_path)
    assert last is not None and json.loads((last / "state.json").read_text())["step"] <= 1


def signalled(out: str, signum: int) -> None:
    model_dir()

    def happens() -> None:
        os.kill(os.getpid(), signum)

    at_call(2, RolloutCollector, "collect", happens)
    trainer = Trainer(config_of(out))
    trainer.run()
    assert trainer.stopped_by == signum and trainer.step == 1
    trainer.processes.close()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_process_stops_all_between_two_iterations(tmp_path, signum):
    together(signalled, 2, str(tmp_path), int(signum), seconds=100)
    assert latest(tmp_path).name == "checkpoint-000001"
    together(goes_on, 2, str(tmp_path))
