"""Replicas: several servers of the same weights, and what to do when one of them fails.

A dialogue stays with one server, which remembers its beginning. When that server fails, another one
is given the whole dialogue, so that nothing but time is lost. A server that failed is asked again
and again in the background, and before it gets dialogues it must pass the same checks as at the
start and hold the same weights: ``admit`` sees to both.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from agents.serving.client import Server
from agents.serving.errors import Refused, ServerError, Unreachable

T = TypeVar("T")
logger = logging.getLogger(__name__)

MOST_FAILURES = 3  # of one dialogue at one server: then it is not chance
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0
_GONE = 404  # what a server says of an adapter that it does not know, or no longer


class Replicas:
    """Servers that give the same replies. Safe to use from many threads.

    Args:
        servers: At least one.
        admit: Makes a server that failed ready again, or raises a ``ServerError``.
        patience_s: How long a dialogue waits while no server answers.

    Raises:
        ValueError: If there is no server.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        admit: Callable[[Server], object],
        patience_s: float = 600.0,
    ) -> None:
        if not servers:
            raise ValueError("servers is empty; name at least one, as in http://localhost:8000")
        self.servers, self.admit, self.patience_s = list(servers), admit, patience_s
        self._down: dict[str, ServerError] = {}
        self._load: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._reviver: threading.Thread | None = None
        self._closed = self._aborted = False

    def ask(self, send: Callable[[Server], T], first: Server | None = None) -> tuple[T, Server]:
        """Have a server do something, whichever can.

        Args:
            send: Does it with a server; may be called several times.
            first: Who is to do it, if it can.

        Returns:
            What ``send`` returned, and who did it.

        Raises:
            ServerError: If a server will not do it, if one server failed at it again and again, or
                if no server has answered for ``patience_s``.
        """
        failures: Counter[str] = Counter()
        while True:
            server = self._take(first)
            try:
                return send(server), server
            except ServerError as error:
                if isinstance(error, Refused) and error.status != _GONE:
                    raise
                if self._aborted:
                    raise
                failures[server.url] += 1
                if failures[server.url] >= MOST_FAILURES:
                    raise
                self.put_down(server, error)
            finally:
                with self._changed:
                    self._load[server.url] -= 1

    def up(self) -> list[Server]:
        """Return the servers that are not known to fail."""
        with self._changed:
            return [each for each in self.servers if each.url not in self._down]

    def abort(self) -> None:
        """Let everybody who waits give up, until ``ready``."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
        for server in self.servers:
            server.abort()

    def ready(self) -> None:
        """Take requests again after ``abort``."""
        for server in self.servers:
            server.ready()
        self._aborted = False

    def close(self) -> None:
        """Ask no server any more. Idempotent."""
        self._closed = True
        self.abort()
        reviver = self._reviver
        if reviver is not None:
            reviver.join()

    def _take(self, first: Server | None) -> Server:
        """Return a server that is up, and count a request for it; wait for one if there is none."""
        deadline = time.monotonic() + self.patience_s
        with self._changed:
            while True:
                if self._aborted:
                    raise Unreachable("given up")
                up = [each for each in self.servers if each.url not in self._down]
                if up:
                    server = first if first in up else min(up, key=lambda s: self._load[s.url])
                    self._load[server.url] += 1
                    return server
                left = deadline - time.monotonic()
                if left <= 0:
                    why = "; ".join(map(str, self._down.values()))
                    raise Unreachable(f"no server answered for {self.patience_s:g} s: {why}")
                self._changed.wait(min(left, 1.0))

    def put_down(self, server: Server, error: ServerError) -> None:
        """Give a server no dialogues until it has been admitted again.

        Args:
            server: One of them.
            error: Why.
        """
        with self._changed:
            if server.url in self._down or self._closed:
                return
            self._down[server.url] = error
            logger.warning("server %s failed and is tried again later: %s", server.url, error)
            if self._reviver is None or not self._reviver.is_alive():
                self._reviver = threading.Thread(target=self._revive, daemon=True)
                self._reviver.start()

    def _revive(self) -> None:
        """Admit servers that are down, again and again, until none is."""
        pause = _FIRST_PAUSE_S
        while True:
            with self._changed:
                down = [each for each in self.servers if each.url in self._down]
                if not down or self._closed:
                    self._reviver = None
                    return
            for server in down:
                try:
                    self.admit(server)
                except (ServerError, OSError) as error:
                    said = error if isinstance(error, ServerError) else Unreachable(str(error))
                    with self._changed:
                        self._down[server.url] = said
                    continue
                with self._changed:
                    self._down.pop(server.url, None)
                    self._changed.notify_all()
                logger.warning("server %s answers again", server.url)
            with self._changed:
                if self._down:
                    self._changed.wait_for(lambda: self._closed, pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
