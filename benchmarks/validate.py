"""Say whether a benchmark on disk can be used, and what is wrong with it.

    longvideo validate mlvu --root ~/data/MLVU --split dev --decode

Exit code 0: usable, perhaps with gaps that are named. 1: not usable, with what to do.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.registry import find_dataset, load_suite
from benchmarks.suite import BenchmarkSuite
from gym_longvideo import checks
from gym_longvideo.command import as_command
from gym_longvideo.task import Task
from gym_longvideo.video import open_video
from gym_longvideo.video.errors import VideoError

_SHOWN = 5  # entries of a list that are printed; the JSON has all


@dataclass(frozen=True)
class ValidateConfig:
    """Count what there is of a benchmark, and what is wrong with it.

    Attributes:
        name: Of the benchmark; ``longvideo suites`` lists them.
        root: Directory of the dataset, of its hub cache, or one that holds such directories.
        split: By default the one that is reported.
        annotation: Path of the annotation, if it is not below the root.
        video_root: Directory of the videos, if they are not below the root.
        allow_outside: Permit videos outside the root.
        decode: Decode a frame of each video, each in a process of its own.
        workers: Videos decoded at a time.
        timeout_s: Seconds that opening a video, and decoding its frame, may take.
        json: File for the whole report.
    """

    name: str
    root: Path | None = None
    split: str | None = None
    annotation: Path | None = None
    video_root: Path | None = None
    allow_outside: bool = False
    decode: bool = False
    workers: int = 4
    timeout_s: float = 60.0
    json: Path | None = None

    def __post_init__(self) -> None:
        checks.whole("workers", self.workers, 1)
        checks.number("timeout_s", self.timeout_s, above=0, unit="seconds")


def inspect(suite: BenchmarkSuite) -> dict[str, Any]:
    """Return what there is of a suite; no video is opened.

    Returns:
        rows: Rows read.
        tasks: Usable ones; ``published`` is their expected number or None.
        files: Annotation files.
        unusable: Defect -> rows left out, as "place: message".
        kept: Defect -> ids of tasks that are asked in spite of it, or after a repair.
        unscorable: Ids of tasks without an answer, in a split that has answers.
        segments: How many tasks have segments; ``segments_from`` says where they come from, if that
            is another file.
        videos: How many different ones; ``missing``, ``refused`` (links out of the root) and
            ``empty`` list those that are not there, or cannot be opened.
    """
    split = suite.dataset.splits[suite.split]
    unusable: dict[str, list[str]] = {}
    for invalid in suite.invalid:
        unusable.setdefault(invalid.kind, []).append(str(invalid))
    tasks = [suite[i] for i in range(len(suite))]
    kept: dict[str, list[str]] = {}
    for task in tasks:
        for issue in (*task.issues, *(["answer_text_repeated"] if _repeated(task) else [])):
            kept.setdefault(issue, []).append(task.task_id)
    absent = set(suite.missing)
    paths = {task.video: f"{task.task_id}: {task.video}" in absent for task in tasks}
    there = [path for path, missing in paths.items() if not missing]
    return {
        "benchmark": suite.name,
        "split": suite.split,
        "files": [str(file) for file in suite.files],
        "rows": suite.rows,
        "tasks": len(tasks),
        "published": split.tasks,
        "unusable": unusable,
        "kept": kept,
        "unscorable": [t.task_id for t in tasks if t.answer_index is None] if split.scored else [],
        "segments": sum(bool(task.segments_s) for task in tasks),
        "segments_from": suite.dataset.segments_from,
        "videos": len(paths),
        "missing": [path for path, missing in paths.items() if missing],
        "refused": [path for path in there if not suite.finder.trusts(path)],
        "empty": [path for path in there if not os.path.isfile(path) or not os.path.getsize(path)],
        "packed": suite.unpack_hint().removeprefix("; "),
    }


def _repeated(task: Task) -> bool:
    """Say whether the right text stands under several letters, where the answer is a letter."""
    if task.answer_index is None or "ambiguous_answer_text" in task.issues:
        return False
    texts = [option.casefold() for option in task.options]
    return texts.count(texts[task.answer_index]) > 1


def decode(
    durations: Mapping[str, float | None],
    *,
    workers: int,
    timeout_s: float,
    opener: Callable[..., Any] = open_video,
) -> dict[str, dict[str, str]]:
    """Decode a frame from the middle of each video; one that hangs or crashes costs only itself.

    Args:
        durations: Path -> annotated duration in seconds, if any.
        workers: Videos at a time.
        timeout_s: Seconds for opening, and for decoding.
        opener: Called with the path, in a process of its own.

    Returns:
        broken: Path -> why no frame could be had.
        other_duration: Path -> by how much the annotation is wrong about it.
    """
    from tqdm import tqdm

    from gym_longvideo.video.isolate import IsolatedVideo

    def decode_one(path: str) -> float:
        with IsolatedVideo(
            partial(opener, path), path=path, backend="pyav", start_deadline_s=timeout_s
        ) as video:
            found_s = video.info.duration_s
            video.read([found_s / 2], tolerance_s=float("inf"), deadline_s=timeout_s)
            return found_s

    broken: dict[str, str] = {}
    other: dict[str, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(decode_one, path): path for path in durations}
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), unit="video"):
                path = jobs[job]
                try:
                    found_s = job.result()
                except (VideoError, OSError, ValueError) as error:
                    broken[path] = str(error)
                    continue
                said_s = durations[path]
                if said_s is not None and abs(found_s - said_s) > max(2.0, 0.05 * said_s):
                    other[path] = f"{found_s:.1f} s; the annotation says {said_s:.1f} s"
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {"broken": dict(sorted(broken.items())), "other_duration": dict(sorted(other.items()))}


def validate(arguments: ValidateConfig) -> dict[str, Any]:
    """Return the report of ``inspect`` with what decoding found and what would be played.

    Returns:
        Beside those of ``inspect``: ``broken`` and ``other_duration``, see ``decode``; ``decoded``,
        videos that could be, None if it was not tried; ``playable``, questions whose video is
        there; ``usable``, whether the benchmark would load and play any; ``advice``.

    Raises:
        ValueError, OSError, ImportError: If there is no annotation, or none that can be used.
    """
    suite = load_suite(
        arguments.name,
        split=arguments.split,
        root=arguments.root,
        annotation=arguments.annotation,
        video_root=arguments.video_root,
        allow_outside=arguments.allow_outside,
        on_invalid="skip",
    )
    report = inspect(suite)
    absent = {*report["missing"], *report["refused"], *report["empty"]}
    durations = {task.video: task.duration_s for task in suite if task.video not in absent}
    found: dict[str, dict[str, str]] = {"broken": {}, "other_duration": {}}
    if arguments.decode and durations:
        found = decode(durations, workers=arguments.workers, timeout_s=arguments.timeout_s)
    good = len(durations) - len(found["broken"])
    decoded = good if arguments.decode else None
    playable = sum(task.video in durations and task.video not in found["broken"] for task in suite)
    advice = _advice(report, found["broken"], good)
    if refusal := suite.too_many_unusable():
        advice.append(refusal)
        good = 0
    answers = any(task.answer_index is not None for task in suite)
    if not answers and suite.dataset.splits[suite.split].scored:
        advice.append(
            f"no question has an answer, and {suite.split!r} is a split with public ones: look for "
            "the file that holds them (MLVU's is test-ground-truth/test_mcq_gt.json)"
        )
        good = 0
    counts = {"playable": playable, "decoded": decoded}
    return {**report, **found, **counts, "usable": good > 0, "advice": advice}


def _advice(report: Mapping[str, Any], broken: Mapping[str, str], good: int) -> list[str]:
    advice = []
    if report["missing"]:
        where = report["packed"] or "fetch them, or pass --video-root with their directory"
        advice.append(f"{len(report['missing'])} of {report['videos']} videos are missing: {where}")
    if report["refused"]:
        advice.append("links lead out of the root: pass --allow-outside if you trust the files")
    if report["empty"] or broken:
        advice.append("fetch the videos again that are empty or cannot be decoded")
    if report["segments_from"] and not report["segments"]:
        advice.append(
            f"no question has segments, so there will be no grounding metrics and no relevance "
            f"rewards: they come from {report['segments_from']}"
        )
    if (report["missing"] or report["refused"] or report["empty"] or broken) and good:
        advice.append('on_missing_video="skip" leaves questions without a video out')
    return advice


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return a report as text."""
    published, tasks = report["published"], report["tasks"]
    count = "" if published is None else (
        "; complete" if published == tasks else f"; differs from the {published} published"
    )  # fmt: skip
    unusable = sum(map(len, report["unusable"].values()))
    there = report["videos"] - len(report["missing"])
    files = report["files"]
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    text = [
        f"{report['benchmark']}, split {report['split']}: {files[0]}{more}",
        f"questions: {tasks} of {report['rows']} rows usable, {unusable} not{count}",
        f"videos: {there} of {report['videos']} there",
    ]
    if report["playable"] < tasks:
        text.append(f"would be played: {report['playable']} of {tasks} questions")
    if report["segments"] or report["segments_from"]:
        text.append(f"segments: {report['segments']} of {tasks} questions have some")
    if report["decoded"] is not None:
        text.append(f"decoded: {report['decoded']} of {report['decoded'] + len(report['broken'])}")
    for kind, places in report["unusable"].items():
        text += [f"left out, {kind}: {len(places)}", *_some(places)]
    for kind, ids in report["kept"].items():
        text += [f"kept, {kind}: {len(ids)}", *_some([", ".join(ids[:_SHOWN])], len(ids) - _SHOWN)]
    for name, title in (
        ("unscorable", "without an answer"),
        ("missing", "missing videos"),
        ("refused", "videos outside the root"),
        ("empty", "empty files"),
    ):
        if report[name]:
            text += [f"{title}: {len(report[name])}", *_some(report[name])]
    for name, title in (("broken", "not decodable"), ("other_duration", "other duration")):
        if report[name]:
            entries = [f"{path}: {message}" for path, message in report[name].items()]
            text += [f"{title}: {len(entries)}", *_some(entries)]
    return [*text, "usable" if report["usable"] else "NOT USABLE", *report["advice"]]


def _some(entries: Sequence[str], more: int | None = None) -> list[str]:
    more = len(entries) - _SHOWN if more is None else more
    rest = [f"  ... and {more} more (--json FILE has all)"] if more > 0 else []
    return [*(f"  {entry}" for entry in entries[:_SHOWN]), *rest]


def defects(report: Mapping[str, Any]) -> Counter[str]:
    """Return how many rows and tasks have each defect."""
    both = [*report["unusable"].items(), *report["kept"].items()]
    return Counter({kind: len(found) for kind, found in both})


@as_command
def main(arguments: Sequence[str]) -> int:
    """Print a report; return 0 if the benchmark can be used."""
    from agents.command import parse

    chosen = parse(ValidateConfig, arguments, "validate", positional=True)
    find_dataset(chosen.name)
    try:
        report = validate(chosen)
        if chosen.json is not None:
            text = json.dumps({**report, "defects": defects(report)}, indent=2, ensure_ascii=False)
            chosen.json.write_text(text + "\n", encoding="utf-8")
    except (ValueError, OSError, ImportError) as error:
        print(f"NOT USABLE\n{error}", file=sys.stderr)
        return 1
    print("\n".join(lines(report)))
    return 0 if report["usable"] else 1


if __name__ == "__main__":
    sys.exit(main())
