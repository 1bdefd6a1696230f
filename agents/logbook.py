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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agents.keeping.directory import writing
from agents.model.chat import ChatCodec
from agents.trajectory import Trajectory
from gym_longvideo.command import CONFIG, write_config
from gym_longvideo.files import replace, write_whole
from gym_longvideo.rendering import draw_canvas, draw_text

_CONFIG_TAG = "config/text_summary"  # as TensorBoard names the text "config"


class Logbook:
    """Writes metrics, records and samples of a run.

    Args:
        directory: Of the run.
        step: Iterations done; what was written at or after it is cut off.

    Raises:
        ValueError: If metrics before it cannot be read.
        RunError: Like all methods, if something cannot be written.
    """

    def __init__(self, directory: str | Path, *, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.directory = Path(directory)
        for name in ("samples", "records"):
            with writing(self.directory / name):
                (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._metrics = self.directory / "metrics.jsonl"
        cut(self._metrics, step)
        board = self.directory / "tensorboard"
        with writing(board):
            cut_board(board, step)
            self._board = SummaryWriter(str(board))

    def config(self, values: Mapping[str, Any]) -> None:
        """Write the configuration."""
        with writing(self.directory / CONFIG):
            write_config(self.directory, values)
        self._board.add_text("config", f"```json\n{json.dumps(values, indent=2)}\n```")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an iteration; what is not finite becomes null."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        line = json.dumps({"step": step, **{name: finite.get(name) for name in metrics}})
        with writing(self._metrics):
            with self._metrics.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(line + "\n")
        with writing(self.directory / "tensorboard"):
            for name, value in finite.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def records(self, step: int, lines: Sequence[str]) -> None:
        """Write the records of an evaluation."""
        path = self.directory / "records" / f"eval-{step:06d}.jsonl"
        with writing(path):
            write_whole(path, "".join(f"{line}\n" for line in lines))

    def sample(self, step: int, name: str, trajectory: Trajectory, codec: ChatCodec) -> None:
        """Write an episode as text and as a picture with a row for each turn."""
        from PIL import Image

        text, picture = transcript(trajectory, codec), contact_sheet(trajectory)
        path = self.directory / "samples" / f"eval-{step:06d}-{name}"
        with writing(path):
            write_whole(path.with_suffix(".txt"), text + "\n")
            Image.fromarray(picture).save(path.with_suffix(".png"))
            self._board.add_text(f"sample/{name}", f"```\n{text}\n```", step)
            self._board.add_image(f"sample/{name}", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        with writing(self.directory / "tensorboard"):
            self._board.close()


def cut(path: Path, step: int) -> None:
    """Drop the lines of a metrics file from a step on, and a last line that was cut short.

    Raises:
        ValueError: If a line before them cannot be read, naming it; the file stays as it is.
    """
    if not path.is_file():
        return
    kept = []
    *lines, rest = path.read_bytes().split(b"\n")
    # What a kill cut short is the beginning of a line of ASCII; loss of power leaves zeros.
    if rest and not rest.isascii():
        lines.append(rest)
    elif lines and not lines[-1].strip(b"\0"):
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            before = json.loads(line.decode("utf-8"))["step"] < step
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "is no JSON object"
            raise ValueError(
                f"{path}, line {number}: {why} with a step ({error}); mend the line, or move the "
                "file elsewhere: the checkpoints are whole, and the run goes on without it"
            ) from None
        if not before:
            break
        kept.append(line + b"\n")
    write_whole(path, b"".join(kept).decode("utf-8"))


def cut_board(directory: Path, step: int) -> None:
    """Drop the events of TensorBoard files from a step on, and the configurations.

    Readers would do so themselves at a mark in the next file, but of scalars and images alone.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]
    from tensorboard.summary.writer.record_writer import RecordWriter

    for place, path in enumerate(sorted(directory.glob("events.out.tfevents.*"))):
        draft = path.with_name(f".{path.name}.part")
        kept = 0
        with draft.open("wb") as stream:
            writer = RecordWriter(stream)
            for raw in RawEventFileLoader(str(path)).Load():
                event = Event.FromString(raw)
                tags = {value.tag for value in event.summary.value}
                if not tags:
                    writer.write(raw)  # its version
                elif event.step < step and _CONFIG_TAG not in tags:
                    writer.write(raw)
                    kept += 1
        if not kept:
            path.unlink()
            draft.unlink()
            continue
        replace(draft, path)
        # Files are read in the order of their names, in which seconds come first, then process ids.
        replace(path, path.with_name(f"events.out.tfevents.{place:010}.earlier"))


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
