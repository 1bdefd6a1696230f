"""The demo: learn to look twice, from real video files, in about two minutes.

    make demo

It exports a haystack suite to H.264 files, trains MaskablePPO on frames decoded from them, compares
the result with policies that need no training on videos it never saw, and draws an episode.
Everything is written under ``runs/demo``; files of an earlier call are used again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from PIL import Image

from agents.sb3 import sb3_policy
from agents.scripted import Oracle, Random, UniformSingleTurn
from examples.evaluate import Policy, evaluate
from examples.needle import ENV_OPTIONS, SUITE_OPTIONS
from examples.train_sb3 import train
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.haystack.export import export_suite


def export(directory: Path, counts: dict[str, int]) -> dict[str, str]:
    """Export the splits as MP4 files; return the annotation of each."""
    annotations = {}
    for split, count in counts.items():
        suite = HaystackSuite(split, size=max(count, 1), **SUITE_OPTIONS)
        path = export_suite(
            suite,
            directory / split,
            fps=1,
            size=(80, 80),
            workers=os.cpu_count() or 1,
            progress=True,
        )
        annotations[split] = str(path)
    return annotations


def options(annotations: dict[str, str], split: str) -> dict[str, Any]:
    """Return the environment's keyword arguments for a split."""
    return {**ENV_OPTIONS, "suite": annotations[split], "split": split, "cache_mb": 64}


def draw_episode(env: gym.Env, policy: Policy, episodes: int, path: Path) -> None:
    """Play an episode that looks twice and draw its states, one above the other."""
    pictures: list[Any] = []
    for index in range(min(20, episodes)):
        observation, info = env.reset(seed=0, options={"index": index})
        pictures, over = [], False
        while not over:
            pictures.append(env.render())
            action = policy(env.unwrapped, observation)  # type: ignore[arg-type]
            observation, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
        pictures.append(env.render())
        if info["outcome"] == "correct" and info["turns"] > 1:
            break
    canvas = Image.new("RGB", (1280, 720 * len(pictures)))
    for row, picture in enumerate(pictures):
        canvas.paste(Image.fromarray(picture), (0, 720 * row))
    canvas.save(path)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seconds", type=float, default=120.0, help="training time")
    parser.add_argument("--steps", type=int, default=10**9, help="limit of training steps")
    parser.add_argument("--videos", type=int, default=384, help="videos to train on")
    parser.add_argument("--episodes", type=int, default=128, help="held-out videos")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    torch.set_num_threads(1)  # networks this small lose by more, on a busy machine a lot

    print(f"1. Writing {args.videos} + {args.episodes} videos of 10 minutes to {args.out}/videos")
    annotations = export(args.out / "videos", {"train": args.videos, "test": args.episodes})

    print(f"2. Training MaskablePPO on frames decoded from them, {args.seconds:.0f} s")
    model = train(
        options(annotations, "train"), seconds=args.seconds, steps=args.steps, seed=args.seed
    )
    model.save(args.out / "model")

    print(f"3. Evaluating on {args.episodes} videos that training never saw")
    env = gym.make(
        "gym_longvideo:LongVideoQA-v0", render_mode="rgb_array", **options(annotations, "test")
    )
    policies: dict[str, Policy] = {
        "random": Random(),
        "overview-only": UniformSingleTurn(),
        "trained": sb3_policy(model),
        "oracle": Oracle(),
    }
    scores = {name: evaluate(env, policy, args.episodes) for name, policy in policies.items()}
    print(f"\n{'policy':15s}{'success':>9s}  {'95 % interval':15s}{'turns':>7s}{'frames':>8s}")
    for name, score in scores.items():
        low, high = score.ci95
        print(
            f"{name:15s}{score.success:9.3f}  {f'{low:.3f} to {high:.3f}':15s}"
            f"{score.turns:7.2f}{score.frames:8.2f}"
        )
    draw_episode(env, policies["trained"], args.episodes, args.out / "episode.png")
    env.close()
    seconds = time.monotonic() - started
    summary = {
        "policies": {name: score.to_dict() for name, score in scores.items()},
        "seconds": round(seconds, 1),
    }
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(
        "\noverview-only is the best that anybody can do without retrieving: right where the "
        "overview\nhappens to show the answer, a guess elsewhere.\n"
        f"\n{seconds:.0f} s in all. Scores: {args.out}/summary.json   an episode: "
        f"{args.out}/episode.png   the model: {args.out}/model.zip"
    )


if __name__ == "__main__":
    main()
