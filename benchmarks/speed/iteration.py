"""One iteration of training, measured phase by phase; ``scale`` says what is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from agents.model.decoding import DecodeSession
from agents.model.policy import MLLMPolicy
from agents.model.rows import Row
from agents.model.sampling import Reply, Sampling
from agents.plan.sizes import Sizes
from agents.plan.work import Work
from agents.ppo import PPOLearner
from agents.trajectory import Trajectory
from benchmarks.speed.scaled import ScaleConfig


@dataclass
class Phase:
    """What a phase of one iteration cost.

    Attributes:
        seconds: Spent.
        tokens: Of the language model, gone through or made; in "vision" those of frames, and in a
            whole iteration those of its episodes.
        flop: That the model needed.
        peak_bytes: Most memory allocated by tensors; NaN where it is not measured.
    """

    seconds: float = 0.0
    tokens: int = 0
    flop: float = 0.0
    peak_bytes: float = math.nan


class Meter:
    """Adds up phases. Memory is measured on GPUs alone.

    Args:
        device: Whose work is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.phases: dict[str, Phase] = {}

    @contextmanager
    def measure(self, name: str, tokens: int, flop: float) -> Iterator[None]:
        """Count what happens inside as part of a phase."""
        self.begin()
        began = time.perf_counter()
        yield
        peak = self.end()
        phase = self.phases.setdefault(name, Phase())
        phase.seconds += time.perf_counter() - began
        phase.tokens += tokens
        phase.flop += flop
        phase.peak_bytes = float(np.fmax(phase.peak_bytes, peak))

    def begin(self) -> None:
        """Wait for work that is under way, and forget the peak of memory."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)

    def end(self) -> float:
        """Wait for work that is under way; return the peak of memory since ``begin``."""
        if self.device.type != "cuda":
            return math.nan
        torch.cuda.synchronize(self.device)
        return float(torch.cuda.max_memory_allocated(self.device))


class MeteredSession(DecodeSession):
    """A session whose prefill and decoding are counted apart.

    Args:
        policy: The policy.
        sampling: How replies are drawn.
        generator: Of random numbers.
        meter: That counts.
        work: Of the policy's model.
    """

    def __init__(
        self,
        policy: MLLMPolicy,
        sampling: Sampling,
        generator: torch.Generator,
        meter: Meter,
        work: Work,
    ) -> None:
        super().__init__(policy, sampling, generator)
        self.meter, self.work = meter, work
        self._past: list[int] = []

    def _prefill(self, rows: Sequence[Row]) -> torch.Tensor:
        past = self._past or [0] * len(rows)
        news = [len(row.ids) for row in rows]
        flop = sum(self.work.forward(n, p) for n, p in zip(news, past, strict=True))
        self._past = [n + p for n, p in zip(news, past, strict=True)]
        with self.meter.measure("prefill", sum(news), flop):
            return super()._prefill(rows)

    def _sample(self, states: torch.Tensor) -> list[Reply]:
        # The first token comes from the prefill, and the last one is not fed any more.
        drawn = self.sampling.max_new_tokens
        count = drawn * len(self._past)
        flop = sum(self.work.forward(drawn - 1, past) for past in self._past)
        self._past = [past + drawn - 1 for past in self._past]
        with self.meter.measure("decode", count, flop + self.work.logits(count)):
            return super()._sample(states)


def iterate(
    learner: PPOLearner,
    episodes: Sequence[Trajectory],
    config: ScaleConfig,
    generator: torch.Generator,
    meter: Meter,
    before_update: Callable[[], object] = lambda: None,
) -> dict[str, Phase]:
    """Play, score and learn once; return what each phase cost.

    Args:
        learner: That learns.
        episodes: As ``dialogues`` makes them.
        config: What is measured.
        generator: Of random numbers.
        meter: That counts.
        before_update: Makes something that is kept until the update is done.
    """
    work = Work(Sizes.of(learner.policy.base))
    with learner.sharding.playing():
        _play(learner, episodes, config, MeteredSession(
            learner.policy,
            Sampling(learner.config.temperature, max_new_tokens=config.reply_tokens),
            generator, meter, work,
        ))  # fmt: skip
    kept = before_update()
    with learner.sharding.seeing():
        _learn(learner, episodes, config, meter, work)
    del kept
    return meter.phases


def _play(
    learner: PPOLearner,
    episodes: Sequence[Trajectory],
    config: ScaleConfig,
    session: MeteredSession,
) -> None:
    policy, meter, work = learner.policy, session.meter, session.work
    codec = policy.codec
    policy.encoder.clear()
    keys = list(range(len(episodes)))
    for turn in range(config.turns):
        frames = [frame for episode in episodes for frame in episode.turns[turn].user.frames]
        tokens = len(frames) * config.frame_tokens
        with torch.no_grad(), meter.measure("vision", tokens, work.vision(tokens)):
            policy.encoder(frames)
        new = [
            [*([e.turns[turn - 1].close] if turn else [e.system]), e.turns[turn].user]
            for e in episodes
        ]
        for episode, reply in zip(episodes, session.reply(keys, new), strict=True):
            episode.turns[turn].reply = reply
            episode.turns[turn].close = codec.close(codec.reply(reply.ids))


def _learn(
    learner: PPOLearner,
    episodes: Sequence[Trajectory],
    config: ScaleConfig,
    meter: Meter,
    work: Work,
) -> None:
    policy, ppo = learner.policy, learner.config
    backward = 1 if config.lora_rank else 2
    reads, reference = ppo.critic != "head", bool(ppo.beta)
    rows = [policy.row(next(iter(e.rows(policy.codec, ppo.history)))) for e in episodes]
    lengths = [len(row.ids) for row in rows]
    said = [int(row.sampled.sum()) for row in rows]
    forward = sum(work.forward(n) for n in lengths)
    logits = work.logits(sum(said))
    # Policy, critic and reference; the critic reads no logits.
    passes = (1 + reads + reference) * forward + (1 + reference) * logits
    with meter.measure("score", sum(lengths), passes):
        batch = learner.prepare(episodes)
    rng = np.random.default_rng(0)
    steps = math.ceil(len(episodes) / config.minibatch)
    for part in np.array_split(rng.permutation(len(episodes)), steps):
        chosen = np.sort(part)
        tokens = sum(lengths[i] for i in chosen)
        forward = sum(work.forward(lengths[i]) for i in chosen)
        logits = work.logits(sum(said[i] for i in chosen))
        with meter.measure("critic", tokens, reads * (1 + backward) * forward):
            learner.critic_step(batch, chosen)
        with meter.measure("actor", tokens, (1 + backward) * (forward + logits)):
            learner.actor_step(batch, chosen)
