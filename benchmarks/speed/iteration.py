"""One iteration of training at a size of a real model, measured phase by phase.

A model with random weights plays dialogues of the method's own sizes, with frames of noise; time
and memory do not depend on what the weights are, as long as every reply has the same length: the
end of a reply is never sampled here. ``scale`` says what is measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

import gym_longvideo  # noqa: F401 - registers the ids
from agents.config import Dtype, TrainConfig
from agents.model import tiny
from agents.model.chat import ChatCodec, ImageGrid
from agents.model.critic import CriticKind
from agents.model.decoding import DecodeSession
from agents.model.policy import LoRA, MLLMPolicy
from agents.model.rows import Row
from agents.model.sampling import Reply, Sampling
from agents.plan.sizes import Sizes
from agents.plan.work import Work
from agents.ppo import PPOLearner
from agents.ppo_config import make_config
from agents.trajectory import Exchange, Trajectory
from benchmarks.speed.sizes import SIZES, build_config
from gym_longvideo import checks
from gym_longvideo.wrappers import TextProtocol

SizeName = Literal["3b", "7b", "1.5b", "0.5b", "0.1b", "tiny"]


@dataclass(frozen=True)
class ScaleConfig:
    """What to measure.

    Attributes:
        size: "3b" and "7b" are the published ones; the others keep their proportions.
        device: "cuda", "cuda:1", "cpu".
        dtype: Of the weights; "auto" is bfloat16 under adapters on a GPU, else float32.
        episodes: Dialogues at once, and of an update.
        turns: Of every dialogue.
        frame_budget: Frames of a dialogue: half in the overview, a quarter for each retrieval.
        frame_tokens: Tokens of a frame, four patches each.
        reply_tokens: Tokens of every reply.
        minibatch: Episodes of an optimiser step.
        micro_batch_tokens: Padded tokens of a forward pass in scoring and learning.
        lora_rank: Of the adapters; 0 trains all language weights.
        critic: "adapter", "head" or "model"; "auto" is "adapter" with adapters, else "head".
        checkpointing: Recompute activations.
        warmup: Iterations that do not count.
        repeats: Iterations that count; the medians are given.
        peak_tflops: Of the device at the precision of the weights; 989 is an H200's at bfloat16,
            dense.
        threads: Of PyTorch on a CPU; 0 leaves its own choice.
        json_file: Where to write the numbers.
    """

    size: SizeName = "3b"
    device: str = "cuda"
    dtype: Dtype = "auto"
    episodes: int = 32
    turns: int = 3
    frame_budget: int = 32
    frame_tokens: int = 128
    reply_tokens: int = 128
    minibatch: int = 8
    micro_batch_tokens: int = 8192
    lora_rank: int = 64
    critic: CriticKind | Literal["auto"] = "auto"
    checkpointing: bool = True
    warmup: int = 1
    repeats: int = 3
    peak_tflops: float = 989.0
    threads: int = 0
    json_file: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("episodes", 1), ("turns", 2), ("frame_tokens", 1), ("reply_tokens", 1),
            ("lora_rank", 0), ("warmup", 0), ("repeats", 1),
        ):  # fmt: skip
            checks.whole(name, getattr(self, name), least)
        checks.number("peak_tflops", self.peak_tflops, above=0)
        self.training  # noqa: B018 - refuses what has no meaning together

    @property
    def training(self) -> TrainConfig:
        """The configuration of a run that does the same."""
        critic = self.critic
        if critic == "auto":
            critic = "adapter" if self.lora_rank else "head"
        return TrainConfig(
            ppo=make_config(
                "recommended",
                minibatch=self.minibatch,
                micro_batch_tokens=self.micro_batch_tokens,
                critic=critic,
                history=None,  # one row an episode
            ),
            lora_rank=self.lora_rank,
            checkpointing=self.checkpointing,
            max_new_tokens=self.reply_tokens,
            batch=self.episodes,
            envs=self.episodes,
            dtype=self.dtype,
            compute="float32",  # where all weights are trained, the format that they have
            device=self.device,
        )


def build_policy(config: ScaleConfig) -> MLLMPolicy:
    """Return a policy of a size with random weights and fresh adapters, made on the device."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny.build_tokenizer()
    built = build_config(SIZES[config.size], tokenizer)
    place = torch.device(config.device)
    vision = built.vision_config
    codec = ChatCodec(
        tokenizer,
        image_token_id=built.image_token_id,
        vision_start_id=built.vision_start_token_id,
        vision_end_id=built.vision_end_token_id,
        grid=ImageGrid(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size),
        vocab_size=SIZES[config.size].vocabulary,
    )
    # Nobody may end a reply early: all have the same length.
    codec.suppressed = np.union1d(codec.suppressed, [codec.end_id])
    on_cpu = place.type == "cpu"
    auto = "bfloat16" if config.lora_rank and not on_cpu else "float32"
    dtype = auto if config.dtype == "auto" else config.dtype
    with place:
        model: Any = Qwen2_5_VLForConditionalGeneration._from_config(
            built,
            dtype=getattr(torch, dtype),
            # As ``MLLMPolicy.from_pretrained``.
            attn_implementation={
                "text_config": "sdpa",
                "vision_config": "eager" if on_cpu else "sdpa",
            },
        )
    return MLLMPolicy(
        model.to(place),  # whatever was made elsewhere
        codec,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        lora=LoRA(config.lora_rank) if config.lora_rank else None,
        checkpointing=config.checkpointing,
        feature_cache_mb=8192.0,  # all frames of an iteration
    )


def dialogues(codec: ChatCodec, config: ScaleConfig) -> list[Trajectory]:
    """Return episodes as an environment shows them, with frames of noise and nothing said yet."""
    env = TextProtocol(
        gym.make(
            "LongVideoQA-v0",
            disable_env_checker=True,
            max_turns=config.turns,
            frame_budget=config.frame_budget,
            frame_size=28,
        )
    )
    rng = np.random.default_rng(0)
    rows = max(
        n for n in range(1, math.isqrt(config.frame_tokens) + 1) if not config.frame_tokens % n
    )
    unit = codec.grid.patch * codec.grid.merge
    shape = (rows * unit, config.frame_tokens // rows * unit, 3)
    episodes = []
    for index in range(config.episodes):
        env.reset(options={"index": index})
        episode = Trajectory(codec.system(env.messages()[0]["content"][0]["text"]))
        for turn in range(config.turns):
            content = [
                {"type": "image", "image": rng.integers(0, 256, shape, dtype=np.uint8)}
                if part["type"] == "image"
                else part
                for part in env.messages()[-1]["content"]
            ]
            user = codec.user(content)
            episode.turns.append(replace(Exchange.opened(user), reward=float(rng.normal())))
            if turn + 1 < config.turns:
                last = len(env.turn.pool_times) - 1
                env.step(f"<think>a</think><retrieve>0, {last}</retrieve>")
        episodes.append(episode)
    env.close()
    return episodes


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
        self._meter, self._work = meter, work
        self._past: list[int] = []

    def _prefill(self, rows: Sequence[Row]) -> torch.Tensor:
        past = self._past or [0] * len(rows)
        news = [len(row.ids) for row in rows]
        flop = sum(self._work.forward(n, p) for n, p in zip(news, past, strict=True))
        self._past = [n + p for n, p in zip(news, past, strict=True)]
        with self._meter.measure("prefill", sum(news), flop):
            return super()._prefill(rows)

    def _sample(self, states: torch.Tensor) -> list[Reply]:
        # The first token comes from the prefill, and the last one is not fed any more.
        drawn = self.sampling.max_new_tokens
        count = drawn * len(self._past)
        flop = sum(self._work.forward(drawn - 1, past) for past in self._past)
        self._past = [past + drawn - 1 for past in self._past]
        with self._meter.measure("decode", count, flop + self._work.logits(count)):
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
    policy, ppo = learner.policy, learner.config
    codec, work = policy.codec, Work(Sizes.of(policy.base))
    backward = 1 if config.lora_rank else 2
    reads, reference = ppo.critic != "head", bool(ppo.beta)
    policy.encoder.clear()
    sampling = Sampling(learner.config.temperature, max_new_tokens=config.reply_tokens)
    session = MeteredSession(policy, sampling, generator, meter, work)
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
    del session  # and its KV cache
    kept = before_update()
    rows = [policy.row(next(iter(e.rows(codec, learner.config.history)))) for e in episodes]
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
    del kept
    return meter.phases
