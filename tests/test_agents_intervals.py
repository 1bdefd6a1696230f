"""Intervals: published numbers, and a package that is imported without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import agents.dealing
import agents.keeping
import agents.model
import agents.plan
import agents.serving
from agents.confidence import newcombe, wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=1e-4)


def test_without_trials_anything_is_possible():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), 873-890, table II, method 10.
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_gives_the_published_intervals(a, b, low, high):
    one, other = a[0] / a[1], b[0] / b[1]
    found = newcombe(one, wilson(*a), other, wilson(*b))
    assert found == pytest.approx((one - other, low, high), abs=1e-4)
    back = newcombe(other, wilson(*b), one, wilson(*a))
    assert back == pytest.approx((other - one, -high, -low), abs=1e-4)


def test_the_package_and_the_intervals_import_no_torch():
    code = "import sys, agents, agents.confidence, examples.evaluate; print('torch' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "False"


@pytest.mark.parametrize(
    "package",
    [agents, agents.dealing, agents.keeping, agents.model, agents.plan, agents.serving],
)
def test_the_package_lists_every_module_once(package):
    folder = Path(package.__file__).parent
    assert package.__doc__ is not None
    words = [line.split()[0] for line in package.__doc__.splitlines() if line.startswith("    ")]
    named = [word for word in words if word.endswith(".py")]
    assert sorted(named) == sorted(path.name for path in folder.glob("*.py") if path.stem[0] != "_")
