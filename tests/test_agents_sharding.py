"""Weights that lie in several processes must learn what those of one process learn."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agents_models import DOT, TALL, WIDE, episode, model_dir
from agents_peers import together
from torch.distributed.tensor import DTensor

from agents.model import policy as policy_module
from agents.model.decoding import DecodeSession
from agents.model.policy import LoRA, MLLMPolicy
from agents.model.sampling import Sampling
from agents.parallel import Processes, own
from agents.ppo import PPOLearner
from agents.ppo_config import PRESETS, PPOConfig
from agents.sharding import Sharding, shard_size, whole

SHOWN = (
    ((DOT, DOT), (WIDE,), (TALL, DOT)), ((TALL,),), ((WIDE, TALL, DOT), ()), ((), (DOT,)),
    ((WIDE,), (DOT,)), ((),), ((DOT,), (TALL,), ()),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is learned, and from whose episodes.

    Attributes:
        preset: Of PPO.
        dtype: Of the weights.
        shares: "even"; "uneven", two with the second process and the others with the first;
            "one has all", the last.
        updates: Batches learned from.
        empty: Whether weights are read in parts.
        shard: The setting.
        train_vision: Whether the tower is trained.
        checkpointing: Whether activations are computed again, those of the head in chunks.
        compute: Number format of passes.
        packing: Whether rows lie end to end; in one process they are padded nevertheless.
    """

    preset: str
    dtype: torch.dtype = torch.float64
    shares: str = "uneven"
    updates: int = 2
    empty: bool = False
    shard: int = 0
    train_vision: bool = False
    checkpointing: bool = False
    compute: torch.dtype | None = None
    packing: bool = False

    def places(self, rank: int, size: int) -> list[int]:
        """Return the episodes of a process."""
        everything = list(range(len(SHOWN)))
        if self.shares == "even" or size == 1:
            return everything[rank::size]
        if self.shares == "one has all":
            return everything if rank == size - 1 else []
        return {0: everything[2:], 1: everything[:2]}.get(rank, [])


SINGLE = Case("paper", torch.float32, "even")
CASES = {
    "paper": Case("paper", updates=10, empty=True),
    "paper, tower": Case("paper", train_vision=True, checkpointing=True),
    "paper, single": replace(SINGLE, updates=10, checkpointing=True),
    "recommended": Case("recommended", updates=10, empty=True),
    "recommended, one has all": Case("recommended", shares="one has all"),
    "recommended, single": replace(SINGLE, preset="recommended", checkpointing=True),
    "recommended, half": Case("recommended", torch.bfloat16, "one has all", checkpointing=True),
    "tiny": Case("tiny", shares="one has all", updates=10),
    "tiny, single": replace(SINGLE, preset="tiny", empty=True),
    "paper, packed": Case("paper", empty=True, checkpointing=True, packing=True),
    "recommended, packed, one has all": Case("recommended", shares="one has all", packing=True),
    "half precision": replace(SINGLE, compute=torch.bfloat16),
}
OF_THREE = ("paper", "recommended, one has all", "tiny, single")
OF_FOUR = ("tiny, single",)  # two copies of the weights, two processes each
GAPS = {torch.float64: (1e-10, 1e-8), torch.float32: (1e-6, 2e-4), torch.bfloat16: (1e-6, 2e-4)}


def policy_of(case: Case, empty: bool) -> MLLMPolicy:
    """Return the policy of a case, the same in each process."""
    torch.manual_seed(5)
    return MLLMPolicy.from_pretrained(
        model_dir(),
        device="cpu",
        dtype=case.dtype,
        lora=LoRA(rank=4, alpha=8.0) if case.preset == "recommended" else None,
        train_vision=case.train_vision,
        checkpointing=case.checkpointing,
        packing=case.packing,
        empty=empty,
    )


def config_of(case: Case) -> PPOConfig:
    """Return a configuration of one step with several micro-batches, whoever has which episode."""
    return replace(
        PRESETS[case.preset],
        actor_lr=1e-3,
        critic_lr=1e-3,
        critic_warmup=0,
        minibatch=99,
        micro_batch_tokens=192,
        score_tokens=None,
    )


def batch_of(policy: MLLMPolicy) -> list[Any]:
    """Return episodes of many forms, some of which show no frame."""
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
        for seed, shown in enumerate(SHOWN)
    ]


def learned(case: Case, processes: Processes) -> dict[str, Any]:
    """Learn from this process's share; return the first gradients, the last weights, metrics."""
    policy = policy_of(case, case.empty and processes.size > 1)
    sharding = Sharding(processes, case.shard, case.compute)
    learner = PPOLearner(policy, config_of(case), processes=processes, sharding=sharding)
    sharding.check(policy)
    first: dict[str, list[torch.Tensor]] = {}
    for name in ("actor", "critic"):
        optimizer, parameters = (
            getattr(learner, f"{name}_{kind}") for kind in ("optimizer", "parameters")
        )
        step = optimizer.step

        def record(step=step, parameters=parameters, name=name):
            grads = [torch.zeros(1) if p.grad is None else whole(p.grad) for p in parameters]
            first.setdefault(name, grads)
            step()

        optimizer.step = record
    trajectories = batch_of(policy)
    mine = [trajectories[i] for i in case.places(processes.rank, processes.size)]
    metrics = [learner.update(mine) for _ in range(case.updates)]
    frozen = learner.reference.parameters() if learner.reference is not None else ()
    held = [t for t in (*learner.tensors(frozen=True).values(), *frozen) if t.ndim]
    return {
        "grads": first,
        "weights": [whole(p) for p in (*learner.actor_parameters, *learner.critic_parameters)],
        "metrics": [{k: v for k, v in m.items() if not k.endswith("_s")} for m in metrics],
        "share": sum(own(t).nbytes for t in held) / sum(t.numel() * t.itemsize for t in held),
        "said": said_while(learner, processes),
    }


def said_while(learner: PPOLearner, processes: Processes) -> list[list[int]]:
    """Return greedy replies; processes decode for different times, and so must not wait."""
    policy = learner.policy
    blocks = [[each.system, each.turns[0].user] for each in batch_of(policy)[:2]]
    with learner.sharding.playing():
        limit = 6 + 3 * processes.rank
        session = DecodeSession(policy, Sampling(greedy=True, max_new_tokens=limit))
        replies = session.reply([0, 1], blocks, fresh=True)
    return [reply.ids[:6].tolist() for reply in replies]


def worker(out: str, names: tuple[str, ...], shard: int) -> None:
    """Run in a process of its own."""
    torch.set_num_threads(1)
    model_dir()  # beforehand: among several processes transformers lets only the first one write
    policy_module.CHUNK_ABOVE, policy_module.CHUNK = 0, 8  # type: ignore[misc]
    processes = Processes("cpu")
    done = {name: learned(replace(CASES[name], shard=shard), processes) for name in names}
    torch.save(done, Path(out) / f"{processes.rank}.pt")
    processes.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return what each process of two, three and four found."""
    found = {}
    for size, names, shard in ((2, tuple(CASES), 0), (3, OF_THREE, 0), (4, OF_FOUR, 2)):
        out = str(tmp_path_factory.mktemp(f"of-{size}"))
        together(worker, size, out, names, shard)
        found[size] = [torch.load(Path(out, f"{rank}.pt")) for rank in range(size)]
    return found


@pytest.fixture(scope="module")
def alone():
    """Return a function that learns a case in one process, once."""
    known: dict[str, Any] = {}

    def learn(name: str) -> dict[str, Any]:
        if name not in known:
            case = replace(CASES[name], compute=None, packing=False)
            known[name] = learned(case, Processes("cpu"))
        return known[name]

    return learn


def gap(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Return how far the farthest of some tensors are apart, as a share of the size of all."""
    size = torch.cat([tensor.flatten() for tensor in ours]).norm()
    return max(float((a - b).norm() / size) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("size", "name"),
    [*((2, n) for n in CASES if n != "half precision"), *((3, n) for n in OF_THREE),
     *((4, n) for n in OF_FOUR)],
)  # fmt: skip
def test_sharded_weights_learn_what_whole_ones_learn(runs, alone, size, name):
    one = alone(name)
    of_grads, of_weights = GAPS[CASES[name].dtype]
    for process in runs[size]:
        theirs = process[name]
        for who in ("actor", "critic"):
            assert max(float(g.abs().max()) for g in one["grads"][who]) > 1e-4
            assert gap(one["grads"][who], theirs["grads"][who]) < of_grads
        for a, b in zip(one["weights"], theirs["weights"], strict=True):
            assert float((a - b).abs().max()) < of_weights
        for ours, others in zip(one["metrics"], theirs["metrics"], strict=True):
            assert others == pytest.approx(ours, rel=100 * of_weights, abs=of_weights, nan_ok=True)
        assert theirs["said"] == one["said"]


@pytest.mark.parametrize("name", CASES)
def test_each_of_two_processes_holds_half_of_all_tensors(runs, name):
    assert [process[name]["share"] for process in runs[2]] == pytest.approx([0.5, 0.5], abs=0.01)


def test_passes_in_half_precision_leave_weights_and_sums_in_single(runs, alone):
    one, two = alone("half precision"), runs[2][0]["half precision"]
    assert {tensor.dtype for tensor in (*two["weights"], *two["grads"]["actor"])} == {torch.float32}
    assert 1e-4 < gap(one["grads"]["actor"], two["grads"]["actor"]) < 0.15  # 8 bits
    assert two["metrics"][0]["ref_kl"] == 0.0  # a reference in the same format


def test_processes_are_shared_out_by_machine():
    assert shard_size(0, 16, 8) == 8 and shard_size(0, 6, 6) == 6 and shard_size(4, 8, 8) == 4
    assert shard_size(0, 12, 8) == 12  # unequal machines hold one copy together
    with pytest.raises(ValueError, match=r"shard=3: 8 processes .* use one of \[1, 2, 4, 8\]"):
        shard_size(3, 8, 8)


def test_one_process_keeps_plain_weights_unless_passes_are_in_another_format():
    assert not Sharding(Processes("cpu")).on
    assert Sharding(Processes("cpu"), compute=torch.bfloat16).on
    learner = PPOLearner(policy_of(CASES["tiny"], False), PRESETS["tiny"])
    assert not any(isinstance(p, DTensor) for p in learner.actor_parameters)
