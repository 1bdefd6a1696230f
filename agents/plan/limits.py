"""Limits: what cards hold, and what this machine has left."""

from __future__ import annotations

import os
from pathlib import Path

from agents.plan.moments import GIB

# What PyTorch reports as the total memory of cards that are sold with so many GB.
CARDS = {"24": 23.5 * GIB, "40": 39.4 * GIB, "80": 79.2 * GIB, "141": 139.8 * GIB}


def memory_of(name: str) -> float:
    """Return the bytes that a memory stands for.

    Args:
        name: One of ``CARDS``; any other number counts GiB.

    Raises:
        ValueError: If it is no number greater than 0.

    >>> round(memory_of("80") / 2**30, 1), round(memory_of("48") / 2**30, 1)
    (79.2, 48.0)
    """
    if name in CARDS:
        return CARDS[name]
    try:
        found = float(name) * GIB
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise ValueError(
            f"memory={name!r} must be a number of GiB, or a card: {', '.join(CARDS)} (GB)"
        )
    return found


def main_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the bytes of main memory that are available to this process, None if unknown.

    That is what the system has available, or what is left of the limit of its control group.

    Args:
        proc: Where Linux tells of the machine.
        groups: Where it tells of control groups.
    """
    found = [_of_system(proc), _of_group(groups / "memory.max", groups / "memory.current"),
             _of_group(groups / "memory/memory.limit_in_bytes",
                       groups / "memory/memory.usage_in_bytes")]  # fmt: skip
    known = [each for each in found if each is not None]
    return min(known) if known else None


def _of_system(proc: Path) -> float | None:
    try:
        for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024.0
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _of_group(limit: Path, used: Path) -> float | None:
    """Return what a control group has left; files that it holds in memory can be given up."""
    try:
        most, now = (each.read_text(encoding="ascii").strip() for each in (limit, used))
        if most == "max":
            return None
        held = 0
        stat = (limit.parent / "memory.stat").read_text(encoding="ascii")
        for line in stat.splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                held = max(held, int(value))
        return max(0.0, float(int(most) - int(now) + held))
    except (OSError, ValueError):
        return None
