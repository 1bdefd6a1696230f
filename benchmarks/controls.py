"""Controls: the same questions in a form that tells what a score is made of.

A policy that sees the video should do worse when it sees nothing (``blind``) or next to nothing
(``single_frame``), as well when the options change places (``shuffled``), and should stand by its
answer in every rotation of the options (``circular``). The first two change the environment, the
last two the tasks. Whatever is drawn comes from hashlib, so that it is the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from gym_longvideo import checks
from gym_longvideo.record import EpisodeRecord
from gym_longvideo.suite import Suite
from gym_longvideo.task import Task
from gym_longvideo.video.source import Video

Control = Literal["none", "blind", "single_frame", "shuffled", "circular"]
CONTROLS: tuple[str, ...] = get_args(Control)

_SETTINGS: dict[str, dict[str, Any]] = {
    "blind": {"overview_frames": 0, "max_turns": 1},
    "single_frame": {"overview_frames": 1, "max_turns": 1, "frame_budget": None},
}
# Knobs of a card that follow from a control, beside "control". Where the only turn shows nothing or
# one frame, a budget buys nothing; the prompt says how many turns there are.
_LOOK = (
    *("settings.overview_frames", "settings.frames_per_retrieval", "settings.frame_budget"),
    *("settings.max_turns", "prompt_digest"),
)
_SHUFFLE = "suite.options.shuffle_options"
_FOLLOWING: dict[str, tuple[str, ...]] = {
    "blind": _LOOK,
    "single_frame": _LOOK,
    "shuffled": ("suite.digest",),
    "circular": ("suite.digest", "suite.tasks"),
}


def control_settings(control: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the environment under a control.

    Args:
        control: One of ``CONTROLS``.
        settings: Keyword arguments of ``LongVideoQAEnv``.

    Raises:
        ValueError: For an unknown control.

    >>> control_settings("blind", {"frame_budget": 32, "max_turns": 3})
    {'frame_budget': 32, 'max_turns': 1, 'overview_frames': 0}
    """
    checks.choice("control", control, CONTROLS)
    changed = {**settings, **_SETTINGS.get(control, {})}
    if control in _SETTINGS and changed.get("frame_budget", 0) is None:
        # Nothing is ever retrieved in the only turn, but the budget is made of both parts.
        changed["frames_per_retrieval"] = settings.get("frames_per_retrieval") or 1
    return changed


def control_knobs(protocols: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the knobs in which cards may differ because of their controls alone.

    An order of options that the suite itself shuffles (``shuffle_options``) is one too. Where a
    digest is among the knobs, questions are to be compared one by one (``as_annotated``).

    Args:
        protocols: ``Card.protocol`` of each.
    """
    knobs = {"control"}
    seeds = set()
    for protocol in protocols:
        knobs |= set(_FOLLOWING.get(str(protocol.get("control")), ()))
        seeds.add((protocol.get("suite", {}).get("options") or {}).get("shuffle_options"))
    return frozenset(knobs | ({_SHUFFLE, "suite.digest"} if len(seeds) > 1 else set()))


def reorders(protocol: Mapping[str, Any]) -> bool:
    """Return whether options stand in another order than the annotation has them.

    Args:
        protocol: ``Card.protocol``.
    """
    options = protocol.get("suite", {}).get("options") or {}
    control = protocol.get("control")
    return control in ("shuffled", "circular") or options.get("shuffle_options") is not None


def chosen(suite: Suite, episodes: int | None, seed: int = 0) -> list[int]:
    """Return the indices of the questions to play, in the order of the suite.

    Fewer episodes are always a part of more, and what is chosen depends on ids alone.

    Args:
        suite: The suite.
        episodes: How many; ``None`` for all.
        seed: Of the choice.

    Raises:
        ValueError: If ``episodes`` is no whole number from 1 to the size of the suite.
    """
    if episodes is None:
        return list(range(len(suite)))
    checks.whole("episodes", episodes, 1, optional=True)
    if episodes > len(suite):
        advice = "ask for fewer, or leave it out to play all"
        if suite.name == "haystack":  # as many as one likes
            size = json.dumps({"size": episodes})
            advice += f"; or make the suite larger with --suite-options '{size}'"
        raise ValueError(f"episodes={episodes} are more than the {len(suite)} questions of "
                         f"{suite.name}, split {suite.split!r}; {advice}")  # fmt: skip
    lots = [_draw(seed, "episode", suite[i].task_id) for i in range(len(suite))]
    return sorted(sorted(range(len(suite)), key=lots.__getitem__)[:episodes])


class ControlledSuite:
    """The questions of a suite that are played, changed as a control says.

    Implements the ``Suite`` protocol. Under "circular" each rotation of the options is a task of
    its own, ``task_id@rotation``, and ``meta["circular"]`` holds ``[task_id, rotation]``: option i
    of rotation r is option (i + r) mod K of the question. Under "shuffled" ``meta["shuffled"]``
    lists which option of the question stands at each place.

    Args:
        suite: The suite.
        control: One of ``CONTROLS``.
        indices: Which questions; all by default.
        seed: Of the shuffle.
        options: What the suite was loaded with, where it does not say so itself.

    Attributes:
        dataset: The benchmark that the suite belongs to, ``None`` if there is none.
        annotation_digests: Digests of the files it was read from, by name.

    Raises:
        ValueError: For an unknown control.
    """

    def __init__(
        self,
        suite: Suite,
        control: str = "none",
        *,
        indices: Sequence[int] | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        checks.choice("control", control, CONTROLS)
        self.suite, self.control, self.seed = suite, control, seed
        self.name, self.split, self.max_options = suite.name, suite.split, suite.max_options
        self.options: Mapping[str, Any] = getattr(suite, "options", None) or options or {}
        self.dataset = getattr(suite, "dataset", None)
        self.annotation_digests = getattr(suite, "annotation_digests", {})
        kept = range(len(suite)) if indices is None else indices
        self._plays: list[tuple[int, int]] = [
            (index, rotation)
            for index in kept
            for rotation in range(len(suite[index].options) if control == "circular" else 1)
        ]
        self._places = {play: place for place, play in enumerate(self._plays)}

    def __len__(self) -> int:
        return len(self._plays)

    def __getitem__(self, index: int) -> Task:
        if not 0 <= index < len(self._plays):
            raise IndexError(f"index {index} is out of range; use 0..{len(self._plays) - 1}")
        place, rotation = self._plays[index]
        task = self.suite[place]
        if self.control == "circular":
            return rotated(task, rotation)
        return shuffled(task, self.seed) if self.control == "shuffled" else task

    def __deepcopy__(self, memo: dict[int, Any]) -> ControlledSuite:
        return self

    def __repr__(self) -> str:
        return f"ControlledSuite({self.suite!r}, {self.control!r}, tasks={len(self)})"

    def keys(self) -> list[str]:
        """Return the ids of all tasks, in order."""
        return [self[index].task_id for index in range(len(self))]

    def index_of(self, task_id: str) -> int:
        """Return the index of a task; raise KeyError naming the id if it does not exist."""
        original, rotation = self._original(task_id)
        try:
            return self._places[self.suite.index_of(original), rotation]
        except KeyError:
            raise KeyError(f"task {task_id!r} is not in {self!r}") from None

    def open_video(self, task: Task, *, backend: str = "pyav", isolate: bool = False) -> Video:
        """Open the video of a task, as the suite beneath does."""
        if self.control == "circular":  # a suite may look its own ids up
            task = self.suite[self.suite.index_of(self._original(task.task_id)[0])]
        return self.suite.open_video(task, backend=backend, isolate=isolate)

    def _original(self, task_id: str) -> tuple[str, int]:
        if self.control != "circular":
            return task_id, 0
        original, _, rotation = task_id.rpartition("@")
        return original, int(rotation) if rotation.isdecimal() else -1


def rotated(task: Task, rotation: int) -> Task:
    """Return a task with its options moved ``rotation`` places to the front, round and round.

    >>> turned = rotated(Task("7", "v.mp4", "Which?", ("x", "y", "z"), 0), 1)
    >>> turned.task_id, turned.options, turned.answer_index
    ('7@1', ('y', 'z', 'x'), 2)
    """
    count = len(task.options)
    order = [(place + rotation) % count for place in range(count)]
    return _reordered(
        task, order, f"{task.task_id}@{rotation}", {"circular": [task.task_id, rotation]}
    )


def shuffled(task: Task, seed: int = 0) -> Task:
    """Return a task with its options in an order drawn from its id.

    ``meta["shuffled"]`` lists which option of the annotation stands at each place, however often
    the task is shuffled.
    """
    places = range(len(task.options))
    order = sorted(places, key=lambda place: _draw(seed, f"option {place}", task.task_id))
    earlier = task.meta.get("shuffled", places)
    note = {"shuffled": [earlier[place] for place in order]}
    return _reordered(task, order, task.task_id, note)


def _reordered(task: Task, order: list[int], task_id: str, note: dict[str, Any]) -> Task:
    """Return a task whose option i is option ``order[i]`` of the given one."""
    answer = None if task.answer_index is None else order.index(task.answer_index)
    fields = {
        "task_id": task_id,
        "options": tuple(task.options[place] for place in order),
        "answer_index": answer,
        "meta": {**task.meta, **note},
    }
    return Task(**{**task.__dict__, **fields})


def _draw(seed: int, what: str, task_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{what}\n{task_id}".encode("utf-8", "backslashreplace")).digest()


def record_key(record: EpisodeRecord) -> str:
    """Return the key of an episode: its task's id, with "@rotation" under the circular control."""
    task_id, rotation = rotation_of(record)
    return task_id if rotation is None else f"{task_id}@{rotation}"


def rotation_of(record: EpisodeRecord) -> tuple[str, int | None]:
    """Return the task_id of an episode's question, and its rotation under the circular control."""
    circular = record.task["meta"].get("circular")
    if circular is None:
        return str(record.task["task_id"]), None
    try:
        task_id, rotation = circular
        return str(task_id), int(rotation)
    except (TypeError, ValueError):
        raise ValueError(
            f"record {record.task['task_id']!r}: meta.circular={circular!r} is not [task_id, "
            "rotation]"
        ) from None


def as_annotated(record: EpisodeRecord) -> dict[str, Any]:
    """Return what an episode asked, with the options in the order of the annotation.

    Whatever a control or ``shuffle_options`` does to a question, this stays the same.

    Returns:
        "question", "options", "answer_index", "segments_s" and "video" (its id).

    Raises:
        ValueError: If ``meta`` says of the order of options what cannot be.
    """
    task, meta = record.task, record.task["meta"]
    options, answer, video = task["options"], task["answer_index"], str(task["video_id"])
    places = range(len(options))
    rotation = rotation_of(record)[1] or 0
    stood = meta.get("shuffled", places)
    if not isinstance(stood, (list, tuple, range)) or set(stood) != set(places):
        raise ValueError(
            f"record {task['task_id']!r}: meta.shuffled={stood!r} does not say where each of its "
            f"{len(options)} options stood"
        )
    order = [stood[(place + rotation) % len(options)] for place in places]
    return {
        "question": task["question"],
        "options": [options[order.index(place)] for place in places],
        "answer_index": None if answer is None else order[answer],
        "segments_s": [list(segment) for segment in task["segments_s"]],
        # Elsewhere, the same files have another path.
        "video": os.path.basename(video) if os.path.isabs(video) else video,
    }
