"""ContinuousCollector: dialogues that wait for nobody.

Each environment plays one episode after another in a thread of its own: it asks for a reply, steps,
and asks for the next one, whatever the others do. So servers always have as many dialogues before
them as there are, and videos are decoded meanwhile. An environment for which no task is left opens
one of the next call.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Protocol

import torch

from agents.model.policy import MLLMPolicy
from agents.model.sampling import Sampling
from agents.rollout import Replacement, RolloutCollector, Session, check_lengths
from agents.trajectory import Trajectory
from gym_longvideo.wrappers import TextProtocol


class ServedReplies(Session, Protocol):
    """A session that many threads may ask at once, each for dialogues of its own."""

    def abort(self) -> None:
        """End all requests that are under way."""
        ...


class _GivenUp(Exception):
    """Somebody else failed, or the program is to stop."""


class ContinuousCollector(RolloutCollector):
    """Plays episodes with a session that many threads may ask at once.

    Args:
        envs: Text environments, each of which is used by one thread at a time.
        policy: Whose codec is used; its weights are not.
        session: Makes what gives the replies of one call of ``collect``.
        history: Earlier turns that stay in context (w); ``None`` for all.
        keep_records: Keep records and frames of every episode.
    """

    def __init__(
        self,
        envs: Sequence[TextProtocol],
        policy: MLLMPolicy,
        *,
        session: Callable[[Sampling], ServedReplies],
        history: int | None = None,
        keep_records: bool = False,
    ) -> None:
        super().__init__(envs, policy, history=history, workers=0, keep_records=keep_records)
        self._sessions = session
        # For each environment what plays it, and what opens a video that takes the place of one.
        self._pool = ThreadPoolExecutor(2 * len(self.envs))
        self._lock = threading.Lock()

    def collect(
        self,
        tasks: Sequence[int],
        sampling: Sampling,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        *,
        replacement: Replacement | Sequence[Replacement] | None = None,
        places: Sequence[int] | None = None,
        upcoming: Sequence[int] = (),
        progress: Callable[[int], object] | None = None,
    ) -> list[Trajectory]:
        """Play an episode of each task, as ``RolloutCollector.collect`` does.

        Args:
            tasks: Indices into the suite.
            sampling: How replies are drawn.
            generator: Not used: chance is the session's.
            replacement: Gives another task where a video cannot be opened.
            places: The place of each task in the batch.
            upcoming: Tasks of the next call, opened as soon as environments are idle.
            progress: Given the number newly done, each time some are.

        Raises:
            ValueError: If replacements or places are not as many as tasks.
            VideoError: If a video cannot be opened and has no replacement, or if a hundred in a row
                cannot.
            Exception: Whatever ended an episode; the others are given up, and none is returned.
        """
        check_lengths(tasks, replacement=replacement, places=places)
        self._begin_to_collect()
        session = self._sessions(sampling)
        run = _Run(session, deque(range(len(tasks))), deque(upcoming))
        for seat, (task, _) in self._ready.items():  # opened ahead by the call before
            place = next((i for i in run.left if tasks[i] == task), None)
            if place is not None:
                run.left.remove(place)
                run.own[seat] = place
        others = replacement if isinstance(replacement, Sequence) else [replacement] * len(tasks)
        done: dict[int, Trajectory] = {}
        assert self._pool is not None
        seats = [
            self._pool.submit(self._sit, seat, run, list(tasks), list(others))
            for seat in range(len(self.envs))
        ]
        try:
            for _ in tasks:
                place, played, error = run.results.get()
                if error is not None:
                    raise error
                if played is not None:
                    played.place = place if places is None else places[place]
                    done[place] = played
                if progress is not None:
                    progress(1)
        except BaseException:
            run.stopped = True
            session.abort()
            raise
        finally:
            wait(seats)
        spent = self._waited_s + run.asked_s
        self.stats = {
            "prefilled": float(session.prefilled),
            "decoded": float(session.decoded),
            "waiting": self._waited_s / spent if spent else 0.0,
        }
        return [done[place] for place in sorted(done)]

    def _sit(
        self, seat: int, run: _Run, tasks: list[int], others: list[Replacement | None]
    ) -> None:
        """Play episodes at one environment until none is left, then open one of the next call."""
        while (place := run.next(seat)) is not None and not run.stopped:
            try:
                run.results.put((place, self._play(seat, place, run, tasks, others), None))
            except _GivenUp:
                return
            except BaseException as error:
                run.results.put((place, None, error))
                return
        if not run.stopped and (task := run.next_ahead()) is not None:
            self._open(seat, task)

    def _play(
        self, seat: int, place: int, run: _Run, tasks: list[int], others: list[Replacement | None]
    ) -> Trajectory | None:
        codec, env = self.policy.codec, self.envs[seat]
        began = time.perf_counter()
        self._open(seat, tasks[place])
        trajectory = self._begin(seat, self._alone(others[place]))
        self._waited(began)
        if trajectory is None:
            return None
        for turn in range(10**9):
            if run.stopped:
                raise _GivenUp
            fresh = self._is_fresh(turn)
            new = self._new_blocks(trajectory, fresh)
            began = time.perf_counter()
            (reply,) = run.session.reply([place], [new], fresh=fresh)
            run.asked(time.perf_counter() - began)
            began = time.perf_counter()
            step = env.step(codec.text(reply.ids))
            self._waited(began)
            if not self._goes_on(trajectory, seat, reply, step):
                break
        return trajectory

    def _alone(self, replacement: Replacement | None) -> Replacement | None:
        """Let one thread at a time ask for another task: they may be of one order."""
        if replacement is None:
            return None

        def ask() -> int | None:
            with self._lock:
                return replacement()

        return ask

    def _waited(self, began: float) -> None:
        with self._lock:
            self._waited_s += time.perf_counter() - began


class _Run:
    """What the threads of one call share."""

    def __init__(self, session: ServedReplies, left: deque[int], ahead: deque[int]) -> None:
        self.session, self.left, self.ahead = session, left, ahead
        self.own: dict[int, int] = {}
        self.results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.stopped = False
        self.asked_s = 0.0
        self._lock = threading.Lock()

    def next(self, seat: int) -> int | None:
        """Return the place of an environment's next episode, first the one that it has opened."""
        with self._lock:
            if seat in self.own:
                return self.own.pop(seat)
            return self.left.popleft() if self.left else None

    def next_ahead(self) -> int | None:
        """Return the next task of the next call."""
        with self._lock:
            return self.ahead.popleft() if self.ahead else None

    def asked(self, seconds: float) -> None:
        """Count time that a dialogue spent waiting for its reply."""
        with self._lock:
            self.asked_s += seconds
