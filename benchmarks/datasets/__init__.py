"""One module a benchmark, and what they share: layouts, rows, repairs."""
