"""Made-up benchmarks, laid out as published ones are: to try an evaluation before a download.

    python -m examples.made_up_benchmark runs/made-up --tasks 24 --minutes 1 10

Exports haystack tasks of the kind that the tiny MLLM knows (``agents/weights/tiny``) as real H.264
files, and writes their annotation as Video-MME, MLVU and LongVideoBench write theirs. Layouts are
those of the benchmarks; questions are not, so no number here says anything about a benchmark.

Takes about a second for each ten minutes of video. Expect a progress bar, three directories, and
the commands that validate, evaluate and report them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.model import tiny
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.haystack.export import export_suite

Item = dict[str, Any]  # a line of the export's annotation, with "path" and "fps" of the file


def export(out: Path, tasks: int, minutes: Sequence[float], size: int) -> list[Item]:
    """Encode videos; durations take turns, and cards are held up for the same share of each."""
    items: list[Item] = []
    for turn, duration_s in enumerate(60 * value for value in minutes[:tasks]):
        needle_s = tiny.SUITE_OPTIONS["needle_s"] * duration_s / 600
        options = {**tiny.SUITE_OPTIONS, "duration_s": duration_s, "needle_s": needle_s}
        suite = HaystackSuite("test", **options)
        chosen = [suite[i] for i in range(turn, tasks, len(minutes))]
        folder, workers = out / "export" / f"{duration_s:g}s", os.cpu_count() or 1
        annotation = export_suite(
            suite, folder, tasks=chosen, size=(size, size), workers=workers, progress=True
        )
        fps = json.loads((folder / "export.json").read_text(encoding="utf-8"))["fps"]
        for line in annotation.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            items.append({**item, "path": folder / item["video"], "fps": fps})
    return sorted(items, key=lambda item: item["id"])


def write_videomme(items: Sequence[Item], root: Path) -> None:
    """Parquet; options carry their letters, and nothing says where in the video to look."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for number, item in enumerate(items, start=1):
        length_s, lettered = item["duration"], zip("ABCDEF", item["options"], strict=False)
        rows.append({
            "video_id": f"{number:03d}",
            "duration": "short" if length_s < 120 else "medium" if length_s < 1800 else "long",
            "domain": "Made up", "sub_category": "Haystack", "url": "", "videoID": item["id"],
            "question_id": f"{number:03d}-1", "task_type": "Object Recognition",
            "question": item["question"],
            "options": [f"{letter}. {text}" for letter, text in lettered],
            "answer": item["answer"],
        })  # fmt: skip
        place(item["path"], root / "data" / f"{item['id']}.mp4")
    (root / "videomme").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "videomme" / "test-00000-of-00001.parquet")


def write_mlvu(items: Sequence[Item], root: Path) -> None:
    """A file and a folder of videos for each task; the answer is the text of an option."""
    # Every third question plays another task: the mean over tasks is not that over questions.
    for task, kind, wanted in (("1_plotQA", "plotQA", (0,)), ("2_needle", "findNeedle", (1, 2))):
        rows = []
        for item in (item for i, item in enumerate(items) if i % 3 in wanted):
            rows.append({
                "video": f"{item['id']}.mp4", "duration": item["duration"],
                "question": item["question"], "candidates": item["options"],
                "answer": item["options"]["ABCDEF".index(item["answer"])], "question_type": kind,
            })  # fmt: skip
            place(item["path"], root / "video" / task / f"{item['id']}.mp4")
        (root / "json").mkdir(parents=True, exist_ok=True)
        (root / "json" / f"{task}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_longvideobench(items: Sequence[Item], root: Path) -> None:
    """One file; the answer is an index, and positions are frames of the video file."""
    rows = []
    for item in items:
        video, middles = item["id"], [sum(segment) / 2 for segment in item["segments"]]
        rows.append({
            "video_id": video, "question": item["question"],
            "question_wo_referring_query": item["question"], "candidates": item["options"],
            "correct_choice": "ABCDEF".index(item["answer"]),
            "position": [int(middle_s * item["fps"]) for middle_s in middles],
            "topic_category": "Made up", "question_category": "S2O", "level": "L1-Perception",
            "id": f"{video}_0", "video_path": f"{video}.mp4", "subtitle_path": f"{video}_en.json",
            "duration_group": next((s for s in (15, 60, 600) if item["duration"] <= s), 3600),
            "starting_timestamp_for_subtitles": 0, "duration": item["duration"], "view_count": 0,
        })  # fmt: skip
        place(item["path"], root / "videos" / f"{video}.mp4")
    (root / "lvb_val.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def place(video: Path, target: Path) -> None:
    """Copy a video: a link that leads out of a benchmark's directory would be refused."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(video, target)


# name -> directory, split that is written, writer
LAYOUTS = {
    "videomme": ("Video-MME", "test", write_videomme),
    "mlvu": ("MLVU", "dev", write_mlvu),
    "longvideobench": ("LongVideoBench", "val", write_longvideobench),
}


def main() -> None:
    """Write the benchmarks, and say how to go on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="directory to write into")
    parser.add_argument("--tasks", type=int, default=12, help="questions, each about its own video")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10], help="durations")
    parser.add_argument("--size", type=int, default=112, help="height and width in pixels")
    parser.add_argument("--like", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    chosen = parser.parse_args()
    print(f"encoding {chosen.tasks} videos into {chosen.out}", flush=True)
    try:
        items = export(chosen.out, chosen.tasks, chosen.minutes, chosen.size)
    except ValueError as error:
        parser.error(str(error))
    for name in chosen.like:
        directory, split, write = LAYOUTS[name]
        write(items, chosen.out / directory)
        print(f"\n# {len(items)} questions, laid out as {directory}. Go on with")
        where = ["--root", chosen.out, "--split", split]
        show("validate", name, *where, "--decode")
        runs = []
        for policy in ("oracle", "tiny"):
            runs.append(chosen.out / "evaluated" / name / Path(policy).name)
            asked = ["--suite", name, *where, "--policy", policy, "--out", runs[-1]]
            show("evaluate", *asked)
        show("report", *runs, "--out", chosen.out / "report" / name)


def show(command: str, *arguments: object) -> None:
    """Print a command."""
    print(shlex.join(["longvideo", command, *map(str, arguments)]))


if __name__ == "__main__":
    main()
