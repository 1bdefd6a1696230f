"""How fast: our rollouts and updates against named rivals, on the same machine in the same run.

    longvideo speed training

Ratios, not seconds, are what to read: machines differ and are noisy. Each pair is run in turns and
the medians are compared.

* ``rollout_vs_generate``: episodes a second, multi-turn with the KV cache and the vision features
  kept from turn to turn, against ``model.generate`` on the whole context in every turn, images
  included. Both are fed the same dialogues and produce the same number of tokens.
* ``rollout_vs_no_kv_reuse``, ``rollout_vs_no_feature_cache``: each optimisation switched off alone.
* ``vllm_vs_rollout``: a vLLM server that is named (``--server``) against our rollout, on the same
  dialogues.
* ``update_packed_vs_padded``, ``score_packed_vs_padded``: one optimiser step, and the scoring of a
  batch, on dialogues end to end against the same padded. Dialogues are of one turn, two or three,
  because policies answer when they like; all updates here learn from these.
* ``update_vs_trl``: the packed step against ``trl.GRPOTrainer``'s on the same dialogues, where TRL
  is installed.
"""

from __future__ import annotations

import copy
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import gym_longvideo  # noqa: F401 - registers the ids
from agents.command import parse
from agents.model import tiny
from agents.model.chat import Block
from agents.model.decoding import DecodeSession
from agents.model.policy import MLLMPolicy
from agents.model.rows import collate
from agents.model.sampling import Sampling
from agents.model.vision import patchify
from agents.ppo import PPOLearner
from agents.ppo_config import make_config
from agents.trajectory import Exchange, Trajectory
from benchmarks.speed.served import Rival
from gym_longvideo.command import as_command
from gym_longvideo.files import write_whole
from gym_longvideo.wrappers import TextProtocol


@dataclass(frozen=True)
class SpeedConfig:
    """What to measure.

    Attributes:
        model: Path or hub id; the tiny model by default.
        episodes: Dialogues at once.
        reply_tokens: Tokens of every reply.
        repeats: Times each is run; medians count.
        threads: Of PyTorch.
        server: Address of a vLLM server that serves the same model, to be measured too.
        json_file: Where to write the numbers.
    """

    model: str = str(tiny.WEIGHTS)
    episodes: int = 32
    reply_tokens: int = 13
    repeats: int = 5
    threads: int = 1
    server: str = ""
    json_file: Path | None = None


class Script:
    """Dialogues whose replies are given, so that every contender does the same work.

    Args:
        policy: Whose codec is used.
        config: What to measure.
    """

    def __init__(self, policy: MLLMPolicy, config: SpeedConfig) -> None:
        self.policy = policy
        codec = policy.codec
        self.episodes: list[Trajectory] = []
        rng = np.random.default_rng(0)
        env = TextProtocol(
            gym.make(
                "LongVideoQA-v0",
                disable_env_checker=True,
                suite_options=tiny.SUITE_OPTIONS,
                **tiny.ENV_OPTIONS,
            )
        )
        for index in range(config.episodes):
            env.reset(options={"index": index})
            episode = Trajectory(codec.system(env.messages()[0]["content"][0]["text"]))
            over = False
            while not over:
                user = codec.user(env.messages()[-1]["content"])
                low, high = sorted(rng.integers(0, 64, 2).tolist())
                text = f"<think>{low}, {high}: {tiny.NOT_SEEN}</think>"
                act = f"<retrieve>{low}, {high}</retrieve>"
                text += act if env.turn.may_retrieve else "<answer>A</answer>"
                reply = codec.encode_reply(text)
                _, _, over, _, _ = env.step(text)
                said = Exchange(user, _as_reply(reply), codec.close(reply))
                said.reward = float(rng.normal())
                episode.turns.append(said)
            self.episodes.append(episode)

    def contexts(self, turn: int) -> list[list[Block]]:
        """Return the whole context of every dialogue before the reply of a turn."""
        return [
            [
                episode.system,
                *[
                    block
                    for said in episode.turns[:turn]
                    for block in (said.user, Block(said.reply.ids), said.close)
                ],
                episode.turns[turn].user,
            ]
            for episode in self.episodes
        ]

    @property
    def turns(self) -> int:
        """Turns of every dialogue."""
        return len(self.episodes[0].turns)


def _as_reply(block: Block) -> Any:
    from agents.model.sampling import Reply

    return Reply(block.ids, np.zeros(len(block.ids), np.float32), False)


def ours(script: Script, tokens: int, *, reuse_cache: bool = True, features: bool = True) -> None:
    """Generate every reply with our session, then go on with the scripted one."""
    policy = script.policy
    policy.encoder.clear()
    policy.encoder.cached = features
    sampling = Sampling(greedy=True, max_new_tokens=tokens)
    session = DecodeSession(policy, sampling)
    keys = list(range(len(script.episodes)))
    for turn in range(script.turns):
        if turn == 0 or not reuse_cache:
            session.reply(keys, script.contexts(turn), fresh=True)
        else:
            new = [[e.turns[turn - 1].close, e.turns[turn].user] for e in script.episodes]
            session.reply(keys, new)
    policy.encoder.cached = True


def plain_generate(script: Script, tokens: int) -> None:
    """Generate every reply with ``model.generate`` on the whole context, images and all."""
    from transformers import GenerationConfig

    policy, grid = script.policy, script.policy.codec.grid
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0
    )
    for turn in range(script.turns):
        rows = [policy.row(context) for context in script.contexts(turn)]
        batch = collate(rows, 0, left=True, device=policy.device)
        frames = np.stack(batch.frames)
        height, width = frames.shape[1] // grid.patch, frames.shape[2] // grid.patch
        pixels = patchify(frames, grid, policy.encoder.mean, policy.encoder.std)
        with torch.no_grad():
            policy.base.generate(
                input_ids=batch.ids,
                attention_mask=batch.attention,
                pixel_values=pixels.to(policy.device, policy.head.weight.dtype),
                image_grid_thw=torch.tensor([[1, height, width]] * len(frames)).to(policy.device),
                mm_token_type_ids=(batch.ids == policy.codec.image_token_id).int(),
                generation_config=settings,
            )


def medians(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Run contenders in turns; return the median seconds of each."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            _finish_gpu()
            started = time.perf_counter()
            run()
            _finish_gpu()
            if repeat:  # the first is for warming up
                spent[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def _finish_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_rollout(script: Script, config: SpeedConfig) -> dict[str, float]:
    """Return ratios of episodes a second."""
    # The end token must not end replies early: everybody makes as many tokens.
    rival = Rival(config.server, script.policy) if config.server else None
    end, script.policy.codec.end_id = script.policy.codec.end_id, -1
    n = config.reply_tokens
    contenders: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(script, n),
        "generate": lambda: plain_generate(script, n),
        "no_kv_reuse": lambda: ours(script, n, reuse_cache=False),
        "no_feature_cache": lambda: ours(script, n, features=False),
    }
    if rival is not None:
        turns = [script.contexts(turn) for turn in range(script.turns)]
        contenders["vllm"] = lambda: rival.play(turns, n)
    try:
        seconds = medians(contenders, config.repeats)
    finally:
        script.policy.codec.end_id = end
    by_server = seconds.pop("vllm", None)
    rivals = {f"rollout_vs_{k}": v / seconds["ours"] for k, v in seconds.items() if k != "ours"}
    if by_server is not None:
        rivals["vllm_vs_rollout"] = seconds["ours"] / by_server
    return {"episodes_per_second": len(script.episodes) / seconds["ours"], **rivals}


class TRLStep:
    """``GRPOTrainer``'s step on the tokens of a script: its loss, backward and optimiser.

    Prompts are the first contexts; everything after them is the completion, in which only replies
    are trained on. Micro-batches are ours. It has no critic and no turn credit; advantages are
    given. The vision tower is frozen for it too, but it has no memory of features.

    Args:
        script: The dialogues.
        config: What to measure.
        micro_rows: Dialogues of a forward pass.
    """

    def __init__(self, script: Script, model: Any, micro_rows: int) -> None:
        import tempfile

        # By name: trl names no exports that a type checker sees, and beside a folder
        # benchmarks/datasets it takes the library for that.
        trl: Any = importlib.import_module("trl")
        datasets: Any = importlib.import_module("datasets")

        policy = script.policy
        self.trainer: Any = trl.GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=trl.GRPOConfig(
                output_dir=tempfile.mkdtemp(),
                per_device_train_batch_size=2,
                num_generations=2,
                report_to=[],
                use_cpu=not torch.cuda.is_available(),
                beta=0.0,
                bf16=False,
                gradient_checkpointing=False,
                loss_type="dapo",
                learning_rate=2e-4,
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": ["a", "b"]}),
            processing_class=policy.codec.tokenizer,
        )
        model.model.visual.requires_grad_(False)
        self.model = model.train()
        self.trainer.current_gradient_accumulation_steps = 1
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=2e-4)
        self.parts = []
        rng = np.random.default_rng(0)
        episodes = sorted(
            script.episodes, key=lambda e: -sum(len(t.user.ids) + len(t.reply.ids) for t in e.turns)
        )
        for start in range(0, len(episodes), micro_rows):
            self.parts.append(self._inputs(policy, episodes[start : start + micro_rows], rng))
        tokens = sum(part["tool_mask"].sum() for part in self.parts)
        for part in self.parts:
            part["num_items_in_batch"] = tokens

    def _inputs(
        self, policy: MLLMPolicy, episodes: Sequence[Trajectory], rng: np.random.Generator
    ) -> dict[str, Any]:
        grid = policy.codec.grid
        prompts = [policy.row([e.system, e.turns[0].user]) for e in episodes]
        wholes = [policy.row(next(iter(e.rows(policy.codec, None)))) for e in episodes]
        left = collate(prompts, 0, left=True, device=policy.device)
        tails = [
            row._replace(
                ids=row.ids[len(p.ids) :],
                sampled=row.sampled[len(p.ids) :],
                positions=row.positions[:, len(p.ids) :],
            )
            for row, p in zip(wholes, prompts, strict=True)
        ]
        right = collate(tails, 0, device=policy.device)
        frames = np.stack([frame for row in wholes for frame in row.frames])
        height, width = frames.shape[1] // grid.patch, frames.shape[2] // grid.patch
        pixels = patchify(frames, grid, policy.encoder.mean, policy.encoder.std)
        ids = torch.cat([left.ids, right.ids], dim=1)
        attended = torch.cat([left.attention, right.attention], dim=1)
        return {
            "prompt_ids": left.ids,
            "prompt_mask": left.attention,
            "completion_ids": right.ids,
            "completion_mask": right.attention,
            "tool_mask": right.sampled.long(),
            "advantages": torch.from_numpy(rng.normal(size=len(episodes))).float().to(ids.device),
            "pixel_values": pixels.to(ids.device, policy.head.weight.dtype),
            "image_grid_thw": torch.tensor([[1, height, width]] * len(frames)).to(ids.device),
            "num_images": [len(row.frames) for row in wholes],
            "mm_token_type_ids": ((ids == policy.codec.image_token_id) & attended.bool()).int(),
        }

    def step(self) -> None:
        """Take one optimiser step."""
        for part in self.parts:
            self.trainer._compute_loss(self.model, part).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def uneven(episodes: Sequence[Trajectory]) -> list[Trajectory]:
    """Return dialogues cut after the first turn, the second, the third and so on in turn."""
    return [
        replace(episode, turns=episode.turns[: 1 + i % len(episode.turns)])
        for i, episode in enumerate(episodes)
    ]


def measure_update(script: Script, config: SpeedConfig) -> dict[str, float]:
    """Return our update packed against padded, and against TRL's where TRL is installed."""
    rows = 8
    script.episodes = uneven(script.episodes)
    everyone = np.arange(len(script.episodes))
    codec = script.policy.codec
    lengths = [len(script.policy.row(next(iter(e.rows(codec, None)))).ids) for e in script.episodes]
    packed, padded = (
        PPOLearner(
            MLLMPolicy.from_pretrained(config.model, packing=packing),
            make_config(
                "tiny",
                epochs=1,
                minibatch=len(everyone),
                entropy_coef=0.0,
                micro_batch_tokens=rows * max(lengths),
            ),
        )
        for packing in (True, False)
    )
    batch = packed.prepare(script.episodes)
    contenders: dict[str, Callable[[], Any]] = {
        "packed": lambda: packed.actor_step(batch, everyone),
        "padded": lambda: padded.actor_step(batch, everyone),
        "packed_score": lambda: packed.prepare(script.episodes),
        "padded_score": lambda: padded.prepare(script.episodes),
        "whole": lambda: packed.update(script.episodes),
    }
    try:
        import trl  # noqa: F401
    except ImportError:
        print("TRL is not installed (pip install trl): the update has no rival")
    else:
        contenders["trl"] = TRLStep(script, copy.deepcopy(script.policy.base), rows).step
    seconds = medians(contenders, config.repeats)
    result = {
        "update_tokens_per_second": sum(lengths) / seconds["whole"],
        "whole_update_vs_policy_step": seconds["whole"] / seconds["packed"],
        "update_packed_vs_padded": seconds["padded"] / seconds["packed"],
        "score_packed_vs_padded": seconds["padded_score"] / seconds["packed_score"],
    }
    if "trl" in seconds:
        result["update_vs_trl"] = seconds["trl"] / seconds["packed"]
        result["whole_update_vs_trl"] = seconds["trl"] / seconds["whole"]
    return result


def measure(config: SpeedConfig) -> dict[str, float]:
    """Measure everything."""
    torch.set_num_threads(config.threads)
    policy = MLLMPolicy.from_pretrained(config.model)
    script = Script(policy, config)
    return {**measure_rollout(script, config), **measure_update(script, config)}


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line."""
    config = parse(SpeedConfig, arguments, "speed training")
    result = measure(config)
    for name, value in result.items():
        unit = "x" if "_vs_" in name else ""
        print(f"{name:32s}{value:10.2f}{unit}")
    if config.json_file is not None:
        write_whole(config.json_file, json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
