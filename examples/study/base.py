"""Make the model that the study starts from: the tiny MLLM, taught to aim when it looks.

    python -m examples.study.base --out examples/study/base
    python -m examples.study.base --measure

The shipped tiny MLLM reads frames well and aims badly: ``--measure`` makes it retrieve, and says
how often that shows the card. Learning to aim takes PPO more episodes than a study of a hundred
runs on a laptop can have. A large backbone can aim before any post-training, so here the tiny one
is taught that for a few minutes more: 240 steps in which four of five intervals lie around the
frames named. It still answers at once, seen or not; when to look, and how often, is left to
reinforcement learning. Weights are kept in half precision.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from agents.model import tiny
from agents.pretrain_tiny import PretrainConfig, pretrain
from examples.study.plan import ARMS, BASE
from examples.study.stats import mean_of


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


def aim(weights: Path, *, episodes: int = 512, seed: int = 0) -> tuple[int, int]:
    """Make a policy retrieve in its first turn, where the overview has not shown the card.

    Args:
        weights: Directory of the policy.
        episodes: Videos to try, of the training split of a seed that the study does not use.
        seed: Of the replies.

    Returns:
        How many retrievals there were, and how many of them showed the card.
    """
    import torch

    from agents.model.policy import MLLMPolicy
    from agents.model.sampling import Sampling
    from agents.rollout import RolloutCollector
    from gym_longvideo.haystack import oracle

    policy = MLLMPolicy.from_pretrained(weights)
    answer = policy.codec.tokenizer.convert_tokens_to_ids("<answer>")
    logits = policy.logits

    def without_answer(states: torch.Tensor, temperature: float) -> torch.Tensor:
        return logits(states, temperature).index_fill(-1, torch.tensor([answer]), -torch.inf)

    policy.logits = without_answer  # type: ignore[method-assign]
    config = ARMS["full"].config(1000, Path())
    envs = [config.make_env(config.split) for _ in range(64)]
    suite = envs[0].unwrapped.suite  # type: ignore[attr-defined]
    collector = RolloutCollector(envs, policy, keep_records=True)
    generator = torch.Generator().manual_seed(seed)
    tried = hit = 0
    for start in range(0, episodes, len(envs)):
        tasks = list(range(start, min(start + len(envs), episodes)))
        sampling = Sampling(temperature=1.0, max_new_tokens=24)
        for task, episode in zip(tasks, collector.collect(tasks, sampling, generator), strict=True):
            record = episode.record
            assert record is not None
            turn, shown = record.turns[0], record.overview["shown_s"]
            if turn["op"] == "retrieve" and oracle.solve(suite[task], shown) is None:
                tried += 1
                hit += oracle.solve(suite[task], shown + turn["shown_s"]) is not None
    collector.close()
    return tried, hit


def worth(weights: Path, *, episodes: int = 2048, seed: int = 0) -> dict[str, list[float]]:
    """Return what episodes earn that begin with a retrieval, and those that answer at once.

    Args:
        weights: Directory of the policy, which acts by its own habit.
        episodes: As for ``aim``.
        seed: Of the replies.

    Returns:
        Returns under the paper's reward, and accuracies, of either kind.
    """
    import torch

    from agents.model.policy import MLLMPolicy
    from agents.model.sampling import Sampling
    from agents.rollout import RolloutCollector

    policy = MLLMPolicy.from_pretrained(weights)
    config = ARMS["full"].config(1000, Path())
    collector = RolloutCollector([config.make_env(config.split) for _ in range(64)], policy)
    generator = torch.Generator().manual_seed(seed)
    sampling = Sampling(temperature=1.0, max_new_tokens=24)
    found: dict[str, list[float]] = {
        f"{what}, {kind}": [] for kind in ("looked", "answered") for what in ("return", "accuracy")
    }
    for start in range(0, episodes, 64):
        tasks = range(start, min(start + 64, episodes))
        for episode in collector.collect(tasks, sampling, generator):
            kind = "looked" if episode.turns[0].retrieved else "answered"
            found[f"return, {kind}"].append(episode.episode_return)
            found[f"accuracy, {kind}"].append(float(episode.success))
        policy.encoder.clear()
    collector.close()
    return found


def main() -> None:
    """Run from the command line."""
    from agents.confidence import wilson

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=BASE)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="make nothing: how well do they aim, and does looking pay?",
    )
    args = parser.parse_args()
    if not args.measure:
        make_base(args.out)
        return
    for name, weights in (("shipped", tiny.WEIGHTS), ("base", args.out)):
        tried, hit = aim(weights)
        low, high = wilson(hit, tried)
        print(f"{name}: {hit} of {tried} retrievals show the card ({low:.2f} to {high:.2f})")
        for what, values in worth(weights).items():
            mean = mean_of(dict(enumerate(values)))
            print(f"  {what}: {mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f}), {len(values)}")


if __name__ == "__main__":
    main()
