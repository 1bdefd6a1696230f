"""Families of models: what one needs that another does not, behind one seam.

All take images as features in place of placeholder tokens, positions of three parts (M-RoPE), and a
chat template of the ChatML kind. In reading order:

    family.py    Family: the seam, and what all share
    qwen2_vl.py  Qwen2-VL and Qwen2.5-VL: nothing more
    qwen3_vl.py  Qwen3-VL: features for several layers (DeepStack)
    qwen3_5.py   Qwen3.5: layers that remember a dialogue in a state, not token by token

To add one, write a ``Family`` for its ``model_type`` here. ``fidelity.check_fidelity`` compares it
with the model's own forward pass whenever a model is loaded, and refuses it where they differ.
"""

from __future__ import annotations

from typing import Any

from agents.model.families.family import Family
from agents.model.families.qwen2_vl import QWEN2_5_VL, QWEN2_VL
from agents.model.families.qwen3_5 import QWEN3_5
from agents.model.families.qwen3_vl import QWEN3_VL

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_5)
}

# What a model of any family must have -> what it is for.
_CONFIGURED = {
    "vision_config": "takes no images",
    "image_token_id": "has no image_token_id, the placeholder of an image",
    "vision_start_token_id": "has no vision_start_token_id, which opens an image",
    "vision_end_token_id": "has no vision_end_token_id, which closes an image",
}
_TOWER = {
    "patch_size": "its vision tower says no patch_size",
    "spatial_merge_size": "its vision tower says no spatial_merge_size",
    "temporal_patch_size": "its vision tower says no temporal_patch_size",
}


def family_of(config: Any, path: str = "") -> Family:
    """Return the family of a model.

    Args:
        config: The model's configuration.
        path: Directory or hub id, for messages.

    Raises:
        ValueError: If it is of none, naming what it lacks, and those there are.
    """
    family = FAMILIES.get(config.model_type)
    if family is not None:
        return family
    lacks = [why for name, why in _CONFIGURED.items() if getattr(config, name, None) is None]
    tower = getattr(config, "vision_config", None)
    if tower is not None:
        lacks += [why for name, why in _TOWER.items() if getattr(tower, name, None) is None]
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if "mrope_section" not in rope:
        lacks.append("its positions are not those of M-RoPE")
    raise ValueError(
        f"model {path!r} is of the kind {config.model_type!r}, and no family here: "
        f"{'; '.join(lacks) or 'nobody has compared it with its own forward pass yet'}; use one of "
        f"{list(FAMILIES)}, or write its family (agents/model/families)"
    )
