"""Sizes of real models: their configurations, and the FLOP that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.model import tiny
from agents.model.policy import MLLMPolicy


@dataclass(frozen=True)
class Size:
    """Numbers of a Qwen2.5-VL, as its ``config.json`` gives them.

    Attributes:
        hidden: Width of the language model.
        layers: Of the language model.
        heads: Of its attention.
        kv_heads: Of its attention.
        intermediate: Width inside its MLPs.
        vocabulary: Width of its output.
        tied: Whether its head is its embedding.
        mrope: Frequencies for time, height and width.
        depth: Layers of the vision tower.
        vision_hidden: Width of the tower.
        vision_heads: Of the tower's attention.
        vision_intermediate: Width inside the tower's MLPs.
        whole: Layers of the tower that attend to the whole image, not to windows.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    mrope: tuple[int, int, int] = (16, 24, 24)
    depth: int = 32
    vision_hidden: int = 1280
    vision_heads: int = 16
    vision_intermediate: int = 3420
    whole: tuple[int, ...] = (7, 15, 23, 31)


SIZES = {
    "3b": Size(2048, 36, 16, 2, 11008, 151936, True),
    "7b": Size(3584, 28, 28, 4, 18944, 152064, False),
    "tiny": Size(64, 2, 4, 2, 96, 2048, True, (2, 3, 3), 2, 32, 1, 64, (1,)),
}


def build_config(size: Size, tokenizer: Any) -> Any:
    """Return the ``Qwen2_5_VLConfig`` of a size, with the special ids of a tokenizer."""
    from transformers import Qwen2_5_VLConfig

    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in tiny.SPECIAL}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": size.tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": list(size.mrope),
            },
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": size.depth,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_intermediate,
            "num_heads": size.vision_heads,
            "out_hidden_size": size.hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": list(size.whole),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=size.tied,
    )


class Work:
    """How many FLOP a model needs.

    Args:
        policy: The model.
    """

    def __init__(self, policy: MLLMPolicy) -> None:
        text = policy.base.config.get_text_config()
        frozen = [
            p.numel() for n, p in policy.language.layers.named_parameters() if "lora_" not in n
        ]
        self.layers, self.hidden = text.num_hidden_layers, text.hidden_size
        self.language = sum(frozen)
        self.head = policy.head.weight.numel()
        tower = policy.encoder.visual
        self.merger = sum(p.numel() for p in tower.merger.parameters())
        self.tower = sum(p.numel() for p in tower.parameters()) - self.merger

    def forward(self, new: int, past: int = 0) -> float:
        """Return the FLOP of ``new`` tokens of a sequence of which ``past`` went before."""
        pairs = new * past + new * new / 2
        return 2.0 * self.language * new + 4.0 * self.layers * self.hidden * pairs

    def logits(self, tokens: int) -> float:
        """Return the FLOP of the head for some tokens."""
        return 2.0 * self.head * tokens

    def vision(self, tokens: int) -> float:
        """Return the FLOP of the tower for images of some tokens, four patches each."""
        return 2.0 * (4 * self.tower + self.merger) * tokens
