"""Memory: what an iteration of training takes, phase by phase, beside what was planned for it.

    longvideo speed memory --size 0.1b --lora-rank 64
    longvideo speed memory --size 0.5b --lora-rank 0 --checkpointing False --json-file 0.5b.json

Makes a Qwen2.5-VL of that size with random weights, plays, scores and learns twice, and compares
the most memory of each phase with ``agents.plan.memory``. On a GPU that is what PyTorch allocated.
On a CPU it is the resident memory of a process of its own, less what that had before the model was
made; the C library is told there to give memory back to the system as soon as it is freed
(MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_), so that what is resident is what is used.

Left out: environments, and the files that a real model is loaded from.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from agents.command import from_json, parse, to_json
from agents.keeping.undo import Undo
from agents.parallel import usable_device
from benchmarks.speed.iteration import Meter, Phase, iterate
from benchmarks.speed.scale import plan_of, planned_bytes
from benchmarks.speed.scaled import ScaleConfig, SizeName, build_learner, dialogues
from gym_longvideo.command import as_command
from gym_longvideo.files import write_whole

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FREED_AT_ONCE = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}


@dataclass(frozen=True)
class MemoryConfig(ScaleConfig):
    """What to measure: as ``longvideo speed scale`` does, and smaller.

    Attributes:
        undo: Whether updates are prepared to be taken back, as training does.
    """

    size: SizeName = "0.1b"
    device: str = "cpu"
    episodes: int = 4
    frame_budget: int = 16
    frame_tokens: int = 16
    reply_tokens: int = 16
    minibatch: int = 4
    micro_batch_tokens: int = 1024
    warmup: int = 1
    repeats: int = 1
    threads: int = 1
    undo: bool = True


class ResidentMeter(Meter):
    """A meter of the resident memory of this process, which Linux tells.

    Args:
        device: Whose work is waited for.
        before: Bytes that were resident before there was a model.
    """

    def __init__(self, device: torch.device, before: int) -> None:
        super().__init__(device)
        self.before = before

    def begin(self) -> None:
        """Forget the peak."""
        _CLEAR.write_text("5", encoding="ascii")

    def end(self) -> float:
        """Return the peak since ``begin``, less what was there before the model."""
        return float(resident("VmHWM") - self.before)


def resident(name: str = "VmRSS") -> int:
    """Return bytes of this process that are resident now, or were at most ("VmHWM")."""
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} does not say {name}; measure on Linux, or on a GPU")
    return int(found[1]) * 1024


def measure(config: MemoryConfig) -> dict[str, Any]:
    """Measure in this process; return the bytes of each phase, planned and measured."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    device = torch.device(config.device)
    on_gpu = device.type == "cuda"
    before = 0 if on_gpu else _before(config)
    learner = build_learner(config)
    policy = learner.policy
    episodes = dialogues(policy.codec, config)
    undoes = config.undo and not on_gpu  # there the copies lie in main memory
    planned = planned_bytes(plan_of(config, policy, episodes, undo=undoes))
    generator = torch.Generator(policy.device).manual_seed(0)
    prepare: Callable[[], object] = (lambda: Undo(learner)) if undoes else lambda: None
    phases: dict[str, Phase] = {}
    for _ in range(config.warmup + config.repeats):
        meter = Meter(device) if on_gpu else ResidentMeter(device, before)
        phases = iterate(learner, episodes, config, generator, meter, prepare)
    peaks = {name: phase.peak_bytes for name, phase in phases.items()}
    peaks["whole"] = max(peaks.values())
    return {
        "config": {**to_json(config), "json_file": None},
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "torch": torch.__version__,
        "weights": sum(p.numel() for p in policy.base.parameters()),
        "runtime_bytes": before,
        "phases": {
            name: {
                "measured_bytes": peak,
                "plan_bytes": planned[name],
                "ratio": planned[name] / peak,
            }
            for name, peak in peaks.items()
        },
    }


def _before(config: MemoryConfig) -> int:
    """Return what is resident once the libraries are at work: a tiny model plays an iteration."""
    config = replace(config, size="tiny", episodes=2, frame_tokens=1, reply_tokens=2)
    learner = build_learner(config)
    generator = torch.Generator().manual_seed(0)
    episodes = dialogues(learner.policy.codec, config)
    iterate(learner, episodes, config, generator, Meter(learner.policy.device))
    del learner, episodes
    gc.collect()
    return resident()


def measure_apart(config: MemoryConfig) -> dict[str, Any]:
    """Measure in a process of its own.

    Raises:
        OSError: If that process broke, with what it said last.
    """
    code = "import sys; from benchmarks.speed import memory; memory.run(sys.stdin.read())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(to_json(config)),
        env={**os.environ, **_FREED_AT_ONCE},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise OSError(f"the process that measured ended with {done.returncode}: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(text: str) -> None:
    """Measure what a configuration in JSON says, and print the result as a line of JSON."""
    print(json.dumps(measure(from_json(MemoryConfig, json.loads(text)))))


def table(result: dict[str, Any]) -> str:
    """Return a line for each phase."""
    config = result["config"]
    kind = f"LoRA of rank {config['lora_rank']}" if config["lora_rank"] else "all weights"
    lines = [
        f"{result['weights'] / 1e9:.2f} billion weights on {result['device']}, {kind}",
        f"{'phase':10s}{'measured GB':>13s}{'plan GB':>9s}{'ratio':>8s}",
    ]
    for name, row in result["phases"].items():
        lines.append(
            f"{name:10s}{row['measured_bytes'] / 1e9:13.2f}{row['plan_bytes'] / 1e9:9.2f}"
            f"{row['ratio']:8.2f}"
        )
    return "\n".join(lines)


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line."""
    config = parse(MemoryConfig, arguments, "speed memory")
    usable_device(config.device)
    result = measure_apart(config)
    print(table(result))
    if config.json_file is not None:
        write_whole(config.json_file, json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
