"""Family: the seam between the policy and a kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        model_type: What its ``config.json`` calls it.
        linear: Names of the linear layers of the language model that get adapters.
        layers: Kinds of layers whose memory ``agents.model.memory`` can share out among dialogues.
        packs: Whether its layers can be kept from seeing other rows of a packed sequence; those
            that keep a state cannot.
    """

    model_type: str
    linear: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    layers: tuple[str, ...] = ("full_attention",)
    packs: bool = True

    def width(self, config: Any) -> int:
        """Return how many numbers stand for a token of an image."""
        return int(config.get_text_config().hidden_size)

    def features(self, visual: Any, patches: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """Run the vision tower.

        Args:
            visual: The tower.
            patches: (P, channels * temporal * patch * patch) of all images, see ``patchify``.
            sizes: (n, 3) int64 (1, rows, columns) of each image, in patches.

        Returns:
            (T, width) of the T tokens of all images; ``inputs`` says what they hold.
        """
        return visual(patches, grid_thw=sizes).pooler_output

    def inputs(
        self, embeds: torch.Tensor, features: torch.Tensor, places: torch.Tensor
    ) -> dict[str, Any]:
        """Return what the language model is given in place of token ids.

        Args:
            embeds: (B, L, hidden) embeddings of all tokens.
            features: (T, width) as ``features`` returns them.
            places: (B, L) bool, where they go; T of them.
        """
        return {"inputs_embeds": embeds.masked_scatter(places.unsqueeze(-1), features)}
