"""Fingerprints: which model a checkpoint belongs to, whatever its adapters were trained to."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from agents.model.policy import MLLMPolicy
from agents.parallel import own
from agents.ppo import PPOLearner
from agents.sharding import whole

_VOLATILE = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype")


def fingerprint_of(learner: PPOLearner) -> dict[str, str]:
    """Say which model this is; to be called before it is trained, by all processes together.

    Returns:
        What ``fingerprint_of_policy`` returns, and digests of the shapes of what is trained.
    """
    parts = {
        "actor": [tuple(p.shape) for p in learner.actor_parameters],
        "critic": [tuple(p.shape) for p in learner.critic_parameters],
    }
    shapes = {f"shapes of the {name}": _digest(repr(shapes)) for name, shapes in parts.items()}
    of_policy = learner.processes.gather(fingerprint_of_policy(learner.policy))[0]
    first = {name: of_policy[name] for name in ("configuration", "vocabulary")}
    return {**first, **shapes, **of_policy}


def fingerprint_of_policy(policy: MLLMPolicy) -> dict[str, str]:
    """Say which base model and adapters a policy has, whatever an adapter was trained to.

    Returns:
        A digest of its configuration, the size of its vocabulary, a digest of the names and shapes
        of its weights, one of a few of them, rounded to bfloat16, and its adapters. Of sharded
        weights only the first process knows these few.
    """
    config = policy.base.config.to_dict()
    named = [
        (name, weight) for name, weight in policy.base.named_parameters() if ".lora_" not in name
    ]
    few = torch.cat([_first(weight, 8).to("cpu", torch.bfloat16) for _, weight in named])
    return {
        "configuration": _digest(json.dumps(_lasting(config), sort_keys=True, default=str)),
        "vocabulary": str(config["text_config"]["vocab_size"]),
        "shapes of the base": _digest(repr([(name, tuple(w.shape)) for name, w in named])),
        "base weights": _digest(few.float().numpy().tobytes().hex()),
        "adapters": str(policy.lora),
    }


def _first(weight: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first numbers of a weight; of a sharded one in the first process."""
    if isinstance(weight, DTensor):
        rows = -(-weight.shape[0] // weight.device_mesh.shape[-1])
        if rows * math.prod(weight.shape[1:]) < min(count, weight.numel()):
            return whole(weight).reshape(-1)[:count]
    return own(weight).detach().reshape(-1)[:count]


def _lasting(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {key: _lasting(each) for key, each in value.items() if not _passing(key)}
    return kept


def _passing(key: object) -> bool:
    return key in _VOLATILE or str(key).startswith("_attn")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
