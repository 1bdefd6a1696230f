"""How fast and how lean: ratios against other ways to get the same frames, measured in one run.

``longvideo speed video [--quick] [--json FILE]`` makes hour-long 720p H.264 files (a
minute is encoded, its packets are then repeated with shifted timestamps), and times

* reset: opening the file and the first 16 of 128 pool frames at 224 pixels,
* episode: reset and two retrievals of 8 frames,

each with exact frames and with keyframes, against decord decoding the whole pool up front (as the
reference implementation does), and against decord, torchcodec and textbook PyAV decoding just the
same frames. Ours reads with two threads, its default; decord takes all cores by default, and for
torchcodec and textbook PyAV the faster of one thread and all cores counts. Like goes with like in
the comparison with the floor: one reader in one thread, against the frames between keyframe and
target times what one frame costs in plain sequential decoding on one core. Contenders take turns,
each in a process of its own; medians count. Absolute seconds depend on the machine, ratios hardly:
only ratios are reported, the worst over the files. What drawn videos cost is in ``steps.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.speed.films import FPS, GROUPS, make_film
from benchmarks.speed.steps import SIDES, run_haystack, run_vector
from gym_longvideo.command import Parser, as_command
from gym_longvideo.files import write_whole
from gym_longvideo.video import FramePool, open_video

SIDE, POOL = 224, 128
# Pool slots of the overview and of two retrievals, one inside the other.
TURNS = (tuple(range(4, 128, 8)), tuple(range(40, 72, 4)), tuple(range(50, 58)))
# Rivals, and the numbers of threads of which the faster counts; 0 for all cores.
RIVALS = {"decord": (0,), "torchcodec": (1, 0), "textbook_pyav": (1, 0)}
Turns = Sequence[Sequence[float]]


# -- the contenders: each returns the seconds it took -------------------------------------------


def run_ours(path: str, seek: str, turns: int, threads: int = 2) -> dict[str, Any]:
    """Open the file and read the pool as an episode does."""
    started = time.perf_counter()
    video = open_video(path, threads=threads)
    pool = FramePool(video, size=POOL, frame_size=(SIDE, SIDE), seek=seek)  # type: ignore
    shown: list[list[float]] = []
    seen: set[int] = set()
    for slots in TURNS[:turns]:
        batch = pool.read(slots)
        shown.append([t for t, s in zip(batch.actual_s, slots, strict=True) if s not in seen])
        seen.update(slots)
    seconds = time.perf_counter() - started
    video.close()
    return {"seconds": seconds, "shown": shown}


def run_pool_upfront(path: str) -> dict[str, Any]:
    """Decode the whole pool with decord, as the reference implementation does at reset."""
    import decord

    started = time.perf_counter()
    reader = decord.VideoReader(path, width=SIDE, height=SIDE)
    indices = np.linspace(0, len(reader) - 1, POOL).astype(int)
    reader.get_batch(indices.tolist()).asnumpy()
    seconds = time.perf_counter() - started
    reader.seek(0)  # or it goes on decoding while the others are measured
    return {"seconds": seconds}


def run_decord(path: str, shown: Turns, threads: int = 0) -> dict[str, Any]:
    """Decode the same frames with decord in its default settings."""
    import decord

    started = time.perf_counter()
    reader = decord.VideoReader(path, width=SIDE, height=SIDE, num_threads=threads)
    for times in shown:
        reader.get_batch([round(t * FPS) for t in times]).asnumpy()
    seconds = time.perf_counter() - started
    reader.seek(0)
    return {"seconds": seconds}


def run_torchcodec(path: str, shown: Turns, threads: int = 1) -> dict[str, Any]:
    """Decode the same frames with torchcodec, in its faster, approximate mode (right here)."""
    from torchcodec.decoders import VideoDecoder  # type: ignore

    from gym_longvideo.video.picture import resize

    out = np.empty((SIDE, SIDE, 3), np.uint8)
    started = time.perf_counter()
    decoder = VideoDecoder(
        path, seek_mode="approximate", num_ffmpeg_threads=threads, dimension_order="NHWC"
    )
    for times in shown:
        for pixels in decoder.get_frames_played_at([t + 0.5 / FPS for t in times]).data.numpy():
            resize(pixels, out)
    return {"seconds": time.perf_counter() - started}


def run_textbook_pyav(path: str, shown: Turns, threads: int = 1) -> dict[str, Any]:
    """Decode the same frames with PyAV as tutorials do: seek, decode up to the frame, convert."""
    import av

    started = time.perf_counter()
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "AUTO", threads  # type: ignore
        for times in shown:
            for moment in times:
                container.seek(round(moment / stream.time_base), stream=stream)  # type: ignore
                for frame in container.decode(stream):
                    if frame.time >= moment - 0.5 / FPS:
                        frame.to_ndarray(format="rgb24", width=SIDE, height=SIDE)
                        break
    return {"seconds": time.perf_counter() - started}


def run_floor(path: str, shown: Turns) -> dict[str, Any]:
    """Time sequential decoding per frame, times the frames between keyframe and target."""
    import av

    frames = 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1  # type: ignore
        started = time.perf_counter()
        for _ in container.decode(stream):
            frames += 1
            if frames == 900:
                break
        per_frame = (time.perf_counter() - started) / frames
        base = float(stream.time_base)  # type: ignore
        keys = [e.timestamp * base for e in stream.index_entries if e.is_keyframe]
    keyed = np.array(keys) - keys[0]
    wanted = np.array([t for times in shown for t in times]) + 0.5 / FPS
    group = np.searchsorted(keyed, wanted, side="right") - 1
    # Targets of one group of pictures share one run from its keyframe to the last of them.
    distance = sum((wanted[group == g].max() - keyed[g]) * FPS // 1 + 1 for g in np.unique(group))
    return {"seconds": per_frame * distance}


def run_peak_memory(path: str) -> dict[str, Any]:
    """Reset the environment on the file, in this fresh process; peak resident megabytes."""
    env = _file_env(_annotate([Path(path)]), frame_size=SIDE, seek="exact")
    env.reset(seed=0)
    env.close()
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return {"mb": int(line.split()[1]) / 1024}
    raise RuntimeError("no VmHWM in /proc/self/status")


def run_memory_growth(path: str, episodes: int, files: int) -> dict[str, Any]:
    """Play episodes over many files; resident megabytes at the end less those at a tenth."""
    source, folder = Path(path), Path(path).parent / "many"
    folder.mkdir(exist_ok=True)
    copies = [folder / f"{i}.mp4" for i in range(files)]
    for copy in copies:
        if not copy.exists():
            copy.write_bytes(source.read_bytes())
    env = _file_env(_annotate(copies), frame_size=SIDE, seek="keyframe")
    env.action_space.seed(0)
    resident = {}
    for episode in range(1, episodes + 1):
        env.reset(seed=0 if episode == 1 else None)
        ended = False
        while not ended:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
        if episode in (episodes // 10, episodes):
            resident[episode] = _resident_mb()
    env.close()
    return {"mb": resident[episodes] - resident[episodes // 10]}


RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "ours": run_ours,
    "pool_upfront": run_pool_upfront,
    "decord": run_decord,
    "torchcodec": run_torchcodec,
    "textbook_pyav": run_textbook_pyav,
    "floor": run_floor,
    "peak_memory": run_peak_memory,
    "memory_growth": run_memory_growth,
    "haystack": run_haystack,
    "vector": run_vector,
}


def _file_env(annotation: Path, **kwargs: Any) -> Any:
    import gymnasium as gym

    return gym.make(
        "gym_longvideo:LongVideoQA-v0", suite=str(annotation), frame_budget=32, **kwargs
    )


def _annotate(files: Sequence[Path]) -> Path:
    task = {"question": "Which?", "options": ["a", "b"], "answer": "A"}
    lines = [json.dumps({"id": f.stem, "video": f.name, **task}) for f in files]
    path = files[0].parent / "speed.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# -- taking turns -------------------------------------------------------------------------------


class Contender:
    """A process that runs one of ``RUNS`` on request; imports happen before the clock starts."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.video", "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )

    def run(self, **arguments: Any) -> dict[str, Any] | None:
        """Return what the run returned; ``None`` if it failed or its library is absent."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(arguments) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline() or "null")
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def serve(name: str) -> None:
    """Answer the requests of a ``Contender``."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print
    if name in ("decord", "pool_upfront"):
        import decord  # noqa: F401
    elif name == "torchcodec":
        import torchcodec.decoders  # type: ignore  # noqa: F401
    else:
        import av  # noqa: F401
    for line in sys.stdin:
        replies.write(json.dumps(RUNS[name](**json.loads(line))) + "\n")
        replies.flush()


def once(name: str, **arguments: Any) -> dict[str, Any] | None:
    """Run one of ``RUNS`` in a fresh process."""
    contender = Contender(name)
    found = contender.run(**arguments)
    contender.close()
    return found


def race(path: Path, repeats: int, progress: tqdm) -> dict[str, float]:
    """Time all rows of one file; return median seconds by "row/contender"."""
    taken: dict[str, list[float]] = {}
    names = ("ours", "pool_upfront", "floor", *RIVALS)
    contenders = {name: Contender(name) for name in names}

    def take(key: str, name: str, **arguments: Any) -> dict[str, Any] | None:
        found = contenders[name].run(path=str(path), **arguments)
        if found is not None:
            taken.setdefault(key, []).append(found["seconds"])
        progress.update()
        return found

    contenders["ours"].run(path=str(path), seek="keyframe", turns=1)  # warms the page cache
    for _ in range(repeats):
        take("pool/pool_upfront", "pool_upfront")
        for turn, turns in (("reset", 1), ("episode", len(TURNS))):
            for seek in ("exact", "keyframe"):
                row = f"{turn}_{seek}"
                ours = take(f"{row}/ours", "ours", seek=seek, turns=turns)
                assert ours is not None
                for name, counts in RIVALS.items():
                    for threads in counts:
                        key = f"{row}/{name}@{threads}"
                        take(key, name, shown=ours["shown"], threads=threads)
                if seek == "exact":
                    take(f"{row}/one_thread", "ours", seek=seek, turns=turns, threads=1)
                    take(f"{row}/floor", "floor", shown=ours["shown"])
    for contender in contenders.values():
        contender.close()
    medians: dict[str, float] = {}
    for key, values in taken.items():
        name = key.partition("@")[0]
        medians[name] = min(statistics.median(values), medians.get(name, float("inf")))
    return medians


def runs_per_repeat() -> int:
    """How many runs ``race`` makes, per repeat: for its progress bar."""
    return 1 + 4 * (1 + sum(map(len, RIVALS.values()))) + 2 * 2


def compare(medians: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Turn median seconds per file into ratios, the worst over the files.

    >>> found = compare([{"reset_exact/ours": 2.0, "pool/pool_upfront": 30.0,
    ...     "reset_exact/one_thread": 2.0, "reset_exact/floor": 4.0}])
    >>> found["reset_exact_vs_pool_upfront"], found["reset_exact_vs_floor"]
    (15.0, 0.5)
    """
    ratios: dict[str, float | None] = {}
    for row in ("reset_exact", "reset_keyframe", "episode_exact", "episode_keyframe"):
        for name in ("pool_upfront", *RIVALS, "floor"):
            key = "pool/pool_upfront" if name == "pool_upfront" else f"{row}/{name}"
            own = f"{row}/one_thread" if name == "floor" else f"{row}/ours"
            pairs = [(m[own], m[key]) for m in medians if key in m and own in m]
            if name != "floor":
                ratios[f"{row}_vs_{name}"] = min((b / a for a, b in pairs), default=None)
            elif pairs:
                ratios[f"{row}_vs_floor"] = max(a / b for a, b in pairs)
    return ratios


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line."""
    parser = Parser(prog="longvideo speed video", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="10-minute files, fewer repeats")
    parser.add_argument("--directory", type=Path, default=Path("runs/speed"), help="for the files")
    parser.add_argument("--serve", choices=RUNS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.serve:
        serve(chosen.serve)
        return 0
    quick = chosen.quick
    minutes, unit_s, repeats = (10, 30, 3) if quick else (60, 60, 3)
    films = [
        make_film(chosen.directory / f"{g}-{minutes}m.mp4", g, unit_s=unit_s, minutes=minutes)
        for g in GROUPS
    ]
    with tqdm(
        total=repeats * runs_per_repeat() * len(films), desc="taking turns", unit="run"
    ) as progress:
        medians = [race(film, repeats, progress) for film in films]
    found: dict[str, Any] = dict(compare(medians))
    peaks = [once("peak_memory", path=str(film)) for film in films]
    found["peak_rss_mb"] = max((p["mb"] for p in peaks if p), default=None)
    small = make_film(chosen.directory / "small.mp4", "gop48", unit_s=10, minutes=1)
    growth = once(
        "memory_growth", path=str(small), episodes=100 if quick else 500, files=10 if quick else 50
    )
    found["rss_growth_mb"] = growth and growth["mb"]
    rates = once("haystack", seconds=3.0 if quick else 10.0)
    found["haystack_steps_vs_noop"] = rates and rates["ratio"]
    for side in SIDES:
        ratios = once("vector", side=side, rounds=5 if quick else 15) or {}
        for rival in ("sync", "async"):
            found[f"vector_{side}px_vs_{rival}"] = ratios.get(rival)
    print("Ours and rivals may use all cores; vs_floor compares one thread with one core.")
    # Not for print: seconds belong to this machine.
    seconds = {film.stem: m for film, m in zip(films, medians, strict=True)}
    for key, value in found.items():
        print(f"{key:40s} {'absent' if value is None else format(value, '.2f')}")
    if chosen.json:
        text = json.dumps(found | {"median_seconds": seconds}, indent=2)
        write_whole(chosen.json, text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
