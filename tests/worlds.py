"""A small in-memory suite, so that tests of the environment need no decoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from gym_longvideo.task import Task
from gym_longvideo.video import ArrayVideo, FrameDecodeError, VideoOpenError


def grey_video(frames: int = 100, name: str = "grey") -> ArrayVideo:
    """One frame a second; frame i is grey of value i."""
    pixels = np.broadcast_to(
        np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 8, 8, 3)
    ).copy()
    return ArrayVideo(pixels, fps=1.0, name=name)


class GreySuite:
    """100 s of grey, one relevant segment, two to four options."""

    name, split, max_options = "grey", "train", 4

    def __init__(self, tasks: int = 6, frames: int = 100, **fields: Any) -> None:
        self.frames, self.broken = frames, set()
        self.tasks = []
        for i in range(tasks):
            defaults: dict[str, Any] = {
                "task_id": f"grey-{i}",
                "video": f"grey-{i}",
                "question": f"Which grey is it in video {i}?",
                "options": ("dark", "middle", "light", "white")[: 2 + i % 3],
                "answer_index": i % 2,
                "segments_s": ((40.0, 50.0),),
            }
            self.tasks.append(Task(**{**defaults, **fields}))

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def index_of(self, task_id: str) -> int:
        return {task.task_id: i for i, task in enumerate(self.tasks)}[task_id]

    def open_video(self, task: Task, *, backend: str = "pyav", isolate: bool = False) -> Any:
        if task.task_id in self.broken:
            raise VideoOpenError("is not a video", path=task.video)
        return grey_video(self.frames, task.video)

    def __deepcopy__(self, memo: dict) -> GreySuite:
        return self


class FailingVideo:
    """Reads well ``reads`` times, then raises."""

    def __init__(self, reads: int) -> None:
        self.inner, self.left = grey_video(), reads

    @property
    def info(self) -> Any:
        return self.inner.info

    def read(self, times: Any, **options: Any) -> Any:
        if self.left == 0:
            raise FrameDecodeError("no frame at 40.0 s", path="grey")
        self.left -= 1
        return self.inner.read(times, **options)

    def close(self) -> None:
        pass


class FailingSuite(GreySuite):
    """Every video fails at its second read."""

    def open_video(self, task: Task, *, backend: str = "pyav", isolate: bool = False) -> Any:
        return FailingVideo(1)


__all__ = ["FailingSuite", "FailingVideo", "GreySuite", "grey_video"]
