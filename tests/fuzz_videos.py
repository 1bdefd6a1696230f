"""Damaged videos, thousands of them, through every backend: frames or a ``VideoError``.

    make fuzz
    python tests/fuzz_videos.py --mutants 3000 --backends pyav decord --videos DIRECTORY

A mutant is a small film with bytes changed at its ends or anywhere, cut short, or with a span
repeated or blanked. Films are those of ``clips.py``, and the first seconds of every file in
``--videos``. A worker process opens and reads each mutant; that it never dies, that nothing but a
``VideoError`` leaves it, and that it always answers, is what is tested. Of mutants that FFmpeg
decodes from beginning to end without an error, nearly all must give frames. Every mutant depends
on ``--seed`` and its number alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import av
import av.error
import clips
import numpy as np
from tqdm import tqdm

from gym_longvideo.video import BACKENDS, VideoError, open_video

REAL_VIDEOS = Path(__file__).parents[2] / "shared" / "data" / "videos"
EXCERPT_S = 2.0
READ_DEADLINE_S = 20.0
# Opening may take a minute, and a child process some seconds to start and to end.
HANG_S = 60.0 + READ_DEADLINE_S + 10.0
LEAST_FRAMES = 0.95
KINDS = ("ends", "body", "cut", "repeated", "blanked")
OUTCOMES = ("frames", "VideoError", "escaped", "hang", "crash")


def films(videos: Path | None, folder: Path) -> list[Path]:
    """Return the films that mutants are made of."""
    library = clips.Library(folder)
    # Neither a bare stream nor sound is a film to begin with.
    found = [library[name] for name in clips.CATALOG if name not in ("raw.h264", "sound.m4a")]
    for path in sorted(videos.iterdir()) if videos is not None and videos.is_dir() else ():
        try:
            found.append(excerpt(path, folder / path.name))
        except av.error.FFmpegError:
            continue  # not a video: notes lie beside them
    return found


def excerpt(source: Path, path: Path) -> Path:
    """Copy the first seconds of a film's pictures."""
    with av.open(str(source)) as reader, av.open(str(path), "w") as writer:
        stream = reader.streams.best("video")
        target = writer.add_stream_from_template(stream)  # type: ignore[arg-type]
        for packet in reader.demux(stream):
            if packet.dts is None or packet.dts * packet.time_base > EXCERPT_S:
                break
            packet.stream = target
            writer.mux(packet)
    return path


def mutate(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Return a film with one kind of damage."""
    size = len(content)
    start = int(rng.integers(size))
    span = content[start : start + int(rng.integers(1, 4096))]
    if kind == "cut":
        return content[: max(1, start)]
    if kind == "repeated":
        return content[:start] + span + content[start:]
    if kind == "blanked":
        return content[:start] + bytes(len(span)) + content[start + len(span) :]
    changed = bytearray(content)
    reach = min(size, 1024) if kind == "ends" else size
    for _ in range(int(rng.integers(1, 33))):
        place = int(rng.integers(reach))
        if kind == "ends" and rng.random() < 0.5:
            place = size - 1 - place
        changed[place] = int(rng.integers(256))
    return bytes(changed)


# -- the worker ------------------------------------------------------------------------------------


def attempt(path: str, backend: str, isolate: bool) -> tuple[str, str]:
    """Open and read a file; return the outcome and what was said."""
    try:
        video = open_video(path, backend=backend, isolate=isolate)
        try:
            times = np.linspace(0, video.info.duration_s, 5)
            for tolerance_s in (0.0, float("inf")):
                video.read(
                    times, size=(48, 64), tolerance_s=tolerance_s, deadline_s=READ_DEADLINE_S
                )
        finally:
            video.close()
    except VideoError as error:
        return "VideoError", f"{type(error).__name__}: {error.reason}"
    except Exception as error:
        return "escaped", f"{type(error).__name__}: {error}"
    return "frames", ""


def plays(path: str) -> bool:
    """Tell whether FFmpeg decodes all of a file without an error."""
    try:
        with av.open(path, options={"protocol_whitelist": "file"}) as container:
            stream = container.streams.best("video")
            if stream is None:
                return False
            stream.codec_context.thread_count = 1
            return sum(1 for _ in container.decode(stream)) > 1
    except Exception:
        return False


def serve() -> None:
    """Answer requests, one a line, until there are no more."""
    logging.disable()
    for line in sys.stdin:
        request = json.loads(line)
        reply: Any = plays(**request) if len(request) == 1 else attempt(**request)
        print(json.dumps(reply), flush=True)


class Worker:
    """A process that may hang or die."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """Return the reply, or "hang" or "crash"; after these the worker is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                if not selector.select(HANG_S):
                    return "hang"
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            return "crash"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


# -- the run ---------------------------------------------------------------------------------------


def available(backends: list[str], film: Path) -> list[tuple[str, bool]]:
    """Return (backend, apart) of those backends that can be used here."""
    found = []
    for backend in backends:
        name, _, apart = backend.partition("-")
        if attempt(str(film), name, bool(apart))[0] == "frames":
            found.append((name, bool(apart)))
        else:
            print(f"{backend}: not here")
    return found


def run(mutants: int, seed: int, backends: list[str], videos: Path | None) -> int:
    """Make and read all mutants; print a table; return 0 if all is well."""
    tally: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    playable: Counter[str] = Counter()
    given: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    slowest = 0.0, ""
    with tempfile.TemporaryDirectory() as folder:
        originals = films(videos, Path(folder))
        chosen = available(backends, Path(folder) / "cfr.mp4")
        worker = Worker()
        for number in tqdm(range(mutants), "reading", unit="mutant", mininterval=5):
            rng = np.random.default_rng([seed, number])
            original = originals[int(rng.integers(len(originals)))]
            kind = KINDS[number % len(KINDS)]
            path = Path(folder) / f"mutant-{original.name}"
            path.write_bytes(mutate(original.read_bytes(), kind, rng))
            good = worker.ask(path=str(path))
            if isinstance(good, str):  # FFmpeg itself does not survive it
                worker.close()
                worker, good = Worker(), False
            for name, apart in chosen:
                label = f"{name}-apart" if apart else name
                started = time.monotonic()
                reply = worker.ask(path=str(path), backend=name, isolate=apart)
                slowest = max(slowest, (time.monotonic() - started, f"{original.name} {number}"))
                outcome, said = (reply, "") if isinstance(reply, str) else reply
                tally[label, kind][outcome] += 1
                if outcome in ("hang", "crash"):
                    worker.close()
                    worker = Worker()
                if outcome in OUTCOMES[2:]:
                    tqdm.write(f"{outcome}: {label} {original.name} {kind} {number} {said}")
                if good:
                    playable[label] += 1
                    given[label] += outcome == "frames"
                    if outcome != "frames" and label == "pyav":
                        refused[said.partition("(")[0][:80]] += 1
            path.unlink()
        worker.close()
    return report(tally, playable, given, refused, slowest)


def report(
    tally: dict[tuple[str, str], Counter[str]],
    playable: Counter[str],
    given: Counter[str],
    refused: Counter[str],
    slowest: tuple[float, str],
) -> int:
    """Print what became of the mutants; return 0 if all is well."""
    print(f"{'backend':14s}{'damage':10s}" + "".join(f"{name:>12s}" for name in OUTCOMES))
    for (label, kind), found in sorted(tally.items()):
        print(f"{label:14s}{kind:10s}" + "".join(f"{found[name]:12d}" for name in OUTCOMES))
    for label in sorted(playable):
        share = given[label] / playable[label]
        print(f"{label}: of {playable[label]} that FFmpeg plays, {share:.1%} give frames")
    for reason, count in refused.most_common(8):
        print(f"  refused {count}: {reason}")
    print(f"slowest: {slowest[0]:.1f} s, {slowest[1]}")
    bad = sum(found[name] for found in tally.values() for name in OUTCOMES[2:])
    # The others are refused what they are known to get wrong.
    short = playable["pyav"] and given["pyav"] < LEAST_FRAMES * playable["pyav"]
    return int(bool(bad or short))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mutants", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    choices = ["pyav", "pyav-apart", *BACKENDS[1:]]
    parser.add_argument("--backends", nargs="+", choices=choices, default=choices)
    parser.add_argument("--videos", type=Path, default=REAL_VIDEOS, help="more films to damage")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve()
        return 0
    return run(chosen.mutants, chosen.seed, chosen.backends, chosen.videos)


if __name__ == "__main__":
    sys.exit(main())
