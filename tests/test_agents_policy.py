"""Policy: scores are the model's own, and wrong plumbing is noticed.

Oracles T21, T23, T25, T26, T29 and T32 of the specification.
"""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from agents_families import family_dir
from agents_models import (
    DOT,
    TALL,
    WIDE,
    adapted,
    episode,
    load,
    model_logits,
    perturb,
    several,
    shared,
    training_rows,
    without,
)

from agents.model import tiny
from agents.model.families import FAMILIES
from agents.model.families.family import Family
from agents.model.policy import ACTOR, CRITIC, LoRA, MLLMPolicy, spread
from agents.model.rows import collate
from agents.model.sampling import Sampling, greedy

T = 0.7


@pytest.fixture(scope="module")
def rows():
    return training_rows(shared())


@torch.no_grad()
def score(rows, policy=None, temperature=T):
    return (policy or shared()).score(rows, temperature=temperature, with_hidden=True)


def expected(policy, row, temperature=T):
    """Return log-probabilities of the response tokens from the model's own forward pass."""
    logits = without(policy.codec.suppressed, model_logits(policy, row)) / temperature
    places = np.flatnonzero(row.sampled)
    ids = torch.from_numpy(row.ids[places])
    return logits[places - 1].log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def moved(found, policy=None, rows=None):
    """Return by how much log-probabilities differ from the right ones, at most."""
    right = score(rows, policy)
    return (found.log_probs - right.log_probs).abs().max().item()


# --- scores: T21, T23 -----------------------------------------------------------------------------


def test_predictions_are_peaked(rows):
    # Otherwise wrong positions and images would go unnoticed.
    sharp = [model_logits(shared(), row).softmax(-1).max(-1).values for row in rows]
    assert torch.cat(sharp).median() > 0.3


def test_log_probs_are_those_of_the_model(rows):
    scores = score(rows)
    assert scores.mask.sum(1).tolist() == [12, 6, 9, 4]
    for i, row in enumerate(rows):
        found = scores.log_probs[i][scores.mask[i]]
        torch.testing.assert_close(found, expected(shared(), row), atol=1e-4, rtol=0)
    assert (scores.log_probs[~scores.mask] == 0).all()


def test_entropies_are_those_of_the_distribution_that_is_sampled(rows):
    scores = score(rows[:1])
    logits = without(shared().codec.suppressed, model_logits(shared(), rows[0])) / T
    log_probs = logits[np.flatnonzero(rows[0].sampled) - 1].log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs.nan_to_num(neginf=0.0)).sum(-1)
    torch.testing.assert_close(scores.entropy[0], entropy, atol=1e-4, rtol=1e-4)
    skipped = shared().score(rows[:1], with_entropy=False)
    assert (skipped.entropy == 0).all()


def test_log_probs_leave_out_suppressed_ids(rows):
    policy = shared()
    with torch.no_grad():
        states, _, _ = policy.states(rows)
    logits = policy.logits(states, T)
    assert torch.isneginf(logits[:, torch.from_numpy(policy.codec.suppressed)]).all()
    torch.testing.assert_close(logits.softmax(-1).sum(-1), torch.ones(len(logits)))
    # They are likely enough to matter.
    free = policy.head(states).float() / T
    assert (free.logsumexp(-1) - logits.logsumexp(-1)).max() > 0.05


@pytest.mark.parametrize("pad", [0, 5])
def test_padding_changes_nothing(rows, pad, monkeypatch):
    """T23: alone, right padded and left padded rows have the same scores."""
    together = score(rows)
    monkeypatch.setattr("agents.model.policy.collate", lambda r, _, **kw: collate(r, pad, **kw))
    alone = [score([row]).log_probs[0] for row in rows]
    monkeypatch.setattr(
        "agents.model.policy.collate", lambda r, _, **kw: collate(r, pad, left=True, **kw)
    )
    left = score(rows)
    assert torch.equal(left.mask, together.mask)
    torch.testing.assert_close(left.log_probs, together.log_probs, atol=1e-4, rtol=0)
    for one, all_, mask in zip(alone, together.log_probs, together.mask, strict=True):
        torch.testing.assert_close(one, all_[mask], atol=1e-4, rtol=0)


def test_two_passes_over_the_same_rows_are_bitwise_equal(rows):
    """T25: the first ratio is exactly 1."""
    assert torch.equal(score(rows).log_probs, score(rows).log_probs)
    with_gradient = shared().score(rows, temperature=T)
    assert torch.equal(with_gradient.log_probs.detach(), score(rows).log_probs)
    swapped = score(rows[::-1]).log_probs.flip(0)
    torch.testing.assert_close(swapped, score(rows).log_probs, atol=1e-4, rtol=0)


def test_the_states_are_those_before_each_token(rows):
    scores = score(rows)
    logits = shared().logits(scores.hidden[0], T)
    ids = torch.from_numpy(rows[0].ids[rows[0].sampled])
    again = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(again, scores.log_probs[0], atol=1e-5, rtol=0)


def test_spread_puts_values_where_the_mask_is():
    mask = torch.tensor([[True, False], [True, True]])
    assert spread(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[1.0, 0.0], [2.0, 3.0]]
    pairs = spread(torch.tensor([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]), mask)
    assert pairs.tolist() == [[[1.0, 4.0], [0.0, 0.0]], [[2.0, 5.0], [3.0, 6.0]]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_kernels_agree(rows, attention):
    found = score(rows, load(attention=attention))
    assert moved(found, rows=rows) < 1e-4


# --- sensitivity: T26 -----------------------------------------------------------------------------


def test_positions_in_one_dimension_would_be_noticed(rows):
    flat = [row._replace(positions=np.broadcast_to(np.arange(len(row.ids)), (3, len(row.ids))))
            for row in rows]  # fmt: skip
    assert moved(score(flat), rows=rows) > 0.1


def test_positions_that_do_not_jump_past_an_image_would_be_noticed(rows):
    late = []
    for row in rows:
        positions = row.positions.copy()
        images = np.flatnonzero(row.ids == shared().codec.image_token_id)
        positions[:, images[-1] + 1 :] += 2
        late.append(row._replace(positions=positions))
    assert moved(score(late), rows=rows) > 0.1


def test_a_shift_by_one_would_be_noticed(rows):
    early = [row._replace(sampled=np.roll(row.sampled, -1)) for row in rows]
    assert moved(score(early), rows=rows) > 0.1
    right = score(rows[:1])
    logits = shared().logits(right.hidden[0].roll(1, 0), T)  # the state before the one before
    ids = torch.from_numpy(rows[0].ids[rows[0].sampled])
    late = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    assert (late - right.log_probs[0]).abs().max() > 0.1


def test_images_of_another_row_would_be_noticed():
    policy = shared()
    made = [episode(policy.codec, seed, shown=((DOT, WIDE),), lengths=(5,)) for seed in (4, 5)]
    one, other = (policy.row(next(e.rows(policy.codec, None))) for e in made)
    mixed = [one._replace(frames=other.frames), other._replace(frames=one.frames)]
    assert moved(score(mixed), rows=[one, other]) > 0.1


def test_images_in_another_order_would_be_noticed():
    policy = shared()
    made = episode(policy.codec, 6, shown=((DOT, DOT),), lengths=(5,))
    row = policy.row(next(made.rows(policy.codec, None)))
    assert moved(score([row._replace(frames=row.frames[::-1])]), rows=[row]) > 0.1


def test_another_temperature_would_be_noticed(rows):
    assert moved(score(rows, temperature=1.0), rows=rows) > 0.1


def test_a_softmax_over_suppressed_ids_would_be_noticed(rows):
    policy = load()
    policy._suppressed = policy._suppressed[:0]
    assert moved(score(rows, policy), rows=rows) > 0.1


def test_missing_attention_mask_would_be_noticed(rows, monkeypatch):
    def unmasked(r, pad, **options):
        batch = collate(r, pad, left=True, **options)
        return batch._replace(attention=torch.ones_like(batch.attention))

    right = score(rows)
    monkeypatch.setattr("agents.model.policy.collate", unmasked)
    assert (score(rows).log_probs - right.log_probs).abs().max() > 0.1


# --- adapters and the reference: T29 --------------------------------------------------------------


def test_a_fresh_adapter_is_the_base_model_bitwise(rows):
    policy = load(lora=LoRA(rank=4, alpha=8.0))
    assert torch.equal(score(rows, policy).log_probs, score(rows).log_probs)


def test_without_adapters_a_trained_policy_is_the_base_model_bitwise(rows):
    policy = adapted()
    assert moved(score(rows, policy), rows=rows) > 0.1
    with policy.adapter(None):
        reference = score(rows, policy)
    assert torch.equal(reference.log_probs, score(rows).log_probs)
    assert moved(score(rows, policy), rows=rows) > 0.1


def test_adapters_do_not_mix(rows):
    policy = adapted()
    acting = score(rows, policy)
    critic = policy.add_adapter(CRITIC)
    assert torch.equal(score(rows, policy).log_probs, acting.log_probs)
    perturb(critic, 0.1)
    assert torch.equal(score(rows, policy).log_probs, acting.log_probs)
    with policy.adapter(CRITIC):
        other = score(rows, policy)
        with policy.adapter(CRITIC):
            pass
        again = score(rows, policy)  # leaving an inner use does not end the outer one
    assert (other.log_probs - acting.log_probs).abs().max() > 0.1
    assert torch.equal(again.log_probs, other.log_probs)
    assert torch.equal(score(rows, policy).log_probs, acting.log_probs)


def test_an_adapter_is_left_even_if_something_breaks(rows):
    policy = adapted()
    policy.add_adapter(CRITIC)
    for name in (CRITIC, None):
        with pytest.raises(KeyError), policy.adapter(name):
            raise KeyError
        assert policy.peft.active_adapter == ACTOR
    assert moved(score(rows, policy), rows=rows) > 0.1


def test_adapters_lie_on_every_linear_layer_of_the_language_model_alone():
    policy = load(lora=LoRA(rank=4))
    names = [name for name, p in policy.base.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 7 * 2  # A and B of seven layers in two blocks
    assert all(".language_model." in name for name in names)
    assert {id(p) for p in policy.actor_parameters()} == {
        id(p) for p in policy.base.parameters() if p.requires_grad
    }


def test_a_policy_without_adapters_trains_everything_but_the_tower():
    policy = load()
    count = sum(p.numel() for p in policy.actor_parameters())
    visual = sum(p.numel() for p in policy.encoder.visual.parameters())
    assert count == sum(p.numel() for p in policy.base.parameters()) - visual
    everything = load(train_vision=True)
    assert sum(p.numel() for p in everything.actor_parameters()) == count + visual


def test_a_copy_of_the_weights_stands_in_for_them(rows):
    policy = load()
    before = score(rows, policy)
    kept = copy.deepcopy(policy.weights())
    perturb(policy.actor_parameters(), 0.05)
    assert (score(rows, policy).log_probs - before.log_probs).abs().max() > 0.1
    with policy.using(kept):
        assert torch.equal(score(rows, policy).log_probs, before.log_probs)
    assert (score(rows, policy).log_probs - before.log_probs).abs().max() > 0.1


# --- gradient checkpointing: T32 ------------------------------------------------------------------


def gradients(policy, rows):
    scores = policy.score(rows, temperature=T)
    loss = scores.log_probs.sum() + scores.entropy.sum()
    loss.backward()
    grads = [p.grad.clone() for p in policy.actor_parameters() if p.grad is not None]
    return loss.item(), grads


@pytest.mark.parametrize("make", [adapted, load], ids=["lora", "full"])
def test_checkpointing_changes_neither_loss_nor_gradients(rows, make):
    loss, grads = gradients(make(), rows)
    policy = make(checkpointing=True)
    calls = []
    for layer in policy.language.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    again, checkpointed = gradients(policy, rows)
    # Every layer ran twice: the activations were really computed again.
    assert len(calls) == 2 * len(policy.language.layers)
    assert again == loss
    assert len(grads) == len(checkpointed) and max(g.abs().max() for g in grads) > 0
    for one, other in zip(grads, checkpointed, strict=True):
        assert torch.equal(one, other)


def test_checkpointing_leaves_no_layer_in_training_mode(rows):
    policy = adapted(checkpointing=True)
    policy.score(rows[:1])
    assert not any(module.training for module in policy.base.modules())


def chunked(monkeypatch, chunk):
    monkeypatch.setattr("agents.model.policy.CHUNK_ABOVE", 0)
    monkeypatch.setattr("agents.model.policy.CHUNK", chunk)


@pytest.mark.parametrize("chunk", [1, 7, 31, 1024])
def test_log_probs_in_chunks_are_those_at_once(rows, monkeypatch, chunk):
    whole = score(rows)
    chunked(monkeypatch, chunk)
    parts = score(rows)
    torch.testing.assert_close(parts.log_probs, whole.log_probs, atol=1e-4, rtol=0)
    torch.testing.assert_close(parts.entropy, whole.entropy, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [load, adapted], ids=["full", "lora"])
def test_gradients_in_chunks_are_those_at_once(rows, monkeypatch, make):
    loss, whole = gradients(make(), rows)
    policy, heads = make(), []
    policy.head.register_forward_pre_hook(lambda _, args: heads.append(len(args[0])))
    chunked(monkeypatch, 7)
    again, parts = gradients(policy, rows)
    assert again == pytest.approx(loss, rel=1e-5)
    largest = max(float(grad.abs().max()) for grad in whole)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * largest, rtol=0)
    # 31 response tokens; each chunk is computed again for its gradient.
    assert sorted(heads) == sorted([7, 7, 7, 7, 3] * 2)


def test_few_logits_are_computed_at_once(rows, monkeypatch):
    calls = []
    once = MLLMPolicy._log_probs_at_once
    monkeypatch.setattr(
        MLLMPolicy,
        "_log_probs_at_once",
        lambda self, states, *rest: calls.append(len(states)) or once(self, states, *rest),
    )
    score(rows)
    assert calls == [31]


def test_states_are_given_only_when_wanted(rows):
    assert shared().score(rows).hidden is None


# --- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_bfloat16_scores_roughly_alike_in_single_precision(rows, lora):
    found = score(rows, load(dtype=torch.bfloat16, lora=lora))
    assert found.log_probs.dtype == found.entropy.dtype == torch.float32
    assert found.hidden.dtype == torch.bfloat16
    error = (found.log_probs - score(rows).log_probs)[found.mask].abs()
    assert 0 < error.mean() < 0.5


def test_loading_with_adapters_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(lora=LoRA(rank=2), checkpointing=True)


def test_a_model_with_other_positions_is_refused(monkeypatch):
    policy = load()
    index = policy.base.model.get_rope_index
    monkeypatch.setattr(
        policy.base.model, "get_rope_index", lambda *a, **k: (index(*a, **k)[0] + 1, None)
    )
    with pytest.raises(ValueError, match=r"places images otherwise than this policy does"):
        MLLMPolicy(policy.base, policy.codec, mean=(0, 0, 0), std=(1, 1, 1))


def test_nonsense_is_refused(rows):
    policy = load()
    with pytest.raises(ValueError, match="train_vision=True trains all of the tower"):
        load(lora=LoRA(rank=2), train_vision=True)
    with pytest.raises(RuntimeError, match="there are no adapters; pass lora= to the policy"):
        with policy.adapter(CRITIC):
            pass
    with pytest.raises(ValueError, match="adapter 'critic' needs lora=; pass it to the policy"):
        policy.add_adapter(CRITIC)
    with pytest.raises(ValueError, match=r"lora_rank=0 must be a whole number, 1 or more"):
        LoRA(rank=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature=0 must be above 0; use greedy=True"),
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p=1.1 must lie in \(0, 1\]"),
        ({"top_k": -1}, "top_k=-1 must be 0 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 1 or more"),
    ],
)
def test_sampling_that_means_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_greedy_keeps_the_limits():
    assert greedy(Sampling(temperature=0.7, max_new_tokens=9)) == Sampling(
        temperature=0.7, max_new_tokens=9, greedy=True
    )


def test_several_dialogues_differ_in_what_matters():
    made = several(shared().codec)
    sizes = {f.shape[:2] for e in made for turn in e.turns for f in turn.user.frames}
    assert sizes == {DOT, WIDE, TALL}
    assert {len(e.turns) for e in made} == {1, 2, 3}
    assert {turn.reply.truncated for e in made for turn in e.turns} == {True, False}


# --- models that are not what we know -------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("qwen3_vl", r"Qwen3VLFor\w+ is not run here as it runs itself: .* differ by 0\.\d+"),
        ("qwen3_5", r"Qwen3_5For\w+ has layers of the kinds \['linear_attention'\]"),
    ],
)
def test_a_model_that_its_family_does_not_fit_is_refused(kind, message, monkeypatch):
    monkeypatch.setitem(FAMILIES, kind, Family(kind))
    with pytest.raises(ValueError, match=message):
        MLLMPolicy.from_pretrained(family_dir(kind), device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_we_know_passes_in_its_own_precision(dtype):
    policy = MLLMPolicy.from_pretrained(tiny.WEIGHTS, device="cpu", dtype=dtype)
    assert (policy.encoder.hits, policy.encoder.misses, policy.encoder.nbytes) == (0, 0, 0)


def test_features_that_go_elsewhere_are_noticed(monkeypatch):
    features = Family.features
    monkeypatch.setattr(Family, "features", lambda self, *args: 1.2 * features(self, *args))
    with pytest.raises(ValueError, match="is not run here as it runs itself"):
        load()
