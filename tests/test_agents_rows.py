"""Rows: positions like the model's own, padding, groups of rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from agents_models import DOT, TALL, WIDE, episode, picture, shared, show, training_rows
from hypothesis import given
from hypothesis import strategies as st

from agents.model.rows import collate, make_row, micro_batches, mrope_positions

SIZE = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda s: (28 * s[0], 28 * s[1]))


def content_of(pieces):
    """Return chat content of texts (lengths) and images (sizes) in order."""
    rng = np.random.default_rng(0)
    return [
        {"type": "text", "text": " a" * piece}
        if isinstance(piece, int)
        else {"type": "image", "image": picture(rng, piece)}
        for piece in pieces
    ]


@given(st.lists(st.one_of(st.integers(1, 5), SIZE, st.just(DOT)), max_size=8))
def test_positions_are_those_of_the_model(pieces):
    policy = shared()
    row = policy.row([policy.codec.system("b"), policy.codec.user(content_of(pieces))])
    ids = torch.from_numpy(row.ids)[None]
    grids = [[1, frame.shape[0] // 14, frame.shape[1] // 14] for frame in row.frames]
    theirs, _ = policy.base.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == policy.codec.image_token_id).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    assert np.array_equal(theirs[:, 0].numpy(), row.positions)


def test_positions_by_hand():
    # Text, a 3 x 2 image, text: the image starts at 2, and the text after it at 2 + max(3, 2).
    ids = np.array([7, 8, 1, 1, 1, 1, 1, 1, 9, 9])
    frames = [np.zeros((*TALL, 3), np.uint8)]
    found = mrope_positions(ids, frames, shared().codec.grid, 1)
    assert found.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 3, 3, 4, 4, 5, 6],
        [0, 1, 2, 3, 2, 3, 2, 3, 5, 6],
    ]


def test_a_placeholder_too_many_is_refused():
    with pytest.raises(ValueError, match=r"2 image placeholders for 1 frames of 1 tokens; was a"):
        mrope_positions(np.array([1, 5, 1]), [np.zeros((28, 28, 3))], shared().codec.grid, 1)


def test_a_row_says_which_tokens_were_sampled():
    policy = shared()
    made = episode(policy.codec, 0)
    (blocks,) = made.rows(policy.codec, None)
    row = make_row(blocks, policy.codec.grid, policy.codec.image_token_id)
    replies = [turn.reply.ids for turn in made.turns]
    assert row.ids[row.sampled].tolist() == np.concatenate(replies).tolist()
    assert [frame.shape[:2] for frame in row.frames] == [DOT, DOT, WIDE, TALL, DOT]


@pytest.mark.parametrize("left", [False, True])
def test_padding_keeps_the_rows_and_masks_the_rest(left):
    rows = training_rows(shared())
    batch = collate(rows, 5, left=left)
    longest = max(len(row.ids) for row in rows)
    assert batch.ids.shape == (4, longest) and batch.positions.shape == (3, 4, longest)
    for i, row in enumerate(rows):
        n = len(row.ids)
        inside = np.zeros(longest, bool)
        inside[longest - n :] = left
        inside[:n] |= not left
        assert batch.ids[i].numpy()[inside].tolist() == row.ids.tolist()
        assert batch.positions[:, i].numpy()[:, inside].tolist() == row.positions.tolist()
        assert batch.sampled[i].numpy()[inside].tolist() == row.sampled.tolist()
        assert batch.attention[i].tolist() == inside.astype(int).tolist()
        assert (batch.ids[i].numpy()[~inside] == 5).all()
        assert not batch.sampled[i].numpy()[~inside].any()
    assert [id(frame) for frame in batch.frames] == [id(f) for row in rows for f in row.frames]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_micro_batches_hold_every_row_once_within_the_limit(lengths, limit):
    groups = micro_batches(lengths, limit)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert longest * len(group) <= limit or len(group) == 1
    # No two neighbours would have fitted into one group: nothing is split without need.
    for one, other in pairwise(groups):
        assert max(lengths[i] for i in one) * (len(one) + 1) > limit
        assert min(lengths[i] for i in one) >= max(lengths[i] for i in other)


def test_equal_rows_keep_their_order():
    assert micro_batches([4, 4, 4], 8) == [[0, 1], [2]]


def test_text_alone_counts_on():
    policy = shared()
    row = policy.row([policy.codec.user(show("a"))])
    assert (row.positions == np.arange(len(row.ids))).all()
