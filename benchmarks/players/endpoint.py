"""EndpointPlayer: plays a model behind an OpenAI-compatible server, many dialogues at a time.

A dialogue that the server refuses for what it holds (see ``client``) spends the turn as an empty
reply does: the turn is malformed, and its ``refused`` says why. An episode without a reply for any
other reason is a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agents.source import PolicySource
from benchmarks.players.answers import ServerReply
from benchmarks.players.client import (
    API_KEY,
    Endpoint,
    EndpointError,
    ImageFormat,
    Request,
    chat_message,
)
from benchmarks.players.crew import Crew
from benchmarks.players.player import Job, MakeEnv, MeteredText, Played, describe, new_cost
from gym_longvideo import checks
from gym_longvideo.protocol import with_opening
from gym_longvideo.video.errors import VideoError

CONCURRENCY = 16
_GRACE_S = 1.0


class EndpointDown(RuntimeError):
    """So many episodes in a row got no reply that the run was stopped; nothing is lost."""


class EndpointPlayer:
    """Plays a model behind a server, in a thread pool of text environments.

    Args:
        source: Base URL of the API, such as ``http://localhost:8000/v1``.
        make_env: Makes an environment.
        model: Name of the model there.
        protocol: Text protocol.
        prompt: Template that words the turns; "" for the protocol's own words.
        concurrency: Dialogues at a time; 0 for 16.
        temperature: 0.0 always takes the likeliest token.
        max_new_tokens: Longest reply; 0 for 512.
        request: Further fields of a request, see ``client.Request``.
        image_format: "png" or "jpeg".
        timeout_s: Seconds a request may take, see ``client.Endpoint``.
        retries: How often a request is tried again.
        backoff_s: Seconds before the first retry.
        patience: Episodes in a row without a reply that end the run.
        api_key_env: Environment variable that holds the key.
        thought_opened: Whether the server's chat template ends the prompt with ``<think>``, as
            those of thinking models do; a reply then begins inside the thought.

    Raises:
        ValueError: For arguments that have no meaning.
    """

    def __init__(
        self,
        source: str | PolicySource,
        make_env: MakeEnv,
        *,
        model: str = "",
        protocol: str = "tags",
        prompt: str = "",
        concurrency: int = 0,
        temperature: float = 0.0,
        max_new_tokens: int = 0,
        request: Mapping[str, Any] | None = None,
        image_format: ImageFormat = "png",
        timeout_s: float = 300.0,
        retries: int = 4,
        backoff_s: float = 1.0,
        patience: int = 16,
        api_key_env: str = API_KEY,
        thought_opened: bool = False,
    ) -> None:
        checks.whole("concurrency", concurrency, 0)
        checks.whole("patience", patience, 1)
        base_url = PolicySource.of(source).path
        asked = Request(temperature, max_new_tokens or 512, dict(request or {}), image_format)
        self.protocol, self.patience, self.base_url = protocol, patience, base_url
        self._crew: Crew[MeteredText, Job, Played] = Crew(
            lambda: MeteredText(make_env(), protocol, prompt),
            self._play,
            lambda env: env.close(),
            concurrency or CONCURRENCY,
            _GRACE_S,
        )
        self._endpoint = Endpoint(
            base_url,
            model,
            request=asked,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
            api_key_env=api_key_env,
            wait=self._crew.wait,
        )
        # Where the server stands is no part of who plays: it may come back under another name.
        self.policy: Mapping[str, Any] = {
            "kind": "endpoint",
            "name": model,
            "request": asked.fields(),
            "image_format": image_format,
            **({"thought_opened": True} if thought_opened else {}),
        }

    def play(self, jobs: Sequence[Job]) -> Iterator[Played]:
        """Yield what became of each job, as they end.

        Raises:
            EndpointDown: When ``patience`` episodes in a row got no reply.
        """
        silent = 0
        for played in self._crew.run(jobs):
            yield played
            if played.error.startswith(EndpointError.__name__):
                silent += 1
            elif played.record is not None:
                silent = 0
            if silent >= self.patience:
                raise EndpointDown(
                    f"the model {self.policy['name']!r} did not reply in {silent} episodes in a "
                    f"row ({played.error}); see to the endpoint and give the same command again"
                )

    def close(self) -> None:
        """Stop; requests under way are given up."""
        self._crew.close()
        self._endpoint.close()

    def _play(self, env: MeteredText, job: Job) -> Played:
        try:
            env.reset(options={"index": job.task})
        except VideoError as error:
            return Played(job.key, None, {}, describe(error))
        spent = _Spent()
        sent: list[dict[str, Any]] = []
        while True:
            image_format: Any = self.policy["image_format"]
            sent += [chat_message(each, image_format) for each in env.messages()[len(sent) :]]
            try:
                reply = self._endpoint.reply(sent)
            except EndpointError as error:
                return Played(job.key, None, {}, describe(error))
            spent.add(reply)
            opened = reply.text and self.policy.get("thought_opened")
            said = with_opening(reply.text) if opened else reply.text
            _, _, terminated, truncated, info = env.step(said)
            if reply.refused and env.base.episode is not None:
                env.base.episode.turns[-1].notes["refused"] = reply.refused
            if truncated:
                return Played(job.key, None, {}, info["infra_error"])
            if terminated:
                return Played(job.key, env.base.record, spent.cost(env.cost), "")


class _Spent:
    """Sums of what replies cost; what one of them cannot tell, their sum cannot either."""

    names = ("prompt_tokens", "reply_tokens", "prefill_s", "generate_s", "retries")

    def __init__(self) -> None:
        self.requests = 0
        self.sums: list[float | None] = [0, 0, 0.0, 0.0, 0]

    def add(self, reply: ServerReply) -> None:
        self.requests += 1
        amounts = [getattr(reply, name) for name in self.names]
        self.sums = [
            None if total is None or amount is None else total + amount
            for total, amount in zip(self.sums, amounts, strict=True)
        ]

    def cost(self, decoding: Mapping[str, Any]) -> dict[str, Any]:
        sums = dict(zip(self.names, self.sums, strict=True))
        return new_cost(**decoding, **sums, requests=self.requests)
