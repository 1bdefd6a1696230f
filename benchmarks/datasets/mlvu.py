"""MLVU: multiple-choice questions of seven kinds (dev) or nine (test); no segments.

The dev files and the test's ground truth give the text of the answer, copies of it its letter. The
free-form tasks, sub-scene and summary, are left out: they have no options and need a judge. The
official overall accuracy is the mean over the kinds, not over the questions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.datasets.dataset import Archive, Converted, Dataset, Source, Split, converted
from benchmarks.datasets.repair import embedded_options, merge, number, text_answer

TASKS = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
_NAMES = {"findNeedle": "needle"}
_TEST = {
    "TR": "topic_reasoning",
    "AO": "order",
    "NQA": "needleQA",
    "AC": "count",
    "ER": "ego",
    "PQA": "plotQA",
    "TQA": "tutorialQA",
    "AR": "anomaly_reco",
    "SQA": "sportsQA",
}
_PREFIXES = {kind: prefix for prefix, kind in _TEST.items()}
_FREE_FORM = ("subPlot", "sub_scene", "summary")
_FOLDERS = ("video", "MLVU/video", "MVLU/video", "videos", "MLVU_Test/video", "MLVU_Test")
_OWN = ("question_type", "task_type", "duration", "prefix", "problem", "solution", "index")
# Two needle questions have an answer that is no candidate; lmms-eval's copy takes this one.
# Copies leave out the one blank question, by which those after it would move up: kind and number of
# its questions there -> its place.
_LEFT_OUT = {("topic_reasoning", 263): 26}
_NUMBERED = re.compile(r"Q?\d+\Z")  # ids that lmms-eval's copies give: a place in the whole list
_REPAIRS = {"Catching a flying drone quadcopter": "Catching the drone"}


def _convert(source: Source) -> Iterator[Converted]:
    folders = _folders(source.roots) if source.split == "dev" else {}
    counts: Counter[str] = Counter()  # official rows have no id: the place among their kind
    rows = list(source.rows())
    kinds = Counter(_kind(fields) for _, fields in rows if isinstance(fields, Mapping))
    for place, fields in rows:
        kind = _kind(fields) if isinstance(fields, Mapping) else ""
        if kind not in _FREE_FORM:
            left_out = _LEFT_OUT.get((kind, kinds[kind]))
            counts[kind] += source.split == "dev" and counts[kind] == left_out
            prefix = _PREFIXES.get(kind, kind) if source.split == "test" else kind
            identity = f"{prefix}_{counts[kind]}"
            record = partial(_record, kind=kind, identity=identity, folder=folders.get(kind))
            yield converted(place, fields, record)
            counts[kind] += 1


def _record(
    fields: Mapping[str, Any], *, kind: str, identity: str, folder: str | None
) -> dict[str, Any]:
    kept = {key: value for key, value in fields.items() if key not in _OWN}
    video = str(fields.get("video_name", fields.get("video", fields.get("path", ""))))
    question = fields.get("question", fields.get("problem"))
    answer = fields.get("answer", fields.get("solution"))
    options = fields.get("candidates", fields.get("options"))
    if parts := embedded_options(question):
        question, texts = parts
        options = texts if options is None or len(options) != len(texts) else options
    given = fields.get("question_id", fields.get("problem_id"))
    official = "video" in fields  # copies call it otherwise, and give letters
    found, issues = _text(answer, options) if official else (answer, {})
    duration_s = number(fields.get("duration"))
    return merge(
        kept,
        {
            "id": given if given is not None and not _NUMBERED.match(str(given)) else identity,
            "video": f"{folder}/{video}" if folder and official else video,
            "video_id": video.rpartition("/")[2],
            "question": question,
            "options": options,
            "answer": found,
            "task_types": [kind],
            **({} if duration_s is None else {"duration": duration_s}),
        },
        issues,
    )


def _text(answer: Any, options: Any) -> tuple[Any, dict[str, Any]]:
    repaired = _REPAIRS.get(answer) if isinstance(answer, str) else None
    if repaired is not None and answer not in options and repaired in options:
        index, issues = text_answer(repaired, options)
        return index, merge(issues, {"annotated_answer": answer, "issues": ["answer_repaired"]})
    return text_answer(answer, options)


def _kind(fields: Mapping[str, Any]) -> str:
    kind = fields.get("question_type", fields.get("task_type"))
    if not kind:
        kind = str(fields.get("question_id", fields.get("problem_id", ""))).partition("_")[0]
    return _NAMES.get(str(kind), _TEST.get(str(kind), str(kind)))


def _folders(roots: tuple[Path, ...]) -> dict[str, str]:
    """Return the folder of each task: "1_plotQA" as published, "plotQA" as in the code."""
    numbered = {task: f"{i}_{task}" for i, task in enumerate(TASKS, start=1)}
    for root in roots:
        for folder in ("", *_FOLDERS):
            if (root / folder / "plotQA").is_dir() and not (root / folder / "1_plotQA").is_dir():
                return {task: task for task in TASKS}
    return numbered


MLVU = Dataset(
    name="mlvu",
    env_id="LongVideo/MLVU-v0",
    title="MLVU",
    source="https://huggingface.co/datasets/MLVU/MVLU",
    licence="CC-BY-NC-SA-4.0, research only",
    splits={
        "dev": Split(
            (
                *(f"{folder}[1-7]_*.json" for folder in ("*/json/", "json/", "data/", "")),
                *("MLVU_MCQ.tsv", "mlvu/test-*.parquet", "mlvu.json"),
            ),
            tasks=2174,
        ),
        "test": Split(
            (
                *("test-ground-truth/test_mcq_gt.json", "*/test_mcq_gt.json", "test_mcq_gt.json"),
                *(f"{folder}eval_mlvu_test.json" for folder in ("", "*/", "data/eval/")),
                *("mlvu_test/test-*.parquet", "json/multi_choice_QA.json"),
                *("test_multi_choice_tasks.json", "MLVU_Test/test_question.json"),
            ),
            tasks=502,
        ),
    },
    default_split="test",
    directories=(
        *("MLVU", "MVLU", "MLVU_Test", "mlvu", "mlvu_test", "mlvu/dev", "mlvu/test"),
        *("datasets--MLVU--MVLU", "datasets--MLVU--MLVU_Test"),
        *("datasets--sy1998--MLVU_dev", "datasets--sy1998--MLVU_Test"),
    ),
    folders=_FOLDERS,
    archives=(
        Archive(
            "MLVU_Test/test_video.tar.gz.part-*",
            "(cd MLVU_Test && cat test_video.tar.gz.part-* | tar -xz)",
        ),
        Archive("test_video.tar.gz.part-*", "cat test_video.tar.gz.part-* | tar -xz"),
        Archive("*.zip", "for f in *.zip; do unzip -n $f; done"),
    ),
    convert=_convert,
    overall="macro:task_type",
)
