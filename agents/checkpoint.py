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

import hashlib
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
from agents.model.policy import ACTOR, MLLMPolicy, load_whole, refuse_keys
from agents.ppo import PPOLearner
from agents.source import (
    FORMAT,
    LATEST,
    MADE_FOR_FILE,
    STATE,
    CheckpointError,
    checkpoints,
    find,
    latest,
    made_for_of_state,
    read_state,
)
from gym_longvideo.suite import is_annotation
from gym_longvideo.version import __version__

_VOLATILE = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype")


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
                shutil.rmtree(left)
            draft.mkdir()
            _write(draft, learner, workers, config)
            state = {
                "format": FORMAT,
                "library": __version__,
                "step": step,
                "config": config.to_json(),
                "fingerprint": dict(fingerprint),
                "files": {
                    str(each.relative_to(draft)): _digest_of_file(each)
                    for each in sorted(draft.rglob("*"))
                    if each.is_file()
                },
            }
            (draft / STATE).write_text(json.dumps(state, indent=2) + "\n")
            _flush(draft)
            if path.exists():  # of a run that was resumed before it
                path.rename(aside)
            draft.rename(path)
            placed = True
            point(self.directory / LATEST, path.name)
        except BaseException as error:
            shutil.rmtree(path if placed else draft, ignore_errors=True)
            if aside.exists() and not path.exists():
                aside.rename(path)
            if not isinstance(error, Exception):
                raise
            last = self.latest()
            kept = f"the latest one is still {last}" if last else "there is no earlier one"
            raise CheckpointError(f"checkpoint {path} could not be written ({error}); {kept}"
                                  ) from error  # fmt: skip
        shutil.rmtree(aside, ignore_errors=True)
        # Later ones are of a run that was resumed before them; they will be replaced.
        for old in [old for old in checkpoints(self.directory) if old <= path][: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint."""
        return latest(self.directory)


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
    except Exception as error:  # torch, safetensors and transformers each have their own
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    return kept["workers"]


def _check_fingerprint(
    path: Path, state: Mapping[str, Any], fingerprint: Mapping[str, str]
) -> None:
    theirs = state["fingerprint"]
    if odd := [part for part in fingerprint if theirs.get(part) != fingerprint[part]]:
        part = odd[0]
        raise CheckpointError(
            f"checkpoint {path} is of another model: its {part} is {theirs.get(part)}, here it is "
            f"{fingerprint[part]}; use the model and adapters it was trained with"
        )


def check_files(path: Path, state: Mapping[str, Any]) -> None:
    """Compare the files of a checkpoint with the digests that were taken when it was written.

    Raises:
        CheckpointError: If one is missing or changed. Versions that took no digests are let pass.
    """
    for name, digest in state.get("files", {}).items():
        try:
            found = _digest_of_file(path / name)
        except OSError as error:
            raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
        if found != digest:
            raise CheckpointError(
                f"checkpoint {path} is damaged: {name} is not as it was written; use an earlier one"
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


def fingerprint_of(learner: PPOLearner) -> dict[str, str]:
    """Say which model this is; to be called before it is trained.

    Returns:
        What ``fingerprint_of_policy`` returns, and digests of the shapes of what is trained.
    """
    parts = {
        "actor": [tuple(p.shape) for p in learner.actor_parameters],
        "critic": [tuple(p.shape) for p in learner.critic_parameters],
    }
    shapes = {f"shapes of the {name}": _digest(repr(shapes)) for name, shapes in parts.items()}
    of_policy = fingerprint_of_policy(learner.policy)
    first = {name: of_policy[name] for name in ("configuration", "vocabulary")}
    return {**first, **shapes, **of_policy}


def fingerprint_of_policy(policy: MLLMPolicy) -> dict[str, str]:
    """Say which base model and adapters a policy has, whatever an adapter was trained to.

    Returns:
        A digest of its configuration, the size of its vocabulary, a digest of the names and shapes
        of its weights, one of a few of them, rounded to bfloat16, and its adapters.
    """
    config = policy.base.config.to_dict()
    named = [
        (name, weight) for name, weight in policy.base.named_parameters() if ".lora_" not in name
    ]
    few = torch.cat(
        [weight.detach().reshape(-1)[:8].to("cpu", torch.bfloat16) for _, weight in named]
    )
    return {
        "configuration": _digest(json.dumps(_lasting(config), sort_keys=True, default=str)),
        "vocabulary": str(config["text_config"]["vocab_size"]),
        "shapes of the base": _digest(repr([(name, tuple(w.shape)) for name, w in named])),
        "base weights": _digest(few.float().numpy().tobytes().hex()),
        "adapters": str(policy.lora),
    }


def point(file: Path, text: str) -> None:
    """Replace a small file in one go."""
    draft = file.with_name(f".{file.name}.part")
    with draft.open("w") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, file)
    _sync(file.parent)


def _write(
    draft: Path, learner: PPOLearner, workers: list[dict[str, Any]], config: TrainConfig
) -> None:
    learner.policy.save_pretrained(draft / "policy", config.sampling)
    config.made_for().write(draft / "policy")
    state = learner.state_dict()
    critic = {name: value.contiguous() for name, value in state.pop("critic").items()}
    save_file(critic, draft / "critic.safetensors")
    state["reference"] = None
    torch.save({"learner": state, "workers": workers}, draft / "trainer.pt")


def _flush(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lasting(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {key: _lasting(each) for key, each in value.items() if not _passing(key)}
    return kept


def _passing(key: object) -> bool:
    return key in _VOLATILE or str(key).startswith("_attn")


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
