"""ArrayVideo: frames held in memory, for tests and for data that is not in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from gym_longvideo.video.request import check_output, check_times, empty_batch
from gym_longvideo.video.source import Fit, FrameBatch, FrameStatus, VideoInfo


class ArrayVideo:
    """A video whose frames are an array.

    Args:
        frames: (N, H, W, 3) uint8 RGB.
        fps: Frames per second of a video with a constant rate.
        timestamps_s: (N,) ascending seconds at which each frame starts being shown, the first 0;
            instead of ``fps``.
        duration_s: Playable seconds; by default the last frame is shown as long as the mean frame.
        keyframe_every: Every so many frames one counts as a keyframe for ``tolerance_s``; 0: none.
        name: What ``info.path`` says.

    >>> video = ArrayVideo(np.zeros((4, 8, 8, 3), np.uint8), fps=2.0)
    >>> video.read([0.6, 1.9]).actual_s.tolist()
    [0.5, 1.5]
    """

    backend = "array"

    def __init__(
        self,
        frames: np.ndarray,
        *,
        fps: float | None = None,
        timestamps_s: Sequence[float] | np.ndarray | None = None,
        duration_s: float | None = None,
        keyframe_every: int = 0,
        name: str = "array",
    ) -> None:
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise ValueError(
                f"frames has shape {frames.shape} and dtype {frames.dtype}; pass (N, H, W, 3) uint8"
            )
        if (fps is None) == (timestamps_s is None):
            raise ValueError("pass either fps= or timestamps_s=, not both")
        count = len(frames)
        if timestamps_s is None:
            assert fps is not None
            times = np.arange(count) / fps
        else:
            times = np.array(timestamps_s, np.float64)
            if times.shape != (count,) or times[0] != 0 or (np.diff(times) <= 0).any():
                raise ValueError(
                    f"timestamps_s must be {count} ascending seconds from 0; got {times.tolist()}"
                )
        mean = 1 / fps if fps else (times[-1] / (count - 1) if count > 1 else 1.0)
        duration = float(times[-1] + mean) if duration_s is None else float(duration_s)
        self._frames, self._times = frames, times
        self._keys = np.arange(0, count, keyframe_every) if keyframe_every else None
        digest = hashlib.sha1(f"{name} {frames.shape} {duration}".encode())
        digest.update(np.ascontiguousarray(frames).tobytes() + times.tobytes())
        self._info = VideoInfo(
            path=name,
            container="array",
            codec="raw",
            width=frames.shape[2],
            height=frames.shape[1],
            rotation=0,
            fps=count / duration,
            duration_s=duration,
            declared_s=duration,
            start_s=0.0,
            frame_count=count,
            truncated=False,
            key=digest.hexdigest(),
        )

    @property
    def info(self) -> VideoInfo:
        """Facts about the video."""
        return self._info

    def read(
        self,
        times: Sequence[float] | np.ndarray,
        *,
        size: tuple[int, int] | None = None,
        fit: Fit = "stretch",
        tolerance_s: float = 0.0,
        deadline_s: float | None = 60.0,
    ) -> FrameBatch:
        """Return the frames shown at the given playback times; see ``Video.read``."""
        seconds = check_times(times, self._info)
        height, width = check_output(size, fit, tolerance_s, self._info)
        batch = empty_batch(seconds, height, width)
        shown = np.searchsorted(self._times, seconds + 1e-9, side="right") - 1
        if self._keys is not None and tolerance_s > 0:
            distance = np.abs(self._times[self._keys][None, :] - seconds[:, None])
            nearest = distance.argmin(axis=1)
            near = distance[np.arange(len(seconds)), nearest] <= tolerance_s
            snapped = np.where(near, self._keys[nearest], shown)
            batch.status[snapped != shown] = FrameStatus.SNAPPED
            shown = snapped
        for row, index in enumerate(shown):
            pixels = self._frames[index]
            if pixels.shape == (height, width, 3):
                batch.frames[row] = pixels
            else:
                from gym_longvideo.video.picture import resize  # imports av: only when needed

                resize(pixels, batch.frames[row], fit)
        batch.actual_s[:] = self._times[shown]
        batch.frames_decoded = len(np.unique(shown))
        return batch

    def close(self) -> None:
        """Do nothing: there is no decoder."""

    def __repr__(self) -> str:
        return f"ArrayVideo({self._info.path!r}, {self._frames.shape})"
