"""Memory of a process, part by part, at the moments at which the most of it is needed.

What is planned for is ``agents.sharding``. The processes that share a copy hold a part of every
tensor each: weights that are trained, their gradients and moments in single precision, frozen ones
in the format of the passes. A layer is gathered in that format just before it runs, while the next
one is fetched; what belongs to no layer (embedding, last norm, head, a tower that is trained) is
gathered for a whole pass. For the length of a rollout every process has a whole copy of language
model and head, for that of a rollout or an update one of a frozen tower. One process alone gathers
nothing, unless it computes in another format than its weights have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from agents.config import TrainConfig
from agents.keeping.undo import LARGEST
from agents.plan.moments import GIB, PARTS, MemoryPlan, Moment, Place
from agents.plan.passes import Batch, Passes, TowerPasses
from agents.plan.sizes import Sizes, sizes_of
from agents.plan.workload import Workload, counter_of
from agents.sharding import shard_size

# Bytes of moments of a weight; 8-bit ones have a scale for each block of 256.
_MOMENTS = {"adamw": 8.0, "adamw8bit": 2.0625}
_FRAMES_AT_ONCE = 256  # in the tower, see FrameEncoder
# Of a GPU: its context with the kernels of libraries; buffers of communication, if any; and the
# share of what tensors take that the allocator holds in blocks that do not fit.
_CONTEXT, _COMMUNICATION, _FRAGMENTS = 0.75 * GIB, 0.5 * GIB, 0.05
_PROCESS = 0.6 * GIB  # of a process on a CPU: Python and the libraries


def plan_memory(
    config: TrainConfig,
    place: Place,
    *,
    sizes: Sizes | None = None,
    load: Workload | None = None,
    micro: Batch | None = None,
    undoes: bool = True,
) -> MemoryPlan:
    """Work out what each process of a run needs.

    Args:
        config: Of the run.
        place: Where it takes place.
        sizes: Of the model; by default from its configuration.
        load: Tokens of an episode; by default at its fullest.
        micro: The largest forward pass of scoring and learning; by default as many tokens as
            micro_batch_tokens allows, or the longest row.
        undoes: Whether updates are prepared to be taken back.

    Raises:
        ValueError: If the model is not known, or the processes cannot share a copy.
    """
    if sizes is None:
        sizes = sizes_of(config.source)
    if load is None:
        load = Workload.of(config, sizes.unit, counter_of(config.source.path))
    return _Planner(config, place, sizes, load, micro, undoes).plan()


class _Planner:
    """Adds up the parts of one configuration."""

    def __init__(
        self,
        config: TrainConfig,
        place: Place,
        sizes: Sizes,
        load: Workload,
        micro: Batch | None,
        undoes: bool,
    ) -> None:
        self.config, self.place, self.sizes, self.load = config, place, sizes, load
        self.share = config.share(place.processes)
        local = min(place.per_machine, place.processes)
        self.n = shard_size(config.shard, place.processes, local)
        half = {"float32": 4, "bfloat16": 2}
        auto = 2 if place.gpu else 4
        self.stored = half.get(config.dtype, auto if config.lora_rank else 4)
        self.e = self.stored if config.lora_rank else half.get(config.compute, auto)
        self.sharded = self.n > 1 or self.e != self.stored
        attention = config.attention
        # Recurrent layers cannot be kept from other rows, nor can eager attention.
        able = sizes.recurrent is None and attention != "eager"
        self.packed = config.packing is not False and able
        self.passes = Passes(
            sizes, self.e, config.lora_rank, attention == "eager", place.gpu, self.packed
        )
        self.masks = attention != "flash_attention_2"  # which is told where rows end
        self.tower = TowerPasses(sizes, self.e)
        self.micro = micro
        self.undoes = undoes
        # Trained weights: of the actor's optimiser, and of the critic's; whole, not shards.
        kind, hidden = config.ppo.critic, sizes.hidden
        self.value_head = 3 * hidden + 1 + (hidden * hidden + hidden) * (kind == "head")
        adapter = config.lora_rank * sizes.adapted
        self.actor = adapter or sizes.actor + config.train_vision * sizes.tower
        self.trunk = {"adapter": adapter, "model": sizes.language, "head": 0}[kind]
        self.root = sizes.root + config.train_vision * sizes.tower  # what belongs to no layer

    def plan(self) -> MemoryPlan:
        rest = self._rest()
        whole = rest | self._whole_tower(rest["tower"])
        moments = [Moment("at rest", "rest", rest)]
        moments += [Moment("rollout", name, whole | more) for name, more in self._rollout()]
        whole = whole | self._undo_here()
        moments += [Moment("scoring", name, whole | more) for name, more in self._scoring()]
        moments += [Moment("learning", name, whole | more) for name, more in self._learning()]
        return MemoryPlan(
            tuple(Moment(m.phase, m.name, self._with_runtime(m.parts)) for m in moments),
            loading=float(not self.sharded) * self.place.local * self.sizes.total * self.stored,
            host=self.place.local * self._undo(),
        )

    def _rest(self) -> dict[str, float]:
        config, sizes, n = self.config, self.sizes, self.n
        ppo = config.ppo
        moments = _MOMENTS[ppo.optimizer] * self.trained
        parts = {"optimiser": moments, "critic": 4.0 * self.value_head / n}
        if config.lora_rank:
            parts["weights"] = self.stored * sizes.actor / n
            parts["adapters"] = 4.0 * (self.actor + self.trunk) / n
            parts["tower"] = self.stored * sizes.tower / n
            return parts
        parts["weights"] = 4.0 * sizes.actor / n
        parts["critic"] += 4.0 * self.trunk / n
        parts["tower"] = (4.0 if config.train_vision else self.e) * sizes.tower / n
        if ppo.beta:
            parts["reference"] = self.e * self.actor / n
        return parts

    def _whole_tower(self, part: float) -> dict[str, float]:
        """A frozen tower is whole in each process whenever something runs."""
        if self.config.train_vision:
            return {}
        whole = float(self.e * self.sizes.tower)
        return {"tower": whole + part * (self.n > 1)}

    def _rollout(self) -> Iterator[tuple[str, dict[str, float]]]:
        config, sizes, load, passes = self.config, self.sizes, self.load, self.passes
        wave = min(config.envs or self.share, self.share)
        copy: dict[str, float] = {}
        if self.sharded:
            whole = sizes.actor + config.train_vision * sizes.tower
            adapters = 4.0 * (self.actor + self.trunk) if config.lora_rank else 0.0
            copy = {"generation copy": self.e * whole + adapters}
        before = 0 if config.train_vision else (self.share - wave) * load.frames
        seen, found = 0, []
        for turn in load.turns:
            shown = wave * turn.frames
            seen = min(seen + turn.frames, load.frames)
            frames = self._features(before + (0 if config.train_vision else wave * seen))
            batch = Batch(
                wave * turn.new, turn.new + turn.past, wave, self.masks and wave + turn.past > 1
            )
            held = batch._replace(columns=turn.past)
            at_once = min(shown, _FRAMES_AT_ONCE) * load.frame * sizes.merged
            found.append(("vision", {
                "KV cache": passes.cache(held) if turn.past else 0.0,
                "frame features": frames,
                "activations": self.tower.forward(at_once) + self._embeddings(batch),
            }))  # fmt: skip
            given = self._given(shown)
            found.append(("prefill", {
                # A layer's cache grows by being copied.
                "KV cache": passes.cache(batch) * (1 + 1 / sizes.layers * (turn.past > 0)),
                "frame features": frames,
                # A rollout feeds rows that are padded, whatever learning does.
                "activations": replace(passes, packed=False).forward(batch) + given,
            }))  # fmt: skip
            last = batch._replace(columns=batch.columns + load.reply)
            found.append(("decode", {
                "KV cache": passes.cache(last) * (1 + 1 / sizes.layers),
                "frame features": frames,
                "logits": passes.draw(wave, nucleus=config.ppo.top_p < 1),
            }))  # fmt: skip
        for name in ("vision", "prefill", "decode"):
            worst = max((p for found_name, p in found if found_name == name), key=_total)
            yield name, copy | worst

    def _scoring(self) -> Iterator[tuple[str, dict[str, float]]]:
        batch = self._micro(self.share, self.config.ppo.score_tokens)
        passes, said = self.passes, self._said(batch)
        held = {
            "gathered weights": self._gathered(),
            "frame features": self._features(self.share * self.load.frames),
        }
        kept = self._experience() + self._tower_again(batch)
        layer = passes.forward(batch) + self._given(self._frames(batch))
        yield "score", held | {"activations": kept + layer}
        states = batch.tokens * self.sizes.hidden * self.e * 2
        logits = passes.logits(said, gradients=False)
        yield "score head", held | {"activations": kept + states, "logits": logits}

    def _learning(self) -> Iterator[tuple[str, dict[str, float]]]:
        config, sizes, passes = self.config, self.sizes, self.passes
        ppo, checkpointing = config.ppo, config.checkpointing
        episodes = min(ppo.minibatch, self.share)  # a process may have all of a minibatch
        batch = self._micro(episodes)
        experience = self._experience()
        base = {"frame features": self._features(self.share * self.load.frames)}
        held = base | {"gathered weights": self._gathered() + self._gradient_buffers()}
        saved = passes.saved(batch, checkpointing) + self._given(self._frames(batch))
        layer = passes.backward(batch, checkpointing)
        single = len(self.load.rows) * episodes * self.load.longest <= batch.tokens
        if self.trunk:
            grads, rest = self._gradients(self.trunk / self.n, single)
            tower = 0.0 if config.train_vision else self._tower_again(batch)
            critic = held | {"activations": experience + tower + saved * rest + layer}
        else:  # the head reads states of whole episodes, several copies of them
            grads = 0.0
            states = 4.0 * episodes * sum(self.load.said) * sizes.hidden
            critic = base | {"activations": experience + 6 * states}
        yield "critic", critic | {"gradients": grads + 4.0 * self.value_head / self.n}
        grads, rest = self._gradients(self.actor / self.n, single)
        tower = self._tower_again(batch, gradients=config.train_vision)
        actor = held | {"gradients": grads}
        yield "actor", actor | {"activations": experience + tower + saved * rest + layer}
        head = {
            "gradients": 4.0 * self.actor / self.n * (not single),
            "activations": experience + tower + saved,
            "logits": passes.logits(
                self._said(batch), gradients=True, entropy=bool(ppo.entropy_coef)
            ),
        }
        yield "actor head", held | head
        if self.sharded and not config.lora_rank:
            # Weights, their gradients, and these in single precision to be added up.
            whole = {"gathered weights": self.root * (2.0 * self.e + 4)}
            grads = 4.0 * self.actor / self.n
            yield "root", base | whole | {"gradients": grads, "activations": experience}
        for name, trained in (("actor", self.actor), ("critic", self.trunk)):
            own = (trained + self.value_head * (name == "critic")) / self.n
            # A GPU takes roots of the second moments of all weights at once.
            more = 4.0 * (own if self.place.gpu else 2 * min(own, sizes.largest))
            step = {"gradients": 4.0 * own, "activations": experience + more}
            yield f"{name} step", base | step

    def _gradients(self, trained: float, single: bool) -> tuple[float, float]:
        """Return the bytes of gradients while a layer is passed, and the share of inputs kept.

        In the only pass before a step gradients come as what was kept of layers goes.
        """
        grads = 4.0 * trained
        share = self.sizes.layer / max(self.sizes.actor, 1)
        kept = self.load.longest * self.sizes.hidden * self.e * self.sizes.layers
        if single and grads < kept:
            return grads * share, 1.0
        return grads, 1.0 / self.sizes.layers if single and self.config.checkpointing else 1.0

    def _gathered(self) -> float:
        """Whole weights of a pass: what belongs to no layer, a layer, and the next one."""
        return self.e * (self.root + 2.0 * self.sizes.layer) if self.sharded else 0.0

    def _gradient_buffers(self) -> float:
        """Whole gradients of a layer, and of what belongs to none until the pass ends."""
        sizes = self.sizes
        if self.config.lora_rank:
            return 0.0
        if not self.sharded:
            return 4.0 * sizes.largest  # before it is added to what is there
        return self.root * self.e + sizes.layer * (self.e + 4.0)

    def _micro(self, episodes: int, most: int | None = None) -> Batch:
        """Return the largest forward pass over the rows of some episodes, of so many tokens."""
        if self.micro is not None:
            return self.micro
        longest = self.load.longest
        most = most or self.config.ppo.micro_batch_tokens
        tokens = max(longest, min(episodes * sum(self.load.rows), most))
        rows = math.ceil(tokens / longest)
        return Batch(tokens, longest, rows, self.masks and not self.packed and rows > 1)

    def _said(self, batch: Batch) -> int:
        return math.ceil(batch.tokens * max(
            said / row for said, row in zip(self.load.said, self.load.rows, strict=True)
        ))  # fmt: skip

    def _frames(self, batch: Batch) -> int:
        """Frames of a pass."""
        return math.ceil(batch.tokens * self.load.frames / self.load.longest)

    def _given(self, frames: int) -> float:
        """The features that a pass is given, side by side."""
        return float(frames * self.load.frame * self.sizes.width * self.e)

    def _embeddings(self, batch: Batch) -> float:
        return float(batch.tokens * self.sizes.hidden * self.e)

    def _features(self, frames: int) -> float:
        """The features that are remembered."""
        return 0.0 if self.config.train_vision else self._given(frames)

    def _tower_again(self, batch: Batch, *, gradients: bool = False) -> float:
        """A tower that is trained runs in every pass."""
        if not self.config.train_vision:
            return 0.0
        patches = self._frames(batch) * self.load.frame * self.sizes.merged
        return self.tower.saved(patches) if gradients else self.tower.forward(patches)

    def _experience(self) -> float:
        """Numbers of response tokens, twelve of each, and the states that a head reads."""
        states = self.sizes.hidden * (self.config.ppo.critic == "head")
        return 4.0 * self.share * sum(self.load.said) * (12 + states)

    @property
    def trained(self) -> float:
        """Weights that are trained in this process."""
        return (self.actor + self.trunk + self.value_head) / self.n

    def _undo(self) -> float:
        """Copies of trained weights and their moments, where updates can be taken back."""
        moments = _MOMENTS[self.config.ppo.optimizer]
        return (4 + moments) * self.trained * (self.undoes and 12 * self.trained <= LARGEST)

    def _undo_here(self) -> dict[str, float]:
        return {} if self.place.gpu else {"undo": self._undo()}

    def _with_runtime(self, parts: Mapping[str, float]) -> dict[str, float]:
        runtime = _PROCESS
        if self.place.gpu:
            talks = _COMMUNICATION * (self.place.processes > 1)
            runtime = _CONTEXT + talks + _FRAGMENTS * _total(parts)
        kept = {**parts, "runtime": runtime}
        return {name: float(kept[name]) for name in PARTS if kept.get(name)}


def _total(parts: Mapping[str, float]) -> float:
    return sum(parts.values())
