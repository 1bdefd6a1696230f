"""The record of Video-R1, which Video-MTR and others use for training and evaluation alike.

No file of Video-MTR's training set was at hand: its form is reconstructed from the code that reads
it, so everything is optional that can be. Stored frame indices count in that code's own pool of at
most 64 frames at one a second; they are kept with their unit, and the segments in seconds are what
counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.datasets.dataset import Defect
from benchmarks.datasets.repair import clean_segments, embedded_options, merge, number
from gym_longvideo.annotation import SEGMENTS

POOL_SIZE = 64
_OWN = ("problem", "solution", "options", "path", "vid", "duration", "problem_id", *SEGMENTS)
_CHOICE = ("multiple choice", "multiple-choice", "multiple_choice", "mcq", "mc")


def video_r1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a record.

    Raises:
        Defect: If it is about an image, or asks for anything but a choice.
    """
    if (medium := fields.get("data_type", "video")) != "video":
        raise Defect(
            "not_a_video", f"data_type={medium!r}; only videos can be looked at", meant=True
        )
    kind = fields.get("problem_type")
    if kind is not None and str(kind).lower() not in _CHOICE:
        raise Defect(
            "not_multiple_choice",
            f"problem_type={kind!r} has no options to choose from",
            meant=True,
        )
    question, options = _question(fields)
    duration_s = number(fields.get("duration"))
    windows = next((fields[name] for name in SEGMENTS if fields.get(name)), None)
    record = {
        "video": _path(fields),
        "question": question,
        "options": options,
        "answer": fields.get("solution", fields.get("answer")),
        **({} if duration_s is None else {"duration": duration_s}),
    }
    if "problem_id" in fields:
        record["id"] = str(fields["problem_id"])
    if record["answer"] is None:
        raise Defect("no_answer", "the record has no solution, or an empty one")
    return merge(
        {key: value for key, value in fields.items() if key not in _OWN},
        record,
        clean_segments(windows, duration_s),
        _evidence(fields.get("relevant_sample_frames"), duration_s),
    )


def _path(fields: Mapping[str, Any]) -> Any:
    """Return the path below the root of the data, as Video-MTR finds it."""
    path = fields.get("path") or fields.get("video") or fields.get("video_path")
    if not path and fields.get("vid"):
        return f"videos/{fields['vid']}.mp4"
    return path.removeprefix("./").removeprefix("Evaluation/") if isinstance(path, str) else path


def _question(fields: Mapping[str, Any]) -> tuple[Any, Any]:
    question = fields.get("problem", fields.get("question"))
    options = fields.get("options")
    if isinstance(options, Mapping):
        options = list(options.values())
    if isinstance(options, str):
        options = [line for line in options.split("\n") if line.strip()]
    if not options and (found := embedded_options(question)):
        return found
    if not options:
        raise Defect("no_options", "the record has no options to choose from")
    return question, options


def _evidence(frames: Any, duration_s: float | None) -> dict[str, Any]:
    if not isinstance(frames, list) or not frames:
        return {}
    size = POOL_SIZE
    if duration_s is not None:
        size = int(min(max(duration_s, 4.0), POOL_SIZE)) // 2 * 2
    kept = [frame for frame in frames if isinstance(frame, int) and 0 <= frame < size]
    issues = ["garbage_evidence_frames"] if len(kept) < len(frames) else []
    return {"evidence_frames": kept, "evidence_unit": "pool_index", "issues": issues}
