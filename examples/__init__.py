"""Examples; run them from the repository's root as ``python -m examples.NAME``."""

from gym_longvideo import command as _command

_command.explain_imports()
