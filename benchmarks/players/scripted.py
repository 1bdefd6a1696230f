"""ScriptedPlayer: plays an agent that needs no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agents.scripted import Scripted, make_agent
from agents.source import PolicySource
from benchmarks.players.crew import Crew
from benchmarks.players.player import (
    NUMERIC,
    Job,
    MakeEnv,
    Played,
    describe,
    new_cost,
    seconds,
    seed_of,
    workers,
)
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.video.errors import VideoError

_GRACE_S = 30.0


class ScriptedPlayer:
    """Plays a scripted agent in a thread pool of environments.

    Args:
        source: One of ``agents.scripted.AGENTS``.
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
        source: str | PolicySource,
        make_env: MakeEnv,
        *,
        seed: int = 0,
        concurrency: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        options = dict(options or {})
        if "seed" in options:
            raise ValueError(f"options={options} name a seed; episodes are seeded by their keys")
        name = source.path if isinstance(source, PolicySource) else source
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
