"""Which player plays a policy. Those that need torch or a client are imported when asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from agents.source import PolicySource
from benchmarks.players.player import MakeEnv, Player
from benchmarks.players.scripted import ScriptedPlayer


def make_player(
    source: str | PolicySource,
    make_env: MakeEnv,
    *,
    protocol: str = "tags",
    prompt: str = "",
    seed: int = 0,
    concurrency: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Player:
    """Return a player.

    Args:
        source: Of the policy, or what names it.
        make_env: Makes an environment over the tasks.
        protocol: Text protocol of models.
        prompt: Template that words the turns of models; "" for the protocol's own words.
        seed: Of what a scripted policy draws.
        concurrency: Episodes played side by side; 0 for what suits the player.
        options: What else the player takes by keyword.

    Raises:
        ValueError: For an unknown policy, options it does not take, or a prompt that it would not
            read.
    """
    source, options = PolicySource.of(source), dict(options or {})
    text = {"protocol": protocol, "prompt": prompt, "concurrency": concurrency, **options}
    if source.kind == "scripted":
        if prompt:
            raise ValueError(f"policy={source.name!r} reads no prompt; leave prompt= out")
        return ScriptedPlayer(source, make_env, seed=seed, concurrency=concurrency, options=options)
    if source.kind == "endpoint":
        from benchmarks.players.endpoint import EndpointPlayer

        return _make(EndpointPlayer, source, make_env, **text)
    from benchmarks.players.model import ModelPlayer

    return _make(ModelPlayer, source, make_env, **text)


def _make(player: Callable[..., Player], *args: Any, **options: Any) -> Player:
    try:
        inspect.signature(player).bind(*args, **options)
    except TypeError as error:
        names = list(inspect.signature(player).parameters)[2:]
        raise ValueError(
            f"policy options {sorted(options)}: {error}; use some of {names}"
        ) from None
    return player(*args, **options)
