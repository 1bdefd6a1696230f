"""ServedSession: replies from servers, behind the interface that ``DecodeSession`` has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from agents.model.chat import Block, ChatCodec
from agents.model.sampling import Reply, Sampling
from agents.serving.client import Server
from agents.serving.errors import Refused
from agents.serving.replicas import Replicas
from agents.serving.wire import ROUTE, Prompt, read, request, sampling_params


@dataclass(frozen=True)
class Target:
    """Which weights must answer.

    Attributes:
        model: What is asked: the served model, or an adapter, whose name says its version.
        version: Of the served model's weights; None where they never change.
    """

    model: str
    version: str | None = None


@dataclass
class _Dialogue:
    """A dialogue as a server has it: what was said, by whom, and the images that are there."""

    prompt: Prompt
    server: Server | None = None
    known: set[str] = field(default_factory=set)


class ServedSession:
    """Replies of dialogues that go on turn by turn, each by itself. Safe to use from many threads.

    Chance is the servers' own: the same seed does not give the same replies again.

    Args:
        codec: Of the policy that the servers run.
        sampling: How replies are drawn.
        replicas: The servers.
        target: Gives the weights that must answer.

    Attributes:
        params: What every request says of sampling.
        prefilled: Tokens fed before replies.
        decoded: Tokens sampled.

    Raises:
        ValueError: If replies are to be drawn in a way whose log-probabilities a server cannot
            give.
    """

    def __init__(
        self,
        codec: ChatCodec,
        sampling: Sampling,
        replicas: Replicas,
        target: Callable[[], Target],
    ) -> None:
        self.codec, self.sampling, self.replicas, self.target = codec, sampling, replicas, target
        self.prefilled = self.decoded = 0
        self.params = sampling_params(codec, sampling)
        self._dialogues: dict[Any, _Dialogue] = {}
        self._lock = threading.Lock()
        replicas.ready()

    def reply(
        self, keys: Sequence[Any], blocks: Sequence[Sequence[Block]], *, fresh: bool = False
    ) -> list[Reply]:
        """Return a reply for each dialogue; several are asked for side by side.

        Args:
            keys: Names of the dialogues.
            blocks: What is new in each (``fresh``: the whole context).
            fresh: Forget what was said in them before.

        Raises:
            ValueError: If a dialogue is not known and ``fresh`` is off.
            ServerError: If there is no reply, whoever is asked.
        """
        pairs = list(zip(keys, blocks, strict=True))
        if len(pairs) == 1:
            return [self._reply(keys[0], blocks[0], fresh)]
        with ThreadPoolExecutor(len(pairs) or 1) as pool:
            return list(pool.map(lambda pair: self._reply(pair[0], pair[1], fresh), pairs))

    def abort(self) -> None:
        """End all requests: their callers get an error."""
        self.replicas.abort()

    def _reply(self, key: Any, blocks: Sequence[Block], fresh: bool) -> Reply:
        more = Prompt.of(blocks)
        before = self._dialogues.get(key)
        if fresh:
            known = before or _Dialogue(more)
            dialogue = _Dialogue(more, known.server, known.known)
        elif before is None:
            raise ValueError(f"dialogue {key!r} is new; pass its whole context with fresh=True")
        else:
            dialogue = _Dialogue(before.prompt.joined(more), before.server, before.known)
        reply, server = self.replicas.ask(lambda each: self._send(each, dialogue), dialogue.server)
        dialogue.server = server
        said = Prompt(reply.ids, ())
        dialogue.prompt = dialogue.prompt.joined(said)
        self._dialogues[key] = dialogue
        with self._lock:
            self.prefilled += len(more.ids)
            self.decoded += len(reply.ids)
        return reply

    def _send(self, server: Server, dialogue: _Dialogue) -> Reply:
        prompt, target = dialogue.prompt, self.target()
        if server is not dialogue.server:
            dialogue.known = set()

        def ask() -> Any:
            body = request(
                target.model, prompt, self.params, self.codec.image_token_id, dialogue.known
            )
            return server.post(ROUTE, body)

        try:
            answer = ask()
        except Refused as error:
            # Servers forget images when their memory is full; only then is there more to send.
            if error.status != 400 or not dialogue.known:
                raise
            dialogue.known = set()
            answer = ask()
        reply = read(
            answer,
            prompt,
            self.codec,
            self.sampling.max_new_tokens,
            model=target.model,
            version=target.version,
        )
        dialogue.server = server
        dialogue.known = {picture.name for picture in prompt.pictures}
        return reply
