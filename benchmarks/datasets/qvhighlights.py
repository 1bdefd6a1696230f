"""QVHighlights: moments of 150-second videos that a sentence describes. It has no options itself.

Three datasets, of which only the first two ask questions:

* ``qvhighlights``: a file somebody converted to questions, as Video-MTR did with GPT-4o;
* ``qvhighlights_segments``: "When does the following happen?" with four time ranges, made here.
  Nothing published compares with it; see ``segment_choice``;
* ``qvhighlights_grounding``: where the sentence is true, without a choice; only the grounding
  metrics mean anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.datasets.dataset import Archive, Converted, Dataset, Defect, Source, Split
from benchmarks.datasets.repair import clean_segments, merge
from benchmarks.datasets.segment_choice import choose
from benchmarks.datasets.videor1 import video_r1

NEUTRAL = "(no choice: show the segment)"
_SCORES = ("relevant_clip_ids", "saliency_scores")  # of highlights; long, and not asked about
_TASKS = {"train": 7218, "val": 1550, "test": 1542}


def _convert(source: Source) -> Iterator[Converted]:
    return source.convert(_question)


def _question(fields: Mapping[str, Any]) -> dict[str, Any]:
    if "query" in fields and "problem" not in fields and "question" not in fields:
        raise Defect(
            "no_options",
            f"qid {fields.get('qid')} is a query without options; this is the original annotation, "
            "which qvhighlights_segments and qvhighlights_grounding read",
        )
    return video_r1(fields)


def _segments(source: Source) -> Iterator[Converted]:
    return source.convert(_choice)


def _choice(fields: Mapping[str, Any]) -> dict[str, Any]:
    record = _native(fields)
    choice = choose(record.get("segments", ()), float(fields["duration"]), record["id"])
    question = f"When does the following happen: {fields['query'].strip()}"
    return merge(record, {"question": question, **choice._asdict()})


def _grounding(source: Source) -> Iterator[Converted]:
    return source.convert(_ground)


def _ground(fields: Mapping[str, Any]) -> dict[str, Any]:
    question = f"Show when the following happens: {fields['query'].strip()}"
    return merge(_native(fields), {"question": question, "options": [NEUTRAL], "answer": None})


def _native(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all rows of the original annotation have."""
    own = ("qid", "vid", "relevant_windows", *_SCORES)
    return merge(
        {key: value for key, value in fields.items() if key not in own},
        {
            "id": str(fields["qid"]),
            "video": f"{fields['vid']}.mp4",
            "video_id": str(fields["vid"]),
            "task_type": [],
        },
        clean_segments(fields.get("relevant_windows"), fields["duration"]),
    )


def _groups(task: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the official classes of length, of the longest segment."""
    longest_s = max((end - start for start, end in task["segments_s"]), default=None)
    if longest_s is None:
        return {}
    return {"length": ("short" if longest_s <= 10 else "middle" if longest_s <= 30 else "long",)}


def _dataset(name: str, env_id: str, title: str, **fields: Any) -> Dataset:
    return Dataset(
        name=name,
        env_id=env_id,
        title=title,
        source="https://github.com/jayleicn/moment_detr",
        licence="CC-BY-NC-SA-4.0",
        default_split="val",
        directories=("QVHighlights", "qvhighlights", "moment_detr"),
        folders=("videos", "QVHighlights/videos", "video"),
        archives=(Archive("qvhilights_videos.tar.gz", "tar -xzf qvhilights_videos.tar.gz"),),
        groups=_groups,
        **fields,
    )


def _originals(*, grounding: bool) -> dict[str, Split]:
    names = {name: [f"highlight_{name}_release.jsonl"] for name in _TASKS}
    names["test"].insert(0, "highlight_test_with_gt.jsonl")
    return {
        name: Split(
            (*(f"data/{file}" for file in files), *files),
            tasks=_TASKS[name] if grounding else None,
            scored=not grounding,
        )
        for name, files in names.items()
    }


QVHIGHLIGHTS = _dataset(
    "qvhighlights",
    "LongVideo/QVHighlights-v0",
    "QVHighlights, converted to questions",
    splits={
        name: Split((f"qvhighlights_{name}.json*", f"*[qQ][vV]*{name}*qa*.json*"))
        for name in ("train", "val", "test")
    },
    convert=_convert,
)
SEGMENTS = _dataset(
    "qvhighlights_segments",
    "LongVideo/QVHighlightsSegments-v0",
    "QVHighlights, choice of segments (made here, not published)",
    splits=_originals(grounding=False),
    convert=_segments,
)
GROUNDING = _dataset(
    "qvhighlights_grounding",
    "LongVideo/QVHighlightsGrounding-v0",
    "QVHighlights, grounding only",
    splits=_originals(grounding=True),
    convert=_grounding,
    least_options=1,
)
