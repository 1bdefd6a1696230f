"""Reports of runs: ``longvideo report``."""
