"""Reads shared by two readers of one file give exactly what one reader gives."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import clips
import numpy as np
import psutil
import pytest

from gym_longvideo.video import DecodeTimeoutError, FrameDecodeError, open_video, pyav
from gym_longvideo.video.planner import SeekPlanner

REAL_VIDEOS = Path(__file__).parents[2] / "shared" / "data" / "videos"
NAMES = [name for name in clips.CATALOG if name not in ("raw.h264", "sound.m4a")]
# Containers with an index of at least two groups of pictures.
SHARED = ["cfr.mp4", "cfr.mkv", "open-gop.mp4", "hevc.mp4", "vfr.mp4", "edit-list.mp4"]
SHARED += ["intra-refresh.mp4", "av1.mp4", "rotated-90.mp4", "start-offset.mkv", "vp9.webm"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return clips.Library(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def helped(monkeypatch):
    """Let small files be worth a second reader, and the first wait until that one is at work.

    Returns a list of how many pieces each read left to others than the first reader.
    """
    monkeypatch.setattr(pyav, "_PIXELS_PER_READER", 1)
    collect, share = SeekPlanner.collect, pyav.PyAVVideo._share
    log: list[int] = []

    def counting_share(self, *args, **kwargs):
        log.append(0)
        share(self, *args, **kwargs)

    def patient_collect(self, *args):
        names = [thread.name for thread in threading.enumerate()]
        if threading.current_thread().name == "gym_longvideo reader":
            log[-1] += 1
        while not log[-1] and "gym_longvideo reader" in names:
            time.sleep(0.001)
            names = [thread.name for thread in threading.enumerate()]
        collect(self, *args)

    monkeypatch.setattr(pyav.PyAVVideo, "_share", counting_share)
    monkeypatch.setattr(SeekPlanner, "collect", patient_collect)
    return log


def numbers_at(video, *numbers):
    batch = video.read((np.array(numbers) + 0.5) / 30, size=(48, 64))
    return clips.read_barcodes(batch.frames)


def check_equal(path, requests, threads=2, tolerances=(0.0, 0.2, np.inf), **kwargs):
    """Read the same with one reader, undivided, and with more; opened freshly, and again warm."""
    for tolerance in tolerances:
        one, more = open_video(path, threads=1), open_video(path, threads=threads)
        for times in requests:
            with patch.object(SeekPlanner, "pieces", lambda _, moments, tolerance: [list(moments)]):
                expected = one.read(times, tolerance_s=tolerance, **kwargs)
            batch = more.read(times, tolerance_s=tolerance, **kwargs)
            np.testing.assert_array_equal(batch.frames, expected.frames)
            np.testing.assert_array_equal(batch.actual_s, expected.actual_s)
            np.testing.assert_array_equal(batch.status, expected.status)
            assert batch.frames_decoded == expected.frames_decoded
        one.close()
        more.close()


@pytest.mark.parametrize("name", NAMES)
def test_two_readers_return_what_one_does(library, name, helped):
    with open_video(library[name]) as video:  # type: ignore[attr-defined]
        end = video.info.duration_s
    rng = np.random.default_rng(0)
    requests = [np.linspace(end, 0, 9), rng.uniform(0, end, 5), [end, 0.0, end], [0.0], []]
    check_equal(library[name], requests, size=(48, 64))
    if name in SHARED:
        assert sum(helped) > 0


def test_so_do_four(library, helped):
    check_equal(library["cfr.mp4"], [np.linspace(0, 2.9, 12)] * 2, threads=4, size=(48, 64))
    assert sum(helped) > 4


@pytest.mark.parametrize(
    "name", ["bigbuckbunny.mp4", "intel_car_detection.mp4", "tears_of_steel_battle.webm"]
)
def test_two_readers_return_what_one_does_on_real_videos(name, helped):
    path = REAL_VIDEOS / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    with open_video(path) as video:  # type: ignore[attr-defined]
        end = video.info.duration_s
    requests = [[0.1 * end, 0.2 * end, 0.6 * end, 0.9 * end], [0.3 * end, 0.8 * end]]
    check_equal(path, requests, tolerances=(0.0, np.inf), size=(48, 64))
    assert name == "bigbuckbunny.mp4" or sum(helped) > 0  # that one is a single group of pictures


def test_damage_is_reported_as_with_one_reader(library, tmp_path, helped):
    content = bytearray(library["cfr.mp4"].read_bytes())
    at = content.index(b"mdat")
    content[at + 9000 : at + 16000] = bytes(7000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    check_equal(path, [np.linspace(0, 2.9, 9)], size=(48, 64))


def test_small_files_and_neighbouring_moments_stay_with_one_reader(library, helped, monkeypatch):
    video = open_video(library["cfr.mp4"])
    assert numbers_at(video, 30, 33, 36) == [30, 33, 36]
    monkeypatch.undo()
    assert numbers_at(video, 3, 80) == [3, 80]
    assert not video._spares  # type: ignore[attr-defined]
    video.close()


def test_threads_must_be_one_or_more(library):
    for backend in ("pyav", "decord"):
        with pytest.raises(ValueError, match="threads=0 is too few to read; use 1 or more"):
            open_video(library["cfr.mp4"], backend=backend, threads=0)


def test_reading_leaves_no_thread_and_closing_no_file(library, helped):
    threads, files = threading.active_count(), psutil.Process().num_fds()
    video = open_video(library["cfr.mp4"])
    for _ in range(3):
        assert numbers_at(video, 80, 3, 41) == [80, 3, 41]
        assert threading.active_count() == threads
    assert sum(helped) > 2
    assert psutil.Process().num_fds() == files + 2
    video.close()
    assert psutil.Process().num_fds() == files


def test_many_readings_leak_no_memory(library, helped):
    process = psutil.Process()

    def cycle(count):
        for _ in range(count):
            video = open_video(library["cfr.mp4"])
            assert numbers_at(video, 80, 3) == [80, 3]
            video.close()

    cycle(20)
    files, memory = process.num_fds(), process.memory_info().rss
    cycle(100)
    assert process.num_fds() == files
    assert process.memory_info().rss - memory < 15 << 20
    assert sum(helped) >= 120


def test_threads_may_share_a_video_read_by_two_readers(library, monkeypatch):
    monkeypatch.setattr(pyav, "_PIXELS_PER_READER", 1)
    video = open_video(library["cfr.mp4"])
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(10):
            wanted = rng.integers(0, 90, 4).tolist()
            if numbers_at(video, *wanted) != wanted:
                failures.append(wanted)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    video.close()


def test_a_pickled_copy_opens_its_own_readers(library, helped):
    video = open_video(library["cfr.mp4"], threads=3)
    assert numbers_at(video, 80, 3) == [80, 3]
    copy = pickle.loads(pickle.dumps(video))
    video.close()
    assert numbers_at(copy, 50, 3, 88) == [50, 3, 88]
    assert helped[-1] > 0
    copy.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_child_opens_its_own_readers(library, monkeypatch):
    monkeypatch.setattr(pyav, "_PIXELS_PER_READER", 1)
    video = open_video(library["cfr.mp4"])
    wanted = [80, 3, 41, 60, 25, 10]
    for _ in range(2):
        assert numbers_at(video, *wanted) == wanted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if all(numbers_at(video, *wanted) == wanted for _ in range(20)) else 2
        finally:
            os._exit(code)
    for _ in range(20):
        assert numbers_at(video, *wanted) == wanted
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    video.close()


def test_the_earliest_error_is_raised_once_all_readers_stopped(library, helped, monkeypatch):
    collect = SeekPlanner.collect

    def fail(self, moments, *args):
        collect(self, moments, *args)
        if moments[-1] > self._second:  # of three groups beyond one second, all fail
            raise FrameDecodeError(f"broken at {moments[0]}", path="cfr.mp4")

    monkeypatch.setattr(SeekPlanner, "collect", fail)
    threads = threading.active_count()
    times = [0.1, 0.9, 1.1, 1.9, 2.9]
    messages = []
    for count in (1, 2, 4):
        video = open_video(library["cfr.mp4"], threads=count)
        with pytest.raises(FrameDecodeError) as caught:
            video.read(times, size=(48, 64))
        messages.append(caught.value.reason)
        assert threading.active_count() == threads
        video.close()
    monkeypatch.undo()
    assert len(set(messages)) == 1
    assert sum(helped) > 0


def test_an_interrupted_read_stops_the_other_reader_and_the_next_works(
    library, helped, monkeypatch
):
    collect, interrupted = SeekPlanner.collect, threading.Event()

    def interrupt(self, *args):
        if threading.current_thread() is threading.main_thread():
            interrupted.set()
            raise KeyboardInterrupt
        assert interrupted.wait(20)
        collect(self, *args)

    video = open_video(library["cfr.mp4"])
    threads = threading.active_count()
    with monkeypatch.context() as change:
        change.setattr(SeekPlanner, "collect", interrupt)
        with pytest.raises(KeyboardInterrupt):
            numbers_at(video, 80, 3)
    assert threading.active_count() == threads
    assert numbers_at(video, 80, 3) == [80, 3]
    video.close()


def test_the_deadline_holds_in_every_reader(library, helped, monkeypatch):
    video = open_video(library["cfr.mp4"])
    threads = threading.active_count()
    with pytest.raises(DecodeTimeoutError, match="deadline_s=0"):
        video.read([0.1, 2.9], deadline_s=0)
    collect = SeekPlanner.collect

    def late(self, moments, tolerance, emit, deadline):
        if threading.current_thread() is not threading.main_thread():
            deadline._end = 0.0
        collect(self, moments, tolerance, emit, deadline)

    monkeypatch.setattr(SeekPlanner, "collect", late)
    with pytest.raises(DecodeTimeoutError):
        video.read([0.1, 2.9])
    assert threading.active_count() == threads
    video.close()


def test_one_reader_does_it_all_where_a_second_cannot_open(library, tmp_path, helped):
    path = tmp_path / "gone.mp4"
    path.write_bytes(library["cfr.mp4"].read_bytes())
    video = open_video(path)
    path.unlink()
    files = psutil.Process().num_fds()
    assert numbers_at(video, 80, 3) == [80, 3]
    assert psutil.Process().num_fds() == files
    assert helped[-1] == 0
    video.close()


def test_no_thread_to_be_had_is_no_error(library, helped, monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    video = open_video(library["cfr.mp4"])
    with monkeypatch.context() as change:
        change.setattr(threading.Thread, "start", start)
        assert numbers_at(video, 80, 3) == [80, 3]
    video.close()


def test_reading_while_the_interpreter_exits(library):
    code = (
        "import atexit, sys; from gym_longvideo.video import open_video, pyav\n"
        "pyav._PIXELS_PER_READER = 1\n"
        "video = open_video(sys.argv[1])\n"
        "video.read([0.1, 2.9])\n"
        "atexit.register(lambda: print(video.read([0.1, 1.5, 2.9]).status))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(library["cfr.mp4"])],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.stdout.strip(), done.returncode) == ("[0 0 0]", 0), done.stderr
