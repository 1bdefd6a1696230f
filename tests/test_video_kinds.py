"""Kinds of films that are easily read wrongly: uneven, joined, with a cover, not square, HDR."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import clips
import numpy as np
import odd_clips
import pytest

from gym_longvideo.video import (
    FramePool,
    UnsupportedCodecError,
    VideoError,
    VideoOpenError,
    open_video,
    pool_times,
)
from gym_longvideo.video.decord_backend import DecordReader
from gym_longvideo.video.hazards import find_hazards
from gym_longvideo.video.hdr import _hlg, _pq
from gym_longvideo.video.picture import resize
from gym_longvideo.video.probe import open_file
from gym_longvideo.video.request import Deadline
from gym_longvideo.video.span import ClockRestartedError, check_clock, shows_all


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return clips.Library(tmp_path_factory.mktemp("clips"))


# -- frames shown for unequal times ----------------------------------------------------------------


@pytest.mark.parametrize("rule", ["midpoint", "linspace"])
@pytest.mark.parametrize("bframes", [0, 3])
def test_a_recorded_talk_shows_every_slide_and_is_the_same_in_any_container(
    tmp_path, bframes, rule
):
    pools = []
    for suffix in ("mp4", "mkv", "mov", "flv"):
        video = open_video(odd_clips.talk(tmp_path / f"talk.{suffix}", bframes=bframes))
        assert video.info.duration_s == pytest.approx(600.04)
        pool = FramePool(video, size=128, rule=rule, frame_size=(48, 64))
        slides = clips.read_barcodes(pool.read(range(len(pool))).frames)
        assert sorted(set(slides)) == list(range(13))
        pools.append(pool.times)
        video.close()
    assert len(pools[0]) == 128
    for times in pools[1:]:
        np.testing.assert_allclose(times, pools[0], atol=0.06)


def test_a_talk_in_a_transport_stream_ends_with_the_frame_shown_last(tmp_path):
    # The packet of the last picture comes before those of pictures shown earlier.
    video = open_video(odd_clips.talk(tmp_path / "talk.ts", starts_s=(*range(0, 60, 5), 600)))
    assert video.info.duration_s > 600
    assert clips.read_barcodes(video.read([600.0], size=(48, 64)).frames) == [11]
    video.close()


def test_an_uneven_film_says_so_and_an_even_one_keeps_one_slot_a_frame(library, tmp_path):
    talk = open_video(odd_clips.talk(tmp_path / "talk.mp4"))
    assert not talk.info.even and talk.info.frame_count == 14
    even = ("cfr.mp4", "cfr.mkv", "h264.ts", "flv.flv", "mpeg4.avi", "vp9.webm", "edit-list.mp4")
    for name in (*even, "five-frames.mp4", "one-frame.mp4", "fragmented.mp4", "gif.gif"):
        video = open_video(library[name])
        assert video.info.even, name
        assert len(FramePool(video, size=128)) == video.info.frame_count
        video.close()
    talk.close()


def test_few_frames_are_counted_where_the_container_tells_another_rate(tmp_path):
    # Twelve frames, 33 ms each, which Matroska calls 25 a second.
    pts = [33 * i for i in range(12)]
    video = open_video(clips.h264(tmp_path / "a.mkv", frames=12, fps=25, ticks=1000, pts=pts))
    assert video.info.frame_count == 12 and video.info.even
    pool = FramePool(video, size=128, frame_size=(48, 64))
    assert clips.read_barcodes(pool.read(range(len(pool))).frames) == list(range(12))
    video.close()


def test_whether_as_many_moments_as_frames_show_each():
    assert shows_all([], 10)
    assert shows_all([5], 6)
    assert shows_all([0, 33, 67, 100], 133)  # rounded to milliseconds
    # Moments 15.25, 30.5 and 45.75 show the third frame, and none the second.
    assert not shows_all([0, 5, 10, 60], 61)
    assert not shows_all([0, 10, 20, 50], 60)  # one frame dropped
    # The last frame is shown ten times as long as the others.
    assert not shows_all(list(range(0, 100, 10)), 190)


def test_linspace_over_any_moments_takes_evenly_spaced_ones():
    assert pool_times(10.0, 3, "linspace", fps=float("inf")).tolist() == [0.0, 5.0, 10.0]


# -- clocks that start again -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize(
    "name", ["h264.ts", "program-stream.mpg", "flv.flv", "cfr.mkv", "vp9.webm"]
)
def test_recordings_joined_end_to_end_are_refused_with_the_remedy(library, tmp_path, name, backend):
    if backend == "decord":
        pytest.importorskip("decord")
    part = library[name]
    join = odd_clips.joined_flv if name.endswith("flv") else odd_clips.joined
    path = join(tmp_path / name, part, part)
    with pytest.raises(VideoOpenError, match=r"clock starts again .*remux first: ffmpeg"):
        open_video(path, backend=backend)


def test_a_large_joined_file_is_looked_at_in_many_places(library, tmp_path, monkeypatch):
    from gym_longvideo.video import span

    opened = open_file(str(library["h264.ts"]))
    read = []
    monkeypatch.setattr(span, "_SAMPLED_ABOVE_BYTES", 0)
    demux = span.demux

    def count(container, stream):
        for packet in demux(container, stream):
            read.append(packet)
            yield packet

    monkeypatch.setattr(span, "demux", count)
    size = library["h264.ts"].stat().st_size
    check_clock(opened.container, opened.stream, size, Deadline(9.0, "", ""))
    assert len(read) == span._SAMPLES
    opened.close()
    path = odd_clips.joined(tmp_path / "two.ts", library["h264.ts"], library["h264.ts"])
    monkeypatch.setattr(span, "_SAMPLED_ABOVE_BYTES", 1 << 30)
    monkeypatch.setattr("gym_longvideo.video.probe.span.check_clock", lambda *_: None)
    opened = open_file(str(path))
    monkeypatch.undo()
    monkeypatch.setattr(span, "_SAMPLED_ABOVE_BYTES", 0)
    with pytest.raises(ClockRestartedError):
        check_clock(opened.container, opened.stream, 2 * size, Deadline(9.0, "", ""))
    opened.close()


# -- covers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("codec", ["mjpeg", "libx264"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_cover_picture_is_not_the_film(library, tmp_path, suffix, codec, first):
    path = tmp_path / f"film.{suffix}"
    odd_clips.with_cover(path, library["cfr.mp4"], codec=codec, first=first)
    video = open_video(path)
    info = video.info
    assert (info.width, info.height, info.frame_count) == (128, 96, 90)
    assert info.duration_s == pytest.approx(3.0)
    assert clips.read_barcodes(video.read([1.01, 2.99], size=(48, 64)).frames) == [30, 89]
    video.close()


def test_decoders_that_would_take_the_cover_are_told_apart(library, tmp_path):
    path = odd_clips.with_cover(tmp_path / "film.mp4", library["cfr.mp4"])
    opened = open_file(str(path))
    assert "a cover picture before the film" in find_hazards(opened)
    opened.close()


def test_decord_does_not_pass_off_another_stream(library, tmp_path):
    pytest.importorskip("decord")
    reader = DecordReader(
        str(library["cfr.mp4"]),
        dataclasses.replace(open_video(library["cfr.mp4"]).info, height=360, width=640),
    )
    with pytest.raises(VideoError, match="another stream"):
        reader.read([0.5], size=(48, 64))


# -- pixels that are not square --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(("aspect", "width"), [("2", 144), ("8/9", 64), ("16/15", 77), ("1/2", 36)])
def test_a_disc_is_round_whatever_the_shape_of_pixels(tmp_path, aspect, width, suffix):
    path = odd_clips.disc(tmp_path / f"disc.{suffix}", Fraction(aspect))
    video = open_video(path)
    assert (video.info.width, video.info.height) == (width, 96)
    for size in (None, (192, 400)):
        frame = video.read([0.5], size=size, fit="letterbox").frames[0]
        bright = frame[:, :, 0] > 128
        height, across = bright.any(axis=1).sum(), bright.any(axis=0).sum()
        # Of narrow pixels the disc is wider than the picture.
        assert across == pytest.approx(min(height, width * len(frame) / 96), abs=4)
    assert video.read([0.5]).frames.shape[1:3] == (96, width)
    stretched = video.read([0.5], size=(96, 72), fit="stretch").frames[0]
    assert stretched.shape == (96, 72, 3)
    video.close()


def test_decord_is_refused_pixels_that_are_not_square(tmp_path):
    pytest.importorskip("decord")
    path = odd_clips.disc(tmp_path / "disc.mp4", Fraction(2))
    with pytest.raises(UnsupportedCodecError, match="pixels that are not square"):
        open_video(path, backend="decord")


def test_pixels_of_other_decoders_are_given_their_shape_too():
    disc = np.hypot(*np.mgrid[-48:48, -72:72:2]) < 30
    out = np.empty((96, 96, 3), np.uint8)
    resize(np.repeat(disc[..., None] * np.uint8(255), 3, axis=2), out, "letterbox", (96, 144))
    bright = out[:, :, 0] > 128
    assert abs(int(bright.any(axis=0).sum()) - int(bright.any(axis=1).sum())) <= 2


def test_a_shape_that_no_pixel_has_is_damage(tmp_path):
    video = open_video(odd_clips.disc(tmp_path / "disc.mp4", Fraction(40)))
    assert (video.info.width, video.info.height) == (72, 96)
    video.close()


# -- high dynamic range ----------------------------------------------------------------------------


def halves(left: float, right: float) -> np.ndarray:
    """Return (96, 128) luma of ten bits, limited range, of two codes in [0, 1]."""
    return np.where(np.arange(128) < 64, 64 + 876 * left, 64 + 876 * right).round()


# Paper white (203 nits, 75 % of HLG) and a grey card of 18 %: 0.18 as sRGB is 117.6.
@pytest.mark.parametrize(
    ("transfer", "name", "white", "grey"),
    [(16, "pq", 0.5807, 0.4108), (18, "hlg", 0.75, 0.3784)],
)
def test_high_dynamic_range_is_shown_as_sdr_and_says_so(tmp_path, transfer, name, white, grey):
    path = tmp_path / "film.mp4"
    video = open_video(odd_clips.hdr(path, transfer, lambda i: halves(white, grey)))
    assert video.info.hdr == name
    for size in (None, (24, 32)):
        frame = video.read([0.5], size=size).frames[0]
        middle = frame[len(frame) // 2]
        np.testing.assert_allclose(middle[len(middle) // 4], 255, atol=2)
        np.testing.assert_allclose(middle[3 * len(middle) // 4], 118, atol=2)
    video.close()
    pytest.importorskip("decord")
    with pytest.raises(UnsupportedCodecError, match="HDR"):
        open_video(path, backend="decord")


def test_the_transfer_functions_are_those_of_the_standards():
    # ITU-R BT.2408, table 1: 203 nits and 18 % grey (26 nits) are 58 % and 38 % of PQ.
    np.testing.assert_allclose(_pq(np.array([0.0, 0.5807, 0.3806, 1.0])), [0, 203, 26.2, 1e4], 0.01)
    # ITU-R BT.2100: half the code is a twelfth of the light, the whole is all of it.
    np.testing.assert_allclose(_hlg(np.array([0.0, 0.5, 1.0])), [0, 1 / 12, 1], atol=1e-6)


def test_colours_that_are_not_known_are_refused_by_name(tmp_path):
    path = odd_clips.hdr(tmp_path / "film.mp4", 16, lambda i: halves(0.5, 0.5), primaries=5)
    video = open_video(path)
    with pytest.raises(UnsupportedCodecError, match=r"film\.mp4: .*matrix 9 and primaries 5"):
        video.read([0.5])
    video.close()
