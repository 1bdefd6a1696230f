"""Crew: threads that work jobs off, each with a tool of its own.

Decoding and waiting for a server both happen outside the GIL, so threads use every core. They are
daemons: a program that is told to stop does not wait for a server that hangs.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Tool = TypeVar("Tool")
Task = TypeVar("Task")
Result = TypeVar("Result")

_PATIENCE_S = 0.2  # between looks at whether to stop


class Crew(Generic[Tool, Task, Result]):
    """Threads that do the same kind of work.

    Args:
        make: Makes the tool of one thread, in that thread.
        work: Does a job with a tool. What it raises ends ``run``.
        drop: Puts a tool away, in its thread.
        size: Number of threads.
        grace_s: Seconds that ``close`` waits for work under way.
    """

    def __init__(
        self,
        make: Callable[[], Tool],
        work: Callable[[Tool, Task], Result],
        drop: Callable[[Tool], object],
        size: int,
        grace_s: float,
    ) -> None:
        self._make, self._work, self._drop = make, work, drop
        self.size, self.grace_s = size, grace_s
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def stopped(self) -> bool:
        """Whether work under way may end early, because nobody wants its result."""
        return self._stop.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not past the end; return whether work should end."""
        return self._stop.wait(seconds)

    def run(self, jobs: Sequence[Task]) -> Iterator[Result]:
        """Yield the results of jobs as they come, until all are done or the crew is closed."""
        todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for job in jobs:
            todo.put(job)
        # Bounded, so that results that nobody takes do not pile up.
        results: queue.Queue[tuple[Result | None, BaseException | None]]
        results = queue.Queue(4 * self.size)
        for _ in range(min(self.size, len(jobs))):
            thread = threading.Thread(target=self._loop, args=(todo, results), daemon=True)
            self._threads.append(thread)
            thread.start()
        for _ in range(len(jobs)):
            taken = self._take(results)
            if taken is None:
                return
            result, error = taken
            if error is not None:
                raise error
            yield result  # type: ignore[misc]

    def close(self) -> None:
        """Stop; work under way is given up after ``grace_s`` seconds. Idempotent."""
        self._stop.set()
        deadline = time.monotonic() + self.grace_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads = [thread for thread in self._threads if thread.is_alive()]

    def _take(
        self, results: queue.Queue[tuple[Result | None, BaseException | None]]
    ) -> tuple[Result | None, BaseException | None] | None:
        while not self._stop.is_set():
            # With a timeout, because Ctrl-C does not end an endless wait on Windows.
            with contextlib.suppress(queue.Empty):
                return results.get(timeout=_PATIENCE_S)
        return None

    def _loop(
        self,
        todo: queue.SimpleQueue[Task],
        results: queue.Queue[tuple[Result | None, BaseException | None]],
    ) -> None:
        tool: Tool | None = None
        try:
            tool = self._make()
            while not self._stop.is_set():
                try:
                    job = todo.get_nowait()
                except queue.Empty:
                    return
                self._put(results, (self._work(tool, job), None))
        except BaseException as error:
            self._put(results, (None, error))
        finally:
            if tool is not None:
                self._drop(tool)

    def _put(
        self,
        results: queue.Queue[tuple[Result | None, BaseException | None]],
        result: tuple[Result | None, BaseException | None],
    ) -> None:
        while not self._stop.is_set():
            try:
                return results.put(result, timeout=_PATIENCE_S)
            except queue.Full:
                continue
