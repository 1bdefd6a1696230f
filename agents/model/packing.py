"""Packing: rows end to end in one sequence, without padding, and each attends to itself alone.

Nothing in a sequence of tokens says where a row ends, and transformers 5.23 takes positions of
three parts for those of one row: what is packed would then see the rows before it. So the lengths
are given to every layer. Flash attention has kernels for that; for PyTorch's own an attention
function is registered here that takes the rows one after another, which needs no mask: neither the
memory of one nor the work on pairs of tokens that do not attend.

Layers that keep a state of the row so far are told of lengths on GPUs at most, by kernels that come
from elsewhere; what such a layer leaks on a CPU, it leaks without a word. See ``Family.packs``.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agents.model.rows import Batch

BY_ROW = "sdpa_by_row"
_FLASH = "flash_attention_2"


def attend_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: tuple[int, ...] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as "sdpa" does, row by row if their lengths are given.

    Args:
        module: The layer.
        query: (B, heads, L, width); packed, B is 1 and L the sum of lengths.
        key: (B, key heads, L, width).
        value: The same.
        attention_mask: As "sdpa" takes it; packed, none is needed.
        row_lengths: Of the rows that lie end to end, if they do.
        **options: As "sdpa" takes them.

    Returns:
        (B, L, heads, width), and None in place of attention weights.
    """
    if row_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows = zip(*(each.split(row_lengths, dim=2) for each in (query, key, value)), strict=True)
    out = [sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in rows]
    return torch.cat(out, dim=1), None


def cannot_pack(family: Any, language: Any) -> str:
    """Return why rows cannot be packed for a language model, or "" if they can.

    Args:
        family: Of the model.
        language: The language model.
    """
    if not family.packs:
        return f"layers of {family.model_type} keep a state, which would go on from row to row"
    attention = language.config._attn_implementation
    if attention not in ("sdpa", BY_ROW, _FLASH):
        return f"attention {attention!r} cannot be kept to a row; 'sdpa' can"
    return ""


def keep_to_rows(language: Any) -> None:
    """Prepare a language model for packed rows; with other ones it runs as before."""
    if language.config._attn_implementation == "sdpa":
        AttentionInterface.register(BY_ROW, attend_by_row)
        AttentionMaskInterface.register(BY_ROW, sdpa_mask)
        language.set_attn_implementation(BY_ROW)


def who_attends(batch: Batch, language: Any) -> dict[str, Any]:
    """Return what tells a language model which tokens attend to which.

    Args:
        batch: Rows, padded or packed.
        language: The language model.
    """
    if not batch.lengths:
        return {"attention_mask": batch.attention}
    if language.config._attn_implementation != _FLASH:
        return {"attention_mask": None, "row_lengths": batch.lengths}
    # Not run on a GPU yet.
    ends = torch.tensor((0, *batch.lengths), device=batch.ids.device).cumsum(0, dtype=torch.int32)
    longest = max(batch.lengths)
    return {
        "attention_mask": None,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }
