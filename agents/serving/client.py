"""Server: the routes of one vLLM server, each with a deadline, and what went wrong if one fails.

Answers are small and come whole, so each request has a connection of its own, which its deadline,
or ``abort`` from another thread, may close at any time. Redirects and proxies are not followed: a
rollout server is a machine of one's own.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from agents.serving.errors import Refused, Unreachable
from gym_longvideo import checks

API_KEY = "VLLM_API_KEY"  # as vLLM itself names it
CONNECT_S = 10.0
_MOST_BYTES = 64 * 2**20
_SHOWN = 400  # characters of a server's message
_PASSING = {408, 425, 429}  # and every 5xx: the same request may be answered later


class Server:
    """A vLLM server. Safe to use from many threads.

    Args:
        url: Its address, such as ``http://localhost:8000``.
        timeout_s: Seconds from the start of a request until its answer is whole.

    Raises:
        ValueError: If the address is none.
    """

    def __init__(self, url: str, *, timeout_s: float = 600.0) -> None:
        checks.number("timeout_s", timeout_s, above=0, unit="seconds")
        self.url = url.strip().rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.url if "//" in self.url else f"//{self.url}")
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise ValueError(f"servers: {url!r} is not an address ({error})") from None
        if parts.scheme not in ("http", "https") or not self._host or parts.query:
            raise ValueError(
                f"servers: {url!r} is not an address; use one like http://localhost:8000"
            )
        self._secure, self._prefix = parts.scheme == "https", parts.path
        self.timeout_s = timeout_s
        self._live: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._aborted = False

    def get(self, path: str, *, timeout_s: float | None = None) -> Any:
        """Return the JSON that a route answers, None for an empty answer.

        Args:
            path: Of the route, with its query.
            timeout_s: As the constructor takes it, by default that.

        Raises:
            Unreachable: If there was no whole answer, or the server could not do it now.
            Refused: If the server will not do it.
        """
        return self._call("GET", path, None, timeout_s)

    def post(self, path: str, body: Any = None, *, timeout_s: float | None = None) -> Any:
        """Send JSON to a route and return what it answers, as ``get`` does."""
        return self._call("POST", path, {} if body is None else body, timeout_s)

    def tell(self, path: str, body: Any) -> None:
        """Send JSON to a route whose answer is words, which nobody reads."""
        self._ask("POST", path, body, None)

    def abort(self) -> None:
        """End every request under way, and all that are made until ``ready``: nobody waits."""
        with self._lock:
            self._aborted = True
            for connection in self._live:
                _hang_up(connection)

    def ready(self) -> None:
        """Take requests again after ``abort``."""
        self._aborted = False

    def _call(self, method: str, path: str, body: Any, timeout_s: float | None) -> Any:
        data = self._ask(method, path, body, timeout_s)
        try:
            return json.loads(data) if data.strip() else None
        except (ValueError, RecursionError) as error:
            raise Unreachable(f"{self.url}{path}: the answer is not JSON: {error}") from None

    def _ask(self, method: str, path: str, body: Any, timeout_s: float | None) -> bytes:
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        status, data = self._exchange(method, path, body, timeout_s)
        if status == 200:
            return data
        said = f"{self.url}{path}: status {status}: {_message(data)}"
        if status >= 500 or status in _PASSING:
            raise Unreachable(said)
        raise Refused(said, status)

    def _exchange(self, method: str, path: str, body: Any, timeout_s: float) -> tuple[int, bytes]:
        headers = {"Accept-Encoding": "identity", "Connection": "close"}
        if key := os.environ.get(API_KEY, ""):
            headers["Authorization"] = f"Bearer {key}"
        sent = None
        if body is not None:
            sent, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=min(CONNECT_S, timeout_s))
        late = threading.Event()
        timer = None
        try:
            connection.connect()
            open_socket = connection.sock
            open_socket.settimeout(timeout_s)
            with self._lock:
                if self._aborted:
                    raise Unreachable(f"{self.url}{path}: given up")
                self._live.add(open_socket)
            timer = threading.Timer(timeout_s, _end, [open_socket, late])
            timer.daemon = True
            timer.start()
            connection.request(method, f"{self._prefix}{path}", sent, headers)
            with connection.getresponse() as answer:
                data = answer.read(_MOST_BYTES + 1)
                if len(data) > _MOST_BYTES:
                    raise Unreachable(f"{self.url}{path}: the answer is over 64 MiB")
                if answer.length:  # what is still to come
                    raise Unreachable(f"{self.url}{path}: cut off in the middle of the answer")
                return answer.status, data
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = f"no answer within {timeout_s:g} s" if late.is_set() else _reason(error)
            raise Unreachable(f"{self.url}{path}: {why}") from None
        finally:
            if timer is not None:
                timer.cancel()
            with self._lock:
                self._live.discard(connection.sock)
            connection.close()


def _end(connection: socket.socket, late: threading.Event) -> None:
    late.set()
    _hang_up(connection)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "cut off in the middle of the answer"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _message(data: bytes) -> str:
    """Return what an answer says is wrong, in vLLM's form if it has it."""
    text = data.decode("utf-8", errors="replace")
    with suppress(ValueError, RecursionError, TypeError, KeyError):
        said = json.loads(text)
        error = said.get("error", said.get("detail", text))
        text = str(error["message"] if isinstance(error, dict) else error)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def addresses(servers: str) -> list[str]:
    """Return the addresses of a list with commas between them, each once.

    Raises:
        ValueError: If one is none, or is there twice.

    >>> addresses("http://a:8000/v1/, http://b:8000")
    ['http://a:8000', 'http://b:8000']
    """
    urls = [Server(each).url for each in servers.split(",") if each.strip()]
    if len(set(urls)) < len(urls):
        raise ValueError(f"servers={servers!r} names a server twice")
    return urls
