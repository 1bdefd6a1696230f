"""Rollouts by a real vLLM, as ``make vllm`` installs it; skipped without one.

LONGVIDEO_VLLM=build/vllm/bin/python python -m pytest -m vllm tests/test_vllm.py
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agents_training import metrics_of

from agents.config import TrainConfig
from agents.parallel import Processes
from agents.ppo_config import PRESETS
from agents.rollout import RolloutCollector
from agents.serving.settings import ServingSettings
from agents.trainer import Trainer

PYTHON = os.environ.get("LONGVIDEO_VLLM", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="LONGVIDEO_VLLM names no Python with vLLM"),
]
ARGS = "--max-model-len 4096 --enforce-eager"
LORA: dict[str, Any] = {
    "lora_rank": 8,
    "lora_alpha": 16.0,
    "ppo": replace(PRESETS["tiny"], critic="adapter", actor_lr=1e-3),
}


def run_of(out: Path, **changes: Any) -> Trainer:
    settings = ServingSettings(rollout="vllm", serve=True, vllm_python=str(Path(PYTHON).absolute()),
                               vllm_args=ARGS, server_timeout=120.0)  # fmt: skip
    given: dict[str, Any] = {"device": "cpu", "batch": 16, "iterations": 10, "eval_every": 0,
                             "save_every": 0, "out": str(out), "serving": settings}  # fmt: skip
    return Trainer(TrainConfig(**{**given, **changes}), processes=Processes("cpu"))


def said(episodes: Any) -> list[list[list[int]]]:
    return [[turn.reply.ids.tolist() for turn in each.turns] for each in episodes]


@pytest.mark.parametrize("kind", [LORA, {}], ids=["lora", "full"])
def test_ten_pushed_updates_and_their_evaluation(tmp_path, kind):
    trainer = run_of(tmp_path, **kind)
    envs = [trainer.config.make_env("train") for _ in range(32)]
    greedy = replace(trainer.config.sampling, greedy=True)
    tasks = range(256 if not kind else 32)
    with closing(RolloutCollector(envs, trainer.policy)) as local:
        ours = local.collect(tasks, greedy)
        assert trainer.fleet is not None
        there = trainer.collector.collect(tasks, greedy)
    assert sum(a == b for a, b in zip(said(ours), said(there), strict=True)) == len(tasks)
    trainer.run()
    lines = metrics_of(tmp_path, timeless=False)
    assert len(lines) == 10
    assert max(line["losses/rollout_gap_max"] for line in lines) <= 1e-4
    assert max(line["losses/actor_grad_norm"] for line in lines) > 0


def test_a_server_that_is_killed_in_mid_batch_costs_nothing_but_time(tmp_path):
    trainer = run_of(tmp_path, iterations=3)
    assert trainer.fleet is not None and trainer.fleet._launched is not None
    launched = trainer.fleet._launched
    first = launched._processes[0].pid
    timer = threading.Timer(0.5, os.killpg, [first, signal.SIGKILL])
    collect = trainer.collector.collect

    def killed(*args: Any, **options: Any) -> Any:
        if trainer.step == 1:
            timer.start()
        return collect(*args, **options)

    trainer.collector.collect = killed
    trainer.run()
    assert launched._processes[0].pid != first
    lines = metrics_of(tmp_path, timeless=False)
    assert [line["infra_errors"] for line in lines] == [0, 0, 0]
    assert max(line["losses/rollout_gap_max"] for line in lines) <= 1e-4
