import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from agents_models import adapted, load, several
from agents_training import Loose, differing, metrics_of, small, state_of, trained

from agents.confidence import wilson
from agents.config import TrainConfig, make_train_config
from agents.evaluation import Tally, evaluation_tasks
from agents.logbook import Progress, cut
from agents.model.critic import CriticKind
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.ppo_config import PPOConfig
from agents.trainer import Trainer
from gym_longvideo.record import EpisodeRecord
from gym_longvideo.video.errors import FrameDecodeError

LORA = {"lora_rank": 4, "lora_alpha": 8.0, "ppo": {"critic": "adapter", "epochs": 1}}
FULL = {"ppo": {"critic": "head", "epochs": 1}}


@pytest.fixture(autouse=True)
def loose(monkeypatch):
    monkeypatch.setattr("gym_longvideo.wrappers.make_protocol", lambda _: Loose())


@pytest.mark.parametrize("kind", [LORA, FULL], ids=["lora", "full"])
def test_a_run_that_is_resumed_is_the_same_run_bit_by_bit(tmp_path, kind):
    straight = trained(small(tmp_path / "a", iterations=4, **kind))
    half = trained(small(tmp_path / "b", iterations=2, **kind))
    assert half.step == 2
    resumed = trained(small(tmp_path / "b", iterations=4, resume=str(tmp_path / "b"), **kind))
    assert differing(state_of(straight), state_of(resumed)) == []
    assert straight.learner.bonus.state_dict() == resumed.learner.bonus.state_dict()
    lines = metrics_of(tmp_path / "a")
    assert lines == metrics_of(tmp_path / "b")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert any(line.get("charts/return") for line in lines)  # or nothing was learned


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    first = state_of(trained(small(tmp_path / "a")))
    assert differing(first, state_of(trained(small(tmp_path / "b")))) == []
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")
    assert "generator" in differing(first, state_of(trained(small(tmp_path / "c", seed=1))))


def test_metrics_have_the_names_that_dashboards_know(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(small(tmp_path, iterations=2))
    line = metrics_of(tmp_path, timeless=False)[0]
    charts = "return accuracy retrieval_rate turns frames iou_gain malformed_rate truncated_rate"
    losses = "policy_loss value_loss entropy approx_kl clipfrac explained_variance ref_kl"
    for name in (
        *(f"charts/{each}" for each in (*charts.split(), "bonus", "bonus_share")),
        *(f"losses/{each}" for each in (*losses.split(), "actor_grad_norm", "critic_grad_norm")),
        *(f"eval/{each}" for each in ("accuracy", "accuracy_low", "accuracy_high", "turns")),
        *(f"time/{each}" for each in ("rollout", "score", "update", "eval")),
        "perf/tokens_per_second",
        "perf/prefill_tokens_per_second",
        "perf/episodes_per_second",
        "infra_errors",
    ):
        assert name in line, name
    assert line["losses/rollout_gap_max"] < 1e-4  # scoring agrees with generation
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = board.Tags()
    assert {name for name, value in line.items() if value is not None} - {"step"} <= set(
        tags["scalars"]
    )
    assert [event.step for event in board.Scalars("charts/return")] == [0, 1]
    assert tags["images"] == ["sample/0"]


def test_an_evaluation_leaves_samples_and_records_and_pays_no_bonus(tmp_path):
    trainer = trained(small(tmp_path, iterations=1, bonus_stages=((1.0, 100.0),)))
    line = metrics_of(tmp_path)[0]
    assert line["charts/bonus"] == 100.0 and line["charts/retrieval_rate"] > 0
    assert abs(line["charts/return"]) < 5 and abs(line["eval/mean_return"]) < 5
    records = (tmp_path / "records" / "eval-000000.jsonl").read_text().splitlines()
    played = [EpisodeRecord.from_json(each) for each in records]
    assert len(played) == 3
    mean = sum(record.total_reward for record in played) / 3
    assert line["eval/mean_return"] == pytest.approx(mean)
    text = (tmp_path / "samples" / "eval-000000-0.txt").read_text()
    assert "turn 1: 2 frames" in text and "earned" in text and "return" in text
    assert (tmp_path / "samples" / "eval-000000-0.png").stat().st_size > 1000
    assert trainer.evaluation is not None and trainer.evaluation.episodes == 3


def test_a_video_that_breaks_costs_an_episode_and_not_the_run(tmp_path, monkeypatch):
    trainer = Trainer(small(tmp_path, iterations=1), processes=Processes("cpu"))
    base = trainer.collector.envs[0].unwrapped
    show = base._show

    def breaks(view):
        if base.episode is not None and base.episode.turns:
            raise FrameDecodeError("cosmic rays")
        show(view)

    monkeypatch.setattr(base, "_show", breaks)
    trainer.run()
    assert metrics_of(tmp_path)[0]["infra_errors"] == 1


def test_ctrl_c_in_a_rollout_gives_it_up_and_the_run_goes_on_as_if_nothing_had_been(tmp_path):
    straight = trained(small(tmp_path / "a", iterations=3, eval_every=0))
    stopped = Trainer(small(tmp_path / "b", iterations=3, eval_every=0), processes=Processes("cpu"))
    collect = stopped.collector.collect

    def interrupted(*args, **options):
        episodes = collect(*args, **options)
        if stopped.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return episodes

    stopped.collector.collect = interrupted
    stopped.run()
    assert (stopped.step, stopped.stopped_by) == (1, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # as before
    again = small(tmp_path / "b", iterations=3, eval_every=0, resume=str(tmp_path / "b"))
    assert differing(state_of(straight), state_of(trained(again))) == []
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")


def test_a_second_ctrl_c_ends_the_process_at_once():
    code = (
        "import os, signal, time\n"
        "from agents.keeping.interrupts import Interrupts\n"
        "with Interrupts() as wish:\n"
        "    for pause in (0, 0, 1.1):\n"
        "        time.sleep(pause)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        print(wish.signum, flush=True)\n"
        "print('never')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 130
    assert done.stdout.split() == ["2", "2"]  # an echo within a second is the same wish


def test_a_run_can_be_limited_by_time(tmp_path):
    began = time.monotonic()
    trainer = trained(small(tmp_path, iterations=0, seconds=0.5, eval_every=0))
    assert trainer.step >= 1 and time.monotonic() - began < 20


def test_progress_knows_what_is_left_by_whichever_limit_comes_first():
    bar = Progress(10, 1000.0, step=4, quiet=True)
    bar._began -= 30.0
    assert bar.left_s() == pytest.approx(970.0, abs=1)
    bar.step(7, accuracy=0.5)
    assert bar.left_s() == pytest.approx(30.0, abs=1)  # three done in 30 s, three to go
    assert np.isnan(Progress(10, 0.0, quiet=True).left_s())


def test_metrics_after_a_checkpoint_are_cut_off_and_so_is_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3, "char')
    cut(path, 2)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": 0}, "batch=0 must be a whole number, 1 or more"),
        ({"seconds": -1.0}, "seconds=-1.0 must be a number, 0 or more"),
        ({"iterations": 0}, "would never end"),
        ({"preset": "best"}, "preset='best' is unknown"),
        ({"dtype": "float16"}, "dtype='float16' is unknown"),
        ({"lora_rank": 8, "train_vision": True}, "use lora_rank=0"),
        ({"ppo": PPOConfig(critic="adapter")}, "lora_rank=0 makes none"),
        ({"bonus_stages": ((0.5, 1.0), (0.1, 0.5))}, "stages"),
    ],
)
def test_settings_without_meaning_are_refused_by_name(changes, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        TrainConfig(**changes)


def test_any_number_of_processes_shares_a_batch():
    assert [TrainConfig(batch=5).share(size) for size in (1, 2, 3, 5, 8)] == [5, 3, 2, 1, 1]


@pytest.mark.parametrize("preset", ["tiny", "recommended", "paper"])
def test_presets_survive_json(preset):
    config = make_train_config(preset, seed=3)
    assert TrainConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="the configuration has no 'colour'; use some of"):
        TrainConfig.from_json({"colour": 1})


def test_evaluation_counts_faults_and_leaves_them_out():
    episodes = several(load().codec)
    for i, episode in enumerate(episodes):
        episode.success, episode.frames_shown = i == 0, 10 * i
        episode.iou_gain = 0.5 if i == 0 else float("nan")
    episodes[3].infra_error = "broken"
    tally = Tally()
    tally.add(episodes)
    tally.fault()
    result = tally.result()
    assert (result.episodes, result.faults) == (3, 2)
    assert result.accuracy == pytest.approx(1 / 3)
    assert (result.accuracy_low, result.accuracy_high) == wilson(1, 3)
    assert (result.frames, result.iou_gain, result.turns) == (10.0, 0.5, 2.0)
    assert np.isnan(Tally().result().accuracy)


def test_processes_share_an_evaluation_without_overlap():
    parts = []
    for rank in range(3):
        processes = Processes("cpu")
        processes.rank, processes.size = rank, 3
        parts += evaluation_tasks(20, 10, processes)[0]
    assert sorted(parts) == sorted(evaluation_tasks(20, 10)[0]) and len(set(parts)) == 10
    processes = Processes("cpu")
    processes.rank, processes.size = 2, 3
    assert evaluation_tasks(20, 2, processes)[0] == []


@pytest.mark.parametrize("kind", ["head", "adapter", "model"])
def test_actor_and_critic_steps_leave_each_other_and_the_trunk_alone(kind: CriticKind):
    policy = load() if kind == "model" else adapted()
    config = PPOConfig(critic=kind, actor_lr=1e-2, critic_lr=1e-2, critic_warmup=0, beta=0.0)
    learner = PPOLearner(policy, config)
    episodes = several(policy.codec)
    for i, episode in enumerate(episodes):
        episode.turns[-1].reward = float(i)

    def parts() -> dict[str, dict[str, torch.Tensor]]:
        actor = {id(p) for p in learner.actor_parameters}
        critic = {id(p) for p in learner.critic_parameters}
        named = dict(policy.base.named_parameters())
        rest = {n: p for n, p in named.items() if id(p) not in actor | critic}
        return {
            "actor": dict(enumerate(p.clone() for p in learner.actor_parameters)),  # type: ignore
            "critic": dict(enumerate(p.clone() for p in learner.critic_parameters)),  # type: ignore
            "rest": {name: p.clone() for name, p in rest.items()},
        }

    def moved(before, after, part) -> bool:
        return bool(differing(before[part], after[part]))

    batch, everyone = learner.prepare(episodes), np.arange(len(episodes))
    start = parts()
    assert start["rest"]
    learner.critic_step(batch, everyone)
    learned = parts()
    assert moved(start, learned, "critic") and not moved(start, learned, "actor")
    learner.actor_step(batch, everyone)
    acted = parts()
    assert moved(learned, acted, "actor") and not moved(learned, acted, "critic")
    for _ in range(2):
        learner.update(episodes)
    assert not moved(start, parts(), "rest")


def test_warnings_of_the_trainer_are_none(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(small(tmp_path, iterations=1, eval_every=0))
    assert [str(each.message) for each in caught if "agents" in each.filename] == []
