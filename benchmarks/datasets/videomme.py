"""Video-MME: 2,700 questions about 900 videos, short to an hour long; no segments.

The letter is authoritative: six questions have the right text under several letters. The annotation
gives a class of duration, no seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.datasets.dataset import Archive, Converted, Dataset, Source, Split, converted

PER_VIDEO = 3  # questions
_GROUPS = ("duration", "domain", "sub_category", "task_type")
_OWN = ("questions", "duration", "response", "index", "video_path")


def _convert(source: Source) -> Iterator[Converted]:
    rows = list(source.rows())
    ids = _ids([fields for _, fields in rows if isinstance(fields, Mapping)])
    for place, fields in rows:
        if isinstance(fields, Mapping) and "question_id" not in fields:
            fields = {**fields, **ids.get(str(fields.get("index")), {})}
        if isinstance(fields, Mapping) and isinstance(nested := fields.get("questions"), list):
            # The official result format: an item a video, with its questions inside.
            for i, question in enumerate(nested):
                inner = {**fields, **question} if isinstance(question, Mapping) else {}
                yield converted(f"{place}, question {i}", inner, _record)
        else:
            yield converted(place, fields, _record)


def _ids(rows: list[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the official names of rows that VLMEvalKit numbers, by their number.

    Its ``index`` is the place in the official file, which asks three questions about each video.
    Where the numbers and the videos do not agree with that, no row gets a name.
    """
    numbers: dict[str, int] = {}
    videos: dict[int, str] = {}
    for fields in rows:
        index = str(fields.get("index", ""))
        if not index.isdecimal() or "question_id" in fields:
            return {}
        numbers[index] = int(index)
        video = str(fields.get("video"))
        if videos.setdefault(int(index) // PER_VIDEO, video) != video:
            return {}
    if len(set(videos.values())) < len(videos):
        return {}
    return {
        index: {
            "question_id": f"{number // PER_VIDEO + 1:03d}-{number % PER_VIDEO + 1}",
            "video_id": f"{number // PER_VIDEO + 1:03d}",
        }
        for index, number in numbers.items()
    }


def _record(fields: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in fields.items() if key not in _OWN}
    # VLMEvalKit calls the name "video" and numbers its rows; Video-R1 gives a path.
    video = fields.get("videoID") or fields.get("video") or fields.get("path")
    video = str(video or re.split("[=/]", str(fields.get("url", "")))[-1])
    name = video.rpartition("/")[2].removesuffix(".mp4")
    ids = (fields.get(key) for key in ("question_id", "problem_id", "index"))
    identity = next((value for value in ids if value is not None), None)
    return {
        **kept,
        **({} if identity is None else {"id": identity}),
        "video": video if "." in name or video.endswith(".mp4") or not video else f"{video}.mp4",
        "video_id": str(fields.get("video_id") or name),
        "options": fields.get("options", fields.get("candidates")),
        "duration_group": fields.get("duration"),
        "task_types": [fields["task_type"]] if fields.get("task_type") else [],
    }


def _groups(task: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    meta = task["meta"]
    values = {**meta, "duration": meta.get("duration_group"), "task_type": None}
    groups = {name: (str(values[name]),) for name in _GROUPS if values.get(name)}
    return {**groups, "task_type": tuple(task["task_types"])}


VIDEOMME = Dataset(
    name="videomme",
    env_id="LongVideo/VideoMME-v0",
    title="Video-MME",
    source="https://huggingface.co/datasets/lmms-lab/Video-MME",
    licence="academic research only, no redistribution",
    splits={
        "test": Split(
            (
                "videomme/test-*.parquet",
                "test-*.parquet",
                "Video-MME.tsv",
                "videomme.json",
                "eval_videomme.json",
                "*/eval_videomme.json",
            ),
            tasks=2700,
        )
    },
    default_split="test",
    directories=(
        "Video-MME",
        "videomme",
        "datasets--lmms-lab--Video-MME",
        "datasets--lmms-eval--Video-MME",
    ),
    folders=("data", "video", "videos", "videos/data"),
    archives=(
        Archive("videos_chunked_*.zip", "for f in videos_chunked_*.zip; do unzip -n $f; done"),
    ),
    convert=_convert,
    groups=_groups,
)
