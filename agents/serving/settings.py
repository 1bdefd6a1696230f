"""ServingSettings: who plays the episodes of a run, and what is asked of servers."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal, get_args

from agents.serving.client import addresses
from gym_longvideo import checks

Rollout = Literal["local", "vllm"]


@dataclass(frozen=True)
class ServingSettings:
    """Who plays.

    Attributes:
        rollout: "local": the training processes play; "vllm": vLLM servers give the replies.
        servers: Addresses of vLLM servers, with commas between them: http://localhost:8000,...
        serve: Start vLLM servers on this machine, watch them, and stop them at the end.
        serve_replicas: How many servers are started.
        vllm_python: Python of the environment that vLLM is installed in, for those that are
            started; by default this one.
        vllm_args: Further arguments of those that are started, in one word, such as
            "--max-model-len 16384 --tensor-parallel-size 2".
        push_dir: Directory in which weights are handed to servers, which must see it under the same
            name; by default one in the directory of the run.
        rollout_gap_limit: Mean |log-probability of the server - the same here| of a batch above
            which training stops, because the server does not run these weights.
        server_timeout: Seconds for the answer of a server.
        server_patience: Seconds without an answer of any server after which training stops.
    """

    rollout: Rollout = "local"
    servers: str = ""
    serve: bool = False
    serve_replicas: int = 1
    vllm_python: str = ""
    vllm_args: str = ""
    push_dir: str = ""
    rollout_gap_limit: float = 0.1
    server_timeout: float = 300.0
    server_patience: float = 900.0

    def __post_init__(self) -> None:
        checks.choice("rollout", self.rollout, get_args(Rollout))
        checks.keep_whole(self, "serve_replicas", 1)
        for name in ("rollout_gap_limit", "server_timeout", "server_patience"):
            checks.number(name, getattr(self, name), above=0)
        urls = addresses(self.servers)
        if self.rollout == "local":
            if urls or self.serve:
                raise ValueError(
                    f"servers={self.servers!r} and serve={self.serve} are for rollouts by servers; "
                    "add rollout='vllm'"
                )
        elif bool(urls) == self.serve:
            raise ValueError(
                f"rollout='vllm' with servers={self.servers!r} and serve={self.serve}: name "
                "servers that run, or use serve=True to start some, one of the two"
            )
        try:
            shlex.split(self.vllm_args)
        except ValueError as error:
            raise ValueError(f"vllm_args={self.vllm_args!r}: {error}") from None

    @property
    def by_servers(self) -> bool:
        """Whether servers give the replies."""
        return self.rollout != "local"

    @property
    def urls(self) -> list[str]:
        """Addresses of the servers that are named."""
        return addresses(self.servers)
