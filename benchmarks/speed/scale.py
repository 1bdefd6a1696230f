"""Scale: what an iteration costs at the sizes of real models, on a GPU, phase by phase.

    longvideo speed scale --size 3b --device cuda --json-file 3b.json

Builds a Qwen2.5-VL of that size with random weights on the device, so nothing is downloaded, and
plays the method's own sizes: 32 episodes of three turns, 32 frames of 128 tokens each. Time and
memory do not depend on what the weights are, as long as every reply has the same length: the end of
a reply is never sampled here.

* ``vision``: the tower, each frame once. ``prefill``, ``decode``: replies, with one KV cache.
* ``score``: log-probabilities, values and the reference, three passes.
* ``critic``, ``actor``: an epoch of LoRA steps with recomputed activations.

MFU counts what the model needs, not what is computed twice: a forward pass is 2 FLOP for each
weight of the layers and each token, plus 4 x layers x width for each pair of tokens that attend;
the head counts where it is read; a LoRA backward pass is as much again, for the gradients of
activations alone. The attention inside the tower and the adapters themselves are not counted.

Left out: environments and video decoding (``benchmarks.speed.video``), several GPUs, and the real
tokenizer: the tiny one is used, whose prompts are shorter, and ids beyond it are never sampled.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

import gym_longvideo  # noqa: F401 - registers the ids
from agents.command import parse
from agents.config import Dtype
from agents.model import tiny
from agents.model.chat import ChatCodec, ImageGrid
from agents.model.decoding import DecodeSession
from agents.model.policy import LoRA, MLLMPolicy
from agents.model.rows import Row
from agents.model.sampling import Reply, Sampling
from agents.parallel import Processes, usable_device
from agents.ppo import PPOLearner
from agents.ppo_config import make_config
from agents.trajectory import Exchange, Trajectory
from benchmarks.speed.sizes import SIZES, Work, build_config
from gym_longvideo import checks
from gym_longvideo.command import as_command
from gym_longvideo.files import write_whole
from gym_longvideo.wrappers import TextProtocol


@dataclass(frozen=True)
class ScaleConfig:
    """What to measure.

    Attributes:
        size: "3b", "7b" or "tiny".
        device: "cuda", "cuda:1", "cpu".
        dtype: Of the weights under the adapters; "auto" is bfloat16 on a GPU, float32 on a CPU.
        episodes: Dialogues at once, and of an update.
        turns: Of every dialogue.
        frame_budget: Frames of a dialogue: half in the overview, a quarter for each retrieval.
        frame_tokens: Tokens of a frame, four patches each.
        reply_tokens: Tokens of every reply.
        minibatch: Episodes of an optimiser step.
        micro_batch_tokens: Padded tokens of a forward pass in scoring and learning.
        lora_rank: Of the adapters.
        warmup: Iterations that do not count.
        repeats: Iterations that count; the medians are given.
        peak_tflops: Of the device at the precision of the weights; 989 is an H200's at bfloat16,
            dense.
        threads: Of PyTorch on a CPU; 0 leaves its own choice.
        json_file: Where to write the numbers.
    """

    size: Literal["3b", "7b", "tiny"] = "3b"
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
    warmup: int = 1
    repeats: int = 3
    peak_tflops: float = 989.0
    threads: int = 0
    json_file: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("episodes", 1), ("turns", 2), ("frame_tokens", 1), ("reply_tokens", 1),
            ("warmup", 0), ("repeats", 1),
        ):  # fmt: skip
            checks.whole(name, getattr(self, name), least)
        checks.number("peak_tflops", self.peak_tflops, above=0)


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
    dtype = ("float32" if on_cpu else "bfloat16") if config.dtype == "auto" else config.dtype
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
        lora=LoRA(config.lora_rank),
        checkpointing=True,
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
        peak_bytes: Most memory allocated by tensors; NaN on a CPU.
    """

    seconds: float = 0.0
    tokens: int = 0
    flop: float = 0.0
    peak_bytes: float = math.nan


class Meter:
    """Adds up phases.

    Args:
        device: Whose work is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.phases: dict[str, Phase] = {}

    @contextmanager
    def measure(self, name: str, tokens: int, flop: float) -> Iterator[None]:
        """Count what happens inside as part of a phase."""
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        began = time.perf_counter()
        yield
        if gpu:
            torch.cuda.synchronize(self.device)
        phase = self.phases.setdefault(name, Phase())
        phase.seconds += time.perf_counter() - began
        phase.tokens += tokens
        phase.flop += flop
        if gpu:
            peak = float(torch.cuda.max_memory_allocated(self.device))
            phase.peak_bytes = np.fmax(phase.peak_bytes, peak)


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
) -> dict[str, Phase]:
    """Play, score and learn once; return what each phase cost."""
    policy = learner.policy
    codec, work, meter = policy.codec, Work(policy), Meter(policy.device)
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
    rows = [policy.row(next(iter(e.rows(codec, learner.config.history)))) for e in episodes]
    lengths = [len(row.ids) for row in rows]
    said = [int(row.sampled.sum()) for row in rows]
    forward = sum(work.forward(n) for n in lengths)
    logits = work.logits(sum(said))
    # Policy, critic and reference; the critic reads no logits.
    with meter.measure("score", sum(lengths), 3 * forward + 2 * logits):
        batch = learner.prepare(episodes)
    rng = np.random.default_rng(0)
    steps = math.ceil(len(episodes) / config.minibatch)
    for part in np.array_split(rng.permutation(len(episodes)), steps):
        chosen = np.sort(part)
        tokens = sum(lengths[i] for i in chosen)
        forward = sum(work.forward(lengths[i]) for i in chosen)
        logits = work.logits(sum(said[i] for i in chosen))
        with meter.measure("critic", tokens, 2 * forward):
            learner.critic_step(batch, chosen)
        with meter.measure("actor", tokens, 2 * (forward + logits)):
            learner.actor_step(batch, chosen)
    return meter.phases


def measure(config: ScaleConfig) -> dict[str, Any]:
    """Build a model and measure its iterations; return what is printed and written as JSON."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    policy = build_policy(config)
    learner = PPOLearner(
        policy,
        make_config(
            "recommended",
            minibatch=config.minibatch,
            micro_batch_tokens=config.micro_batch_tokens,
            score_tokens=None,
            history=None,  # one row an episode
        ),
        processes=Processes(config.device),
    )
    episodes = dialogues(policy.codec, config)
    generator = torch.Generator(policy.device).manual_seed(0)
    kept: list[dict[str, Phase]] = []
    for iteration in range(config.warmup + config.repeats):
        phases = iterate(learner, episodes, config, generator)
        if iteration >= config.warmup:
            kept.append(phases)
    return report(config, kept, str(policy.head.weight.dtype).removeprefix("torch."))


def report(config: ScaleConfig, kept: Sequence[dict[str, Phase]], dtype: str) -> dict[str, Any]:
    """Return the medians over iterations, with rates and MFU, and those of a whole iteration."""
    rows: dict[str, dict[str, float | None]] = {}
    whole = [
        Phase(
            sum(p.seconds for p in phases.values()),
            phases["score"].tokens,
            sum(p.flop for p in phases.values()),
            max(p.peak_bytes for p in phases.values()),
        )
        for phases in kept
    ]
    for name in [*kept[0], "whole"]:
        found = whole if name == "whole" else [phases[name] for phases in kept]
        seconds = statistics.median(phase.seconds for phase in found)
        peak = max(phase.peak_bytes for phase in found)
        rows[name] = {
            "seconds": seconds,
            "tokens": found[0].tokens,
            "tokens_per_second": found[0].tokens / seconds,
            "tflop": found[0].flop / 1e12,
            "mfu": found[0].flop / 1e12 / seconds / config.peak_tflops,
            "peak_gb": None if math.isnan(peak) else peak / 1e9,
        }
    gpu = config.device.startswith("cuda")
    return {
        "config": {**asdict(config), "json_file": None},
        "device": torch.cuda.get_device_name(config.device) if gpu else "cpu",
        "dtype": dtype,
        "torch": torch.__version__,
        "phases": rows,
    }


def table(result: dict[str, Any]) -> str:
    """Return a line for each phase."""
    lines = [
        f"{result['config']['size']} on {result['device']}, {result['dtype']}, "
        f"MFU of {result['config']['peak_tflops']:g} TFLOP/s",
        f"{'phase':10s}{'seconds':>10s}{'tokens':>10s}{'tokens/s':>12s}{'TFLOP':>10s}{'MFU':>8s}"
        f"{'peak GB':>9s}",
    ]
    for name, row in result["phases"].items():
        peak = "-" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}"
        lines.append(
            f"{name:10s}{row['seconds']:10.2f}{row['tokens']:10d}{row['tokens_per_second']:12.0f}"
            f"{row['tflop']:10.2f}{row['mfu']:8.1%}{peak:>9s}"
        )
    return "\n".join(lines)


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line."""
    config = parse(ScaleConfig, arguments, "speed scale")
    usable_device(config.device)
    result = measure(config)
    print(table(result))
    if config.json_file is not None:
        write_whole(config.json_file, json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
