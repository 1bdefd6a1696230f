"""LVBench: questions about videos of half an hour to more than two hours.

The official file has a line a video, its questions nested, their options inside the question.
``time_reference`` has minutes beyond 60 and no hours; where both are the same (250 questions) it
means that second. A question may be of several types, and counts in each. Downloaders name the
videos by key or by the number of their line ("00000000.mp4"). The cleaned list of VideoChat-Flash
has these numbers and no ids: the official file beside it gives key and id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.datasets.dataset import Archive, Converted, Dataset, Source, Split, converted
from benchmarks.datasets.repair import clean_segments, embedded_options, merge, number
from benchmarks.datasets.rows import read_table
from gym_longvideo.annotation import parse_time

_FOLDERS = ("all_videos", "videos", "video", "video_chunks", "data")
_OWN = ("qa", "question_type", "type", "time_reference", "uid", "candidates", "choices", "video")


def _convert(source: Source) -> Iterator[Converted]:
    numbered = _numbered(source.roots)
    official: _Official | None = None
    for line, (place, fields) in enumerate(source.rows()):
        if isinstance(fields, Mapping) and "qa" not in fields and "uid" not in fields:
            official = _Official.beside(source) if official is None else official
            fields = official.completed(fields, numbered)
        if not isinstance(fields, Mapping) or "qa" not in fields:
            yield converted(place, fields, _record)
            continue
        name = f"{line:08d}" if numbered else fields.get("key")
        for i, inner in enumerate(_questions(fields)):
            yield converted(f"{place}, question {i}", {**fields, "_file": name, **inner}, _record)


def _questions(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    questions = fields["qa"] if isinstance(fields["qa"], list) else [fields["qa"]]
    return [each if isinstance(each, Mapping) else {} for each in questions]


class _Official:
    """What the official file says of the videos that another list numbers, if it is there.

    Args:
        rows: Its rows, a video each.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.keys: list[str] = []
        self.uids: dict[tuple[str, str], str] = {}
        for fields in rows:
            self.keys.append(key := str(fields.get("key")))
            for each in _questions({"qa": [], **fields}):
                question = embedded_options(each.get("question")) or (each.get("question"),)
                self.uids[key, _words(question[0])] = str(each.get("uid"))

    @classmethod
    def beside(cls, source: Source) -> _Official:
        path = source.beside("video_info.meta.jsonl", "*/video_info.meta.jsonl")
        rows = () if path is None else read_table(path)
        return cls(row.fields for row in rows if isinstance(row.fields, Mapping))

    def completed(self, fields: Mapping[str, Any], numbered: bool) -> Mapping[str, Any]:
        """Return a row with the key of its video and its id, as far as they are known."""
        number = str(fields.get("video", "")).removesuffix(".mp4")
        if not number.isdecimal() or int(number) >= len(self.keys):
            return fields
        key = self.keys[int(number)]
        question = embedded_options(fields.get("question")) or (fields.get("question"),)
        uid = self.uids.get((key, _words(question[0])))
        return {
            **fields,
            "key": key,
            "_file": number if numbered else key,
            **({} if uid is None else {"uid": uid}),
        }


def _words(question: Any) -> str:
    return " ".join(str(question).casefold().split())


def _record(fields: Mapping[str, Any]) -> dict[str, Any]:
    file = next(
        (fields[name] for name in ("_file", "video_path", "video", "key") if fields.get(name)), ""
    )
    key = str(fields.get("key") or file).rpartition("/")[2].removesuffix(".mp4")
    question = fields.get("question")
    names = ("options", "candidates", "choices")
    options = next((fields[name] for name in names if fields.get(name)), None)
    if found := embedded_options(question):
        question, texts = found
        options = options or texts
    uid = fields.get("uid", fields.get("question_id"))
    duration_s = _duration(fields)
    types = fields.get("question_type") or []
    own = (*_OWN, *names, "_file", "video_path", "duration")
    return merge(
        {name: value for name, value in fields.items() if name not in own},
        {
            **({} if uid is None else {"id": str(uid)}),
            "video": str(file) if "." in str(file) else f"{file}.mp4" if file else "",
            "video_id": key,
            "video_type": fields.get("type"),
            "question": question,
            "options": options,
            "task_types": [types] if isinstance(types, str) else list(types),
            **({} if duration_s is None else {"duration": duration_s}),
        },
        _alike(options),
        clean_segments(*_second(fields.get("time_reference"), duration_s)),
    )


def _second(reference: Any, duration_s: float | None) -> tuple[Any, float | None]:
    """Return a time reference whose two ends are the same as the second that it means."""
    ends = [part.strip() for part in reference.split("-")] if isinstance(reference, str) else []
    if len(ends) != 2 or ends[0] != ends[1]:
        return reference, duration_s
    try:
        start_s = parse_time(ends[0])
    except ValueError:
        return reference, duration_s
    if duration_s is not None and start_s <= duration_s < start_s + 1:
        start_s = max(0.0, duration_s - 1)
    return [[start_s, start_s + 1]], duration_s


def _alike(options: Any) -> dict[str, Any]:
    """Say so where options differ in capitals alone; equal ones are named anyway."""
    texts = [str(option) for option in options or ()]
    folded = {text.casefold() for text in texts}
    return {"issues": ["duplicate_options"]} if len(folded) < len(set(texts)) == len(texts) else {}


def _duration(fields: Mapping[str, Any]) -> float | None:
    about = fields.get("video_info")
    minutes = (about if isinstance(about, Mapping) else fields).get("duration_minutes")
    length = number(minutes)
    return number(fields.get("duration")) if length is None else length * 60


def _numbered(roots: tuple[Path, ...]) -> bool:
    return any((root / folder / "00000000.mp4").is_file() for root in roots for folder in
               ("", *_FOLDERS))  # fmt: skip


def _groups(task: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    kind = task["meta"].get("video_type")
    groups = {"task_type": tuple(task["task_types"])}
    return groups if kind is None else {**groups, "video_type": (str(kind),)}


LVBENCH = Dataset(
    name="lvbench",
    env_id="LongVideo/LVBench-v0",
    title="LVBench",
    source="https://huggingface.co/datasets/zai-org/LVBench",
    licence="CC-BY-NC-SA-4.0",
    splits={
        "test": Split(
            (
                *("video_info.meta.jsonl", "*/video_info.meta.jsonl"),
                *("data/train-*.parquet", "train-*.parquet", "data/test-*.parquet"),
                *("json/lvbench_clean.json", "lvbench_clean.json"),
                *("json/lvbench_clean_*.json", "lvbench_clean_*.json", "lvbench.json*"),
            ),
            tasks=1549,
        )
    },
    default_split="test",
    directories=(
        *("LVBench", "lvbench", "datasets--THUDM--LVBench", "datasets--zai-org--LVBench"),
        *("datasets--lmms-lab--LVBench", "datasets--lmms-eval--LVBench"),
        "datasets--AIWinter--LVBench",
    ),
    folders=_FOLDERS,
    archives=(
        Archive(
            "all_videos_split.zip.*",
            "cat all_videos_split.zip.* > all_videos.zip && unzip -n all_videos.zip",
        ),
        Archive("video_chunks/*.zip", "for f in video_chunks/*.zip; do unzip -n $f; done"),
        Archive("*.zip", "for f in *.zip; do unzip -n $f; done"),
    ),
    convert=_convert,
    groups=_groups,
)
