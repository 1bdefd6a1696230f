"""BenchmarkSuite: a published benchmark as an ordered collection of tasks.

Real annotation has defects. Rows that cannot be asked are left out and listed in ``invalid``, with
the kind of the defect; those that can be asked in spite of one are kept, and the task's ``issues``
name it. Loading reads the annotation and lists directories; it opens no video.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, get_args

from benchmarks.controls import shuffled
from benchmarks.datasets.dataset import Converted, Dataset, Defect, Source
from benchmarks.datasets.layout import VideoFinder, find_layout
from benchmarks.datasets.repair import diagnose
from gym_longvideo import checks
from gym_longvideo.annotation import Annotation, parse_record
from gym_longvideo.annotation.identity import asked, unique_id
from gym_longvideo.suite import OnMissingVideo
from gym_longvideo.task import Task
from gym_longvideo.video import open_video
from gym_longvideo.video.errors import VideoNotFoundError
from gym_longvideo.video.source import Video

VIDEO_BYTES = "video_bytes"  # in Task.meta: size of the video's file, where there is one
OnInvalid = Literal["few", "skip", "raise", "keep"]
FEW = 0.1  # share of rows that may be left out without anybody's asking for it
_PATHS = ("root", "annotation", "video_root")


class Invalid(NamedTuple):
    """A row left out: where it stands, the kind of its defect, what is wrong, if on purpose."""

    place: str
    kind: str
    message: str
    meant: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class BenchmarkSuite:
    """A split of a dataset.

    Args:
        dataset: Which; ``benchmarks.load_suite`` takes its name instead.
        split: By default the one that is reported.
        root: Directory of the dataset, of its hub cache, or one that holds such directories.
        annotation: Path of the annotation, if it is not below the root.
        video_root: Directory of the videos, if they are not below the root.
        where: Only tasks of these groups: ``{"duration": "long"}``, ``{"task_type": ["count"]}``.
        relevant_share_below: Only tasks whose segments cover less than this share of the video.
        longer_than_s: Only tasks whose annotated duration is longer, in seconds.
        shuffle_options: Seed of an order of the options drawn for each task; None leaves them.
        on_invalid: "few" leaves unusable rows out, and refuses a file in which they are more than a
            tenth; "skip" leaves out any number, "keep" keeps without an answer those that can still
            be asked, "raise" stops at the first.
        on_missing_video: "keep", "skip" or "raise".
        allow_outside: Permit videos outside the root (absolute paths, ``..``, symlinks).
        **options: What only this benchmark takes.

    Attributes:
        name: Of the dataset.
        split: Of the dataset.
        max_options: The largest number of options of a task.
        dataset: What the adapter says.
        options: Every choice that decides which tasks there are and how they are put, JSON-able;
            no paths.
        annotation_digests: File name -> first 12 hexadecimal digits of its SHA-256.
        rows: Rows read.
        filtered: Rows that the filters left out.
        invalid: Rows left out.
        missing: Tasks whose video is not there, as "id: path".
        state: Files and directories it was made from, and when each last changed.

    Raises:
        ValueError: For an unknown split or option, or if no task is left.
        FileNotFoundError: If there is no annotation, naming what was looked for.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        split: str | None = None,
        root: str | os.PathLike[str] | None = None,
        annotation: str | os.PathLike[str] | None = None,
        video_root: str | os.PathLike[str] | None = None,
        where: Mapping[str, Any] | None = None,
        relevant_share_below: float | None = None,
        longer_than_s: float | None = None,
        shuffle_options: int | None = None,
        on_invalid: OnInvalid = "few",
        on_missing_video: OnMissingVideo = "keep",
        allow_outside: bool = False,
        **options: Any,
    ) -> None:
        split = dataset.default_split if split is None else split
        if split not in dataset.splits:
            raise ValueError(
                f"{dataset.name} has no split {split!r}; use one of {list(dataset.splits)}"
            )
        checks.choice("on_invalid", on_invalid, get_args(OnInvalid))
        checks.choice("on_missing_video", on_missing_video, get_args(OnMissingVideo))
        if unknown := sorted(set(options) - set(dataset.options)):
            raise ValueError(
                f"{dataset.name} does not know {unknown[0]}={options[unknown[0]]!r}; beside those "
                f"of BenchmarkSuite it takes {sorted(dataset.options) or 'no options'}"
            )
        checks.number("relevant_share_below", relevant_share_below, optional=True)
        checks.number("longer_than_s", longer_than_s, unit="seconds", optional=True)
        shuffle_options = checks.whole("shuffle_options", shuffle_options, optional=True)
        self.dataset, self.name, self.split = dataset, dataset.name, split
        self.options: dict[str, Any] = {
            **{k: v for k, v in {**dataset.options, **options}.items() if v is not None},
            "where": _wanted(where),
            "relevant_share_below": relevant_share_below,
            "longer_than_s": longer_than_s,
            "shuffle_options": shuffle_options,
            "subtitles": "none",
            "on_invalid": "skip" if on_invalid == "few" else on_invalid,  # which tasks there are
            "on_missing_video": on_missing_video,
        }
        layout = find_layout(
            dataset, split, root=root, annotation=annotation, video_root=video_root
        )
        self.files = layout.files
        self.annotation_digests = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in layout.files
        }
        self.finder = VideoFinder(layout, dataset.folders, allow_outside=allow_outside)
        self.rows = self.filtered = 0
        self.invalid: list[Invalid] = []
        self.missing: list[str] = []
        self._tasks: list[Task] = []
        self._index: dict[str, int] = {}
        self._asked: dict[str, Any] = {}
        self._values: dict[str, set[str]] = {}
        source = Source(split, layout.files, layout.roots)
        self._read(dataset.convert(source, **{**dataset.options, **options}))
        if not self._tasks:
            raise ValueError(self._nothing_left())
        if on_invalid == "few" and (refusal := self.too_many_unusable()):
            raise ValueError(refusal)
        self.max_options = max(len(task.options) for task in self._tasks)
        self.state = self.finder.state()

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> Task:
        return self._tasks[index]

    def __deepcopy__(self, memo: dict[int, Any]) -> BenchmarkSuite:
        return self

    def __repr__(self) -> str:
        return f"BenchmarkSuite({self.name!r}, split={self.split!r}, tasks={len(self)})"

    def index_of(self, task_id: str) -> int:
        """Return the index of a task."""
        return self._index[task_id]

    def open_video(self, task: Task, *, backend: str = "pyav", isolate: bool = False) -> Video:
        """Open a task's file.

        Raises:
            VideoError: If it is missing (the message names the archives to unpack, if there are
                any), broken, or a link that leaves the root.
        """
        if not os.path.exists(task.video):
            raise VideoNotFoundError(f"is missing{self.unpack_hint()}", path=task.video)
        if not self.finder.trusts(task.video):
            raise VideoNotFoundError(
                f"is a link to {os.path.realpath(task.video)}, outside the root; pass "
                "allow_outside=True if you trust the files",
                path=task.video,
            )
        return open_video(task.video, backend=backend, isolate=isolate)

    def refused(self) -> list[str]:
        """Return the videos that are there but lead out of the root, and so will not be opened."""
        paths = dict.fromkeys(task.video for task in self._tasks)
        return [path for path in paths if os.path.exists(path) and not self.finder.trusts(path)]

    def unpack_hint(self) -> str:
        """Return which archives below the root are still packed, and how to unpack them, or ""."""
        for root in self.finder.layout.roots:
            for archive in self.dataset.archives:
                if found := sorted(root.glob(archive.pattern)):
                    names = found[0].name if len(found) == 1 else f"{found[0].name} and others"
                    return f"; {root} holds {names}, still packed: {archive.command}"
        return ""

    def too_many_unusable(self) -> str:
        """Return why ``on_invalid="few"`` refuses the file, or "".

        Rows that the benchmark leaves out on purpose, and missing videos, do not count.
        """
        broken = [each for each in self.invalid if not each.meant]
        if len(broken) <= FEW * self.rows:
            return ""
        return (
            f"{', '.join(str(file) for file in self.files)}: {len(broken)} of {self.rows} rows are "
            f"unusable, more than a tenth; the first: {broken[0]} (longvideo validate lists them, "
            'on_invalid="skip" leaves them out)'
        )

    def _read(self, converted: Iterator[Converted]) -> None:
        rows = list(converted)
        self._file = Annotation(record for _, record in rows)
        for position, (place, record) in enumerate(rows):
            self.rows += 1
            try:
                if isinstance(record, ValueError):
                    raise record
                task, there = self._task(record, default_id=str(position))
            except ValueError as error:
                if self.options["on_invalid"] == "raise":
                    raise ValueError(
                        f'{place}: {error} (on_invalid="skip" leaves such rows out)'
                    ) from None
                kind = error.kind if isinstance(error, Defect) else _kind(record)
                meant = isinstance(error, Defect) and error.meant
                self.invalid.append(Invalid(place, kind, str(error), meant))
                continue
            if not self._wants(task):
                self.filtered += 1
            elif there or self._wants_missing(task):
                self._index[task.task_id] = len(self._tasks)
                self._tasks.append(task)

    def _task(self, record: Mapping[str, Any], *, default_id: str) -> tuple[Task, bool]:
        """Return the task of a record, and whether its video is there."""
        fields = {key: value for key, value in record.items() if key != "issues"}
        issues = tuple(record.get("issues", ()))
        try:
            task = self._parse(fields, default_id)
        except ValueError:
            if self.options["on_invalid"] != "keep":
                raise
            # What can still be asked is kept: without segments, or without an answer.
            task, issue = self._salvage(fields, default_id)
            issues = (*issues, issue)
        try:
            task_id = unique_id(task, self._asked.get)
        except ValueError as error:
            raise Defect("duplicate_id", str(error), meant=True) from None  # it is asked once
        path, there = self.finder.find(task.video)
        self._asked[task_id] = asked(task)
        if task_id != task.task_id:
            issues = (*issues, "shared_id")
        # A frozen dataclass is rebuilt by hand here: dataclasses.replace costs three times as much.
        video_id = task.video if task.video_id in ("", task.video) else task.video_id
        changed: dict[str, Any] = {"task_id": task_id, "video": path, "video_id": video_id}
        changed["issues"] = (*task.issues, *issues)
        if there:  # the same question about another encoding of its video is another question
            changed["meta"] = {**task.meta, VIDEO_BYTES: self.finder.size(path)}
        task = Task(**{**task.__dict__, **changed})
        seed = self.options["shuffle_options"]
        return (task if seed is None else shuffled(task, seed)), there

    def _parse(self, fields: Mapping[str, Any], default_id: str) -> Task:
        least = self.dataset.least_options
        return parse_record(fields, default_id=default_id, file=self._file, least_options=least)

    def _salvage(self, fields: Mapping[str, Any], default_id: str) -> tuple[Task, str]:
        """Return the task of a broken record, and what had to be given up for it."""
        if diagnose(fields) != "answer_not_in_options":
            try:
                return self._parse({**fields, "segments": None}, default_id), "no_segments"
            except ValueError:
                pass
        return self._parse({**fields, "answer": None, "segments": None}, default_id), "unscorable"

    def _wants_missing(self, task: Task) -> bool:
        self.missing.append(f"{task.task_id}: {task.video}")
        if self.options["on_missing_video"] == "raise":
            raise VideoNotFoundError(f"is missing{self.unpack_hint()}", path=task.video)
        return self.options["on_missing_video"] == "keep"

    def _wants(self, task: Task) -> bool:
        options = self.options
        if options["where"]:
            groups = self.dataset.groups(asdict(task))
            for name, values in options["where"].items():
                if name not in groups:
                    raise ValueError(
                        f"where names {name!r}; {self.name} knows the groups {sorted(groups)}"
                    )
                self._values.setdefault(name, set()).update(groups[name])
                if not set(values) & set(groups[name]):
                    return False
        duration_s, share = task.duration_s, relevant_share(task)
        limit, least_s = options["relevant_share_below"], options["longer_than_s"]
        if limit is not None and not (share is not None and share < limit):
            return False
        return least_s is None or (duration_s is not None and duration_s > least_s)

    def _nothing_left(self) -> str:
        files = ", ".join(str(file) for file in self.files)
        if self.invalid and not self.filtered:
            return (
                f"{files}: none of {self.rows} rows is usable, {len(self.invalid)} are broken; "
                f"the first: {self.invalid[0]}"
            )
        if self.missing and self.options["on_missing_video"] == "skip":
            return (
                f"{files}: no video of {len(self.missing)} tasks is there, the first is "
                f"{self.missing[0]}{self.unpack_hint()}; pass video_root= with their directory"
            )
        known = {name: sorted(values) for name, values in self._values.items()}
        there = f"; there are {known}" if known else ""
        return f"{files}: no task of split {self.split!r} passes the filters {self.options}{there}"


def _kind(record: Mapping[str, Any] | ValueError) -> str:
    return "malformed_row" if isinstance(record, ValueError) else diagnose(record)


def relevant_share(task: Task) -> float | None:
    """Return which share of the video the segments cover, or None if that is not known."""
    if not task.segments_s or not task.duration_s:
        return None
    covered, end = 0.0, 0.0
    for start_s, end_s in task.segments_s:  # sorted
        covered += max(0.0, end_s - max(start_s, end))
        end = max(end, end_s)
    return covered / task.duration_s


def _wanted(where: Mapping[str, Any] | None) -> dict[str, list[str]]:
    if where is None:
        return {}
    if not isinstance(where, Mapping):
        raise ValueError(f'where={where!r} must map groups to values: {{"duration": "long"}}')
    return {
        str(name): [str(value) for value in ([values] if _single(values) else values)]
        for name, values in where.items()
    }


def _single(values: Any) -> bool:
    return isinstance(values, (str, int, float))
