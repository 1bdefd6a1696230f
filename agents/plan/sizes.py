"""Sizes: what a model's weights and widths come to, counted on a model that takes no memory.

Counts come from the model class itself, built on the meta device, so that they are exact for every
family; a weight that two parts share, as a tied head does, is counted once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.model.families import family_of
from agents.plan.published import PUBLISHED
from agents.source import PolicySource


@dataclass(frozen=True)
class Recurrent:
    """Layers that keep a state (gated delta nets).

    Attributes:
        layers: How many there are.
        heads: Of their values.
        key: Numbers of a key.
        value: Numbers of a value.
        mixed: Width of what the short convolution runs over.
        kernel: Length of that convolution.
    """

    layers: int
    heads: int
    key: int
    value: int
    mixed: int
    kernel: int

    @property
    def state(self) -> int:
        """Numbers that all layers keep of a dialogue."""
        return self.layers * (self.heads * self.key * self.value + self.mixed * self.kernel)


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model; weights are counted, widths are of a token or a patch.

    Attributes:
        language: Weights of the language model: embedding, layers and last norm.
        head: Weights of the head; 0 where it is the embedding.
        embedding: Weights of the embedding.
        layer: Weights of the largest layer.
        decoder: Weights of all layers.
        largest: Weights of the largest tensor of language model and head.
        tower: Weights of the vision tower.
        merger: Weights of the tower that run once a token, not once a patch.
        adapted: Sum over the layers' adapted matrices of their two sides: adapters hold ``rank``
            times as many weights.
        layers: Layers of the language model.
        caching: Those that keep keys and values.
        hidden: Width of the language model.
        queries: Width of all queries of a layer.
        keys: Width of all keys of a layer, and of its values.
        heads: Of its attention.
        head_dim: Width of one of them.
        intermediate: Width inside its MLPs.
        vocabulary: Width of its output.
        normed: Whether queries and keys are normalised.
        recurrent: Its layers that keep a state, if any.
        depth: Layers of the tower.
        vision: Width of the tower.
        vision_inner: Width inside its MLPs.
        vision_heads: Of its attention.
        gated: Whether its MLPs are gated.
        patch: Numbers of a patch.
        merged: Patches of a token.
        unit: Side in pixels of a token.
        width: Numbers that stand for a token of an image.
    """

    language: int
    head: int
    embedding: int
    layer: int
    decoder: int
    largest: int
    tower: int
    merger: int
    adapted: int
    layers: int
    caching: int
    hidden: int
    queries: int
    keys: int
    heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    normed: bool
    recurrent: Recurrent | None
    depth: int
    vision: int
    vision_inner: int
    vision_heads: int
    gated: bool
    patch: int
    merged: int
    unit: int
    width: int

    @property
    def actor(self) -> int:
        """Weights of language model and head."""
        return self.language + self.head

    @property
    def root(self) -> int:
        """Weights of language model and head that belong to no layer."""
        return self.actor - self.decoder

    @property
    def total(self) -> int:
        """Weights of the whole model."""
        return self.actor + self.tower

    @classmethod
    def of(cls, model: Any) -> Sizes:
        """Count the weights of a model, real or on the meta device; adapters are left out.

        Args:
            model: Of one of the families.

        Raises:
            ValueError: If it is of none.
        """
        family = family_of(model.config, model.name_or_path)
        text, vision = model.config.get_text_config(), model.config.vision_config
        language, tower = model.model.language_model, model.model.visual
        layers = list(language.layers)
        attending = [each.self_attn for each in layers if hasattr(each, "self_attn")]
        own = {id(p) for p in language.parameters()}
        tensors = [p for _, p in _named(language)]
        head = [p for _, p in _named(model.lm_head) if id(p) not in own]
        embedding = language.get_input_embeddings().weight
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        mergers = [m for name, m in tower.named_children() if "merger" in name]
        inner = [p for _, p in _named(tower.blocks[0].mlp) if p.ndim == 2]
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        adapted = [p for n, p in _named(language.layers)
                   if p.ndim == 2 and n.split(".")[-2] in family.linear]  # fmt: skip
        return cls(
            language=_count(tensors),
            head=_count(head),
            embedding=embedding.numel(),
            layer=max(_count(p for _, p in _named(each)) for each in layers),
            decoder=_count(p for _, p in _named(language.layers)),
            largest=max(p.numel() for p in (*tensors, *head)),
            tower=_count(p for _, p in _named(tower)),
            merger=_count(p for each in mergers for _, p in _named(each)),
            adapted=sum(sum(p.shape) for p in adapted),
            layers=len(layers),
            caching=len(attending),
            hidden=text.hidden_size,
            queries=text.num_attention_heads * dim,
            keys=text.num_key_value_heads * dim,
            heads=text.num_attention_heads,
            head_dim=dim,
            intermediate=text.intermediate_size,
            vocabulary=model.lm_head.weight.shape[0],
            normed=any(hasattr(each, "q_norm") for each in attending),
            recurrent=_recurrent(text, len(layers) - len(attending)),
            depth=len(tower.blocks),
            vision=inner[0].shape[1],
            vision_inner=inner[0].shape[0],
            vision_heads=vision.num_heads,
            gated=len(inner) == 3,
            patch=patch,
            merged=vision.spatial_merge_size**2,
            unit=vision.patch_size * vision.spatial_merge_size,
            width=family.width(model.config),
        )


def sizes_of(source: PolicySource) -> Sizes:
    """Return the sizes of a model from its configuration alone.

    Args:
        source: A directory with a ``config.json``, or a hub id that is in the hub's cache or among
            ``PUBLISHED``.

    Raises:
        ValueError: If there is no such configuration, or its model cannot be built.
    """
    path = _config_file(source)
    if path is not None:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            kind = values.pop("model_type")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no configuration of a model: {error!r}") from error
    elif source.path in PUBLISHED:
        kind, values = PUBLISHED[source.path]
    else:
        raise ValueError(
            f"model={source.path!r} is not in the local cache, and its architecture is not known "
            f"here; give the directory of its config.json, or one of {sorted(PUBLISHED)}"
        )
    return _built(kind, json.dumps(values, sort_keys=True), source.path)


@lru_cache(16)
def _built(kind: str, values: str, path: str) -> Sizes:
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.for_model(kind, **json.loads(values))
        for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id"):
            if not hasattr(config, name):
                setattr(config, name, 0)
        family_of(config, path)
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config)
        return Sizes.of(model)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the model of {path!r} cannot be planned: {error}") from error


def _config_file(source: PolicySource) -> Path | None:
    if source.kind != "hub":
        return Path(source.path) / "config.json"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.path, "config.json")
    return Path(found) if isinstance(found, str) else None


def _named(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Yield the parameters of a module that are no adapters, as they are called without them."""
    for name, parameter in module.named_parameters():
        if "lora_" not in name:
            yield name.replace(".base_layer", ""), parameter


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())


def _recurrent(text: Any, layers: int) -> Recurrent | None:
    if not layers:
        return None
    key, value = text.linear_key_head_dim, text.linear_value_head_dim
    heads = text.linear_num_value_heads
    mixed = 2 * text.linear_num_key_heads * key + heads * value
    return Recurrent(layers, heads, key, value, mixed, text.linear_conv_kernel_dim)
