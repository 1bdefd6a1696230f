"""Training runs of the study: several at a time, each resumable by being done or not.

A run that is finished has a ``.json`` file, and is never done again; one that was cut off leaves
none, and starts over. What a run writes on the way (log, metrics) lies in a directory beside it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from examples.study.plan import ARMS, BATCH, HELD_OUT, Run

# Of every update, under the names of the log.
CURVES = {
    "return": "charts/return",
    "accuracy": "charts/accuracy",
    "turns": "charts/turns",
    "retrieval_rate": "charts/retrieval_rate",
    "malformed_rate": "charts/malformed_rate",
    "iou_gain": "charts/iou_gain",
    "bonus": "charts/bonus",
    "kl": "losses/ref_kl",
}


def path_of(run: Run, out: Path) -> Path:
    """Return where a finished run is described."""
    return out / "runs" / f"{run.name}.json"


def load(path: Path) -> dict[str, Any] | None:
    """Return a finished run, or None if there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def settings_of(run: Run, updates: int, batch: int) -> str:
    """Return a digest of all that a run follows from: its settings, and the weights it starts from.

    Args:
        run: Which arm and seed.
        updates: As ``train`` takes them.
        batch: As ``train`` takes it.
    """
    arm = ARMS[run.arm]
    stages = stages_of(run, updates)
    config = arm.config(run.seed, Path(), updates=stages[-1], batch=batch).to_json()
    del config["out"], config["model"]
    weights = hashlib.sha256((arm.start / "model.safetensors").read_bytes()).hexdigest()
    text = json.dumps([config, weights, list(stages)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def stages_of(run: Run, updates: int) -> tuple[int, ...]:
    """Return after how many updates a run is examined; ``updates`` other than 0 for just that."""
    return (updates,) if updates else ARMS[run.arm].stages_of_training


def train(run: Run, out: Path, updates: int = 0, batch: int = BATCH) -> dict[str, Any] | None:
    """Train one arm with one seed, examine it on the way, and write the result.

    Args:
        run: Which arm and seed.
        out: Directory of the study.
        updates: Of the policy; 0 for as many as the plan says.
        batch: Episodes of an update.

    Returns:
        The result, or None if a signal cut the run off.
    """
    from agents.trainer import Trainer

    directory = out / "runs" / run.name
    shutil.rmtree(directory, ignore_errors=True)
    began, examined_s, exams = time.monotonic(), 0.0, []
    for stage in stages_of(run, updates):
        # A stage goes on from the checkpoint of the one before, which repeats and loses nothing.
        config = ARMS[run.arm].config(run.seed, directory, updates=stage, batch=batch)
        trainer = Trainer(replace(config, resume=str(directory) if exams else ""))
        trainer.run()
        if trainer.stopped_by:
            return None
        text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        paused = time.monotonic()
        cost = {
            "updates": stage,
            "episodes": stage * batch,
            "tokens_read": _total(lines, "perf/prefill_tokens_per_second"),
            "tokens_written": _total(lines, "perf/tokens_per_second"),
            "train_s": round(paused - began - examined_s, 1),
        }
        exams.append({**cost, **examine(trainer)})
        examined_s += time.monotonic() - paused
    result = {
        "arm": run.arm,
        "seed": run.seed,
        "settings": settings_of(run, updates, batch),
        "exams": exams,
        "curve": [{name: line.get(key) for name, key in CURVES.items()} for line in lines],
    }
    for checkpoint in directory.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # 20 MB each
    path = path_of(run, out)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(result, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, path)
    return result


def examine(trainer: Any) -> dict[str, float | None]:
    """Play held-out questions greedily and return what they say.

    Beside what every evaluation says: ``paper_return``, the return under the paper's reward,
    whatever the arm was trained on; ``proved``, the share of episodes whose frames proved the
    answer; ``needless``, retrievals in an episode after the answer was proved; and ``width``, mean
    pool frames that a retrieval spans, None if there was none.
    """
    from agents.rollout import RolloutCollector, play
    from agents.trajectory import Trajectory
    from gym_longvideo.haystack import oracle
    from gym_longvideo.record import rescore

    config = trainer.config
    envs = [config.make_env(config.eval_split) for _ in range(64)]
    suite = envs[0].unwrapped.suite  # type: ignore[attr-defined]
    count = min(config.eval_episodes, len(suite))
    paper: list[float] = []
    proved: list[bool] = []
    needless, widths = 0, []

    def look_closer(episodes: Sequence[Trajectory]) -> None:
        nonlocal needless
        for episode in episodes:
            record = episode.record
            assert record is not None
            task = suite[suite.index_of(record.task["task_id"])]
            paper.append(math.fsum(row.total for row in rescore(record, "video_mtr")))
            shown = list(record.overview["shown_s"])
            for turn in record.turns:
                if turn["op"] == "retrieve":
                    needless += oracle.solve(task, shown) is not None
                    low, high = turn["interval"]
                    widths.append(high - low + 1)
                shown += turn["shown_s"]
            proved.append(oracle.solve(task, shown) is not None)

    trainer.policy.encoder.clear()
    history = config.ppo.history
    collector = RolloutCollector(envs, trainer.policy, history=history, keep_records=True)
    result = play(collector, range(count), config.sampling, keep=look_closer).result()
    collector.close()
    return {
        "held_out": count,
        "accuracy": result.accuracy,
        "return": result.mean_return,
        "paper_return": math.fsum(paper) / count,
        "turns": result.turns,
        "frames": result.frames,
        "retrieval_rate": result.retrieval_rate,
        "malformed_rate": result.malformed_rate,
        "iou_gain": result.iou_gain,
        "proved": sum(proved) / count,
        "needless": needless / count,
        "width": sum(widths) / len(widths) if widths else None,
    }


def run_all(
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int,
    updates: int = 0,
    batch: int = BATCH,
) -> Iterator[dict[str, Any] | BaseException]:
    """Do the runs that are not done yet, several at a time, and yield each result.

    A run that fails is yielded as its exception; the others go on.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM; what was finished stays.
    """
    (out / "runs").mkdir(parents=True, exist_ok=True)
    waiting = [run for run in runs if load(path_of(run, out)) is None]
    bar = tqdm(
        total=round(sum(ARMS[run.arm].cost for run in waiting), 1),
        desc="study",
        bar_format="{desc} |{bar:20}| {n:.1f}/{total:.1f} runs' worth, {remaining} left{postfix}",
    )
    busy: dict[Any, Run] = {}
    with (
        bar,
        _stoppable(),
        ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_quiet, initargs=(out,)
        ) as pool,
    ):
        try:
            while waiting or busy:
                while waiting and len(busy) < jobs:
                    run = waiting.pop(0)
                    busy[pool.submit(train, run, out, updates, batch)] = run
                done, _ = wait(busy, return_when=FIRST_COMPLETED)
                for future in done:
                    run = busy.pop(future)
                    failure = future.exception()
                    result = failure or future.result()
                    if result is None:
                        raise KeyboardInterrupt
                    bar.update(ARMS[run.arm].cost)
                    bar.set_postfix_str(f", {run.name} {'failed' if failure else 'done'}")
                    yield result
        except BaseException:
            for process in (pool._processes or {}).values():  # they may not have got the signal
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def seconds_of(run: Run, out: Path, batch: int = BATCH) -> float:
    """Return the seconds that a run as planned takes, from a small one made now.

    Raises:
        KeyboardInterrupt: If a signal cut it off.
    """
    from agents.trainer import Trainer

    directory = out / "estimate"
    shutil.rmtree(directory, ignore_errors=True)
    trainer = Trainer(ARMS[run.arm].config(run.seed, directory, updates=2, batch=16))
    began = time.monotonic()
    trainer.run()
    seconds = time.monotonic() - began
    shutil.rmtree(directory, ignore_errors=True)
    if trainer.stopped_by:
        raise KeyboardInterrupt
    # Where it retrieves, an update takes about 1.5 times as long; an examination has no update.
    *_, last = stages = ARMS[run.arm].stages_of_training
    return seconds / 32 * (1.5 * last * batch + len(stages) * HELD_OUT / 3)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C, so that no worker is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _quiet(out: Path) -> None:
    """Send what a worker says to a file, so that one bar is seen and not several."""
    stream = (out / "runs" / f"worker-{os.getpid()}.log").open("a", encoding="utf-8")
    os.dup2(stream.fileno(), sys.stderr.fileno())


def _total(lines: Sequence[dict[str, Any]], rate: str) -> int:
    """Return how many tokens there were, from rates and seconds."""
    return round(sum(line[rate] * line["time/rollout"] for line in lines))
