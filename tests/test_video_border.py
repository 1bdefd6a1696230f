"""What leaves the decoding layer: only of the file that was named, and as a ``VideoError``."""

from __future__ import annotations

import errno
import os
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import clips
import numpy as np
import odd_clips
import psutil
import pytest

from gym_longvideo.video import (
    DecodeTimeoutError,
    MachineError,
    VideoChangedError,
    VideoError,
    VideoNotFoundError,
    VideoOpenError,
    open_video,
)
from gym_longvideo.video.border import border, is_machine_fault
from gym_longvideo.video.packets import demux
from gym_longvideo.video.picture import Painter
from gym_longvideo.video.probe import open_file
from gym_longvideo.video.request import Deadline


def importable(backend: str) -> bool:
    try:
        __import__("torchcodec.decoders" if backend == "torchcodec" else backend)
    except (ImportError, OSError, RuntimeError):
        return False
    return True


BACKENDS = [
    "pyav",
    *(
        pytest.param(name, marks=pytest.mark.skipif(not importable(name), reason=f"no {name}"))
        for name in ("decord", "torchcodec")
    ),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return clips.Library(tmp_path_factory.mktemp("clips"))


def numbers_at(video, *numbers):
    batch = video.read((np.array(numbers) + 0.5) / 30, size=(48, 64))
    return clips.read_barcodes(batch.frames)


# -- names and titles ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("encoding", ["latin-1", "gbk", "shift-jis"])
def test_titles_in_any_encoding_are_no_obstacle(library, tmp_path, backend, encoding):
    title = {"latin-1": "Fußgänger", "gbk": "电影标题", "shift-jis": "映画の題名"}[encoding]
    path = tmp_path / "film.mkv"
    odd_clips.titled(path, library["cfr.mp4"], title.encode(encoding))
    video = open_video(path, backend=backend)
    assert video.info.duration_s == 3.0
    assert numbers_at(video, 40) == [40]
    video.close()


def test_a_name_that_is_not_utf_8_is_opened(library, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    Path(os.fsdecode(path)).write_bytes(library["cfr.mp4"].read_bytes())
    for isolate in (False, True):
        video = open_video(os.fsdecode(path), isolate=isolate)
        assert numbers_at(video, 7) == [7]
        video.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_path_with_a_null_byte_is_no_file(tmp_path, backend):
    for isolate in (False, True):
        with pytest.raises(VideoNotFoundError, match="no such file"):
            open_video(f"{tmp_path}/a\0b.mp4", backend=backend, isolate=isolate)


@pytest.mark.parametrize("error", [UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no"), KeyError(3)])
def test_whatever_a_decoder_raises_is_a_video_error(library, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    video = open_video(library["cfr.mp4"])
    with monkeypatch.context() as change:
        change.setattr(Painter, "draw", fail)
        with pytest.raises(VideoError, match=type(error).__name__) as caught:
            video.read([1.0])
    assert caught.value.path == str(library["cfr.mp4"])
    assert caught.value.__cause__ is error
    assert numbers_at(video, 7) == [7]
    video.close()
    monkeypatch.setattr("gym_longvideo.video.probe.av.open", fail)
    with pytest.raises(VideoError, match=type(error).__name__):
        video.read([1.0])


def test_interrupts_pass_the_border():
    with pytest.raises(KeyboardInterrupt), border("a.mp4", "pyav"):
        raise KeyboardInterrupt


# -- only the named file, of bounded size, for a bounded time --------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["m3u8", "mp4", "itself", "sdp"])
def test_a_file_that_names_others_opens_none_of_them(library, tmp_path, backend, kind):
    other = library["h264.ts"]
    path = tmp_path / ("video.mp4" if kind == "itself" else f"video.{kind}")
    path.write_text(
        {
            "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{other}\n#EXT-X-ENDLIST\n",
            "mp4": f"ffconcat version 1.0\nfile '{other}'\n",
            "itself": "ffconcat version 1.0\nfile video.mp4\n",
            "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
            "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        }[kind]
    )
    files = psutil.Process().num_fds()
    with pytest.raises(VideoOpenError, match="playlists and lists of files are not opened"):
        open_video(path, backend=backend)
    assert psutil.Process().num_fds() == files


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, backend):
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    with pytest.raises(VideoOpenError, match="pass a regular file"):
        open_video(path, backend=backend)


def gif(width: int, height: int) -> bytes:
    """Return an animation of two pictures of one pixel each, on a screen of any size."""
    frame = b"\x21\xf9\x04\x00\x0a\x00\x00\x00\x2c" + struct.pack("<4H", 0, 0, 1, 1)
    frame += b"\x00\x02\x02\x44\x01\x00"
    screen = struct.pack("<2H", width, height) + b"\x80\x00\x00\x00\x00\x00\xff\xff\xff"
    return b"GIF89a" + screen + 2 * frame + b";"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_picture_of_any_size_cannot_be_asked_for_in_few_bytes(tmp_path, backend):
    path = tmp_path / "bomb.gif"
    path.write_bytes(gif(20_000, 20_000))
    memory = psutil.Process().memory_info().rss
    with pytest.raises(VideoOpenError, match="pixels"):
        open_video(path, backend=backend)
    assert psutil.Process().memory_info().rss - memory < 100 << 20
    path.write_bytes(gif(40, 30))
    assert open_video(path).info.width == 40


def test_opening_has_a_deadline_of_its_own_and_that_of_the_read(library, monkeypatch):
    path, other = library["vfr.mp4"], library["cfr.mkv"]
    given = []
    av_open = av.open

    def watch(*args, **kwargs):
        given.append(kwargs["timeout"])
        return av_open(*args, **kwargs)

    monkeypatch.setattr("gym_longvideo.video.probe.av.open", watch)
    video = open_video(path)
    video.close()
    video.read([0.1], deadline_s=7.0)
    assert 50 < given[0][0] <= 60 and 0 < given[-1][0] <= 7
    video.close()
    with pytest.raises(DecodeTimeoutError):
        video.read([0.1], deadline_s=0.0)
    clock = iter(range(0, 10_000, 9))
    fake = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("gym_longvideo.video.request.time", fake)
    with pytest.raises(DecodeTimeoutError, match="deadline_s=60"):
        open_video(other)


def test_a_file_that_does_not_open_in_time_is_a_time_out(library):
    class Late(Deadline):
        left_s = 0.0

        def check(self):
            pass

    with pytest.raises(DecodeTimeoutError, match="opening took too long"):
        open_file(str(library["cfr.mkv"]), deadline=Late(None, "", ""))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_backend_takes_a_name_for_a_protocol(library, tmp_path, monkeypatch, backend):
    monkeypatch.chdir(tmp_path)
    Path("concat:other.mp4").write_bytes(library["cfr.mp4"].read_bytes())
    Path("other.mp4").write_bytes(library["open-gop.mp4"].read_bytes())
    video = open_video("concat:other.mp4", backend=backend)
    assert numbers_at(video, 7) == [7]
    video.close()


# -- files that are exchanged meanwhile ------------------------------------------------------------


def exchange(path: Path, content: bytes, how: str) -> None:
    """Put other content under a path, keeping size and time where it can be kept."""
    before = path.stat()
    if how == "renamed":
        other = path.with_suffix(".new")
        other.write_bytes(content)
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(other, path)
    else:
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["renamed", "written over"])
def test_a_file_that_was_exchanged_is_a_fault(library, tmp_path, backend, how):
    path = tmp_path / "film.mp4"
    content = library["cfr.mp4"].read_bytes()
    path.write_bytes(content)
    video = open_video(path, backend=backend)
    assert numbers_at(video, 40) == [40]
    exchange(path, content, how)
    for copy in (video, pickle.loads(pickle.dumps(video))):
        with pytest.raises(VideoChangedError, match="has changed since it was opened"):
            numbers_at(copy, 50)
        copy.close()
        with pytest.raises(VideoChangedError):
            numbers_at(copy, 50)
        copy.close()
    again = open_video(path, backend=backend)
    assert numbers_at(again, 50) == [50]
    again.close()


def test_a_file_that_was_exchanged_is_a_fault_in_a_process_apart_too(library, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(library["cfr.mp4"].read_bytes())
    video = open_video(path, isolate=True)
    exchange(path, library["open-gop.mp4"].read_bytes(), "renamed")
    with pytest.raises(VideoChangedError):
        numbers_at(video, 50)
    video.close()
    with pytest.raises(VideoChangedError):  # the next child is told of another file
        numbers_at(video, 50)
    video.close()


def test_frames_of_a_file_that_changes_while_it_is_read_are_not_given(
    library, tmp_path, monkeypatch
):
    path = tmp_path / "film.mp4"
    path.write_bytes(library["cfr.mp4"].read_bytes())
    video = open_video(path)
    draw = Painter.draw

    def draw_and_exchange(self, frame, out, fit="stretch"):
        draw(self, frame, out, fit)
        path.write_bytes(library["open-gop.mp4"].read_bytes())

    monkeypatch.setattr(Painter, "draw", draw_and_exchange)
    with pytest.raises(VideoChangedError):
        numbers_at(video, 50)
    video.close()


# -- faults of the machine -------------------------------------------------------------------------


def test_no_descriptor_left_is_not_the_fault_of_a_file(library):
    resource = pytest.importorskip("resource")
    path = library["hevc.mp4"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        taken.append(os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 4, hard))
        with pytest.raises(OSError):
            while True:
                taken.append(os.dup(0))
        for isolate in (False, True):
            with pytest.raises(MachineError, match="Too many open files"):
                open_video(path, isolate=isolate)
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    open_video(path).close()


def test_no_memory_left_is_not_the_fault_of_a_file(library, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    video = open_video(library["cfr.mp4"])
    monkeypatch.setattr(Painter, "draw", fail)
    with pytest.raises(MachineError, match="short of something"):
        video.read([1.0])
    monkeypatch.setattr("gym_longvideo.video.pyav.empty_batch", fail)
    with pytest.raises(MachineError):
        video.read([1.0])
    video.close()


def test_no_memory_while_reading_is_not_ridden_over_like_damage(monkeypatch):
    full = av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")
    damage = av.error.InvalidDataError(1, "Invalid data found when processing input")
    packet = SimpleNamespace(size=1)

    class Container:
        def __init__(self, *found):
            self.found = list(found)

        def demux(self, *streams):
            while self.found:
                each = self.found.pop(0)
                if isinstance(each, Exception):
                    raise each
                yield each

    stream: Any = None
    damaged: Any = Container(packet, damage, packet)
    assert list(demux(damaged, stream)) == [packet, packet]
    monkeypatch.setattr("gym_longvideo.video.border._has_memory", lambda: False)
    exhausted: Any = Container(packet, full, packet)
    with pytest.raises(MemoryError):
        list(demux(exhausted, stream))


def test_a_file_that_asks_for_more_than_there_is_is_to_blame_itself(monkeypatch):
    full = av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")
    assert not is_machine_fault(full)
    monkeypatch.setattr("gym_longvideo.video.border._has_memory", lambda: False)
    assert is_machine_fault(full)
    assert is_machine_fault(MemoryError())
    assert not is_machine_fault(PermissionError(errno.EPERM, "Operation not permitted"))


def test_a_process_that_cannot_be_started_is_a_fault_of_the_machine(library, monkeypatch):
    def fail(*args, **kwargs):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("gym_longvideo.video.isolate.subprocess.Popen", fail)
    with pytest.raises(MachineError, match="Resource temporarily unavailable"):
        open_video(library["cfr.mp4"], isolate=True)
