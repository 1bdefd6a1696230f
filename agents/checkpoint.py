"""Checkpoints: all that a run needs to go on as if nothing had happened.

A checkpoint is a directory. It is written beside its place under another name, flushed to the disk
and only then renamed; a pointer file named ``latest`` follows. Whatever goes wrong on the way, the
checkpoint before stays as it was.

    checkpoint-000040/
        policy/               what ``MLLMPolicy.from_pretrained`` loads, and longvideo.json; with
                              LoRA, policy/actor is an adapter that peft loads onto the base model
        critic.safetensors
        trainer.pt            optimisers, random numbers and the place in the task order
        state.json            step, configuration, fingerprint of the base model, digests of files

Left out: the reference of full fine-tuning, because it is the base model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from agents.config import TrainConfig
from agents.keeping.fingerprint import fingerprint_of_policy
from agents.keeping.saved import (
    FORMAT,
    LATEST,
    STATE,
    CheckpointError,
    check_files,
    checkpoints,
    digest_of_file,
    find,
    latest,
    read_state,
    step_of,
)
from agents.model.policy import ACTOR, MLLMPolicy, load_whole
from agents.model.weights import refuse_keys
from agents.ppo import PPOLearner
from agents.source import MADE_FOR_FILE, made_for_of_state
from gym_longvideo.files import reason, write_whole
from gym_longvideo.files import replace as rename
from gym_longvideo.files import sync as _sync
from gym_longvideo.suite import is_annotation
from gym_longvideo.version import __version__


class Checkpoints:
    """The checkpoints of a run.

    Args:
        directory: Of the run.
        keep: How many to keep.
    """

    def __init__(self, directory: str | Path, keep: int = 3) -> None:
        self.directory, self.keep = Path(directory), keep

    def save(
        self,
        step: int,
        learner: PPOLearner,
        *,
        config: TrainConfig,
        fingerprint: Mapping[str, str],
        workers: list[dict[str, Any]],
    ) -> Path:
        """Write a checkpoint and forget the oldest ones.

        Args:
            step: Iterations done.
            learner: With its policy.
            config: Of the run.
            fingerprint: Of the base model, see ``fingerprint_of``.
            workers: What each process wants back.

        Raises:
            CheckpointError: If it cannot be written; the latest one stays as it was.
        """
        path = self.directory / f"checkpoint-{step:06d}"
        draft = self.directory / f".checkpoint-{step:06d}.part"
        aside = self.directory / f".checkpoint-{step:06d}.old"
        placed = False
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for left in self.directory.glob(".checkpoint-*"):  # of a run that was killed
                _remove(left)
            if path.exists() and not path.is_dir():
                raise FileExistsError(f"{path} is in the way: no checkpoint; move it elsewhere")
            draft.mkdir()
            _write(draft, learner, workers, config)
            state = {
                "format": FORMAT,
                "library": __version__,
                "step": step,
                "config": config.to_json(),
                "fingerprint": dict(fingerprint),
                "files": {
                    each.relative_to(draft).as_posix(): digest_of_file(each)
                    for each in sorted(draft.rglob("*"))
                    if each.is_file()
                },
            }
            text = json.dumps(state, indent=2) + "\n"
            (draft / STATE).write_text(text, encoding="utf-8", newline="\n")
            _flush(draft)
            if path.exists():  # of a run that was resumed before it
                rename(path, aside)
            rename(draft, path)
            placed = True
            write_whole(self.directory / LATEST, path.name + "\n", durable=True)
        except BaseException as error:
            shutil.rmtree(path if placed else draft, ignore_errors=True)
            if aside.exists() and not path.exists():
                rename(aside, path)
            if not isinstance(error, Exception):
                raise
            raise CheckpointError(
                f"checkpoint {path} could not be written ({reason(error)}); {self._kept()}"
            ) from error
        shutil.rmtree(aside, ignore_errors=True)
        # Later ones are of a run that was resumed before them; they will be replaced.
        earlier = [old for old in checkpoints(self.directory) if step_of(old) <= step]
        for old in earlier[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint.

        Raises:
            CheckpointError: If ``latest`` is damaged.
        """
        return latest(self.directory)

    def _kept(self) -> str:
        """Say what there is to go on from."""
        try:
            last = self.latest()
        except CheckpointError as error:
            return str(error)
        return f"the latest one is still {last}" if last else "there is no earlier one"


def config_of(path: str | Path) -> TrainConfig:
    """Return the configuration of a checkpoint, or of the latest one of a run.

    Raises:
        CheckpointError: If there is none, or it is of another format.
        ValueError: If a field is unknown, or a value not allowed.
    """
    found = find(path)
    state = read_state(found)
    written = dict(state["config"])
    if is_annotation(written.get("suite", "")):
        # Of a version in which such records were in every split, if it does not say otherwise.
        written["suite_options"] = {"split_by": "none", **written.get("suite_options", {})}
    config = TrainConfig.from_json(written)
    if not (found / "policy" / MADE_FOR_FILE).is_file():
        # Of a version in which a model's settings were not laid under those of a run.
        made_for = made_for_of_state(state)
        config = replace(
            config,
            env={**asdict(made_for.settings), **config.env},
            suite_options={**config.suite_options, **made_for.suite_options},
        )
    return config


def restore(path: Path, learner: PPOLearner, fingerprint: Mapping[str, str]) -> list[Any]:
    """Put a learner, made from the base model, where a checkpoint left it.

    Returns:
        What each process wanted back, by rank.

    Raises:
        CheckpointError: If the checkpoint is of another model, or damaged.
    """
    state = read_state(path)
    _check_fingerprint(path, state, fingerprint)
    check_files(path, state)
    try:
        load_weights(path, learner.policy)
        kept = torch.load(path / "trainer.pt", map_location="cpu", weights_only=True)
        learner.load_state_dict(
            {**kept["learner"], "critic": load_file(path / "critic.safetensors")}
        )
        return kept["workers"]
    except Exception as error:  # torch, safetensors and transformers each have their own
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error


def _check_fingerprint(
    path: Path, state: Mapping[str, Any], fingerprint: Mapping[str, str]
) -> None:
    theirs = state.get("fingerprint", {})
    if odd := [part for part in fingerprint if theirs.get(part) != fingerprint[part]]:
        part = odd[0]
        raise CheckpointError(
            f"checkpoint {path} is of another model: its {part} is {theirs.get(part)}, here it is "
            f"{fingerprint[part]}; use the model and adapters it was trained with"
        )


def load_weights(path: Path, policy: MLLMPolicy) -> None:
    """Give a policy the weights of a checkpoint, all of them and no others.

    Raises:
        ValueError: If some are missing, or belong to no part of it, naming them.
    """
    if policy.peft is not None:
        from peft import (
            get_peft_model_state_dict,
            load_peft_weights,
            set_peft_model_state_dict,
        )

        place = path / "policy" / ACTOR
        weights = load_peft_weights(str(place), device=str(policy.device))
        wanted = get_peft_model_state_dict(policy.peft, adapter_name=ACTOR).keys()
        refuse_keys(f"the adapter {place}", wanted - weights.keys(), weights.keys() - wanted)
        set_peft_model_state_dict(policy.peft, weights, adapter_name=ACTOR)
        return
    trained = load_whole(path / "policy", dtype=policy.head.weight.dtype)
    policy.base.load_state_dict(trained.state_dict())
    policy.encoder.clear()


def load_policy(
    path: str | Path, device: Any = None, frame_size: tuple[int, int] | None = None
) -> MLLMPolicy:
    """Load the policy of a checkpoint, adapters included, as it was trained.

    Args:
        path: Of the checkpoint, or of its run.
        device: Where to; the GPU if there is one, by default.
        frame_size: Height and width of the frames it will see, in pixels, if known.

    Raises:
        CheckpointError: If it is damaged, or of another model than its base is now.
        ValueError: If its weights do not fit.
    """
    found = find(path)
    state = read_state(found)
    check_files(found, state)
    policy = config_of(found).load_policy(device, frame_size)
    _check_fingerprint(found, state, fingerprint_of_policy(policy))
    load_weights(found, policy)
    return policy


def _write(
    draft: Path, learner: PPOLearner, workers: list[dict[str, Any]], config: TrainConfig
) -> None:
    learner.policy.save_pretrained(draft / "policy", config.sampling)
    config.made_for().write(draft / "policy")
    state = learner.state_dict()
    critic = {name: value.contiguous() for name, value in state.pop("critic").items()}
    save_file(critic, draft / "critic.safetensors")
    state["reference"] = None
    with (draft / "trainer.pt").open("wb") as stream:  # given a path, torch hides why it failed
        torch.save({"learner": state, "workers": workers}, stream)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _flush(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            _sync(Path(folder, name))
        _sync(folder)
