"""DecodeSession: batched replies over several turns, with one KV cache for the whole dialogue.

A turn costs the prefill of what is new: the last token of the reply, which was sampled but never
fed, and the block that the environment added. Rows end at different times; what was fed to a row
after its end is masked for ever, and new blocks are padded on the left, so that every row is
computed exactly as if it were alone (up to rounding). Models with recurrent layers take no padding:
new blocks are fed to them in groups of one length, and a row that has ended keeps its state.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.model.chat import Block
from agents.model.memory import Memory
from agents.model.policy import MLLMPolicy
from agents.model.rows import Row, collate
from agents.model.sampling import Noise, Reply, Sampling, restrict


class DecodeSession:
    """Replies for a batch of dialogues that go on turn by turn.

    Args:
        policy: The policy.
        sampling: How replies are drawn.
        generator: Of random numbers, on the policy's device: one that all dialogues draw from in
            turn, or one for each dialogue by its key. From one of its own a dialogue draws for its
            own tokens alone, so that its replies do not depend on who is beside it.

    Attributes:
        prefilled: Tokens fed before replies, padding left out.
        decoded: Tokens sampled.
    """

    def __init__(
        self, policy: MLLMPolicy, sampling: Sampling, generator: Noise | None = None
    ) -> None:
        self.policy, self.sampling, self.generator = policy, sampling, generator
        self.prefilled = self.decoded = 0
        self._cache_name = cache_name(policy.language)
        self._keys: list[Any] = []
        self._memory: Memory | None = None
        self._mask = torch.zeros(0)
        self._running = np.zeros(0, bool)  # rows whose reply has not ended
        self._next = np.zeros(0, np.int64)  # next M-RoPE position of each row
        self._unfed = np.zeros(0, np.int64)  # last sampled id of each row

    @torch.no_grad()
    def reply(
        self, keys: Sequence[Any], blocks: Sequence[Sequence[Block]], *, fresh: bool = False
    ) -> list[Reply]:
        """Return a reply for each dialogue.

        Args:
            keys: Names of the dialogues; those of the call before that are missing have ended.
            blocks: What is new in each (``fresh``: the whole context).
            fresh: Start over with an empty cache.

        Raises:
            ValueError: If a key was not in the batch before and ``fresh`` is off, keys and blocks
                do not match, or a dialogue has no generator where others have one of their own.
        """
        if not keys or len(blocks) != len(keys) or len(set(keys)) < len(keys):
            raise ValueError(
                f"{len(blocks)} blocks for dialogues {list(keys)}; pass at least one dialogue, "
                "each once, and what is new in each"
            )
        if isinstance(self.generator, Mapping) and (lost := set(keys) - self.generator.keys()):
            raise ValueError(
                f"dialogue {lost.pop()!r} has no generator; pass one for each, or one for all"
            )
        if fresh or self._memory is None:
            self._start(len(keys))
        else:
            self._select(keys)
        self._keys = list(keys)
        rows = [self._new_row(i, new) for i, new in enumerate(blocks)]
        self._next = np.array(
            [before + row.positions.max() + 1 for before, row in zip(self._next, rows, strict=True)]
        )
        self.prefilled += sum(len(row.ids) for row in rows)
        states = self._prefill(rows)
        return self._sample(states)

    def _start(self, count: int) -> None:
        self._memory = Memory(self.policy.base.config.get_text_config())
        self._mask = torch.zeros(count, 0, dtype=torch.int64, device=self.policy.device)
        self._next = np.zeros(count, np.int64)
        self._unfed = np.full(count, -1)

    def _select(self, keys: Sequence[Any]) -> None:
        unknown = [key for key in keys if key not in self._keys]
        if unknown:
            raise ValueError(
                f"dialogue {unknown[0]!r} is not in this batch of {len(self._keys)}; pass its "
                "whole context with fresh=True"
            )
        if list(keys) == self._keys:
            return
        chosen = [self._keys.index(key) for key in keys]
        index = torch.tensor(chosen, device=self.policy.device)
        mask = self._mask[index]
        # Columns that no remaining row uses are dropped along with the rows.
        used = torch.nonzero(mask.any(0))[:, 0]
        assert self._memory is not None
        self._memory.select(index, used)
        self._mask = mask[:, used]
        self._next, self._unfed = self._next[chosen], self._unfed[chosen]

    def _new_row(self, i: int, blocks: Sequence[Block]) -> Row:
        row = self.policy.row(blocks)
        if self._unfed[i] < 0:
            return row
        unfed = np.array([self._unfed[i]])
        shifted = np.concatenate([np.zeros((3, 1), np.int64), row.positions + 1], axis=1)
        return Row(
            np.concatenate([unfed, row.ids]),
            np.concatenate([[False], row.sampled]),
            shifted,
            row.frames,
        )

    def _prefill(self, rows: Sequence[Row]) -> torch.Tensor:
        """Feed the new parts; return (B, hidden) states that predict the first token."""
        memory = self._memory
        assert memory is not None
        everyone = torch.arange(len(rows), device=self.policy.device)
        if not memory.recurrent:
            states, self._mask = self._feed(rows, everyone, memory)
            return states
        lengths = np.array([len(row.ids) for row in rows])
        before = self._mask.shape[1]
        found, masks, parts = [], [], []
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            index = everyone[torch.from_numpy(places).to(everyone.device)]
            part = memory.part(index)
            states, mask = self._feed([rows[i] for i in places.tolist()], index, part)
            found.append(states)
            masks.append(nn.functional.pad(mask, (0, before + lengths.max() - mask.shape[1])))
            parts.append((index, part))
        memory.join(parts, len(rows), before + int(lengths.max()))
        order = torch.cat([index for index, _ in parts]).argsort()
        self._mask = torch.cat(masks)[order]
        return torch.cat(found)[order]

    def _feed(
        self, rows: Sequence[Row], index: torch.Tensor, memory: Memory
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed new parts of some dialogues; return the last states, and the mask with them."""
        batch = collate(rows, 0, left=True, device=self.policy.device)
        ends = torch.from_numpy(np.array([row.positions.max() + 1 for row in rows]))
        starts = torch.from_numpy(self._next).to(index.device)[index] - ends.to(index.device)
        mask = torch.cat([self._mask[index], batch.attention], dim=1)
        positions = batch.positions + starts[None, :, None]
        return self._forward(self.policy.inputs(batch), positions, mask, memory), mask

    def _forward(
        self, inputs: dict[str, Any], positions: torch.Tensor, mask: torch.Tensor, memory: Memory
    ) -> torch.Tensor:
        out = self.policy.language(
            **inputs,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: memory.cache},
        )
        return out.last_hidden_state[:, -1]

    def _sample(self, states: torch.Tensor) -> list[Reply]:
        policy, limit, memory = self.policy, self.sampling.max_new_tokens, self._memory
        assert memory is not None
        count = len(states)
        end = policy.codec.end_id
        embeddings = policy.language.get_input_embeddings()
        ids = np.zeros((count, limit), np.int64)
        log_probs = np.zeros((count, limit), np.float32)
        lengths = np.zeros(count, np.int64)
        self._running = running = np.ones(count, bool)
        for step in range(limit):
            logits = policy.logits(states, self.sampling.temperature)
            drawn = self._draw(logits)
            chosen = logits.gather(-1, drawn[:, None])[:, 0] - logits.logsumexp(-1)
            ids[:, step] = drawn.cpu().numpy()
            log_probs[:, step] = chosen.cpu().numpy()
            lengths[running] += 1
            running &= ids[:, step] != end
            if not running.any() or step + 1 == limit:
                break
            fed = torch.from_numpy(running.astype(np.int64)).to(policy.device)
            self._mask = torch.cat([self._mask, fed[:, None]], dim=1)
            positions = torch.from_numpy(self._next).to(policy.device)
            ended = torch.nonzero(fed == 0)[:, 0] if memory.recurrent else fed[:0]
            kept = memory.states(ended) if len(ended) else []
            inputs = {"inputs_embeds": embeddings(drawn[:, None])}
            states = self._forward(inputs, positions.expand(3, -1)[..., None], self._mask, memory)
            if len(ended):
                memory.restore(ended, kept)
            self._next = self._next + running
        self.decoded += int(lengths.sum())
        self._unfed = ids[np.arange(count), lengths - 1]
        return [
            Reply(ids[i, :n].copy(), log_probs[i, :n].copy(), bool(ids[i, n - 1] != end))
            for i, n in enumerate(lengths)
        ]

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        """Return (B,) ids drawn from (B, V) logits."""
        if self.sampling.greedy:
            return logits.argmax(-1)
        kept = restrict(logits, self.sampling.top_k, self.sampling.top_p)
        # The Gumbel maximum draws from the softmax, with one random number an id.
        noise = self._noise(logits)
        return (kept - (-(noise.clamp_min(1e-20)).log()).log()).argmax(-1)

    def _noise(self, logits: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.generator, Mapping):
            return torch.rand(logits.shape, generator=self.generator, device=logits.device)
        noise = torch.full(logits.shape, 0.5, device=logits.device)
        for i in np.flatnonzero(self._running).tolist():
            torch.rand(logits.shape[1:], generator=self.generator[self._keys[i]], out=noise[i])
        return noise


def cache_name(language: nn.Module) -> str:
    """Return how a language model calls the cache that it is given.

    transformers 5.24 renamed ``past_key_values`` to ``cache``, and warns of the old name.
    """
    named = inspect.signature(language.forward).parameters
    return "cache" if "cache" in named else "past_key_values"
