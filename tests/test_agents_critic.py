"""Critics: zero at first, apart from the actor, trained under the right adapter.

Oracles T20 and T30 of the specification, and its trap of section 4.3.
"""

from __future__ import annotations

import pytest
import torch
from agents_models import adapted, load, perturb, shared, training_rows

from agents.model.critic import Critic, ValueHead
from agents.model.policy import ACTOR, CRITIC

KINDS = ("adapter", "model", "head")


@pytest.fixture(scope="module")
def rows():
    return training_rows(shared())


def make(kind, **options):
    """Return a critic with its policy: full fine-tuning for "model", LoRA for the others."""
    policy = load(**options) if kind == "model" else adapted(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return Critic(policy, kind), policy


def values(critic, policy, rows):
    if critic.reads_rows:
        return critic(rows)
    with torch.no_grad():
        states = policy.score(rows, with_hidden=True).hidden
    return critic(states=states)


def learn(critic, policy, rows, steps=1, lr=1e-2):
    optimizer = torch.optim.AdamW(critic.trained_parameters(), lr=lr)
    losses = []
    with critic.role():
        for _ in range(steps):
            optimizer.zero_grad()
            mask = torch.zeros(4, 12, dtype=torch.bool)
            for i, row in enumerate(rows):
                mask[i, : int(row.sampled.sum())] = True
            target = torch.linspace(-1, 1, 12).expand(4, 12)
            loss = (values(critic, policy, rows) - target)[mask].square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_critic_says_exactly_zero(rows, kind):
    """T30."""
    critic, policy = make(kind)
    found = values(critic, policy, rows)
    assert found.shape == (4, 12) and found.dtype == torch.float32
    assert (found == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_zero_beyond_the_response_and_depend_on_what_came_before(rows, kind):
    critic, policy = make(kind)
    perturb(list(critic.head.parameters()), 0.3)
    found = values(critic, policy, rows).detach()
    if kind != "head":
        assert (found[1, 6:] == 0).all() and (found[3, 4:] == 0).all()
    other = list(rows)
    other[0] = rows[0]._replace(frames=tuple(255 - frame for frame in rows[0].frames))
    changed = values(critic, policy, other).detach()
    assert (changed[0] - found[0]).abs().max() > 1e-2
    torch.testing.assert_close(changed[1, :6], found[1, :6], atol=1e-4, rtol=0)


def test_a_value_does_not_see_its_own_token(rows):
    critic, _ = make("adapter")
    perturb(list(critic.head.parameters()), 0.3)
    row = rows[1]
    last = row.ids.copy()
    last[-1] = last[-2]
    before, after = critic([row]), critic([row._replace(ids=last)])
    assert torch.equal(before, after)
    early = row.ids.copy()
    place = int(row.sampled.argmax())
    early[place] = early[place + 1]
    moved = (critic([row._replace(ids=early)]) - before).abs()[0]
    assert moved[0] == 0 and moved[1:].max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_learning_moves_the_critic_and_nothing_else(rows, kind):
    """T20: actor, frozen trunk and tower stay bitwise as they were."""
    critic, policy = make(kind)
    mine = {id(parameter) for parameter in critic.trained_parameters()}
    others = {n: p.clone() for n, p in policy.base.named_parameters() if id(p) not in mine}
    assert len(others) > 40
    with torch.no_grad():
        acting = policy.score(rows).log_probs
    losses = learn(critic, policy, rows, steps=5)
    assert losses[-1] < losses[0]
    for name, parameter in policy.base.named_parameters():
        if name in others:
            assert torch.equal(parameter, others[name]), name
    with torch.no_grad():
        assert torch.equal(policy.score(rows).log_probs, acting)


@pytest.mark.parametrize("kind", KINDS)
def test_an_actor_step_leaves_the_critic_alone(rows, kind):
    """T20, the other way round."""
    critic, policy = make(kind)
    perturb(list(critic.head.parameters()), 0.3)
    before = [parameter.clone() for parameter in critic.trained_parameters()]
    said = values(critic, policy, rows).detach()
    optimizer = torch.optim.AdamW(policy.actor_parameters(), lr=1e-2)
    policy.score(rows).log_probs.sum().backward()
    optimizer.step()
    for parameter, old in zip(critic.trained_parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    if kind != "head":  # which reads the actor's states
        assert torch.equal(values(critic, policy, rows), said)


@pytest.mark.parametrize("kind", ["adapter", "model"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_of_the_critic_gets_a_gradient(rows, kind, checkpointing):
    """With recomputation a backward pass under the wrong adapter would give none, silently."""
    critic, policy = make(kind, checkpointing=checkpointing)
    perturb(critic.trained_parameters(), 0.05)
    with critic.role():
        values(critic, policy, rows).square().sum().backward()
    for parameter in critic.trained_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
    actors = {id(p) for p in policy.actor_parameters()}
    touched = [
        n for n, p in policy.base.named_parameters() if p.grad is not None and id(p) in actors
    ]
    assert not touched


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_recomputing_activations_does_not_change_the_gradient(rows, kind):
    """T32 for critics."""
    found = []
    for checkpointing in (False, True):
        critic, policy = make(kind, checkpointing=checkpointing)
        perturb(critic.trained_parameters(), 0.05)
        with critic.role():
            values(critic, policy, rows).square().sum().backward()
        found.append([parameter.grad for parameter in critic.trained_parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_leaving_the_role_before_the_backward_pass_is_the_trap(rows):
    """What ``role`` is for; if this fails, the upstream trap is gone."""
    critic, policy = make("adapter", checkpointing=True)
    perturb(critic.trained_parameters(), 0.05)
    loss = values(critic, policy, rows).square().sum()
    assert policy.peft.active_adapter == ACTOR
    try:
        loss.backward()
    except RuntimeError:
        return  # newer versions of torch notice that other tensors were computed
    assert all(p.grad is None for p in critic._adapter)


def test_the_role_is_the_critics_adapter():
    critic, policy = make("adapter")
    with critic.role():
        assert policy.peft.active_adapter == CRITIC
    assert policy.peft.active_adapter == ACTOR


@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_comes_back_from_its_state(rows, kind):
    critic, policy = make(kind)
    learn(critic, policy, rows, steps=2)
    state = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    said = values(critic, policy, rows)
    again, other = make(kind)
    assert not torch.equal(values(again, other, rows), said)
    again.load_state_dict(state)
    assert torch.equal(values(again, other, rows), said)


def test_a_head_for_states_has_a_hidden_layer_and_the_others_none():
    assert make("head")[0].head.inner is not None
    assert make("adapter")[0].head.inner is None
    assert Critic(load(), "head", inner=8).head.inner.out_features == 8


def test_a_head_reads_the_state_of_each_token_and_gives_no_gradient_back(rows):
    critic, policy = make("head")
    perturb(list(critic.head.parameters()), 0.3)
    states = policy.score(rows, with_hidden=True).hidden
    found = critic(states=states)
    torch.testing.assert_close(found[2, 3], critic.head(states[2, 3]), atol=1e-5, rtol=1e-5)
    found.sum().backward()
    assert all(parameter.grad is None for parameter in policy.actor_parameters())


def test_a_model_of_its_own_sends_no_gradient_into_the_tower_that_the_actor_trains(rows):
    critic, policy = make("model", train_vision=True)
    perturb(list(critic.head.parameters()), 0.3)
    values(critic, policy, rows).sum().backward()
    assert all(parameter.grad is None for parameter in policy.actor_parameters())
    assert any(parameter.grad.abs().max() > 0 for parameter in critic.trunk.parameters())
    policy.score(rows).log_probs.sum().backward()
    assert any(p.grad.abs().max() > 0 for p in policy.encoder.visual.parameters())


def test_values_of_half_precision_states_are_in_single_precision():
    head = ValueHead(4)
    assert head(torch.ones(2, 3, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_nonsense_is_refused(rows):
    with pytest.raises(ValueError, match=r"critic='big' is unknown; use one of \['adapter'"):
        Critic(load(), "big")
    with pytest.raises(ValueError, match="adapter 'critic' needs lora=; pass it to the policy"):
        Critic(load(), "adapter")
    with pytest.raises(ValueError, match="critic='head' needs states="):
        make("head")[0](rows)
    with pytest.raises(ValueError, match="critic='adapter' needs rows="):
        make("adapter")[0](states=torch.zeros(1, 1, 64))
