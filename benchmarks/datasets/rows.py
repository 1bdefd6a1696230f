"""Rows of annotation files: JSON, JSON Lines, CSV, TSV and Parquet.

Only Parquet needs a library (pyarrow, imported when the first such file is read). A line that
cannot be read becomes a row that says so; a file that cannot be read is an error.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

KEY = "_key"  # where rows come as an object, {key: row}, the key is kept under this name


class TableRow(NamedTuple):
    """A row: where it stands, and its fields or what is wrong with it."""

    place: str
    fields: Mapping[str, Any] | ValueError


def read_table(path: Path) -> Iterator[TableRow]:
    """Yield the rows of a file; its suffix says what it is.

    Raises:
        ValueError: If the file as a whole cannot be read.
        ImportError: For Parquet without pyarrow.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    if suffix == ".json":
        return _json(path)
    if suffix == ".jsonl":
        return _lines(path)
    if suffix in (".csv", ".tsv"):
        return _columns(path, "," if suffix == ".csv" else "\t")
    raise ValueError(f"{path}: cannot read {suffix!r}; use .json, .jsonl, .csv, .tsv or .parquet")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; NaN and Infinity become None.

    Raises:
        ValueError: Naming the file, if it is not JSON in UTF-8.
    """
    try:
        return json.loads(read_text(path), parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON (nested too deep)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None


def read_text(path: Path) -> str:
    """Return a file's text, without a byte order mark; raise ValueError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); save the file as UTF-8") from None


def _row(place: str, fields: Any) -> TableRow:
    if isinstance(fields, Mapping):
        return TableRow(place, fields)
    return TableRow(place, ValueError(f"a row must be an object, not {type(fields).__name__}"))


def _json(path: Path) -> Iterator[TableRow]:
    data = read_json(path)
    if isinstance(data, Mapping):
        for key, fields in data.items():
            kept = {**fields, KEY: key} if isinstance(fields, Mapping) else {KEY: key, "": fields}
            yield TableRow(f"{path}, {key!r}", kept)
        return
    if not isinstance(data, list):
        raise ValueError(f"{path}: holds {type(data).__name__}, not a list of rows")
    for i, fields in enumerate(data):
        yield _row(f"{path}, record {i}", fields)


def _lines(path: Path) -> Iterator[TableRow]:
    # Not splitlines(): it also splits at characters such as U+2028 that JSON strings may hold.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            yield _row(place, json.loads(line, parse_constant=_no_number))
        except (ValueError, RecursionError) as error:
            yield TableRow(place, ValueError(f"not valid JSON ({error})"))


def _columns(path: Path, delimiter: str) -> Iterator[TableRow]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    if not reader.fieldnames:
        raise ValueError(f"{path}: empty; the first line must name the columns")
    try:
        for fields in reader:
            place = f"{path}, line {reader.line_num}"
            if None in fields or None in fields.values():
                count = len(reader.fieldnames)
                yield TableRow(place, ValueError(f"not {count} columns, as the first line has"))
                continue
            yield TableRow(place, {name: _literal(value) for name, value in fields.items()})
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _literal(text: str) -> Any:
    """Read a list as VLMEvalKit's TSV files write them (a Python literal)."""
    if text[:1] == "[" and text[-1:] == "]":
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
    return text


def _parquet(path: Path) -> Iterator[TableRow]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ImportError(
            f'{path} needs pyarrow: pip install "gym-longvideo[benchmarks]"'
        ) from None
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from None
    for i, fields in enumerate(table.to_pylist()):
        yield TableRow(f"{path}, row {i}", {name: _finite(value) for name, value in fields.items()})


def _finite(value: Any) -> Any:
    """Read NaN, by which pandas writes what is missing, as null: records must be strict JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_number(name: str) -> None:
    """Read the NaN and Infinity that Python writes into JSON as null: records must be strict."""
