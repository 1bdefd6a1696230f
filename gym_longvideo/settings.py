"""EnvSettings: every setting of an environment, in one place, with its default and its check.

The arguments of ``LongVideoQAEnv``, what its records say, what the viewer reads, the options of an
evaluation and what a policy was trained with are all made from the fields of these classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

from gym_longvideo import checks
from gym_longvideo.episode import Budget, Evidence, IntervalOrder, Retrieval, Sampling
from gym_longvideo.order import Order
from gym_longvideo.rewards import BiLevelReward, make_reward
from gym_longvideo.video import BACKENDS
from gym_longvideo.video.pool import Rule, Seek
from gym_longvideo.video.source import Fit

OnVideoError = Literal["raise", "skip"]
LEAST_UNITS = 4  # of a frame that is shown as it is
# Settings by the name of what they play; see docs/fidelity.md.
RULES: Mapping[str, Mapping[str, Any]] = {
    # Video-MTR, the released code: 16 frames and 8 for each retrieval, however many turns.
    "video_mtr_code": {
        "max_turns": 3,
        "frame_budget": None,
        "overview_frames": 16,
        "frames_per_retrieval": 8,
        "pool_size": 64,
        "pool_rule": "per_second",
        "sampling": "linspace",
        "retrieval": "pool",
        "interval_order": "ascending",
        "evidence": "listed",
        "reward": "video_mtr_code",
        "seek": "exact",
    },
}
# What a setting that is newer than the first cards was before: it is left out of them.
_BEFORE = {"sampling": "even", "interval_order": "either", "evidence": "segments"}


@dataclass(frozen=True)
class EpisodeSettings:
    """What a policy sees and may do: it learns to act under these.

    Attributes:
        max_turns: Turns of an episode (K_max).
        frame_budget: Frames shown in an episode at most (B): B/2 in the overview, B/4 for each
            retrieval. None for the sum of the next two.
        overview_frames: Frames of the overview (n0) instead of B/2; 0 is legal.
        frames_per_retrieval: Most frames of a retrieval (f_max) instead of B/4.
        pool_size: Candidate frames of a video (M); one with fewer frames has a shorter pool.
        pool_rule: "midpoint" of M equal parts; "linspace" over source frames; "per_second" over
            them too, with a frame a second in videos of fewer than M seconds (the released code).
        sampling: Which pool frames stand for the pool in the overview, and for an interval:
            "even" takes middles of equal parts and rounds to the nearest frame; "linspace" goes
            from the first frame to the last in equal steps, rounded down (the released code).
        frame_size: Side of the square frames in pixels, or (height, width).
        fit: "stretch" or "letterbox" to the frame size.
        max_pixels: For views that show frames as they are (``TextProtocol``): pixels of a frame at
            most, in which it keeps the aspect ratio of its video; ``frame_size`` and ``fit`` then
            hold for the numeric observation alone. None shows frames of ``frame_size`` there too.
        pixel_unit: Sides of such frames are multiples of it: the side in pixels of what a model
            makes one token of (28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL and Qwen3.5).
        retrieval: "pool" shows pool frames of the interval; "timeline" samples the raw video
            between its ends, so that a retrieval can see what lies between pool frames.
        interval_order: Whether the pool indices of an interval may come in "either" order, or must
            be "ascending": one that ends before it starts is malformed then (the released code).
            Text protocols that name intervals in seconds put them in order themselves.
        evidence: Which pool frames are relevant: those inside the "segments" of a task, or those
            "listed" as ``evidence_frames`` by an annotation that has such a list (the 8K file of
            Video-MTR; its frames count in the pool of the released code).

    Raises:
        ValueError: For a value that is not allowed, naming it and the fix.
    """

    max_turns: int = 3
    frame_budget: int | None = 32
    overview_frames: int | None = None
    frames_per_retrieval: int | None = None
    pool_size: int = 128
    pool_rule: Rule = "midpoint"
    frame_size: int | tuple[int, int] = 56
    fit: Fit = "stretch"
    max_pixels: int | None = None
    pixel_unit: int = 28
    retrieval: Retrieval = "pool"
    sampling: Sampling = "even"
    interval_order: IntervalOrder = "either"
    evidence: Evidence = "segments"

    def __post_init__(self) -> None:
        checks.keep_whole(self, "max_turns", 1)
        checks.keep_whole(self, "pool_size", 1)
        checks.choice("pool_rule", self.pool_rule, get_args(Rule))
        checks.choice("fit", self.fit, get_args(Fit))
        checks.choice("retrieval", self.retrieval, get_args(Retrieval))
        checks.choice("sampling", self.sampling, get_args(Sampling))
        checks.choice("interval_order", self.interval_order, get_args(IntervalOrder))
        checks.choice("evidence", self.evidence, get_args(Evidence))
        self.budget  # noqa: B018 - refuses numbers that do not fit
        for name in ("frame_budget", "overview_frames", "frames_per_retrieval"):
            checks.keep_whole(self, name, optional=True)
        checks.keep_whole(self, "pixel_unit", 1)
        least = LEAST_UNITS * self.pixel_unit**2
        checks.keep_whole(self, "max_pixels", least, optional=True)
        size = self.frame_shape
        object.__setattr__(self, "frame_size", size[0] if size[0] == size[1] else size)

    @cached_property
    def budget(self) -> Budget:
        """The frames of overview and retrievals."""
        return Budget.split(
            self.frame_budget,
            overview=self.overview_frames,
            retrieval=self.frames_per_retrieval,
            max_turns=self.max_turns,
        )

    @cached_property
    def frame_shape(self) -> tuple[int, int]:
        """Height and width of the frames in pixels."""
        size = self.frame_size
        sides = size if isinstance(size, (tuple, list)) else (size, size)
        if len(sides) != 2 or not all(checks.is_whole(side) for side in sides):
            raise ValueError(f"frame_size={size!r} is neither a side nor (height, width)")
        if min(sides) < 1:
            raise ValueError(f"frame_size={size!r} must be 1 pixel or more")
        return int(sides[0]), int(sides[1])

    def shape_of(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width in which a frame of a video is shown as it is.

        That of the video in multiples of ``pixel_unit``, shrunk to ``max_pixels``, and enlarged to
        four units where it is smaller; so the sides keep their ratio up to rounding.

        Args:
            height: Of the video, in pixels, as it is displayed.
            width: The same.

        >>> EpisodeSettings(max_pixels=128 * 28 * 28).shape_of(1080, 1920)
        (224, 420)
        """
        if self.max_pixels is None:
            return self.frame_shape
        unit = self.pixel_unit
        least, most = LEAST_UNITS, self.max_pixels // unit**2
        rows, columns = height / unit, width / unit
        scale = min(1.0, math.sqrt(most / (rows * columns)))
        scale = max(scale, math.sqrt(least / (rows * columns)))
        tall, broad = (max(1, round(side * scale)) for side in (rows, columns))
        # Rounding, or a side of at least one unit, may have gone beyond: the longer side gives way.
        if tall * broad > most:
            tall, broad = (min(tall, most // broad), broad) if tall > broad else (
                tall, min(broad, most // tall)
            )  # fmt: skip
        return tall * unit, broad * unit

    def resolved(self) -> dict[str, Any]:
        """Return the numbers that the settings come to, by name, JSON-able."""
        left_out = [name for name, before in _BEFORE.items() if getattr(self, name) == before]
        left_out += [] if self.max_pixels else ["max_pixels", "pixel_unit"]
        names = [each.name for each in fields(EpisodeSettings) if each.name not in left_out]
        return {
            **{name: getattr(self, name) for name in names},
            "frame_budget": self.budget.total,
            "overview_frames": self.budget.overview,
            "frames_per_retrieval": self.budget.retrieval,
            "frame_size": list(self.frame_shape),
        }


@dataclass(frozen=True)
class DecodingSettings:
    """How frames are read from a file.

    Attributes:
        seek: "exact"; "keyframe" (nearest); "auto" takes a keyframe within 0.15 of the spacing and
            is exact elsewhere and wherever the spacing is under 4 s.
        backend: "pyav", "decord" or "torchcodec".
        isolate: Decode in a child process, so that a decoder that crashes or hangs on a file costs
            an episode and not the run.
        deadline_s: Seconds one decoding call may take; None for no limit.
        cache_mb: Megabytes of decoded frames kept between episodes, shared by the environments of a
            process; 0 keeps none. With ``cache_dir``, the limit of that directory.
        cache_dir: Directory for decoded frames, shared between processes and runs; one that cannot
            be used is as good as none.

    Raises:
        ValueError: For a value that is not allowed, naming it and the fix.
    """

    seek: Seek = "auto"
    backend: str = "pyav"
    isolate: bool = False
    deadline_s: float | None = 60.0
    cache_mb: float = 0.0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        checks.choice("seek", self.seek, get_args(Seek))
        checks.choice("backend", self.backend, BACKENDS)
        checks.choice("isolate", self.isolate, (True, False))
        checks.number("deadline_s", self.deadline_s, above=0, unit="seconds", optional=True)
        checks.number("cache_mb", self.cache_mb, 0)
        if self.cache_dir is not None and not isinstance(self.cache_dir, (str, os.PathLike)):
            raise ValueError(
                f"cache_dir={self.cache_dir!r} must be the path of a directory, or None"
            )


@dataclass(frozen=True)
class EnvSettings(DecodingSettings, EpisodeSettings):
    """Every setting of an environment beside its suite.

    Attributes:
        reward: Preset name, mapping of fields, or ``BiLevelReward``.
        order: "shuffled" (every task once per epoch) or "sequential". Seeding starts over.
        shard: (i, n): only tasks i, i + n, i + 2n, ..., so that n environments cover a suite.
        on_video_error: At reset, "raise" the ``VideoError`` or "skip" to the next task. Faults of
            the machine and a backend that is missing are raised in either case.
        max_options: Choices of the action space (K); None for the suite's own largest number.
        question_bytes: Length of the question's observation (L).

    Raises:
        ValueError: For a value that is not allowed, naming it and the fix.
    """

    reward: str | Mapping[str, Any] | BiLevelReward = "video_mtr"
    order: Order = "shuffled"
    shard: tuple[int, int] | None = None
    on_video_error: OnVideoError = "raise"
    max_options: int | None = None
    question_bytes: int = 512

    def __post_init__(self) -> None:
        EpisodeSettings.__post_init__(self)
        DecodingSettings.__post_init__(self)
        checks.choice("order", self.order, get_args(Order))
        checks.choice("on_video_error", self.on_video_error, get_args(OnVideoError))
        checks.keep_whole(self, "question_bytes", 1)
        self.bi_level_reward  # noqa: B018 - refuses an unknown preset

    @cached_property
    def bi_level_reward(self) -> BiLevelReward:
        """The reward as data."""
        return make_reward(self.reward)

    def resolved(self) -> dict[str, Any]:
        """Return every setting that can move a result, JSON-able, but what the suite decides."""
        return {
            "question_bytes": self.question_bytes,
            **super().resolved(),
            "reward": self.bi_level_reward.to_dict(),
            "seek": self.seek,
            "backend": self.backend,
        }


def with_rules(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those that ``rules`` stands for in its place; given ones win.

    A frame budget that is given is divided as ever, unless its parts are given too.

    Args:
        settings: By name; under "rules" a name of ``RULES``, or None for none.

    Raises:
        ValueError: For unknown rules.

    >>> with_rules({"rules": "video_mtr_code", "pool_size": 32})["pool_size"]
    32
    """
    given = dict(settings)
    name = given.pop("rules", None)
    if name is None:
        return given
    checks.choice("rules", name, tuple(RULES))
    rules = dict(RULES[name])
    if given.get("frame_budget") is not None:
        del rules["overview_frames"], rules["frames_per_retrieval"]
    return {**rules, **given}
