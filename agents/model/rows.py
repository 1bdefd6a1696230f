"""Rows: dialogues laid out for a forward pass, with the positions that M-RoPE needs.

Positions are always computed here and passed on explicitly. Without them transformers 5 silently
gives Qwen2.5-VL one-dimensional positions, or those of whatever was generated before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from agents.model.chat import Block, ImageGrid


class Row(NamedTuple):
    """One sequence.

    Attributes:
        ids: (n,) int64.
        sampled: (n,) bool, whether the policy said the token.
        positions: (3, n) int64 M-RoPE positions (time, height, width).
        frames: Images in the order of their placeholders.
    """

    ids: np.ndarray
    sampled: np.ndarray
    positions: np.ndarray
    frames: tuple[np.ndarray, ...]


def mrope_positions(
    ids: np.ndarray, frames: Sequence[np.ndarray], grid: ImageGrid, image_token_id: int
) -> np.ndarray:
    """Return (3, n) int64 positions, counted from 0, of ids that hold the placeholders of frames.

    Text counts on by one; the tokens of an image share one time, spread over rows and columns, and
    what follows starts past its longer side (as ``Qwen2_5_VLModel.get_rope_index``).
    """
    sizes = [grid.tokens(*frame.shape[:2]) for frame in frames]
    pads = np.flatnonzero(ids == image_token_id)
    if len(pads) != sum(rows * columns for rows, columns in sizes):
        raise ValueError(
            f"{len(pads)} image placeholders for {len(frames)} frames of "
            f"{sum(rows * columns for rows, columns in sizes)} tokens; was a placeholder sampled?"
        )
    if all(size == (1, 1) for size in sizes):
        return np.broadcast_to(np.arange(len(ids)), (3, len(ids)))
    positions = np.empty((3, len(ids)), np.int64)
    done = nextp = used = 0
    for rows, columns in sizes:
        first = int(pads[used])
        positions[:, done:first] = nextp + np.arange(first - done)
        nextp += first - done
        done, used = first + rows * columns, used + rows * columns
        positions[0, first:done] = nextp
        positions[1, first:done] = nextp + np.repeat(np.arange(rows), columns)
        positions[2, first:done] = nextp + np.tile(np.arange(columns), rows)
        nextp += max(rows, columns)
    positions[:, done:] = nextp + np.arange(len(ids) - done)
    return positions


def make_row(blocks: Iterable[Block], grid: ImageGrid, image_token_id: int) -> Row:
    """Lay out the blocks of a dialogue one after another."""
    kept = list(blocks)
    ids = np.concatenate([block.ids for block in kept])
    sampled = np.concatenate([np.full(len(block.ids), block.sampled) for block in kept])
    frames = tuple(frame for block in kept for frame in block.frames)
    return Row(ids, sampled, mrope_positions(ids, frames, grid, image_token_id), frames)


class Batch(NamedTuple):
    """Rows padded to one length, or packed: end to end in one line, B = 1.

    Attributes:
        ids: (B, L) int64.
        attention: (B, L) int64, 0 for padding.
        positions: (3, B, L) int64.
        sampled: (B, L) bool.
        frames: Images of all rows, in row order.
        lengths: Of packed rows; () of padded ones.
    """

    ids: torch.Tensor
    attention: torch.Tensor
    positions: torch.Tensor
    sampled: torch.Tensor
    frames: list[np.ndarray]
    lengths: tuple[int, ...] = ()


def collate(
    rows: Sequence[Row], pad_id: int, *, left: bool = False, device: torch.device | None = None
) -> Batch:
    """Pad rows to the longest one.

    Args:
        rows: At least one.
        pad_id: Id of the padding, which is masked anyway.
        left: Pad on the left, as generation needs it.
        device: Where the tensors live.
    """
    length = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), length), pad_id)
    attention = np.zeros((len(rows), length), np.int64)
    positions = np.zeros((3, len(rows), length), np.int64)
    sampled = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        n = len(row.ids)
        place = slice(length - n, length) if left else slice(0, n)
        ids[i, place], attention[i, place], sampled[i, place] = row.ids, 1, row.sampled
        positions[:, i, place] = row.positions
    return Batch(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(attention).to(device),
        torch.from_numpy(positions).to(device),
        torch.from_numpy(sampled).to(device),
        [frame for row in rows for frame in row.frames],
    )


def pack(rows: Sequence[Row], *, device: torch.device | None = None) -> Batch:
    """Lay rows end to end, without padding; positions begin anew with each.

    Args:
        rows: At least one.
        device: Where the tensors live.
    """
    ids = torch.from_numpy(np.concatenate([row.ids for row in rows])).to(device)
    positions = torch.from_numpy(np.concatenate([row.positions for row in rows], axis=1)).to(device)
    sampled = torch.from_numpy(np.concatenate([row.sampled for row in rows])).to(device)
    return Batch(
        ids[None],
        torch.ones_like(ids)[None],
        positions[:, None],
        sampled[None],
        [frame for row in rows for frame in row.frames],
        tuple(len(row.ids) for row in rows),
    )


def packs(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group indices so that groups hold at most ``max_tokens``, each where it first fits.

    A row longer than ``max_tokens`` makes a group of its own.

    >>> packs([5, 3, 9, 4], 12)
    [[2, 1], [0, 3]]
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = (g for g, left in enumerate(room) if left >= lengths[index])
        if (g := next(fitting, None)) is None:
            groups.append([index])
            room.append(max_tokens - lengths[index])
        else:
            groups[g].append(index)
            room[g] -= lengths[index]
    return groups


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group indices so that padded groups hold at most ``max_tokens``, long with long.

    A row longer than ``max_tokens`` makes a group of its own.

    >>> micro_batches([5, 3, 9, 4], 10)
    [[2], [0, 3], [1]]
    """
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and longest * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
            longest = lengths[index]
    return groups
