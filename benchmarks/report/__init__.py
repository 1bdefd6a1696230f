"""Reports of runs: ``python -m benchmarks.report``."""
