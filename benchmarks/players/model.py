"""ModelPlayer: plays a multimodal language model on this machine, greedily and in batches.

Rows of a batch are computed as if each were alone, up to rounding. So which episodes share a batch,
which differs after an interruption, can change a reply only where two tokens are equally likely.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import transformers

from agents.checkpoint import load_policy
from agents.keeping.saved import CheckpointError
from agents.model.chat import Block
from agents.model.decoding import DecodeSession
from agents.model.policy import MLLMPolicy
from agents.model.sampling import Noise, Reply, Sampling
from agents.parallel import usable_device
from agents.rollout import RolloutCollector
from agents.source import (
    MadeFor,
    PolicySource,
    check_frames,
    frame_cost,
    frame_tokens,
)
from agents.trajectory import Trajectory
from benchmarks.players.player import Job, MakeEnv, MeteredText, Played, describe, new_cost
from gym_longvideo import checks
from gym_longvideo.video.errors import VideoError

_log = logging.getLogger(__name__)

CONCURRENCY = 8
MAX_NEW_TOKENS = 512


class ModelPlayer:
    """Plays a model.

    Args:
        source: A checkpoint or a model of the Qwen2.5-VL kind, or what names one.
        make_env: Makes an environment.
        protocol: Text protocol.
        prompt: Template that words the turns; "" for the protocol's own words.
        concurrency: Dialogues in a batch; 0 for 8.
        max_new_tokens: Longest reply; 0 for what a checkpoint was trained with, else 512.
        history: Earlier turns that stay in context; by default as many as a checkpoint was trained
            with, else all.
        thinking: Whether it thinks before it replies, for models whose chat template has that
            switch; by default as it was made for, or as the template has it.
        dtype: Of a model's weights; a checkpoint has its own.
        device: The GPU if there is one, by default.
        attention: Of a model, as ``MLLMPolicy.from_pretrained`` takes it.

    Raises:
        ValueError: If there is no such model, the frames do not fit it, or it has no such switch.
    """

    def __init__(
        self,
        source: str | PolicySource,
        make_env: MakeEnv,
        *,
        protocol: str = "tags",
        prompt: str = "",
        concurrency: int = 0,
        max_new_tokens: int = 0,
        history: int | None = None,
        thinking: bool | None = None,
        dtype: str = "auto",
        device: str | None = None,
        attention: str | None = None,
    ) -> None:
        for name, value in (("concurrency", concurrency), ("max_new_tokens", max_new_tokens)):
            checks.whole(name, value, 0)
        source = PolicySource.of(source)
        if device is not None:
            usable_device(device)
        first = make_env()
        made_for = source.made_for or MadeFor()
        history = made_for.history if history is None else history
        thinking = made_for.thinking if thinking is None else thinking
        seen = first.viewer.settings
        frame_size = seen.frame_shape if seen.max_pixels is None else None
        self._model = _load(source, frame_size, dtype, device, attention)
        if thinking is not None:
            self._model.codec = self._model.codec.switched(thinking)
        unit = self._model.codec.grid.patch * self._model.codec.grid.merge
        check_frames(seen, unit, source.name)
        tokens = frame_tokens(seen, unit)
        self._model.remember((concurrency or CONCURRENCY) * seen.budget.total, tokens)
        _log.info("%s", frame_cost(seen, unit))
        self.protocol, self.prompt = protocol, prompt
        limit = max_new_tokens or made_for.max_new_tokens or MAX_NEW_TOKENS
        self._sampling = Sampling(greedy=True, max_new_tokens=limit)
        self._history = history
        self._make_env, self._envs = make_env, [MeteredText(first, protocol, prompt)]
        self._count = concurrency or CONCURRENCY
        self._collector: RolloutCollector | None = None
        self._meter = _Meter(self._model)
        self.policy: Mapping[str, Any] = {
            "kind": "model",
            "name": source.name,
            "weights": weights_digest(self._model),
            **stack(self._model),
            "sampling": "greedy",
            "max_new_tokens": self._sampling.max_new_tokens,
            "history": history,
            **({} if seen.max_pixels is None else {"frame_tokens": tokens}),
            **({} if thinking is None else {"thinking": thinking}),
        }

    def play(self, jobs: Sequence[Job]) -> Iterator[Played]:
        """Yield what became of each job, batch by batch."""
        names = {job.task: job.key for job in jobs}
        pending = deque(jobs)
        collector = self._ready(len(jobs))
        size = len(collector.envs)
        while pending:
            taken = [pending.popleft() for _ in range(min(size, len(pending)))]
            ahead = [job.task for job in islice(pending, size)]

            def spare(taken: list[Job] = taken) -> int:
                """Name a job in place of one whose video cannot be opened."""
                if not pending:
                    raise _NoneLeft
                taken.append(pending.pop())
                return taken[-1].task

            skipped = len(collector.skipped)
            indices = [job.task for job in taken]
            try:
                played = self._collect(collector, indices, replacement=spare, upcoming=ahead)
            except (VideoError, _NoneLeft):
                played = []  # nobody knows which of the others had begun
            failed = dict(collector.skipped[skipped:])
            for index, error in failed.items():
                yield Played(names[index], None, {}, error)
            yield from played
            done = {result.key for result in played}
            for job in taken:
                if job.task not in failed and job.key not in done:
                    yield self._alone(collector, job)

    def close(self) -> None:
        """Stop the threads and close the environments."""
        if self._collector is not None:
            self._collector.close()
        for env in self._envs:
            env.close()

    def _ready(self, jobs: int) -> RolloutCollector:
        if self._collector is None:
            while len(self._envs) < min(self._count, jobs):
                self._envs.append(MeteredText(self._make_env(), self.protocol, self.prompt))
            self._collector = RolloutCollector(
                self._envs,
                self._model,
                history=self._history,
                keep_records=True,
                session=partial(_MeteredSession, meter=self._meter),
            )
        return self._collector

    def _alone(self, collector: RolloutCollector, job: Job) -> Played:
        try:
            return self._collect(collector, [job.task])[0]
        except VideoError as error:
            return Played(job.key, None, {}, describe(error))

    def _collect(
        self, collector: RolloutCollector, indices: list[int], **options: Any
    ) -> list[Played]:
        self._meter.clear()
        episodes = collector.collect(indices, self._sampling, **options)
        return [self._played(episode, place) for place, episode in enumerate(episodes)]

    def _played(self, episode: Trajectory, place: int) -> Played:
        # The environment may be on its way to the next task, but it has not ended that one.
        if episode.infra_error or episode.record is None:
            return Played(episode.task_id, None, {}, episode.infra_error or "no record")
        cost = new_cost(
            **self._envs[place].cost,
            **self._meter.of(place),
            reply_tokens=sum(len(turn.reply.ids) for turn in episode.turns),
            requests=len(episode.turns),
        )
        return Played(episode.task_id, episode.record, cost, "")


class _NoneLeft(Exception):
    """There is no job left to take the place of another."""


class _Meter:
    """Tokens fed and seconds spent, by the place of a dialogue in its batch.

    Each dialogue of a batch bears an equal share of its seconds, so that sums over episodes are
    those of the run.
    """

    def __init__(self, policy: MLLMPolicy) -> None:
        self.image_id = policy.codec.image_token_id
        self.on_gpu = policy.device.type == "cuda"
        self._sums: dict[int, np.ndarray] = {}

    def clear(self) -> None:
        self._sums = {}

    def add(self, place: int, blocks: Sequence[Block], prefill_s: float, generate_s: float) -> None:
        tokens = sum(len(block.ids) for block in blocks)
        visual = sum(int((block.ids == self.image_id).sum()) for block in blocks)
        more = np.array([tokens, visual, prefill_s, generate_s])
        self._sums[place] = self._sums.get(place, np.zeros(4)) + more

    def of(self, place: int) -> dict[str, Any]:
        tokens, visual, prefill_s, generate_s = self._sums[place].tolist()
        return {
            "prompt_tokens": int(tokens),
            "visual_tokens": int(visual),
            "prefill_s": prefill_s,
            "generate_s": generate_s,
        }

    def now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


class _MeteredSession(DecodeSession):
    """A session that tells how long its prefill and its decoding take."""

    def __init__(
        self,
        policy: MLLMPolicy,
        sampling: Sampling,
        noise: Noise | None,
        *,
        meter: _Meter,
    ) -> None:
        super().__init__(policy, sampling, noise)
        self._meter = meter
        self._first = 0.0

    def reply(
        self, keys: Sequence[Any], blocks: Sequence[Sequence[Block]], *, fresh: bool = False
    ) -> list[Reply]:
        started = self._meter.now()
        replies = super().reply(keys, blocks, fresh=fresh)
        ended = self._meter.now()
        prefill_s, generate_s = self._first - started, ended - self._first
        for place, new in zip(keys, blocks, strict=True):
            self._meter.add(place, new, prefill_s / len(keys), generate_s / len(keys))
        return replies

    def _prefill(self, rows: Any) -> torch.Tensor:
        states = super()._prefill(rows)
        self._first = self._meter.now()
        return states


def weights_digest(policy: MLLMPolicy) -> str:
    """Return a digest of every weight that plays, adapters included: 12 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=6)
    for name, weight in sorted(policy.base.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def stack(policy: MLLMPolicy) -> dict[str, Any]:
    """Return what else decides the replies of given weights, JSON-able.

    The same weights with another attention, precision, device or version round elsewhere, and with
    another tokenizer, chat template or normalisation of images they are told something else.
    """
    config, codec, encoder = policy.base.config, policy.codec, policy.encoder
    parts = {"text": config.get_text_config(), "vision": config.vision_config}
    return {
        "dtype": str(policy.head.weight.dtype).removeprefix("torch."),
        "device": policy.device.type,
        "attention": {name: part._attn_implementation for name, part in parts.items()},
        "versions": {"torch": str(torch.__version__), "transformers": transformers.__version__},
        "tokenizer": _digest(codec.tokenizer.backend_tokenizer.to_str()),
        "chat_template": _digest(json.dumps(codec.tokenizer.chat_template, sort_keys=True)),
        "images": {**asdict(codec.grid), "mean": list(encoder.mean), "std": list(encoder.std)},
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def _load(
    source: PolicySource,
    frame_size: tuple[int, int] | None,
    dtype: str,
    device: str | None,
    attention: str | None,
) -> MLLMPolicy:
    source.check()
    try:
        if source.kind == "checkpoint":
            if dtype != "auto" or attention is not None:
                raise ValueError(f"dtype={dtype!r} and attention={attention!r} are those of a "
                                 "model; a checkpoint has its own")  # fmt: skip
            return load_policy(source.path, device, frame_size)
        kind: Any = dtype if dtype == "auto" else getattr(torch, dtype)
        return MLLMPolicy.from_pretrained(
            source.path, dtype=kind, device=device, attention=attention, frame_size=frame_size
        )
    except (OSError, AttributeError, CheckpointError) as error:
        raise ValueError(f"policy={source.path!r} cannot be loaded: {error}") from error
