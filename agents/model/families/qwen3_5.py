"""Qwen3.5: most of its layers keep a state of the dialogue so far (gated delta nets).

Such a state cannot be masked afterwards, as keys and values can: whatever is fed has changed it.
``agents.model.memory`` keeps padding, and what is fed after the end of a reply, away from it.
"""

from __future__ import annotations

from agents.model.families.family import Family

QWEN3_5 = Family(
    "qwen3_5",
    linear=(*Family("").linear, "in_proj_qkv", "in_proj_z", "out_proj"),
    layers=("full_attention", "linear_attention"),
)
