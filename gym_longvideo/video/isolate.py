"""IsolatedVideo: any backend in a process of its own, which may hang or crash without harm.

The child is a plain ``subprocess`` rather than a ``multiprocessing`` one, because the workers of
AsyncVectorEnv are daemons and daemons may not have ``multiprocessing`` children. Requests and
replies are pickles between our own two processes, over the child's standard input and output.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np

from gym_longvideo.video.border import (
    changed_error,
    has_changed,
    is_machine_fault,
    machine_error,
)
from gym_longvideo.video.errors import (
    DecoderCrashError,
    DecodeTimeoutError,
    MachineError,
    VideoError,
)
from gym_longvideo.video.source import Fit, FrameBatch, Video, VideoInfo

# The child gives up politely at its deadline; this much later it is killed.
_GRACE_S = 1.0
# Starting the interpreter, importing the decoder and opening the file.
_START_S = 60.0

# The parent package is stubbed out: its __init__ imports Gymnasium, which a decoder has no use for.
_BOOT = """
import sys, types
package = types.ModuleType("gym_longvideo")
package.__path__ = [sys.argv[1]]
sys.modules["gym_longvideo"] = package
from gym_longvideo.video.isolate import serve
serve()
"""


class IsolatedVideo:
    """A video decoded in a child process.

    The child starts at construction and after every ``close``, time-out or crash at the next read.
    May be pickled, and used after a fork: the copy starts a child of its own.

    Args:
        opener: Opens the video in the child; it is pickled, so use a class or a function of a
            module, or ``functools.partial`` of one.
        path: The file, for messages.
        backend: The backend, for messages.
        start_deadline_s: Seconds that starting the child and opening the file may take.

    Raises:
        VideoError: Whatever ``opener`` raises in the child.
    """

    def __init__(
        self,
        opener: Callable[[], Video],
        *,
        path: str = "",
        backend: str = "",
        start_deadline_s: float = _START_S,
    ) -> None:
        self._opener, self._path, self.backend = opener, path, backend
        self._start_deadline_s = start_deadline_s
        self._child: _Child | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._info = self._start()

    @property
    def info(self) -> VideoInfo:
        """Facts about the video."""
        return self._info

    @property
    def changed(self) -> bool:
        """Whether another file has taken the place of this one: no read will succeed."""
        return has_changed(self._info)

    def read(
        self,
        times: Sequence[float] | np.ndarray,
        *,
        size: tuple[int, int] | None = None,
        fit: Fit = "stretch",
        tolerance_s: float = 0.0,
        deadline_s: float | None = 60.0,
    ) -> FrameBatch:
        """Return the frames shown at the given playback times; see ``Video.read``.

        Raises:
            DecodeTimeoutError: The child did not answer in time, and was killed.
            DecoderCrashError: The child died.
        """
        request = {
            "times": np.array(times, np.float64, ndmin=1),
            "size": size,
            "fit": fit,
            "tolerance_s": tolerance_s,
            "deadline_s": deadline_s,
        }
        if os.getpid() != self._pid:
            # The child belongs to the process that this one was forked from.
            self._pid, self._lock, self._child = os.getpid(), threading.Lock(), None
        with self._lock:
            if self._child is None:
                info = self._start()
                if info.key != self._info.key:
                    self.close()
                    raise changed_error(self._path, self.backend)
            return self._ask(request, deadline_s)

    def close(self) -> None:
        """End the child. Idempotent; a later read starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.stop()

    def _start(self) -> VideoInfo:
        try:
            self._child = _Child()
        except OSError as error:  # no process, pipe or memory to be had
            raise machine_error(error, self._path, self.backend) from error
        try:
            return self._ask(self._opener, self._start_deadline_s)
        except BaseException:
            self.close()  # a child that could not open the file is of no use
            raise

    def _ask(self, request: Any, deadline_s: float | None) -> Any:
        child = self._child
        assert child is not None
        limit = None if deadline_s is None else max(0.0, deadline_s) + _GRACE_S
        try:
            reply = child.ask(request, limit)
        except (OSError, EOFError):
            timed_out, code = child.timed_out, child.stop()
            self._child = None
            if timed_out:
                raise DecodeTimeoutError(
                    f"the decoder did not answer within {deadline_s} s and was killed; pass a "
                    "longer deadline_s, or another backend",
                    path=self._path,
                    backend=self.backend,
                ) from None
            raise DecoderCrashError(
                f"the decoder process died ({_describe(code)}); the next read starts another",
                path=self._path,
                backend=self.backend,
            ) from None
        except BaseException as error:
            self.close()  # interrupted half-way: the next reply would answer the wrong request
            if is_machine_fault(error):
                raise machine_error(error, self._path, self.backend) from error
            raise
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def __enter__(self) -> IsolatedVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_child"], state["_lock"], state["_pid"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._child, self._lock, self._pid = None, threading.Lock(), os.getpid()

    def __repr__(self) -> str:
        return f"IsolatedVideo({self._path!r}, backend={self.backend!r})"


class _Child:
    """The child process and the pipes to it."""

    def __init__(self) -> None:
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        # The child must find whatever the opener refers to.
        paths = [os.path.abspath(p) for p in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decord prints thousands of lines for a damaged file
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        self.timed_out = False
        # Also at interpreter exit, so that no child outlives us and none is left a zombie.
        self._finalizer = weakref.finalize(self, _end, self._process, os.getpid())

    def ask(self, request: Any, limit_s: float | None) -> Any:
        """Send a request and wait for the reply; past the limit, kill the child (EOFError)."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        # A timer works for pipes on every platform, where select() does not.
        timer = None if limit_s is None else threading.Timer(limit_s, self._time_out)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            _write(stdin, (request, limit_s))
            return _read(stdout)
        finally:
            if timer is not None:
                timer.cancel()

    def _time_out(self) -> None:
        self.timed_out = True
        self._process.kill()

    def stop(self) -> int | None:
        """Kill the child if it still runs; return its exit status."""
        self._finalizer()
        return self._process.returncode


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        # A forked copy of the owner: the child is not ours. Popen would warn of leaving it running.
        process.returncode = 0
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _describe(code: int | None) -> str:
    if code is not None and code < 0:
        import signal

        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return f"{name}: out of memory?" if name == "SIGKILL" else name
    return f"exit status {code}"


def _write(pipe: IO[bytes], message: Any) -> None:
    """Write one message: pickle with the large arrays out of band."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = [len(body), *(view.nbytes for view in views)]
    pipe.write(struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
    pipe.write(body)
    for view in views:
        pipe.write(view)
    pipe.flush()


def _read(pipe: IO[bytes]) -> Any:
    (count,) = struct.unpack("<I", _read_exactly(pipe, 4))
    sizes = struct.unpack(f"<{count}Q", _read_exactly(pipe, 8 * count))
    body, *buffers = [_read_exactly(pipe, size) for size in sizes]
    return pickle.loads(body, buffers=buffers)


def _read_exactly(pipe: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = pipe.readinto(view)  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise EOFError
        view = view[count:]
    return data


def serve() -> None:
    """Answer requests until standard input ends; what a child process runs."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    # Libraries print to standard output; that must not get between the replies.
    os.dup2(2, 1)
    video: Video | None = None
    while True:
        try:
            request, limit_s = _read(requests)
        except EOFError:
            return
        if limit_s is not None:
            # Should the parent be gone too when a decoder hangs in C with the interpreter locked:
            # this timer is a C thread and needs no interpreter. time.sleep-proof, signal-proof.
            faulthandler.dump_traceback_later(limit_s + 5.0, exit=True, file=sys.stderr)
        reply: Any
        try:
            if isinstance(request, dict):
                assert video is not None
                reply = video.read(request.pop("times"), **request)
            else:
                opener: Callable[[], Video] = request
                video = opener()
                reply = video.info
        except (VideoError, ValueError) as error:
            reply = error
        except Exception as error:  # may not even be picklable
            kind = MachineError if is_machine_fault(error) else VideoError
            reply = kind(f"{type(error).__name__} in the decoder process: {error}")
        finally:
            faulthandler.cancel_dump_traceback_later()
        _write(replies, reply)
