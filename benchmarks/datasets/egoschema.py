"""EgoSchema: 5,031 questions about three minutes of egocentric video; 500 answers are public.

The subset is scored here. The full set is scored by its server alone, which takes the file that

    longvideo submission RUN --out submission.json

makes of a run: ``{q_uid: index}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.datasets.dataset import Archive, Converted, Dataset, Defect, Source, Split
from benchmarks.datasets.repair import index_answer, merge, text_answer
from benchmarks.datasets.rows import KEY, read_json

QUESTIONS = 5031
_CLIP_S = 180.0  # every clip, says uid_to_ego4d.json
_IDENTITY = ("q_uid", "video_idx", "video_name", "uid", KEY)
# The first commit of the questions has the misspelt key; other people's copies have "truth".
_ANSWER = ("answer", "truth", "correct_answer", "corrent_answer")
_COLUMNS = ("option {}", "option{}", "a{}")


def _convert(source: Source) -> Iterator[Converted]:
    path = source.beside("subset_answers.json") if source.split == "subset" else None
    answers = {} if path is None else read_json(path)
    if not isinstance(answers, Mapping):
        raise ValueError(f"{path}: holds {type(answers).__name__}, not an object of answers")
    left = dict(answers)
    for place, record in source.convert(_record):
        if not isinstance(record, ValueError) and source.split == "subset":
            if answers and record["id"] not in answers:
                continue  # a question of the full set
            answer = left.pop(record["id"], record["answer"])
            if answer is None and not answers:
                raise ValueError(
                    f"{place}: no answer; the subset needs subset_answers.json beside the questions"
                )
            record = {**record, "answer": answer}
        yield Converted(place, record)
    for uid in left:
        yield Converted(f"{path}, {uid!r}", Defect("missing_question", "no such question"))


def _record(fields: Mapping[str, Any]) -> dict[str, Any]:
    uid = str(next((fields[name] for name in _IDENTITY if fields.get(name)), ""))
    uid = uid.removesuffix(".mp4")
    if not uid:
        raise Defect("malformed_row", f"none of {list(_IDENTITY[:-1])} names the question")
    texts = fields.get("option", fields.get("options"))
    columns = [pattern.format(i) for pattern in _COLUMNS for i in range(5)]
    options = texts or [fields[name] for name in columns if name in fields]
    answer = next((fields[name] for name in _ANSWER if fields.get(name) is not None), None)
    # IG-VLM's CSV has the text of the answer; all others its index, some of them as text.
    index, issues = text_answer(answer, options) if "a0" in fields else (index_answer(answer), {})
    own = (*_IDENTITY, *_ANSWER, *columns, "option", "question_id", "question_idx")
    return merge(
        {key: value for key, value in fields.items() if key not in own},
        {
            "id": uid,
            "video": f"{uid}.mp4",
            "video_id": uid,
            "options": options,
            "answer": index,
            "duration": _CLIP_S,
        },
        issues,
    )


def _groups(task: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {}


EGOSCHEMA = Dataset(
    name="egoschema",
    env_id="LongVideo/EgoSchema-v0",
    title="EgoSchema",
    source="https://github.com/egoschema/EgoSchema",
    licence="no licence with the annotation; videos under the Ego4D licence",
    splits={
        "subset": Split(
            ("questions.json", "Subset/test-*.parquet", "subset_anno.json", "*go[sS]chema*.csv"),
            tasks=500,
        ),
        "full": Split(
            ("questions.json", "MC/test-*.parquet", "fullset_anno.json"),
            scored=False,
            tasks=QUESTIONS,
        ),
    },
    default_split="subset",
    directories=("EgoSchema", "egoschema", "datasets--lmms-lab--egoschema"),
    folders=("videos", "good_clips_git", "video"),
    archives=(
        Archive("videos_chunked_*.zip", "for f in videos_chunked_*.zip; do unzip -n $f; done"),
        Archive("*.zip", "for f in *.zip; do unzip -n $f; done"),
    ),
    convert=_convert,
    groups=_groups,
)
