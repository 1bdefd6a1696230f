"""Every family scores, decodes and learns as its model does."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from agents_families import (
    KINDS,
    delta_rule,
    family,
    family_dir,
    load_family,
    own_logits,
    picture_of,
    users_of,
)
from agents_models import perturb, said, without
from agents_training import small
from transformers import AutoConfig, LlavaConfig, SmolVLMConfig
from transformers.models.qwen3_5 import modeling_qwen3_5

from agents.model.critic import Critic
from agents.model.decoding import DecodeSession
from agents.model.families import FAMILIES, family_of
from agents.model.policy import LoRA, MLLMPolicy
from agents.model.sampling import Reply, Sampling
from agents.ppo import PPOLearner
from agents.ppo_config import make_config
from agents.rollout import RolloutCollector
from agents.trajectory import Exchange, Trajectory, rows_of
from gym_longvideo.wrappers import TextProtocol

EVERY = pytest.mark.parametrize("kind", KINDS)
# Images, in (rows, columns) of tokens, that each of five dialogues shows in its turns.
SHOWN = (
    (((1, 1), (1, 1)), ((1, 2),), ((3, 2), (1, 1))),
    (((3, 2),), (), ((1, 2), (1, 2))),
    (((1, 2), (1, 1)), ((2, 2),)),
    (((1, 1),),),
    ((), ((1, 1), (2, 3)), ((1, 1),)),
)
SAMPLING = Sampling(temperature=0.7, max_new_tokens=7)


def scripted(policy, seed=0):
    """Return dialogues of several turns with random replies."""
    rng = np.random.default_rng(seed)
    codec = policy.codec
    made = []
    for d, users in enumerate(users_of(policy, SHOWN)):
        dialogue = Trajectory(codec.system("Rules."), task_id=str(d))
        for k, user in enumerate(users):
            ids = said(codec, rng, 3 + k, end=(d + k) % 3 != 0)
            reply = Reply(ids, np.zeros(len(ids), np.float32), False)
            dialogue.turns.append(Exchange(user, reply, codec.close(codec.reply(ids)), 0.5 * d - k))
        made.append(dialogue)
    return made


def rows(policy, history=None, seed=0):
    return rows_of(scripted(policy, seed), policy, history)[0]


def expected(policy, row, temperature):
    """Return the log-probabilities of a row's sampled ids by the model's own forward pass."""
    logits = own_logits(policy, row).float() / temperature
    allowed = without(policy.codec.suppressed, logits)
    places = np.flatnonzero(row.sampled)
    ids = torch.from_numpy(row.ids[places])
    return allowed[places - 1].log_softmax(-1).gather(-1, ids[:, None])[:, 0]


# --- scores ---------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_scores_are_those_of_the_models_own_forward_pass(kind, dtype, tolerance):
    policy = family(kind) if dtype == "float32" else load_family(kind, dtype=torch.bfloat16)
    given = rows(policy)
    with torch.no_grad():
        found = policy.score(given, temperature=0.7)
    gaps = []
    for i, row in enumerate(given):
        theirs = expected(policy, row, 0.7)
        gap = (found.log_probs[i, : len(theirs)] - theirs).abs() / theirs.abs().clamp_min(1)
        gaps += gap.tolist()
    assert max(gaps) < tolerance and len(gaps) > 30


def test_what_deepstack_adds_is_seen_in_the_scores(monkeypatch):
    policy = load_family("qwen3_vl")
    given = rows(policy)
    with torch.no_grad():
        whole = policy.score(given).log_probs
    inputs = type(policy.family).inputs

    def bare(self, *args):
        found = inputs(self, *args)
        deeper = [torch.zeros_like(each) for each in found["deepstack_visual_embeds"]]
        assert len(deeper) == 3
        return {**found, "deepstack_visual_embeds": deeper}

    monkeypatch.setattr(type(policy.family), "inputs", bare)
    with torch.no_grad():
        assert (policy.score(given).log_probs - whole).abs().max() > 0.1
    # So a policy that forgot it is refused.
    with pytest.raises(ValueError, match="is not run here as it runs itself"):
        load_family("qwen3_vl")


# --- decoding -------------------------------------------------------------------------------------


def converse(policy, *, reuse=True, seed=0):
    """Play the dialogues; each leaves the batch after its last turn, the order changes."""
    codec = policy.codec
    users = users_of(policy, SHOWN)
    dialogues = [Trajectory(codec.system("Rules.")) for _ in SHOWN]
    session = DecodeSession(policy, SAMPLING, torch.Generator().manual_seed(seed))
    for k in range(3):
        keys = [d for d, turns in enumerate(SHOWN) if len(turns) > k][:: -1 if k == 1 else 1]
        blocks = []
        for d in keys:
            earlier = [[t.user, codec.reply(t.reply.ids), t.close] for t in dialogues[d].turns]
            whole = [dialogues[d].system, *(block for turn in earlier for block in turn)]
            known = reuse and k > 0
            blocks.append([earlier[-1][-1], users[d][k]] if known else [*whole, users[d][k]])
        said = session.reply(keys, blocks, fresh=k == 0 or not reuse)
        for d, reply in zip(keys, said, strict=True):
            close = codec.close(codec.reply(reply.ids))
            dialogues[d].turns.append(Exchange(users[d][k], reply, close))
    return dialogues


@pytest.fixture
def exact(monkeypatch):
    """Compute recurrent layers in double precision, as ``delta_rule`` says why."""
    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        monkeypatch.setattr(modeling_qwen3_5, name, delta_rule)


def load_exactly(kind, **options):
    return load_family(kind, dtype=torch.float64 if kind == "qwen3_5" else "auto", **options)


@EVERY
@pytest.mark.parametrize("adapters", [False, True])
def test_decoded_log_probabilities_are_the_scored_ones(kind, adapters, exact):
    policy = load_exactly(kind, lora=LoRA(rank=4, alpha=8.0) if adapters else None)
    if adapters:
        perturb(policy.actor_parameters(), 0.05)
    # Replies that end at different times are the point: a seed that draws some.
    made = (converse(policy, seed=seed) for seed in range(9))
    dialogues = next(each for each in made if len(lengths_of(each)) > 1)
    given = rows_of(dialogues, policy, None)[0]
    with torch.no_grad():
        found = policy.score(given, temperature=SAMPLING.temperature)
    for i, dialogue in enumerate(dialogues):
        decoded = np.concatenate([turn.reply.log_probs for turn in dialogue.turns])
        scored = found.log_probs[i, : len(decoded)].numpy()
        assert np.abs(decoded - scored).max() < 1e-4


@EVERY
def test_a_window_that_moves_is_decoded_as_it_is_scored(kind, exact):
    policy = load_exactly(kind)
    unit = policy.codec.grid.patch * policy.codec.grid.merge
    seen = {"max_pixels": 6 * unit * unit, "pixel_unit": unit, "frame_budget": 4, "pool_size": 9}
    envs = [
        TextProtocol(gym.make("gym_longvideo:LongVideoQA-v0", **seen, suite_options={"size": 4}))
        for _ in range(2)
    ]
    collector = RolloutCollector(envs, policy, history=1, workers=0)
    sampling = Sampling(temperature=0.7, max_new_tokens=5)
    episodes = collector.collect([0, 1, 2], sampling, torch.Generator().manual_seed(0))
    collector.close()
    given, owners = rows_of(episodes, policy, 1)
    assert len(given) > len(episodes)  # the window moved on
    with torch.no_grad():
        found = policy.score(given, temperature=0.7)
    for i, dialogue in enumerate(episodes):
        decoded = np.concatenate([turn.reply.log_probs for turn in dialogue.turns])
        own = [k for k, owner in enumerate(owners) if owner == i]
        scored = np.concatenate([found.log_probs[k][found.mask[k]].numpy() for k in own])
        assert np.abs(decoded - scored).max() < 1e-4


def lengths_of(dialogues):
    return {len(turn.reply.ids) for dialogue in dialogues for turn in dialogue.turns}


@EVERY
def test_a_cache_over_turns_says_what_a_fresh_one_says(kind, exact):
    policy = load_exactly(kind)
    one, other = converse(policy), converse(policy, reuse=False)
    for mine, theirs in zip(one, other, strict=True):
        assert [t.reply.ids.tolist() for t in mine.turns] == [
            t.reply.ids.tolist() for t in theirs.turns
        ]


# --- learning -------------------------------------------------------------------------------------


def learner(policy, **options):
    options = {"minibatch": 2, "epochs": 1, "beta": 0.0, "history": None, **options}
    return PPOLearner(policy, make_config("tiny", **options), seed=0)


def snapshot(policy):
    return {name: p.detach().clone() for name, p in policy.base.named_parameters()}


@EVERY
@pytest.mark.parametrize("lora", [None, LoRA(rank=4, alpha=8.0)], ids=["full", "lora"])
def test_an_update_moves_what_it_should_and_nothing_else(kind, lora):
    policy = load_family(kind, lora=lora)
    dialogues = scripted(policy)
    for i, dialogue in enumerate(dialogues):
        for k, turn in enumerate(dialogue.turns):
            turn.reward = float((i + k) % 2)
    before = snapshot(policy)
    used = learner(policy, actor_lr=1e-3)
    for parameter in used.critic.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    used.update(dialogues)
    moved = {name for name, p in policy.base.named_parameters() if not torch.equal(before[name], p)}
    if lora is None:
        still = {name for name in before if ".visual." in name}
        assert still and not still & moved
        # Every layer of the language model learned.
        language = {name for name in before if ".language_model.layers." in name}
        assert language <= moved
    else:
        assert moved and all(".lora_" in name and ".actor." in name for name in moved)
        adapted = {name.split(".lora_")[0] for name in moved}
        wanted = {
            name.rpartition(".base_layer")[0]
            for name in before
            if name.endswith("base_layer.weight")
        }
        assert adapted == wanted
        kinds = {name.rpartition(".")[2] for name in adapted}
        assert kinds == set(policy.family.linear)


@EVERY
def test_recomputation_changes_no_gradient(kind):
    grads = []
    for checkpointing in (False, True):
        policy = load_family(kind, checkpointing=checkpointing)
        policy.score(rows(policy)[:3]).log_probs.sum().backward()
        grads.append({n: p.grad for n, p in policy.base.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 10
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-4, rtol=1e-3)


@EVERY
@pytest.mark.parametrize("critic", ["head", "model", "adapter"])
def test_every_critic_values_every_family(kind, critic):
    policy = load_family(kind, lora=LoRA(rank=4, alpha=8.0) if critic == "adapter" else None)
    used = Critic(policy, critic)
    for parameter in used.head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    given = rows(policy)[:2]
    hidden = policy.score(given, with_hidden=True).hidden
    values = used(given, hidden)
    assert values.shape[0] == 2 and values.abs().max() > 0 and torch.isfinite(values).all()


@EVERY
def test_there_is_room_for_the_features_of_a_whole_batch(kind):
    policy = load_family(kind, feature_cache_mb=0)
    rng = np.random.default_rng(0)
    frames = [picture_of(policy, rng, 2, 3) for _ in range(5)]
    policy.encoder(frames)
    assert policy.encoder.nbytes == 0
    policy.remember(5, 6)
    for _ in range(3):
        policy.encoder(frames)
    assert policy.encoder.nbytes == policy.encoder.capacity
    assert (policy.encoder.hits, policy.encoder.misses) == (10, 10)
    assert policy.encoder(frames)[0].shape[1] == policy.family.width(policy.base.config)


def test_attention_that_cannot_be_had_is_refused_before_weights_are_read(monkeypatch):
    monkeypatch.setattr("agents.model.policy.load_whole", lambda *a, **k: pytest.fail("read"))
    with pytest.raises(ValueError, match=r"'flash_attention_2' needs a GPU, .* use attention='sdp"):
        load_family("qwen3_vl", attention="flash_attention_2")
    with pytest.raises(ValueError, match="attention='fast'"):
        load_family("qwen3_vl", attention="fast")


@EVERY
def test_attention_is_that_of_language_model_and_tower(kind):
    policy = load_family(kind, attention="eager")
    config = policy.base.config
    assert config.get_text_config()._attn_implementation == "eager"
    assert config.vision_config._attn_implementation == "eager"
    given = rows(policy)[:2]
    with torch.no_grad():
        gap = policy.score(given).log_probs - family(kind).score(given).log_probs
    assert gap.abs().max() < 1e-2  # peaked weights magnify what is rounded otherwise


# --- what is saved, what is refused ---------------------------------------------------------------


@EVERY
def test_a_saved_policy_scores_as_it_did(kind, tmp_path):
    policy = load_family(kind)
    perturb(policy.actor_parameters(), 0.01)
    policy.save_pretrained(tmp_path)
    again = MLLMPolicy.from_pretrained(tmp_path, device="cpu")
    given = rows(policy)
    with torch.no_grad():
        assert torch.equal(policy.score(given).log_probs, again.score(given).log_probs)


def test_a_model_of_no_family_is_refused_with_what_it_lacks():
    with pytest.raises(ValueError, match=r"'smolvlm'.*no vision_start_token_id.*not those of M-Ro"):
        family_of(SmolVLMConfig(), "some/model")
    with pytest.raises(ValueError, match=r"'llava'.*spatial_merge_size.*use one of \['qwen2_vl'"):
        family_of(LlavaConfig(), "some/model")
    config = AutoConfig.for_model("qwen2_5_vl")
    assert family_of(config) is FAMILIES["qwen2_5_vl"]


def test_a_run_says_which_attention_its_model_has(tmp_path):
    config = small(tmp_path, model=str(family_dir("qwen3_vl")), attention="eager")
    policy = config.load_policy("cpu")
    assert policy.base.config.vision_config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="attention='flash_attention_2' needs a GPU"):
        replace(config, attention="flash_attention_2").load_policy("cpu")
    with pytest.raises(ValueError, match="attention='fast'"):
        replace(config, attention="fast")
