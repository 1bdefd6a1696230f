"""FramePool: the candidate frames of one episode, decoded when first looked at.

Frames are addressed by their index in the pool, 0..m-1, which stands for a moment of the video;
nothing here counts source frames except to keep the pool of a very short video from repeating
itself; and not those of a film whose frames are shown for unequal times.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from gym_longvideo.video.cache import CachedFrame, PoolCache, PoolKey
from gym_longvideo.video.source import Fit, FrameBatch, FrameStatus, Video, VideoInfo

Rule = Literal["midpoint", "linspace", "per_second"]
Seek = Literal["auto", "exact", "keyframe"]

# seek="auto": a keyframe may stand in when nearer than this fraction of the spacing ...
AUTO_TOLERANCE = 0.15
# ... and never where moments are closer than this: there the point is to see change.
AUTO_EXACT_BELOW_S = 4.0


def pool_times(
    duration_s: float,
    size: int,
    rule: Rule = "midpoint",
    frame_count: int | None = None,
    fps: float | None = None,
) -> np.ndarray:
    """Return the moments of the candidate pool.

    Args:
        duration_s: Playable seconds of the video.
        size: Moments wanted (M); a video with fewer frames has as many as it has frames.
        rule: "midpoint" puts frame k at ``(k + 0.5) * duration / m``. "linspace" takes source
            frames ``linspace(0, n - 1, m)`` truncated to whole frames, each addressed in the middle
            of the time it is shown (so that rounded timestamps cannot turn it into its neighbour).
            "per_second" rounds them to the nearest whole frame, and takes one a second where that
            is fewer than M, but 4 if there are as many, and an even number of them: the released
            code of Video-MTR.
        frame_count: Source frames n, if known.
        fps: Frames per second, needed by the rules that count source frames; by default
            ``frame_count / duration_s``. ``inf`` where any moment may be that of a frame: they then
            take the moments ``linspace(0, duration_s, m)``.

    Returns:
        (m,) float64 ascending playback seconds, ``m = min(size, frame_count)`` except under
        "per_second".

    Raises:
        ValueError: For an empty video or pool, or a rule that cannot be applied.

    >>> pool_times(8.0, 4).tolist()
    [1.0, 3.0, 5.0, 7.0]
    >>> pool_times(10.0, 4, "linspace", frame_count=10, fps=1.0).tolist()
    [0.5, 3.5, 6.5, 9.5]
    >>> pool_times(39.0, 64, "per_second", frame_count=975, fps=25.0).shape
    (38,)
    """
    if size < 1:
        raise ValueError(f"size={size}: a pool needs at least one frame")
    if not 0 < duration_s < float("inf"):
        raise ValueError(f"duration_s={duration_s} is not a positive number of seconds")
    m = size if frame_count is None else max(1, min(size, frame_count))
    if rule == "midpoint":
        return _midpoints(duration_s, m).copy()
    if rule not in get_args(Rule):
        raise ValueError(f"rule={rule!r} is unknown; choose one of {get_args(Rule)}")
    if frame_count is None:
        if fps is None:
            raise ValueError(f"rule={rule!r} counts source frames; pass frame_count= or fps=")
        if fps == float("inf"):
            m = _one_a_second(duration_s, m) if rule == "per_second" else m
            return np.linspace(0.0, duration_s, m)
        frame_count = max(1, round(duration_s * fps))
        m = min(m, frame_count)
    if fps is None:
        fps = frame_count / duration_s
    if rule == "per_second":
        m = _one_a_second(frame_count / fps, m)
    exact = np.linspace(0, frame_count - 1, m)
    # Never half way between two whole frames under "per_second", where m - 1 is odd.
    frames = (exact.round() if rule == "per_second" else exact).astype(np.int64)
    return np.minimum((frames + 0.5) / fps, duration_s)


def pool_times_of(info: VideoInfo, size: int, rule: Rule) -> np.ndarray:
    """Return the ``pool_times`` of a video.

    Frames are counted only where they are evenly spaced: a recorded talk, or a procedural video,
    may show another picture at any moment.
    """
    countable = info.even and not (info.frame_count is None and info.fps is None)
    count, fps = (info.frame_count, info.fps) if countable else (None, float("inf"))
    return pool_times(info.duration_s, size, rule, count, fps)


def _one_a_second(duration_s: float, most: int) -> int:
    """Return how many frames "per_second" takes of at most ``most``."""
    return max(1, int(min(max(duration_s, 4), most)) // 2 * 2)


@lru_cache(maxsize=64)  # procedural videos all have one duration, and open in microseconds
def _midpoints(duration_s: float, m: int) -> np.ndarray:
    return (np.arange(m) + 0.5) * duration_s / m


class FramePool:
    """The candidate frames of one video.

    Args:
        video: The opened video; it stays the caller's to close.
        size: Candidate frames wanted (M).
        rule: Where they lie; see ``pool_times``.
        frame_size: (H, W) in pixels.
        fit: "stretch" or "letterbox".
        seek: "exact" decodes the very frame of each moment. "keyframe" takes the nearest keyframe.
            "auto" takes a keyframe within 0.15 of the spacing and is exact elsewhere, and
            everywhere if the spacing is under 4 s.
        cache: Frames kept beyond this episode; by default none.
        deadline_s: Seconds one read may take; ``None`` for no limit.
    """

    def __init__(
        self,
        video: Video,
        *,
        size: int = 128,
        rule: Rule = "midpoint",
        frame_size: tuple[int, int] = (224, 224),
        fit: Fit = "stretch",
        seek: Seek = "auto",
        cache: PoolCache | None = None,
        deadline_s: float | None = 60.0,
    ) -> None:
        if seek not in ("auto", "exact", "keyframe"):
            raise ValueError(f"seek={seek!r} is unknown; choose 'auto', 'exact' or 'keyframe'")
        info = video.info
        self._video = video
        self._frame_size = (int(frame_size[0]), int(frame_size[1]))
        self._fit: Fit = fit
        self._seek: Seek = seek
        self._cache = cache
        self._deadline_s = deadline_s
        self._times = pool_times_of(info, size, rule)
        # Cells are delimited halfway between moments: for "midpoint" those are the m equal parts.
        self._borders = (self._times[1:] + self._times[:-1]) / 2
        self._spacing_s = _spacing(self._times, info.duration_s)
        self._tolerance_s = self._tolerance(self._spacing_s)
        self._frames: dict[int, CachedFrame] = {}
        self._key = PoolKey(
            video=info.key,
            decoder=str(getattr(video, "backend", type(video).__name__)),
            size=len(self._times),
            rule=rule,
            frame_size=self._frame_size,
            fit=fit,
            tolerance_s=self._tolerance_s,
        )

    def __len__(self) -> int:
        """Number of candidate frames m, at most ``size``."""
        return len(self._times)

    @property
    def times(self) -> np.ndarray:
        """(m,) float64 playback seconds of the candidate frames (a copy)."""
        return self._times.copy()

    @property
    def spacing_s(self) -> float:
        """Mean seconds between neighbouring candidate frames; the duration if there is one."""
        return self._spacing_s

    @property
    def tolerance_s(self) -> float:
        """How far a keyframe may lie from a candidate's moment and stand in for it."""
        return self._tolerance_s

    def read(self, frame_index: Sequence[int] | np.ndarray) -> FrameBatch:
        """Return candidate frames, decoding only those not seen yet in this episode.

        Args:
            frame_index: Indices into the pool in ``[0, m)``, any order, duplicates allowed.

        Returns:
            Frames in the order of ``frame_index``; ``frames_decoded`` counts only this call's work.

        Raises:
            IndexError: If an index does not exist.
            VideoError: If decoding fails; frames decoded before stay available.
        """
        asked = np.array(frame_index, dtype=np.int64, ndmin=1)
        bad = (asked < 0) | (asked >= len(self))
        if bad.any():
            raise IndexError(
                f"pool index {asked[bad][0]} does not exist; this pool has "
                f"frames 0..{len(self) - 1}"
            )
        wanted = np.unique(asked).tolist()
        missing = [index for index in wanted if index not in self._frames]
        if missing and self._cache is not None:
            self._frames.update(self._cache.get(self._key, missing))
            missing = [index for index in missing if index not in self._frames]
        decoded = 0
        if missing:
            batch = self._video.read(
                self._times[missing],
                size=self._frame_size,
                fit=self._fit,
                tolerance_s=self._tolerance_s,
                deadline_s=self._deadline_s,
            )
            decoded = batch.frames_decoded
            fresh = {
                index: CachedFrame(
                    batch.frames[row], float(batch.actual_s[row]), FrameStatus(batch.status[row])
                )
                for row, index in enumerate(missing)
            }
            self._frames.update(fresh)
            if self._cache is not None:
                self._cache.put(self._key, fresh)
        frames = [self._frames[index] for index in asked.tolist()]
        shape = (len(frames), *self._frame_size, 3)
        return FrameBatch(
            frames=np.stack([f.pixels for f in frames]) if frames else np.empty(shape, np.uint8),
            requested_s=self._times[asked],
            actual_s=np.array([f.actual_s for f in frames], np.float64),
            status=np.array([f.status for f in frames], np.uint8),
            frames_decoded=decoded,
        )

    def read_times(self, times: Sequence[float] | np.ndarray) -> FrameBatch:
        """Return the frames shown at any moments, between candidate frames too.

        Nothing is cached. The tolerance follows from how close these moments lie.

        Args:
            times: Playback seconds within the video, any order.

        Raises:
            ValueError: If a time lies outside the video.
            VideoError: If decoding fails.
        """
        seconds = np.array(times, dtype=np.float64, ndmin=1)
        spacing = _spacing(np.unique(seconds), self._spacing_s)
        return self._video.read(
            seconds,
            size=self._frame_size,
            fit=self._fit,
            tolerance_s=self._tolerance(spacing),
            deadline_s=self._deadline_s,
        )

    def cell_of(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the (N,) int64 frame_index whose cells contain the given playback seconds.

        A cell reaches halfway to the neighbouring moments; times outside the video fall into the
        first or last cell.
        """
        seconds = np.array(times, dtype=np.float64, ndmin=1)
        return np.searchsorted(self._borders, seconds, side="right").astype(np.int64)

    def _tolerance(self, spacing_s: float) -> float:
        if self._seek == "keyframe":
            return float("inf")
        if self._seek == "exact" or spacing_s < AUTO_EXACT_BELOW_S:
            return 0.0
        return AUTO_TOLERANCE * spacing_s

    def __repr__(self) -> str:
        return (
            f"FramePool({self._video!r}, {len(self)} frames every {self._spacing_s:.2f} s, "
            f"{len(self._frames)} decoded)"
        )


def _spacing(times: np.ndarray, if_single: float) -> float:
    if len(times) < 2:
        return float(if_single)
    return float((times[-1] - times[0]) / (len(times) - 1))
