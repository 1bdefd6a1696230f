"""How long a benchmark takes to load, against reading its rows and nothing else.

    longvideo speed loading --rows 5000

Rows of Video-MME's schema are made up and written as Parquet. The rival is pyarrow alone: the same
file as a list of dicts, nothing checked and no task made. The aims are 2 s for 5,000 rows and 0.2 s
for an environment on a suite that is loaded.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from agents.command import parse
from benchmarks.registry import load_suite
from gym_longvideo.command import as_command


@dataclass(frozen=True)
class LoadingConfig:
    """Time the loading of a made-up Video-MME.

    Attributes:
        rows: Questions.
        repeats: Of each measurement; the median is printed.
    """

    rows: int = 5000
    repeats: int = 5


def row(number: int) -> dict[str, Any]:
    """Return a made-up row of Video-MME's schema."""
    video = f"{number // 3 + 1:04d}"
    return {
        "video_id": video,
        "duration": ("short", "medium", "long")[number % 3],
        "domain": "Knowledge",
        "sub_category": "Astronomy",
        "url": f"https://example.org/watch?v=video{video}",
        "videoID": f"video{video}",
        "question_id": f"{video}-{number % 3 + 1}",
        "task_type": "Counting Problem",
        "question": f"How many of them are shown, and in which order, in part {number}?",
        "options": [f"{letter}. option {number} {letter}" for letter in "ABCD"],
        "answer": "ABCD"[number % 4],
    }


def measure(rows: int, repeats: int) -> dict[str, float]:
    """Return median seconds: of the rival, of loading, and of environments."""
    from pyarrow import Table, parquet

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "videomme" / "test-00000-of-00001.parquet"
        file.parent.mkdir()
        parquet.write_table(Table.from_pylist([row(i) for i in range(rows)]), file)
        suite = load_suite("videomme", root=directory)
        env_id = suite.dataset.env_id
        return {
            "pyarrow": _median(lambda: parquet.read_table(file).to_pylist(), repeats),
            "load_suite": _median(lambda: load_suite("videomme", root=directory), repeats),
            "gym.make(suite=)": _median(lambda: gym.make(env_id, suite=suite), repeats),
            "gym.make(root=), again": _median(lambda: gym.make(env_id, root=directory), repeats),
        }


def _median(call: Callable[[], Any], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@as_command
def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    config = parse(LoadingConfig, arguments, "speed loading")
    found = measure(config.rows, config.repeats)
    for name, seconds in found.items():
        print(f"{name:24s}{seconds:8.3f} s{seconds / found['pyarrow']:8.1f} x pyarrow")
    return 0


if __name__ == "__main__":
    sys.exit(main())
