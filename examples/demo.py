"""The demo: a small multimodal language model learns to look, in about five minutes.

    make demo

The tiny MLLM is a Qwen2.5-VL of a million parameters. It can read frames, say which of them show
the scene in question, and answer if it has seen the card; its habit is to answer at once, seen or
not. PPO on haystack videos, with the paper's reward and bootstrapping bonus, teaches it to look
first. Expect accuracy to rise from 0.44 to about 0.85. Everything is written under ``runs/demo``;
an earlier demo there is replaced.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

import gym_longvideo  # noqa: F401 - registers the ids
from agents.config import TrainConfig
from agents.evaluation import Evaluation, evaluation_tasks, play_agent
from agents.model import tiny
from agents.scripted import Agent, make_agent
from agents.trainer import Trainer
from gym_longvideo.env import LongVideoQAEnv

SPLIT = "test"  # training draws from "train" and watches "val"


def train_config(
    out: Path, *, seconds: float, episodes: int, seed: int, iterations: int = 0
) -> TrainConfig:
    """Return the demo's settings; ``longvideo train`` has the same but for the limits."""
    return TrainConfig(
        out=str(out),
        seconds=seconds,
        iterations=iterations,
        seed=seed,
        max_new_tokens=24,  # replies are about 14 tokens long
        eval_split=SPLIT,
        eval_every=10**9,  # before and after; the curves in between come from training itself
        eval_episodes=episodes,
        save_every=0,
        threads=min(2, torch.get_num_threads()),
    )


def play_script(agent: Agent, episodes: int) -> Evaluation:
    """Run a scripted agent on the tasks that the models are evaluated on."""
    env = gym.make(
        "LongVideoQA-v0", split=SPLIT, suite_options=tiny.SUITE_OPTIONS, **tiny.ENV_OPTIONS
    )
    base = env.unwrapped
    assert isinstance(base, LongVideoQAEnv)
    result = play_agent(env, agent, evaluation_tasks(len(base.suite), episodes)[0])
    env.close()
    return result


def table(lines: Mapping[str, Evaluation]) -> str:
    """Return the table as text."""
    rows = [f"{'policy':10s}{'accuracy':>9s}  {'95 % interval':15s}{'retrieval rate':>15s}"
            f"{'turns':>7s}{'frames':>8s}"]  # fmt: skip
    for name, line in lines.items():
        low, high = line.ci95
        rows.append(
            f"{name:10s}{line.accuracy:9.3f}  {f'{low:.3f} to {high:.3f}':15s}"
            f"{line.retrieval_rate:15.2f}{line.turns:7.2f}{line.frames:8.1f}"
        )
    return "\n".join(rows)


def closed(lines: Mapping[str, Evaluation]) -> float:
    """Return the share of the gap between base and oracle that training closed."""
    gap = lines["oracle"].accuracy - lines["base"].accuracy
    return (lines["trained"].accuracy - lines["base"].accuracy) / gap if gap else math.nan


def run(config: TrainConfig) -> tuple[dict[str, Evaluation], Trainer]:
    """Evaluate, train and evaluate again; return the table's lines and the trainer."""
    lines = {"random": play_script(make_agent("random"), config.eval_episodes)}
    trainer = Trainer(config)
    first: list[Evaluation] = []
    evaluate = trainer.evaluate

    def remember() -> Any:
        metrics = evaluate()
        if trainer.evaluation is not None and not first:
            first.append(trainer.evaluation)
        return metrics

    trainer.evaluate = remember  # type: ignore[method-assign]
    last = trainer.run()
    if last is not None and first:
        lines["base"], lines["trained"] = first[0], last
    lines["oracle"] = play_script(make_agent("oracle"), config.eval_episodes)
    return lines, trainer


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seconds", type=float, default=280.0, help="time for training")
    parser.add_argument("--iterations", type=int, default=0, help="limit of updates; 0 for none")
    parser.add_argument("--batch", type=int, default=64, help="episodes of an update")
    parser.add_argument("--episodes", type=int, default=256, help="held-out episodes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    directory = args.out / "train"
    if (directory / "metrics.jsonl").exists():
        shutil.rmtree(directory)
    limits = {"seconds": args.seconds, "iterations": args.iterations}
    config = train_config(directory, episodes=args.episodes, seed=args.seed, **limits)
    config = replace(config, batch=args.batch)
    span = f"{args.seconds:.0f} s" if args.seconds else f"{args.iterations} updates"
    print(
        f"The tiny MLLM ({config.model}) answers {args.episodes} questions about videos it never "
        f"saw,\nis post-trained with PPO for {span}, and answers them again. "
        "Ctrl-C ends training early."
    )
    lines, trainer = run(config)
    print("\n" + table(lines))
    summary = {name: {**asdict(line), "ci95": list(line.ci95)} for name, line in lines.items()}
    seconds = time.monotonic() - started
    extra = {"updates": trainer.step, "seconds": round(seconds, 1), "seed": args.seed}
    (args.out / "summary.json").write_text(
        json.dumps({**summary, **extra}, indent=2) + "\n", encoding="utf-8"
    )
    if "trained" in lines:
        print(
            "\nbase: the model before training, which answers at its first turn. oracle: knows "
            "where the card is.\nTraining closed "
            f"{closed(lines):.0%} of the gap between them, and pays for it in turns and frames."
        )
    print(
        f"\n{trainer.step} updates, {seconds:.0f} s in all.\n"
        f"  scores               {args.out}/summary.json\n"
        f"  TensorBoard          tensorboard --logdir {directory}\n"
        f"  sample episodes      {directory}/samples\n"
        f"  episode records      {directory}/records\n"
        f"  checkpoint           {directory}/checkpoint-{trainer.step:06d}  "
        f"(go on: longvideo train --resume {directory} --seconds 600)"
    )


if __name__ == "__main__":
    main()
