"""Which player plays a policy. Those that need torch or a client are imported when asked for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agents.scripted import AGENTS
from benchmarks.players.player import MakeEnv, Player
from benchmarks.players.scripted import ScriptedPlayer

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+\Z")


def make_player(
    policy: str,
    make_env: MakeEnv,
    *,
    protocol: str = "tags",
    seed: int = 0,
    concurrency: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Player:
    """Return a player.

    Args:
        policy: Name of a scripted agent, base URL of an OpenAI-compatible endpoint
            (``http://host:8000/v1``), or a model: directory of a run of ``agents.train``, of one of
            its checkpoints or of a model of the Qwen2.5-VL kind, or its hub id.
        make_env: Makes an environment over the tasks.
        protocol: Text protocol of models.
        seed: Of whatever is drawn.
        concurrency: Episodes played side by side; 0 for what suits the player.
        options: What else the player takes by keyword.

    Raises:
        ValueError: For an unknown policy, or options it does not take.
    """
    options = dict(options or {})
    text = {"protocol": protocol, "concurrency": concurrency, **options}
    if policy in AGENTS:
        return ScriptedPlayer(policy, make_env, seed=seed, concurrency=concurrency, options=options)
    if policy.startswith(("http://", "https://")):
        from benchmarks.players.endpoint import EndpointPlayer

        return _make(EndpointPlayer, policy, make_env, seed=seed, **text)
    if Path(policy).is_dir() or _HUB_ID.match(policy):
        from benchmarks.players.model import ModelPlayer

        return _make(ModelPlayer, policy, make_env, **text)
    raise ValueError(
        f"policy={policy!r} is unknown; use one of {list(AGENTS)}, the directory of a model, or "
        "the URL of an endpoint (http://host:8000/v1)"
    )


def _make(player: Callable[..., Player], *args: Any, **options: Any) -> Player:
    try:
        inspect.signature(player).bind(*args, **options)
    except TypeError as error:
        names = list(inspect.signature(player).parameters)[2:]
        raise ValueError(
            f"policy options {sorted(options)}: {error}; use some of {names}"
        ) from None
    return player(*args, **options)
