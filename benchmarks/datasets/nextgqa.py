"""NExT-GQA: causal and temporal questions about short videos, with the segments that answer them.

``gsub_<split>.json`` beside the CSV holds the segments in seconds, several a question; its
durations are whole seconds, so edges leave the video by up to half a second and are cut.
``map_vid_vidorID.json`` names the folder of each video. The answer is a text; plain NExT-QA, which
calls the first column "video", has an index. The official scores merge the type TP into TN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from benchmarks.datasets.dataset import Archive, Converted, Dataset, Source, Split
from benchmarks.datasets.repair import clean_segments, index_answer, merge, text_answer
from benchmarks.datasets.rows import read_json

_OPTIONS = tuple(f"a{i}" for i in range(5))
_OWN = ("video", "type", "answer", *_OPTIONS)
_KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}


def _convert(source: Source) -> Iterator[Converted]:
    segments = _mapping(source, f"gsub_{source.split}.json")
    folders = _mapping(source, "map_vid_vidorID.json", "*/map_vid_vidorID.json")
    return source.convert(partial(_record, segments=segments, folders=folders))


def _mapping(source: Source, *patterns: str) -> Mapping[str, Any]:
    path = source.beside(*patterns)
    data = {} if path is None else read_json(path)
    if not isinstance(data, Mapping):
        raise ValueError(f"{path}: holds {type(data).__name__}, not an object; fetch it again")
    return data


def _record(
    fields: Mapping[str, Any], *, segments: Mapping[str, Any], folders: Mapping[str, Any]
) -> dict[str, Any]:
    plain = "video_id" not in fields
    video, qid = str(fields["video" if plain else "video_id"]), str(fields["qid"])
    options = [fields[name] for name in _OPTIONS if name in fields]
    answer = fields.get("answer")
    index, issues = (index_answer(answer), {}) if plain else text_answer(answer, options)
    grounding = segments.get(video) or {}
    duration_s = grounding.get("duration")
    windows = (grounding.get("location") or {}).get(qid)
    return merge(
        {key: value for key, value in fields.items() if key not in _OWN},
        {
            "id": f"{video}_{qid}",
            "video": f"{folders.get(video, video)}.mp4",
            "video_id": video,
            "options": options,
            "answer": index,
            "task_types": [fields["type"]] if fields.get("type") else [],
            **({} if duration_s is None else {"duration": duration_s}),
        },
        issues,
        clean_segments(windows, duration_s),
    )


def _groups(task: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    types = task["task_types"]
    return {
        "task_type": tuple("TN" if kind == "TP" else kind for kind in types),
        "kind": tuple(_KINDS[kind[:1]] for kind in types if kind[:1] in _KINDS),
    }


NEXTGQA = Dataset(
    name="nextgqa",
    env_id="LongVideo/NExTGQA-v0",
    title="NExT-GQA",
    source="https://github.com/doc-doc/NExT-GQA",
    licence="MIT (annotations); videos from VidOR and YFCC",
    splits={
        name: Split(
            (f"datasets/nextgqa/{name}.csv", f"nextgqa/{name}.csv", f"{name}.csv"), tasks=tasks
        )
        for name, tasks in (("val", 3358), ("test", 5553))
    },
    default_split="test",
    directories=("NExT-GQA", "NExTGQA", "nextgqa", "nextqa", "NExT-QA", "NExTQA"),
    folders=("NExTVideo", "videos", "video"),
    archives=(Archive("NExTVideo.zip", "unzip -n NExTVideo.zip"),),
    convert=_convert,
    groups=_groups,
    segments_from="gsub_<split>.json, beside the CSV",
)
