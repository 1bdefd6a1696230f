"""PPO: a batch from end to end, against worked numbers, and what must not change.

Oracles T18, T19, T20, T25, T29, T30, T32 and T34 of the specification.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from agents_models import DOT, adapted, episode, load, several, show

from agents.advantages import whiten
from agents.curriculum import RetrievalBonus
from agents.model.decoding import DecodeSession
from agents.model.policy import LoRA
from agents.model.sampling import Sampling
from agents.ppo import PPOLearner
from agents.ppo_config import PRESETS, PPOConfig, make_config
from agents.trajectory import Exchange, Trajectory

# One step over all episodes, critic and actor, unless a test says otherwise.
BASE = {
    "critic_warmup": 0,
    "minibatch": 64,
    "actor_lr": 1e-3,
    "critic_lr": 1e-2,
    "history": None,
    "temperature": 0.7,
}
REWARDS = ((0.6, -0.05, 1.1), (0.1,), (0.6, 1.1), (0.0, 0.1))


def learner(policy=None, bonus=None, seed=0, **options):
    policy = policy or adapted()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)  # of the critic's adapter
        return PPOLearner(policy, PPOConfig(**{**BASE, **options}), bonus=bonus, seed=seed)


def batch_of(policy):
    """Return four dialogues of one to three turns that earned something."""
    made = several(policy.codec)
    for one, rewards in zip(made, REWARDS, strict=True):
        for turn, reward in zip(one.turns, rewards, strict=True):
            turn.reward = reward
    return made


def snapshot(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def unchanged(parameters, before):
    return all(map(torch.equal, parameters, before))


def gradients(used, step, batch, chosen=(0, 1, 2, 3)):
    """Return the gradients of a step that is not taken."""
    found = []

    def keep(optimizer, parameters):
        found.extend(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters)
        return 0.0

    used._step = keep
    stats = getattr(used, step)(batch, np.array(chosen))
    del used._step
    return found, stats


def assert_same(one, other, tolerance=2e-5):
    largest = max(float(grad.abs().max()) for grad in one)
    assert largest > 0
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance * largest, rtol=0)


# --- from episodes to advantages ------------------------------------------------------------------


@pytest.mark.parametrize("history", [None, 1, 0])
def test_three_turns_by_hand(history):
    """Example D of the specification, however its turns are packed into rows."""
    used = learner(beta=0.001, whiten=False, history=history)
    made = episode(used.policy.codec, 0, lengths=(3, 2, 2), rewards=(0.6, -0.05, 1.1))
    ids = np.concatenate([turn.reply.ids for turn in made.turns])
    values = (0.9, 1.0, 1.2, 0.8, 0.7, 0.6, 0.9)
    gaps = (0.10, -0.02, 0.30, 0.05, 0.0, -0.10, 0.40)
    # Padded episodes around it change nothing.
    batch = [episode(used.policy.codec, 1), made, episode(used.policy.codec, 2, lengths=(1, 1, 1))]
    assert len(ids) == 7

    def told(rows, numbers):
        """Spread numbers of the whole episode over the rows that hold its tokens."""
        out = torch.zeros(len(rows), max(int(row.sampled.sum()) for row in rows))
        for i, row in enumerate(rows):
            tokens = row.ids[row.sampled].tolist()
            for start in range(8 - len(tokens)):
                if ids[start : start + len(tokens)].tolist() == tokens:
                    out[i, : len(tokens)] = torch.tensor(numbers[start : start + len(tokens)])
        return out

    score = used.policy.score
    used._critic_values = lambda rows, states: told(rows, values)
    used._reference_log_probs = lambda rows: (
        score(rows, temperature=0.7).log_probs - told(rows, gaps)
    )
    found = used.prepare(batch)
    assert found.turn_index[1].tolist()[:7] == [0, 0, 0, 1, 1, 2, 2]
    assert found.mask.sum(1).tolist() == [12, 7, 3] and found.turn_index[1, 7:].eq(-1).all()
    expect = {
        "rewards": (-0.0001, 0.00002, 0.5997, -0.00005, -0.05, 0.0001, 1.0996),
        "advantages": (0.644552, 0.544652, 0.344632, 0.194665, 0.294715, 0.4997, 0.1996),
        "returns": (1.544552, 1.544652, 1.544632, 0.994665, 0.994715, 1.0997, 1.0996),
    }
    for name, numbers in expect.items():
        row = getattr(found, name)[1]
        assert row[:7].tolist() == pytest.approx(numbers, abs=2e-6), name
        assert (row[7:] == 0).all()
    alone = whiten(found.advantages[1:2, :7], found.mask[1:2, :7])
    assert alone[0].tolist() == pytest.approx(
        (1.450717, 0.883758, -0.251409, -1.10251, -0.5347, 0.628645, -1.074503), abs=2e-5
    )


def test_whitening_is_that_of_the_whole_batch():
    used = learner()
    batch = used.prepare(batch_of(used.policy))
    picked = batch.advantages[batch.mask]
    assert picked.mean().item() == pytest.approx(0, abs=1e-6)
    assert picked.var().item() == pytest.approx(1, abs=1e-5)
    assert (batch.advantages[~batch.mask] == 0).all()


@pytest.mark.parametrize("critic", ["adapter", "head", "model"])
def test_at_first_advantages_are_the_returns(critic):
    """T30."""
    policy = load() if critic == "model" else adapted()
    used = learner(policy, critic=critic, whiten=False, beta=0.0)
    batch = used.prepare(batch_of(policy))
    assert (batch.values == 0).all() and (batch.returns[batch.mask] != 0).any()
    assert torch.equal(batch.advantages, batch.returns)
    # One turn of reward .1 and no discount inside it.
    assert batch.returns[1, :6].tolist() == pytest.approx([0.1] * 6)


@pytest.mark.parametrize("make", [load, adapted], ids=["full", "lora"])
def test_the_reference_stays_what_the_policy_was(make):
    """T29. In full training embedding and output layer are part of what the policy was."""
    policy = make(noise=0.0) if make is adapted else make()
    used = learner(policy, critic="head", beta=0.1, epochs=2, minibatch=2, actor_lr=1e-2)
    first = used.prepare(batch_of(policy))
    assert torch.equal(first.old_log_probs, first.ref_log_probs)  # the KL reward starts at 0
    used.update(batch_of(policy))
    after = used.prepare(batch_of(policy))
    assert torch.equal(after.ref_log_probs, first.ref_log_probs)
    assert (after.old_log_probs - first.old_log_probs).abs().max() > 0.1
    assert used.batch_metrics(after, batch_of(policy))["ref_kl"] != 0


# --- one step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["adapter", "head"])
def test_the_first_ratio_is_exactly_one(critic):
    """T25, though the critic has taken its step before."""
    used = learner(critic=critic)
    batch = used.prepare(batch_of(used.policy))
    everyone = np.arange(4)
    used.critic_step(batch, everyone)
    stats = used.actor_step(batch, everyone)
    assert stats["ratio_max"] == 1.0 and stats["approx_kl"] == 0.0 and stats["clipfrac"] == 0.0
    assert stats["policy_loss"] == pytest.approx(
        -float(batch.advantages[batch.mask].mean()), abs=1e-6
    )
    assert used.actor_step(batch, everyone)["approx_kl"] > 1e-6


def test_the_first_gradient_is_that_of_the_policy_gradient():
    used = learner()
    batch = used.prepare(batch_of(used.policy))
    ours, _ = gradients(used, "actor_step", batch)
    used.actor_optimizer.zero_grad()
    scores = used.policy.score(batch.rows, temperature=0.7)
    assert torch.equal(scores.mask, batch.mask)
    (-(batch.advantages * scores.log_probs)[batch.mask].mean()).backward()
    assert_same(ours, [p.grad for p in used.actor_parameters])


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean"])
@pytest.mark.parametrize("step", ["actor_step", "critic_step"])
def test_micro_batches_change_no_gradient(step, aggregation):
    """T19."""
    found = []
    for tokens in (1, 150, 300, 100_000):
        used = learner(aggregation=aggregation, entropy_coef=0.01, micro_batch_tokens=tokens)
        batch = used.prepare(batch_of(used.policy))
        found.append(gradients(used, step, batch))
    for grads, stats in found[:-1]:
        assert_same(found[-1][0], grads)
        for name in ("policy_loss", "value_loss", "approx_kl"):
            if name in stats:
                assert stats[name] == pytest.approx(found[-1][1][name], abs=1e-5)


def test_the_two_aggregations_are_not_the_same():
    # Otherwise the test above could not fail where a mean per micro-batch is taken.
    used = learner()
    batch = used.prepare(batch_of(used.policy))
    tokens, _ = gradients(used, "actor_step", batch)
    used.config = dataclasses.replace(used.config, aggregation="sequence-mean")
    sequences, _ = gradients(used, "actor_step", batch)
    assert any(float((a - b).abs().max()) > 1e-3 for a, b in zip(tokens, sequences, strict=True))


def test_windows_change_no_gradient_while_they_hold_everything():
    one, other = learner(history=2), learner(history=None)
    ours, _ = gradients(one, "actor_step", one.prepare(batch_of(one.policy)))
    theirs, _ = gradients(other, "actor_step", other.prepare(batch_of(other.policy)))
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("step", ["actor_step", "critic_step"])
def test_padding_and_other_episodes_have_no_part_in_a_step(step):
    """T18."""
    used = learner()
    batch = used.prepare(batch_of(used.policy))
    right, _ = gradients(used, step, batch, (0, 2))
    spoiled = {
        name: getattr(batch, name).clone()
        for name in ("advantages", "returns", "old_log_probs", "values")
    }
    for tensor in spoiled.values():
        tensor[~batch.mask] = math.nan
        tensor[[1, 3]] = math.inf
    again, _ = gradients(used, step, batch._replace(**spoiled), (0, 2))
    assert all(map(torch.equal, right, again)) and any(grad.any() for grad in right)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_actor_and_critic_both_learn_and_keep_apart(checkpointing):
    """T20 and T32: recomputation loses no gradient on the way through a whole update."""
    used = learner(adapted(checkpointing=checkpointing))
    policy = used.policy
    mine = {id(p) for p in (*used.actor_parameters, *used.critic_parameters)}
    frozen = [p for p in policy.base.parameters() if id(p) not in mine]
    base = snapshot(frozen)
    actor, critic = snapshot(used.actor_parameters), snapshot(used.critic_parameters)
    batch = used.prepare(batch_of(policy))
    assert used.critic_step(batch, np.arange(4))["critic_grad_norm"] > 0
    assert unchanged(used.actor_parameters, actor)
    assert not unchanged(used.critic_parameters, critic)
    critic = snapshot(used.critic_parameters)
    assert used.actor_step(batch, np.arange(4))["actor_grad_norm"] > 0
    assert unchanged(used.critic_parameters, critic)
    assert not unchanged(used.actor_parameters, actor)
    assert unchanged(frozen, base)


def test_recomputation_changes_no_update():
    """T32 from end to end."""
    results = []
    for checkpointing in (False, True):
        used = learner(adapted(checkpointing=checkpointing), epochs=2, minibatch=2)
        used.update(batch_of(used.policy))
        results.append(snapshot([*used.actor_parameters, *used.critic_parameters]))
    assert all(map(torch.equal, *results))


# --- a whole update -------------------------------------------------------------------------------


def test_the_bonus_is_paid_once_to_turns_that_retrieved():
    used = learner(bonus=RetrievalBonus())
    codec = used.policy.codec
    made = [
        episode(codec, 0, rewards=(0.6, -0.05, 1.1), retrieved=(True, False, False)),
        *(episode(codec, s, rewards=(0.0, 0.0, 0.1)) for s in range(1, 4)),
    ]
    metrics = used.update(made)  # one turn of twelve retrieved: below a tenth
    assert metrics["bonus"] == 1.0
    assert [turn.bonus for turn in made[0].turns] == [1.0, 0.0, 0.0]
    assert [turn.earned for turn in made[0].turns] == pytest.approx([1.6, -0.05, 1.1])
    assert [turn.reward for turn in made[0].turns] == [0.6, -0.05, 1.1]  # as the environment paid
    assert [turn.earned for turn in made[1].turns] == [0.0, 0.0, 0.1]
    assert metrics["bonus_share"] == pytest.approx(1 / (1 + 0.6 + 0.05 + 1.1 + 0.3))
    assert made[0].episode_return == pytest.approx(2.65)


def test_an_update_with_the_same_episodes_again_pays_nothing_twice():
    used = learner(bonus=RetrievalBonus(), whiten=False, beta=0.0)
    made = [episode(used.policy.codec, s, rewards=(0.0, 0.0, 0.1)) for s in range(4)]
    made[0].turns[0].retrieved = True
    first = used.update(made)
    returns = used.prepare(made).returns
    again = used.update(made)
    assert first["bonus"] == again["bonus"] == 1.0
    assert first["bonus_share"] == again["bonus_share"]
    assert made[0].episode_return == pytest.approx(1.1)
    torch.testing.assert_close(used.prepare(made).returns, returns)


def test_a_bonus_that_has_ended_is_taken_off_episodes_that_are_used_again():
    used = learner(bonus=RetrievalBonus())
    made = [episode(used.policy.codec, 0, retrieved=(True, False, False))]
    used.pay_bonus(made)
    assert made[0].turns[0].bonus == 0.5
    used.bonus = None
    assert used.pay_bonus(made) == {"bonus": 0.0, "bonus_share": 0.0}
    assert made[0].turns[0].bonus == 0.0


def test_the_bonus_moves_the_returns():
    used = learner(bonus=RetrievalBonus(), whiten=False, beta=0.0)
    made = [episode(used.policy.codec, 0, rewards=(0.0, 0.0, 0.1), retrieved=(True, True, False))]
    used.pay_bonus(made)  # two of three: no bonus any more
    assert used.prepare(made).returns[0, 0].item() == pytest.approx(0.95**2 * 0.1)
    made = [episode(used.policy.codec, 0, rewards=(0.0, 0.0, 0.1), retrieved=(True, False, False))]
    used.pay_bonus(made)  # one of three: .5
    assert used.prepare(made).returns[0, 0].item() == pytest.approx(0.5 + 0.95**2 * 0.1)


def test_episodes_that_broke_are_left_out_and_counted():
    used, other = learner(bonus=RetrievalBonus()), learner(bonus=RetrievalBonus())
    broken = episode(used.policy.codec, 9, rewards=(5.0, 5.0, 5.0), retrieved=(True, True, True))
    broken.infra_error = "FrameDecodeError: no frame"
    empty = Trajectory(used.policy.codec.system("Rules."))
    fine = batch_of(used.policy)
    metrics = used.update([fine[0], broken, *fine[1:], empty])
    assert metrics["infra_errors"] == 2
    alone = other.update(batch_of(other.policy))
    assert alone["infra_errors"] == 0
    timing = ("infra_errors", "score_s", "optimise_s")
    assert {k: v for k, v in metrics.items() if k not in timing} == pytest.approx(
        {k: v for k, v in alone.items() if k not in timing}
    )
    assert unchanged(used.actor_parameters, other.actor_parameters)
    assert broken.turns[0].reward == 5.0


def test_a_batch_of_nothing_but_faults_changes_nothing():
    used = learner(bonus=RetrievalBonus())
    before = snapshot(used.actor_parameters)
    broken = episode(used.policy.codec, 9)
    broken.infra_error = "FrameDecodeError: no frame"
    assert used.update([broken])["infra_errors"] == 1
    assert unchanged(used.actor_parameters, before) and used.step == 1


def test_minibatches_cover_the_batch_in_every_epoch():
    used = learner(epochs=3, minibatch=3, critic_epochs=2)
    seen = {"actor_step": [], "critic_step": []}
    for name, parts in seen.items():
        step = getattr(used, name)
        setattr(used, name, lambda b, e, p=parts, s=step: (p.append(e.tolist()), s(b, e))[1])
    metrics = used.update(batch_of(used.policy))
    assert len(seen["actor_step"]) == 6 and len(seen["critic_step"]) == 4  # two a pass
    for parts in seen.values():
        for start in range(0, len(parts), 2):
            assert sorted(parts[start] + parts[start + 1]) == [0, 1, 2, 3]
    assert metrics["ratio_max"] > 1 and metrics["approx_kl"] > 0
    assert metrics["response_tokens"] == 31


def test_beyond_the_target_kl_the_policy_rests_and_the_critic_goes_on():
    used = learner(target_kl=1e-4, epochs=6, actor_lr=1e-2)
    counts = {"actor_step": 0, "critic_step": 0}
    for name in counts:
        step = getattr(used, name)

        def counted(batch, episodes, name=name, step=step):
            counts[name] += 1
            return step(batch, episodes)

        setattr(used, name, counted)
    used.update(batch_of(used.policy))
    # The first step starts at a KL of 0; the second finds out.
    assert counts == {"actor_step": 2, "critic_step": 6}
    used.update(batch_of(used.policy))
    assert counts == {"actor_step": 4, "critic_step": 12}


def test_a_step_without_a_finite_gradient_is_skipped_and_counted():
    used = learner(epochs=2)
    actor, critic = snapshot(used.actor_parameters), snapshot(used.critic_parameters)
    made = batch_of(used.policy)
    made[0].turns[0].reward = math.nan
    metrics = used.update(made)
    assert metrics["skipped_steps"] == 4
    assert unchanged(used.actor_parameters, actor) and unchanged(used.critic_parameters, critic)
    metrics = used.update(batch_of(used.policy))
    assert metrics["skipped_steps"] == 0
    assert not unchanged(used.actor_parameters, actor)
    assert all(math.isfinite(value) for value in metrics.values())


def test_while_the_critic_warms_up_the_policy_rests():
    used = learner(critic_warmup=2)
    actor, critic = snapshot(used.actor_parameters), snapshot(used.critic_parameters)
    for _ in range(2):
        metrics = used.update(batch_of(used.policy))
        assert "policy_loss" not in metrics and metrics["critic_grad_norm"] > 0
    assert unchanged(used.actor_parameters, actor)
    assert not unchanged(used.critic_parameters, critic)
    assert "policy_loss" in used.update(batch_of(used.policy))
    assert not unchanged(used.actor_parameters, actor)


def test_the_critic_comes_to_explain_the_returns():
    used = learner(critic="head", critic_warmup=100, critic_epochs=8, critic_lr=1e-2)
    first = used.update(batch_of(used.policy))["explained_variance"]
    for _ in range(6):
        last = used.update(batch_of(used.policy))["explained_variance"]
    assert first == pytest.approx(0) and last > 0.5


def test_the_same_seed_learns_the_same_and_another_does_not():
    results = []
    for seed in (0, 0, 1):
        used = learner(seed=seed, minibatch=2)
        for _ in range(2):
            used.update(batch_of(used.policy))
        results.append(snapshot(used.actor_parameters))
    assert all(map(torch.equal, results[0], results[1]))
    assert not all(map(torch.equal, results[0], results[2]))


@pytest.mark.parametrize("critic", ["adapter", "head", "model"])
def test_a_learner_goes_on_from_its_state(critic):
    def fresh():
        policy = load() if critic == "model" else adapted()
        return learner(policy, RetrievalBonus(patience=1), critic=critic, beta=0.1, minibatch=2)

    used = fresh()
    used.update(batch_of(used.policy))
    weights, state = copy.deepcopy(used.policy.base.state_dict()), copy.deepcopy(used.state_dict())
    expected = used.update(batch_of(used.policy))
    again = fresh()
    again.policy.base.load_state_dict(weights)
    again.load_state_dict(state)
    assert again.step == 1 and again.bonus.state_dict() == state["bonus"]
    found = again.update(batch_of(again.policy))
    timing = ("score_s", "optimise_s")
    assert {k: v for k, v in found.items() if k not in timing} == {
        k: v for k, v in expected.items() if k not in timing
    }
    assert unchanged(again.actor_parameters, used.actor_parameters)
    assert unchanged(again.critic_parameters, used.critic_parameters)


# --- settings -------------------------------------------------------------------------------------


def test_presets_are_those_of_the_specification():
    paper = {
        "gamma_token": 1, "lambda_token": 1, "gamma_turn": 0.95, "lambda_turn": 1, "beta": 0.001,
        "clip_low": 0.2, "clip_high": 0.2, "value_clip": 0.5, "entropy_coef": 0.001, "epochs": 1,
        "minibatch": 8, "temperature": 0.7, "top_p": 0.95, "grad_clip": 1, "critic_warmup": 0,
        "actor_lr": 1e-6, "critic_lr": 1e-5, "critic": "model", "history": 2, "dual_clip": None,
    }  # fmt: skip
    # LoRA takes about ten times the learning rate of full fine-tuning.
    recommended = {
        **paper, "clip_high": 0.28, "top_p": 1.0, "entropy_coef": 0.0, "critic_warmup": 10,
        "critic": "adapter", "actor_lr": 1e-5, "critic_lr": 1e-4,
    }  # fmt: skip
    for name, numbers in (("paper", paper), ("recommended", recommended)):
        found = dataclasses.asdict(PRESETS[name])
        assert {key: found[key] for key in numbers} == numbers, name
    assert PRESETS["tiny"].gamma_turn == 0.95 and PRESETS["tiny"].lambda_turn == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma_turn": 1.1}, r"gamma_turn=1.1 must be a number in \[0, 1\]"),
        ({"lambda_token": math.nan}, r"lambda_token=nan must be a number in \[0, 1\]"),
        ({"beta": -0.1}, r"beta=-0.1 must be a number, 0 or more"),
        ({"clip_low": 1.0}, r"clip_low=1.0 must be a number in \[0, 1\)"),
        ({"dual_clip": 1.0}, r"dual_clip=1.0 must be a number greater than 1, or None"),
        ({"value_clip": 0.0}, r"value_clip=0.0 must be a number greater than 0, or None"),
        ({"epochs": 1.5}, r"epochs=1.5 must be a whole number, 1 or more"),
        ({"epochs": True}, r"epochs=True must be a whole number, 1 or more"),
        ({"minibatch": 0}, r"minibatch=0 must be a whole number, 1 or more"),
        ({"critic_epochs": 0}, r"critic_epochs=0 must be a whole number, 1 or more, or None"),
        ({"critic_warmup": -1}, r"critic_warmup=-1 must be a whole number, 0 or more"),
        ({"actor_lr": 0}, r"actor_lr=0 must be a number greater than 0"),
        ({"target_kl": 0}, r"target_kl=0 must be a number greater than 0, or None"),
        ({"temperature": math.inf}, r"temperature=inf must be a number greater than 0"),
        ({"top_p": 1.2}, r"top_p=1.2 must be a number in \(0, 1\]"),
        ({"history": -1}, r"history=-1 must be a whole number, 0 or more, or None"),
        ({"history": 1.5}, r"history=1.5 must be a whole number, 0 or more, or None"),
        ({"aggregation": "mean"}, r"aggregation='mean' is unknown; use one of \['token-mean'"),
        ({"critic": "big"}, r"critic='big' is unknown; use one of \['adapter'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**options)


def test_presets_take_overrides():
    assert make_config("paper", epochs=2) == dataclasses.replace(PRESETS["paper"], epochs=2)
    with pytest.raises(ValueError, match=r"preset='big' is unknown; use one of \['paper', 'reco"):
        make_config("big")
    with pytest.raises(
        ValueError, match=r"PPOConfig has no 'epoch' \(did you mean 'epochs'\?\); use some of \["
    ):
        make_config("paper", epoch=2)


# --- learning -------------------------------------------------------------------------------------


def bandit(used, seed, count=16):
    """Play one question; whether the first token of the reply is an odd id is all that counts."""
    codec, policy = used.policy.codec, used.policy
    image = np.random.default_rng(0).integers(0, 256, (*DOT, 3), dtype=np.uint8)
    system, user = codec.system("Rules."), codec.user(show("Turn 1 of 1.", image))
    generator = torch.Generator().manual_seed(seed)
    session = DecodeSession(policy, Sampling(temperature=2.0, max_new_tokens=3), generator)
    replies = session.reply(range(count), [[system, user]] * count)
    return [
        Trajectory(
            system, [Exchange(user, r, codec.close(codec.reply(r.ids)), float(r.ids[0] % 2 == 1))]
        )
        for r in replies
    ]


def rewarded(policy):
    """Return the probability of the replies that the bandit rewards."""
    made = bandit(PPOStub(policy), 0, 1)[0]
    with torch.no_grad():
        states, _, _ = policy.states([policy.row(next(made.rows(policy.codec, None)))])
    return float(policy.logits(states[:1], 2.0).softmax(-1)[0, 1::2].sum())


class PPOStub:
    def __init__(self, policy):
        self.policy = policy


@pytest.mark.parametrize("critic", ["adapter", "head"])
def test_what_is_rewarded_becomes_likelier(critic):
    used = learner(critic=critic, actor_lr=5e-3, minibatch=16, temperature=2.0)
    before = rewarded(used.policy)
    for step in range(5):
        used.update(bandit(used, step))
    assert before < 0.6 and rewarded(used.policy) > before + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_tiny_model_overfits_one_group_of_episodes(kind):
    """T34: the reward rises, the distance to the reference grows, the entropy falls."""
    policy = adapted(noise=0.0) if kind == "lora" else load()
    used = learner(
        policy,
        critic="head" if kind == "lora" else "model",
        actor_lr=5e-3 if kind == "lora" else 3e-4,
        minibatch=16,
        beta=0.001,
        temperature=2.0,
    )
    rewards, distances, entropies = [], [], []
    for step in range(30):
        made = bandit(used, step, 32)
        rewards.append(np.mean([e.episode_return for e in made]))
        metrics = used.update(made)
        distances.append(metrics["ref_kl"])
        entropies.append(metrics["entropy"])
    thirds = [np.mean(rewards[start : start + 10]) for start in (0, 10, 20)]
    assert thirds[0] < min(thirds[1:]) and thirds[2] > 0.95
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert np.mean(distances[20:]) > np.mean(distances[:10]) and np.mean(distances[20:]) > 0.05
    assert np.mean(entropies[20:]) < np.mean(entropies[:5])


# --- precision ------------------------------------------------------------------------------------


def test_weights_too_coarse_to_move_are_refused():
    coarse = load(dtype=torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"policy's trained weights are torch\.bfloat16.*use LoRA, or"
    ):
        learner(coarse, critic="head", actor_lr=1e-6)
    frozen = load(dtype=torch.bfloat16, lora=LoRA(rank=2))
    with pytest.raises(ValueError, match=r"critic's trained weights are .*use critic='adapter'"):
        learner(frozen, critic="model")


@pytest.mark.parametrize("critic", ["adapter", "head"])
def test_adapters_of_a_bfloat16_model_are_in_single_precision_and_move_by_little(critic):
    used = learner(load(dtype=torch.bfloat16, lora=LoRA(rank=4)), critic=critic, actor_lr=1e-6)
    assert used.policy.head.weight.dtype == torch.bfloat16
    trained = [*used.actor_parameters, *used.critic_parameters]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    before = snapshot(used.actor_parameters)
    assert math.isfinite(used.update(batch_of(used.policy))["policy_loss"])
    steps = [(p - b).abs().max() for p, b in zip(used.actor_parameters, before, strict=True)]
    assert 1e-7 < max(steps) < 2e-6


@pytest.mark.parametrize("critic", ["adapter", "head"])
def test_states_are_kept_for_a_critic_that_reads_them_and_for_no_other(critic):
    used = learner(critic=critic)
    asked = []
    score = used.policy.score
    used.policy.score = lambda *a, **k: (asked.append(k.get("with_hidden", False)), score(*a, **k))[
        1
    ]
    used.update(batch_of(used.policy))
    assert any(asked) == (critic == "head")
