"""Checks of arguments: each returns the value, or raises an error that names it and the fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; True and False are not."""
    return is_whole(value) or (isinstance(value, (float, np.floating)) and math.isfinite(value))


def whole(
    name: str,
    value: Any,
    least: int | None = None,
    most: int | None = None,
    *,
    optional: bool = False,
) -> Any:
    """Return a whole number as Python's ``int``.

    Args:
        name: Of the argument.
        value: To check.
        least: Smallest value allowed.
        most: Largest value allowed.
        optional: Whether None is allowed too.

    Raises:
        ValueError: If it is anything else.

    >>> whole("max_turns", 0, 1)
    Traceback (most recent call last):
    ValueError: max_turns=0 must be a whole number, 1 or more
    """
    if optional and value is None:
        return None
    if not is_whole(value) or not _within(value, least, most):
        raise ValueError(f"{name}={value!r} must be a whole number{_limits(least, most, optional)}")
    return int(value)


def number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    unit: str = "",
    optional: bool = False,
) -> Any:
    """Return a finite number, as it was given.

    Args:
        name: Of the argument.
        value: To check.
        least: Smallest value allowed.
        most: Largest value allowed.
        above: What the value must be greater than, in place of ``least``.
        below: What the value must be less than, in place of ``most``.
        unit: Of the value, in the plural.
        optional: Whether None is allowed too.

    Raises:
        ValueError: If it is anything else.

    >>> number("deadline_s", -1, above=0, unit="seconds", optional=True)
    Traceback (most recent call last):
    ValueError: deadline_s=-1 must be a number of seconds greater than 0, or None
    >>> number("clip_low", 1, 0, below=1)
    Traceback (most recent call last):
    ValueError: clip_low=1 must be a number in [0, 1)
    """
    if optional and value is None:
        return None
    fine = is_number(value) and _within(value, least, most)
    fine = fine and (above is None or value > above) and (below is None or value < below)
    if not fine:
        of, rule = (f" of {unit}" if unit else ""), _limits(least, most, optional, above, below)
        raise ValueError(f"{name}={value!r} must be a number{of}{rule}")
    return value


def keep_whole(
    instance: Any,
    name: str,
    least: int | None = None,
    most: int | None = None,
    *,
    optional: bool = False,
) -> None:
    """Check a field of a frozen dataclass as ``whole`` does; numpy's numbers become Python's.

    Raises:
        ValueError: If it is anything else.
    """
    value = whole(name, getattr(instance, name), least, most, optional=optional)
    object.__setattr__(instance, name, value)


def choice(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """Return one of some choices.

    Raises:
        ValueError: If it is none of them, listing all.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; use one of {choices}")
    return value


def names(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Check that every name is a known one.

    Args:
        what: Whose names these are: "PPOConfig", "the configuration".
        given: Names.
        known: Those that there are.

    Raises:
        ValueError: For the first unknown name, with the nearest known one and all of them.

    >>> names("PPOConfig", ["epoch"], ["epochs", "beta"])
    Traceback (most recent call last):
    ValueError: PPOConfig has no 'epoch' (did you mean 'epochs'?); use some of ['beta', 'epochs']
    """
    for name in given:
        if name not in known:
            raise ValueError(f"{what} has no {name!r}{instead(name, known)}")


def instead(name: str, known: Collection[str]) -> str:
    """Return the end of an error about an unknown name: the nearest known one, and all of them."""
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{hint}; use some of {sorted(known)}"


def _within(value: Any, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _limits(
    least: float | None,
    most: float | None,
    optional: bool,
    above: float | None = None,
    below: float | None = None,
) -> str:
    low, high = least if above is None else above, most if below is None else below
    opened, closed = "[" if above is None else "(", "]" if below is None else ")"
    if low is not None and high is not None:
        rule = f" in {opened}{low:g}, {high:g}{closed}"
    elif above is not None:
        rule = f" greater than {above:g}"
    else:
        rule = "" if least is None else f", {least:g} or more"
    return rule + (", or None" if optional else "")
