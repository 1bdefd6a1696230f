"""HaystackSuite: long-video questions out of nothing but a seed.

Tasks and worlds are made on demand, in tens of microseconds, and the latest are kept for the whole
process; a video is named by a key that says which task of which suite it belongs to, so any copy of
the suite can open it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

from gym_longvideo import checks
from gym_longvideo.haystack import oracle
from gym_longvideo.haystack.dice import Dice, mix, root_seed
from gym_longvideo.haystack.draft import TWINS, Draft, Twin
from gym_longvideo.haystack.families import BUILDERS
from gym_longvideo.haystack.knobs import FAMILIES, Knobs, default_needle_s
from gym_longvideo.haystack.looks import LOOKS
from gym_longvideo.haystack.video import HaystackVideo
from gym_longvideo.haystack.world import World
from gym_longvideo.task import Task
from gym_longvideo.video.errors import VideoNotFoundError

SPLIT_SIZES = {"train": 4096, "val": 256, "test": 256}
VERSION = 1  # of what a seed looks like; part of every video key

# Tasks with their videos by digest of the settings, index and twin. As many as all splits have by
# default, at 4 kB each: once every task was seen, a reset makes up nothing.
_KEPT = sum(SPLIT_SIZES.values())
_built: dict[tuple[str, int, str], tuple[Task, HaystackVideo]] = {}
_lock = Lock()


class HaystackSuite:
    """Procedural long videos with questions whose evidence is known exactly.

    Implements the ``Suite`` protocol. The answer of every task is uniform over its options and
    independent of the question; ``solve`` says which moments prove it. The segments of a task are
    the spans of the cards that are needed (of a chain: pointer and target); a holistic question has
    none, because the overview answers it and a retrieval is waste.

    Args:
        split: "train", "val" or "test": disjoint streams of tasks.
        families: "all", one family, or several: needle, timestamp, order, count, state, chain,
            holistic, absent. They take turns.
        size: Number of tasks; 4096 for train and 256 otherwise by default.
        duration_s: Length of every video in seconds, 60 or more.
        needle_s: How long a card is held up; 1.1 / 128 of the duration by default. Below 1 / 128 a
            pool of 128 frames may miss it, at 1 / 16 an overview would always show it.
        distractors: Cards in scenes not asked about; 4 by default, where there are enough scenes.
        blocks: Moving blocks in each scene.
        scenes: Scenes of a video.
        depth: (low, high) relative position of needles in the video; everywhere by default.
        within: (low, high) relative position of the needle inside its scene; by default wherever
            ``depth`` leads. (0.5, 0.5) always is the middle, where retrieving around the scene
            finds it.
        looks: How many of the 65 looks are in use; all by default.
        similarity: Chance in [0, 1] that a scene shares its colour or pattern with the one asked
            about.
        target_looks: The scene asked about has one of the first so many looks, and no other scene
            does. With 1 it always is the one framed in white, and the question always reads the
            same.
        glyphs: Kinds of glyphs: shape, letter, digit, symbol, colour; one, several or "all".
        glyph_scale: Side of a glyph as a share of the frame's shorter side.
        options: Choices per question, 2 to 6 ("None of these" included).
        shuffle_options: False for one canonical order of always the same choices.
        paraphrase: Whether wordings vary; by default unless ``target_looks`` is 1.
        seed: Seed of the whole suite.

    Raises:
        ValueError: If a knob is out of range, or knobs do not fit together.

    >>> suite = HaystackSuite("val", families="needle")
    >>> task = suite[3]
    >>> task.task_id, suite.index_of(task.task_id)
    ('val-00003-needle', 3)
    >>> middle_s = sum(task.segments_s[0]) / 2
    >>> suite.solve(task, [middle_s]) == task.answer_index, suite.solve(task, [])
    (True, None)
    """

    def __init__(
        self,
        split: str = "train",
        *,
        families: str | Sequence[str] = "all",
        size: int | None = None,
        duration_s: float = 600.0,
        needle_s: float | None = None,
        distractors: int | None = None,
        blocks: int = 2,
        scenes: int = 10,
        depth: tuple[float, float] | None = None,
        within: tuple[float, float] | None = None,
        looks: int | None = None,
        similarity: float = 0.0,
        target_looks: int | None = None,
        glyphs: str | Sequence[str] = ("shape", "letter", "digit", "symbol", "colour"),
        glyph_scale: float = 0.43,
        options: int = 4,
        shuffle_options: bool = True,
        paraphrase: bool | None = None,
        seed: int = 0,
    ) -> None:
        checks.choice("split", split, SPLIT_SIZES)
        seed = checks.whole("seed", seed)
        size = int(checks.whole("size", SPLIT_SIZES[split] if size is None else size, 1, 10**9))
        self.knobs = Knobs(
            families=_names(families, FAMILIES),
            duration_s=duration_s,
            needle_s=_needle_s(needle_s, duration_s),
            distractors=distractors if distractors is not None else _few(scenes),
            blocks=blocks,
            scenes=scenes,
            depth=_pair(depth),
            within=_pair(within),
            looks=len(LOOKS) if looks is None else looks,
            similarity=similarity,
            target_looks=target_looks,
            glyphs=_names(glyphs, ("shape", "letter", "digit", "symbol", "colour")),
            glyph_scale=glyph_scale,
            options=options,
            shuffle_options=shuffle_options,
            paraphrase=target_looks != 1 if paraphrase is None else paraphrase,
        )
        self.name = "haystack"
        self.split = split
        self.seed = seed
        self.max_options = options
        self._size = size
        self._root = root_seed("haystack", VERSION, seed, split)
        settings = json.dumps(self.settings(), sort_keys=True)
        self._digest = hashlib.sha256(settings.encode()).hexdigest()[:12]

    def __repr__(self) -> str:
        families = "+".join(self.knobs.families)
        return (
            f"HaystackSuite({self.split!r}, {families}, {len(self)} x {self.knobs.duration_s:g} s)"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> HaystackSuite:
        return self  # never changes, so that copies of an environment's spec share it

    def __len__(self) -> int:
        """Number of tasks."""
        return self._size

    def __getitem__(self, index: int) -> Task:
        """Return the task at ``index`` in ``[0, len)``; raise IndexError outside."""
        return self._build(index, "")[0]

    def index_of(self, task_id: str) -> int:
        """Return the index of a task; raise KeyError naming the id if it does not exist."""
        parts = task_id.split("-")
        if len(parts) == 3 and parts[1].isdecimal() and int(parts[1]) < len(self):
            index = int(parts[1])
            if task_id == self._task_id(index, ""):
                return index
        raise KeyError(f"task {task_id!r} is not in {self!r}")

    def settings(self) -> dict[str, Any]:
        """Return all that the tasks follow from, but for the size, as plain values."""
        head = {"version": VERSION, "seed": self.seed, "split": self.split}
        return {**head, **self.knobs.to_json()}

    def open_video(
        self, task: Task, *, backend: str = "pyav", isolate: bool = False
    ) -> HaystackVideo:
        """Open the video of a task or of a twin.

        Args:
            task: A task of this suite or of one with equal settings.
            backend: Unused; nothing is decoded.
            isolate: Unused, for the same reason.

        Raises:
            VideoNotFoundError: If the video belongs to a suite with other settings.
        """
        index, twin = self._parse(task.video)
        return self._build(index, twin)[1]

    def world(self, task: Task) -> World:
        """Return everything that the video of a task shows (hidden from agents)."""
        return self._build(*self._parse(task.video))[1].world

    def twin(self, task: Task, kind: Twin = "swap") -> Task:
        """Return a counterfactual of a task, with a video of its own.

        * "swap": the cards show what makes another option right (holistic: two scenes change
          looks); question and options are the same, the answer is another.
        * "move": the scene with the needle changes places with another one, cards and all; the
          answer is the same, the segments move. A timestamp question asks for the new time.
        * "remove": the needles are gone (of a chain: the second). The answer is None, or "None of
          these" for an absent question; there are no segments.

        Raises:
            ValueError: If there is no such twin (holistic questions only have "swap").
        """
        if kind not in TWINS:
            raise ValueError(f"kind={kind!r} is no twin; use one of {', '.join(TWINS)}")
        index, twin = self._parse(task.video)
        if twin:
            raise ValueError(f"task {task.task_id!r} is a twin itself; pass the original")
        return self._build(index, kind)[0]

    def solve(self, task: Task, times: oracle.Times) -> int | None:
        """Return the answer if frames at these times (seconds) prove it, see ``oracle.solve``."""
        return oracle.solve(task, times)

    def evidence(self, task: Task) -> tuple[tuple[oracle.Span, ...], ...]:
        """Return minimal evidence as groups of spans in seconds, see ``oracle.evidence``."""
        return oracle.evidence(task)

    def minimal_frames(self, task: Task) -> int:
        """Return the fewest frames that prove the answer; 0 where none do."""
        return oracle.minimal_frames(task)

    def oracle_intervals(
        self,
        task: Task,
        pool_times: oracle.Times,
        seen_times: Iterable[float] = (),
        *,
        frames: int = 8,
    ) -> list[tuple[int, int]]:
        """Return the retrievals a clairvoyant would make, see ``oracle.oracle_intervals``."""
        return oracle.oracle_intervals(task, pool_times, seen_times, frames=frames)

    def _family(self, index: int) -> str:
        # Turns shift from round to round, so that every shard (i, n) meets every family.
        families = self.knobs.families
        return families[(index + index // len(families)) % len(families)]

    def _task_id(self, index: int, twin: str) -> str:
        suffix = f"-{twin}" if twin else ""
        return f"{self.split}-{index:05d}-{self._family(index)}{suffix}"

    def _video_key(self, index: int, twin: str) -> str:
        suffix = f":{twin}" if twin else ""
        return f"haystack:{self._digest}:{self.split}:{index}{suffix}"

    def _parse(self, key: str) -> tuple[int, str]:
        parts = key.split(":")
        if len(parts) in (4, 5) and parts[3].isdecimal():
            index, twin = int(parts[3]), parts[4] if len(parts) == 5 else ""
            if (not twin or twin in TWINS) and index < len(self):
                if key == self._video_key(index, twin):
                    return index, twin
        raise VideoNotFoundError(
            f"not a video of {self!r}; open it with a suite of the same settings", path=key
        )

    def _draft(self, index: int, dice: Dice) -> Draft:
        return BUILDERS[self._family(index)](dice, self.knobs)

    def _build(self, index: int, twin: str) -> tuple[Task, HaystackVideo]:
        if not 0 <= index < self._size:
            raise IndexError(
                f"index {index} is out of range; {self!r} has tasks 0..{self._size - 1}"
            )
        key = (self._digest, index, twin)
        if (built := _built.get(key)) is not None:
            return built
        seed = mix(self._root, index)
        draft = self._draft(index, Dice(seed))
        if twin:
            draft.apply(twin, Dice(mix(seed, 1 + TWINS.index(twin))))  # type: ignore[arg-type]
        task, world = draft.finish(
            self.knobs,
            mix(seed, 0) & 0xFF,
            task_id=self._task_id(index, twin),
            video=self._video_key(index, twin),
            video_id=self._video_key(index, ""),
            twin=twin,
        )
        built = task, HaystackVideo(world, task.video)
        with _lock:
            _built[key] = built
            if len(_built) > _KEPT:
                del _built[next(iter(_built))]
        return built


def _names(value: str | Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(value, str):
        return known if value == "all" else (value,)
    return tuple(value)


def _pair(value: Any) -> tuple[float, float] | None:
    return tuple(value) if isinstance(value, list | tuple) else value  # Knobs refuses the rest


def _few(scenes: int) -> int:
    return min(4, scenes - 1) if isinstance(scenes, int) else 4


def _needle_s(needle_s: float | None, duration_s: float) -> float:
    if needle_s is not None:
        return needle_s
    return default_needle_s(duration_s) if isinstance(duration_s, int | float) else 0.0
