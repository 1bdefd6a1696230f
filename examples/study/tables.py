"""The study's numbers as CSV files: a row a run, and a row an update of a run."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.study.plan import ARMS
from examples.study.runs import CURVES, load

RUN_COLUMNS = (
    "arm", "seed", "updates", "episodes", "tokens_read", "tokens_written", "train_s", "held_out",
    "accuracy", "return", "paper_return", "turns", "frames", "retrieval_rate", "malformed_rate",
    "iou_gain", "proved", "needless", "width",
)  # fmt: skip
CURVE_COLUMNS = ("arm", "seed", "update", *CURVES)


def write_csvs(out: Path) -> None:
    """Write ``runs.csv`` and ``curves.csv`` from the finished runs under ``out``."""
    found = [load(path) for path in (out / "runs").glob("*.json")]
    order = {name: place for place, name in enumerate(ARMS)}
    results = [result for result in found if result is not None and result["arm"] in order]
    results.sort(key=lambda result: (order[result["arm"]], result["seed"]))
    exams = [
        {"arm": result["arm"], "seed": result["seed"], **exam}
        for result in results
        for exam in result["exams"]
    ]
    _write(out / "runs.csv", RUN_COLUMNS, exams)
    lines = [
        {"arm": result["arm"], "seed": result["seed"], "update": update, **line}
        for result in results
        for update, line in enumerate(result["curve"])
    ]
    _write(out / "curves.csv", CURVE_COLUMNS, lines)


def read_runs(directory: Path, updates: int = 0) -> dict[tuple[str, int], dict[str, float]]:
    """Return rows of ``runs.csv`` by arm and seed.

    Args:
        directory: Where the file is.
        updates: Rows of policies with so many updates; 0 for the last row of each run.

    Raises:
        ValueError: If there is no such file, or its columns are others.
    """
    rows = [(row["arm"], _numbers(row)) for row in _read(directory / "runs.csv", RUN_COLUMNS)]
    rows.sort(key=lambda row: row[1]["updates"])
    return {
        (arm, int(row["seed"])): row for arm, row in rows if updates in (0, int(row["updates"]))
    }


def read_curves(directory: Path) -> dict[tuple[str, int], list[dict[str, float]]]:
    """Return the rows of ``curves.csv``, by arm and seed, in the order of updates.

    Raises:
        ValueError: If there is no such file, or its columns are others.
    """
    curves: dict[tuple[str, int], list[dict[str, float]]] = {}
    for row in _read(directory / "curves.csv", CURVE_COLUMNS):
        curves.setdefault((row["arm"], int(row["seed"])), []).append(_numbers(row))
    return curves


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    draft = path.with_suffix(".part")
    with draft.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_plain(row[column]) for column in columns] for row in rows)
    draft.replace(path)


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; run the study there first")
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise ValueError(f"{path} has columns {reader.fieldnames}; expected {list(columns)}")
        return list(reader)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.5g}"
    return "" if value is None else value


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(text) if text else math.nan for name, text in row.items() if name != "arm"}
