"""Task: one question about one video.

The letter of the answer is authoritative, never its text: real datasets repeat option texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """One multiple-choice question about one video.

    Attributes:
        task_id: Unique within a suite, stable across runs.
        video: What ``Suite.open_video`` opens: an absolute path, or the key of a procedural video.
        question: The question alone, without its options.
        options: Choices without letter prefixes; at least one.
        answer_index: 0-based index of the right choice; ``None`` where no answer is public.
        segments_s: Relevant segments as (start, end) in playback seconds, sorted, ``end > start``;
            empty where none is annotated.
        video_id: The unit by which results are clustered; defaults to ``video``.
        duration_s: Annotated duration in seconds; the decoder's own reading overrides it.
        task_types: Question types, several where a benchmark is multi-label.
        issues: Names of defects found in the annotation and tolerated.
        meta: Untouched native fields, JSON-able.
    """

    task_id: str
    video: str
    question: str
    options: tuple[str, ...]
    answer_index: int | None
    segments_s: tuple[tuple[float, float], ...] = ()
    video_id: str = ""
    duration_s: float | None = None
    task_types: tuple[str, ...] = ()
    issues: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError(f"task {self.task_id!r}: options is empty; a task needs choices")
        if len(self.options) > 26:
            raise ValueError(
                f"task {self.task_id!r} has {len(self.options)} options; there are letters for 26"
            )
        if self.answer_index is not None and not 0 <= self.answer_index < len(self.options):
            raise ValueError(
                f"task {self.task_id!r}: answer_index={self.answer_index} is not one of the "
                f"{len(self.options)} options; use 0..{len(self.options) - 1}, or None if unknown"
            )
        for start_s, end_s in self.segments_s:
            if not 0 <= start_s < end_s:
                raise ValueError(
                    f"task {self.task_id!r}: segment ({start_s}, {end_s}) is not 0 <= start < end "
                    "in seconds"
                )
        if not self.video_id:
            object.__setattr__(self, "video_id", self.video)
