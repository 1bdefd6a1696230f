"""Qwen3-VL: beside the features that stand in place of tokens, some are added in the first layers.

The vision tower taps several of its own layers (DeepStack, arXiv 2406.04334). Each gives features
of the language model's width, which are added to the states of the image's tokens after one of its
first layers. Here a token's features are all of them side by side, so that they are remembered, and
forgotten, together.
"""

from __future__ import annotations

from typing import Any

import torch

from agents.model.families.family import Family


class Qwen3VL(Family):
    """The family of ``Qwen3VLForConditionalGeneration``."""

    def width(self, config: Any) -> int:
        """Return the width of all features of a token, side by side."""
        return super().width(config) * (1 + len(config.vision_config.deepstack_visual_indexes))

    def features(self, visual: Any, patches: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """Return (T, hidden * (1 + layers tapped)) features."""
        out = visual(patches, grid_thw=sizes)
        return torch.cat([out.pooler_output, *out.deepstack_features], dim=-1)

    def inputs(
        self, embeds: torch.Tensor, features: torch.Tensor, places: torch.Tensor
    ) -> dict[str, Any]:
        """Return embeddings, and what is added where in the first layers."""
        first, *deeper = features.split(embeds.shape[-1], dim=-1)
        return {
            **super().inputs(embeds, first, places),
            "visual_pos_masks": places,
            "deepstack_visual_embeds": deeper,
        }


QWEN3_VL = Qwen3VL("qwen3_vl")
