"""Examples; run them from the repository's root as ``python -m examples.NAME``."""
