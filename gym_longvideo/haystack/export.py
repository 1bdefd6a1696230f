"""Export: a haystack suite as real H.264 files with an annotation, for the very same tasks.

``longvideo export DIR --tasks 32 --minutes 60``

A frame of the file is drawn at the moment at which it starts to be shown. Annotated times are those
of the file: moved to the first frame that shows the change, at most ``1 / fps`` later than in the
procedural video. Everything the oracle needs is in the annotation, so ``oracle.solve`` works on
tasks that were read back.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import string
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from gym_longvideo import checks
from gym_longvideo.command import Parser, as_command
from gym_longvideo.files import replace
from gym_longvideo.haystack.oracle import Span
from gym_longvideo.haystack.suite import SPLIT_SIZES, HaystackSuite
from gym_longvideo.haystack.video import HaystackVideo
from gym_longvideo.task import Task

FRAME_RATES = (2, 4, 8, 12, 24, 30, 60)
NEEDLE_FRAMES = 4  # a needle lasts so many frames at the default rate
_KEYFRAME_S = 8.0
_BATCH = 64
_SETTINGS = "export.json"


def export_suite(
    suite: HaystackSuite,
    directory: str | os.PathLike[str],
    *,
    tasks: int | Iterable[Task] | None = None,
    fps: int | None = None,
    size: tuple[int, int] = (224, 224),
    workers: int = 1,
    progress: bool = False,
) -> Path:
    """Write videos and annotation of a suite.

    Files appear under their names only when complete, so an export that was interrupted goes on
    where it stopped.

    Args:
        suite: What to export.
        directory: Where to; made if it does not exist. Holds ``annotation.jsonl``, ``export.json``
            (the settings) and ``videos/``.
        tasks: The first so many tasks, or these (twins are welcome); all by default.
        fps: Frames per second; by default the lowest usual rate at which a needle lasts four
            frames.
        size: (height, width) in pixels, even numbers.
        workers: Files encoded at a time.
        progress: Whether to show a progress bar.

    Returns:
        The path of ``annotation.jsonl``: one object per line with the keys id, video (relative),
        question, options, answer (a letter, null if nothing tells), segments ([start, end] in
        seconds), duration, task_type, and what the oracle knows.

    Raises:
        ValueError: If a needle would last less than two frames, the size is odd, or the directory
            holds an export with other settings.
    """
    height, width = size
    if height % 2 or width % 2 or min(size) < 16:
        raise ValueError(f"size={tuple(size)} must be even numbers of 16 or more, for H.264 4:2:0")
    fps = _frame_rate(suite.knobs.needle_s, fps)
    if tasks is None or isinstance(tasks, int):
        count = len(suite) if tasks is None else tasks
        if not 1 <= count <= len(suite):
            raise ValueError(f"tasks={tasks!r} must be 1..{len(suite)}, the size of the suite")
        chosen: Sequence[Task] = [suite[index] for index in range(count)]
    else:
        chosen = list(tasks)
    directory = Path(directory)
    videos = directory / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    _claim(directory, {**suite.settings(), "fps": fps, "size": list(size)})

    missing = [task for task in chosen if not (videos / f"{task.task_id}.mp4").exists()]
    frames = sum(_frame_count(task, fps) for task in missing)
    with (
        tqdm(total=frames, unit="frame", unit_scale=True, disable=not progress) as bar,
        ThreadPoolExecutor(max_workers=max(1, workers)) as pool,
    ):
        # Threads suffice: the encoder, which takes most of the time, runs outside the GIL.
        jobs = [
            pool.submit(
                encode,
                suite.open_video(task),
                videos / f"{task.task_id}.mp4",
                fps,
                size,
                bar.update,
            )
            for task in missing
        ]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    lines = [json.dumps(annotate(task, fps), ensure_ascii=False) + "\n" for task in chosen]
    annotation = directory / "annotation.jsonl"
    _write(annotation, "".join(lines))
    return annotation


def encode(
    video: HaystackVideo,
    path: Path,
    fps: int,
    size: tuple[int, int],
    advance: Callable[[int], Any] = lambda frames: None,
) -> None:
    """Encode a procedural video as H.264 in MP4; the file appears at ``path`` when complete."""
    height, width = size
    count = math.ceil(video.world.duration_s * fps)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = Fraction(1, fps)
            stream.codec_context.thread_count = 1
            keyframes = str(max(12, round(_KEYFRAME_S * fps)))
            stream.options = {"preset": "veryfast", "crf": "20", "g": keyframes}
            for first in range(0, count, _BATCH):
                places = range(first, min(count, first + _BATCH))
                batch = video.read(np.arange(places.start, places.stop) / fps, size=size).frames
                for place, pixels in zip(places, batch, strict=True):
                    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                    frame.pts, frame.time_base = place, Fraction(1, fps)
                    container.mux(stream.encode(frame))
                advance(len(places))
            container.mux(stream.encode())
        replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def annotate(task: Task, fps: int) -> dict[str, Any]:
    """Return the record of a task whose video was encoded at a frame rate."""
    duration_s = _frame_count(task, fps) / fps

    def on_frames(span: Span) -> list[float]:
        return [math.ceil(edge * fps) / fps for edge in span]

    answer = task.answer_index
    facts = dict(task.meta)
    facts["evidence"] = [on_frames(span) for span in facts["evidence"]]
    facts["scenes"] = [on_frames(span) for span in facts["scenes"]]
    return {
        "id": task.task_id,
        "video": f"videos/{task.task_id}.mp4",
        "question": task.question,
        "options": list(task.options),
        "answer": None if answer is None else string.ascii_uppercase[answer],
        "segments": [on_frames(span) for span in task.segments_s],
        "duration": duration_s,
        "task_type": task.task_types[0],
        **facts,
    }


def _frame_rate(needle_s: float, fps: int | None) -> int:
    if fps is None:
        enough = [rate for rate in FRAME_RATES if rate * needle_s >= NEEDLE_FRAMES]
        fps = enough[0] if enough else FRAME_RATES[-1]
    fps = int(checks.whole("fps", fps, 1, 240))
    if fps * needle_s < 2:
        raise ValueError(
            f"fps={fps} shows a needle of {needle_s:g} s for less than two frames; use "
            f"fps={math.ceil(2 / needle_s)} or more, or a longer needle_s"
        )
    return fps


def _frame_count(task: Task, fps: int) -> int:
    return math.ceil((task.duration_s or 0.0) * fps)


def _claim(directory: Path, settings: dict[str, Any]) -> None:
    """Note the settings in the directory, or check that they are the ones noted."""
    path = directory / _SETTINGS
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        _write(path, json.dumps(settings, indent=1) + "\n")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    differing = sorted(key for key in {*settings, *found} if settings.get(key) != found.get(key))
    if differing:
        key = differing[0]
        raise ValueError(
            f"{directory} holds an export with {key}={found.get(key)!r}, not "
            f"{settings.get(key)!r}; use another directory"
        )


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    replace(part, path)


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    parser = Parser(prog="longvideo export", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("directory", type=Path, help="where to write")
    parser.add_argument("--tasks", type=int, default=32, help="number of tasks")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of a video")
    parser.add_argument("--split", default="test", choices=SPLIT_SIZES, help="split")
    parser.add_argument("--families", default="all", help="families, comma separated")
    parser.add_argument("--fps", type=int, help="frames per second (so that needles last 4 frames)")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the suite")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="files at a time")
    parser.add_argument(
        "--knob",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="any other setting of HaystackSuite, such as --knob similarity=0.5; repeatable",
    )
    chosen = parser.parse_args(arguments)
    families = chosen.families if chosen.families == "all" else chosen.families.split(",")
    knobs = dict(_knob(text) for text in chosen.knob)
    checks.names("--knob: HaystackSuite", knobs, inspect.signature(HaystackSuite).parameters)
    suite = HaystackSuite(
        chosen.split,
        families=families,
        size=max(chosen.tasks, SPLIT_SIZES[chosen.split]),
        duration_s=chosen.minutes * 60,
        seed=chosen.seed,
        **knobs,
    )
    annotation = export_suite(
        suite,
        chosen.directory,
        tasks=chosen.tasks,
        fps=chosen.fps,
        size=(chosen.size, chosen.size),
        workers=chosen.workers,
        progress=True,
    )
    print(annotation)
    return 0


def _knob(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--knob {text!r} must read NAME=JSON")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value  # a bare word is a string


if __name__ == "__main__":
    sys.exit(main())
