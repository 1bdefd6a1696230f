"""Runs on disk: one line an episode, written as it ends, and never twice.

    RUN/
      card.json       the protocol card
      records.jsonl   one EpisodeRecord a line
      costs.jsonl     what each of them cost, written before the record
      faults.jsonl    what broke; no records, and tried again when the run goes on
      summary.json    the numbers, written at the end

A process may be killed between any two bytes. An episode counts once its whole line stands in
``records.jsonl``; a line cut short is dropped when the run is opened again. Lines reach the
operating system at once, so only a machine that loses power can lose some.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.keeping.directory import Hold, RunError, writing
from benchmarks.controls import record_key
from gym_longvideo.files import reason, write_whole
from gym_longvideo.record import EpisodeRecord

if TYPE_CHECKING:
    from benchmarks.card import Card

CARD, SUMMARY = "card.json", "summary.json"
RECORDS, COSTS, FAULTS = "records.jsonl", "costs.jsonl", "faults.jsonl"
OUTCOMES = ("correct", "wrong", "unanswered", "unscored")


@dataclass(frozen=True)
class Run:
    """A run as it stands on disk.

    Attributes:
        directory: Where.
        card: How it was played.
        records: Episodes, in the order in which they ended.
        costs: What each of them cost, by key.
        faults: What broke: key, error, attempt. A task that was played later is in ``records`` too.
    """

    directory: Path
    card: Card
    records: tuple[EpisodeRecord, ...]
    costs: Mapping[str, dict[str, Any]]
    faults: tuple[dict[str, Any], ...]


def read_run(directory: str | os.PathLike[str]) -> Run:
    """Read a run, finished or not; a last line cut short by a kill is left out.

    Raises:
        ValueError: If there is no run, or a line is none of its own, naming file and line.
    """
    path = Path(directory)
    card = _read_card(path)
    if card is None:
        raise ValueError(f"{path} holds no {CARD}, so it is no run of longvideo evaluate")
    records = {}
    for where, line in _lines(path / RECORDS):
        record = _record(where, line, card, records.keys(), None)
        records[record_key(record)] = record
    # An episode that was played again, because a kill came before its record, has two lines.
    costs = {each["key"]: each for _, each in _objects(path / COSTS) if each["key"] in records}
    faults = tuple(each for _, each in _objects(path / FAULTS))
    return Run(path, card, tuple(records.values()), costs, faults)


class RunWriter:
    """Opens a run, new or begun, and appends to it. A context manager.

    Args:
        directory: Where; made if it does not exist.
        card: How the run is played. One that was begun under another card is refused.
        keys: All episodes of the run, if known; a record of any other is refused.

    Attributes:
        outcomes: Outcome of every episode that is done, by key.
        faults: Faults of this process.

    Raises:
        ValueError: If the run there has another card (a ``CardMismatch`` where the card module
            says so), or lines that do not belong to it, naming file and line.
        RunError: If another process writes to it, or nothing can be written there.
    """

    def __init__(
        self, directory: str | os.PathLike[str], card: Card, keys: Collection[str] | None = None
    ) -> None:
        self.directory, self.card = Path(directory), card
        self.outcomes: dict[str, str] = {}
        self.faults = 0
        self._right = self._scored = 0
        self._attempts: dict[str, int] = {}
        self._files: dict[str, int] = {}
        self._hold = Hold(self.directory)
        try:
            self._open(None if keys is None else frozenset(keys))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def done(self) -> set[str]:
        """Keys of the episodes that need not be played again."""
        return set(self.outcomes)

    @property
    def accuracy(self) -> float:
        """Share of right answers so far, 0.0 without any."""
        return self._right / self._scored if self._scored else 0.0

    def add(self, key: str, record: EpisodeRecord, cost: Mapping[str, Any]) -> None:
        """Append an episode.

        Raises:
            ValueError: If it is not over, broke, is there already, or has another key.
            RunError: If it cannot be written; the lines before it stay.
        """
        if record.outcome not in OUTCOMES:
            raise ValueError(f"episode {key!r} has outcome {record.outcome!r}: it is no result")
        own = record_key(record)
        if key in self.outcomes or own != key:
            raise ValueError(
                f"the record of task {own!r} cannot be added as {key!r}: each episode of a run is "
                "recorded once, under its own key"
            )
        self._append(COSTS, json.dumps({"key": key, **cost}, ensure_ascii=False))
        self._append(RECORDS, record.to_json())
        self._count(key, record.outcome)

    def fault(self, key: str, error: str) -> None:
        """Append a fault: the episode was not played, and will be when the run goes on.

        Raises:
            RunError: If it cannot be written.
        """
        self._attempts[key] = attempt = self._attempts.get(key, 0) + 1
        line = {"key": key, "error": error, "attempt": attempt}
        self._append(FAULTS, json.dumps(line, ensure_ascii=False))
        self.faults += 1

    def close(self) -> None:
        """Flush to the disk and let others write. Idempotent."""
        while self._files:
            _, file = self._files.popitem()
            with contextlib.suppress(OSError):
                os.fsync(file)
            os.close(file)
        self._hold.release()

    def _open(self, keys: frozenset[str] | None) -> None:
        begun = _read_card(self.directory)
        if begun is None:
            if (self.directory / RECORDS).exists():
                raise ValueError(f"{self.directory} holds {RECORDS} without {CARD}; choose another "
                                 "directory")  # fmt: skip
            write_json(self.directory / CARD, self.card.to_json())
        else:
            _require_same(self.directory, begun, self.card)
        for where, line in _lines(self.directory / RECORDS):
            record = _record(where, line, self.card, self.outcomes.keys(), keys)
            self._count(record_key(record), record.outcome)
        for _, each in _objects(self.directory / FAULTS):
            self._attempts[each["key"]] = self._attempts.get(each["key"], 0) + 1
        for _ in _objects(self.directory / COSTS):
            pass  # whoever reads the run must be able to
        for name in (RECORDS, COSTS, FAULTS):
            path = self.directory / name
            with writing(path):
                self._files[name] = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
                os.ftruncate(self._files[name], _whole(path))
                os.lseek(self._files[name], 0, os.SEEK_END)

    def _count(self, key: str, outcome: str) -> None:
        self.outcomes[key] = outcome
        self._scored += outcome != "unscored"
        self._right += outcome == "correct"

    def _append(self, name: str, line: str) -> None:
        if name not in self._files:
            raise ValueError(f"the run in {self.directory} is closed; open it again")
        file = self._files[name]
        # A lone surrogate becomes the JSON escape that says the same.
        data = memoryview(f"{line}\n".encode("utf-8", "backslashreplace"))
        start = os.lseek(file, 0, os.SEEK_CUR)
        try:
            while data:
                data = data[os.write(file, data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(file, start)
                os.lseek(file, start, os.SEEK_SET)
            raise RunError(
                f"{self.directory / name} could not be written ({reason(error)}); "
                f"{len(self.outcomes)} episodes are safe: make room and give the same command again"
            ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one go: either all of it is there or what was there before.

    Args:
        path: Where.
        value: What; text is taken for JSON.

    Raises:
        RunError: If it cannot be written.
    """
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    with writing(path):
        write_whole(path, text.rstrip("\n") + "\n", durable=True)


def _read_card(directory: Path) -> Card | None:
    from benchmarks.card import Card

    path = directory / CARD
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    try:
        return Card.from_json(text)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no protocol card: {error}") from None


def _require_same(directory: Path, begun: Card, card: Card) -> None:
    from benchmarks.card import differences

    if begun.hash == card.hash:
        return
    knobs = differences(
        {"protocol": begun.protocol, "policy": begun.policy},
        {"protocol": card.protocol, "policy": card.policy},
    )
    raise ValueError(
        f"{directory} was begun under another card ({begun.hash}, now {card.hash}): "
        f"{'; '.join(knobs)}. Give the settings it was begun with, or another directory"
    )


def _record(
    where: str, line: bytes, card: Card, known: Collection[str], keys: Collection[str] | None
) -> EpisodeRecord:
    try:
        record = EpisodeRecord.from_json(line.decode("utf-8"))
        key = record_key(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: {error}") from None
    suite = card.protocol.get("suite", {})
    expected = suite.get("name", record.suite), suite.get("split", record.split)
    if (record.suite, record.split) != expected:
        raise ValueError(f"{where}: task {key!r} is of suite {record.suite!r}, split "
                         f"{record.split!r}; the card says {expected}")  # fmt: skip
    if key in known or (keys is not None and key not in keys):
        what = "is there twice" if key in known else "does not belong to this run"
        raise ValueError(f"{where}: task {key!r} {what}")
    if record.outcome not in OUTCOMES:
        raise ValueError(f"{where}: task {key!r} has outcome {record.outcome!r}: it is no result")
    return record


def _whole(path: Path) -> int:
    """Return the length in bytes of the lines of a file that are whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    end = data.rfind(b"\n") + 1
    last = data[data.rfind(b"\n", 0, max(end - 1, 0)) + 1 : end]
    if last:
        try:
            json.loads(last)
        except ValueError:  # of a machine that lost power: the length was kept, the bytes were not
            end -= len(last)
    return end


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (place, line) of the whole lines of a file; none if it does not exist."""
    end = _whole(path)
    if not end:
        return
    with path.open("rb") as stream:
        number = 0
        while stream.tell() < end:
            number += 1
            yield f"{path}, line {number}", stream.readline()


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, mapping) of the lines of a file of costs or faults."""
    for where, line in _lines(path):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not valid JSON ({error})") from None
        if not isinstance(value, dict) or not isinstance(value.get("key"), str):
            raise ValueError(f"{where}: no object with a key")
        yield where, value


_BINARY = getattr(os, "O_BINARY", 0)
