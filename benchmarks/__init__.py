"""Published benchmarks as environment suites, and an evaluation that can be trusted.

Importing this registers the ids: ``gym.make("benchmarks:LongVideo/VideoMME-v0", root="...")``.
"""

import gymnasium as gym

from benchmarks.datasets.dataset import Dataset
from benchmarks.registry import ENV_IDS, find_dataset, load_suite
from benchmarks.suite import BenchmarkSuite

for _name, _env_id in ENV_IDS.items():
    if _env_id not in gym.registry:
        gym.register(
            id=_env_id, entry_point="benchmarks.registry:make_env", kwargs={"benchmark": _name}
        )

__all__ = ["ENV_IDS", "BenchmarkSuite", "Dataset", "find_dataset", "load_suite"]
