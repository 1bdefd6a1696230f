"""A whole learner in a table: retrieve, then answer, trained with the functions of ``agents``.

The task is the smallest in which looking must be discovered. A question names one of four places;
one of four answers is right, and only a look at that place tells which. An episode has at most
three turns, a turn two tokens: what to do (retrieve or answer), before the question is read; then
where or which. The right place has IoU 0.5 with the relevant frames, the others 0, the overview
0.1. Chance is 0.25.

Rewards are settled by the environment's own ``BiLevelReward``; policy and critic are tables.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch

from agents.advantages import explained_variance, token_rewards, turn_aware_gae, whiten
from agents.curriculum import RetrievalBonus
from agents.losses import clipped_policy_loss, clipped_value_loss, token_weights
from gym_longvideo.rewards import BiLevelReward, TurnFacts

torch.set_num_threads(1)

TURNS, PLACES, UNSEEN = 3, 4, 4
RETRIEVE, ANSWER = 0, 1
REWARD = BiLevelReward(penalty=1.0)
# A context is (turn, place asked for, clue), and what the turn has said so far: nothing, or its op.
CONTEXTS = TURNS * PLACES * (PLACES + 1) * 3


class Tables:
    """Policy (CONTEXTS, 4) and critic (CONTEXTS,); of an op only the first two columns count."""

    def __init__(self, retrieval_prior: float) -> None:
        self.logits = torch.zeros(CONTEXTS, PLACES)
        self.logits[::3, RETRIEVE] = math.log(retrieval_prior / (1 - retrieval_prior))
        self.logits.requires_grad_()
        self.values = torch.zeros(CONTEXTS, requires_grad=True)

    def log_softmax(self, context: torch.Tensor) -> torch.Tensor:
        legal = (context[..., None] % 3 > 0) | (torch.arange(PLACES) < 2)
        return self.logits[context].masked_fill(~legal, -math.inf).log_softmax(-1)

    def log_probs(self, context: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        return self.log_softmax(context).gather(-1, token[..., None])[..., 0]


@torch.no_grad()
def collect(tables: Tables, episodes: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Play episodes side by side; everything is (B, 6) by token or (B, 3) by turn."""

    def sample(context):
        return torch.multinomial(tables.log_softmax(context).exp(), 1, generator=generator)[:, 0]

    place, truth = torch.randint(PLACES, (2, episodes), generator=generator)
    clue = torch.full((episodes,), UNSEEN)
    running = torch.ones(episodes, dtype=torch.bool)
    correct = torch.zeros(episodes, dtype=torch.bool)
    contexts, tokens, taken, looks, ious = [], [], [], [], []
    for turn in range(TURNS):
        base = 3 * ((turn * PLACES + place) * (PLACES + 1) + clue)
        before = 3 * (turn * PLACES * (PLACES + 1) + clue)
        op = sample(before)
        argument = sample(base + 1 + op)
        contexts += [before, base + 1 + op]
        tokens += [op, argument]
        taken.append(running)
        looks.append(running & (op == RETRIEVE) & (turn < TURNS - 1))
        ious.append(torch.where(argument == place, 0.5, 0.0))
        correct |= running & (op == ANSWER) & (argument == truth)
        clue = torch.where(looks[-1] & (argument == place), truth, clue)
        # A retrieval in the last turn is malformed, and the episode over.
        running = running & (op == RETRIEVE)
    taken = torch.stack(taken, 1)
    return {
        "context": torch.stack(contexts, 1),
        "token": torch.stack(tokens, 1),
        "turn": torch.where(taken, torch.arange(TURNS), -1).repeat_interleave(2, 1),
        "taken": taken,
        "look": torch.stack(looks, 1),
        "iou": torch.stack(ious, 1),
        "answered": torch.stack(tokens[::2], 1) == ANSWER,
        "correct": correct,
    }


@functools.cache
def settled(ops: tuple[str, ...], ious: tuple[float, ...], correct: bool) -> list[float]:
    facts = [TurnFacts(op, iou) for op, iou in zip(ops, ious, strict=True)]  # type: ignore[arg-type]
    rows = REWARD.settle(facts, initial_iou=0.1, correct=correct)
    return [row.total for row in rows] + [0.0] * (TURNS - len(rows))


def turn_rewards(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return (B, 3): what the environment settles for each turn."""
    rewards = []
    for taken, look, answered, iou, correct in zip(
        *(batch[key].tolist() for key in ("taken", "look", "answered", "iou", "correct")),
        strict=True,
    ):
        turns = sum(taken)
        ops = tuple(
            "retrieve" if look[k] else "answer" if answered[k] else "malformed"
            for k in range(turns)
        )
        judged = tuple(iou[k] if look[k] else math.nan for k in range(turns))
        rewards.append(settled(ops, judged, correct))
    return torch.tensor(rewards)


def train(
    seed: int,
    *,
    updates: int = 300,
    retrieval_prior: float = 0.5,
    bonus: RetrievalBonus | None = None,
    whitening: bool = True,
    **discounts: float,
) -> dict[str, float]:
    """Train the tables; return accuracy and retrieval rate of 2000 episodes at the end.

    ``explained_variance`` is the critic's, over the last 50 updates.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = Tables(retrieval_prior)
    actor = torch.optim.Adam([tables.logits], lr=0.05)
    critic = torch.optim.Adam([tables.values], lr=0.2)
    explained = []
    for _ in range(updates):
        batch = collect(tables, 32, generator)
        context, token, turn = batch["context"], batch["token"], batch["turn"]
        mask = turn >= 0
        earned = turn_rewards(batch)
        if bonus is not None:
            paid = bonus.update(int(batch["look"].sum()), int(batch["taken"].sum()))
            earned = earned + paid * batch["look"]
        with torch.no_grad():
            old = tables.log_probs(context, token)
            values = tables.values[context]
        rewards = token_rewards(earned, turn, mask)
        advantages, returns = turn_aware_gae(rewards, values, mask, turn, **discounts)
        explained.append(explained_variance(values, returns, mask))
        if whitening:
            advantages = whiten(advantages, mask)
        for rows in torch.randperm(32, generator=generator).split(8):
            weights = token_weights(mask[rows])
            value_loss, _ = clipped_value_loss(
                tables.values[context[rows]], values[rows], returns[rows], weights
            )
            critic.zero_grad()
            value_loss.backward()
            critic.step()
            policy_loss, _ = clipped_policy_loss(
                tables.log_probs(context[rows], token[rows]),
                old[rows],
                advantages[rows],
                weights,
                clip_high=0.28,
            )
            actor.zero_grad()
            policy_loss.backward()
            actor.step()
    final = collect(tables, 2000, generator)
    return {
        "accuracy": final["correct"].float().mean().item(),
        "retrieval_rate": (final["look"].sum() / final["taken"].sum()).item(),
        "explained_variance": sum(explained[-50:]) / 50,
    }


def test_a_table_learns_to_look_and_then_to_answer():
    result = train(1, updates=150)
    assert result["accuracy"] > 0.7
    assert result["retrieval_rate"] > 0.3
    assert result["explained_variance"] > 0.3


@functools.cache
def accuracies(name: str) -> list[float]:
    settings = {
        "plain": {},
        "shorter lambdas": {"lambda_token": 0.95, "lambda_turn": 0.9},
        "raw advantages": {"whitening": False},
        "no credit across turns": {"gamma_turn": 0.0},
        "2% retrieve": {"retrieval_prior": 0.02},
        "2% retrieve, bonus": {"retrieval_prior": 0.02},
    }[name]
    bonus = [RetrievalBonus() if "bonus" in name else None for _ in range(5)]
    found = [train(seed, bonus=bonus[seed], **settings)["accuracy"] for seed in range(5)]
    print(f"{name}: {[round(accuracy, 3) for accuracy in found]}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "shorter lambdas", "raw advantages"])
def test_four_of_five_seeds_answer_nine_of_ten_within_300_updates(name):
    assert sum(accuracy > 0.9 for accuracy in accuracies(name)) >= 4


@pytest.mark.slow
def test_without_credit_across_turns_nothing_is_learned():
    assert max(accuracies("no credit across turns")) < 0.4 < min(accuracies("plain"))


@pytest.mark.slow
def test_a_policy_that_seldom_retrieves_needs_the_bonus():
    without, with_bonus = accuracies("2% retrieve"), accuracies("2% retrieve, bonus")
    assert sum(accuracy > 0.9 for accuracy in with_bonus) >= 4
    assert sum(without) / 5 < sum(with_bonus) / 5 - 0.2
