"""Train PPO or MaskablePPO on LongVideoQA, and compare with agents that need no training.

    python -m examples.train_sb3 --algo maskable --seconds 120
    python -m examples.train_sb3 --seconds 120 --mp4 runs/needle

Takes the seconds that it is given, and a few more to evaluate; ``--mp4`` some minutes the first
time, for encoding. Expect a line every five seconds, SB3's own table now and then, and in the end
a table in which MaskablePPO reaches about 0.97 of held-out accuracy after two minutes on one core,
where the best that never looks twice has 0.45.

The second command first writes the very same tasks as H.264 files and trains on frames decoded from
them. The environment needs no wrapper; only the feature extractor is ours (``agents/sb3.py``).
Episodes are at most ``max_turns`` steps, so short rollouts (``n_steps``) and a discount of 1 are
right.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.sb3 import FrameExtractor, sb3_policy
from agents.scripted import Oracle, Random, UniformSingleTurn
from examples.evaluate import evaluate, table
from examples.needle import ENV_OPTIONS, SUITE_OPTIONS
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.haystack.export import export_suite


class Clock(BaseCallback):
    """Ends training after some seconds or steps, and says every five seconds how it goes."""

    def __init__(self, seconds: float, steps: int) -> None:
        super().__init__()
        self.seconds, self.steps = seconds, steps
        self.started, self.said = time.monotonic(), 0.0
        self.ends: list[bool] = []

    def _on_training_start(self) -> None:
        self.started = time.monotonic()

    def _on_step(self) -> bool:
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done:
                self.ends.append(info["is_success"])
        spent = time.monotonic() - self.started
        if spent - self.said >= 5.0:
            self.said = spent
            recent = self.ends[-500:]
            done = min(1.0, max(spent / self.seconds, self.num_timesteps / self.steps))
            print(
                f"training {done:4.0%}, {spent * (1 / done - 1):.0f} s left   "
                f"{self.num_timesteps:7d} steps   "
                f"{self.num_timesteps / spent:5.0f} steps/s   "
                f"success while exploring {sum(recent) / max(len(recent), 1):.2f}",
                flush=True,
            )
        return spent < self.seconds


def train(
    env_options: Mapping[str, Any],
    *,
    algo: str = "maskable",
    seconds: float = 120.0,
    steps: int = 10**9,
    seed: int = 0,
    n_envs: int = 16,
    n_steps: int = 32,
    tensorboard: str | None = None,
    verbose: int = 0,
) -> PPO | MaskablePPO:
    """Train on ``LongVideoQA-v0`` and return the model.

    Args:
        env_options: Keyword arguments of the environment.
        algo: "ppo" or "maskable".
        seconds: Wall-clock limit.
        steps: Limit of environment steps.
        seed: Seed of everything.
        n_envs: Environments stepped side by side.
        n_steps: Steps of each between updates.
        tensorboard: Directory of the TensorBoard log.
        verbose: 1 prints SB3's own table every 50 updates.
    """
    venv = DummyVecEnv(
        [
            lambda: gym.make(
                "gym_longvideo:LongVideoQA-v0", disable_env_checker=True, **env_options
            )
            for _ in range(n_envs)
        ]
    )
    model = {"ppo": PPO, "maskable": MaskablePPO}[algo](
        "MultiInputPolicy",
        venv,
        n_steps=n_steps,
        batch_size=min(256, n_envs * n_steps),
        n_epochs=4,
        learning_rate=4e-3,
        gamma=1.0,
        ent_coef=0.001,
        seed=seed,
        policy_kwargs={"features_extractor_class": FrameExtractor, "net_arch": [128]},
        tensorboard_log=tensorboard,
        device="cpu",
        verbose=verbose,
    )
    try:
        model.learn(steps, callback=Clock(seconds, steps), log_interval=50)
    finally:
        venv.close()
    return model


def export(directory: Path, split: str, count: int) -> Path:
    """Write the first tasks of a split as MP4 files, if not yet there; return the annotation."""
    return export_suite(
        HaystackSuite(split, size=count, **SUITE_OPTIONS),
        directory / split,
        fps=1,
        size=(80, 80),
        workers=os.cpu_count() or 1,
        progress=True,
    )


def main() -> None:
    """Train on the needle suite and evaluate on videos that training never saw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algo", choices=["ppo", "maskable"], default="maskable")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-envs", type=int, default=16)
    parser.add_argument("--n-steps", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=256, help="held-out tasks, at most 256")
    parser.add_argument("--tensorboard", help="directory of a TensorBoard log")
    parser.add_argument("--mp4", type=Path, help="write files here, and decode frames from them")
    parser.add_argument("--videos", type=int, default=384, help="files to train on, with --mp4")
    parser.add_argument("--save", type=Path, help="write the model to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)  # networks this small lose by more, on a busy machine a lot
    splits: dict[str, dict[str, Any]] = {"train": {}, "val": {}}
    for split, count in (("train", args.videos), ("val", args.episodes)):
        source: dict[str, Any] = {"suite_options": SUITE_OPTIONS}
        if args.mp4:
            print(f"writing {count} videos of 10 minutes to {args.mp4}/{split}")
            source = {"suite": str(export(args.mp4, split, count)), "cache_mb": 64}
        splits[split] = {**ENV_OPTIONS, **source, "split": split}
    print(f"training {args.algo} for {args.seconds:.0f} s or {args.steps} steps", flush=True)
    model = train(
        splits["train"],
        algo=args.algo,
        seconds=args.seconds,
        steps=args.steps,
        seed=args.seed,
        n_envs=args.n_envs,
        n_steps=args.n_steps,
        tensorboard=args.tensorboard,
        verbose=1,
    )
    if args.save:
        model.save(args.save)
    policies = {
        "random": Random(),
        "overview-only": UniformSingleTurn(),
        "trained": sb3_policy(model),
        "oracle": Oracle(),
    }
    print(f"evaluating {len(policies)} policies on {args.episodes} tasks never seen", flush=True)
    env = gym.make("gym_longvideo:LongVideoQA-v0", **splits["val"])
    print(table({name: evaluate(env, policy, args.episodes) for name, policy in policies.items()}))
    env.close()


if __name__ == "__main__":
    main()
