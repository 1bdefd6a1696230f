"""LongVideoBench: questions with a referring query, about videos of 8 seconds to an hour.

Videos are named by ``video_path``: that of 135 questions is not ``video_id``. ``position``, which
only the JSON has, is undocumented; it behaves like frame indices of the video file, so it is kept
as ``evidence_frames`` with its unit and never taken for segments. The test split has no answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.datasets.dataset import Archive, Converted, Dataset, Source, Split
from benchmarks.datasets.repair import index_answer, number

_OPTIONS = tuple(f"option{i}" for i in range(8))
_OWN = ("candidates", "correct_choice", "video", "index", "question_category", *_OPTIONS)
_GROUPS = ("duration_group", "topic_category", "level")
_MOST_FPS = 120.0  # no video of the benchmark has more: a frame index beyond is no frame index


def _convert(source: Source) -> Iterator[Converted]:
    return source.convert(_record)


def _record(fields: Mapping[str, Any]) -> dict[str, Any]:
    duration_s = number(fields.get("duration"))
    video = str(fields.get("video_path") or "").removeprefix("./")
    group = number(fields.get("duration_group"))
    return {
        **{key: value for key, value in fields.items() if key not in _OWN},
        "id": fields.get("id"),
        "video": video.removeprefix("videos/"),
        "video_id": str(fields.get("video_id") or video),
        "options": _options(fields),
        "answer": index_answer(fields.get("correct_choice")),
        "duration": duration_s,
        "duration_group": None if group is None else int(group),
        "starting_timestamp_for_subtitles": number(fields.get("starting_timestamp_for_subtitles"))
        or 0.0,
        "task_types": [fields["question_category"]] if fields.get("question_category") else [],
        **_evidence(fields.get("position"), duration_s),
    }


def _options(fields: Mapping[str, Any]) -> list[Any]:
    """Return the candidates; Parquet has columns of which the last are filled with "N/A"."""
    if "candidates" in fields:
        return fields["candidates"]
    texts = [fields.get(name) for name in _OPTIONS]
    while texts and texts[-1] in ("N/A", "", None):
        texts.pop()
    return texts


def _evidence(position: Any, duration_s: float | None) -> dict[str, Any]:
    if isinstance(position, str):
        position = json.loads(position or "null")
    if not isinstance(position, list) or not position:
        return {}
    limit = _MOST_FPS * (duration_s or float("inf"))
    frames = [int(frame) for frame in position if number(frame) is not None]
    kept = [frame for frame in frames if 0 <= frame <= limit]
    issues = ["garbage_evidence_frames"] if len(kept) < len(position) else []
    return {"evidence_frames": kept, "evidence_unit": "source_frame", "issues": issues}


def _groups(task: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    meta = task["meta"]
    groups = {name: (str(meta[name]),) for name in _GROUPS if meta.get(name) is not None}
    return {**groups, "task_type": tuple(task["task_types"])}


LONGVIDEOBENCH = Dataset(
    name="longvideobench",
    env_id="LongVideo/LongVideoBench-v0",
    title="LongVideoBench",
    source="https://huggingface.co/datasets/longvideobench/LongVideoBench",
    licence="CC-BY-NC-SA-4.0",
    splits={
        "val": Split(
            (
                "lvb_val.json",
                "validation-*.parquet",
                "data/validation-*.parquet",
                "LongVideoBench.tsv",
            ),
            tasks=1337,
        ),
        "test": Split(
            ("lvb_test_wo_gt.json", "test-*.parquet", "data/test-*.parquet"),
            scored=False,
            tasks=5341,
        ),
    },
    default_split="val",
    directories=("LongVideoBench", "longvideobench", "datasets--longvideobench--LongVideoBench"),
    folders=("videos", "video"),
    archives=(
        Archive("videos.tar.part.*", "cat videos.tar.part.* | tar -x"),
        Archive("videos.tar", "tar -xf videos.tar"),
    ),
    convert=_convert,
    groups=_groups,
)
