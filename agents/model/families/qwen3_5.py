"""Qwen3.5: most of its layers keep a state of the dialogue so far (gated delta nets).

Such a state cannot be masked afterwards, as keys and values can: whatever is fed has changed it.
``agents.model.memory`` keeps padding, and what is fed after the end of a reply, away from it. For
the same reason its rows are padded, not packed: transformers 5.23 hands lengths of rows to kernels
for GPUs, and its own code takes no notice of them.
"""

from __future__ import annotations

from agents.model.families.family import Family

QWEN3_5 = Family(
    "qwen3_5",
    linear=(*Family("").linear, "in_proj_qkv", "in_proj_z", "out_proj"),
    layers=("full_attention", "linear_attention"),
    packs=False,
)
