"""Vision features: the processor's patches, the model's features, what is remembered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agents_models import DOT, TALL, WIDE, load, model_dir, picture, shared
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents.model.vision import FrameEncoder, digest, patchify


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def processor():
    return Qwen2VLImageProcessorPil.from_pretrained(model_dir(), do_resize=False)


def encoder(**options):
    """Return an encoder of its own over the shared tower."""
    used = shared().encoder
    return FrameEncoder(used.visual, used.grid, used.mean, used.std, **options)


def same(found, expected):
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("size", [DOT, WIDE, TALL, (56, 112)])
def test_patches_are_those_of_the_image_processor(rng, processor, size):
    used = shared().encoder
    frames = [picture(rng, size) for _ in range(2)]
    theirs = processor(images=frames, return_tensors="pt")["pixel_values"]
    ours = patchify(np.stack(frames), used.grid, used.mean, used.std)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_features_are_those_of_the_model(rng, processor):
    frames = [picture(rng, size) for size in (WIDE, DOT, TALL, DOT, WIDE)]
    images = processor(images=frames, return_tensors="pt")
    with torch.no_grad():
        theirs = shared().base.model.get_image_features(**images).pooler_output
    ours = encoder()(frames)
    assert [tuple(each.shape) for each in ours] == [(n, 64) for n in (2, 1, 6, 1, 2)]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_features_differ_between_images_as_much_as_words_do(rng):
    # Otherwise the tests of mixed-up images could not fail.
    one, other = encoder()([picture(rng), picture(rng)])
    assert (one - other).std() > 0.3


# --- memory: T28 ----------------------------------------------------------------------------------


def test_remembered_features_are_those_computed_again(rng):
    frames = [picture(rng, size) for size in (DOT, WIDE, DOT, TALL)]
    cached, never = encoder(), encoder(cached=False)
    first, second = cached(frames), cached(frames)
    assert (cached.hits, cached.misses) == (4, 4)
    assert same(first, second) and same(first, never(frames))
    assert never.hits == 0 and never.nbytes == 0
    # One by one the tower rounds in the same way.
    assert all(
        torch.allclose(never([f])[0], e, atol=1e-5) for f, e in zip(frames, first, strict=True)
    )


def test_a_frame_whose_pixels_changed_is_not_recognised(rng):
    frame = picture(rng)
    cached = encoder()
    (before,) = cached([frame])
    frame[0, 0, 0] ^= 255  # in place: the same array, other pixels
    (after,) = cached([frame])
    assert cached.misses == 2
    assert not torch.equal(before, after)
    assert torch.equal(after, encoder(cached=False)([frame])[0])


def test_the_same_bytes_in_another_shape_are_another_image(rng):
    frame = picture(rng, WIDE)
    turned = frame.reshape(56, 28, 3)
    assert digest(frame) == digest(turned)
    cached = encoder()
    wide, tall = cached([frame, turned])
    assert cached.misses == 2
    assert not torch.allclose(wide, tall, atol=0.1)


def test_views_are_digested_as_what_they_show(rng):
    frame = picture(rng, (28, 112))
    view = frame[:, ::2]
    assert not view.flags.c_contiguous
    assert digest(view) == digest(np.ascontiguousarray(view)) != digest(frame)


@pytest.mark.parametrize("cached", [True, False])
def test_equal_frames_go_through_the_tower_once(rng, cached):
    frame, other = picture(rng), picture(rng)
    used = encoder(cached=cached)
    found = used([frame, other, frame.copy(), frame])
    assert (used.hits, used.misses) == (2, 2)
    assert torch.equal(found[0], found[2]) and torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1])


def test_memory_is_bounded_and_forgets_what_was_not_used_for_longest(rng):
    a, b, c = (picture(rng) for _ in range(3))
    one = 64 * 4  # a token of 64 floats
    cached = encoder(capacity_mb=2 * one / 1e6)
    cached([a, b])
    assert cached.nbytes == 2 * one
    cached([a])  # b is now the one not used for longest
    cached([c])
    assert cached.nbytes == 2 * one
    hits = cached.hits
    cached([a, c])
    assert cached.hits == hits + 2
    misses = cached.misses
    cached([b])
    assert cached.misses == misses + 1
    cached.clear()
    assert cached.nbytes == 0
    cached([b])
    assert cached.misses == misses + 2


def test_one_image_may_be_larger_than_the_memory(rng):
    cached = encoder(capacity_mb=0)
    frame = picture(rng, TALL)
    assert same(cached([frame, frame]), encoder(cached=False)([frame, frame]))
    assert cached.nbytes == 0


def test_what_is_kept_does_not_hold_the_whole_batch(rng):
    cached = encoder()
    for features in cached([picture(rng) for _ in range(5)]):
        assert features.untyped_storage().nbytes() == features.numel() * 4


def test_batches_of_the_tower_change_nothing(rng):
    frames = [picture(rng, size) for size in (DOT, WIDE, DOT, DOT, WIDE, DOT)]
    for one, other in zip(encoder(batch_frames=2)(frames), encoder()(frames), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="capacity_mb=-1 and batch_frames=256 must be positive"):
        encoder(capacity_mb=-1)
    with pytest.raises(ValueError, match=r"30x28 pixels do not fit .* use frame_size=\[28, 28\]"):
        encoder()([np.zeros((30, 28, 3), np.uint8)])


# --- gradients ------------------------------------------------------------------------------------


def test_a_frozen_tower_gets_no_gradient(rng):
    policy = load()
    assert not any(parameter.requires_grad for parameter in policy.encoder.visual.parameters())
    assert not policy.encoder([picture(rng)])[0].requires_grad
    names = {name for name, p in policy.base.named_parameters() if p.requires_grad}
    assert names and not any("visual" in name for name in names)


def test_gradients_reach_a_tower_that_is_trained(rng):
    policy = load(train_vision=True)
    frame = picture(rng)
    found = policy.encoder([frame, frame])
    assert policy.encoder.misses == 1 and policy.encoder.nbytes == 0
    sum((k + 1) * features.square().sum() for k, features in enumerate(found)).backward()
    twice = [p.grad.clone() for p in policy.encoder.visual.parameters()]
    assert all(grad is not None for grad in twice)
    policy.encoder.visual.zero_grad()
    (3 * policy.encoder([frame])[0].square().sum()).backward()
    for both, p in zip(twice, policy.encoder.visual.parameters(), strict=True):
        torch.testing.assert_close(both, p.grad, rtol=1e-3, atol=1e-3)
