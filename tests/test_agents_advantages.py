"""Turn-aware GAE: worked numbers, the estimators it contains as special cases, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.advantages import NOISE, explained_variance, token_rewards, turn_aware_gae, whiten
from gym_longvideo.rewards import BiLevelReward, TurnFacts

torch.set_num_threads(1)
NAN, INF = math.nan, math.inf
PAPER = {"gamma_token": 1.0, "lambda_token": 1.0, "gamma_turn": 0.95, "lambda_turn": 1.0}
MIXED = {"gamma_token": 0.99, "lambda_token": 0.95, "gamma_turn": 0.95, "lambda_turn": 0.9}


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def turns(*indices: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mask, turn_index) of one row; -1 is no response token."""
    index = torch.tensor([indices])
    return index >= 0, index


def assert_row(tensor: torch.Tensor, *numbers: float, tolerance: float = 1e-6):
    assert tensor.shape == (1, len(numbers))
    assert tensor[0].tolist() == pytest.approx(list(numbers), abs=tolerance)


def gae(rewards, values, turn_index, **parameters):
    return turn_aware_gae(rewards, values, turn_index >= 0, turn_index, **parameters)


# --- worked numbers -------------------------------------------------------------------------------

SINGLE = {"gamma_token": 0.9, "lambda_token": 0.8}


@pytest.mark.parametrize("of_turns", [{}, {"gamma_turn": 0.3, "lambda_turn": 0.2}])
def test_one_turn_is_standard_gae_whatever_the_parameters_of_turns(of_turns):
    mask, index = turns(0, 0, 0, 0)
    advantages, returns = turn_aware_gae(
        row(0, 0, 0, 1), row(0.5, 0.4, 0.6, 0.8), mask, index, **SINGLE, **of_turns
    )
    assert_row(advantages, 0.0976576, 0.33008, 0.264, 0.2)
    assert_row(returns, 0.5976576, 0.73008, 0.864, 1.0)


def test_padding_and_observations_around_and_inside_a_turn_change_nothing():
    mask, index = turns(-1, -1, 0, 0, -1, -1, 0, 0, -1)
    rewards = row(7, 7, 0, 0, 7, 7, 0, 1, 7)
    values = row(9, 9, 0.5, 0.4, 9, 9, 0.6, 0.8, 9)
    advantages, returns = turn_aware_gae(rewards, values, mask, index, **SINGLE)
    assert_row(advantages, 0, 0, 0.0976576, 0.33008, 0, 0, 0.264, 0.2, 0)
    assert_row(returns, 0, 0, 0.5976576, 0.73008, 0, 0, 0.864, 1.0, 0)


TWO_TURNS = turns(0, 0, 0, -1, -1, 1, 1)
TWO_REWARDS = row(0, 0, 0.6, 0, 0, 0, 1.1)
TWO_VALUES = row(0.8, 0.9, 1.0, 5, -5, 0.7, 0.9)


@pytest.mark.parametrize(
    ("parameters", "advantages", "returns"),
    [
        # 1.645 = .6 + .95 * 1.1
        (PAPER, (0.845, 0.745, 0.645, 0, 0, 0.4, 0.2), (1.645, 1.645, 1.645, 0, 0, 1.1, 1.1)),
        # .607 = .6 + .95 * .7 - 1 + .95 * .9 * .4
        (
            {**PAPER, "lambda_turn": 0.9},
            (0.807, 0.707, 0.607, 0, 0, 0.4, 0.2),
            (1.607, 1.607, 1.607, 0, 0, 1.1, 1.1),
        ),
        (
            MIXED,
            (0.69675464, 0.64407724, 0.5891305, 0, 0, 0.3791, 0.2),
            (1.49675464, 1.54407724, 1.5891305, 0, 0, 1.0791, 1.1),
        ),
    ],
)
def test_two_turns_with_an_observation_between_them(parameters, advantages, returns):
    found = turn_aware_gae(TWO_REWARDS, TWO_VALUES, *TWO_TURNS, **parameters)
    assert_row(found[0], *advantages)
    assert_row(found[1], *returns)


def test_another_lambda_gives_the_numbers_of_a_turn_anchored_at_its_start():
    parameters = {**MIXED, "lambda_turn": 0.95}
    advantages, _ = turn_aware_gae(TWO_REWARDS, TWO_VALUES, *TWO_TURNS, **parameters)
    assert_row(advantages, 0.71268278, 0.66101305, 0.60713775, 0, 0, 0.3791, 0.2)


def test_without_discount_returns_are_the_reward_to_go():
    mask, index = turns(0, 0, -1, 1, 1, 1, -1, -1, 2)
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 1, 9, generator=generator, dtype=torch.float64)
    _, returns = turn_aware_gae(rewards, values, mask, index, gamma_turn=1.0)
    kept = torch.where(mask, rewards, 0.0)
    to_go = torch.where(mask, kept.flip(1).cumsum(1).flip(1), 0.0)
    assert torch.allclose(returns, to_go, atol=1e-12, rtol=0)
    assert returns[0, 0] == pytest.approx(float(kept.sum()))


# --- the worked episode: IoU .10 -> .40 -> .25, then an answer ------------------------------------

REWARD = BiLevelReward(penalty=1.0)
THREE = turns(0, 0, 0, 1, 1, 2, 2)
THREE_VALUES = row(0.9, 1, 1.2, 0.8, 0.7, 0.6, 0.9)
OLD = row(-1, -1, -1, -2, -2, -3, -3)
REF = OLD - row(0.10, -0.02, 0.30, 0.05, 0, -0.10, 0.40)


def earned(*facts: TurnFacts, correct: bool) -> torch.Tensor:
    rows = REWARD.settle(facts, initial_iou=0.10, correct=correct)
    return row(*(turn.total for turn in rows))


LOOKS = (TurnFacts("retrieve", 0.40), TurnFacts("retrieve", 0.25), TurnFacts("answer"))


def turn_targets(turn_rewards: torch.Tensor) -> list[float]:
    """Return the discounted target of each turn, one token a turn and no critic."""
    mask, index = turns(0, 1, 2)
    rewards = token_rewards(turn_rewards, index, mask)
    return turn_aware_gae(rewards, torch.zeros_like(rewards), mask, index)[1][0].tolist()


@pytest.mark.parametrize(
    ("turn_rewards", "expected"),
    [
        (earned(*LOOKS, correct=True), (1.54525, 0.995, 1.1)),
        (earned(*LOOKS, correct=False), (0.09025, 0.095, 0.1)),
        (earned(*LOOKS, correct=False) + row(1, 1, 0), (2.04025, 1.095, 0.1)),
        (earned(*LOOKS, correct=True) + row(0.5, 0.5, 0), (2.52025, 1.495, 1.1)),
    ],
    ids=["correct", "wrong", "wrong-with-bonus-1", "correct-with-bonus-half"],
)
def test_the_answer_reaches_back_through_the_turns_discounted(turn_rewards, expected):
    assert turn_targets(turn_rewards) == pytest.approx(list(expected))


def test_the_worked_episode_token_by_token():
    mask, index = THREE
    rewards = token_rewards(
        earned(*LOOKS, correct=True), index, mask, old_log_probs=OLD, ref_log_probs=REF, beta=0.001
    )
    assert_row(rewards, -0.0001, 0.00002, 0.5997, -0.00005, -0.05, 0.0001, 1.0996)
    advantages, returns = turn_aware_gae(rewards, THREE_VALUES, mask, index)
    assert_row(
        advantages, 0.644552, 0.544652, 0.344632, 0.194665, 0.294715, 0.4997, 0.1996, tolerance=5e-7
    )
    assert_row(
        returns, 1.544552, 1.544652, 1.544632, 0.994665, 0.994715, 1.0997, 1.0996, tolerance=5e-7
    )
    whitened = (1.450717, 0.883758, -0.251409, -1.10251, -0.5347, 0.628645, -1.074503)
    assert_row(whiten(advantages, mask), *whitened, tolerance=2e-6)
    shorter, _ = turn_aware_gae(
        rewards, THREE_VALUES, mask, index, lambda_token=0.95, lambda_turn=0.9
    )
    assert_row(
        shorter, 0.531834, 0.454667, 0.26805, 0.126725, 0.238711, 0.48972, 0.1996, tolerance=5e-7
    )


def test_masked_slots_hold_zero_after_whitening_and_not_minus_mean_over_deviation():
    mask, _ = turns(0, 0, 0, -1, 1, 1, -1, 2, 2, -1)
    advantages = row(0.644552, 0.544652, 0.344632, 0, 0.194665, 0.294715, 0, 0.4997, 0.1996, 0)
    whitened = whiten(advantages, mask)
    assert whitened[~mask].tolist() == [0.0, 0.0, 0.0]
    assert whitened[0, 0].item() == pytest.approx(1.450717, abs=2e-5)


# --- rewards on tokens ----------------------------------------------------------------------------


def test_each_turn_is_paid_on_its_last_response_token():
    index = torch.tensor([[-1, 0, 0, -1, 1, -1, 2, 2], [0, 1, 1, 1, -1, -1, -1, -1]])
    paid = token_rewards(
        torch.tensor([[0.6, -0.05, 1.1], [0.1, 0.2, 0.0]], dtype=torch.float64), index, index >= 0
    )
    assert paid.tolist() == [[0, 0, 0.6, 0, -0.05, 0, 0, 1.1], [0.1, 0, 0, 0.2, 0, 0, 0, 0]]


def test_log_probs_of_observations_never_reach_the_rewards():
    mask, index = turns(0, -1, 1, -1)
    paid = token_rewards(
        row(1, 2),
        index,
        mask,
        old_log_probs=row(-1, NAN, -2, INF),
        ref_log_probs=row(-2, 0, -1, NAN),
        beta=0.5,
    )
    assert_row(paid, 0.5, 0, 2.5, 0)


def test_a_reward_without_a_token_is_refused():
    mask, index = turns(0, 0, 2, 2)
    assert_row(token_rewards(row(1, 0, 1), index, mask), 0, 1, 0, 1)
    with pytest.raises(ValueError, match=r"turn 1 of row 0 earned 0\.1 but has no response token"):
        token_rewards(row(1, 0.1, 1), index, mask)


def test_a_token_whose_turn_has_no_reward_column_is_refused():
    mask, index = turns(0, 1, 2)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        token_rewards(row(1, 1), index, mask)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        token_rewards(row(1, 1), index - 1, mask)


def test_a_penalty_without_log_probs_is_refused():
    mask, index = turns(0)
    with pytest.raises(ValueError, match=r"beta=0\.001 needs old_log_probs"):
        token_rewards(row(1), index, mask, beta=0.001)


def test_shapes_and_parameters_that_do_not_fit_are_named():
    mask, index = turns(0, 0)
    with pytest.raises(ValueError, match=r"values has shape \(1, 3\); mask has \(1, 2\)"):
        turn_aware_gae(row(0, 0), row(0, 0, 0), mask, index)
    with pytest.raises(ValueError, match=r"mask is torch\.int64"):
        turn_aware_gae(row(0, 0), row(0, 0), mask.long(), index)
    with pytest.raises(ValueError, match=r"gamma_turn=95 must lie in 0\.\.1"):
        turn_aware_gae(row(0, 0), row(0, 0), mask, index, gamma_turn=95)
    with pytest.raises(ValueError, match=r"turn_rewards has shape \(1,\)"):
        token_rewards(torch.zeros(1), index, mask)


# --- against naive references ---------------------------------------------------------------------


def random_batch(seed: int, rows: int = 8, columns: int = 24, gaps: bool = True):
    """Return rewards, values and turn_index of random episodes of one to three turns."""
    rng = np.random.default_rng(seed)
    turn_index = np.full((rows, columns), -1)
    for episode in turn_index:
        count = rng.integers(1, columns + 1)
        where = np.sort(rng.permutation(columns)[:count]) if gaps else np.arange(count)
        episode[where] = np.sort(rng.integers(0, 3, count))
    rewards, values = rng.normal(size=(2, rows, columns))
    return torch.tensor(rewards), torch.tensor(values), torch.tensor(turn_index)


def naive(rewards, values, turn_index, *, gamma_token, lambda_token, gamma_turn, lambda_turn):
    """Sum the discounted TD errors of each token forwards, one episode after the other."""
    advantages = np.zeros(rewards.shape)
    for b in range(len(rewards)):
        tokens = [t for t in range(rewards.shape[1]) if turn_index[b, t] >= 0]
        for i in range(len(tokens)):
            weight = 1.0
            for j in range(i, len(tokens)):
                here, after = tokens[j], tokens[j + 1 : j + 2]
                same = bool(after) and turn_index[b, here] == turn_index[b, after[0]]
                gamma, decay = (gamma_token, lambda_token) if same else (gamma_turn, lambda_turn)
                bootstrap = gamma * float(values[b, after[0]]) if after else 0.0
                delta = float(rewards[b, here]) + bootstrap - float(values[b, here])
                advantages[b, tokens[i]] += weight * delta
                weight *= gamma * decay
    returns = np.where(turn_index >= 0, advantages + values.numpy(), 0.0)
    return torch.tensor(advantages), torch.tensor(returns)


UNIT = st.floats(0.0, 1.0)
SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, parameters=st.tuples(UNIT, UNIT, UNIT, UNIT))
def test_random_episodes_agree_with_a_naive_sum_over_td_errors(seed, parameters):
    batch = random_batch(seed, columns=12)
    named = dict(zip(MIXED, parameters, strict=True))
    for found, expected in zip(gae(*batch, **named), naive(*batch, **named), strict=True):
        assert torch.allclose(found, expected, atol=1e-9, rtol=0)


def test_single_turn_episodes_agree_with_stable_baselines3():
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    from gymnasium import spaces

    lengths, rng = [1, 5, 3, 8, 2], np.random.default_rng(0)
    buffer = buffers.RolloutBuffer(
        sum(lengths),
        spaces.Box(0, 1, (1,)),
        spaces.Discrete(2),
        device="cpu",
        gamma=0.97,
        gae_lambda=0.9,
    )
    index = torch.full((len(lengths), max(lengths)), -1)
    rewards, values = torch.zeros(2, *index.shape)
    for b, length in enumerate(lengths):
        for t in range(length):
            reward, value = rng.normal(size=(2, 1)).astype(np.float32)
            buffer.add(
                np.zeros((1, 1)),
                np.zeros((1, 1)),
                reward,
                np.array([t == 0]),
                torch.tensor(value),
                torch.zeros(1),
            )
            index[b, t], rewards[b, t], values[b, t] = 0, float(reward[0]), float(value[0])
    buffer.compute_returns_and_advantage(torch.tensor([123.0]), np.array([True]))
    advantages, returns = gae(rewards, values, index, gamma_token=0.97, lambda_token=0.9)
    mask = index >= 0
    assert np.allclose(advantages[mask], buffer.advantages[:, 0], atol=1e-6, rtol=0)
    assert np.allclose(returns[mask], buffer.returns[:, 0], atol=1e-6, rtol=0)


def masked_gae(rewards, values, mask, gamma, decay):
    """GAE that steps over masked tokens and knows no turns, as multi-turn verl does."""
    advantages = np.zeros(rewards.shape)
    value_after, advantage_after = np.zeros((2, len(rewards)))
    for t in range(rewards.shape[1])[::-1]:
        on = mask[:, t]
        here = rewards[:, t] + gamma * value_after - values[:, t] + gamma * decay * advantage_after
        advantages[on, t] = here[on]
        advantage_after[on], value_after[on] = here[on], values[on, t]
    return advantages


@pytest.mark.parametrize(("gamma", "decay"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
def test_with_equal_parameters_turns_and_tokens_are_masked_gae(gamma, decay):
    rewards, values, index = random_batch(1, rows=16, columns=40)
    advantages, returns = gae(
        rewards,
        values,
        index,
        gamma_token=gamma,
        lambda_token=decay,
        gamma_turn=gamma,
        lambda_turn=decay,
    )
    mask = index.numpy() >= 0
    expected = masked_gae(rewards.numpy(), values.numpy(), mask, gamma, decay)
    assert np.allclose(advantages, expected, atol=1e-6, rtol=0)
    assert np.allclose(returns, np.where(mask, expected + values.numpy(), 0), atol=1e-6, rtol=0)


def two_stages(rewards, values, turn_index, gamma_turn, lambda_turn, anchor):
    """GAE over turns, then the turn's target handed to its tokens (gamma_token = lambda = 1).

    ``anchor`` says where a turn's value stands: at its first token (0) or its last (-1).
    """
    advantages = torch.zeros_like(rewards)
    for b in range(len(rewards)):
        spans = [(turn_index[b] == k).nonzero()[:, 0] for k in range(3)]
        value_after = advantage_after = 0.0
        for span in [span for span in spans if len(span)][::-1]:
            value = values[b, span[anchor]]
            delta = rewards[b, span].sum() + gamma_turn * value_after - value
            advantage = delta + gamma_turn * lambda_turn * advantage_after
            target = advantage + value
            for position, token in enumerate(span):
                past = rewards[b, span[:position]].sum()
                advantages[b, token] = target - past - values[b, token]
            value_after, advantage_after = value, advantage
    return advantages


@pytest.mark.parametrize(("gamma_turn", "lambda_turn"), [(0.95, 1.0), (0.95, 0.9), (1.0, 0.3)])
def test_undiscounted_tokens_give_the_two_stage_estimator_anchored_at_the_start(
    gamma_turn, lambda_turn
):
    batch = random_batch(2)
    advantages, _ = gae(*batch, gamma_turn=gamma_turn, lambda_turn=lambda_turn)
    assert torch.allclose(advantages, two_stages(*batch, gamma_turn, lambda_turn, 0), atol=1e-12)


def test_at_lambda_1_and_rewards_at_turn_ends_the_anchor_makes_no_difference():
    rewards, values, index = random_batch(3)
    taken = torch.stack([(index == k).any(1) for k in range(3)], 1)
    ends = token_rewards(taken * rewards[:, :3], index, index >= 0)
    advantages, _ = gae(ends, values, index, gamma_turn=0.95)
    assert torch.allclose(advantages, two_stages(ends, values, index, 0.95, 1.0, -1), atol=1e-12)
    # At a smaller lambda it does: the anchor at the end skips the next turn's tokens.
    shorter, _ = gae(ends, values, index, gamma_turn=0.95, lambda_turn=0.5)
    assert (shorter - two_stages(ends, values, index, 0.95, 0.5, -1)).abs().max() > 0.1


# --- invariances ----------------------------------------------------------------------------------


@given(seed=SEEDS)
def test_what_masked_slots_hold_changes_nothing_and_they_come_back_as_zero(seed):
    rewards, values, index = random_batch(seed)
    expected = gae(rewards, values, index, **MIXED)
    rng = np.random.default_rng(seed)
    junk = torch.tensor(rng.choice([NAN, INF, -INF, 1e30], size=(2, *index.shape)))
    holes = index < 0
    found = turn_aware_gae(
        torch.where(holes, junk[0], rewards),
        torch.where(holes, junk[1], values),
        ~holes,
        torch.where(holes, torch.tensor(rng.integers(-1, 3, index.shape)), index),
        **MIXED,
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
        assert not a[holes].any()


@given(seed=SEEDS)
def test_neither_order_nor_padding_nor_gaps_nor_the_split_of_a_batch_matter(seed):
    rewards, values, index = random_batch(seed, rows=8, gaps=False)
    advantages, _ = gae(rewards, values, index, **MIXED)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(
        gae(rewards[order], values[order], index[order], **MIXED)[0], advantages[order]
    )
    halves = [gae(rewards[i], values[i], index[i], **MIXED)[0] for i in (slice(3), slice(3, 8))]
    assert torch.equal(torch.cat(halves), advantages)

    # Spread the columns out: padding on the left, gaps, padding on the right.
    rng = np.random.default_rng(seed)
    columns = torch.tensor(np.sort(rng.permutation(40)[: index.shape[1]]))
    spread = [
        torch.full((8, 40), fill, dtype=part.dtype)
        for part, fill in ((rewards, 5.0), (values, -5.0), (index, -1))
    ]
    for wide, part in zip(spread, (rewards, values, index), strict=True):
        wide[:, columns] = part
    found = gae(*spread, **MIXED)[0]
    assert torch.equal(found[:, columns], advantages)
    assert found.abs().sum() == pytest.approx(float(advantages.abs().sum()))


def test_left_and_right_padding_give_the_same_advantages():
    rewards, values, index = random_batch(4, rows=1, columns=6, gaps=False)
    index[:] = torch.tensor([[0, 0, 1, 1, 1, 2]])
    pad = torch.full((1, 3), 7.0, dtype=torch.float64)
    no_turn = torch.full((1, 3), -1)
    right = gae(
        *(torch.cat((a, b), 1) for a, b in ((rewards, pad), (values, pad), (index, no_turn)))
    )
    left = gae(
        *(torch.cat((b, a), 1) for a, b in ((rewards, pad), (values, pad), (index, no_turn)))
    )
    assert torch.equal(right[0][:, :6], left[0][:, 3:])


@given(seed=SEEDS, decay=st.tuples(UNIT, UNIT))
def test_a_perfect_critic_leaves_no_advantage_whatever_lambda(seed, decay):
    rewards, _, index = random_batch(seed, columns=10)
    discounts = {"gamma_token": 0.97, "gamma_turn": 0.8}
    _, values = gae(rewards, torch.zeros_like(rewards), index, **discounts)
    advantages, _ = gae(
        rewards, values, index, **discounts, lambda_token=decay[0], lambda_turn=decay[1]
    )
    assert advantages.abs().max() < 1e-12


def test_advantages_scale_with_rewards_and_values():
    rewards, values, index = random_batch(5)
    once, thrice = (
        gae(rewards, values, index, **MIXED),
        gae(3 * rewards, 3 * values, index, **MIXED),
    )
    assert torch.allclose(thrice[0], 3 * once[0]) and torch.allclose(thrice[1], 3 * once[1])


def test_more_reward_in_the_first_turn_changes_only_its_targets():
    mask, index = THREE
    base = earned(*LOOKS, correct=True)
    targets = [
        turn_aware_gae(token_rewards(paid, index, mask), THREE_VALUES, mask, index)[1]
        for paid in (base, base + row(0.25, 0, 0))
    ]
    assert_row(targets[1] - targets[0], 0.25, 0.25, 0.25, 0, 0, 0, 0, tolerance=1e-12)


def test_half_precision_is_raised_and_double_kept():
    rewards, values, index = random_batch(6)
    assert gae(rewards.bfloat16(), values.bfloat16(), index)[0].dtype == torch.float32
    assert gae(rewards, values, index)[0].dtype == torch.float64
    assert whiten(rewards.bfloat16(), index >= 0).dtype == torch.float32


def test_no_gradient_flows_through_advantages():
    rewards, values, index = random_batch(7)
    advantages, returns = gae(rewards, values.requires_grad_(), index)
    assert not advantages.requires_grad and not returns.requires_grad


def test_the_variance_of_the_first_turn_falls_with_lambda_of_turns():
    # A coin decided in turn 2 and a critic that knows it only there: V = 0 before, +-1 after.
    coin = torch.tensor([[1.0, -1.0]]).T.double()
    rewards = torch.cat((torch.zeros(2, 2), coin), 1)
    values = torch.cat((torch.zeros(2, 2), coin), 1)
    index = torch.tensor([[0, 1, 1]] * 2)
    for decay, variance in ((1.0, 0.9025), (0.9, 0.7310), (0.5, 0.2256), (0.0, 0.0)):
        first = gae(rewards, values, index, gamma_turn=0.95, lambda_turn=decay)[0][:, 0]
        assert first.square().mean().item() == pytest.approx(variance, abs=5e-5)


# --- whitening and explained variance -------------------------------------------------------------


@given(seed=SEEDS)
def test_whitened_advantages_have_mean_0_and_variance_1_and_zeros_elsewhere(seed):
    rewards, _, index = random_batch(seed)
    mask = index >= 0
    whitened = whiten(torch.where(mask, 3 * rewards + 7, NAN).float(), mask)
    assert not whitened[~mask].any()
    if mask.sum() > 1:
        assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-5)
        assert whitened[mask].var().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -1e8])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_single_advantage_or_equal_ones_whiten_to_zero(value, count):
    mask = torch.arange(5)[None] < count
    assert whiten(torch.full((1, 5), value), mask).tolist() == [[0.0] * 5]


@pytest.mark.parametrize("spread", [1e-6, 0.0025, 0.05])
def test_noise_among_equal_outcomes_is_not_blown_up(spread):
    noise = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    advantages = 0.7 + spread * noise / noise.std()
    whitened = whiten(advantages, torch.ones(8, 16) > 0)
    assert whitened.std().item() == pytest.approx(spread / NOISE, rel=1e-3)
    assert whitened.mean().item() == pytest.approx(0, abs=1e-6)


def test_a_difference_of_the_smallest_reward_still_counts_one():
    advantages, mask = torch.zeros(64, 1), torch.ones(64, 1) > 0
    advantages[0] = 0.1  # one episode alone kept to the format
    whitened = whiten(advantages, mask)
    assert (whitened[0] - whitened[1]).item() == pytest.approx(1)


@pytest.mark.parametrize("spread", [0.101, 0.3, 1.0, 50.0])
def test_ordinary_batches_are_whitened_to_the_last_bit_as_ever(spread):
    noise = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, 9) > 0
    advantages = spread * noise / noise.std()
    picked = advantages[mask].double()
    picked = picked - torch.tensor(float(picked.sum()) / 36, dtype=torch.float32)
    rest = float(picked.sum()) / 36
    variance = (float(picked.square().sum()) - 36 * rest * rest) / 35
    expected = ((picked - rest) / math.sqrt(variance + 1e-8)).float()
    assert torch.equal(whiten(advantages, mask)[mask], expected)
    assert whiten(advantages, mask).std().item() == pytest.approx(1, abs=1e-6)


def test_explained_variance_of_perfect_constant_and_opposite_critics():
    returns, mask = row(1, 2, 3, NAN), row(1, 1, 1, 0) > 0
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(row(4, 4, 4, 0), returns, mask) == 0.0
    assert explained_variance(row(3, 2, 1, 0), returns, mask) == pytest.approx(-3.0)
    assert explained_variance(row(1, 2, 2, 0), returns, mask) == pytest.approx(2 / 3)


def test_constant_returns_have_no_explained_variance():
    mask = row(1, 1, 1, 0) > 0
    assert math.isnan(explained_variance(row(1, 2, 3, 0), row(0.1, 0.1, 0.1, 9), mask))
    assert math.isnan(
        explained_variance(row(1, 0, 0, 0), row(1, 0, 0, 0), mask & (row(1, 0, 0, 0) > 0))
    )
    assert math.isnan(explained_variance(row(1), row(1), row(0) > 0))


def test_whitening_with_sums_over_processes_is_that_of_the_joint_batch():
    generator = torch.Generator().manual_seed(0)
    joint = 1000 + torch.randn(4, 6, generator=generator)
    mask = torch.rand(4, 6, generator=generator) > 0.3
    expected = whiten(joint, mask)
    # Both halves answer in step: a first pass gathers what each would add.
    halves = [slice(0, 1), slice(1, 4)]
    sums = []
    for call in range(2):
        spoken = []
        for half in halves:
            said = []

            def total(*values, said=said):
                said.append(values)
                return sums[len(said) - 1] if len(said) <= len(sums) else list(values)

            whiten(joint[half], mask[half], total=total)
            spoken.append(said[call])
        sums.append([sum(values) for values in zip(*spoken, strict=True)])
    for half in halves:
        given = iter(sums)
        found = whiten(joint[half], mask[half], total=lambda *_, given=given: next(given))
        torch.testing.assert_close(found, expected[half], atol=1e-6, rtol=0)


def test_whitening_nothing_here_while_others_have_something():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    sums = iter([[5.0, 10.0], [0.0, 4.0]])
    assert not whiten(torch.ones(2, 3), nothing, total=lambda *_: next(sums)).any()
    assert not whiten(torch.ones(2, 3), nothing).any()
