"""PPO on whole multi-turn dialogues: one batch of episodes in, better weights out.

The path of a batch: score it as it was sampled; put the turns' rewards (the environment's, gated
there) and the retrieval bonus on the last token of each turn, the KL penalty on every token;
turn-aware GAE; whiten once; then a few clipped steps, critic first. Everything but the forward
passes is in ``advantages``, ``losses`` and ``curriculum``.

Tensors are (B, N): one row an episode, its response tokens in time order, right padded; see
``experience``.

Source: Video-MTR, arXiv 2508.20478v2, section 3.3 and appendix A.5.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.curriculum import RetrievalBonus
from agents.dealing.minibatches import Minibatches, by_process
from agents.experience import Experience, credit, lay_out, score
from agents.keeping.divergence import LostUpdates, not_finite, refuse
from agents.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    entropy_loss,
    token_weights,
)
from agents.model.critic import Critic
from agents.model.policy import MLLMPolicy
from agents.model.root import Root
from agents.model.rows import Row
from agents.optimizers import make_optimizer
from agents.parallel import Processes
from agents.ppo_config import PPOConfig
from agents.serving.mismatch import corrected
from agents.sharding import Sharding, whole
from agents.trajectory import Trajectory


class PPOLearner:
    """Holds policy, critic, their optimisers and the bonus; learns from batches of episodes.

    Args:
        policy: The policy.
        config: How to optimise.
        bonus: The retrieval bonus; None for none.
        seed: Of the order of minibatches.
        processes: Peers that learn from episodes of their own, at the same time.
        sharding: How the weights lie in these processes; by default several of them hold one copy
            together.
        rollout_gap_limit: Where another engine draws the replies, the most that its
            log-probabilities may differ from ours, on average over a batch; None where the policy
            draws them itself.

    Attributes:
        step: Batches learned from.
        minibatches: How a batch is cut, see ``agents.dealing.minibatches``.

    Raises:
        ValueError: If weights that are to be trained are in less than single precision.
    """

    def __init__(
        self,
        policy: MLLMPolicy,
        config: PPOConfig,
        *,
        bonus: RetrievalBonus | None = None,
        seed: int = 0,
        processes: Processes | None = None,
        sharding: Sharding | None = None,
        rollout_gap_limit: float | None = None,
    ) -> None:
        self.policy, self.config, self.bonus = policy, config, bonus
        self.processes = processes or Processes()
        self.rollout_gap_limit = rollout_gap_limit
        self.critic = Critic(policy, config.critic)
        # Without adapters to switch off, the reference is a copy.
        self.reference: Root | None = None
        if config.beta and policy.lora is None:
            self.reference = copy.deepcopy(policy.root).requires_grad_(False)
        self.sharding = sharding or Sharding(self.processes)
        self.sharding.apply(policy, self.critic, self.reference)
        self.actor_parameters = policy.actor_parameters()
        self.critic_parameters = self.critic.trained_parameters()
        _check_precision("policy", self.actor_parameters, config.actor_lr, "LoRA")
        _check_precision(
            "critic", self.critic_parameters, config.critic_lr, "critic='adapter' or 'head'"
        )
        self.actor_optimizer = make_optimizer(self.actor_parameters, config.actor_lr, config)
        self.critic_optimizer = make_optimizer(self.critic_parameters, config.critic_lr, config)
        self.seed, self.step = seed, 0
        self.minibatches: Minibatches = by_process
        self._lost = LostUpdates()

    def update(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """Learn from episodes; those with ``infra_error`` are left out.

        Returns:
            Metrics under the field's names; see ``agents.trainer``.

        Raises:
            DivergedError: If weights are not finite then, or three updates in a row took no step.
            RolloutGapError: If another engine drew the replies with other weights.
        """
        usable = [each for each in trajectories if not each.infra_error and each.turns]
        metrics = {"infra_errors": self.processes.total(len(trajectories) - len(usable))[0]}
        metrics |= self.pay_bonus(usable)
        counted = self.processes.total(len(usable))[0]
        if not counted:
            self.step += 1
            return metrics
        started = time.perf_counter()
        with self.sharding.seeing():
            batch = self.prepare(usable)
            metrics |= self.batch_metrics(batch, usable)
            if self.rollout_gap_limit is not None:
                batch, weighted = corrected(
                    batch,
                    usable,
                    metrics,
                    self.processes,
                    limit=self.rollout_gap_limit,
                    clip=self.config.rollout_is_clip,
                )
                metrics |= weighted
            scored = time.perf_counter()
            metrics |= self._optimise(batch)
        metrics |= {"score_s": scored - started, "optimise_s": time.perf_counter() - scored}
        self.step += 1
        self.check(f"after update {self.step}")
        self._lost.count(metrics, self.step)
        return metrics

    def check(self, when: str) -> None:
        """Stop if a trained weight is not finite.

        Args:
            when: The moment, for the error: "after update 7".

        Raises:
            DivergedError: In every process, if one of them has such a weight.
        """
        names = self.not_finite()
        if self.processes.total(len(names))[0]:
            refuse(names or ["a weight of another process"], when)

    def not_finite(self) -> list[str]:
        """Return the names of trained weights that hold a NaN or an infinity."""
        trained = {id(p) for p in (*self.actor_parameters, *self.critic_parameters)}
        named = (*self.policy.base.named_parameters(), *self.critic.named_parameters("critic"))
        return not_finite((name, p) for name, p in named if id(p) in trained)

    def pay_bonus(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """Pay the retrieval bonus of this batch to the turns that retrieved.

        It takes the place of what was paid before: no turn is paid twice.
        """
        turns = [turn for trajectory in trajectories for turn in trajectory.turns]
        retrieves, count, earned = self.processes.total(
            sum(turn.retrieved for turn in turns), len(turns), sum(abs(t.reward) for t in turns)
        )
        amount = 0.0
        if self.bonus is not None and count:
            amount = self.bonus.update(int(retrieves), int(count))
        for turn in turns:
            turn.bonus = amount * turn.retrieved
        paid = amount * retrieves
        return {
            "bonus": amount,
            "bonus_share": paid / (paid + earned) if paid else 0.0,
        }

    def prepare(self, trajectories: Sequence[Trajectory]) -> Experience:
        """Lay episodes out, score them as they were sampled, and work out their advantages."""
        config = self.config
        layout = lay_out(trajectories, self.policy, config.history)
        with torch.no_grad(), self.sharding.seeing():
            scored = score(
                layout,
                self.policy,
                config,
                values=self._critic_values,
                ref_log_probs=self._reference_log_probs,
                with_states=not self.critic.reads_rows,
                passes=self._all_passes,
            )
        return credit(layout, scored, config, self.processes.total)

    def _critic_values(self, rows: Sequence[Row], states: torch.Tensor | None) -> torch.Tensor:
        return self.critic(rows) if self.critic.reads_rows else self.critic(states=states)

    def _reference_log_probs(self, rows: Sequence[Row]) -> torch.Tensor | None:
        if not self.config.beta:
            return None
        policy, reference = self.policy, self.reference
        with policy.adapter(None) if reference is None else policy.using(reference):
            scores = policy.score(rows, temperature=self.config.temperature, with_entropy=False)
        return scores.log_probs

    def _optimise(self, batch: Experience) -> dict[str, float]:
        config = self.config
        cut = self.minibatches(
            batch.batch_places, config.minibatch, (self.seed, self.step), self.processes
        )
        critic_epochs = config.critic_epochs or config.epochs
        of_steps: dict[str, list[float]] = {}
        stopped = self.step < config.critic_warmup
        for epoch in range(max(config.epochs, critic_epochs)):
            for chosen in next(cut):
                if epoch < critic_epochs:
                    _append(of_steps, self.critic_step(batch, chosen))
                if epoch < config.epochs and not stopped:
                    stats = self.actor_step(batch, chosen)
                    _append(of_steps, stats)
                    if config.target_kl is not None and stats["approx_kl"] > config.target_kl:
                        stopped = True
        metrics = {name: _mean(values) for name, values in of_steps.items()}
        norms = [*of_steps.get("actor_grad_norm", ()), *of_steps.get("critic_grad_norm", ())]
        metrics["skipped_steps"] = float(sum(not math.isfinite(norm) for norm in norms))
        if "ratio_max" in of_steps:
            metrics["ratio_max"] = self.processes.largest(max(of_steps["ratio_max"]))
        return metrics

    def actor_step(self, batch: Experience, chosen: np.ndarray) -> dict[str, float]:
        """Take one clipped policy step on some episodes of a batch (by index)."""
        config = self.config
        weights = self._weights(batch, chosen)
        self.actor_optimizer.zero_grad(set_to_none=True)
        kl = clipped = loss_sum = 0.0
        ratio_max = 0.0
        with self.sharding.seeing():
            for rows, at, n in self._micro(batch, chosen):
                scores = self.policy.score(
                    rows, temperature=config.temperature, with_entropy=bool(config.entropy_coef)
                )
                cut = [
                    _cut(tensor, at, n)
                    for tensor in (batch.old_log_probs, batch.advantages, weights)
                ]
                loss, stats = clipped_policy_loss(
                    scores.log_probs,
                    *cut,
                    clip_low=config.clip_low,
                    clip_high=config.clip_high,
                    dual_clip=config.dual_clip,
                )
                if config.entropy_coef:
                    loss = loss + config.entropy_coef * entropy_loss(scores.entropy, cut[2])
                loss.backward()
                loss_sum += loss.item()
                kl, clipped = kl + stats["approx_kl"].item(), clipped + stats["clipfrac"].item()
                if at:
                    ratio_max = max(ratio_max, stats["ratio_max"].item())
        norm = self._step(self.actor_optimizer, self.actor_parameters)
        kl, clipped, loss_sum = self.processes.total(kl, clipped, loss_sum)
        return {
            "policy_loss": loss_sum,
            "approx_kl": kl,
            "clipfrac": clipped,
            "ratio_max": ratio_max,
            "actor_grad_norm": norm,
        }

    def critic_step(self, batch: Experience, chosen: np.ndarray) -> dict[str, float]:
        """Take one clipped value step on some episodes of a batch (by index)."""
        weights = self._weights(batch, chosen)
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss_sum = 0.0
        with self.critic.role(), self.sharding.seeing():
            if self.critic.reads_rows:
                for rows, at, n in self._micro(batch, chosen):
                    cut = [_cut(tensor, at, n) for tensor in (batch.values, batch.returns, weights)]
                    loss, _ = clipped_value_loss(
                        self.critic(rows), *cut, value_clip=self.config.value_clip
                    )
                    loss.backward()
                    loss_sum += loss.item()
            elif self._all_passes([list(chosen)] * bool(len(chosen))):
                which = torch.from_numpy(chosen)
                loss, _ = clipped_value_loss(
                    self.critic(states=batch.states[which]),
                    batch.values[which],
                    batch.returns[which],
                    weights[which],
                    value_clip=self.config.value_clip,
                )
                loss.backward()
                loss_sum = loss.item()
            norm = self._step(self.critic_optimizer, self.critic_parameters)
        (loss_sum,) = self.processes.total(loss_sum)
        return {"value_loss": loss_sum, "critic_grad_norm": norm}

    def _weights(self, batch: Experience, chosen: np.ndarray) -> torch.Tensor:
        """Return (B, N) token weights of a minibatch that may span processes."""
        mask = torch.zeros_like(batch.mask)
        if len(chosen):
            which = torch.from_numpy(chosen)
            mask[which] = batch.mask[which]
        weights = token_weights(mask, self.config.aggregation, batch.values.dtype)
        if self.processes.size == 1:
            return weights
        # Local weights sum to 1; they must do so over all processes.
        own = int(mask.sum()) if self.config.aggregation == "token-mean" else len(chosen)
        (total,) = self.processes.total(own)
        return weights * (own / max(total, 1.0))

    def _micro(
        self, batch: Experience, chosen: np.ndarray
    ) -> Iterator[tuple[list[Row], list[tuple[int, slice]], int]]:
        """Yield rows of some episodes, where their tokens belong, and the most tokens of a row.

        Processes that have fewer passes to make than others make up for it with a row that belongs
        nowhere, whose token weighs nothing.
        """
        wanted = set(chosen.tolist())
        mine = [g for g, owner in enumerate(batch.owners) if owner in wanted]
        groups = self.policy.groups([batch.rows[g] for g in mine], self.config.micro_batch_tokens)
        for group in self._all_passes(groups):
            picked = [mine[g] for g in group]
            at = [(batch.owners[g], batch.places[g]) for g in picked]
            rows = [batch.rows[g] for g in picked] or [self.policy.least_row()]
            yield rows, at, max((p.stop - p.start for _, p in at), default=1)

    def _all_passes(self, groups: list[list[int]]) -> list[list[int]]:
        """Add empty groups until all processes have as many: sharded weights are used together."""
        if not self.sharding.on:
            return groups
        most = int(self.processes.largest(len(groups)))
        return [*groups, *([] for _ in range(most - len(groups)))]

    def _step(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> float:
        """Clip and step; a non-finite gradient is skipped. Returns the norm before clipping."""
        if not self.sharding.on:
            self.processes.add_gradients(parameters)
        norm = float(whole(nn.utils.clip_grad_norm_(parameters, self.config.grad_clip)))
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def batch_metrics(
        self, batch: Experience, trajectories: Sequence[Trajectory]
    ) -> dict[str, float]:
        """Return what the scoring pass says about a batch, over all processes.

        ``rollout_gap`` is the mean, and ``rollout_gap_max`` the largest, |log-probability at
        generation time - the same in the scoring pass|: numerics, nothing else.
        """
        mask = batch.mask
        old_log_probs = batch.old_log_probs[mask]
        parts = [turn.reply.log_probs for each in trajectories for turn in each.turns]
        rollout_log_probs = torch.from_numpy(np.concatenate([*parts, np.zeros(0, np.float32)]))
        gap = (rollout_log_probs.to(old_log_probs.device) - old_log_probs).abs()
        returns = batch.returns[mask].double()
        errors = returns - batch.values[mask].double()
        tokens, entropy, kl, gaps, *moments = self.processes.total(
            len(old_log_probs),
            float(batch.entropy[mask].sum()),
            float((batch.old_log_probs - batch.ref_log_probs)[mask].sum()),
            float(gap.sum()),
            *(float(x) for part in (returns, errors) for x in (part.sum(), part.square().sum())),
        )
        count = max(tokens, 1.0)
        spread, unexplained = (
            squares - total * total / count for total, squares in (moments[:2], moments[2:])
        )
        metrics = {
            "entropy": entropy / count,
            "response_tokens": tokens,
            # As ``advantages.explained_variance``, from sums that processes can add.
            "explained_variance": 1 - unexplained / spread if spread > 1e-12 * count else math.nan,
            "rollout_gap": gaps / count,
            "rollout_gap_max": self.processes.largest(float(gap.max()) if len(gap) else 0.0),
        }
        if self.config.beta:
            metrics["ref_kl"] = kl / count
        return metrics

    def tensors(self, *, frozen: bool = False) -> dict[str, torch.Tensor]:
        """Return every tensor that learning moves, by names that do not change.

        That is weights, and what the optimisers remember of each ("NAME/exp_avg") as soon as they
        do. Sharded ones are given as they are.

        Args:
            frozen: Add the policy's weights that are not trained.
        """
        named = [
            *self.policy.base.named_parameters(),
            *((f"critic.{name}", p) for name, p in self.critic.named_parameters()),
        ]
        moved = {id(p) for p in (*self.actor_parameters, *self.critic_parameters)}
        found = {name: p.detach() for name, p in named if frozen or id(p) in moved}
        for optimizer in (self.actor_optimizer, self.critic_optimizer):
            for name, p in named:
                remembered = optimizer.state.get(p, {})
                found |= {f"{name}/{key}": value for key, value in remembered.items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint must hold beside the policy's weights."""
        return {
            "critic": self.critic.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "reference": None if self.reference is None else self.reference.state_dict(),
            **self.counts(),
        }

    def counts(self) -> dict[str, Any]:
        """Return what a run must hold to go on, beside tensors."""
        bonus = None if self.bonus is None else self.bonus.state_dict()
        return {"bonus": bonus, "step": self.step}

    def load_counts(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``counts`` returned."""
        if self.bonus is not None and state["bonus"] is not None:
            self.bonus.load_state_dict(state["bonus"])
        self.step = int(state["step"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self.critic.load_state_dict(state["critic"])
        for optimizer, name in (
            (self.actor_optimizer, "actor_optimizer"),
            (self.critic_optimizer, "critic_optimizer"),
        ):
            ours = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
            optimizer.load_state_dict(state[name])
            # A run may go on with another learning rate; the saved one would win otherwise.
            for group, (lr, decay) in zip(optimizer.param_groups, ours, strict=True):
                group["lr"], group["weight_decay"] = lr, decay
        if self.reference is not None and state["reference"] is not None:
            self.reference.load_state_dict(state["reference"])
        self.load_counts(state)


def _check_precision(name: str, parameters: Sequence[nn.Parameter], lr: float, remedy: str) -> None:
    """Refuse weights so coarse that steps are rounded away.

    A bfloat16 weight of 0.02 has neighbours 1.2e-4 away; AdamW's steps are about the learning rate.
    """
    for parameter in parameters:
        if torch.finfo(parameter.dtype).bits < 32:
            raise ValueError(
                f"the {name}'s trained weights are {parameter.dtype} and would not move at a "
                f"learning rate of {lr:g}; use {remedy}, or dtype float32"
            )


def _mean(values: list[float]) -> float:
    """Return the mean of the finite ones."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def _append(of_steps: dict[str, list[float]], metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        of_steps.setdefault(name, []).append(value)


def _cut(tensor: torch.Tensor, at: Sequence[tuple[int, slice]], n: int) -> torch.Tensor:
    """Return (rows, n) of a (B, N) tensor: the response tokens of each row, right padded by 0.

    A row that belongs nowhere is all zeros.
    """
    out = tensor.new_zeros(max(len(at), 1), n)
    for line, (owner, place) in enumerate(at):
        out[line, : place.stop - place.start] = tensor[owner, place]
    return out
