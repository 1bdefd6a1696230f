"""Architectures of models that people publish, by hub id, so that they are planned offline.

The numbers are those of each model's ``config.json`` on the hub; the tests compare the weights that
they come to with the published counts. A model that is not here is planned from its own
``config.json``, in a directory or in the hub's cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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

    def values(self) -> dict[str, Any]:
        """Return what makes a ``Qwen2_5_VLConfig``, its special ids left out."""
        return {
            "text_config": {
                "vocab_size": self.vocabulary,
                "hidden_size": self.hidden,
                "intermediate_size": self.intermediate,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "max_position_embeddings": 128000,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": self.tied,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e6,
                    "mrope_section": list(self.mrope),
                },
            },
            "vision_config": {
                "depth": self.depth,
                "hidden_size": self.vision_hidden,
                "intermediate_size": self.vision_intermediate,
                "num_heads": self.vision_heads,
                "out_hidden_size": self.hidden,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": list(self.whole),
            },
            "tie_word_embeddings": self.tied,
        }


QWEN2_5_VL = {
    "3b": Size(2048, 36, 16, 2, 11008, 151936, True),
    "7b": Size(3584, 28, 28, 4, 18944, 152064, False),
}


def _qwen3_vl(
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int,
    *,
    tied: bool,
    tower: tuple[int, int, int],
    taps: tuple[int, int, int],
) -> dict[str, Any]:
    """Return what makes a ``Qwen3VLConfig``; ``tower`` is depth, width, width inside the MLPs."""
    depth, width, inner = tower
    return {
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "depth": depth,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": list(taps),
        },
        "tie_word_embeddings": tied,
    }


_SMALL, _LARGE = (24, 1024, 4096), (27, 1152, 4304)
_QWEN3_VL = {
    "2B": _qwen3_vl(2048, 28, 16, 6144, tied=True, tower=_SMALL, taps=(5, 11, 17)),
    "4B": _qwen3_vl(2560, 36, 32, 9728, tied=True, tower=_SMALL, taps=(5, 11, 17)),
    "8B": _qwen3_vl(4096, 36, 32, 12288, tied=False, tower=_LARGE, taps=(8, 16, 24)),
}
# Hub id -> model_type and what makes its configuration.
PUBLISHED: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{
        f"Qwen/Qwen2.5-VL-{name.upper()}-Instruct": ("qwen2_5_vl", size.values())
        for name, size in QWEN2_5_VL.items()
    },
    **{
        f"Qwen/Qwen3-VL-{name}-{kind}": ("qwen3_vl", values)
        for name, values in _QWEN3_VL.items()
        for kind in ("Instruct", "Thinking")
    },
}
