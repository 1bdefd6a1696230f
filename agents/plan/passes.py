"""Passes: bytes that a forward or backward pass takes beside weights, counted by tensors.

The counts are those of the tensors that are alive at once where a layer is widest, as transformers
5.23 writes its layers and autograd keeps them; docs/plan.md says how far they are from what was
measured. Widths: H of the model, I inside its MLPs, A of the queries, K of the keys, r of adapters;
e is the size of a number in bytes. A layer is widest inside its MLP, unless a mask is so large that
attention is: a mask makes every key and value exist once for each query head, and itself once a
layer in the format of the pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from agents.model.policy import CHUNK, CHUNK_ABOVE
from agents.plan.sizes import Sizes

_CHUNK = 64  # tokens that a gated delta net works on at once


class Batch(NamedTuple):
    """Rows of a pass, padded to one length.

    Attributes:
        tokens: That are fed, padding included.
        columns: Tokens that each of them may attend to.
        rows: How many there are.
        padded: Whether they differ in length, or follow on a cache: then there is a mask.
    """

    tokens: int
    columns: int
    rows: int
    padded: bool

    @property
    def pairs(self) -> int:
        """Entries of the mask; 0 without one."""
        return self.tokens * self.columns if self.padded else 0


@dataclass(frozen=True)
class Passes:
    """Passes of the language model.

    Attributes:
        sizes: Of the model.
        e: Bytes of a number: 4 or 2.
        rank: Of the adapters, in single precision; 0 for none.
        eager: Whether attention is written out: then there is a score for each pair and head.
        gpu: Whether kernels are a GPU's, which copy a mask to align it.
        packed: Whether rows lie end to end: attention goes row by row, and its results are joined.
    """

    sizes: Sizes
    e: int
    rank: int = 0
    eager: bool = False
    gpu: bool = False
    packed: bool = False

    def forward(self, batch: Batch) -> float:
        """Return the most that a pass without gradients takes before its logits."""
        s, e = self.sizes, self.e
        mlp = 3 * s.intermediate * e
        if self.rank:  # two results of an adapter, and its input, in single precision
            mlp = 2 * s.intermediate * e + 8 * s.intermediate + 4 * s.hidden * (e < 4)
        attention = ((4 + self.packed) * s.queries + 2 * s.keys - s.hidden) * e
        widest = max(
            batch.tokens * mlp,
            batch.tokens * attention + self._mask(batch) + self._repeated(batch),
            batch.tokens * self._delta(3, 10),
        )
        return self._held(batch, 1) + batch.tokens * 3 * s.hidden * e + widest

    def saved(self, batch: Batch, checkpointing: bool) -> float:
        """Return what a pass keeps for its backward pass, before the head."""
        s = self.sizes
        if checkpointing:
            layers = s.layers * batch.tokens * s.hidden * self.e
        else:
            layers = s.caching * self._attending(batch)
            if s.recurrent is not None:
                layers += s.recurrent.layers * self._delta_layer(batch)
        taps = (s.width // s.hidden - 1) * batch.tokens * s.hidden * self.e
        return self._held(batch, 2 + (self.e < 4)) + taps + layers

    def backward(self, batch: Batch, checkpointing: bool) -> float:
        """Return what a layer takes on top while gradients go through it."""
        s, e = self.sizes, self.e
        extra = batch.tokens * (2 * s.intermediate * e + s.hidden * e)
        if self.rank and e < 4:
            extra = batch.tokens * (4 * s.intermediate + 12 * s.hidden)
        if not checkpointing:
            return extra
        again = self._attending(batch)
        if s.recurrent is not None:
            again = max(again, self._delta_layer(batch))
        return again + extra

    def logits(self, tokens: int, *, gradients: bool, entropy: bool = True) -> float:
        """Return what the log-probabilities of so many response tokens take."""
        most = tokens * self.sizes.vocabulary
        if most > CHUNK_ABOVE:
            most = min(tokens, CHUNK) * self.sizes.vocabulary
        if gradients:
            return most * ((21 if entropy else 20) + self.e)
        return most * 16.0

    def draw(self, rows: int, *, nucleus: bool) -> float:
        """Return what drawing the next token of some dialogues takes."""
        return rows * self.sizes.vocabulary * (37.0 if nucleus else 16.0)

    def cache(self, batch: Batch) -> float:
        """Return the keys, values and states of some dialogues of so many columns."""
        s = self.sizes
        kept = 2.0 * s.caching * s.keys * batch.rows * batch.columns * self.e
        return kept + (4.0 * s.recurrent.state * batch.rows if s.recurrent else 0.0)

    def _held(self, batch: Batch, copies: int) -> float:
        """Embeddings, the sines of positions, and the mask, which last for the whole pass."""
        s = self.sizes
        return batch.tokens * (copies * s.hidden + 2 * s.head_dim) * self.e + batch.pairs

    def _mask(self, batch: Batch) -> float:
        """One layer's own mask, and the scores of eager attention."""
        scores = batch.tokens * batch.columns * self.sizes.heads * (4 + 2 * self.e)
        return batch.pairs * self.e * (1 + self.gpu) + (scores if self.eager else 0)

    def _repeated(self, batch: Batch) -> float:
        """Keys and values once for each query head."""
        return 2.0 * self.sizes.queries * batch.rows * batch.columns * self.e if batch.padded else 0

    def _attending(self, batch: Batch) -> float:
        """What a layer with attention keeps for its backward pass."""
        s, e = self.sizes, self.e
        keys = 0 if batch.padded else 2 * s.keys * e
        scores = s.heads * (batch.columns * (4 + e) if self.eager else 4)
        each = self._around() + (2 + self.packed) * s.queries * e + keys + scores
        mask = batch.pairs * e * (1 + self.gpu)
        return batch.tokens * each + mask + self._repeated(batch)

    def _around(self) -> float:
        """What MLP, norms and adapters of a layer keep of a token."""
        s, e = self.sizes, self.e
        both = s.queries + s.keys
        if self.rank and e < 4:  # a copy of every input of an adapter, in single precision
            wide = (3 * e + 4) * s.intermediate + 28 * s.hidden + 4 * s.queries
            normed = 4 * both
        elif self.rank:
            wide, normed = 16 * s.intermediate + 16 * s.hidden, 4 * both
        else:
            wide, normed = 4 * e * s.intermediate + (8 + 4 * e) * s.hidden, (4 + e) * both
        return wide + 28 * self.rank + normed * s.normed

    def _delta_layer(self, batch: Batch) -> float:
        """What a recurrent layer keeps for its backward pass."""
        return batch.tokens * (self._around() + self._delta(6, 10))

    def _delta(self, squares: int, vectors: int) -> float:
        """Matrices between the tokens of a chunk, and keys and values, in single precision."""
        r = self.sizes.recurrent
        return 4.0 * r.heads * (squares * _CHUNK + vectors * r.value) if r else 0.0


@dataclass(frozen=True)
class TowerPasses:
    """Passes of the vision tower.

    Attributes:
        sizes: Of the model.
        e: Bytes of a number: 4 or 2.
    """

    sizes: Sizes
    e: int

    def forward(self, patches: int) -> float:
        """Return the most that a pass over so many patches at once takes."""
        s, e = self.sizes, self.e
        sines = 8 * s.vision // s.vision_heads
        mlp = ((3 if s.gated else 2) * s.vision_inner + 3 * s.vision) * e
        # Queries and keys are turned in single precision.
        turned = (24 if e < 4 else 16) * s.vision + 5 * s.vision * e
        # On the way to the device pixels exist twice more, or as numbers of single precision.
        return patches * max(s.patch * e + sines + max(mlp, turned), 1.5 * 4 * s.patch)

    def saved(self, patches: int) -> float:
        """Return what a tower that is trained keeps of so many patches."""
        s, e = self.sizes, self.e
        inner = (4 if s.gated else 3) * s.vision_inner * e
        return patches * (s.depth * (inner + (8 + 12 * e) * s.vision) + s.patch * e)
