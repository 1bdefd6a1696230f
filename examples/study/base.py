"""Make the model that the study starts from: the tiny MLLM, taught to aim when it looks.

    python -m examples.study.base --out examples/study/base

The shipped tiny MLLM reads frames well and aims badly: of four intervals that it draws, one shows
the card, and learning to aim takes PPO more episodes than a study of a hundred runs on a laptop can
have. A large backbone can aim before any post-training, so here the tiny one is taught that, for a
few minutes more: 240 steps in which four of five intervals lie around the frames named. It still
answers at once, seen or not; when to look, and how often, is left to reinforcement learning.
Weights are kept in half precision.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from agents import tiny
from agents.pretrain_tiny import PretrainConfig, pretrain
from examples.study.plan import BASE


def make_base(out: Path, *, steps: int = 240, batch: int = 48, evaluation: int = 256) -> None:
    """Pretrain further and write the weights.

    Args:
        out: Directory of the weights.
        steps: Of pretraining.
        batch: Rows of a step.
        evaluation: Held-out episodes of the scores written beside the weights.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "base"
        pretrain(
            PretrainConfig(
                out=made,
                start=tiny.WEIGHTS,
                seed=1,
                lessons=(("episode", steps),),
                batch=batch,
                lr=1e-3,
                aims=(0.8, 0.1),
                aim_weight=1.0,
                evaluation=evaluation,
            )
        )
        model = AutoModelForImageTextToText.from_pretrained(str(made), dtype=torch.float16)
        model.save_pretrained(str(made))
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(made, out, dirs_exist_ok=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BASE)
    make_base(parser.parse_args().out)


if __name__ == "__main__":
    main()
