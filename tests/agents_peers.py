"""Functions that run in several processes at once, as a launcher would start them.

The processes fork from a server that has imported what is slow to import, once.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def together(function: Callable[..., Any], size: int, *args: Any, seconds: float = 240) -> None:
    """Run a function of a test module in ``size`` processes that know each other.

    Raises:
        AssertionError: With what they said, if one failed or did not end in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["agents_models", "agents.trainer"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as said:
        peers = [
            context.Process(target=_run, args=(rank, size, port, said, function, args))
            for rank in range(size)
        ]
        for peer in peers:
            peer.start()
        for peer in peers:
            peer.join(seconds)
        late = [peer for peer in peers if peer.is_alive()]
        for peer in late:
            peer.kill()
            peer.join()
        words = "\n".join(Path(said, str(rank)).read_text()[-3000:] for rank in range(size))
        assert not late, f"{len(late)} of {size} processes did not end\n{words}"
        assert [peer.exitcode for peer in peers] == [0] * size, words


def _run(
    rank: int, size: int, port: int, said: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    with open(Path(said, str(rank)), "w", buffering=1) as stream:
        sys.stdout = sys.stderr = stream
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size),
            "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        }  # fmt: skip
        try:
            function(*args)
        except BaseException:
            traceback.print_exc()
            raise
