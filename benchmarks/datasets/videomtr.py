"""Video-MTR 8K: the training questions of Video-MTR, from QVHighlights and NExT-GQA.

The file itself was not at hand; see ``videor1`` for what is known of its records. Its ids mix
numbers and text and come from two sources, so one that is used for two questions is told apart. The
questions from NExT-GQA are of evaluation splits: do not evaluate on what was trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.datasets.dataset import Archive, Converted, Dataset, Source, Split
from benchmarks.datasets.repair import merge
from benchmarks.datasets.videor1 import video_r1


def _convert(source: Source) -> Iterator[Converted]:
    known: dict[str, set[tuple[str, str]]] = {}
    uses: Counter[str] = Counter()
    for place, record in source.convert(video_r1):
        if isinstance(record, Mapping) and "id" in record:
            about = str(record["video"]), str(record["question"])
            asked = known.setdefault(record["id"], set())
            # The same question twice stays a duplicate, which the suite lists.
            if asked and about not in asked:
                uses[record["id"]] += 1
                new = {"id": f"{record['id']}#{uses[record['id']] + 1}", "issues": ["shared_id"]}
                record = merge(record, new)
            asked.add(about)
        yield Converted(place, record)


def _groups(task: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    source = task["meta"].get("data_source")
    return {} if source is None else {"data_source": (str(source),)}


VIDEOMTR = Dataset(
    name="videomtr",
    env_id="LongVideo/VideoMTR-v0",
    title="Video-MTR 8K",
    source="https://github.com/Xyuan13/Video-MTR",
    licence="none given; made of CC-BY-NC-SA-4.0 and MIT annotation",
    splits={
        "train": Split(
            (
                "data/train/qv-nextgqa_merge_8k.json*",
                "train/qv-nextgqa_merge_8k.json*",
                "qv-nextgqa_merge_8k.json*",
            ),
            tasks=7896,
        )
    },
    default_split="train",
    directories=("Video-MTR", "videomtr", "video-mtr"),
    folders=("videos", "data", "QVHighlights/videos", "NExT-GQA/videos", "NExTVideo"),
    archives=(
        Archive("QVHighlights/*.tar.gz", "(cd QVHighlights && tar -xzf qvhilights_videos.tar.gz)"),
        Archive("NExTVideo.zip", "unzip -n NExTVideo.zip"),
    ),
    convert=_convert,
    groups=_groups,
)
