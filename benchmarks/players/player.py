"""Players: whoever plays the tasks of a suite, and the scripted ones among them.

A player takes jobs and yields what became of each, as they end. An episode either has a record or
an error, never both: what the machinery broke (a video that does not open, a server that cannot be
reached) says nothing about the policy.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from agents.scripted import AGENTS, Scripted, make_agent
from benchmarks.players.crew import Crew
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.record import EpisodeRecord
from gym_longvideo.video.errors import VideoError
from gym_longvideo.wrappers import TextProtocol

MakeEnv = Callable[[], LongVideoQAEnv]
NUMERIC = "numeric"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+\Z")
_GRACE_S = 30.0


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
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
        raise ValueError(f"concurrency={wanted!r} must be a whole number, or 0 for one's own")
    if wanted:
        return wanted
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable is not None else os.cpu_count() or 1


def make_player(
    policy: str,
    make_env: MakeEnv,
    *,
    protocol: str = "tags",
    seed: int = 0,
    concurrency: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Player:
    """Return a player.

    Args:
        policy: Name of a scripted agent, base URL of an OpenAI-compatible endpoint
            (``http://host:8000/v1``), or a model: directory of a run of ``agents.train``, of one of
            its checkpoints or of a model of the Qwen2.5-VL kind, or its hub id.
        make_env: Makes an environment over the tasks.
        protocol: Text protocol of models.
        seed: Of whatever is drawn.
        concurrency: Episodes played side by side; 0 for what suits the player.
        options: What else the player takes by keyword.

    Raises:
        ValueError: For an unknown policy, or options it does not take.
    """
    options = dict(options or {})
    text = {"protocol": protocol, "concurrency": concurrency, **options}
    if policy in AGENTS:
        return ScriptedPlayer(policy, make_env, seed=seed, concurrency=concurrency, options=options)
    if policy.startswith(("http://", "https://")):
        from benchmarks.players.endpoint import EndpointPlayer

        return _make(EndpointPlayer, policy, make_env, seed=seed, **text)
    if Path(policy).is_dir() or _HUB_ID.match(policy):
        from benchmarks.players.model import ModelPlayer

        return _make(ModelPlayer, policy, make_env, **text)
    raise ValueError(
        f"policy={policy!r} is unknown; use one of {list(AGENTS)}, the directory of a model, or "
        "the URL of an endpoint (http://host:8000/v1)"
    )


class ScriptedPlayer:
    """Plays a scripted agent in a thread pool of environments.

    Args:
        name: One of ``agents.scripted.AGENTS``.
        make_env: Makes an environment.
        seed: The agent is seeded by this and the key of the episode.
        concurrency: Threads; 0 for one a core.
        options: Arguments of the agent.

    Raises:
        ValueError: For an unknown agent or option.
    """

    protocol = NUMERIC

    def __init__(
        self,
        name: str,
        make_env: MakeEnv,
        *,
        seed: int = 0,
        concurrency: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        options = dict(options or {})
        if "seed" in options:
            raise ValueError(f"options={options} name a seed; episodes are seeded by their keys")
        make_agent(name, **options)
        self.policy: Mapping[str, Any] = {"kind": "scripted", "name": name, "options": options}
        self.seed = seed
        self._crew: Crew[tuple[LongVideoQAEnv, Scripted], Job, Played] = Crew(
            lambda: (make_env(), make_agent(name, **options)),
            self._play,
            lambda tool: tool[0].close(),
            workers(concurrency),
            _GRACE_S,
        )

    def play(self, jobs: Sequence[Job]) -> Iterator[Played]:
        """Yield what became of each job, as they end."""
        return self._crew.run(jobs)

    def close(self) -> None:
        """Let the episodes under way end, and close the environments."""
        self._crew.close()

    def _play(self, tool: tuple[LongVideoQAEnv, Scripted], job: Job) -> Played:
        env, agent = tool
        before = seconds(env)
        try:
            observation, info = env.reset(options={"index": job.task})
        except VideoError as error:
            return Played(job.key, None, {}, describe(error))
        agent.reset(seed_of(self.seed, job.key))
        over = False
        while not over:
            action = agent.act(env, observation)
            observation, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
        if info["infra_error"]:
            return Played(job.key, None, {}, info["infra_error"])
        cost = new_cost(frames_decoded=int(info["frames_decoded"]), decode_s=seconds(env) - before)
        return Played(job.key, env.record, cost, "")


class MeteredText(TextProtocol):
    """A text environment that remembers what its last episode cost to decode.

    Attributes:
        cost: ``frames_decoded`` and ``decode_s`` of the episode that ended last.
    """

    def __init__(self, env: LongVideoQAEnv, protocol: str = "tags") -> None:
        super().__init__(env, protocol)
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


def _make(player: Callable[..., Player], *args: Any, **options: Any) -> Player:
    import inspect

    try:
        inspect.signature(player).bind(*args, **options)
    except TypeError as error:
        names = list(inspect.signature(player).parameters)[2:]
        raise ValueError(
            f"policy options {sorted(options)}: {error}; use some of {names}"
        ) from None
    return player(*args, **options)
