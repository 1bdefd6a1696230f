"""Readers across processes and threads: pickling, forking, isolation, hanging and crashing."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from functools import partial

import clips
import numpy as np
import psutil
import pytest

from gym_longvideo.video import (
    ArrayVideo,
    DecoderCrashError,
    DecodeTimeoutError,
    ReaderPool,
    VideoError,
    VideoOpenError,
    open_video,
)
from gym_longvideo.video.isolate import IsolatedVideo

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return clips.Library(tmp_path_factory.mktemp("clips"))


class BadVideo(ArrayVideo):
    """A decoder that does at its second read what decoders should not do."""

    def __init__(self, deed: str) -> None:
        super().__init__(np.full((4, 8, 8, 3), 7, np.uint8), fps=1.0)
        self.deed, self.reads = deed, 0

    def read(self, times, **kwargs):
        self.reads += 1
        if self.reads == 2:
            if self.deed == "hang":
                time.sleep(3600)
            elif self.deed == "abort":
                os.abort()
            elif self.deed == "exit":
                os._exit(3)
            elif self.deed == "raise":
                raise RuntimeError("thousands of lines")
            elif self.deed == "print":
                print("noise on standard output" * 10000, flush=True)
        return super().read(times, **kwargs)


def numbers_at(video, *numbers):
    batch = video.read((np.array(numbers) + 0.5) / 30, size=(48, 64))
    return clips.read_barcodes(batch.frames)


@pytest.mark.parametrize("isolate", [False, True])
def test_a_pickled_video_reads_the_same_and_carries_no_decoder(library, isolate):
    video = open_video(library["cfr.mp4"], isolate=isolate)
    assert numbers_at(video, 40) == [40]
    copy = pickle.loads(pickle.dumps(video))
    assert copy.info == video.info
    assert numbers_at(copy, 50, 3) == [50, 3]
    copy.close()
    video.close()


@pytest.mark.parametrize("isolate", [False, True])
def test_a_closed_video_opens_again_at_the_next_read(library, isolate):
    video = open_video(library["cfr.mp4"], isolate=isolate)
    video.close()
    video.close()
    assert video.info.frame_count == 90
    assert numbers_at(video, 7) == [7]
    video.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@needs_fork
@pytest.mark.parametrize("isolate", [False, True])
def test_parent_and_forked_child_read_at_once_without_disturbing_each_other(library, isolate):
    video = open_video(library["cfr.mp4"], isolate=isolate)
    wanted = [80, 3, 41, 60, 25, 10]
    assert numbers_at(video, *wanted) == wanted
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


def test_threads_may_share_a_video(library):
    video = open_video(library["cfr.mp4"])
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(10):
            wanted = rng.integers(0, 90, 3).tolist()
            if numbers_at(video, *wanted) != wanted:
                failures.append(wanted)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    video.close()


def test_opening_and_closing_leaks_no_files_and_no_memory(library):
    process = psutil.Process()

    def cycle(count):
        for _ in range(count):
            video = open_video(library["cfr.mp4"])
            video.read([1.0], size=(48, 64))
            video.close()

    cycle(20)
    files, memory = process.num_fds(), process.memory_info().rss
    cycle(150)
    assert process.num_fds() == files
    assert process.memory_info().rss - memory < 15 << 20


def test_failed_opens_leak_no_files(library, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(library["cfr.mp4"].read_bytes()[:-2000])
    files = psutil.Process().num_fds()
    for _ in range(20):
        for bad in (path, library["sound.m4a"], library["raw.h264"]):
            with pytest.raises(VideoError):
                open_video(bad)
    assert psutil.Process().num_fds() == files


def test_an_isolated_video_gives_the_same_frames(library):
    here, apart = open_video(library["cfr.mp4"]), open_video(library["cfr.mp4"], isolate=True)
    times = [2.0, 0.1, 1.3]
    np.testing.assert_array_equal(here.read(times).frames, apart.read(times).frames)
    assert here.info == apart.info
    frames = apart.read(times).frames
    frames[:] = 0  # the caller's own
    apart.close()
    here.close()


def test_errors_of_the_child_arrive_typed(library, tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("no video")
    with pytest.raises(VideoOpenError, match="not a readable video"):
        open_video(path, isolate=True)
    video = open_video(library["cfr.mp4"], isolate=True)
    with pytest.raises(ValueError, match="outside the video"):
        video.read([99.0])
    assert numbers_at(video, 4) == [4]
    video.close()


@pytest.fixture
def children():
    """What this process has started since the test began (multiprocessing may keep helpers)."""
    before = psutil.Process().children()
    return lambda: [child for child in psutil.Process().children() if child not in before]


def test_a_child_that_hangs_is_killed_and_the_next_read_starts_another(children):
    video = IsolatedVideo(partial(BadVideo, "hang"), path="bad.mp4", backend="bad")
    assert video.read([0.0]).frames[0, 0, 0, 0] == 7
    (child,) = children()
    started = time.monotonic()
    with pytest.raises(DecodeTimeoutError, match=r"did not answer within 0\.1 s and was killed"):
        video.read([1.0], deadline_s=0.1)
    assert time.monotonic() - started < 5
    assert not child.is_running()
    assert video.read([1.0]).frames[0, 0, 0, 0] == 7
    video.close()
    assert not children(), "no zombie"


@pytest.mark.parametrize(("deed", "message"), [("abort", "SIGABRT"), ("exit", "exit status 3")])
def test_a_child_that_crashes_is_an_error_and_no_more(deed, message):
    video = IsolatedVideo(partial(BadVideo, deed), path="bad.mp4", backend="bad")
    video.read([0.0])
    with pytest.raises(DecoderCrashError, match=message):
        video.read([1.0])
    assert video.read([2.0]).frames[0, 0, 0, 0] == 7
    video.close()


def test_a_child_killed_from_outside_is_an_error_and_no_more(library, children):
    video = open_video(library["cfr.mp4"], isolate=True)
    (child,) = children()
    child.kill()
    with pytest.raises(DecoderCrashError, match="SIGKILL: out of memory"):
        video.read([1.0])
    assert numbers_at(video, 30) == [30]
    video.close()


def test_an_unexpected_exception_of_the_child_is_a_video_error():
    video = IsolatedVideo(partial(BadVideo, "raise"), path="bad.mp4", backend="bad")
    video.read([0.0])
    with pytest.raises(VideoError, match="RuntimeError in the decoder process: thousands"):
        video.read([1.0])
    video.close()


def test_what_a_decoder_prints_does_not_get_between_the_replies():
    video = IsolatedVideo(partial(BadVideo, "print"), path="bad.mp4", backend="bad")
    for _ in range(3):
        assert video.read([0.0]).frames[0, 0, 0, 0] == 7
    video.close()


def read_in_daemon(path, queue):
    video = open_video(path, isolate=True)
    queue.put(numbers_at(video, 33))
    video.close()


def test_isolation_works_in_daemonic_workers(library):
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    worker = context.Process(
        target=read_in_daemon, args=(str(library["cfr.mp4"]), queue), daemon=True
    )
    worker.start()
    assert queue.get() == [33]
    worker.join(20)
    assert worker.exitcode == 0


def test_the_interpreter_exits_while_children_are_alive(library):
    code = (
        "import sys; from gym_longvideo.video import open_video\n"
        "video = open_video(sys.argv[1], isolate=True)\n"
        "print(video._child._process.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(library["cfr.mp4"])],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert not psutil.pid_exists(int(done.stdout))


def test_importing_the_package_imports_no_decoder():
    code = (
        "import sys, types; package = types.ModuleType('gym_longvideo')\n"
        "package.__path__ = [sys.argv[1]]; sys.modules['gym_longvideo'] = package\n"
        "import gym_longvideo.video\n"
        "print([m for m in ('av', 'torch', 'decord', 'torchcodec') if m in sys.modules])"
    )
    import gym_longvideo.video as module

    package = os.path.dirname(os.path.dirname(module.__file__))
    done = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def make_array_video(name="array"):
    return ArrayVideo(np.zeros((2, 4, 4, 3), np.uint8), fps=1.0, name=name)


class Counted(ArrayVideo):
    def __init__(self, name, log):
        super().__init__(np.zeros((2, 4, 4, 3), np.uint8), fps=1.0, name=name)
        self.name, self.log = name, log
        log.append(f"open {name}")

    def close(self):
        self.log.append(f"close {self.name}")


def test_a_reader_pool_keeps_the_most_recent_videos_open():
    log: list[str] = []
    pool = ReaderPool(max_open=2)
    for name in "abacb":
        pool.get(name, partial(Counted, name, log))
    assert log == ["open a", "open b", "open c", "close b", "open b", "close a"]
    assert len(pool) == 2
    pool.close()
    pool.close()
    assert sorted(log[-2:]) == ["close b", "close c"]
    assert len(pool) == 0


def test_a_reader_pool_is_unchanged_by_a_video_that_does_not_open():
    pool = ReaderPool(max_open=1)
    kept = pool.get("a", make_array_video)
    with pytest.raises(ZeroDivisionError):
        pool.get("b", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert pool.get("a", make_array_video) is kept


def test_a_pickled_reader_pool_is_empty():
    pool = ReaderPool(max_open=3)
    pool.get("a", make_array_video)
    copy = pickle.loads(pickle.dumps(pool))
    assert len(copy) == 0
    copy.get("b", make_array_video)


@needs_fork
def test_a_forked_reader_pool_starts_empty_and_leaves_the_parent_alone():
    log: list[str] = []
    pool = ReaderPool()
    pool.get("a", partial(Counted, "a", log))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os._exit(0 if len(pool) == 0 and log == ["open a"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(pool) == 1


def test_a_reader_pool_must_not_have_a_negative_size():
    with pytest.raises(ValueError, match="max_open=-1"):
        ReaderPool(max_open=-1)
