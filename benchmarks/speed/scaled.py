"""What is measured at the sizes of real models: a model with random weights, and its dialogues.

Time and memory do not depend on what weights are, as long as every reply has the same length: the
end of a reply is never sampled here. Frames are noise, no two alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

import gym_longvideo  # noqa: F401 - registers the ids
from agents.config import Compute, Dtype, TrainConfig
from agents.model import tiny
from agents.model.chat import ChatCodec, ImageGrid
from agents.model.critic import CriticKind
from agents.model.policy import LoRA, MLLMPolicy
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.ppo_config import make_config
from agents.sharding import Sharding
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
        compute: Of the passes where all weights are trained; "auto" is bfloat16 on a GPU, else
            float32.
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
    compute: Compute = "auto"
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
                score_tokens=None,
                critic=critic,
                history=None,  # one row an episode
            ),
            lora_rank=self.lora_rank,
            checkpointing=self.checkpointing,
            max_new_tokens=self.reply_tokens,
            batch=self.episodes,
            envs=self.episodes,
            dtype=self.dtype,
            compute=self.compute,
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


def build_learner(config: ScaleConfig) -> PPOLearner:
    """Return a learner of such a policy, as a run has it."""
    policy, processes = build_policy(config), Processes(config.device)
    compute = config.training.compute_dtype(processes.device.type)
    sharding = Sharding(processes, compute=compute)
    return PPOLearner(policy, config.training.ppo, processes=processes, sharding=sharding)


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
