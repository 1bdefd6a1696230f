"""Advice: which setting to change so that a run fits, found by planning it with that change.

What changes nothing of what is learned comes first: recomputed activations, smaller passes, a whole
copy in each process, fewer dialogues at once. Then moments in eight bits, another critic,
adapters, and last more GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from agents.config import TrainConfig
from agents.plan.memory import plan_memory
from agents.plan.moments import Place
from agents.sharding import shard_size

_LEAST_TOKENS, _MOST_PROCESSES, _OF_A_MACHINE = 512, 64, 8


class Change(NamedTuple):
    """A change of a run.

    Attributes:
        options: It, as options of the command line.
        config: The run with it.
        place: Where that takes place.
    """

    options: str
    config: TrainConfig
    place: Place


Kind = Callable[[Change], Iterator[Change]]


def advise(config: TrainConfig, place: Place, limit: float) -> Change | None:
    """Return the least change with which each process needs no more than a limit.

    One setting is changed if that is enough, else several: all are changed as far as they go, and
    then each is put back as far as the run still fits. None if that is not enough.

    Args:
        config: Of a run.
        place: Where it takes place.
        limit: Bytes of a process.
    """
    begun = Change("", config, place)
    for kind in _KINDS:
        for change in kind(begun):
            if _fits(change, limit):
                return change
    # -1 is as far as it goes, 0 not at all; a whole copy in each process may need more or less.
    steps = {kind: 0 if kind is _sharing else -1 for kind in _KINDS}
    found = _changed(begun, steps)
    if not _fits(found, limit):
        return None
    for kind in reversed(_KINDS):
        for step in range(len(list(kind(_changed(begun, {**steps, kind: 0})))) + 1):
            milder = _changed(begun, {**steps, kind: step})
            if _fits(milder, limit):
                steps[kind], found = step, milder
                break
    return found


def _changed(begun: Change, steps: Mapping[Kind, int]) -> Change:
    """Return a run with so many steps of each kind of change."""
    for kind in _KINDS:
        begun = [begun, *kind(begun)][steps[kind]]
    return begun


def _fits(change: Change, limit: float) -> bool:
    return plan_memory(change.config, change.place).peak.total <= limit


def _with(change: Change, option: str, **fields: Any) -> Change:
    config = replace(change.config, **fields)
    return change._replace(options=f"{change.options} {option}".strip(), config=config)


def _checkpointing(change: Change) -> Iterator[Change]:
    if not change.config.checkpointing:
        yield _with(change, "--checkpointing", checkpointing=True)


def _passes(change: Change) -> Iterator[Change]:
    ppo, tokens = change.config.ppo, change.config.ppo.micro_batch_tokens
    while (tokens := tokens // 2) >= _LEAST_TOKENS:
        option, scored = f"--ppo.micro-batch-tokens {tokens}", ppo.score_tokens
        if scored is not None and scored > 2 * tokens:
            scored = 2 * tokens
            option = f"{option} --ppo.score-tokens {scored}"
        smaller = replace(ppo, micro_batch_tokens=tokens, score_tokens=scored)
        yield _with(change, option, ppo=smaller)


def _dialogues(change: Change) -> Iterator[Change]:
    share = change.config.share(change.place.processes)
    envs = min(change.config.envs or share, share)
    while (envs := envs // 2) >= 1:
        yield _with(change, f"--envs {envs}", envs=envs)


def _sharing(change: Change) -> Iterator[Change]:
    local = min(change.place.per_machine, change.place.processes)
    if shard_size(change.config.shard, change.place.processes, local) > 1:
        yield _with(change, "--shard 1", shard=1)


def _moments(change: Change) -> Iterator[Change]:
    ppo = change.config.ppo
    if ppo.optimizer != "adamw8bit":
        smaller = replace(ppo, optimizer="adamw8bit")
        yield _with(change, "--ppo.optimizer adamw8bit", ppo=smaller)


def _critic(change: Change) -> Iterator[Change]:
    ppo = change.config.ppo
    if ppo.critic != "head":
        yield _with(change, "--ppo.critic head", ppo=replace(ppo, critic="head"))


def _adapters(change: Change) -> Iterator[Change]:
    config = change.config
    if config.lora_rank or config.train_vision:
        return
    option, ppo = "--lora-rank 64", config.ppo
    if ppo.critic == "model":  # a language model of its own is trained whole
        option, ppo = f"{option} --ppo.critic adapter", replace(ppo, critic="adapter")
    yield _with(change, option, lora_rank=64, ppo=ppo)


def _processes(change: Change) -> Iterator[Change]:
    config, place = change.config, change.place
    count = place.processes
    while place.gpu and (count := 2 * count) <= min(_MOST_PROCESSES, config.batch):
        machine = max(place.per_machine, min(count, _OF_A_MACHINE))
        more = replace(place, processes=count, per_machine=machine)
        option = f"--gpus {count}"
        if config.shard and config.shard != 1:
            option = f"{option} --shard 0"
        moved = _with(change, option, shard=config.shard if config.shard == 1 else 0)
        yield moved._replace(place=more)


_KINDS: tuple[Kind, ...] = (
    _checkpointing, _passes, _sharing, _dialogues, _moments, _critic, _adapters, _processes,
)  # fmt: skip
