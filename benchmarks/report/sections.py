"""Entries and sections: the runs of a report, and which of them may stand side by side.

Runs share a section only if every knob of their protocol is the same (one protocol hash). Sections
that ask the same questions may be lined up, but only below the list of knobs that differ; another
order of the options, as a control or the suite shuffles or turns them, makes no other question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.card import Card, CardMismatch, require_same
from benchmarks.controls import as_annotated, reorders
from benchmarks.registry import dataset_of
from benchmarks.report.isolates import foreign
from benchmarks.runs import Run, read_run
from benchmarks.scores.questions import questions
from benchmarks.scores.summary import summarize
from gym_longvideo.record import EpisodeRecord

# Knobs by which runs of a curve over frame budgets may differ.
BUDGET_KNOBS = ("frame_budget", "overview_frames", "frames_per_retrieval")


@dataclass(frozen=True)
class Entry:
    """A run of the report.

    Attributes:
        name: How the report calls it; unique.
        run: What was played.
        summary: Its numbers, as ``benchmarks.scores.summary.summarize`` returns them.
    """

    name: str
    run: Run
    summary: Mapping[str, Any]

    @property
    def card(self) -> Card:
        """The protocol card."""
        return self.run.card

    @property
    def policy(self) -> str:
        """Name of who played."""
        policy = self.card.policy
        return str(policy.get("name") or policy.get("kind") or "unknown")

    @property
    def episodes(self) -> int:
        """Episodes that ended; under the circular control a question has several."""
        return len(self.run.records)

    @property
    def expected(self) -> int:
        """Episodes that the card asks for."""
        protocol = self.card.protocol
        tasks, limit = int(protocol["suite"]["tasks"]), protocol.get("episodes")
        if limit is None or protocol.get("control") == "circular":
            return tasks  # rotations are tasks, and the limit is one of questions
        return min(int(limit), tasks)

    @property
    def faults(self) -> int:
        """Episodes that broke and were not played since."""
        return int(self.summary["faults"])

    @property
    def complete(self) -> bool:
        """Whether every episode that the card asks for has an outcome."""
        return self.episodes >= self.expected

    @property
    def flags(self) -> tuple[str, ...]:
        """What must be said beside every number of this run; empty if nothing."""
        flags = []
        if self.faults:
            flags.append(f"{self.faults} fault{'s' if self.faults > 1 else ''}")
        if not self.complete:
            flags.append(f"incomplete: {self.episodes:,} of {self.expected:,} episodes")
        if unscored := int(self.summary["questions"]) - int(self.summary["scored"]):
            flags.append(f"{unscored} without a public answer")
        return tuple(flags)

    @property
    def label(self) -> str:
        """Name, with what is wrong in a few words."""
        flags = [flag.partition(":")[0] for flag in self.flags]
        return f"{self.name} [{', '.join(flags)}]" if flags else self.name


@dataclass(frozen=True)
class Section:
    """Runs of one protocol.

    Attributes:
        letter: "A", "B", ...: how the report refers to it.
        entries: Its runs, at least one.
    """

    letter: str
    entries: tuple[Entry, ...]

    @property
    def card(self) -> Card:
        """Card of the first run; the protocol is that of all."""
        return self.entries[0].card

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The protocol of all its runs."""
        return self.card.protocol

    @property
    def records(self) -> tuple[EpisodeRecord, ...]:
        """Episodes of its first run."""
        return self.entries[0].run.records

    @property
    def suite(self) -> tuple[str, str, str]:
        """Name, split and digest of the suite: sections that share it put the same tasks."""
        suite = self.protocol.get("suite", {})
        return tuple(str(suite.get(key, "")) for key in ("name", "split", "digest"))  # type: ignore[return-value]

    @property
    def title(self) -> str:
        """Suite, split and control, each marked as foreign."""
        control = self.protocol.get("control", "none")
        name, split, played = map(foreign, (*self.suite[:2], control))
        return f"{name}, {split}" + ("" if control == "none" else f", control: {played}")


def read_entries(runs: Sequence[str | Path]) -> list[Entry]:
    """Read the runs of a report.

    Args:
        runs: Directories; ``NAME=DIRECTORY`` gives a run another name than its directory's. Where
            several directories have one name, that of their parent goes before it.

    Raises:
        ValueError: If there is none, if one is no run or holds no episode, or if two have one name.
    """
    if not runs:
        raise ValueError("no run is given; name one or more directories of benchmarks.evaluate")
    named = [_named(given) for given in runs]
    names = [name for name, _ in named]
    places: dict[str, Path] = {}
    for name, directory in named:
        if names.count(name) > 1 and directory.resolve().parent.name:
            name = f"{directory.resolve().parent.name}/{name}"
        if name in places:
            raise ValueError(
                f"two runs are called {name!r}: {places[name]} and {directory}; "
                f"give one another name: OTHER={directory}"
            )
        places[name] = directory
    return [_read(name, directory) for name, directory in places.items()]


def _named(given: str | Path) -> tuple[str, Path]:
    text = str(given)
    name, equals, rest = text.partition("=")
    if equals and name and rest and not Path(text).exists():
        return name, Path(rest)
    return Path(text).resolve().name or text, Path(text)


def _read(name: str, directory: Path) -> Entry:
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise ValueError(f"{directory} {what}; a run is a directory of benchmarks.evaluate")
    if not (directory / "card.json").is_file():
        raise ValueError(f"{directory} is no run: it holds no card.json")
    run = read_run(directory)
    if not run.records:
        left = f" and {len(run.faults)} faults" if run.faults else ""
        raise ValueError(f"{directory} holds no finished episode{left}; resume it first")
    return Entry(name, run, _summary(run))


def _summary(run: Run) -> dict[str, Any]:
    """Return the summary on disk if it is of these records, else a fresh one."""
    path = run.directory / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        current = summary["hash"] == run.card.hash and path.stat().st_mtime >= max(
            (run.directory / name).stat().st_mtime
            for name in ("records.jsonl", "faults.jsonl")
            if (run.directory / name).exists()
        )
    except (OSError, ValueError, KeyError, TypeError):
        current, summary = False, {}
    if current:
        return summary
    return summarize(run, dataset_of(run.card))


def make_sections(entries: Sequence[Entry]) -> list[Section]:
    """Sort runs by protocol, in the order in which protocols appear."""
    by_hash: dict[str, list[Entry]] = {}
    for entry in entries:
        by_hash.setdefault(entry.card.protocol_hash, []).append(entry)
    return [Section(_letter(i), tuple(group)) for i, group in enumerate(by_hash.values())]


def side_by_side(sections: Sequence[Section]) -> list[list[Section]]:
    """Return the sections that ask the same questions, two or more at a time."""
    groups: list[list[Section]] = []
    for section in sorted(sections, key=lambda section: reorders(section.protocol)):
        group = next((each for each in groups if _same_questions(each[0], section)), None)
        if group is None:
            groups.append([section])
        else:
            group.append(section)
    place = {section.letter: i for i, section in enumerate(sections)}
    groups = [sorted(group, key=lambda section: place[section.letter]) for group in groups]
    return sorted((g for g in groups if len(g) > 1), key=lambda group: place[group[0].letter])


def _same_questions(one: Section, other: Section) -> bool:
    """Return whether two sections ask the same questions, their options in any order."""
    if not (reorders(one.protocol) or reorders(other.protocol)):
        return one.suite == other.suite
    if _drawn_from(one.protocol) != _drawn_from(other.protocol):
        return False
    asked, also = (
        {question.task_id: question.records[0] for question in questions(section.records)}
        for section in (one, other)
    )
    common = asked.keys() & also.keys()
    return bool(common) and all(as_annotated(asked[i]) == as_annotated(also[i]) for i in common)


def _drawn_from(protocol: Mapping[str, Any]) -> list[Any]:
    """Return what decides which questions are asked, whatever the order of their options."""
    suite, episodes = protocol.get("suite", {}), protocol.get("episodes")
    options = {k: v for k, v in (suite.get("options") or {}).items() if k != "shuffle_options"}
    drawn = None if episodes is None else [episodes, protocol.get("seed")]
    return [*(suite.get(key) for key in ("name", "split", "annotation")), options, drawn]


def knob_differences(sections: Sequence[Section]) -> dict[str, list[str]]:
    """Return every knob in which some sections differ, with its value in each as text."""
    try:
        require_same([section.card for section in sections])
    except CardMismatch as error:
        return {knob: [_text(v) for v in values] for knob, values in error.knobs.items()}
    return {}


def budget_families(sections: Sequence[Section]) -> list[list[tuple[Section, Entry]]]:
    """Return runs of one policy over two or more frame budgets, all other knobs being equal."""
    families: dict[str, list[tuple[Section, Entry]]] = {}
    for section in sections:
        settings = section.protocol.get("settings", {})
        rest = {
            **section.protocol,
            "settings": {key: v for key, v in settings.items() if key not in BUDGET_KNOBS},
        }
        for entry in section.entries:
            key = json.dumps([rest, entry.card.policy], sort_keys=True, default=str)
            families.setdefault(key, []).append((section, entry))
    kept = [
        sorted(family, key=lambda pair: frame_budget(pair[0]))
        for family in families.values()
        if len({frame_budget(section) for section, _ in family}) > 1
    ]
    return kept


def frame_budget(section: Section) -> int:
    """Return the frames that an episode may show."""
    return int(section.protocol.get("settings", {}).get("frame_budget") or 0)


def _letter(i: int) -> str:
    letters = ""
    i += 1
    while i:
        i, rest = divmod(i - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def _text(value: Any) -> str:
    if isinstance(value, (str, int, float, list, dict, tuple)) or value is None:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return str(value)  # stands for a knob that a card does not have
