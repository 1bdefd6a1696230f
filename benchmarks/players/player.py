"""Players: whoever plays the tasks of a suite, and the scripted ones among them.

A player takes jobs and yields what became of each, as they end. An episode either has a record or
an error, never both: what the machinery broke (a video that does not open, a server that cannot be
reached) says nothing about the policy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from gym_longvideo import checks
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.record import EpisodeRecord
from gym_longvideo.wrappers import TextProtocol

MakeEnv = Callable[[], LongVideoQAEnv]
NUMERIC = "numeric"


class Job(NamedTuple):
    """An episode to play: its key, and the index of its task in the suite."""

    key: str
    task: int


class Played(NamedTuple):
    """What became of a job.

    Attributes:
        key: Of the job.
        record: The episode, ``None`` if it was not played to its end.
        cost: What it cost, see ``new_cost``.
        error: What broke, "" if nothing did.
    """

    key: str
    record: EpisodeRecord | None
    cost: dict[str, Any]
    error: str


class Player(Protocol):
    """Whoever plays.

    Attributes:
        policy: What the protocol card says of it.
        protocol: Name of the text protocol it speaks, or "numeric".
    """

    policy: Mapping[str, Any]
    protocol: str

    def play(self, jobs: Sequence[Job]) -> Iterator[Played]:
        """Yield what became of each job, as they end."""
        ...

    def close(self) -> None:
        """Stop, and release everything. Idempotent."""
        ...


def new_cost(**known: Any) -> dict[str, Any]:
    """Return a cost of an episode; ``None`` is what this kind of policy cannot tell.

    Frames and ``decode_s`` (seconds opening and decoding files) are those of the environment.
    Tokens are those that were fed: a server counts the whole dialogue in every turn, a policy with
    a cache each token once. Seconds before the first token of replies are ``prefill_s``, those
    after it ``generate_s``.
    """
    cost: dict[str, Any] = {
        "frames_decoded": 0,
        "decode_s": 0.0,
        "prompt_tokens": None,
        "visual_tokens": None,
        "reply_tokens": None,
        "prefill_s": None,
        "generate_s": None,
        "requests": 0,
        "retries": 0,
    }
    return cost | known


def seed_of(seed: int, key: str) -> int:
    """Return the seed of an episode, in [0, 2**31): of its key, never of its place in the run."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def workers(wanted: int) -> int:
    """Return how many threads to use: as wanted, or for 0 one a core."""
    if checks.whole("concurrency", wanted, 0):
        return wanted
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable is not None else os.cpu_count() or 1


class MeteredText(TextProtocol):
    """A text environment that remembers what its last episode cost to decode.

    Attributes:
        cost: ``frames_decoded`` and ``decode_s`` of the episode that ended last.
    """

    def __init__(self, env: LongVideoQAEnv, protocol: str = "tags", prompt: str = "") -> None:
        super().__init__(env, protocol, prompt=prompt or None)
        self.base = env
        self.cost: dict[str, Any] = {}
        self._before = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode."""
        self._before = seconds(self.base)
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take the reply of a model."""
        result = super().step(action)
        if result[2] or result[3]:
            decoded = int(result[4]["frames_decoded"])
            spent = seconds(self.base) - self._before
            self.cost = {"frames_decoded": decoded, "decode_s": spent}
        return result


def seconds(env: LongVideoQAEnv) -> float:
    """Return the seconds that an environment has spent opening and decoding files."""
    return sum(env.timings.values())


def describe(error: Exception) -> str:
    """Return an error as a fault of an episode says it."""
    return f"{type(error).__name__}: {error}"
