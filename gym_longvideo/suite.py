"""Suites: ordered, finite collections of tasks, and where their videos come from.

A suite is immutable once made: ``gym.make`` deep-copies keyword arguments, so copying one returns
itself.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, reduce
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from gym_longvideo import checks
from gym_longvideo.annotation import Annotation, canonical, parse_record
from gym_longvideo.annotation.identity import asked, unique_id, video_of
from gym_longvideo.annotation.records import read_records
from gym_longvideo.extras import check_ours, explain
from gym_longvideo.task import Task
from gym_longvideo.video import open_video
from gym_longvideo.video.errors import VideoError, VideoNotFoundError
from gym_longvideo.video.source import Video

OnInvalid = Literal["raise", "skip"]
OnMissingVideo = Literal["keep", "skip", "raise"]


@runtime_checkable
class Suite(Protocol):
    """A finite, ordered collection of tasks with their videos.

    Attributes:
        name: Short name, part of record and result files.
        split: Which split of the suite this is ("train", "val", "test", ...).
        max_options: The largest number of options of any task (the env's K).
    """

    name: str
    split: str
    max_options: int

    def __len__(self) -> int:
        """Return the number of tasks."""
        ...

    def __getitem__(self, index: int) -> Task:
        """Return the task at ``index`` in ``[0, len)``; raise IndexError outside."""
        ...

    def index_of(self, task_id: str) -> int:
        """Return the index of a task; raise KeyError naming the id if it does not exist."""
        ...

    def open_video(self, task: Task, *, backend: str = "pyav", isolate: bool = False) -> Video:
        """Open the video of a task. Raises VideoError."""
        ...


GROUP = "gym_longvideo.suites"  # of entry points: name -> callable that takes split= and options
_OWN = {"haystack": "gym_longvideo.haystack:HaystackSuite"}
SplitBy = Literal["none", "video"]
_FEWEST = 10  # videos of which some may be held out
EXTENSIONS = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")
TABLES = (".csv", ".tsv", ".parquet")  # annotation that the suite "jsonl" of benchmarks reads


@cache
def suite_names() -> dict[str, str]:
    """Return the suites that can be named: what is installed, by name, as "module:callable"."""
    return {each.name: each.value for each in entry_points(group=GROUP)} | _OWN


def named_split(suite: str) -> tuple[str, str | None]:
    """Return the name of a suite and the split that it names itself, if any.

    >>> named_split("haystack:val"), named_split("my.module:make")
    (('haystack', 'val'), ('my.module:make', None))
    """
    name, _, split = suite.partition(":")
    own = split and "," not in split and name in suite_names()
    return (name, split) if own else (suite, None)


def parts_of(suite: str) -> list[str]:
    """Return the names of the suites that a name mixes; that of the suite itself if it mixes none.

    >>> parts_of("nextgqa:val, qvhighlights:train"), parts_of("videos/a,b.jsonl")
    (['nextgqa:val', 'qvhighlights:train'], ['videos/a,b.jsonl'])
    """
    parts = [part.strip() for part in suite.split(",")]
    # The path of an annotation may hold commas; parts are names that are known, or annotations.
    known = all(named_split(part)[0] in suite_names() or is_annotation(part) for part in parts)
    return parts if known and not Path(suite).exists() else [suite]


def imports_code(suite: str) -> bool:
    """Return whether a suite is named as "module:callable", which imports a module of that name."""
    parts = parts_of(suite)
    return any(":" in part and part.partition(":")[0] not in suite_names() for part in parts)


def is_annotation(suite: str) -> bool:
    """Return whether a suite is an annotation of one's own: its path, or "jsonl".

    >>> is_annotation("my.jsonl"), is_annotation("haystack")
    (True, False)
    """
    return suite == "jsonl" or suite.endswith((".jsonl", ".json", *TABLES))


def load_suite(
    suite: str | Suite, *, split: str | None = "train", options: Mapping[str, Any] | None = None
) -> Suite:
    """Return a suite from what ``gym.make(suite=...)`` takes.

    Args:
        suite: "haystack", the name of a suite that is installed (the entry points of the group
            ``gym_longvideo.suites``; those of ``benchmarks`` are), the path of an annotation
            (``.jsonl``, ``.json``; with ``benchmarks`` also ``.csv``, ``.tsv``, ``.parquet``),
            "module:callable" (called with ``split`` and the options), or a ``Suite``. A name may
            be followed by a split of its own, which wins: "haystack:val". Several names with
            commas between them are one suite, see ``MixtureSuite``.
        split: Split to load, None for the suite's own default; a suite that is passed as an object
            keeps its own.
        options: Keyword arguments of the suite; of a mixture those of all of its parts, "weights",
            and for each part, by its name without a split, a mapping with those that are its own.

    Raises:
        ValueError: If it is none of these.
    """
    if not isinstance(options, (Mapping, type(None))):
        raise ValueError(
            f'suite_options={options!r} must map names to values: {{"families": "needle"}}'
        )
    options = dict(options or {})
    if "split" in options:
        raise ValueError(f"suite_options={options} name a split; pass split= beside them")
    if not isinstance(suite, str):
        if not isinstance(suite, Suite):
            raise ValueError(f"suite={suite!r} is neither a name nor a Suite")
        if options:
            raise ValueError(f"suite_options={options} go with a suite's name, not with an object")
        return suite
    if len(parts := parts_of(suite)) > 1:
        return _mixture(parts, split, options)
    name, own_split = named_split(suite)
    split = own_split or split
    if split is not None:
        options["split"] = split
    if name.endswith((".jsonl", ".json")):
        return _call(JsonlSuite, name, **options)
    if name.endswith(TABLES) and "jsonl" in suite_names():
        name, options["annotation"] = "jsonl", name
    module, _, factory = suite_names().get(name, name).partition(":")
    if not factory:
        raise ValueError(
            f'suite={suite!r} is unknown; use "haystack", one of {sorted(suite_names())}, the path '
            'of a .jsonl file, or "module:callable"'
        )
    try:
        check_ours(module.partition(".")[0])
        make: Any = reduce(getattr, factory.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        why = explain(error, module) if isinstance(error, ImportError) else error
        raise ValueError(f"suite={suite!r} cannot be imported: {why}") from error
    made = _call(make, **options)
    if not isinstance(made, Suite):
        raise ValueError(f"suite={suite!r} returned {made!r}, which is no Suite")
    return made


def _mixture(parts: Sequence[str], split: str | None, options: dict[str, Any]) -> Suite:
    from gym_longvideo.mixture import MixtureSuite

    names = [named_split(part)[0] for part in parts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"suite={','.join(parts)!r} names {twice[0]!r} twice; name it once")
    weights = options.pop("weights", None)
    own = {name: options.pop(name, {}) for name in names}
    loaded = {}
    for part, name in zip(parts, names, strict=True):
        if not isinstance(own[name], Mapping):
            raise ValueError(f"suite_options[{name!r}]={own[name]!r} must map names to values")
        loaded[name] = load_suite(part, split=split, options={**options, **own[name]})
    return MixtureSuite(loaded, weights)


def _call(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a suite's maker; options it does not take give a ValueError that names those it does."""
    try:
        inspect.signature(make).bind(*args, **options)
    except TypeError as error:
        options.pop("split", None)
        known = [name for name in inspect.signature(make).parameters if name != "split"]
        raise ValueError(f"suite_options={options}: {error}; use some of {known}") from None
    return make(*args, **options)


def splits_of_videos(records: Iterable[Any]) -> dict[str, str]:
    """Return the split, by video as annotated, of the records that name none.

    A tenth of the videos, and one at least, is "val", as many are "test", and the others "train":
    those with the lowest SHA-256 of their path first. So all questions about a video are in one
    split, and the order of the records moves none.

    Raises:
        ValueError: If there are such records, of fewer than 10 videos.
    """
    videos = {
        video_of(record)
        for record in records
        if isinstance(record, Mapping) and not record.get("split")
    } - {""}
    if not videos:
        return {}
    if len(videos) < _FEWEST:
        raise ValueError(
            f"records of {len(videos)} videos name no split, and fewer than {_FEWEST} are too few "
            'to hold some out; give each record a "split" ("train", "val" or "test"), or say '
            'suite_options={"split_by": "none"} to have them all in every split'
        )
    drawn = sorted(videos, key=lambda video: hashlib.sha256(os.fsencode(video)).digest())
    tenth = len(drawn) // 10
    names = ["val"] * tenth + ["test"] * tenth + ["train"] * (len(drawn) - 2 * tenth)
    return dict(zip(drawn, names, strict=True))


class JsonlSuite:
    """Tasks from a JSON Lines file (or a JSON list) and video files under one root.

    Field aliases and encodings are those of ``annotation.py``; a minimal line is
    ``{"video": "a.mp4", "question": "Which?", "options": ["x", "y"], "answer": "A"}``, and
    ``"segments": [[start, end], ...]`` in seconds makes retrievals count.

    Args:
        annotation: Path of the file, UTF-8.
        video_root: Directory of the videos; by default that of the annotation.
        split: Name of the split; records with another ``"split"`` are left out.
        name: Name of the suite; by default the file's stem.
        on_invalid: "raise" at the first unusable record, or "skip" and list them in ``invalid``.
        on_missing_video: "keep" asks nothing of the disk; "skip" and "raise" look every file up.
        allow_outside: Permit videos outside ``video_root`` (``../``, absolute paths, symlinks).
        split_by: What becomes of records that name no split: "none", they are in every split;
            "video", each of their videos is in train, val or test, see ``splits_of_videos``.

    Raises:
        ValueError: Naming file and line of the first unusable record.
        FileNotFoundError: If there is no such file or directory.
    """

    def __init__(
        self,
        annotation: str | os.PathLike[str],
        *,
        video_root: str | os.PathLike[str] | None = None,
        split: str = "train",
        name: str | None = None,
        on_invalid: OnInvalid = "raise",
        on_missing_video: OnMissingVideo = "keep",
        allow_outside: bool = False,
        split_by: SplitBy = "none",
    ) -> None:
        checks.choice("on_invalid", on_invalid, get_args(OnInvalid))
        checks.choice("split_by", split_by, get_args(SplitBy))
        checks.choice("on_missing_video", on_missing_video, get_args(OnMissingVideo))
        self.path = Path(annotation)
        self.video_root = Path(self.path.parent if video_root is None else video_root)
        if self.path.suffix in TABLES:
            raise ValueError(f'{self.path} is a table; the suite "jsonl" of benchmarks reads it')
        if not self.path.is_file():
            raise FileNotFoundError(f"no annotation at {self.path}; give the path of a .jsonl file")
        if not self.video_root.is_dir():
            raise FileNotFoundError(f"video_root={str(self.video_root)!r} is not a directory")
        self.name, self.split = name or self.path.stem, split
        self.allow_outside = allow_outside
        self.invalid: list[str] = []
        self._tasks: list[Task] = []
        self._index: dict[str, int] = {}
        self._asked: dict[str, Any] = {}
        rows = [
            (place, canonical(each) if isinstance(each, Mapping) else each)
            for place, each in read_records(self.path)
        ]
        file = Annotation(record for _, record in rows)
        held = splits_of_videos([record for _, record in rows]) if split_by == "video" else {}
        for position, (where, record) in enumerate(rows):
            try:
                if isinstance(record, ValueError):
                    raise record
                if isinstance(record, Mapping):
                    named = record.get("split", None if held else split)
                    if (named or held.get(video_of(record))) != split:
                        continue
                task = parse_record(record, default_id=str(position), file=file)
                self._add(task, on_missing_video)
            except (ValueError, VideoError) as error:
                if on_invalid == "raise":
                    raise ValueError(f"{where}: {error}") from None
                self.invalid.append(f"{where}: {error}")
        if not self._tasks:
            raise ValueError(f"{self.path}: no usable task for split {split!r}")
        self.max_options = max(len(task.options) for task in self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> Task:
        return self._tasks[index]

    def __deepcopy__(self, memo: dict[int, Any]) -> JsonlSuite:
        return self

    def __repr__(self) -> str:
        return f"JsonlSuite({str(self.path)!r}, split={self.split!r}, tasks={len(self)})"

    def index_of(self, task_id: str) -> int:
        """Return the index of a task."""
        return self._index[task_id]

    def open_video(self, task: Task, *, backend: str = "pyav", isolate: bool = False) -> Video:
        """Open a task's file; refuses one that a symlink leads out of ``video_root``."""
        if not self.allow_outside:
            real, root = os.path.realpath(task.video), os.path.realpath(self.video_root)
            if os.path.commonpath([real, root]) != root:
                raise VideoNotFoundError(
                    f"is a link to {real}, outside video_root={root}; pass allow_outside=True if "
                    "you trust the files",
                    path=task.video,
                )
        return open_video(task.video, backend=backend, isolate=isolate)

    def _add(self, task: Task, on_missing_video: OnMissingVideo) -> None:
        task_id = unique_id(task, lambda taken: self._asked.get(taken))
        self._asked[task_id] = asked(task)
        path = self._resolve(task.video)
        if on_missing_video != "keep" and not os.path.isfile(path):
            if on_missing_video == "raise":
                raise VideoNotFoundError(
                    'is missing; on_missing_video="skip" leaves such tasks out', path=path
                )
            self.invalid.append(f"task {task_id!r}: {path} is missing")
            return
        video_id = task.video if task.video_id in ("", task.video) else task.video_id
        self._index[task_id] = len(self._tasks)
        # A frozen dataclass is rebuilt by hand here: dataclasses.replace costs three times as much.
        fields = {**task.__dict__, "task_id": task_id, "video": path, "video_id": video_id}
        self._tasks.append(Task(**fields))

    def _resolve(self, video: str) -> str:
        root = os.path.abspath(self.video_root)
        path = with_extension(os.path.abspath(os.path.join(root, video)))
        if not self.allow_outside and os.path.commonpath([path, root]) != root:
            raise ValueError(
                f"video={video!r} leaves video_root={root!r}; move the file there, set "
                "video_root=, or pass allow_outside=True if you trust the annotation"
            )
        return path


def question_text(task: Task) -> str:
    r"""Return the question followed by its lettered options, one a line.

    >>> question_text(Task("1", "v.mp4", "Which?", ("x", "y"), 0))
    'Which?\nA. x\nB. y'
    """
    return "\n".join([task.question, *lettered(task.options)])


def lettered(options: Sequence[str]) -> list[str]:
    """Return options with their letters: ["A. x", "B. y"]."""
    return [
        f"{letter}. {option}"
        for letter, option in zip(string.ascii_uppercase, options, strict=False)
    ]


def with_extension(path: str) -> str:
    """Return the path of a video; that of a file, where the annotation left its extension out."""
    if os.path.splitext(path)[1].lower() in EXTENSIONS or os.path.exists(path):
        return path
    return next((path + each for each in EXTENSIONS if os.path.exists(path + each)), path)


def utf8_prefix(text: str, size: int) -> bytes:
    """Return at most ``size`` bytes of UTF-8, never ending inside a character.

    >>> utf8_prefix("né", 2)
    b'n'
    """
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore").encode()
