"""Pixels: a pure function of (seed, time), and true to what the world says."""

import hashlib
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_longvideo.episode import overview_frame_index
from gym_longvideo.haystack import HaystackSuite, HaystackVideo
from gym_longvideo.haystack.cache import ArrayCache
from gym_longvideo.haystack.glyphs import COLOURS, KINDS, SYMBOLS, Glyph, draw_ink
from gym_longvideo.haystack.looks import LOOKS, draw_look
from gym_longvideo.video.source import Video

SUITE = HaystackSuite("train", duration_s=600.0)


def pool(duration_s, count=128):
    return (np.arange(count) + 0.5) * duration_s / count


def test_haystack_video_is_a_video():
    video = SUITE.open_video(SUITE[0])
    assert isinstance(video, Video)
    assert (video.info.duration_s, video.info.fps, video.info.container) == (
        600.0,
        None,
        "procedural",
    )
    batch = video.read([1.0, 2.0])
    assert batch.frames.shape == (2, 224, 224, 3) and batch.frames.dtype == np.uint8
    assert batch.frames.flags.c_contiguous and batch.frames.flags.writeable
    assert batch.actual_s.tolist() == batch.requested_s.tolist() == [1.0, 2.0]
    assert batch.status.tolist() == [0, 0]
    video.close()
    assert video.read([], size=(8, 8)).frames.shape == (0, 8, 8, 3)


@settings(max_examples=40, deadline=None)
@given(
    index=st.integers(0, 63),
    times=st.lists(st.floats(0, 600), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_a_frame_depends_on_nothing_but_its_time(index, times, order):
    task = SUITE[index]
    together = SUITE.open_video(task).read(times, size=(24, 24)).frames
    places = list(range(len(times)))
    order.shuffle(places)
    video = pickle.loads(pickle.dumps(SUITE.open_video(task)))
    for place in places:
        alone = video.read([times[place]], size=(24, 24)).frames[0]
        assert np.array_equal(alone, together[place])


def test_returned_frames_belong_to_the_caller():
    video = SUITE.open_video(SUITE[0])
    first = video.read([5.0], size=(16, 16)).frames
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(video.read([5.0], size=(16, 16)).frames, kept)


def digest():
    suite = HaystackSuite("test", seed=3)
    sha = hashlib.sha256()
    for index in range(16):
        task = suite[index]
        sha.update(repr(task).encode())
        sha.update(suite.open_video(task).read(pool(600.0, 24), size=(32, 40)).frames.tobytes())
    return sha.hexdigest()


def test_another_process_draws_the_same_pixels():
    code = "from tests.test_haystack_video import digest; print(digest())"
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert found == [digest()] * 2


@pytest.mark.parametrize("duration_s", [60.0, 600.0, 3600.0, 86400.0])
def test_a_16_frame_overview_sees_every_scene(duration_s):
    suite = HaystackSuite("train", duration_s=duration_s)
    for times in (
        pool(duration_s)[overview_frame_index(128, 16)],
        np.linspace(0, duration_s * (1 - 1e-6), 16),
    ):
        for index in range(64):
            world = suite.world(suite[index])
            assert {world.scene_at(time) for time in times} == set(range(len(world.looks)))
            assert len(set(world.looks)) == len(world.looks)


@pytest.mark.parametrize("duration_s", [60.0, 600.0, 3600.0, 86400.0])
def test_every_card_is_seen_by_the_pool_and_stays_in_its_scene(duration_s):
    suite = HaystackSuite("train", duration_s=duration_s)
    for index in range(64):
        world = suite.world(suite[index])
        for times in (pool(duration_s), np.linspace(0, duration_s, 128)):
            seen = {world.event_at(time) for time in times}
            assert seen >= set(world.events)
        for event in world.events:
            start_s, end_s = world.span_s(world.scene_at(event.start_s))
            assert start_s < event.start_s < event.end_s < end_s
        gaps = [b.start_s - a.end_s for a, b in zip(world.events, world.events[1:], strict=False)]
        assert all(gap > 0 for gap in gaps)


def test_a_card_is_on_screen_exactly_while_its_event_lasts():
    for index in range(0, 64, 3):
        task = SUITE[index]
        world = SUITE.world(task)
        bare = HaystackVideo(replace(world, events=(), event_starts_s=()), "bare")
        edges = [time for event in world.events for time in (event.start_s, event.end_s)]
        times = sorted([*edges, *(np.nextafter(edge, 0) for edge in edges), *pool(600.0, 40)])
        drawn = SUITE.open_video(task).read(times, size=(56, 56)).frames
        without = bare.read(times, size=(56, 56)).frames
        for time, a, b in zip(times, drawn, without, strict=True):
            active = any(event.start_s <= time < event.end_s for event in world.events)
            assert active == (not np.array_equal(a, b)), time


def test_scenes_are_alive_and_never_twice_alike():
    video = SUITE.open_video(SUITE[0])
    frames = video.read(pool(600.0), size=(56, 56)).frames
    pairs = combinations(range(0, 128, 7), 2)
    assert all(not np.array_equal(frames[a], frames[b]) for a, b in pairs)


@pytest.mark.parametrize("side", [24, 56, 112])
def test_looks_differ_clearly_at_every_size(side):
    small = [draw_look(look, side, side).astype(np.float32) for look in range(len(LOOKS))]
    for a, b in combinations(small, 2):
        assert np.abs(a - b).mean() > 14


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"colour"}))
def test_glyphs_are_large_and_differ_clearly(kind):
    inks = [draw_ink(Glyph(kind, name, "red"), 24) for name in KINDS[kind]]
    for ink in inks:
        rows, columns = np.nonzero(ink > 0.5)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 >= 17
    for a, b in combinations(inks, 2):
        assert np.abs(a - b).mean() > 0.08
    colours = [np.array(colour) for colour in COLOURS.values()]
    assert all(np.abs(a - b).sum() > 75 for a, b in combinations(colours, 2))


def test_a_glyph_is_twenty_pixels_at_56():
    video = HaystackSuite("train", families="needle", glyphs="shape", blocks=0)
    for index in range(20):
        task = video[index]
        frame = video.open_video(task).read([sum(task.segments_s[0]) / 2], size=(56, 56)).frames[0]
        white = (frame > 250).all(-1)
        rows = np.flatnonzero(white.any(1))
        assert np.ptp(rows) + 1 >= 26  # the card's white: glyph and margins


@pytest.mark.parametrize("size", [(56, 56), (48, 90), (91, 33), (8, 8), (224, 224)])
def test_any_size_can_be_drawn_and_letterboxed(size):
    task = SUITE[0]
    video = SUITE.open_video(task)
    time = sum(task.segments_s[0]) / 2
    assert video.read([time], size=size).frames.shape == (1, *size, 3)
    boxed = video.read([time], size=size, fit="letterbox").frames[0]
    side, (height, width) = min(size), size
    top, left = (height - side) // 2, (width - side) // 2
    square = video.read([time], size=(side, side)).frames[0]
    assert np.array_equal(boxed[top : top + side, left : left + side], square)
    assert boxed.sum() == square.sum()


@pytest.mark.parametrize("time", [-0.1, 600.1, np.nan, np.inf])
def test_a_time_outside_the_video_is_refused(time):
    with pytest.raises(ValueError, match=r"outside the video; use seconds in \[0, 600.0\]"):
        SUITE.open_video(SUITE[0]).read([1.0, time])


def test_senseless_sizes_and_fits_are_refused():
    video = SUITE.open_video(SUITE[0])
    with pytest.raises(ValueError, match="too small"):
        video.read([0.0], size=(4, 4))
    with pytest.raises(ValueError, match="fit='crop'"):
        video.read([0.0], size=(16, 24), fit="crop")


def test_symbols_cover_the_vocabulary():
    assert set(SYMBOLS) == set(KINDS["symbol"])


def test_the_cache_stays_within_its_bytes():
    cache = ArrayCache(limit_bytes=1000)
    for key in range(10):
        cache.put(key, np.zeros(300, np.uint8))
    assert cache.bytes <= 1000 and cache.get(9) is not None and cache.get(0) is None
    with pytest.raises(ValueError, match="read-only"):
        cache.get(9)[0] = 1
    cache.clear()
    assert cache.bytes == 0 and cache.get(9) is None
