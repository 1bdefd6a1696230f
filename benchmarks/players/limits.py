"""Limits of a chat endpoint's answers: how long they may take, and how large they may be."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

_MOST_BYTES = 32 * 2**20  # of an answer, once unpacked


def limits(http: Any, timeout_s: float) -> dict[str, list[Callable[[Any], None]]]:
    """Return hooks that give the headers and the body of an answer a deadline, and it a size.

    The client's own time-out is one of silence: a server that sends a byte now and then (or the
    comments that keep a stream alive) would never meet it. What comes packed is unpacked here,
    because the client would unpack it whole, whatever it grows to.
    """
    timers = threading.local()  # each thread has one request under way

    class Limited(http.SyncByteStream):
        def __init__(self, stream: Any, unpack: Any) -> None:
            self.stream, self.unpack = stream, unpack
            self.deadline, self.left = time.monotonic() + timeout_s, _MOST_BYTES

        def __iter__(self) -> Any:
            for packed in self.stream:
                try:
                    part = self.unpack.decompress(packed, self.left + 1) if self.unpack else packed
                except zlib.error as error:
                    raise http.DecodingError(f"the answer is packed wrongly: {error}") from None
                self.left -= len(part)
                if self.left < 0:
                    raise http.ReadError(f"the answer is larger than {_MOST_BYTES >> 20} MiB")
                yield part
                if time.monotonic() > self.deadline:
                    raise http.ReadTimeout(f"the answer took longer than timeout_s={timeout_s:g}")

        def close(self) -> None:
            self.stream.close()

    def hang_up(connection: Any, late: threading.Event) -> None:
        late.set()
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def watch(name: str, info: Mapping[str, Any]) -> None:
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            stop()
            connection = info["return_value"].get_extra_info("socket")
            timers.late = threading.Event()
            timers.timer = threading.Timer(timeout_s, hang_up, [connection, timers.late])
            timers.timer.daemon = True
            timers.timer.start()
        elif ".receive_response_headers." in name and name.endswith((".complete", ".failed")):
            stop()
            late = getattr(timers, "late", None)  # absent where nothing was connected by TCP
            if name.endswith(".failed") and late is not None and late.is_set():
                raise http.ReadTimeout(f"the headers took longer than timeout_s={timeout_s:g}")

    def stop() -> None:
        if timer := getattr(timers, "timer", None):
            timer.cancel()

    def request(request: Any) -> None:
        request.extensions["trace"] = watch

    def response(response: Any) -> None:
        packing = response.headers.pop("content-encoding", "identity").strip().lower()
        if packing not in _UNPACK:
            raise http.DecodingError(
                f"the answer is packed as {packing!r}, which was not asked for; have the server "
                "or the proxy before it send it as it is"
            )
        unpack = _UNPACK[packing]
        response.stream = Limited(response.stream, unpack and zlib.decompressobj(unpack))

    return {"request": [request], "response": [response]}


_UNPACK = {"identity": 0, "": 0, "gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
