"""Published benchmarks as environment suites (to come: see README)."""
