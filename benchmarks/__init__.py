"""Published benchmarks as environment suites, and an evaluation that can be trusted.

Importing this registers the ids: ``gym.make("benchmarks:LongVideo/VideoMME-v0", root="...")``.
"""

from benchmarks.datasets.dataset import Dataset
from benchmarks.registry import ENV_IDS, find_dataset, load_suite
from benchmarks.suite import BenchmarkSuite
from gym_longvideo import command as _command

__all__ = ["ENV_IDS", "BenchmarkSuite", "Dataset", "find_dataset", "load_suite"]

_command.explain_imports()
