"""Tiny random models of every family, with the image processor that each comes with."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from agents_models import sharpen, show
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents.model import tiny
from agents.model.policy import MLLMPolicy
from agents.model.rows import Row

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
_DIRECTORY = tempfile.TemporaryDirectory(prefix="families-")
_TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _qwen2_vl(common: dict[str, Any], vocabulary: dict[str, Any]) -> Any:
    rope = {**_ROPE, "mrope_section": [2, 3, 3]}
    text = {**_TEXT, **vocabulary, "num_hidden_layers": 3, "num_key_value_heads": 2}
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    return transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={**tower, "patch_size": 14, "spatial_merge_size": 2,
                           "temporal_patch_size": 2},
            **common,
        )
    )  # fmt: skip


def _qwen2_5_vl(common: dict[str, Any], vocabulary: dict[str, Any]) -> Any:
    rope = {**_ROPE, "mrope_section": [2, 3, 3]}
    text = {**_TEXT, **vocabulary, "num_hidden_layers": 3, "num_key_value_heads": 2}
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={**tower, "out_hidden_size": 64, "patch_size": 14, "window_size": 56,
                           "fullatt_block_indexes": [1], "spatial_merge_size": 2,
                           "temporal_patch_size": 2},
            **common,
        )
    )  # fmt: skip


def _qwen3_vl(common: dict[str, Any], vocabulary: dict[str, Any]) -> Any:
    rope = {**_ROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = {**_TEXT, **vocabulary, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16}
    tower = {"depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={**tower, "out_hidden_size": 64, "patch_size": 16,
                           "deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64,
                           "spatial_merge_size": 2, "temporal_patch_size": 2},
            **common,
        )
    )  # fmt: skip


def _qwen3_5(common: dict[str, Any], vocabulary: dict[str, Any]) -> Any:
    rope = {**_ROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = {**_TEXT, **vocabulary, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 32}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4,
              "linear_key_head_dim": 16, "linear_value_head_dim": 16}  # fmt: skip
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    return transformers.Qwen3_5ForConditionalGeneration(
        transformers.Qwen3_5Config(
            text_config={**text, **linear,
                         "rope_parameters": {**rope, "partial_rotary_factor": 0.5}},
            vision_config={**tower, "out_hidden_size": 64, "patch_size": 16,
                           "num_position_embeddings": 64, "spatial_merge_size": 2,
                           "temporal_patch_size": 2},
            **common,
        )
    )  # fmt: skip


_MAKERS = {
    "qwen2_vl": _qwen2_vl, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl, "qwen3_5": _qwen3_5,
}  # fmt: skip


@cache
def family_dir(kind: str) -> Path:
    """Return the directory of the tiny model of a family."""
    tokenizer = tiny.build_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    vocabulary = {
        "vocab_size": len(tokenizer),
        "eos_token_id": ids("<|im_end|>"),
        "bos_token_id": None,
        "pad_token_id": ids("<|endoftext|>"),
        "tie_word_embeddings": True,
    }
    common = {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "tie_word_embeddings": True,
    }
    torch.manual_seed(1)
    model = _MAKERS[kind](common, vocabulary).eval()
    memory = ("A_log", "dt_bias")  # how long a recurrent layer remembers
    own = {n: p.clone() for n, p in model.named_parameters() if n.endswith(memory)}
    sharpen(model)
    with torch.no_grad():
        for name, value in own.items():
            model.get_parameter(name).copy_(value)
    path = Path(_DIRECTORY.name) / kind
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    tower = model.config.vision_config
    Qwen2VLImageProcessorPil(
        patch_size=tower.patch_size,
        merge_size=tower.spatial_merge_size,
        temporal_patch_size=tower.temporal_patch_size,
        do_resize=False,
    ).save_pretrained(path)
    return path


def load_family(kind: str, **options: Any) -> MLLMPolicy:
    """Return a policy of a family."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # of fresh adapters
        return MLLMPolicy.from_pretrained(family_dir(kind), device="cpu", **options)


@cache
def family(kind: str) -> MLLMPolicy:
    """Return a policy of a family that tests only read."""
    return load_family(kind)


def picture_of(policy: MLLMPolicy, rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return an image of noise of so many tokens."""
    unit = policy.codec.grid.patch * policy.codec.grid.merge
    return rng.integers(0, 256, (rows * unit, columns * unit, 3), dtype=np.uint8)


def users_of(
    policy: MLLMPolicy, shown: Sequence[Sequence[Sequence[tuple[int, int]]]], seed: int = 1
) -> list[list[Any]]:
    """Return the user blocks of dialogues whose turns show images of (rows, columns) tokens."""
    rng = np.random.default_rng(seed)
    return [
        [
            policy.codec.user(
                show(f"Turn {k + 1} of 3. {d}", *(picture_of(policy, rng, *s) for s in sizes))
            )
            for k, sizes in enumerate(turns)
        ]
        for d, turns in enumerate(shown)
    ]


def own_logits(policy: MLLMPolicy, row: Row) -> torch.Tensor:
    """Return (n, V) logits of a row as the model itself computes them, from raw images."""
    ids = torch.from_numpy(row.ids)[None]
    images = {}
    if row.frames:
        path = family_dir(policy.family.model_type)
        processor = Qwen2VLImageProcessorPil.from_pretrained(path, do_resize=False)
        images = dict(processor(images=list(row.frames), return_tensors="pt"))
        images["pixel_values"] = images["pixel_values"].to(policy.head.weight.dtype)
    with torch.no_grad():
        return policy.base(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == policy.codec.image_token_id).int(),
            **images,
        ).logits[0]


def delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gated delta rule, token by token in double precision.

    The library's own works in chunks of 64 in single precision. Peaked weights magnify what it
    rounds to 1e-3 of a log-probability, by which one could not tell a state that was spoiled.
    """
    q, k, v, rate, decay = (x.transpose(1, 2).double() for x in (query, key, value, beta, g))
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    q = q * q.shape[-1] ** -0.5
    state = q.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    state = state if initial_state is None else initial_state.double()
    out = []
    for t in range(v.shape[2]):
        state = state * decay[:, :, t].exp()[..., None, None]
        known = (state * k[:, :, t, :, None]).sum(-2)
        learned = (v[:, :, t] - known) * rate[:, :, t, None]
        state = state + k[:, :, t, :, None] * learned[..., None, :]
        out.append((state * q[:, :, t, :, None]).sum(-2))
    return torch.stack(out, 1).to(query.dtype), state
