"""Root: modules under which anything may run, and copies of modules that hold no weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Root(nn.ModuleDict):
    """Modules that a function runs, with all that has to happen before and after.

    Called with a function and its arguments, it returns what the function returns. Where the
    modules are sharded their weights are gathered for as long as that takes, and once more for the
    backward pass; see ``agents.sharding``.
    """

    def forward(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call the function."""
        return function(*args, **options)


def hollow_copy(module: M, device: torch.device) -> M:
    """Return a copy of a module whose weights are laid out, take no memory and are frozen.

    Args:
        module: Its weights may be laid out only, too.
        device: Where tensors that are no weights go.
    """
    hollow = {
        id(each): nn.Parameter(torch.empty_like(each, device="meta"), requires_grad=False)
        for each in module.parameters()
    }
    copied = copy.deepcopy(module, hollow)  # type: ignore[arg-type]
    return copied._apply(lambda t: t if t.is_meta else t.to(device))
