"""Sizes of models that are made with random weights: those of real ones, and scaled ones."""

from __future__ import annotations

from typing import Any

from agents.model import tiny
from agents.plan.published import QWEN2_5_VL, Size

# The scaled ones keep the proportions of the real ones, with a smaller vocabulary where it would
# be most of the weights.
SIZES = {
    **QWEN2_5_VL,
    "1.5b": Size(1536, 28, 12, 2, 8960, 151936, True, (16, 24, 24), 16, 640, 8, 1710, (7, 15)),
    "0.5b": Size(1280, 13, 10, 2, 6912, 65536, True, (16, 24, 24), 16, 640, 8, 1710, (7, 15)),
    "0.1b": Size(640, 12, 5, 1, 3456, 32768, True, (16, 24, 24), 8, 320, 4, 855, (3, 7)),
    "tiny": Size(64, 2, 4, 2, 96, 2048, True, (2, 3, 3), 2, 32, 1, 64, (1,)),
}


def build_config(size: Size, tokenizer: Any) -> Any:
    """Return the ``Qwen2_5_VLConfig`` of a size, with the special ids of a tokenizer."""
    from transformers import Qwen2_5_VLConfig

    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in tiny.SPECIAL}
    values = size.values()
    values["text_config"] |= {
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    return Qwen2_5_VLConfig(
        **values,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
