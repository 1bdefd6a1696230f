"""A vLLM server beside our own rollouts: the same dialogues, the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from agents.model.chat import Block
from agents.model.policy import MLLMPolicy
from agents.model.sampling import Sampling
from agents.serving import probe
from agents.serving.client import Server
from agents.serving.push import CACHES
from agents.serving.replicas import Replicas
from agents.serving.session import ServedSession, Target


class Rival:
    """A server that plays scripted dialogues.

    Args:
        url: Address of a vLLM server that serves the policy's model.
        policy: The policy.

    Raises:
        ServerError: If it does not answer, or serves another model.
    """

    def __init__(self, url: str, policy: MLLMPolicy) -> None:
        self.server, self.codec = Server(url), policy.codec
        self._target = Target(probe.served(self.server).model)
        probe.check_server(self.server, policy, self._target.model)
        self._replicas = Replicas([self.server], admit=probe.served)

    def play(self, turns: Sequence[Sequence[Sequence[Block]]], tokens: int) -> None:
        """Have it reply to every dialogue in every turn.

        Args:
            turns: For each turn the whole context of every dialogue.
            tokens: Of every reply, which no end token ends early.
        """
        for cache in CACHES:  # or all but the first run would find the answers there
            self.server.post(cache)
        sampling = Sampling(greedy=True, max_new_tokens=tokens)
        session = ServedSession(self.codec, sampling, self._replicas, lambda: self._target)
        session.params["stop_token_ids"] = []
        for contexts in turns:
            session.reply(range(len(contexts)), contexts, fresh=True)
