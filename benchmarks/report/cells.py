"""Cells: what a table of a report is, and how numbers are put into it.

Shares are printed in percent with their 95 % interval. What was not measured is a dash, never a 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DASH = "–"  # noqa: RUF001 - an en dash, as tables print what is missing


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: Headings of the columns.
        rows: Cells.
        texts: Columns that hold text; the others hold numbers and are set flush right.
        caption: What it shows.
        strong: Rows to be set off.
        notes: A sentence below each row, "" for none; empty where no row has one.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: tuple[int, ...] = (0,)
    caption: str = ""
    strong: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def percent(share: Any) -> str:
    """Return a share, or a mapping with value, low and high, in percent.

    >>> percent({"value": 0.59, "low": 0.5711, "high": 0.608}), percent(0.25), percent(None)
    ('59.0 (57.1 to 60.8)', '25.0', '–')
    """  # noqa: RUF002 - the dash of a missing value
    if isinstance(share, Mapping):
        value, low, high = (share.get(key) for key in ("value", "low", "high"))
        if value is None:
            return DASH
        if low is None or high is None:
            return percent(value)
        return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    return DASH if share is None else f"{100 * share:.1f}"


def number(value: float | None, digits: int) -> str:
    """Return a number with so many digits, or a dash."""
    least = 10.0**-digits
    if value is not None and 0 < value < least / 2:
        return f"< {least:.{digits}f}"
    return DASH if value is None else f"{value:,.{digits}f}"


def counted(n: int, noun: str) -> str:
    """Return a number of things in words.

    >>> counted(1, "video"), counted(2000, "episode")
    ('1 video', '2,000 episodes')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def natural(values: Iterable[str]) -> list[str]:
    """Sort the values of a group as a reader would.

    >>> natural(["600", "15", "3600"]), natural(["long", "short", "medium"])
    (['15', '600', '3600'], ['short', 'medium', 'long'])
    """
    known = ["short", "medium", "middle", "long"]

    def key(value: str) -> tuple[int, float, str]:
        if value in known:
            return 0, known.index(value), value
        try:
            return 1, float(value), value
        except ValueError:
            return 2, 0.0, value

    return sorted(values, key=key)
