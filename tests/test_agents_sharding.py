"""Weights that lie in several processes must learn what those of one process learn."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agents_models import DOT, TALL, WIDE, episode, model_dir

from agents.model.policy import LoRA, MLLMPolicy
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.ppo_config import PRESETS, PPOConfig
from agents.sharding import Sharding, whole

EPISODES = 7


@dataclass(frozen=True)
class Case:
    """What is learned, and from whose episodes.

    Attributes:
        preset: Of PPO.
        dtype: Of the weights.
        shares: "even"; "uneven", all but two with the first process; "empty", all with the last.
        empty: Whether the policy is loaded in parts.
        train_vision: Whether the tower is trained.
        updates: Batches learned from.
        shard: The setting.
    """

    preset: str
    dtype: torch.dtype = torch.float64
    shares: str = "uneven"
    empty: bool = False
    train_vision: bool = False
    updates: int = 10
    shard: int = 0
    checkpointing: bool = False

    def places(self, rank: int, size: int) -> list[int]:
        everything = list(range(EPISODES))
        if self.shares == "even" or size == 1:
            return everything[rank::size]
        if self.shares == "empty":
            return everything if rank == size - 1 else []
        return {0: everything[2:], 1: everything[:2]}.get(rank, [])


CASES = {
    "paper": Case("paper", empty=True),
    "paper, one has all": Case("paper", shares="empty", updates=2),
    "paper, tower": Case("paper", train_vision=True, updates=3),
    "paper, single": Case("paper", torch.float32, shares="even", checkpointing=True),
    "recommended": Case("recommended", empty=True),
    "recommended, one has all": Case("recommended", shares="empty", updates=2),
    "recommended, single": Case("recommended", torch.float32, shares="even", checkpointing=True),
    "tiny": Case("tiny"),
    "tiny, one has all": Case("tiny", shares="empty", updates=2),
    "tiny, single": Case("tiny", torch.float32, shares="even", empty=True),
}


def config_of(case: Case) -> PPOConfig:
    ppo = PRESETS[case.preset]
    return replace(
        ppo, actor_lr=1e-3, critic_lr=1e-3, critic_warmup=0, minibatch=99, micro_batch_tokens=192
    )  # one step with several micro-batches, whoever has which episode


def policy_of(case: Case, empty: bool) -> MLLMPolicy:
    torch.manual_seed(5)
    lora = LoRA(rank=4, alpha=8.0) if case.preset == "recommended" else None
    return MLLMPolicy.from_pretrained(
        model_dir(),
        device="cpu",
        dtype=case.dtype,
        lora=lora,
        train_vision=case.train_vision,
        checkpointing=case.checkpointing,
        empty=empty,
    )


def batch_of(policy: MLLMPolicy) -> list[Any]:
    shapes = (
        ((DOT, DOT), (WIDE,), (TALL, DOT)), ((TALL,),), ((WIDE, TALL, DOT), ()), ((), (DOT,)),
        ((WIDE,), (DOT,)), ((),), ((DOT,), (TALL,), ()),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    return [
        episode(
            policy.codec,
            seed,
            shown,
            lengths=rng.integers(1, 9, len(shown)).tolist(),
            rewards=rng.normal(size=len(shown)).tolist(),
            retrieved=rng.integers(0, 2, len(shown)).tolist(),
        )
        for seed, shown in enumerate(shapes)
    ]


def learned(case: Case, processes: Processes) -> dict[str, Any]:
    """Learn from this process's share; return the first gradients, the last weights, metrics."""
    policy = policy_of(case, case.empty and processes.size > 1)
    learner = PPOLearner(
        policy, config_of(case), processes=processes, sharding=Sharding(processes, case.shard)
    )
    first: dict[str, list[torch.Tensor]] = {}
    for name in ("actor", "critic"):
        optimizer, parameters = (
            getattr(learner, f"{name}_{kind}") for kind in ("optimizer", "parameters")
        )
        step = optimizer.step

        def record(step=step, parameters=parameters, name=name):
            first.setdefault(name, [
                torch.zeros(1) if p.grad is None else whole(p.grad) for p in parameters
            ])  # fmt: skip
            step()

        optimizer.step = record
    trajectories = batch_of(policy)
    mine = [trajectories[i] for i in case.places(processes.rank, processes.size)]
    metrics = [learner.update(mine) for _ in range(case.updates)]
    trained = (*learner.actor_parameters, *learner.critic_parameters)
    held = [tensor for p in trained for tensor in (p, *(t for t in _moments(learner, p) if t.ndim))]
    return {
        "grads": first,
        "weights": [whole(p) for p in trained],
        "metrics": [{k: v for k, v in m.items() if not k.endswith("_s")} for m in metrics],
        "held": sum(_local(t).numel() * t.element_size() for t in held),
        "all": sum(t.numel() * t.element_size() for t in held),
    }


def _moments(learner: PPOLearner, parameter: Any) -> list[torch.Tensor]:
    state = {**learner.actor_optimizer.state, **learner.critic_optimizer.state}[parameter]
    return [value for value in state.values() if isinstance(value, torch.Tensor)]


def _local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def worker(out: str) -> None:
    """Run in a process of its own."""
    torch.set_num_threads(1)
    model_dir()  # beforehand: among several processes transformers lets only the first one write
    processes = Processes("cpu")
    done = {name: learned(case, processes) for name, case in CASES.items()}
    torch.save(done, Path(out) / f"{processes.size}-{processes.rank}.pt")
    processes.wait()
    processes.close()


if __name__ == "__main__":
    import sys
    import time

    for name, case in CASES.items():
        t = time.time()
        r = learned(case, Processes("cpu"))
        print(name, time.time() - t, r["metrics"][-1], file=sys.stderr)
