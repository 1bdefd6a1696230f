"""Dataset: what an adapter says about a published benchmark.

An adapter is data and two functions: ``convert`` turns native rows into records of one form, and
``groups`` says into which groups the benchmark's authors sort their questions. Everything else
(finding files, reading tables, checking, filtering) is shared.

A converted record is a mapping with ``id``, ``video`` (path as annotated), ``question``,
``options``, ``answer`` (whatever ``gym_longvideo.annotation.parse_answer`` takes; a 0-based index
is surest, ``None`` where no answer is public), and where there are such things ``video_id``,
``segments`` (seconds), ``duration`` (seconds), ``task_types`` and ``issues`` (names of defects that
were tolerated). Any other key is kept in ``Task.meta``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.datasets.rows import TableRow, read_table


class Defect(ValueError):
    """A row that cannot become a task.

    Args:
        kind: Short name by which defects are counted, such as "blank_question".
        message: What is wrong, naming the value.
        meant: Whether the benchmark leaves such rows out on purpose.
    """

    def __init__(self, kind: str, message: str, *, meant: bool = False) -> None:
        super().__init__(message)
        self.kind, self.meant = kind, meant


class Converted(NamedTuple):
    """A native row, converted: where it stood, and the record or what is wrong with it."""

    place: str
    record: Mapping[str, Any] | ValueError


@dataclass(frozen=True)
class Split:
    """A split of a benchmark.

    Attributes:
        files: Glob patterns of its annotation below a root, tried in this order; the first that
            matches anything wins, and all its matches are read.
        scored: Whether its answers are public.
        tasks: How many usable questions it is published with; None where that differs by copy.
    """

    files: tuple[str, ...]
    scored: bool = True
    tasks: int | None = None


class Archive(NamedTuple):
    """Packed videos: how their files are called, and the command that unpacks them."""

    pattern: str
    command: str


@dataclass(frozen=True)
class Source:
    """What ``Dataset.convert`` reads.

    Attributes:
        split: Name of the split.
        files: Annotation files.
        roots: Directories in which files beside the annotation may lie.
    """

    split: str
    files: tuple[Path, ...]
    roots: tuple[Path, ...]

    def rows(self) -> Iterator[TableRow]:
        """Yield the rows of all files; a row that cannot be read has a ValueError for fields."""
        for file in self.files:
            yield from read_table(file)

    def convert(
        self, convert: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> Iterator[Converted]:
        """Yield the rows of all files, converted one by one."""
        for place, fields in self.rows():
            yield converted(place, fields, convert)

    def beside(self, *patterns: str) -> Path | None:
        """Return the first file beside the annotation, or below a root, that matches a pattern."""
        for pattern in patterns:
            for directory in (*(file.parent for file in self.files), *self.roots):
                for path in sorted(directory.glob(pattern)):
                    return path
        return None


def converted(
    place: str,
    fields: Mapping[str, Any] | ValueError,
    convert: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> Converted:
    """Convert a row; whatever is wrong with it costs this row only."""
    if isinstance(fields, ValueError):
        return Converted(place, fields)
    try:
        return Converted(place, convert(fields))
    except ValueError as error:
        return Converted(place, error)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        # A field that is missing, or not of the type that every real file has.
        return Converted(place, ValueError(f"not a row of this benchmark ({error!r})"))


def group_by_type(task: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the groups of a task whose benchmark knows question types and nothing else."""
    return {"task_type": tuple(task["task_types"])}


@dataclass(frozen=True)
class Dataset:
    """A published benchmark.

    Attributes:
        name: What ``load_suite`` calls it, e.g. "videomme".
        env_id: Its Gymnasium id.
        title: What its authors call it.
        source: Where it is published.
        licence: Of the annotations, in a few words.
        splits: By name.
        default_split: The one taken where none is named.
        directories: Names that its directory has in a hub cache or in an lmms-eval tree.
        folders: Where videos lie below the root, tried in this order.
        archives: Packed videos, named where videos are missing.
        convert: Native rows to records of one form; see the module.
        groups: ``EpisodeRecord.task`` (or a task as a mapping) to its groups: name of the grouping
            -> values, several where a question counts in several.
        overall: "micro" over questions, or "macro:NAME", the unweighted mean over a grouping.
        options: Keyword arguments that ``convert`` takes beside the source, with their defaults.
        least_options: Fewest options of a question; 1 where nothing is chosen.
        segments_from: Where segments come from that are not in the annotation itself, by words; ""
            where they are in it, or the benchmark has none.
    """

    name: str
    env_id: str
    title: str
    source: str
    licence: str
    splits: Mapping[str, Split]
    default_split: str
    directories: tuple[str, ...]
    folders: tuple[str, ...]
    archives: tuple[Archive, ...]
    convert: Callable[..., Iterator[Converted]]
    groups: Callable[[Mapping[str, Any]], dict[str, tuple[str, ...]]] = group_by_type
    overall: str = "micro"
    options: Mapping[str, Any] = field(default_factory=dict)
    least_options: int = 2
    segments_from: str = ""
