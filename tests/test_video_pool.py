"""The candidate pool: where its moments lie, what is decoded when, and who owns the arrays."""

from __future__ import annotations

import clips
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_longvideo.video import (
    ArrayVideo,
    DiskCache,
    FrameCache,
    FramePool,
    FrameStatus,
    Video,
    open_video,
    pool_times,
)


def numbered_video(count=100, fps=1.0, **kwargs):
    """Frame i is filled with i."""
    frames = np.zeros((count, 8, 8, 3), np.uint8)
    frames += np.arange(count, dtype=np.uint8)[:, None, None, None]
    return ArrayVideo(frames, fps=fps, **kwargs)


def numbers(batch):
    return batch.frames[:, 0, 0, 0].tolist()


class Counting:
    """Wraps a video and writes down what is read from it."""

    def __init__(self, video):
        self.video, self.info, self.reads = video, video.info, []

    def read(self, times, **kwargs):
        self.reads.append((np.array(times).tolist(), kwargs))
        return self.video.read(times, **kwargs)

    def close(self):
        self.video.close()


def test_midpoint_moments_are_the_centres_of_equal_parts():
    assert pool_times(8.0, 4).tolist() == [1.0, 3.0, 5.0, 7.0]
    assert pool_times(10.0, 1).tolist() == [5.0]


def test_linspace_addresses_whole_source_frames():
    # linspace(0, 99, 8).astype(int) by hand: 0, 14.14, 28.3, 42.4, 56.6, 70.7, 84.9, 99
    video = numbered_video(100, fps=25.0)
    pool = FramePool(video, size=8, rule="linspace", frame_size=(8, 8), seek="exact")
    assert numbers(pool.read(range(8))) == [0, 14, 28, 42, 56, 70, 84, 99]


def test_linspace_hits_its_frames_in_files_with_rounded_timestamps(tmp_path):
    video = open_video(clips.h264(tmp_path / "clip.mkv"))  # milliseconds: 33, 67, 100, ...
    pool = FramePool(video, size=30, rule="linspace", frame_size=(48, 64))
    wanted = np.linspace(0, 89, 30).astype(int).tolist()
    assert clips.read_barcodes(pool.read(range(30)).frames) == wanted
    video.close()


def test_a_video_with_fewer_frames_has_a_shorter_pool(tmp_path):
    video = open_video(clips.h264(tmp_path / "five.mp4", frames=5))
    pool = FramePool(video, size=128, frame_size=(48, 64))
    assert len(pool) == 5
    assert clips.read_barcodes(pool.read(range(5)).frames) == [0, 1, 2, 3, 4]
    video.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10.0, 0), "size=0"),
        ((0.0, 4), r"duration_s=0\.0"),
        ((np.inf, 4), "duration_s=inf"),
        ((10.0, 4, "middle"), "rule='middle' is unknown"),
        ((10.0, 4, "linspace"), "pass frame_count= or fps="),
    ],
)
def test_impossible_pools_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        pool_times(*arguments)


@given(
    duration=st.floats(0.01, 1e5),
    size=st.integers(1, 300),
    count=st.integers(1, 400),
    rule=st.sampled_from(["midpoint", "linspace"]),
)
def test_pool_moments_ascend_within_the_video(duration, size, count, rule):
    times = pool_times(duration, size, rule, frame_count=count)
    assert len(times) == min(size, count)
    assert (np.diff(times) > 0).all()
    assert times[0] >= 0 and times[-1] <= duration


@given(duration=st.floats(0.1, 1e4), size=st.integers(1, 200))
def test_every_moment_lies_in_its_own_cell(duration, size):
    video = numbered_video(250, fps=250 / duration)
    pool = FramePool(video, size=size)
    np.testing.assert_array_equal(pool.cell_of(pool.times), np.arange(len(pool)))


def test_cells_are_the_equal_parts_of_the_video():
    pool = FramePool(numbered_video(8, fps=1.0), size=4)
    assert pool.cell_of([-1, 0, 1.99, 2.0, 5.9, 7.9, 8.0, 99]).tolist() == [0, 0, 0, 1, 2, 3, 3, 3]
    assert pool.spacing_s == 2.0
    assert pool.cell_of([1.0]).dtype == np.int64


def test_each_slot_is_decoded_once_per_episode():
    video = Counting(numbered_video())
    pool = FramePool(video, size=10, frame_size=(8, 8))
    first = pool.read([0, 4, 9])
    assert numbers(first) == [5, 45, 95]
    assert first.frames_decoded == 3
    second = pool.read([9, 5, 4, 5])
    assert numbers(second) == [95, 55, 45, 55]
    assert second.requested_s.tolist() == [95.0, 55.0, 45.0, 55.0]
    assert second.frames_decoded == 1
    assert pool.read([0, 9]).frames_decoded == 0
    assert [times for times, _ in video.reads] == [[5.0, 45.0, 95.0], [55.0]]


def test_an_empty_request_reads_nothing():
    video = Counting(numbered_video())
    batch = FramePool(video, frame_size=(4, 6)).read([])
    assert batch.frames.shape == (0, 4, 6, 3)
    assert not video.reads


def test_arrays_handed_out_belong_to_the_caller():
    pool = FramePool(numbered_video(), size=10, frame_size=(8, 8))
    batch = pool.read([3, 3])
    batch.frames[:], batch.actual_s[:], batch.status[:] = 0, -1, 9
    pool.times[:] = -5
    again = pool.read([3])
    assert numbers(again) == [35]
    assert again.actual_s.tolist() == [35.0]
    assert pool.times[0] == 5.0


@pytest.mark.parametrize("index", [-1, 10])
def test_a_slot_that_does_not_exist_is_named(index):
    pool = FramePool(numbered_video(), size=10)
    with pytest.raises(IndexError, match=rf"pool index {index} does not exist; .* 0\.\.9"):
        pool.read([0, index])


@pytest.mark.parametrize(
    ("fps", "seek", "tolerance"),
    [
        (1.0, "auto", 1.5),  # spacing 10 s
        (25.0, "auto", 0.0),  # spacing 0.4 s
        (1.0, "exact", 0.0),
        (25.0, "keyframe", np.inf),
    ],
)
def test_the_tolerance_follows_from_the_spacing(fps, seek, tolerance):
    video = Counting(numbered_video(100, fps=fps))
    pool = FramePool(video, size=10, frame_size=(8, 8), seek=seek)
    pool.read([1])
    assert video.reads[0][1]["tolerance_s"] == pytest.approx(tolerance)


def test_snapped_slots_report_their_true_times():
    video = numbered_video(100, keyframe_every=7)
    pool = FramePool(video, size=10, frame_size=(8, 8))  # 5, 15, 25 ... within 1.5 s
    batch = pool.read([0, 1, 2])
    assert batch.actual_s.tolist() == [5.0, 14.0, 25.0]
    assert batch.status.tolist() == [FrameStatus.OK, FrameStatus.SNAPPED, FrameStatus.OK]


def test_times_between_slots_are_read_from_the_video_itself():
    video = Counting(numbered_video(100))
    pool = FramePool(video, size=10, frame_size=(8, 8))
    batch = pool.read_times([40.5, 42.0, 44.9])
    assert numbers(batch) == [40, 42, 44]
    assert video.reads[-1][1]["tolerance_s"] == 0.0  # 2.2 s apart: exact
    pool.read_times([0.0, 50.0])
    assert video.reads[-1][1]["tolerance_s"] == pytest.approx(7.5)
    pool.read_times([50.0])
    assert video.reads[-1][1]["tolerance_s"] == pytest.approx(1.5)  # alone: the pool's own


def test_an_unknown_way_of_seeking_lists_the_choices():
    with pytest.raises(ValueError, match="choose 'auto', 'exact' or 'keyframe'"):
        FramePool(numbered_video(), seek="fast")  # type: ignore[arg-type]


def test_a_memory_cache_serves_the_next_episode():
    cache = FrameCache()
    video = Counting(numbered_video())
    for expected in (2, 0):
        batch = FramePool(video, size=10, frame_size=(8, 8), cache=cache).read([1, 2])
        assert numbers(batch) == [15, 25]
        assert batch.frames_decoded == expected
        batch.frames[:] = 0
    FramePool(video, size=10, frame_size=(4, 4), cache=cache).read([1])
    assert len(video.reads) == 2  # another size is another entry


def test_a_disk_cache_serves_the_next_run(tmp_path):
    video = numbered_video(keyframe_every=7)
    first = FramePool(video, size=10, frame_size=(8, 8), cache=DiskCache(tmp_path)).read([1, 2])
    again = FramePool(video, size=10, frame_size=(8, 8), cache=DiskCache(tmp_path)).read([2, 1])
    assert again.frames_decoded == 0
    np.testing.assert_array_equal(again.frames, first.frames[::-1])
    np.testing.assert_array_equal(again.actual_s, first.actual_s[::-1])
    np.testing.assert_array_equal(again.status, first.status[::-1])


def test_array_videos_obey_the_protocol():
    video = ArrayVideo(np.zeros((3, 4, 4, 3), np.uint8), timestamps_s=[0, 1, 5])
    assert isinstance(video, Video)
    assert video.info.duration_s == 7.5
    assert video.read([0.99, 4.99, 7.5]).actual_s.tolist() == [0.0, 1.0, 5.0]
    assert video.read([1.0], size=(9, 6), fit="letterbox").frames.shape == (1, 9, 6, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(frames=np.zeros((3, 4, 4)), fps=1), "uint8"),
        (dict(frames=np.zeros((0, 4, 4, 3), np.uint8), fps=1), "uint8"),
        (dict(frames=np.zeros((2, 4, 4, 3), np.uint8)), "either fps= or timestamps_s="),
        (dict(frames=np.zeros((2, 4, 4, 3), np.uint8), timestamps_s=[0, 0]), "ascending"),
    ],
)
def test_senseless_array_videos_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        ArrayVideo(**arguments)
