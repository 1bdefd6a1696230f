"""Bad input and bad luck: typed errors that name the value and the fix, and no hang ever."""

from __future__ import annotations

import inspect
import os
import pickle
from types import SimpleNamespace

import clips
import numpy as np
import pytest

from gym_longvideo.video import (
    BackendUnavailableError,
    DecodeTimeoutError,
    FrameDecodeError,
    FrameStatus,
    NoVideoStreamError,
    VideoError,
    VideoNotFoundError,
    VideoOpenError,
    VideoTruncatedError,
    errors,
    open_video,
    planner,
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return clips.Library(tmp_path_factory.mktemp("clips"))


def test_a_missing_file_is_named(tmp_path):
    path = str(tmp_path / "gone.mp4")
    with pytest.raises(VideoNotFoundError, match=r"gone\.mp4: no such file") as caught:
        open_video(path)
    assert caught.value.path == path
    assert isinstance(caught.value, FileNotFoundError)


def test_a_directory_is_not_a_video(tmp_path):
    with pytest.raises(VideoNotFoundError, match="is a directory; pass a video file"):
        open_video(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_an_unreadable_file_is_reported(library, tmp_path):
    path = tmp_path / "secret.mp4"
    path.write_bytes(library["cfr.mp4"].read_bytes())
    path.chmod(0)
    with pytest.raises(VideoNotFoundError, match="no permission"):
        open_video(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"hello\n" * 1000, "not a readable video"),
        (bytes(np.random.default_rng(0).bytes(20000)), "not a readable video"),
    ],
)
def test_a_file_that_is_no_video_does_not_open(tmp_path, content, message):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoOpenError, match=message):
        open_video(path)


def test_a_header_without_pictures_does_not_open(library, tmp_path):
    path = tmp_path / "cut.mp4"  # the index lies at the end, and is gone
    content = library["cfr.mp4"].read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoOpenError):
        open_video(path)


@pytest.mark.parametrize("kind", ["sound", "text", "picture"])
def test_a_file_without_moving_pictures_is_refused(library, tmp_path, kind):
    path = library["sound.m4a"]
    if kind == "text":
        path = tmp_path / "notes.txt"
        path.write_text("nothing to see\n" * 50)
    elif kind == "picture":
        from PIL import Image

        path = tmp_path / "still.png"
        Image.new("RGB", (20, 20)).save(path)
    with pytest.raises(NoVideoStreamError, match="pass a video file"):
        open_video(path)


def test_a_stream_without_timestamps_is_refused_with_the_remedy(library):
    with pytest.raises(VideoOpenError, match=r"no timestamps; remux first: ffmpeg"):
        open_video(library["raw.h264"])


def test_a_colon_in_a_file_name_is_no_protocol(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "http:clip.mp4"
    path.write_bytes(library["cfr.mp4"].read_bytes())
    open_video("http:clip.mp4").close()


def test_an_unknown_backend_lists_the_choices(library):
    with pytest.raises(ValueError, match=r"'opencv' is unknown; choose one of pyav, decord"):
        open_video(library["cfr.mp4"], backend="opencv")


@pytest.mark.parametrize("time", [-0.1, 3.5, np.nan, np.inf])
def test_times_outside_the_video_are_refused(library, time):
    video = open_video(library["cfr.mp4"])
    with pytest.raises(ValueError, match=r"time .* is outside .*0 to 3\.000 s"):
        video.read([0.5, time])
    video.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(size=(0, 10)), r"size=\(0, 10\) is not"),
        (dict(fit="crop"), "choose 'stretch' or 'letterbox'"),
        (dict(tolerance_s=-1.0), r"tolerance_s=-1\.0 is not a distance"),
        (dict(tolerance_s=np.nan), "tolerance_s=nan is not a distance"),
    ],
)
def test_senseless_requests_are_explained(library, arguments, message):
    video = open_video(library["cfr.mp4"])
    with pytest.raises(ValueError, match=message):
        video.read([0.5], **arguments)
    video.close()


def test_no_times_give_an_empty_batch(library):
    video = open_video(library["cfr.mp4"])
    batch = video.read([], size=(8, 8))
    assert batch.frames.shape == (0, 8, 8, 3)
    video.close()


@pytest.fixture(scope="module")
def truncated(library, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "truncated.mp4"
    whole = clips.remux(library["cfr.mp4"], path, options={"movflags": "faststart"})
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.7)])
    return path


def test_a_truncated_file_ends_where_its_data_end(truncated):
    video = open_video(truncated)
    info = video.info
    assert info.truncated
    assert info.declared_s == pytest.approx(3.0)
    assert 0.5 < info.duration_s < 2.7
    assert info.frame_count == pytest.approx(info.duration_s * 30, abs=2)
    batch = video.read(np.linspace(0, info.duration_s, 9), size=(48, 64))
    numbers = clips.read_barcodes(batch.frames)
    assert numbers == sorted(numbers)
    assert numbers[-1] == round(batch.actual_s[-1] * 30)
    video.close()


def test_a_truncated_file_can_be_refused(truncated):
    with pytest.raises(VideoTruncatedError, match=r"of 3\.00 s declared; fetch the file again"):
        open_video(truncated, allow_truncated=False)


@pytest.fixture(scope="module")
def damaged(library, tmp_path_factory):
    """A clip whose frames 40..47, and so the rest of their group, are garbage."""
    import av

    source = library["no-b-frames.mp4"]
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [(p.pts, p.pos, p.size) for p in container.demux(stream) if p.size]
    content = bytearray(source.read_bytes())
    rng = np.random.default_rng(0)
    for number, (_, position, size) in enumerate(sorted(packets)):
        if 28 <= number < 47:
            content[position + 5 : position + size] = rng.bytes(size - 5)
    path = tmp_path_factory.mktemp("damage") / "damaged.mp4"
    path.write_bytes(bytes(content))
    return path


def test_frames_after_damage_are_marked_and_those_before_are_good(damaged):
    video = open_video(damaged)
    numbers = np.array([5, 26, 40, 46, 60])
    batch = video.read((numbers + 0.5) / 30, size=(48, 64))
    status = batch.status.tolist()
    assert [status[i] for i in (0, 1, 4)] == [FrameStatus.OK] * 3
    assert set(status[2:4]) <= {FrameStatus.SUSPECT, FrameStatus.SUBSTITUTED}
    good = clips.read_barcodes(batch.frames[[0, 1, 4]])
    assert good == [5, 26, 60]
    video.close()


def test_a_group_without_any_good_frame_is_answered_from_before_it(library, tmp_path):
    import av

    source = library["no-b-frames.mp4"]
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size and 48 * 512 <= packet.pts < 72 * 512:
                content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path = tmp_path / "hole.mp4"
    path.write_bytes(bytes(content))
    video = open_video(path)
    batch = video.read([60.5 / 30], size=(48, 64))
    assert batch.status[0] in (FrameStatus.SUBSTITUTED, FrameStatus.SUSPECT)
    assert batch.actual_s[0] < 48 / 30
    assert clips.read_barcodes(batch.frames) == [round(batch.actual_s[0] * 30)]
    video.close()


def test_a_file_with_nothing_decodable_raises(library, tmp_path):
    import av

    source = library["no-b-frames.mp4"]
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path = tmp_path / "hollow.mp4"
    path.write_bytes(bytes(content))
    video = open_video(path)
    with pytest.raises(FrameDecodeError, match=r"no frame could be decoded for \[1\.0"):
        video.read([1.0])
    video.close()


def test_a_file_replaced_by_garbage_raises_a_video_error(library, tmp_path):
    path = tmp_path / "changing.mp4"
    path.write_bytes(library["cfr.mp4"].read_bytes())
    video = open_video(path)
    video.close()
    path.write_bytes(b"no longer a video")
    with pytest.raises(VideoError):
        video.read([1.0])


def test_the_deadline_is_checked_at_every_packet(library, monkeypatch):
    video = open_video(library["cfr.mp4"])
    clock = iter(range(1000))
    fake = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("gym_longvideo.video.request.time", fake)
    with pytest.raises(DecodeTimeoutError, match="longer than deadline_s=9"):
        video.read([2.9], deadline_s=9)
    assert next(clock) < 20
    monkeypatch.undo()
    assert video.read([2.9], size=(48, 64)).status[0] == FrameStatus.OK
    video.close()


def test_no_deadline_means_no_deadline(library, monkeypatch):
    video = open_video(library["cfr.mp4"])
    fake = SimpleNamespace(monotonic=lambda: 1 / 0)
    monkeypatch.setattr("gym_longvideo.video.request.time", fake)
    video.read([1.0], deadline_s=None)
    video.close()


def test_long_groups_are_decoded_while_looking_ahead(library, monkeypatch):
    monkeypatch.setattr(planner, "_AHEAD_PACKETS", 8)
    for name in ("cfr.mp4", "open-gop.ts", "hevc.mp4", "intra-refresh.mp4"):
        video = open_video(library[name])
        numbers = np.array([0, 20, 23, 40, 47, 85])
        batch = video.read((numbers + 0.5) / 30, size=(48, 64))
        assert clips.read_barcodes(batch.frames) == numbers.tolist()
        video.close()


@pytest.mark.parametrize(
    "kind", [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, VideoError)]
)
def test_errors_survive_pickling(kind):
    error = kind("it broke; mend it", path="a.mp4", backend="pyav")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error) == "a.mp4: it broke; mend it [pyav]"
    assert (copy.reason, copy.path, copy.backend) == (error.reason, "a.mp4", "pyav")


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_a_missing_backend_names_the_command_that_installs_it(library, monkeypatch, backend):
    import importlib.util
    import sys

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == backend else find_spec(name)
    )
    monkeypatch.setitem(sys.modules, backend, None)
    monkeypatch.setitem(sys.modules, f"{backend}.decoders", None)
    with pytest.raises(BackendUnavailableError, match=rf'pip install "gym-longvideo\[{backend}\]"'):
        open_video(library["cfr.mp4"], backend=backend)


def test_torchcodec_that_finds_no_ffmpeg_at_its_first_file_is_missing_too(library, monkeypatch):
    import sys
    import types

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Could not load libtorchcodec. Likely causes:\n 1. FFmpeg")

    decoders = types.SimpleNamespace(VideoDecoder=refuse)
    monkeypatch.setitem(sys.modules, "torchcodec", types.SimpleNamespace(decoders=decoders))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    video = open_video(library["cfr.mp4"], backend="torchcodec")
    with pytest.raises(BackendUnavailableError, match="FFmpeg libraries of your system"):
        video.read([0.5], size=(48, 64))
