"""Packing: rows end to end are trained as padded ones are, and see nothing of each other."""

from __future__ import annotations

from dataclasses import replace
from types import MethodType

import numpy as np
import pytest
import torch
from agents_families import KINDS, family_dir, load_family, users_of
from agents_models import adapted, load, perturb, said, several, training_rows
from agents_training import metrics_of, small, trained
from hypothesis import given
from hypothesis import strategies as st
from transformers import AttentionInterface

from agents.config import make_train_config
from agents.model.chat import Block
from agents.model.decoding import DecodeSession
from agents.model.families import FAMILIES
from agents.model.packing import who_attends
from agents.model.policy import LoRA, MLLMPolicy
from agents.model.rows import pack, packs
from agents.model.sampling import Sampling
from agents.ppo import PPOLearner
from agents.ppo_config import PRESETS, PPOConfig

PACKING = tuple(kind for kind in KINDS if kind != "qwen3_5")
# Turns of dialogues by the sizes of their images, in tokens.
SHOWN = (
    (((1, 1),), ((2, 3),)),
    (((1, 2), (3, 2)),),
    ((), ((1, 1),), ((2, 2),)),
)


def rows_of_family(policy):
    """Return rows of different lengths, two with images and one that begins without."""
    rng = np.random.default_rng(0)
    rows = []
    for users in users_of(policy, SHOWN):
        blocks = [policy.codec.system("Answer.")]
        for user in users:
            blocks += [user, Block(said(policy.codec, rng, int(rng.integers(1, 6))), (), True)]
        rows.append(policy.row(blocks))
    return rows


def gradient(policy, rows, groups):
    """Return the flat gradient of a sum of log-probabilities and entropies, in given passes."""
    for parameter in policy.base.parameters():
        parameter.grad = None
    for group in groups:
        scores = policy.score([rows[i] for i in group], temperature=0.7)
        weights = torch.zeros_like(scores.log_probs)
        for line, i in enumerate(group):
            n = int(scores.mask[line].sum())
            weights[line, :n] = torch.randn(n, generator=torch.Generator().manual_seed(i))
        ((scores.log_probs + 0.1 * scores.entropy) * weights).sum().backward()
    grads = [p.grad for p in policy.actor_parameters() if p.grad is not None]
    return torch.cat([grad.double().flatten() for grad in grads])


def gap(ours, theirs):
    """Return how far two tensors are apart, as a share of the size of the second."""
    assert theirs.norm() > 0
    return float((ours - theirs).norm() / theirs.norm())


class Counted:
    """Counts the positions that go through the first and the last layer of a language model."""

    def __init__(self, policy):
        self.seen = [0, 0]
        layers = policy.language.layers
        for i, layer in enumerate((layers[0], layers[-1])):
            layer.register_forward_hook(lambda _, __, out, i=i: self.add(i, out))

    def add(self, i, out):
        self.seen[i] += out.shape[0] * out.shape[1]

    def taken(self):
        """Return the count of both, which must be the same, and begin anew."""
        first, last = self.seen
        assert first == last
        self.seen = [0, 0]
        return first


# --- the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PACKING)
def test_gradients_of_every_family_are_those_of_padded_rows(kind):
    packed = load_family(kind, dtype=torch.float64, packing=True)
    padded = load_family(kind, dtype=torch.float64)
    rows, once = rows_of_family(packed), [[0, 1, 2]]
    counted = Counted(packed)
    assert gap(gradient(packed, rows, once), gradient(padded, rows, once)) < 1e-10
    assert counted.taken() == sum(len(row.ids) for row in rows)


@pytest.mark.parametrize("kind", PACKING)
def test_single_precision_rounds_packed_rows_no_worse_than_padded_ones(kind):
    exact, once = load_family(kind, dtype=torch.float64), [[0, 1, 2]]
    rows = rows_of_family(exact)
    right = gradient(exact, rows, once)
    packed, padded = (gap(gradient(load_family(kind, packing=packing), rows, once), right)
                      for packing in (True, False))  # fmt: skip
    assert packed < min(5e-6, 1.5 * padded)


@torch.no_grad()
def in_double(policy):
    """Let norms compute in double precision too, which transformers 5 does in single, always.

    What it rounds makes 1e-8 of a gradient out of 1e-16 of a state, now and then.
    """

    def forward(self, states):
        return self.weight * states * torch.rsqrt(states.square().mean(-1, True) + eps_of(self))

    for module in policy.base.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(forward, module)
    return policy


def eps_of(norm):
    return getattr(norm, "variance_epsilon", None) or norm.eps


def learner_of(case, dtype, packing):
    """Return a learner from some place off its start, whose passes hold few rows."""
    preset, options = CASES[case]
    lora = LoRA(rank=4, alpha=8.0) if preset == "recommended" else None
    policy = load(attention="sdpa", dtype=dtype, lora=lora, packing=packing, **options)
    if dtype == torch.float64:
        in_double(policy)
    if lora is not None:
        perturb(policy.actor_parameters(), 0.05)
    config = replace(
        PRESETS[preset], critic_warmup=0, history=1, minibatch=99,
        micro_batch_tokens=192, score_tokens=300,
    )  # fmt: skip
    torch.manual_seed(2)  # of the critic
    learner = PPOLearner(policy, config)
    perturb(learner.critic_parameters, 0.02)
    return learner


def learned(learner):
    """Return a batch, what a learner says of it, and the gradients of the steps it would take."""
    batch = several(learner.policy.codec)
    for i, turn in enumerate(turn for each in batch for turn in each.turns):
        turn.reward = 0.3 * (-1) ** i + 0.1 * i
    # The tower rounds to single precision, always: let it see all frames at once.
    learner.policy.encoder([f for each in batch for turn in each.turns for f in turn.user.frames])
    experience = learner.prepare(batch)
    found = {name: getattr(experience, name) for name in (
        "old_log_probs", "ref_log_probs", "values", "entropy", "states", "advantages",
    )}  # fmt: skip
    for name in ("critic", "actor"):
        parameters = getattr(learner, f"{name}_parameters")

        def keep(*_, parameters=parameters, name=name):
            grads = [p.grad for p in parameters if p.grad is not None]
            found[name] = torch.cat([grad.flatten() for grad in grads])
            return 0.0

        learner._step = keep
        getattr(learner, f"{name}_step")(experience, np.arange(len(batch)))
    return experience, found


CASES = {
    "tiny": ("tiny", {}),
    "recommended": ("recommended", {"checkpointing": True}),
    "paper": ("paper", {"checkpointing": True}),
    "paper, tower": ("paper", {"train_vision": True, "checkpointing": True}),
}
# How many passes those make who share the policy's layers: scoring the policy, and with adapters
# critic and reference, copies else; then the step of the critic, with adapters, and the policy.
PASSES = {"tiny": 1 + 1, "recommended": 3 + 2, "paper": 1 + 1, "paper, tower": 1 + 1}


@pytest.mark.parametrize("case", CASES)
def test_every_preset_learns_packed_what_it_learns_padded(case):
    packed, padded = (learner_of(case, torch.float64, packing) for packing in (True, False))
    counted = Counted(packed.policy)
    experience, ours = learned(packed)
    _, theirs = learned(padded)
    limit = 1e-7 if "tower" in case else 1e-10
    for name in ("critic", "actor"):
        assert gap(ours.pop(name), theirs.pop(name)) < limit, name
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=100 * limit, rtol=0)
    whole = sum(len(row.ids) for row in experience.rows)
    assert len(packed.policy.groups(experience.rows, 192)) > 2
    assert counted.taken() == PASSES[case] * whole


@pytest.mark.parametrize("case", CASES)
def test_presets_in_single_precision_round_no_worse_packed(case):
    _, right = learned(learner_of(case, torch.float64, False))
    found = {packing: learned(learner_of(case, torch.float32, packing))[1]
             for packing in (True, False)}  # fmt: skip
    for name in ("critic", "actor"):
        packed, padded = (gap(found[packing][name].double(), right[name])
                          for packing in (True, False))  # fmt: skip
        assert packed < max(1e-6, 1.5 * padded) and padded < 2e-5, (name, packed, padded)


def test_half_precision_rounds_packed_rows_no_worse_than_padded_ones():
    exact = adapted(packing=False)
    packed, padded = (adapted(dtype=torch.bfloat16, packing=packing) for packing in (True, False))
    rows, once = training_rows(exact), [[0, 1, 2, 3]]
    right = gradient(exact, rows, once)
    off = gap(gradient(packed, rows, once), right)
    assert 1e-4 < off < 1.5 * gap(gradient(padded, rows, once), right)


def test_a_run_is_the_same_packed_and_padded(tmp_path):
    for packing in (True, False):
        trained(small(tmp_path / str(packing), packing=packing, iterations=2))
    ours, theirs = (metrics_of(tmp_path / str(packing)) for packing in (True, False))
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-3, nan_ok=True)


# --- rows apart -----------------------------------------------------------------------------------


@torch.no_grad()
def states_of(policy, rows):
    """Return the last states of each packed row."""
    batch = pack(rows)
    return policy.run(batch)[0].split(batch.lengths)


@pytest.mark.parametrize("kind", PACKING)
def test_a_token_changes_the_states_of_its_own_row_alone(kind):
    policy = load_family(kind, packing=True)
    rows = rows_of_family(policy)
    before = states_of(policy, rows)
    for changed, row in enumerate(rows):
        ids = row.ids.copy()
        at = int(np.flatnonzero(row.sampled)[0])
        ids[at] = ids[at] + 1
        after = states_of(policy, [*rows[:changed], row._replace(ids=ids), *rows[changed + 1 :]])
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            if i == changed:
                assert torch.equal(old[:at], new[:at])
                assert ((old[at:] - new[at:]).abs().amax(-1) > 1e-3).all()
            else:
                assert torch.equal(old, new)


@pytest.mark.parametrize("kind", PACKING)
def test_rows_whose_lengths_are_not_told_would_be_noticed(kind):
    policy = load_family(kind, packing=True)
    rows = rows_of_family(policy)
    apart = states_of(policy, rows)
    with torch.no_grad():
        batch = pack(rows)
        leaking = policy.run(batch._replace(lengths=()))[0].split(batch.lengths)
    torch.testing.assert_close(leaking[0], apart[0], atol=1e-4, rtol=0)
    assert (leaking[1] - apart[1]).abs().max() > 0.1


def test_layers_that_keep_a_state_are_fed_padded_rows():
    policy = load_family("qwen3_5", packing=None)
    rows = rows_of_family(policy)
    counted = Counted(policy)
    with torch.no_grad():
        policy.score(rows)
    assert counted.taken() == len(rows) * max(len(row.ids) for row in rows)
    with pytest.raises(ValueError, match=r"packing=True, but layers of qwen3_5 keep a state"):
        load_family("qwen3_5", packing=True)


def test_a_model_whose_packed_rows_would_see_each_other_is_refused(monkeypatch):
    family = replace(FAMILIES["qwen3_5"], packs=True)
    monkeypatch.setitem(FAMILIES, "qwen3_5", family)
    with pytest.raises(ValueError, match="its packed rows see each other: try packing=False"):
        load_family("qwen3_5", packing=None)
    load_family("qwen3_5", packing=False)


def test_eager_attention_keeps_padding():
    assert not load(attention="eager", packing=None).packing
    with pytest.raises(ValueError, match="attention 'eager' cannot be kept to a row; 'sdpa' can"):
        load(attention="eager", packing=True)


def test_flash_attention_is_told_where_rows_end(monkeypatch):
    """The kernel needs a GPU: one of PyTorch's stands in for it and reads what it would read."""
    policy = load(dtype=torch.float64)
    rows = training_rows(policy)
    padded = policy.score(rows).log_probs
    calls = []

    def flash(module, query, key, value, attention_mask, **told):
        assert attention_mask is None
        assert told["cu_seq_lens_q"].dtype == torch.int32
        assert torch.equal(told["cu_seq_lens_q"], told["cu_seq_lens_k"])
        lengths = told["cu_seq_lens_q"].diff().tolist()
        assert told["max_length_q"] == told["max_length_k"] == max(lengths)
        calls.append(lengths)
        scale, gqa = told["scaling"], query.shape[1] != key.shape[1]
        parts = zip(*(each.split(lengths, 2) for each in (query, key, value)), strict=True)
        out = [
            torch.nn.functional.scaled_dot_product_attention(
                *part, is_causal=True, scale=scale, enable_gqa=gqa
            )
            for part in parts
        ]
        return torch.cat(out, 2).transpose(1, 2).contiguous(), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    policy.language.config._attn_implementation_internal = "flash_attention_2"
    policy.packing = True
    torch.testing.assert_close(policy.score(rows).log_probs, padded, atol=1e-10, rtol=0)
    assert calls == [[len(row.ids) for row in rows]] * len(policy.language.layers)


def test_padded_rows_and_replies_are_as_without_packing():
    plain, prepared = load(), load(packing=True)
    blocks = [[each.system, each.turns[0].user] for each in several(plain.codec)]
    replies = []
    for policy in (plain, prepared):
        session = DecodeSession(policy, Sampling(max_new_tokens=6))
        torch.manual_seed(0)
        replies.append(session.reply(list(range(len(blocks))), blocks, fresh=True))
    for one, other in zip(*replies, strict=True):
        assert np.array_equal(one.ids, other.ids) and np.array_equal(one.log_probs, other.log_probs)
    prepared.packing = False
    rows = training_rows(plain)
    with torch.no_grad():
        assert torch.equal(plain.score(rows).log_probs, prepared.score(rows).log_probs)
        batch = plain.batch(rows)
    assert who_attends(batch, prepared.language) == {"attention_mask": batch.attention}


def test_a_packed_policy_is_saved_as_any_other(tmp_path):
    load(packing=True).save_pretrained(tmp_path)
    assert "by_row" not in (tmp_path / "config.json").read_text("utf-8")
    again = MLLMPolicy.from_pretrained(tmp_path, device="cpu")
    assert again.base.config.get_text_config()._attn_implementation == "sdpa"


# --- passes ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_packs_hold_every_row_once_within_the_limit(lengths, limit):
    groups = packs(lengths, limit)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in group) for group in groups]
    for total, group in zip(totals, groups, strict=True):
        assert total <= limit or len(group) == 1
    # Nothing is split without need: no row would have fitted into an earlier group.
    for g, total in enumerate(totals):
        assert all(total + lengths[i] > limit for later in groups[g + 1 :] for i in later)


def test_tokens_of_a_pass_count_padding_only_where_there_is_some():
    packed, padded = load(packing=True), load()
    rows = training_rows(packed)
    lengths = [len(row.ids) for row in rows]
    assert len(set(lengths)) > 1
    assert packed.groups(rows, sum(lengths)) == [sorted(range(4), key=lambda i: -lengths[i])]
    assert len(padded.groups(rows, sum(lengths))) > 1
    assert len(padded.groups(rows, 4 * max(lengths))) == 1


@pytest.mark.parametrize("packing", [True, False])
def test_scoring_has_a_limit_of_its_own(packing):
    policy = load(packing=packing)
    batch = several(policy.codec)
    seen = []
    score = policy.score
    policy.score = lambda rows, **options: seen.append(len(rows)) or score(rows, **options)
    passes = {}
    for limit in (1, None, 10**6):
        config = replace(PRESETS["tiny"], beta=0.0, micro_batch_tokens=200, score_tokens=limit)
        seen.clear()
        PPOLearner(policy, config).prepare(batch)
        assert sum(seen) == 4
        passes[limit] = len(seen)
    assert passes[1] == 4 and passes[10**6] == 1
    assert 1 < passes[None] < 4
    with pytest.raises(ValueError, match="score_tokens=0"):
        PPOConfig(score_tokens=0)


def test_large_models_are_packed_wherever_they_can(tmp_path):
    assert [make_train_config(preset).packing for preset in ("tiny", "recommended", "paper")] == [
        False, None, None,
    ]  # fmt: skip
    assert not small(tmp_path).load_policy("cpu").packing
    assert small(tmp_path, packing=None).load_policy("cpu").packing
    recurrent = small(tmp_path, model=str(family_dir("qwen3_5")), packing=None)
    assert not recurrent.load_policy("cpu").packing
    with pytest.raises(ValueError, match=r"packing=True, but layers of qwen3_5"):
        replace(recurrent, packing=True).load_policy("cpu")
