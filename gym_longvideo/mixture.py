"""MixtureSuite: several suites as one, each with a weight.

``"nextgqa:val,qvhighlights_segments:train"`` names one; every part may name its own split. An epoch
has each task of a part as often as the part's weight says. Left out: shares that change while
training goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gym_longvideo import checks
from gym_longvideo.task import Task
from gym_longvideo.video.source import Video


class MixtureSuite:
    """Several suites as one.

    Task ids are those of the parts after the part's name and a slash.

    Args:
        parts: The suites, by the name of each.
        weights: How often an epoch has each task of a part, by its name; 1 for those that are not
            named. With 1.5 half of its tasks, always the same, come twice; with 0.5 half of them
            do not come at all.

    Attributes:
        name: Those of the parts, with commas between them.
        split: Those of the parts, with commas between them.
        parts: The suites, by the name of each.

    Raises:
        ValueError: If there are no parts, a weight is not positive or names no part, or no task of
            a part is left.
    """

    def __init__(
        self, parts: Mapping[str, Any], weights: Mapping[str, float] | None = None
    ) -> None:
        if not parts:
            raise ValueError("parts is empty; name at least one suite")
        weights = dict(weights or {})
        checks.names("weights: the mixture", weights, list(parts))
        self.parts = dict(parts)
        self.name = ",".join(self.parts)
        self.split = ",".join(part.split for part in self.parts.values())
        self.max_options = max(part.max_options for part in self.parts.values())
        self._places: list[tuple[str, int]] = []
        for name, part in self.parts.items():
            weight = weights.get(name, 1)
            checks.number(f"weights[{name!r}]", weight, above=0)
            chosen = _repeated(part, float(weight))
            if not chosen:
                raise ValueError(
                    f"weights[{name!r}]={weight} leaves none of its {len(part)} tasks; leave the "
                    "part out, or give it a larger weight"
                )
            self._places += [(name, index) for index in chosen]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Task:
        if not 0 <= index < len(self):
            raise IndexError(f"index={index} is outside 0..{len(self) - 1}")
        name, place = self._places[index]
        task = self.parts[name][place]
        return replace(task, task_id=f"{name}/{task.task_id}")

    def __deepcopy__(self, memo: dict[int, Any]) -> MixtureSuite:
        return self

    def __repr__(self) -> str:
        return f"MixtureSuite({self.name!r}, split={self.split!r}, tasks={len(self)})"

    def index_of(self, task_id: str) -> int:
        """Return the first index of a task; raise KeyError if it does not exist."""
        name, place = self._of_part(task_id)
        try:
            return self._places.index((name, place))
        except ValueError:
            raise KeyError(task_id) from None

    def open_video(self, task: Task, *, backend: str = "pyav", isolate: bool = False) -> Video:
        """Open the video of a task, as its part does."""
        name, place = self._of_part(task.task_id)
        part = self.parts[name]
        return part.open_video(part[place], backend=backend, isolate=isolate)

    def _of_part(self, task_id: str) -> tuple[str, int]:
        # Names of parts may hold slashes, as paths do.
        for name, part in self.parts.items():
            if task_id.startswith(f"{name}/"):
                return name, part.index_of(task_id[len(name) + 1 :])
        raise KeyError(task_id)


def _repeated(part: Any, weight: float) -> Sequence[int]:
    """Return the indices of a part's tasks, as often as an epoch has them."""
    whole, more = divmod(weight, 1)
    count = round(more * len(part))
    few: list[int] = []
    if count:
        drawn = sorted(range(len(part)), key=lambda i: _digest(part[i].task_id))
        few = sorted(drawn[:count])
    return [*(list(range(len(part))) * int(whole)), *few]


def _digest(task_id: str) -> bytes:
    return hashlib.sha256(task_id.encode("utf-8", "surrogatepass")).digest()
