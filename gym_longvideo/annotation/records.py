"""The records of a file of JSON or JSON Lines, whichever its name says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gym_longvideo.annotation.fields import QUESTION, canonical

KEY = "_key"  # where records come as an object, {key: record}, the key is kept under this name


def read_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place of each record and what stands there, or the ValueError that reading it gave.

    A file is a list of records, an object of them, an object that holds one such list, or a record
    on each line. NaN and Infinity, which Python writes, are read as null.

    Raises:
        ValueError: If the file is not UTF-8, or neither JSON nor lines of it.
    """
    text = read_text(path)
    of_lines = path.suffix.lower() == ".jsonl"
    if of_lines and text.lstrip()[:1] != "[":
        return _lines(path, text)
    try:
        data = loads(text)
    except (ValueError, RecursionError) as error:
        try:
            loads(next(line for line in text.split("\n") if line.strip()))
        except (ValueError, RecursionError, StopIteration):
            why = "nested too deep" if isinstance(error, RecursionError) else error
            raise ValueError(f"{path}: not valid JSON ({why})") from None
        return _lines(path, text)
    return _whole(path, data)


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): it also splits at characters such as U+2028 that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found: Any = loads(line)
        except (ValueError, RecursionError) as error:
            found = ValueError(f"not valid JSON ({error})")
        yield f"{path}, line {number}", found


def _whole(path: Path, data: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping):
        lists = [key for key, value in data.items() if _list_of_records(value)]
        if len(lists) == 1:
            data, path = data[lists[0]], Path(f"{path}, {lists[0]!r}")
        elif any(name in QUESTION for name in canonical(data)):
            data = [data]
    if isinstance(data, Mapping):
        return (
            (f"{path}, {key!r}", {**each, KEY: key} if isinstance(each, Mapping) else
             {KEY: key, "": each})
            for key, each in data.items()
        )  # fmt: skip
    if not isinstance(data, list):
        raise ValueError(f"{path}: holds {type(data).__name__}, not a list of rows")
    return ((f"{path}, record {i}", each) for i, each in enumerate(data))


def _list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(e, Mapping) for e in value)


def loads(text: str) -> Any:
    """Return what a JSON text holds; NaN and Infinity become None."""
    return json.loads(text, parse_constant=_no_number)


def _no_number(name: str) -> None:
    """Read the NaN and Infinity that Python writes into JSON as null: records must be strict."""


def read_text(path: Path) -> str:
    """Return a file's text, without a byte order mark; raise ValueError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); save the file as UTF-8") from None
