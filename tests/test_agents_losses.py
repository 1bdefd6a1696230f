"""Losses: worked numbers, gradients against finite differences, masked tokens, micro-batches."""

from __future__ import annotations

import math

import pytest
import torch

from agents.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    entropy_loss,
    kl_estimate,
    token_weights,
)

torch.set_num_threads(1)
NAN, INF = math.nan, math.inf

OLD = torch.tensor([[-1.0, -2.0, -0.5, -1.5, -3.0]], dtype=torch.float64)
NEW = torch.tensor([[-0.8, -2.4, -0.5, -0.9, -1.2]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[1.0, -1.0, 0.5, 1.0, -1.0]], dtype=torch.float64)
FIFTHS = torch.full((1, 5), 0.2, dtype=torch.float64)


def alone(index: int) -> torch.Tensor:
    """Weigh one of the five tokens only."""
    return torch.eye(5, dtype=torch.float64)[index : index + 1]


def policy_loss(weights=FIFTHS, log_probs=NEW, advantages=ADVANTAGES, **clips):
    return clipped_policy_loss(log_probs, OLD, advantages, weights, **clips)


# --- worked numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clips", "terms", "mean", "clipfrac"),
    [
        ({}, (-1.2, 0.8, -0.5, -1.2, 6.049647), 0.789929, 0.6),
        ({"clip_high": 0.28}, (-1.221403, 0.8, -0.5, -1.28, 6.049647), 0.769649, 0.4),
        (
            {"clip_high": 0.28, "dual_clip": 3.0},
            (-1.221403, 0.8, -0.5, -1.28, 3.0),
            0.159719,
            0.4,
        ),
    ],
    ids=["symmetric", "clip-higher", "dual-clip"],
)
def test_the_policy_loss_of_five_tokens(clips, terms, mean, clipfrac):
    loss, stats = policy_loss(**clips)
    assert loss.item() == pytest.approx(mean, abs=1e-6)
    assert stats["clipfrac"].item() == pytest.approx(clipfrac)
    for index, term in enumerate(terms):
        assert policy_loss(alone(index), **clips)[0].item() == pytest.approx(term, abs=1e-6)


def test_the_policy_loss_reports_k3_and_the_largest_ratio():
    _, stats = policy_loss()
    assert stats["approx_kl"].item() == pytest.approx(0.712698, abs=1e-6)
    assert stats["ratio_max"].item() == pytest.approx(6.049647, abs=1e-6)
    assert policy_loss(alone(1))[1]["ratio_max"].item() == pytest.approx(0.67032, abs=1e-6)


@pytest.mark.parametrize(
    ("value_clip", "loss", "clipfrac"),
    # .5 * (.16 + .01 + .81) / 3; with the clip .9 counts as .7.
    [(None, 0.163333, 0.0), (0.2, 0.176667, 1 / 3), (0.5, 0.163333, 0.0)],
)
def test_the_value_loss_of_three_tokens(value_clip, loss, clipfrac):
    values = torch.tensor([[0.6, 0.9, 0.1]], dtype=torch.float64)
    old, returns = torch.full_like(values, 0.5), torch.ones_like(values)
    found, stats = clipped_value_loss(
        values, old, returns, torch.full_like(values, 1 / 3), value_clip=value_clip
    )
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert stats["clipfrac"].item() == pytest.approx(clipfrac)
    assert stats["error"].item() == pytest.approx(0.98 / 3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("k1", (0.2, -0.5)), ("k2", (0.02, 0.125)), ("k3", (0.018731, 0.148721))],
)
def test_kl_estimates_of_two_tokens(kind, expected):
    found = kl_estimate(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.2, -1.5]]), kind)
    assert found[0].tolist() == pytest.approx(list(expected), abs=1e-6)


def test_the_mean_k1_of_the_five_tokens_is_minus_0_44_seen_from_the_old_policy():
    assert kl_estimate(OLD, NEW).mean().item() == pytest.approx(-0.44)
    assert kl_estimate(OLD, NEW, "k3").mean().item() == pytest.approx(0.712698, abs=1e-6)


def test_two_tokens_of_loss_1_and_eight_of_loss_0_weigh_0_2_or_0_5():
    mask = torch.arange(8)[None] < torch.tensor([[2], [8]])
    terms = torch.tensor([[1.0], [0.0]])
    assert (token_weights(mask) * terms).sum().item() == pytest.approx(0.2)
    assert (token_weights(mask, "sequence-mean") * terms).sum().item() == pytest.approx(0.5)


def test_weights_sum_to_1_and_rows_without_tokens_count_for_nothing():
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    for aggregation in ("token-mean", "sequence-mean"):
        weights = token_weights(mask, aggregation)
        assert weights.dtype == torch.float32
        assert weights.sum().item() == pytest.approx(1.0)
        assert not weights[~mask].any()
        assert not token_weights(torch.zeros_like(mask), aggregation).any()
    assert token_weights(mask, "sequence-mean")[0, 0].item() == pytest.approx(0.25)


# --- gradients ------------------------------------------------------------------------------------


def softmax_policy(seed: int = 0, rows: int = 3, columns: int = 4, choices: int = 5):
    """Return logits (B, N, C), sampled tokens, advantages, mask, all in double precision."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, columns, choices, generator=generator, dtype=torch.float64)
    tokens = torch.randint(choices, (rows, columns), generator=generator)
    advantages = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mask = torch.arange(columns)[None] < torch.tensor([[columns], [2], [1]])
    return logits, tokens, advantages, mask


def chosen(logits, tokens, temperature=1.0):
    log_probs = (logits / temperature).log_softmax(-1)
    return log_probs.gather(-1, tokens[..., None])[..., 0]


def test_at_ratio_1_the_loss_is_minus_the_mean_advantage():
    logits, tokens, advantages, mask = softmax_policy()
    log_probs = chosen(logits, tokens)
    weights = token_weights(mask).double()
    loss, stats = clipped_policy_loss(log_probs, log_probs, advantages, weights)
    assert loss.item() == pytest.approx(-advantages[mask].mean().item(), abs=1e-7)
    assert (stats["approx_kl"], stats["clipfrac"], stats["ratio_max"]) == (0, 0, 1)


def test_at_ratio_1_the_gradient_is_minus_a_times_indicator_minus_probability():
    logits, tokens, advantages, mask = softmax_policy()
    temperature, logits = 0.7, logits.requires_grad_()
    log_probs = chosen(logits, tokens, temperature)
    weights = token_weights(mask).double()
    loss, _ = clipped_policy_loss(log_probs, log_probs.detach(), advantages, weights)
    (gradient,) = torch.autograd.grad(loss, logits)
    indicator = torch.nn.functional.one_hot(tokens, 5)
    probability = (logits.detach() / temperature).softmax(-1)
    expected = -(weights * advantages)[..., None] * (indicator - probability) / temperature
    assert torch.allclose(gradient, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean"])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_the_policy_gradient_agrees_with_finite_differences(aggregation, dual_clip):
    logits, tokens, advantages, mask = softmax_policy(1)
    old = chosen(logits, tokens) + 0.3 * torch.sin(torch.arange(12.0).reshape(3, 4) * 5)
    weights = token_weights(mask, aggregation).double()

    def loss(logits):
        return clipped_policy_loss(
            chosen(logits, tokens), old, advantages, weights, dual_clip=dual_clip
        )[0]

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("value_clip", [None, 0.2])
def test_the_value_gradient_agrees_with_finite_differences(value_clip):
    generator = torch.Generator().manual_seed(0)
    values, old, returns = torch.randn(3, 3, 4, generator=generator, dtype=torch.float64)
    weights = token_weights(softmax_policy()[3]).double()

    def loss(values):
        return clipped_value_loss(values, old, returns, weights, value_clip=value_clip)[0]

    assert torch.autograd.gradcheck(loss, values.requires_grad_())


def test_the_entropy_gradient_agrees_with_finite_differences_and_its_sign_rewards_entropy():
    logits, _, _, mask = softmax_policy()
    weights = token_weights(mask).double()

    def loss(logits):
        log_probs = logits.log_softmax(-1)
        return entropy_loss(-(log_probs.exp() * log_probs).sum(-1), weights)

    assert loss(torch.zeros_like(logits)).item() == pytest.approx(-math.log(5), abs=1e-6)
    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


def gradient_of_one_token(ratio: float, advantage: float, **clips) -> float:
    log_prob = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    loss, _ = clipped_policy_loss(log_prob, 0 * one, advantage * one, one, **clips)
    loss.backward()
    assert log_prob.grad is not None
    return log_prob.grad.item()


@pytest.mark.parametrize("clip_high", [0.2, 0.28])
def test_the_gradient_stops_where_the_ratio_has_moved_far_enough(clip_high):
    clips = {"clip_high": clip_high}
    beyond, within = 1 + clip_high + 0.01, 1 + clip_high - 0.01
    assert gradient_of_one_token(beyond, 1.0, **clips) == 0.0
    assert gradient_of_one_token(within, 1.0, **clips) == pytest.approx(-within)
    assert gradient_of_one_token(0.79, -1.0, **clips) == 0.0
    assert gradient_of_one_token(0.81, -1.0, **clips) == pytest.approx(0.81)


def test_the_gradient_goes_on_where_the_ratio_moved_the_wrong_way():
    assert gradient_of_one_token(0.5, 1.0) == pytest.approx(-0.5)
    assert gradient_of_one_token(1.5, -1.0) == pytest.approx(1.5)


def test_dual_clip_stops_the_gradient_of_a_bad_token_that_became_far_likelier():
    assert gradient_of_one_token(2.9, -1.0, dual_clip=3.0) == pytest.approx(2.9)
    assert gradient_of_one_token(3.1, -1.0, dual_clip=3.0) == 0.0
    assert gradient_of_one_token(0.5, 1.0, dual_clip=3.0) == pytest.approx(-0.5)


def test_an_enormous_ratio_is_finite():
    far = torch.tensor([[-1000.0, 0.0]])
    loss, stats = clipped_policy_loss(far, far.flip(1), -torch.ones(1, 2), torch.full((1, 2), 0.5))
    assert loss.isfinite() and all(value.isfinite() for value in stats.values())
    assert stats["ratio_max"].item() == pytest.approx(math.exp(20), rel=1e-5)
    assert kl_estimate(far, far.flip(1), "k3").isfinite().all()


def test_a_critic_that_left_its_old_value_in_the_right_direction_gets_no_gradient():
    for value, expected in ((0.9, 0.0), (0.6, -0.4), (0.1, -0.9)):
        values = torch.tensor([[value]], requires_grad=True)
        one = torch.ones(1, 1)
        loss, _ = clipped_value_loss(values, 0.5 * one, one, one, value_clip=0.2)
        loss.backward()
        assert values.grad is not None
        assert values.grad.item() == pytest.approx(expected)


# --- masked tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [0.0, NAN, INF, -INF, 1e38])
def test_a_token_of_weight_0_gets_no_gradient_and_adds_nothing_whatever_stands_there(junk):
    mask = torch.tensor([[True, False, True], [False, True, False]])
    weights = token_weights(mask)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(4, 2, 3, generator=generator)
    dirty = torch.where(mask, clean, junk)

    def run(x):
        now = x[0].clone().requires_grad_()
        losses = [
            clipped_policy_loss(now, x[1], x[2], weights, dual_clip=3.0)[0],
            clipped_value_loss(now, x[1], x[2], weights, value_clip=0.5)[0],
            entropy_loss(now, weights),
        ]
        return [*losses, *(torch.autograd.grad(loss, now)[0] for loss in losses)]

    for found, expected in zip(run(dirty), run(clean), strict=True):
        assert torch.equal(found, expected)
        if found.ndim:
            assert not found[~mask].any() and found[mask].any()
    for stats in (
        clipped_policy_loss(dirty[0], dirty[1], dirty[2], weights)[1],
        clipped_value_loss(dirty[0], dirty[1], dirty[2], weights)[1],
    ):
        assert all(value.isfinite() for value in stats.values())


def test_logits_of_masked_tokens_get_a_gradient_of_exactly_0():
    logits, tokens, advantages, mask = softmax_policy()
    logits = logits.requires_grad_()
    log_probs = chosen(logits, tokens)
    weights = token_weights(mask).double()
    loss, _ = clipped_policy_loss(log_probs, log_probs.detach() - 0.1, advantages, weights)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[~mask].any() and gradient[mask].any()


def test_a_micro_batch_without_tokens_has_loss_0_and_neutral_numbers():
    nothing = torch.full((2, 3), NAN, requires_grad=True)
    weights = torch.zeros(2, 3)
    loss, stats = clipped_policy_loss(nothing, nothing, nothing, weights)
    assert {key: value.item() for key, value in stats.items()} == {
        "approx_kl": 0.0,
        "clipfrac": 0.0,
        "ratio_max": 1.0,
    }
    total = loss + clipped_value_loss(nothing, nothing, nothing, weights)[0]
    total.backward()
    assert total.item() == 0.0 and nothing.grad is not None and not nothing.grad.any()


# --- micro-batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean"])
def test_micro_batches_of_1_2_and_8_accumulate_the_same_gradient(aggregation):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 6, 4, generator=generator)
    tokens = torch.randint(3, (8, 6), generator=generator)
    mask = torch.arange(6)[None] < torch.tensor([[6, 1, 3, 2, 5, 4, 1, 6]]).T
    advantages, old, old_values, returns = torch.randn(4, 8, 6, generator=generator)
    old = -old.abs()
    weights = token_weights(mask, aggregation)
    start = 0.3 * torch.randn(4, 4, generator=generator)

    def accumulate(size):
        head = start.clone().requires_grad_()  # three logits and a value
        totals = torch.zeros(5)
        for i in range(0, 8, size):
            cut = slice(i, i + size)
            out = features[cut] @ head
            log_probs = out[..., :3].log_softmax(-1)
            now = log_probs.gather(-1, tokens[cut, :, None])[..., 0]
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            actor, about = clipped_policy_loss(now, old[cut], advantages[cut], weights[cut])
            critic, error = clipped_value_loss(
                out[..., 3], old_values[cut], returns[cut], weights[cut]
            )
            loss = actor + critic + 0.01 * entropy_loss(entropy, weights[cut])
            loss.backward()
            parts = (loss, about["approx_kl"], about["clipfrac"], error["clipfrac"], error["error"])
            totals += torch.stack(parts).detach()
        assert head.grad is not None
        return head.grad, totals

    gradient, totals = accumulate(8)
    assert gradient.abs().max() > 0.01
    for size in (1, 2):
        found = accumulate(size)
        assert torch.allclose(found[0], gradient, atol=1e-6, rtol=0)
        assert torch.allclose(found[1], totals, atol=1e-6, rtol=1e-6)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ({"clip_low": 1.0}, r"clip_low=1\.0 must lie in 0\.\.1"),
        ({"clip_low": NAN}, r"clip_low=nan"),
        ({"clip_high": -0.1}, r"clip_high=-0\.1 must be 0 or more"),
        ({"dual_clip": 1.0}, r"dual_clip=1\.0 must be greater than 1"),
    ],
)
def test_a_clip_without_meaning_is_refused(clips, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(**clips)


def test_unknown_kinds_and_clips_are_named_with_their_choices():
    mask = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"aggregation='mean' is unknown; use one of \('token-mean'"
    ):
        token_weights(mask, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"kind='k4' is unknown; use one of \('k1', 'k2', 'k3'\)"):
        kl_estimate(OLD, NEW, "k4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"value_clip=0\.0 must be greater than 0"):
        clipped_value_loss(OLD, OLD, OLD, FIFTHS, value_clip=0.0)
    with pytest.raises(ValueError, match=r"mask is torch\.float32"):
        token_weights(mask.float())
