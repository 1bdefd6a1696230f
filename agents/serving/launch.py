"""Launched: vLLM servers that a run starts itself, watches, and takes down with it."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from agents.serving.client import Server
from agents.serving.errors import ServerError, Unreachable
from agents.serving.push import EXTENSION, WORKER
from agents.serving.settings import ServingSettings

logger = logging.getLogger(__name__)

MOST_RESTARTS = 5  # of a server: then something is wrong that a restart does not mend
MODEL = "policy"  # name of the served model
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of adapters that vLLM makes room for
_HEALTH_S, _MOST_UNWELL = 20.0, 3
_GUARD = f"import sys; sys.path.insert(0, {str(WORKER)!r}); import guard; sys.exit(guard.main())"
_TAIL = 15  # lines of the log that an error shows


def command(
    model: str,
    port: int,
    settings: ServingSettings,
    *,
    dtype: str,
    images: int,
    lora_rank: int = 0,
) -> list[str]:
    """Return the command that starts a server.

    Args:
        model: Directory or hub id.
        port: Where it listens.
        settings: Of the run.
        dtype: Number format in which it runs the model.
        images: The most images of a dialogue.
        lora_rank: Rank of the adapters that it will be given; 0 for none.

    Raises:
        ValueError: For a rank that vLLM has no room for.
    """
    words = [
        *(settings.vllm_python or sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", model, "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", dtype),
        *("--limit-mm-per-prompt", json.dumps({"image": images, "video": 0})),
        *("--enable-scale-out", "--logprobs-mode", "processed_logprobs"),
        "--disable-uvicorn-access-log",
        *("--worker-extension-cls", EXTENSION),
    ]
    if lora_rank:
        room = next((rank for rank in _RANKS if rank >= lora_rank), None)
        if room is None:
            raise ValueError(f"lora_rank={lora_rank}: vLLM has room for {_RANKS[-1]} at most")
        words += ["--enable-lora", "--max-lora-rank", str(room)]
    return [*words, *shlex.split(settings.vllm_args)]


def environment(device: str) -> dict[str, str]:
    """Return the variables under which a server runs.

    Args:
        device: Kind of device that the policy is on: "cpu" or "cuda".
    """
    path = os.pathsep.join(filter(None, (str(WORKER), os.environ.get("PYTHONPATH", ""))))
    ours = {"PYTHONPATH": path, "VLLM_SERVER_DEV_MODE": "1"}
    ours["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    theirs = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if device == "cpu":
        theirs |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1"}
        # One core for the server itself: threads of OpenMP that wait would keep it busy.
        theirs |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1", "KMP_BLOCKTIME": "0"}
    return {**theirs, **os.environ, **ours}


class Launched:
    """Servers that are started, watched and stopped here.

    One that ends is started again, and so is one that says three times in a row that it is unwell.

    Args:
        commands: Of the servers, each with its port.
        env: Variables under which they run.
        directory: Of their logs.
        start_s: Seconds until a server must answer.

    Attributes:
        urls: Their addresses.

    Raises:
        ServerError: If one does not start, with the end of its log.
    """

    def __init__(
        self,
        commands: list[tuple[list[str], int]],
        env: dict[str, str],
        directory: Path,
        *,
        start_s: float = 1800.0,
    ) -> None:
        self._commands = [words for words, _ in commands]
        self.urls = [f"http://127.0.0.1:{port}" for _, port in commands]
        self._env, self._directory, self._start_s = env, directory, start_s
        directory.mkdir(parents=True, exist_ok=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        try:
            for place in range(len(commands)):
                self._processes.append(self._start(place))
            for place in range(len(commands)):
                self._wait(place)
        except BaseException:
            self.close()
            raise
        self._watcher.start()

    def close(self) -> None:
        """Stop the servers. Idempotent."""
        self._closed.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for process in self._processes:
            _stop(process)

    def log(self, place: int) -> Path:
        """Return the file to which a server writes."""
        return self._directory / f"vllm-{place}.log"

    def _start(self, place: int) -> subprocess.Popen[bytes]:
        guard = [sys.executable, "-c", _GUARD, *self._commands[place]]
        with self.log(place).open("ab") as stream:
            return subprocess.Popen(
                guard,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, place: int) -> None:
        server, until = Server(self.urls[place]), time.monotonic() + self._start_s
        while True:
            with suppress(ServerError):
                server.get("/health", timeout_s=_HEALTH_S)
                return
            code = self._processes[place].poll()
            if code is not None or time.monotonic() > until:
                why = f"ended with code {code}" if code is not None else "does not answer"
                raise Unreachable(
                    f"the vLLM server {why} after {' '.join(self._commands[place][:3])} ...; the "
                    f"end of {self.log(place)}:\n{_tail(self.log(place))}"
                )
            time.sleep(0.2)

    def _watch(self) -> None:
        restarts = [0] * len(self.urls)
        unwell = [0] * len(self.urls)
        servers = [Server(url) for url in self.urls]
        answered = [True] * len(self.urls)  # a server that is starting is not unwell
        while not self._closed.wait(1.0):
            for place, server in enumerate(servers):
                try:
                    server.get("/health", timeout_s=_HEALTH_S)
                    unwell[place], answered[place] = 0, True
                except ServerError:
                    unwell[place] += answered[place]
                code = self._processes[place].poll()
                if code is None and unwell[place] < _MOST_UNWELL:
                    continue
                if restarts[place] == MOST_RESTARTS:
                    continue
                restarts[place] += 1
                unwell[place], answered[place] = 0, False
                logger.warning(
                    "the server %s %s and is started again; see %s", server.url,
                    "does not answer" if code is None else f"ended with code {code}",
                    self.log(place),
                )  # fmt: skip
                _stop(self._processes[place])
                self._processes[place] = self._start(place)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    with_sockets = [socket.socket() for _ in range(count)]
    try:
        for each in with_sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in with_sockets]
    finally:
        for each in with_sockets:
            each.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _tail(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_TAIL:])
    return "(it cannot be read)"
