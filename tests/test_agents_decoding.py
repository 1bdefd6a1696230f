"""Decoding: several turns on one cache are what a forward pass over the whole dialogue says.

Oracles T21, T22, T27 and T31 of the specification.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agents_models import (
    DOT,
    TALL,
    WIDE,
    adapted,
    load,
    model_dir,
    picture,
    shared,
    show,
    training_rows,
)
from transformers import GenerationConfig, TopKLogitsWarper, TopPLogitsWarper
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents.model.decoding import DecodeSession, cache_name
from agents.model.sampling import Sampling, restrict
from agents.trajectory import Exchange, Trajectory, rows_of

T = 0.7
SAMPLING = Sampling(temperature=T, max_new_tokens=9)
# What each of five dialogues shows in its turns; they end after one, two or three.
SHOWN = (
    ((DOT, DOT), (WIDE,), (TALL, DOT)),
    ((TALL,), (), (WIDE, WIDE)),
    ((WIDE, DOT, DOT), (TALL,)),
    ((DOT,),),
    ((), (DOT, TALL), (DOT,)),
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def converse(
    policy, sampling=SAMPLING, seed=0, *, reuse=True, shuffle=False, session=None, some=range(5)
):
    """Play some scripted dialogues with a session; return all as episodes, and the session."""
    codec = policy.codec
    rng = np.random.default_rng(1)
    users = [
        [codec.user(show(f"Turn {k + 1} of 3. {d}", *(picture(rng, size) for size in sizes)))
         for k, sizes in enumerate(turns)]
        for d, turns in enumerate(SHOWN)
    ]  # fmt: skip
    episodes = [Trajectory(codec.system("Rules.")) for _ in SHOWN]
    session = session or DecodeSession(policy, sampling, seeded(seed))
    for k in range(3):
        keys = [d for d in some if len(SHOWN[d]) > k]
        if not keys:
            break
        if shuffle and k:
            keys = keys[::-1]
        blocks = []
        for d in keys:
            earlier = [[t.user, codec.reply(t.reply.ids), t.close] for t in episodes[d].turns]
            if k == 0 or not reuse:
                flat = [block for turn in earlier for block in turn]
                blocks.append([episodes[d].system, *flat, users[d][k]])
            else:
                blocks.append([earlier[-1][-1], users[d][k]])
        for d, reply in zip(
            keys, session.reply(keys, blocks, fresh=k == 0 or not reuse), strict=True
        ):
            close = codec.close(codec.reply(reply.ids))
            episodes[d].turns.append(Exchange(users[d][k], reply, close))
    return episodes, session


def replies(episodes):
    return [[turn.reply.ids.tolist() for turn in episode.turns] for episode in episodes]


def gap(policy, episodes, temperature=T):
    """Return the largest |log-probability while sampling - the same in a scoring pass|."""
    rows, _ = rows_of(episodes, policy, None)
    with torch.no_grad():
        scores = policy.score(rows, temperature=temperature)
    said = [np.concatenate([turn.reply.log_probs for turn in e.turns]) for e in episodes]
    return max(
        float((scores.log_probs[i][scores.mask[i]] - torch.from_numpy(one)).abs().max())
        for i, one in enumerate(said)
    )


# --- turns on one cache: T21, T22 -----------------------------------------------------------------


def test_the_dialogues_end_early_late_and_at_the_limit():
    # Otherwise holes in the cache would not be tested.
    lengths = [len(ids) for episode in replies(converse(shared())[0]) for ids in episode]
    assert 1 < len(set(lengths)) and min(lengths) < 5 and max(lengths) == 9
    turns = [turn for episode in converse(shared())[0] for turn in episode.turns]
    assert {turn.reply.truncated for turn in turns} == {True, False}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in-order", "reordered"])
def test_log_probs_while_sampling_are_those_of_the_whole_dialogue(attention, shuffle):
    policy = load(attention=attention)
    episodes, _ = converse(policy, shuffle=shuffle)
    assert gap(policy, episodes) < 1e-4


@pytest.mark.parametrize("seed", [1, 2])
def test_other_draws_agree_as_well(seed):
    assert gap(shared(), converse(shared(), seed=seed)[0]) < 1e-4


def test_the_same_with_adapters():
    policy = adapted()
    episodes, _ = converse(policy)
    assert gap(policy, episodes) < 1e-4
    with policy.adapter(None):
        assert gap(policy, episodes) > 0.1


def test_a_cache_kept_is_a_cache_made_anew():
    for sampling in (SAMPLING, Sampling(greedy=True, max_new_tokens=9)):
        kept, _ = converse(shared(), sampling)
        anew, _ = converse(shared(), sampling, reuse=False)
        assert replies(kept) == replies(anew)


def test_checkpointing_does_not_disturb_the_cache():
    policy = adapted(checkpointing=True)
    policy.score(training_rows(policy)).log_probs.sum().backward()
    assert replies(converse(policy)[0]) == replies(converse(adapted())[0])


def test_only_what_is_new_is_fed():
    kept, session = converse(shared())
    _, again = converse(shared(), reuse=False)
    assert session.decoded == again.decoded == sum(len(i) for e in replies(kept) for i in e)
    fed = sum(len(row.ids) for row in rows_of(kept, shared(), None)[0])
    # Every token but the last of each dialogue goes in once, by prefill or one by one.
    one_by_one = session.decoded - sum(len(e.turns) for e in kept)
    assert session.prefilled + one_by_one == fed - len(kept)
    assert again.prefilled > session.prefilled


def test_dialogues_that_ended_leave_the_cache():
    _, session = converse(shared())
    assert len(session._mask) == 3
    keys = session._memory.cache.layers[0].keys
    assert keys.shape[0] == 3 and keys.shape[2] == session._mask.shape[1]
    session._select([session._keys[1]])
    assert session._mask.shape[0] == 1
    assert session._mask.any(0).all()  # no column is left that nobody uses


def test_the_policy_in_half_precision_still_talks():
    policy = load(dtype=torch.bfloat16)
    episodes, _ = converse(policy)
    assert gap(policy, episodes) < 2.0
    assert all(len(ids) for episode in replies(episodes) for ids in episode)


def test_mutations_of_the_session_would_be_noticed(monkeypatch):
    """T26: positions that ignore images, holes that stay visible, an end that is not fed."""

    def positions(self, rows, original=DecodeSession._prefill):
        return original(
            self, [r._replace(positions=r.positions * 0 + np.arange(len(r.ids))) for r in rows]
        )

    def visible(self, inputs, positions, mask, memory, original=DecodeSession._forward):
        return original(self, inputs, positions, torch.ones_like(mask), memory)

    def unfed(self, i, blocks):
        return self.policy.row(blocks)

    for name, mutation in (("_prefill", positions), ("_forward", visible), ("_new_row", unfed)):
        with monkeypatch.context() as change:
            change.setattr(DecodeSession, name, mutation)
            episodes, _ = converse(shared())
        assert gap(shared(), episodes) > 0.1, name


# --- replies: T31 ---------------------------------------------------------------------------------


def test_a_reply_ends_at_its_end_token_or_is_cut():
    for seed in range(3):
        for episode in converse(shared(), seed=seed)[0]:
            for turn in episode.turns:
                ids, end = turn.reply.ids, shared().codec.end_id
                assert (ids[:-1] != end).all() and len(ids) == len(turn.reply.log_probs) <= 9
                assert turn.reply.truncated == (ids[-1] != end)
                if turn.reply.truncated:
                    assert len(ids) == 9


def test_training_sees_the_ids_that_were_sampled():
    episodes, _ = converse(shared())
    rows, _ = rows_of(episodes, shared(), None)
    for row, sampled in zip(rows, replies(episodes), strict=True):
        assert row.ids[row.sampled].tolist() == [token for ids in sampled for token in ids]


# --- the distribution: T27 ------------------------------------------------------------------------


class Scripted(DecodeSession):
    """Says what it is told, and keeps the logits it would have drawn from."""

    def __init__(self, policy, sampling, script):
        super().__init__(policy, sampling)
        self.script, self.seen = iter(script), []

    def _draw(self, logits):
        self.seen.append(logits)
        return next(self.script)


def test_sampling_logits_are_the_scores_of_generate():
    policy, steps = shared(), 6
    rng = np.random.default_rng(2)
    images = [[picture(rng, DOT), picture(rng, TALL)], [picture(rng, WIDE)]]
    contexts = [
        [policy.codec.system("Rules."), policy.codec.user(show("a" * (k + 1), *shown))]
        for k, shown in enumerate(images)
    ]
    rows = [policy.row(blocks) for blocks in contexts]
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((2, longest), policy.codec.tokenizer.pad_token_id)
    attention = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row.ids) :] = torch.from_numpy(row.ids)
        attention[i, longest - len(row.ids) :] = 1
    processor = Qwen2VLImageProcessorPil.from_pretrained(model_dir(), do_resize=False)
    flat = [image for shown in images for image in shown]
    config = GenerationConfig(
        do_sample=True,
        temperature=T,
        top_k=0,
        top_p=1.0,
        suppress_tokens=policy.codec.suppressed.tolist(),
        max_new_tokens=steps,
        min_new_tokens=None,
        eos_token_id=None,
        pad_token_id=policy.codec.tokenizer.pad_token_id,
        return_dict_in_generate=True,
        output_scores=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = policy.base.generate(
            input_ids=ids,
            attention_mask=attention,
            mm_token_type_ids=(ids == policy.codec.image_token_id).int(),
            **processor(images=flat, return_tensors="pt"),
            generation_config=config,
        )
    chosen = theirs.sequences[:, longest:]
    assert chosen.shape == (2, steps)
    session = Scripted(policy, Sampling(temperature=T, max_new_tokens=steps), chosen.T)
    session.reply([0, 1], contexts, fresh=True)
    alive = torch.tensor([True, True])
    for step, (ours, scores) in enumerate(zip(session.seen, theirs.scores, strict=False)):
        assert torch.equal(torch.isneginf(ours), torch.isneginf(scores))
        torch.testing.assert_close(ours[alive], scores[alive], atol=1e-4, rtol=0)
        alive &= chosen[:, step] != policy.codec.end_id
    assert step >= 3


@pytest.mark.parametrize("k", [1, 3, 50, 5000])
def test_top_k_is_that_of_generate(k):
    logits = torch.randn(4, 100, generator=seeded())
    theirs = TopKLogitsWarper(k)(None, logits)
    assert torch.equal(restrict(logits, k, 1.0), theirs)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_top_p_is_that_of_generate(p):
    logits = 3 * torch.randn(4, 100, generator=seeded())
    logits[:, 7] = -torch.inf
    assert torch.equal(restrict(logits, 0, p), TopPLogitsWarper(p)(None, logits))


def test_no_restriction_restricts_nothing():
    logits = torch.randn(2, 100, generator=seeded())
    assert restrict(logits, 0, 1.0) is logits


@pytest.mark.parametrize(
    ("options", "support"),
    [({}, 5), ({"top_k": 3}, 3), ({"top_p": 0.9}, 3), ({"top_k": 4, "top_p": 0.6}, 2)],
)
def test_draws_follow_the_distribution(options, support):
    logits = torch.tensor([0.5, 0.3, 0.12, 0.06, 0.02, 0.0]).log()
    draws = 20_000
    session = DecodeSession(shared(), Sampling(**options), seeded(4))
    counts = torch.bincount(session._draw(logits.expand(draws, 6)), minlength=6).double()
    expected = logits.exp().double()[:support]
    expected = draws * expected / expected.sum()
    assert (counts[support:] == 0).all()
    statistic = float(((counts[:support] - expected).square() / expected).sum())
    # 1 in 10000 of a chi-square with four degrees of freedom or fewer is larger.
    assert statistic < 23.5


def test_draws_of_two_rows_are_independent():
    logits = torch.full((2, 4), 0.25).log()
    session = DecodeSession(shared(), Sampling(), seeded(1))
    pairs = torch.stack([session._draw(logits) for _ in range(4000)])
    counts = torch.bincount(4 * pairs[:, 0] + pairs[:, 1], minlength=16).double()
    assert float(((counts - 250).square() / 250).sum()) < 44.3  # 15 degrees, 1 in 10000


def test_greedy_takes_the_likeliest():
    policy = shared()
    episodes, _ = converse(policy, Sampling(temperature=T, greedy=True, max_new_tokens=9))
    rows, _ = rows_of(episodes, policy, None)
    with torch.no_grad():
        states, ids, _ = policy.states(rows)
        logits = policy.logits(states, T)
    assert torch.equal(logits.argmax(-1), ids)
    assert replies(converse(policy, Sampling(greedy=True, max_new_tokens=9), seed=5)[0]) == replies(
        episodes
    )


def test_top_k_of_one_is_greedy():
    one, _ = converse(shared(), Sampling(top_k=1, max_new_tokens=9))
    likeliest, _ = converse(shared(), Sampling(greedy=True, max_new_tokens=9))
    assert replies(one) == replies(likeliest)


def test_the_same_seed_draws_the_same():
    first, _ = converse(shared(), seed=3)
    again, _ = converse(shared(), seed=3)
    other, _ = converse(shared(), seed=4)
    assert replies(first) == replies(again) != replies(other)
    assert all(
        np.array_equal(t.reply.log_probs, u.reply.log_probs)
        for e, f in zip(first, again, strict=True)
        for t, u in zip(e.turns, f.turns, strict=True)
    )


@pytest.mark.parametrize("greedy", [True, False])
def test_placeholders_are_never_sampled_though_they_are_likeliest(greedy):
    policy = load()
    sampling = Sampling(temperature=2.0, greedy=greedy, max_new_tokens=12)
    with torch.no_grad():
        before, _ = converse(policy, sampling)
        states, _, _ = policy.states(rows_of(before, policy, None)[0])
        # Along what all states have in common, so that it is likely everywhere.
        policy.head.weight[policy.codec.image_token_id] = 20 * states.mean(0)
    episodes, _ = converse(policy, sampling)
    rows, _ = rows_of(episodes, policy, None)
    with torch.no_grad():
        states, _, _ = policy.states(rows)
        likeliest = policy.head(states).argmax(-1)
    assert (likeliest == policy.codec.image_token_id).float().mean() > 0.8
    sampled = {token for e in replies(episodes) for ids in e for token in ids}
    assert not sampled & set(policy.codec.suppressed.tolist())
    assert gap(policy, episodes, 2.0) < 1e-4


# --- misuse ---------------------------------------------------------------------------------------


@pytest.fixture
def contexts():
    codec = shared().codec
    return [[codec.system("Rules."), codec.user(show(text))] for text in ("a", "b")]


def test_an_unknown_dialogue_is_refused(contexts):
    session = DecodeSession(shared(), SAMPLING)
    session.reply(["a", "b"], contexts)
    with pytest.raises(ValueError, match=r"'c' is not in this batch of 2; pass its whole context"):
        session.reply(["a", "c"], contexts)


def test_a_dialogue_that_left_does_not_come_back(contexts):
    session = DecodeSession(shared(), SAMPLING)
    session.reply(["a", "b"], contexts)
    session.reply(["a"], contexts[:1])
    with pytest.raises(ValueError, match="'b' is not in this batch of 1"):
        session.reply(["b"], contexts[1:])
    session.reply(["b"], contexts[1:], fresh=True)


def test_keys_and_blocks_must_match(contexts):
    session = DecodeSession(shared(), SAMPLING)
    for keys, blocks in ((["a", "b"], contexts[:1]), (["a", "a"], contexts), ([], [])):
        with pytest.raises(ValueError, match=r"blocks for dialogues \[.*\]; pass at least one"):
            session.reply(keys, blocks)


def test_the_cache_is_passed_under_the_name_that_the_model_has_for_it():
    class Before(torch.nn.Module):
        def forward(self, input_ids, past_key_values=None): ...

    class After(torch.nn.Module):
        def forward(self, input_ids, cache=None): ...

    assert cache_name(Before()) == "past_key_values"
    assert cache_name(After()) == "cache"


# --- a generator for each dialogue ----------------------------------------------------------------


def each_its_own():
    return {d: seeded(10 + d) for d in range(len(SHOWN))}


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_with_generators_of_their_own_dialogues_do_not_depend_on_their_company(top_p):
    policy, sampling = shared(), Sampling(temperature=T, top_p=top_p, max_new_tokens=9)
    session = DecodeSession(policy, sampling, each_its_own())
    together = replies(converse(policy, session=session)[0])
    assert len({len(ids) for turns in together for ids in turns}) > 2  # some wait for others
    for some in ((0,), (1, 3), (0, 2, 4)):
        alone = DecodeSession(policy, sampling, each_its_own())
        found = replies(converse(policy, session=alone, some=some)[0])
        assert [found[d] for d in some] == [together[d] for d in some]
    anew = DecodeSession(policy, sampling, each_its_own())
    assert replies(converse(policy, session=anew, shuffle=True)[0]) == together
    others = DecodeSession(policy, sampling, {d: seeded(d) for d in range(len(SHOWN))})
    assert replies(converse(policy, session=others)[0]) != together


def test_a_dialogue_without_a_generator_is_refused_where_others_have_one():
    session = DecodeSession(shared(), SAMPLING, {0: seeded()})
    with pytest.raises(ValueError, match="dialogue 1 has no generator; pass one for each"):
        session.reply([0, 1], [[shared().codec.system("Rules.")]] * 2, fresh=True)
