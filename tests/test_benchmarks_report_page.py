"""Files of a report: what a page, a cell and a directory hold, whatever comes from the runs."""

from __future__ import annotations

import dataclasses
import html
import pathlib
import re
import sys
import tomllib

import pytest
from benchmark_reports import haystack, report
from benchmark_runs import make_record, played, read_lines, write_run

from benchmarks.report.__main__ import main
from benchmarks.report.csv_tables import _text as _csv
from benchmarks.report.style import PALETTES
from gym_longvideo.__main__ import main as longvideo

ROOT = pathlib.Path(__file__).parents[1]


def isolated(text):
    """What the page sets apart, and whether each such text ends all isolates that it opens."""
    found = [html.unescape(part) for part in re.findall(r"<bdi>([^<]*)</bdi>", text)]
    for part in found:
        for line in part.splitlines():
            depth = 0
            for c in line:
                depth += (c in "\u2066\u2067\u2068") - (c == "\u2069")
                assert depth >= 0, ascii(part)
            assert depth == 0, ascii(part)
    return found


@pytest.mark.parametrize(
    "hostile",
    [
        "abc\u202exe.gnp",  # an override that nobody ends
        "\u05de\u05d5\u05d3\u05dc 12",  # letters from right to left, and a number beside them
        "a\u2067b",  # an isolate that nobody ends
        "a\u2069b",  # the end of one that is not its own
        "a\u2066b\nc\u2069d",  # one that a line ends before its mark does
        "a\ufdd1b\ufdd0",  # the report's own marks
    ],
    ids=ascii,
)
def test_foreign_text_moves_nothing_beside_it(tmp_path, hostile):
    card = haystack(hostile, tasks=3)
    record = make_record("a-1", card=card, question=hostile, options=[hostile, "that"])
    record.turns[0]["reply"] = hostile
    record = dataclasses.replace(record, task={**record.task, "task_types": [hostile]})
    second = make_record("b-1", "wrong", card=card)
    run = write_run(tmp_path / "mine", card, [record, second], faults=1)
    one_line = " ".join(hostile.split())
    texts, _ = report(tmp_path, f"{one_line}={run}")
    page = texts["report.html"]
    found = isolated(page)
    shown = re.sub("\u2069(?=b)|[\ufdd0\ufdd1]", "\ufffd", hostile)
    closed = {
        shown,
        f"{shown}\u2069",
        shown.replace("\n", "\u2069\n").replace("c\u2069", "c\ufffd"),
    }
    # Question, option and reply; the policy in the tables; the name of the run in sentences too.
    assert sum(part in closed for part in found) >= 5
    assert re.search(r"<bdi>[^<]*</bdi> is incomplete: 2 of 3", page)
    outside = re.sub(r"<bdi>[^<]*</bdi>", "", page)
    assert not re.search("[\u05d0-\u05ea]", re.sub(r"<svg.*?</svg>", "", outside, flags=re.DOTALL))
    for text in (outside, texts["report.md"]):
        assert not re.search("[\u202a-\u202e\u2066-\u2069\ufdd0\ufdd1]", text)


def test_what_is_said_of_a_run_is_no_part_of_its_name(tmp_path):
    card = haystack(tasks=3)
    run = write_run(tmp_path / "mine", card, played(card, 2))
    texts, _ = report(tmp_path, f"abc\u202ed={run}")
    assert "<bdi>abc\u202ed</bdi> [incomplete]" in texts["report.html"]
    assert "abc\ufffdd [incomplete]" in texts["report.md"].replace("\\", "")


def test_a_table_says_that_it_scrolls_and_does_so_by_keyboard(tmp_path):
    card = haystack()
    texts, page = report(tmp_path, write_run(tmp_path / "mine", card, played(card, 3, 1)))
    boxes = re.findall(r'<div class="table[^>]*>', texts["report.html"])
    assert len(boxes) == page.tags.count("table") > 4
    for box in boxes:
        assert 'tabindex="0"' in box and 'role="region"' in box
        assert re.search(r'aria-label="[^"]{4,}"', box)
    hints = re.findall(r'<caption>.*?<span class="hint" aria-hidden="true">', texts["report.html"])
    assert len(hints) == len(boxes) and page.text.count("scrolls sideways") >= len(boxes)
    # The line is as high as its padding: none where the table (100 %) fits its box (100cqw).
    assert "padding-top: clamp(0px, (100% - 100cqw - 1px) * 999, 1.5em)" in texts["report.html"]
    for figure in re.findall(r"<figure[^>]*>", texts["report.html"]):
        assert 'tabindex="0"' in figure and "aria-label" in figure


def test_bars_of_cost_stand_beside_others_or_not_at_all(tmp_path):
    one, two = haystack("one"), haystack("two")
    runs = [
        write_run(tmp_path / "a", one, played(one, 4)),
        write_run(tmp_path / "b", two, played(two, 1, 3)),
    ]
    texts, _ = report(tmp_path, runs[0])
    assert "Mean cost of an episode" not in texts["report.html"]
    assert "mean of an episode" in texts["report.md"]  # the table stays
    texts, _ = report(tmp_path, *runs)
    assert "Mean cost of an episode" in texts["report.html"]


FORMULAS = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "\n=x",
    "'=x",
    "''+x",
    "\uff1dx",
    "=",
    "-",
]
PLAIN = ["'x", "x=1", "-5", "+7.25", "-1e-3", "a-1", "", " =x"]


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN], ids=ascii)
def test_no_cell_is_a_formula_and_each_is_read_back(tmp_path, text):
    card = haystack(text, tasks=1)
    run = write_run(tmp_path / "mine", card, [make_record("a-1", card=card, task_types=[text])])
    report(tmp_path, run)
    (first, *_) = read_lines(tmp_path / "report/overall.csv")
    assert first["policy"] == (f"'{text}" if text in FORMULAS else text or "x")
    (episode,) = read_lines(tmp_path / "report/episodes.csv")
    cell = episode["task_types"]
    assert re.sub("^'(?='*[=+\\-@\\t\\r\\n\uff1d])", "", cell) == text
    assert cell == text or cell[0] == "'"


def test_numbers_below_zero_stay_numbers():
    text = _csv(("a", "b", "c"), iter([{"a": -0.25, "b": -3, "c": "-0.5"}]))
    assert text == "a,b,c\n-0.25,-3,-0.5\n"


@pytest.mark.parametrize("there", [False, True])
def test_a_report_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, capsys, there):
    card = haystack(tasks=1)
    run = write_run(tmp_path / "mine", card, played(card, 1))
    out = tmp_path / "deep" / "report"
    if there:
        out.mkdir(parents=True)
        (out / "report.md").write_text("before")
    before = sorted(tmp_path.rglob("*"))
    assert main([str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert sorted(tmp_path.rglob("*")) == before

    def full(path, data):
        if len(list(path.parent.iterdir())) > 4:
            raise OSError(28, "No space left on device")
        with path.open("wb") as stream:
            stream.write(data)

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    assert main([str(run), "--out", str(out)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert not there or (out / "report.md").read_text() == "before"


def test_templates_are_in_the_wheel_and_print_nothing_unescaped():
    folder = ROOT / "benchmarks" / "report" / "templates"
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = packed["package-data"]["benchmarks"]
    carried = {path for each in patterns for path in (ROOT / "benchmarks").glob(each)}
    assert set(folder.iterdir()) == {path for path in carried if path.parent == folder} != set()
    for path in folder.iterdir():
        assert "|safe" not in path.read_text().replace(" ", "")


def test_a_report_without_its_template_engine_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for name in ("benchmarks.report.html_page", "benchmarks.report.__main__"):
        monkeypatch.delitem(sys.modules, name)
    assert longvideo(["report", str(tmp_path), "--out", str(tmp_path / "report")]) == 2
    assert 'longvideo report needs jinja2: pip install "gym-longvideo[benchmarks]"' in (
        capsys.readouterr().err
    )


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG 2.2, "contrast ratio"."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_as_wcag_computes_it():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("palette", PALETTES)
def test_colours_have_the_contrast_of_level_aa(tmp_path, palette):
    card = haystack()
    texts, _ = report(tmp_path, write_run(tmp_path / "mine", card, played(card, 3, 1)))
    style = texts["report.html"].partition("<style>")[2].partition("</style>")[0]
    blocks = re.findall(r":root \{(.*?)\}", style)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[list(PALETTES).index(palette)]))
    assert colours == PALETTES[palette] and "opacity" not in style
    words = [(ink, paper) for ink in ("ink", "faint") for paper in ("page", "panel")]
    words += [("good", "page"), ("bad", "page"), ("warn-ink", "warn")]
    assert {pair: r for pair in words if (r := contrast(*map(colours.get, pair))) < 4.5} == {}
    drawn = [(name, "page") for name in ("segment", "retrieval", *(f"s{k}" for k in range(6)))]
    drawn += [("warn-edge", "warn"), ("warn-edge", "page"), ("ink", "retrieval"), ("ink", "grid")]
    assert {pair: r for pair in drawn if (r := contrast(*map(colours.get, pair))) < 3} == {}
