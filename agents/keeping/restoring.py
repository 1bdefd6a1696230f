"""Restoring: a learner is put where a checkpoint left it, whoever wrote it and however many.

What one process wrote whole, and what several wrote in parts, is read alike into weights that are
whole or sharded; nothing is half loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from agents.keeping.saved import CheckpointError, check_files, read_state
from agents.keeping.shards import SHARDS, fill_part, names_of_shards, read_shards
from agents.model.policy import ACTOR, MLLMPolicy, load_whole
from agents.model.weights import WeightFiles, fill, refuse_keys
from agents.optimizers import remember
from agents.ppo import PPOLearner


def restore(path: Path, learner: PPOLearner, fingerprint: Mapping[str, str]) -> list[Any]:
    """Put a learner, made from the base model, where a checkpoint left it.

    Returns:
        What each process wanted back, by rank.

    Raises:
        CheckpointError: If the checkpoint is of another model, or damaged.
    """
    state = read_state(path)
    check_fingerprint(path, state, fingerprint)
    learner.processes.by_main(lambda: check_files(path, state))
    try:
        kept = torch.load(path / "trainer.pt", map_location="cpu", weights_only=True, mmap=True)
        if (path / SHARDS).is_dir():
            _read_shards(path / SHARDS, learner)
            learner.load_counts(kept["learner"])
        elif learner.sharding.on:
            _read_whole(path, learner, kept["learner"])
            learner.load_counts(kept["learner"])
        else:
            load_weights(path, learner.policy)
            critic = load_file(path / "critic.safetensors")
            learner.load_state_dict({**kept["learner"], "critic": critic})
        return kept["workers"]
    except Exception as error:  # torch, safetensors and transformers each have their own
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error


def check_fingerprint(path: Path, state: Mapping[str, Any], fingerprint: Mapping[str, str]) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        CheckpointError: Naming what differs.
    """
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


def exported_names(policy: MLLMPolicy, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the names of a policy's weights in files that others read, with those we give them.

    Args:
        policy: The policy.
        tensors: As ``PPOLearner.tensors`` names them.
    """
    own_names = [name for name in tensors if "/" not in name and not name.startswith("critic.")]
    if policy.lora is None:
        return {name: name for name in own_names}
    return {
        f"base_model.model.{name.replace(f'.{ACTOR}.', '.')}": name
        for name in own_names
        if f".{ACTOR}." in name
    }


def _read_shards(directory: Path, learner: PPOLearner) -> None:
    if any("/" in name for name in names_of_shards(directory)):
        for optimizer in (learner.actor_optimizer, learner.critic_optimizer):
            remember(optimizer)
    read_shards(directory, learner.tensors(frozen=learner.policy.lora is None))


def _read_whole(path: Path, learner: PPOLearner, state: Mapping[str, Any]) -> None:
    """Give a learner that is sharded what one wrote that was not, each process its parts."""
    policy = learner.policy
    if policy.lora is None:
        files = WeightFiles(path / "policy")
        places = files.named(dict(policy.base.named_parameters()), policy.tied)
        fill(policy.base, "", places)
    else:
        from peft import load_peft_weights

        place = path / "policy" / ACTOR
        weights = load_peft_weights(str(place), device="cpu")
        names = exported_names(policy, learner.tensors())
        refuse_keys(f"the adapter {place}", names.keys() - weights.keys(),
                    weights.keys() - names.keys())  # fmt: skip
        tensors = learner.tensors()
        for new, name in names.items():
            fill_part(tensors[name], weights[new])
    critic = load_file(path / "critic.safetensors")
    ours = learner.critic.state_dict()
    refuse_keys(str(path / "critic.safetensors"), ours.keys() - critic.keys(),
                critic.keys() - ours.keys())  # fmt: skip
    for name, tensor in ours.items():
        fill_part(tensor, critic[name])
    for name in ("actor", "critic"):
        optimizer = getattr(learner, f"{name}_optimizer")
        theirs = state[f"{name}_optimizer"]["state"]
        if theirs:
            remember(optimizer)
        for i, parameter in enumerate(getattr(learner, f"{name}_parameters")):
            for key, value in theirs.get(i, {}).items():
                fill_part(optimizer.state[parameter][key], value)
