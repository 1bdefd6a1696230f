"""Fidelity: is a model run here as it runs itself? Asked when it is loaded, and refused if not.

A model that wants more than its family gives it, or that places images otherwise, would run here
without a word, and wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from agents.model.rows import Row, collate

# How far our states may be from the model's own, as a share of their size.
STATE_GAP = {torch.float32: 1e-3, torch.bfloat16: 0.05}


def check_fidelity(policy: Any) -> None:
    """Compare an ``MLLMPolicy`` with its model on a small dialogue with two images.

    Raises:
        ValueError: If it would run the model otherwise than the model runs itself, naming the model
            and the difference.
    """
    name = type(policy.base).__name__
    _check_layers(name, policy.base.config.get_text_config(), policy.family.layers)
    unit = policy.codec.grid.patch * policy.codec.grid.merge
    dice = np.random.default_rng(0)
    frames = dice.integers(0, 256, (2, 2 * unit, 3 * unit, 3), np.uint8)
    content: list[dict[str, Any]] = []
    for text, frame in zip("ab", frames, strict=True):
        content += [{"type": "text", "text": text}, {"type": "image", "image": frame}]
    row = policy.row([policy.codec.user([*content, {"type": "text", "text": "Which of them?"}])])
    merge = policy.codec.grid.merge
    sizes = torch.tensor([[1, 2 * merge, 3 * merge]] * 2)
    _check_positions(name, policy, row, sizes)
    _check_states(name, policy, row, frames, sizes)


def _check_layers(name: str, config: Any, known: Sequence[str]) -> None:
    """Refuse layers whose memory ``DecodeSession`` could not share out among dialogues."""
    kinds = getattr(config, "layer_types", None) or ()
    if odd := sorted(set(kinds) - set(known)):
        raise ValueError(
            f"{name} has layers of the kinds {odd}: what they remember of a dialogue cannot be "
            f"taken out of a batch here; use a model whose layers are of the kinds {list(known)}"
        )


def _check_positions(name: str, policy: Any, row: Row, sizes: torch.Tensor) -> None:
    index = getattr(policy.base.model, "get_rope_index", None)
    if index is None:
        raise ValueError(f"{name} has no get_rope_index")
    ids = torch.from_numpy(row.ids)[None]
    images = (ids == policy.codec.image_token_id).int()
    theirs, _ = index(ids, mm_token_type_ids=images, image_grid_thw=sizes)
    if not np.array_equal(theirs[:, 0].numpy(), row.positions):
        raise ValueError(
            f"{name} places images otherwise than this policy does; it would get wrong positions"
        )


@torch.no_grad()
def _check_states(
    name: str, policy: Any, row: Row, frames: np.ndarray, sizes: torch.Tensor
) -> None:
    batch = collate([row], 0, device=policy.device)
    encoder = policy.encoder

    def run_ours() -> torch.Tensor:
        # Twice: of packed rows the second would be another one if it saw the first.
        return policy.run(policy.batch([row, row])).view(2, len(row.ids), -1)

    def run_theirs() -> torch.Tensor:
        return policy.base.model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            pixel_values=encoder.patches(frames),
            image_grid_thw=sizes.to(policy.device),
            mm_token_type_ids=(batch.ids == policy.codec.image_token_id).int(),
            use_cache=False,
        ).last_hidden_state

    ours, theirs = policy.root(run_ours), policy.root(run_theirs).expand(2, -1, -1)
    encoder.clear()
    encoder.hits = encoder.misses = 0
    gap = float((ours - theirs).float().norm() / theirs.float().norm())
    limit = STATE_GAP.get(ours.dtype, STATE_GAP[torch.bfloat16])
    if not gap <= limit:
        packed = ", or its packed rows see each other: try packing=False" if policy.packing else ""
        raise ValueError(
            f"{name} is not run here as it runs itself: its states of a small dialogue with images "
            f"differ by {gap:.2g} of their size, more than {limit:g}; its family "
            f"(agents/model/families) does not fit it{packed}"
        )
