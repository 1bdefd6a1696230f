"""Rows of annotation files: JSON, JSON Lines, CSV, TSV and Parquet.

Only Parquet needs a library (pyarrow, imported when the first such file is read). A line that
cannot be read becomes a row that says so; a file that cannot be read is an error.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gym_longvideo.annotation.options import read_literal
from gym_longvideo.annotation.records import KEY as KEY
from gym_longvideo.annotation.records import loads, read_records, read_text

_NO_LIMIT = 2**31 - 1


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
    if suffix in (".json", ".jsonl"):
        return _objects(path)
    if suffix in (".csv", ".tsv"):
        return _columns(path, "," if suffix == ".csv" else "\t")
    raise ValueError(f"{path}: cannot read {suffix!r}; use .json, .jsonl, .csv, .tsv or .parquet")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; NaN and Infinity become None.

    Raises:
        ValueError: Naming the file, if it is not JSON in UTF-8.
    """
    try:
        return loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON (nested too deep)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None


def _objects(path: Path) -> Iterator[TableRow]:
    for place, fields in read_records(path):
        if not isinstance(fields, (Mapping, ValueError)):
            fields = ValueError(f"a row must be an object, not {type(fields).__name__}")
        yield TableRow(place, fields)


def _columns(path: Path, delimiter: str) -> Iterator[TableRow]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    limit = csv.field_size_limit(_NO_LIMIT)  # a cell beyond it would end the file, not its row
    try:
        names = reader.fieldnames
        rows = [(f"{path}, line {reader.line_num}", fields) for fields in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(limit)
    if not names:
        raise ValueError(f"{path}: empty; the first line must name the columns")
    for place, fields in rows:
        if None in fields or None in fields.values():
            yield TableRow(place, ValueError(f"not {len(names)} columns, as the first line has"))
        elif long := [name for name, value in fields.items() if len(value) > limit]:
            length = len(fields[long[0]])
            yield TableRow(
                place,
                ValueError(
                    f"{long[0]} has {length:,} characters, more than {limit:,}; is a quote open?"
                ),
            )
        else:
            yield TableRow(place, {name: read_literal(value) for name, value in fields.items()})


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
