"""Logbook: what a run leaves behind for people to look at.

    out/
        config.json       the configuration
        metrics.jsonl     one line an iteration: what the policy did before its step-th update
        tensorboard/      the same as scalars, and the sample episodes
        samples/          sample episodes of evaluations, as text and as pictures
        records/          all episodes of evaluations, one EpisodeRecord a line

A run that is resumed cuts off what was written after its checkpoint, so nothing is there twice.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agents.model.chat import ChatCodec
from agents.trajectory import Trajectory
from gym_longvideo.command import write_config
from gym_longvideo.rendering import draw_canvas, draw_text


class Logbook:
    """Writes metrics, records and samples of a run.

    Args:
        directory: Of the run.
        step: Iterations done; what was written at or after it is cut off.
    """

    def __init__(self, directory: str | Path, *, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.directory = Path(directory)
        for name in ("samples", "records"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._metrics = self.directory / "metrics.jsonl"
        cut(self._metrics, step)
        self._board = SummaryWriter(
            str(self.directory / "tensorboard"), purge_step=step if step else None
        )

    def config(self, values: Mapping[str, Any]) -> None:
        """Write the configuration."""
        write_config(self.directory, values)
        self._board.add_text("config", f"```json\n{json.dumps(values, indent=2)}\n```")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an iteration; what is not finite becomes null."""
        line = {"step": step}
        for name, value in metrics.items():
            finite = math.isfinite(value)
            line[name] = value if finite else None  # type: ignore[assignment]
            if finite:
                self._board.add_scalar(name, value, step)
        with self._metrics.open("a") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")
        self._board.flush()

    def records(self, step: int, lines: Sequence[str]) -> None:
        """Write the records of an evaluation."""
        path = self.directory / "records" / f"eval-{step:06d}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines))

    def sample(self, step: int, name: str, trajectory: Trajectory, codec: ChatCodec) -> None:
        """Write an episode as text and as a picture with a row for each turn."""
        from PIL import Image

        text, picture = transcript(trajectory, codec), contact_sheet(trajectory)
        path = self.directory / "samples" / f"eval-{step:06d}-{name}"
        path.with_suffix(".txt").write_text(text + "\n")
        Image.fromarray(picture).save(path.with_suffix(".png"))
        self._board.add_text(f"sample/{name}", f"```\n{text}\n```", step)
        self._board.add_image(f"sample/{name}", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._board.close()


def run_directory(out: str, resumed: Path | None) -> Path:
    """Return where a run writes: ``out``, beside the checkpoint it goes on from, or under runs/.

    Raises:
        ValueError: If another run has written there.
    """
    if out:
        path = Path(out)
    elif resumed is not None:
        path = resumed.parent
    else:
        path = Path("runs", datetime.now().strftime("train-%Y%m%d-%H%M%S"))
    if resumed is None and (path / "metrics.jsonl").exists():
        raise ValueError(
            f"out={str(path)!r} holds a run already; pass resume={str(path)!r} to go on with it, "
            "or another out="
        )
    return path


def cut(path: Path, step: int) -> None:
    """Drop the lines of a metrics file from a step on, and a last line that was cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            before = json.loads(line)["step"] < step
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if before:
            kept.append(line + "\n")
    draft = path.with_name(f".{path.name}.part")
    draft.write_text("".join(kept))
    os.replace(draft, path)


def transcript(trajectory: Trajectory, codec: ChatCodec) -> str:
    """Return the dialogue of an episode that was played with records."""
    played, record = trajectory.played, trajectory.record
    if played is None or record is None:
        raise ValueError("the episode has no record; collect it with keep_records=True")
    lines = [draw_text(played), ""]
    shown = [record.overview, *record.turns]
    for k, turn in enumerate(trajectory.turns):
        indices = shown[k]["frame_index"]
        lines.append(f"turn {k + 1}: {len(indices)} frames {indices}")
        lines.append(f"  reply: {codec.text(turn.reply.ids)!r}")
        lines.append(
            f"  earned {turn.earned:+.3f}" + (f" ({turn.malformed})" * bool(turn.malformed))
        )
    lines.append(f"outcome: {trajectory.outcome}, return {trajectory.episode_return:+.3f}")
    return "\n".join(lines)


def contact_sheet(trajectory: Trajectory) -> np.ndarray:
    """Return (360 * turns, 640, 3) uint8: what each turn of an episode was shown."""
    from PIL import Image

    played = trajectory.played
    if played is None:
        raise ValueError("the episode has no record; collect it with keep_records=True")
    times = [played.overview_shown_s, *(turn.shown_s for turn in played.turns)]
    rows = []
    for k in range(len(trajectory.turns)):
        count = len(times[k])  # the rest is padding
        canvas = draw_canvas(played, trajectory.frames[k][:count], np.asarray(times[k]))
        rows.append(
            np.asarray(Image.fromarray(canvas).resize((640, 360), Image.Resampling.LANCZOS))
        )
    return np.concatenate(rows)


class Progress:
    """A progress bar over iterations or seconds, whichever will be used up first.

    Args:
        iterations: In all; 0 for no limit.
        seconds: From now on; 0 for no limit.
        step: Iterations done already.
        quiet: Show nothing.
    """

    def __init__(
        self, iterations: int, seconds: float, *, step: int = 0, quiet: bool = False
    ) -> None:
        self.iterations, self.seconds, self.first = iterations, seconds, step
        self._began, self._done = time.monotonic(), step
        self._phase = ""
        self._bar = tqdm(
            total=1.0,
            bar_format="|{bar:20}| {desc}",
            disable=quiet,
            mininterval=0.5,
            dynamic_ncols=True,
        )
        self._numbers = ""
        self._show()

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """Say what is going on."""
        self._phase = f"{name} {done}/{total}" if total else name
        self._show()

    def step(self, done: int, **numbers: float) -> None:
        """Count iterations and show the main numbers."""
        self._done = done
        shown = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self._numbers = ", ".join(f"{name} {value:.3g}" for name, value in shown.items())
        self._show()

    def left_s(self) -> float:
        """Return the seconds that are left, NaN before the first iteration tells."""
        spent, done = time.monotonic() - self._began, self._done - self.first
        limits = [self.seconds - spent] if self.seconds else []
        if self.iterations and done:
            limits.append((self.iterations - self._done) * spent / done)
        return max(0.0, min(limits)) if limits else math.nan

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _show(self) -> None:
        spent = time.monotonic() - self._began
        shares = [spent / self.seconds] if self.seconds else []
        if self.iterations:
            shares.append(self._done / self.iterations)
        self._bar.n = min(1.0, max(shares))
        of = f"/{self.iterations}" if self.iterations else ""
        left = self.left_s()
        ending = "" if math.isnan(left) else f", {tqdm.format_interval(left)} left"
        words = (f"iteration {self._done}{of}{ending}", self._numbers, self._phase)
        self._bar.set_description_str(" - ".join(filter(None, words)), refresh=False)
        self._bar.update(0)
