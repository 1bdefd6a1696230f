"""A local chat server that behaves as badly as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks.players.client import Endpoint, EndpointError

HELLO = [{"role": "user", "content": "hello"}]
RIGHT = "<think>seen</think><answer>A</answer>"
USAGE = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}


Behaviour = Callable[["Handler", dict[str, Any], int], None]


class Server(ThreadingHTTPServer):
    """Answers each request by ``behave(handler, body, number)``; numbers count from 0."""

    daemon_threads = True

    def __init__(self, behave: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave = behave
        self.requests: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.released = threading.Event()  # what hangs, hangs until then

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # type: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append({"path": self.path, **body})
            seen = {name.lower(): value for name, value in self.headers.items()}
            self.server.headers_seen.append(seen)
        self.server.behave(self, body, number)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, status: int, data: bytes, kind: str = "application/json", **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def json(self, value: Any, status: int = 200, **more: str) -> None:
        self.send(status, json.dumps(value).encode(), **more)

    def error(self, status: int, message: str = "no", **more: str) -> None:
        self.json({"error": {"message": message}}, status, **more)

    def reply(self, body: dict[str, Any], text: str | None = RIGHT) -> None:
        """Answer as a good server does, streamed if that was asked for."""
        if body.get("stream"):
            half = len(text or "") // 2
            deltas = [{"content": part} for part in ((text or "")[:half], (text or "")[half:])]
            self.stream([*deltas, "stop", USAGE])
        else:
            self.json(completion(text))

    def stream(self, events: list[Any], end: bool = True) -> None:
        """Send chunks: deltas, a finish reason, the usage, or raw lines."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in events:
            self.event(event)
        if end:
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def event(self, event: Any) -> None:
        chunk: dict[str, Any] = {"id": "1", "object": "chat.completion.chunk", "choices": []}
        if isinstance(event, bytes):
            self.wfile.write(event)
            return
        if isinstance(event, str):
            chunk["choices"] = [{"index": 0, "delta": {}, "finish_reason": event}]
        elif "prompt_tokens" in event:
            chunk["usage"] = event
        else:
            chunk["choices"] = [{"index": 0, "delta": event, "finish_reason": None}]
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()


def completion(text: Any, **message: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **message}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": USAGE}


@contextmanager
def serve(behave: Behaviour) -> Iterator[Server]:
    with running(Server(behave)) as server:
        yield server


@contextmanager
def running(server: Any) -> Iterator[Any]:
    """Let a server answer; at the end it lets go of what hangs and stops."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def endpoint(url: str, **options: Any) -> Endpoint:
    given = {"retries": 2, "backoff_s": 0.0, "timeout_s": 20.0, **options}
    return Endpoint(url, "some-model", **given)


def ask(behave: Behaviour, **options: Any) -> Any:
    """Return the reply, or the error, of one request, and what the server was asked."""
    with serve(behave) as server:
        client = endpoint(server.url, **options)
        try:
            return client.reply(HELLO), server.requests
        except EndpointError as error:
            return str(error), server.requests
        finally:
            client.close()
