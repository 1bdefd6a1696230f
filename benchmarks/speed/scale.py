"""Scale: what an iteration costs at the sizes of real models, on a GPU, phase by phase.

    longvideo speed scale --size 3b --device cuda --json-file 3b.json

Builds a Qwen2.5-VL of that size with random weights on the device, so nothing is downloaded, and
plays the method's own sizes: 32 episodes of three turns, 32 frames of 128 tokens each. Time and
memory do not depend on what the weights are, as long as every reply has the same length: the end of
a reply is never sampled here.

* ``vision``: the tower, each frame once. ``prefill``, ``decode``: replies, with one KV cache.
* ``score``: log-probabilities, values and the reference, three passes.
* ``critic``, ``actor``: an epoch of steps, of adapters or of all weights.

MFU counts what the model needs, not what is computed twice; see ``agents.plan.work``. Beside the
peak of each phase stands what ``agents.plan.memory`` makes of it.

Left out: environments and video decoding (``benchmarks.speed.video``), several GPUs, and the real
tokenizer: the tiny one is used, whose prompts are shorter, and ids beyond it are never sampled.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from agents.command import parse
from agents.model.policy import MLLMPolicy
from agents.model.rows import micro_batches
from agents.parallel import usable_device
from agents.plan.memory import plan_memory
from agents.plan.moments import MemoryPlan, Place
from agents.plan.passes import Batch
from agents.plan.sizes import Sizes
from agents.plan.workload import Workload
from agents.trajectory import Trajectory
from benchmarks.speed.iteration import Meter, Phase, iterate
from benchmarks.speed.scaled import ScaleConfig, build_learner, dialogues
from gym_longvideo.command import as_command
from gym_longvideo.files import write_whole


def plan_of(
    config: ScaleConfig, policy: MLLMPolicy, episodes: Sequence[Trajectory], *, undo: bool = False
) -> MemoryPlan:
    """Return what is planned for just these episodes."""
    users = [max(len(e.turns[k].user.ids) for e in episodes) for k in range(len(episodes[0].turns))]
    load = Workload.from_turns(
        max(len(e.system.ids) for e in episodes),
        users,
        [len(turn.user.frames) for turn in episodes[0].turns],
        config.frame_tokens,
        config.reply_tokens,
    )
    lengths = [load.longest] * min(config.minibatch, len(episodes))
    rows = len(micro_batches(lengths, config.micro_batch_tokens)[0])
    return plan_memory(
        config.training,
        Place(gpu=policy.device.type == "cuda"),
        sizes=Sizes.of(policy.base),
        load=load,
        micro=Batch(rows * load.longest, load.longest, rows, rows > 1),
        undoes=undo,
    )


def planned_bytes(plan: MemoryPlan) -> dict[str, float]:
    """Return the bytes of tensors that are planned, by phase of an iteration."""
    moments = {
        **{name: (name,) for name in ("vision", "prefill", "decode")},
        "score": ("score", "score head"),
        "critic": ("critic", "critic step"),
        "actor": ("actor", "actor head", "root", "actor step"),
    }
    tensors = {moment.name: moment.tensors for moment in plan.moments}
    found = {
        phase: max(tensors[name] for name in names if name in tensors)
        for phase, names in moments.items()
    }
    return {**found, "whole": max(found.values())}


def measure(config: ScaleConfig) -> dict[str, Any]:
    """Build a model and measure its iterations; return what is printed and written as JSON."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    learner = build_learner(config)
    policy = learner.policy
    episodes = dialogues(policy.codec, config)
    planned = planned_bytes(plan_of(config, policy, episodes))
    generator = torch.Generator(policy.device).manual_seed(0)
    kept: list[dict[str, Phase]] = []
    for iteration in range(config.warmup + config.repeats):
        phases = iterate(learner, episodes, config, generator, Meter(policy.device))
        if iteration >= config.warmup:
            kept.append(phases)
    dtype = str(policy.head.weight.dtype).removeprefix("torch.")
    return report(config, kept, dtype, planned)


def report(
    config: ScaleConfig,
    kept: Sequence[dict[str, Phase]],
    dtype: str,
    planned: Mapping[str, float],
) -> dict[str, Any]:
    """Return the medians over iterations, with rates and MFU, and those of a whole iteration."""
    rows: dict[str, dict[str, float | None]] = {}
    whole = [
        Phase(
            sum(p.seconds for p in phases.values()),
            phases["score"].tokens,
            sum(p.flop for p in phases.values()),
            max(p.peak_bytes for p in phases.values()),
        )
        for phases in kept
    ]
    for name in [*kept[0], "whole"]:
        found = whole if name == "whole" else [phases[name] for phases in kept]
        seconds = statistics.median(phase.seconds for phase in found)
        peak = max(phase.peak_bytes for phase in found)
        rows[name] = {
            "seconds": seconds,
            "tokens": found[0].tokens,
            "tokens_per_second": found[0].tokens / seconds,
            "tflop": found[0].flop / 1e12,
            "mfu": found[0].flop / 1e12 / seconds / config.peak_tflops,
            "peak_gb": None if math.isnan(peak) else peak / 1e9,
            "plan_bytes": planned[name],
        }
    gpu = config.device.startswith("cuda")
    return {
        "config": {**asdict(config), "json_file": None},
        "device": torch.cuda.get_device_name(config.device) if gpu else "cpu",
        "dtype": dtype,
        "torch": torch.__version__,
        "phases": rows,
    }


def table(result: dict[str, Any]) -> str:
    """Return a line for each phase."""
    lines = [
        f"{result['config']['size']} on {result['device']}, {result['dtype']}, "
        f"MFU of {result['config']['peak_tflops']:g} TFLOP/s",
        f"{'phase':10s}{'seconds':>10s}{'tokens':>10s}{'tokens/s':>12s}{'TFLOP':>10s}{'MFU':>8s}"
        f"{'peak GB':>9s}{'plan GB':>9s}",
    ]
    for name, row in result["phases"].items():
        peak = "-" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}"
        lines.append(
            f"{name:10s}{row['seconds']:10.2f}{row['tokens']:10d}{row['tokens_per_second']:12.0f}"
            f"{row['tflop']:10.2f}{row['mfu']:8.1%}{peak:>9s}"
            f"{row['plan_bytes'] / 1e9:9.1f}"
        )
    return "\n".join(lines)


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line."""
    config = parse(ScaleConfig, arguments, "speed scale", description=__doc__)
    usable_device(config.device)
    result = measure(config)
    print(table(result))
    if config.json_file is not None:
        write_whole(config.json_file, json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
