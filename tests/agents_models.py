"""Tiny random models of the Qwen2.5-VL kind, and scripted dialogues for them.

Fresh weights predict nearly uniformly and look at images hardly at all, which hides wrong
positions, masks and images. ``sharpen`` makes predictions peaked and images loud.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.model import tiny
from agents.model.chat import Block, ChatCodec
from agents.model.policy import LoRA, MLLMPolicy
from agents.model.rows import Row
from agents.model.sampling import Reply
from agents.trajectory import Exchange, Trajectory, rows_of

torch.set_num_threads(1)

SIZES = {"hidden": 64, "layers": 2, "heads": 4, "intermediate": 96, "vision_hidden": 32}
DOT, WIDE, TALL = (28, 28), (28, 56), (84, 56)  # 1, 2 and 6 tokens
_DIRECTORY = tempfile.TemporaryDirectory(prefix="tiny-")


@cache
def model_dir() -> Path:
    """Return the directory of the model that all tests share."""
    tokenizer = tiny.build_tokenizer()
    model = tiny.build_model(tiny.build_config(tokenizer, **SIZES), seed=1)
    sharpen(model)
    tiny.save(model, tokenizer, _DIRECTORY.name)
    return Path(_DIRECTORY.name)


@torch.no_grad()
def sharpen(model: Any) -> None:
    """Draw weights that make predictions peaked and images loud, none of them zero or one."""
    generator = torch.Generator().manual_seed(7)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.copy_(0.2 * noise(parameter))
        elif "norm" in name or "ln_q" in name:
            parameter.copy_(1 + 0.2 * noise(parameter))
        else:
            fan_in = parameter[0].numel()
            scale = 0.3 if "embed_tokens" in name else 1.5 * fan_in**-0.5
            parameter.copy_(scale * noise(parameter))
    model.model.language_model.norm.weight.mul_(1.5)
    # An image placeholder is likely everywhere, so that sampling or counting one is noticed; and so
    # is the end of a reply, so that replies differ in length.
    embedding = model.get_input_embeddings().weight
    ids = torch.randint(0, 256, (8, 32), generator=generator)
    mean = model.model.language_model(input_ids=ids).last_hidden_state.mean((0, 1))
    toward = mean / mean.square().sum()
    embedding[model.config.image_token_id] = 9 * toward
    embedding[model.config.text_config.eos_token_id] += 8 * toward


def load(**options: Any) -> MLLMPolicy:
    """Return a policy of its own over the shared weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # of fresh adapters
        return MLLMPolicy.from_pretrained(model_dir(), device="cpu", **options)


@cache
def shared() -> MLLMPolicy:
    """Return a policy without adapters that tests only read."""
    return load()


def adapted(checkpointing: bool = False, noise: float = 0.05, **options: Any) -> MLLMPolicy:
    """Return a policy with LoRA whose adapter is not at its start, where it would do nothing."""
    policy = load(lora=LoRA(rank=4, alpha=8.0), checkpointing=checkpointing, **options)
    perturb(policy.actor_parameters(), noise)
    return policy


@torch.no_grad()
def perturb(parameters: Sequence[torch.nn.Parameter], scale: float, seed: int = 3) -> None:
    """Add noise to parameters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def picture(rng: np.random.Generator, size: tuple[int, int] = DOT) -> np.ndarray:
    """Return an image of noise."""
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def show(text: str, *images: np.ndarray, ask: str = "\nQuestion: which?") -> list[dict[str, Any]]:
    """Return chat content: a text, each image after its mark, a question."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    for i, image in enumerate(images):
        content += [{"type": "text", "text": f"frame_idx:{i}"}, {"type": "image", "image": image}]
    return [*content, {"type": "text", "text": ask}]


def said(codec: ChatCodec, rng: np.random.Generator, length: int, end: bool = True) -> np.ndarray:
    """Return random ids of a reply, none of them suppressed."""
    vocabulary = np.setdiff1d(np.arange(len(codec.tokenizer)), [*codec.suppressed, codec.end_id])
    ids = rng.choice(vocabulary, length)
    if end:
        ids[-1] = codec.end_id
    return ids


def episode(
    codec: ChatCodec,
    seed: int,
    shown: Sequence[Sequence[tuple[int, int]]] = ((DOT, DOT), (WIDE,), (TALL, DOT)),
    lengths: Sequence[int] = (4, 3, 5),
    rewards: Sequence[float] = (0.0, 0.0, 0.0),
    retrieved: Sequence[bool] = (),
) -> Trajectory:
    """Return a scripted dialogue: a turn for each tuple of image sizes."""
    rng = np.random.default_rng(seed)
    made = Trajectory(
        codec.system("You answer a multiple-choice question."), task_id=f"task-{seed}"
    )
    for k, sizes in enumerate(shown):
        images = [picture(rng, size) for size in sizes]
        user = codec.user(show(f"Turn {k + 1} of 3. {seed}", *images))
        ids = said(codec, rng, lengths[k], end=(seed + k) % 4 != 3)  # some are cut
        reply = Reply(ids, np.zeros(len(ids), np.float32), ids[-1] != codec.end_id)
        turn = Exchange(user, reply, codec.close(codec.reply(ids)), float(rewards[k]))
        turn.retrieved = bool(retrieved[k]) if retrieved else False
        made.turns.append(turn)
    return made


def several(codec: ChatCodec) -> list[Trajectory]:
    """Return four dialogues of different lengths, with images of different counts and sizes."""
    return [
        episode(codec, 0),
        episode(codec, 1, shown=((TALL,),), lengths=(6,)),
        episode(codec, 2, shown=((WIDE, TALL, DOT), ()), lengths=(2, 7)),
        episode(codec, 3, shown=((), (DOT,)), lengths=(1, 3)),
    ]


def training_rows(policy: MLLMPolicy, history: int | None = None) -> list[Row]:
    """Return the rows of ``several``."""
    return rows_of(several(policy.codec), policy, history)[0]


def model_logits(policy: MLLMPolicy, row: Row) -> torch.Tensor:
    """Return (n, V) logits of a row as the model itself computes them, positions included."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    ids = torch.from_numpy(row.ids)[None]
    images = {}
    if row.frames:
        processor = Qwen2VLImageProcessorPil.from_pretrained(model_dir(), do_resize=False)
        images = dict(processor(images=list(row.frames), return_tensors="pt"))
    with torch.no_grad():
        return policy.base(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == policy.codec.image_token_id).int(),
            **images,
        ).logits[0]


def without(suppressed: np.ndarray, logits: torch.Tensor) -> torch.Tensor:
    """Return logits with -inf at suppressed ids."""
    logits = logits.clone()
    logits[..., torch.from_numpy(suppressed)] = -torch.inf
    return logits


__all__ = [
    "DOT", "SIZES", "TALL", "WIDE", "Block", "adapted", "episode", "load", "model_dir",
    "model_logits", "perturb", "picture", "said", "several", "shared", "sharpen", "show",
    "training_rows", "without",
]  # fmt: skip
