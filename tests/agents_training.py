"""Small training runs: a tiny random model, a few short tasks, and a protocol it cannot fail."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agents_models import model_dir

from agents.config import TrainConfig
from agents.parallel import Processes
from agents.ppo_config import PRESETS
from agents.trainer import Trainer
from gym_longvideo.episode import Action, Answer, Malformed, Retrieve
from gym_longvideo.protocol import Tags, Turn

ENV: dict[str, Any] = {
    "pool_size": 16,
    "overview_frames": 2,
    "frames_per_retrieval": 2,
    "frame_budget": 6,
    "frame_size": 28,
}
# So few tasks that frames come again in other company, which must not change their features.
SUITE: dict[str, Any] = {"families": "needle", "duration_s": 120, "size": 5}


class Loose(Tags):
    """Reads an action into any reply, so that untrained models earn something."""

    def parse(self, reply: str, turn: Turn) -> Action:
        dice = np.random.default_rng(zlib.crc32(reply.encode()))
        if dice.random() < 0.1:
            return Malformed("bad luck")
        if turn.may_retrieve and dice.random() < 0.5:
            first, last = sorted(dice.integers(0, turn.last_index + 1, 2).tolist())
            return Retrieve(first, last)
        return Answer(int(dice.integers(0, 2)))


def small(out: Path, **changes: Any) -> TrainConfig:
    """Return a configuration that trains in well under a second an iteration."""
    ppo = replace(PRESETS["tiny"], **{"beta": 0.05, "minibatch": 2, **changes.pop("ppo", {})})
    settings: dict[str, Any] = {
        "model": str(model_dir()),
        "ppo": ppo,
        "suite_options": SUITE,
        "env": ENV,
        "max_new_tokens": 5,
        "batch": 4,
        "iterations": 3,
        "eval_every": 2,
        "eval_episodes": 3,
        "samples": 1,
        "save_every": 0,
        "threads": 1,
        "device": "cpu",
        "out": str(out),
    }
    return TrainConfig(**{**settings, **changes})


def trained(config: TrainConfig) -> Trainer:
    """Run a configuration to its end, alone."""
    trainer = Trainer(config, processes=Processes("cpu"))
    trainer.run()
    return trainer


def metrics_of(out: Path, timeless: bool = True) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; ``timeless`` leaves out what a clock measured."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    if timeless:
        lines = [
            {k: v for k, v in d.items() if k.split("/")[0] not in ("time", "perf")} for d in lines
        ]
    return lines


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return every tensor that a run moves, by name."""
    learner = trainer.learner
    tensors = {f"policy.{k}": v for k, v in trainer.policy.base.state_dict().items()}
    tensors |= {f"critic.{k}": v for k, v in learner.critic.state_dict().items()}
    for name in ("actor", "critic"):
        state = getattr(learner, f"{name}_optimizer").state_dict()["state"]
        tensors |= {f"{name}.{i}.{k}": v for i, each in state.items() for k, v in each.items()}
    dealt = trainer.dealing.state()  # of a run that began on one process
    tensors["generator"] = dealt["generator"]
    tensors["order"] = torch.tensor([dealt["count"], *dealt["pending"], learner.step])
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors that are not the same, bit by bit."""
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def are_same(ours: Any, theirs: Any) -> bool:
    """Return whether nested values are the same, tensors bit by bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(are_same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(are_same, ours, theirs))
    return ours == theirs
