"""RL Baselines3 Zoo: its command line with the settings of ``examples/rl_zoo3.yml``."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.checks import needle
from tools.checks.rows import Checks

check = Checks("rl_zoo3")
SETTINGS = "examples/rl_zoo3.yml"


def trained(algo: str) -> None:
    """Train by the zoo's command line, and read success from its monitors."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            [
                *(sys.executable, "-m", "rl_zoo3.train", "--algo", algo),
                *("--env", "LongVideoQA-v0", "--gym-packages", "gym_longvideo"),
                *("--conf-file", SETTINGS, "--n-timesteps", str(needle.steps())),
                *("--log-folder", directory, "--seed", "0", "--eval-freq", "-1"),
                *("--num-threads", "1", "--device", "cpu"),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        episodes: list[dict[str, str]] = []
        for path in Path(directory).rglob("*.monitor.csv"):
            episodes += csv.DictReader(path.read_text(encoding="utf-8").splitlines()[1:])
    episodes.sort(key=lambda episode: float(episode["t"]))
    needle.ENDS += [episode["is_success"] == "True" for episode in episodes]
    needle.COUNT = sum(int(episode["l"]) for episode in episodes)


@check("rl_zoo3.train --algo ppo", how=f"as is, {SETTINGS}", trains=True)
def ppo() -> None:
    """Train PPO."""
    trained("ppo")


@check("rl_zoo3.train --algo ppo_mask", limit="the zoo offers no MaskablePPO")
def ppo_mask() -> None:
    """Train MaskablePPO."""
    trained("ppo_mask")


if __name__ == "__main__":
    check.main()
