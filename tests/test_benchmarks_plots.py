"""Plots: the same bytes from the same numbers, in the page's colours, with every value labelled."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from benchmarks.report.plots import Point, Series, plot_budget, plot_cost, plot_groups

A = Series("ours", (Point(0.705, 0.65, 0.74, 1900), None, Point(1.0, 0.8, 1.0, 3)))
B = Series("base", (Point(0.2, 0.0, 0.5, 7), Point(0.5, 0.45, 0.55, 90), None))


def groups(values=("short", "medium", "long"), series=(A, B), **options):
    return plot_groups(values, series, **{"title": "duration A", "chance": 0.25, **options})


def words(svg):
    root = ET.fromstring(svg)
    return [" ".join("".join(node.itertext()).split()) for node in root.iter() if ends_text(node)]


def ends_text(node):
    return node.tag.endswith("}text")


def test_every_value_and_its_n_stand_in_the_plot():
    found = words(groups())
    assert {"short", "medium", "long", "70.5", "1,900", "20.0", "7", "50.0", "90", "100.0"} <= set(
        found
    )
    assert {"ours", "base", "chance", "n"} <= set(found)


def test_a_value_without_a_number_draws_nothing():
    assert "50.0" not in words(groups(series=(A,)))


def test_the_same_numbers_give_the_same_bytes():
    assert groups() == groups()
    assert groups() != groups(series=(B, A))


def test_another_process_draws_the_same_bytes():
    code = (
        "from benchmarks.report.plots import *; import sys;"
        "svg = plot_groups(['x'], [Series('a', (Point(.5, .4, .6, 9),))], title='t');"
        "sys.stdout.buffer.write(svg.encode())"
    )
    drawn = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1] != b""
    assert b"<dc:date>" not in drawn[0]


def test_colours_are_those_of_the_page():
    svg = groups()
    assert "currentColor" in svg
    assert "var(--s0)" in svg and "var(--s1)" in svg and "var(--grid" in svg
    # No colour of its own: what is left would be wrong on a dark or a light page.
    assert re.findall(r"#[0-9a-f]{6}\b", svg.replace("#c9ccd1", "")) == []


def test_ids_of_two_plots_in_a_page_do_not_clash():
    one, two = groups(title="first"), groups(title="second")
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    for svg, known in zip((one, two), ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= known


def test_labels_from_records_are_escaped_and_cut():
    svg = groups(values=("<script>alert(1)</script>", "中文 & $x_1$", "a\x00\nb" * 100))
    assert "<script" not in svg
    found = words(svg)
    assert "<script>alert(1)</script>" in found
    assert "中文 & $x_1$" in found
    assert max(map(len, found)) < 80


def test_a_budget_curve_labels_its_points():
    rising = Series("ours", (Point(0.59, 0.57, 0.61, 2700), Point(0.622, 0.6, 0.64, 2700)))
    falling = Series("base", (Point(0.53, 0.5, 0.56, 2700), None))
    found = words(plot_budget([32, 64], [rising, falling], title="budget"))
    assert {"32", "64", "59.0", "62.2", "53.0", "ours", "base"} <= set(found)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_budget_curve_at_the_ends_of_the_scale_stays_legible(value):
    point = Point(value, value, value, 5)
    ticks = words(plot_budget([8, 16], [Series("x", (point, point))], title="b"))
    numbers = [float(word) for word in ticks if re.fullmatch(r"-?[\d.]+", word)]
    assert min(numbers) >= 0 and max(numbers) <= 100


def test_cost_that_was_not_measured_says_so():
    found = words(
        plot_cost(
            ["a", "b"],
            {"turns": [2.2, 1.0], "visual tokens": [4500.0, None], "decode, s": [0.00002, 0.0]},
            title="cost",
        )
    )
    assert found.count("not measured") == 1
    assert {"2.2", "1", "4,500", "< 0.001", "0"} <= set(found)


def test_many_runs_keep_apart_by_marker_and_colour():
    series = [Series(f"run {k}", (Point(0.5, 0.4, 0.6, 9),)) for k in range(9)]
    svg = plot_groups(["all"], series, title="many")
    assert {f"run {k}" for k in range(9)} <= set(words(svg))
    assert all(f"var(--s{k})" in svg for k in range(6))


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, benchmarks.report.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
