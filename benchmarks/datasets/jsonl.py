"""Your own questions: JSON Lines, JSON, CSV, TSV or Parquet, under any of the usual field names.

The names are those of ``gym_longvideo.annotation``. Rows that name a split belong to it; rows that
name none belong to all, or with ``split_by="video"`` to that of their video.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from benchmarks.datasets.dataset import Converted, Dataset, Source, Split, converted
from benchmarks.datasets.repair import clean_segments, embedded_options, merge, number
from benchmarks.datasets.rows import KEY
from gym_longvideo import checks
from gym_longvideo.annotation import (
    ANSWER,
    IDENTITY,
    OPTIONS,
    QUESTION,
    SEGMENTS,
    TASK_TYPE,
    canonical,
    parse_options,
)
from gym_longvideo.annotation.identity import video_of
from gym_longvideo.suite import SplitBy, splits_of_videos

_SUFFIXES = ("jsonl", "json", "csv", "tsv", "parquet")
_NUMBERS = ("duration", "duration_s")
# Columns of options are not among them: one that is empty still has its letter.
_BLANK = {*ANSWER, *IDENTITY, *OPTIONS, *SEGMENTS, *TASK_TYPE, *_NUMBERS, "video_id", "split"}


def _convert(source: Source, *, split_by: SplitBy | None = None) -> Iterator[Converted]:
    checks.choice("split_by", split_by or "none", get_args(SplitBy))
    rows = [
        (place, canonical(fields) if isinstance(fields, Mapping) else fields)
        for place, fields in source.rows()
    ]
    held = splits_of_videos(fields for _, fields in rows) if split_by == "video" else {}
    for place, fields in rows:
        named = None
        if isinstance(fields, Mapping):
            named = fields.get("split") or held.get(video_of(fields))
        if source.split == "all" or not named or named == source.split:
            yield converted(place, fields, _record)


def _record(fields: Mapping[str, Any]) -> dict[str, Any]:
    # Tables have empty cells where JSON has no field, and text where it has numbers.
    record = {
        name: value
        for name, value in fields.items()
        if not (name in _BLANK and (value is None or value == "")) and name != "issues"
    }
    if any(name in fields for name in ANSWER) and not any(name in record for name in ANSWER):
        record["answer"] = None
    for name in _NUMBERS:
        if isinstance(record.get(name), str):
            seconds = number(record[name])
            record[name] = record[name] if seconds is None else seconds  # or a class: "short"
    if KEY in record and not any(name in record for name in IDENTITY):
        record["id"] = record[KEY]
    record.pop(KEY, None)
    question = next((record[name] for name in QUESTION if name in record), None)
    if not _has_options(record) and (found := embedded_options(question)):
        record |= {"question": found[0], "options": found[1]}
    duration_s = record.get("duration", record.get("duration_s"))
    raw = next((record[name] for name in SEGMENTS if name in record), None)
    record = {name: value for name, value in record.items() if name not in SEGMENTS}
    return merge(record, clean_segments(raw, duration_s))


def _has_options(record: Mapping[str, Any]) -> bool:
    try:
        return bool(parse_options(record))
    except ValueError:
        return any(name in record for name in OPTIONS)


def _files(name: str) -> tuple[str, ...]:
    named = () if name == "all" else tuple(f"{name}.{suffix}" for suffix in _SUFFIXES)
    return (*named, *(f"*.{suffix}" for suffix in _SUFFIXES))


JSONL = Dataset(
    name="jsonl",
    env_id="LongVideo/Jsonl-v0",
    title="Your own questions",
    source="any file",
    licence="yours",
    splits={name: Split(_files(name)) for name in ("all", "train", "val", "test")},
    default_split="all",
    directories=(),
    folders=("videos", "video", "data"),
    archives=(),
    convert=_convert,
    options={"split_by": None},
)
