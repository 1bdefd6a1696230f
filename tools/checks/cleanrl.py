"""CleanRL: the scripts of its last release on PyPI (2023), and our own in its manner."""

from __future__ import annotations

import runpy
import sys
import tempfile
from contextlib import chdir
from unittest import mock

import torch

from examples import cleanrl_ppo
from tools.checks import needle
from tools.checks.rows import Checks

check = Checks("cleanrl")


def script(module: str, *arguments: str) -> None:
    """Run a module's command line in this process."""
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as directory,
        chdir(directory),
        mock.patch.object(sys, "argv", [module, *arguments]),
    ):
        runpy.run_module(module, run_name="__main__")


@check("ppo.py", limit="it makes environments of gym, the predecessor of Gymnasium")
def ppo() -> None:
    """Run its ppo.py."""
    script("cleanrl.ppo", "--env-id", needle.FLAT_ID, "--total-timesteps", "512")


@check("dqn.py", how="DiscreteIntervals, FlatBox", trains=True)
def dqn() -> None:
    """Run its dqn.py, which knows Gymnasium."""
    script(
        "cleanrl.dqn", "--env-id", needle.FLAT_ID, "--total-timesteps", str(needle.steps(0.5)),
        "--gamma", "1", "--learning-starts", "500", "--learning-rate", "1e-3",
    )  # fmt: skip


@check("examples/cleanrl_ppo.py, ours in its manner", how="DiscreteIntervals", trains=True)
def ours() -> None:
    """Run our one-file PPO on the environment of the checks."""
    steps = str(needle.steps())
    with (
        mock.patch.object(cleanrl_ppo, "make_env", lambda n_bins: needle.discrete()),
        mock.patch.object(sys, "argv", ["cleanrl_ppo", "--total-timesteps", steps]),
    ):
        cleanrl_ppo.main()


if __name__ == "__main__":
    check.main()
