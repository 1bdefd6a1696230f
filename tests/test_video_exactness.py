"""The frame that comes back is the frame shown at the time asked for, whatever the file is like."""

from __future__ import annotations

from pathlib import Path

import av
import clips
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_longvideo.video import (
    BackendUnavailableError,
    FrameStatus,
    UnsupportedCodecError,
    open_video,
)

REAL_VIDEOS = Path(__file__).parents[2] / "shared" / "data" / "videos"

MOVING = [
    name
    for name in clips.CATALOG
    if name not in ("raw.h264", "sound.m4a", "one-frame.mp4", "program-stream.mpg")
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return clips.Library(tmp_path_factory.mktemp("clips"))


def request_times(starts: list[float], duration: float) -> np.ndarray:
    """Unsorted times: uniform, random, on frame borders, the ends, and one twice."""
    rng = np.random.default_rng(0)
    return np.concatenate(
        [
            np.linspace(0, duration, 16),
            rng.uniform(0, duration, 16),
            rng.choice(np.clip(starts, 0, duration), 8),
            [duration, 0.0, duration / 3, duration / 3],
        ]
    )


@pytest.mark.parametrize("name", MOVING)
def test_every_requested_frame_is_the_one_shown_at_that_time(library, name):
    starts, numbers = clips.frame_starts(library[name])
    assert numbers[0] == clips.FIRST_NUMBER.get(name, 0)
    with open_video(library[name]) as video:  # type: ignore[attr-defined]
        times = request_times(starts, video.info.duration_s)
        batch = video.read(times, size=(48, 64))
    shown = clips.shown_numbers(times, starts)
    assert clips.read_barcodes(batch.frames) == [numbers[i] for i in shown]
    np.testing.assert_allclose(batch.actual_s, [starts[i] for i in shown], atol=1e-9)
    np.testing.assert_array_equal(batch.requested_s, times)
    assert (batch.status == FrameStatus.OK).all()


@pytest.mark.parametrize("name", MOVING)
def test_each_frame_asked_for_alone_is_exact_too(library, name):
    starts, numbers = clips.frame_starts(library[name])
    video = open_video(library[name])
    for index in (len(starts) - 1, 26, 1, 47, 0):
        index = min(index, len(starts) - 1)
        batch = video.read([starts[index]], size=(48, 64))
        assert clips.read_barcodes(batch.frames) == [numbers[index]]
    video.close()


@pytest.mark.parametrize("name", MOVING)
def test_a_keyframe_may_stand_in_within_the_tolerance_and_says_so(library, name):
    starts, numbers = clips.frame_starts(library[name])
    video = open_video(library[name])
    times = np.linspace(0, video.info.duration_s, 40)
    for tolerance in (0.2, np.inf):
        batch = video.read(times, size=(48, 64), tolerance_s=tolerance)
        snapped = batch.status == FrameStatus.SNAPPED
        assert (np.abs(batch.actual_s - times)[snapped] <= tolerance).all()
        shown = clips.shown_numbers(np.where(snapped, batch.actual_s, times), starts)
        assert clips.read_barcodes(batch.frames) == [numbers[i] for i in shown]
    video.close()


def test_the_nearest_keyframe_is_taken_on_either_side(library):
    video = open_video(library["cfr.mp4"])  # keyframes at frames 0, 24, 48, 72
    batch = video.read([0.3, 0.5, 1.1, 1.3, 2.9], size=(48, 64), tolerance_s=np.inf)
    assert clips.read_barcodes(batch.frames) == [0, 24, 24, 48, 72]
    assert batch.frames_decoded == 4
    video.close()


def test_exact_reads_decode_no_further_than_the_frame_they_want(library):
    video = open_video(library["no-b-frames.mp4"])
    assert video.read([0.0], size=(48, 64)).frames_decoded == 1
    assert video.read([30.5 / 30], size=(48, 64)).frames_decoded == 7  # 24..30
    assert video.read([30.5 / 30, 24.5 / 30, 26.5 / 30], size=(48, 64)).frames_decoded == 7
    video.close()


def test_frames_that_nothing_refers_to_are_skipped(library):
    video = open_video(library["cfr.mp4"])
    assert video.read([46.5 / 30], size=(48, 64)).frames_decoded < 23
    video.close()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(times=st.lists(st.floats(0, 2.9), min_size=1, max_size=6), tolerance=st.sampled_from([0, 1]))
def test_order_and_company_do_not_change_a_frame(library, times, tolerance):
    with open_video(library["open-gop.mp4"]) as video:  # type: ignore[attr-defined]
        together = video.read(times, size=(24, 32), tolerance_s=tolerance)
        for row, time in enumerate(times):
            alone = video.read([time], size=(24, 32), tolerance_s=tolerance)
            assert alone.actual_s[0] == together.actual_s[row]
            np.testing.assert_array_equal(alone.frames[0], together.frames[row])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cfr.mp4", dict(width=128, height=96, fps=30.0, frame_count=90, codec="h264")),
        ("start-offset.mkv", dict(start_s=100.0, frame_count=90)),
        ("edit-list.mp4", dict(start_s=0.0, frame_count=55)),
        ("rotated-90.mp4", dict(width=96, height=128, rotation=90)),
        ("rotated-180.mp4", dict(width=128, height=96, rotation=180)),
        ("odd-size.mkv", dict(width=131, height=97)),
        ("one-frame.mp4", dict(frame_count=1)),
        ("av1.mp4", dict(codec="av1")),
    ],
)
def test_info_states_the_facts(library, name, expected):
    video = open_video(library[name])
    found = {field: getattr(video.info, field) for field in expected}
    assert found == expected
    frames = clips.frame_starts(library[name])[0]
    assert video.info.duration_s == pytest.approx(frames[-1] + 1 / 30, abs=1.1e-3)
    assert not video.info.truncated
    video.close()


def test_a_single_frame_is_shown_at_all_its_times(library):
    video = open_video(library["one-frame.mp4"])
    batch = video.read([0.0, video.info.duration_s, 0.01], size=(48, 64))
    assert batch.actual_s.tolist() == [0.0, 0.0, 0.0]
    video.close()


def test_guessed_timestamps_are_called_suspect(library):
    video = open_video(library["program-stream.mpg"])
    assert (video.read([1.0]).status == FrameStatus.SUSPECT).all()
    video.close()


def test_letterbox_keeps_the_aspect_ratio(library):
    video = open_video(library["cfr.mp4"])  # 4:3
    frame = video.read([1.0], size=(64, 64), fit="letterbox").frames[0]
    assert not frame[:8].any() and not frame[56:].any()
    assert clips.read_barcode(frame[8:56]) == 30
    video.close()


def test_native_pixels_are_those_of_a_plain_decoder(library):
    for name in ("cfr.mp4", "odd-size.mkv", "rotated-90.mp4", "vp9.webm"):
        check_native_pixels(library[name], count=6)


@pytest.mark.parametrize(
    "name", ["bigbuckbunny.mp4", "intel_car_detection.mp4", "tears_of_steel_battle.webm"]
)
def test_real_videos_are_bit_identical_to_a_plain_decoder(name):
    path = REAL_VIDEOS / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    check_native_pixels(path, count=12)


def check_native_pixels(path: Path, count: int) -> None:
    video = open_video(path)
    rng = np.random.default_rng(1)
    times = np.append(rng.uniform(0, min(video.info.duration_s, 20.0), count), 0.0)
    batch = video.read(times)
    wanted = {round(float(s), 6): row for row, s in enumerate(batch.actual_s)}
    seen = 0
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        for frame in container.decode(stream):
            row = wanted.get(round(float(frame.pts * stream.time_base) - video.info.start_s, 6))
            if row is not None:
                plain = np.rot90(frame.to_ndarray(format="rgb24"), (frame.rotation // 90) % 4)
                np.testing.assert_array_equal(batch.frames[row], plain)
                seen += 1
            if frame.time - video.info.start_s > times.max():
                break
    assert seen == len(wanted)
    video.close()


DECORD_RIGHT = ["cfr.mp4", "cfr.mkv", "no-b-frames.mp4", "vfr.mp4", "start-offset.mkv"]
DECORD_RIGHT += ["one-frame.mp4", "rotated-90.mp4", "odd-size.mkv"]
DECORD_WRONG = ["h264.ts", "mpeg4.avi", "mjpeg.avi", "edit-list.mp4", "open-gop.mp4", "hevc.mp4"]
DECORD_WRONG += ["av1.mp4", "intra-refresh.mp4"]
TORCHCODEC_RIGHT = [*DECORD_RIGHT, "open-gop.mp4", "hevc.mp4", "av1.mp4", "edit-list.mp4"]
TORCHCODEC_WRONG = ["h264.ts", "mpeg4.avi", "intra-refresh.mp4"]


def check_backend(backend: str, path: Path) -> None:
    reference, video = open_video(path), open_video(path, backend=backend)
    times = np.random.default_rng(2).uniform(0, reference.info.duration_s, 12)
    expected, batch = reference.read(times, size=(48, 64)), video.read(times, size=(48, 64))
    assert clips.read_barcodes(batch.frames) == clips.read_barcodes(expected.frames)
    np.testing.assert_allclose(batch.actual_s, expected.actual_s, atol=1e-4)
    assert video.info == reference.info
    reference.close()
    video.close()


@pytest.mark.parametrize("name", DECORD_RIGHT)
def test_decord_agrees_where_it_is_let_in(library, name):
    pytest.importorskip("decord")
    check_backend("decord", library[name])


@pytest.mark.parametrize("name", DECORD_WRONG)
def test_decord_is_refused_what_it_gets_wrong(library, name):
    pytest.importorskip("decord")
    with pytest.raises(UnsupportedCodecError, match='use backend="pyav"'):
        open_video(library[name], backend="decord")


def require_torchcodec(library) -> None:
    try:
        open_video(library["cfr.mp4"], backend="torchcodec").read([0.0], size=(48, 64))
    except BackendUnavailableError:
        pytest.skip("torchcodec, PyTorch or FFmpeg is missing")


@pytest.mark.parametrize("name", TORCHCODEC_RIGHT)
def test_torchcodec_agrees_where_it_is_let_in(library, name):
    require_torchcodec(library)
    check_backend("torchcodec", library[name])


@pytest.mark.parametrize("name", TORCHCODEC_WRONG)
def test_torchcodec_is_refused_what_it_gets_wrong(library, name):
    require_torchcodec(library)
    with pytest.raises(UnsupportedCodecError, match='use backend="pyav"'):
        open_video(library[name], backend="torchcodec")


def test_decord_takes_keyframes_within_the_tolerance(library):
    pytest.importorskip("decord")
    video = open_video(library["cfr.mp4"], backend="decord")
    batch = video.read([0.5, 1.1], size=(48, 64), tolerance_s=np.inf)
    assert clips.read_barcodes(batch.frames) == [24, 24]
    assert (batch.status == FrameStatus.SNAPPED).all()
    video.close()
