"""Critics: what a response token can still earn, from everything before it.

Three kinds, one interface. "adapter" is a second LoRA adapter on the policy's frozen weights;
"model" is a language model of its own, for full fine-tuning; "head" reads the policy's own states,
detached, as they were when the batch was scored: nearly free, and enough where lambda is 1 and the
critic is only a baseline. All end in a head that starts at exactly zero, so that the first
advantages are the returns and no random baseline disturbs them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import nn

from agents.model.policy import CRITIC, MLLMPolicy, spread
from agents.model.root import Root
from agents.model.rows import Row
from gym_longvideo import checks

CriticKind = Literal["adapter", "head", "model"]


class ValueHead(nn.Module):
    """(..., hidden) states to (...) values in single precision or better; zero at first.

    Args:
        hidden: Width of the states.
        inner: Width of a hidden layer; 0 for a linear head.
    """

    def __init__(self, hidden: int, inner: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, inner) if inner else None
        self.out = nn.Linear(inner or hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the values."""
        features = self.norm(states.to(self.out.weight.dtype))
        if self.inner is not None:
            features = nn.functional.silu(self.inner(features))
        return self.out(features).squeeze(-1).clone()  # FSDP wants no view


class Critic(nn.Module):
    """V of everything before each response token.

    A fresh adapter and a head's hidden layer are drawn from torch's global generator: seed that
    first, with ``torch.manual_seed``, for the same ones again (``Trainer`` does).

    Args:
        policy: The policy whose weights or states it reads.
        kind: "adapter", "head" or "model".
        inner: Width of the head's hidden layer; by default the policy's width for "head", which has
            nothing else to learn with, and 0 otherwise.

    Raises:
        ValueError: For an unknown kind, or "adapter" without LoRA.
    """

    def __init__(
        self, policy: MLLMPolicy, kind: CriticKind = "adapter", inner: int | None = None
    ) -> None:
        super().__init__()
        checks.choice("critic", kind, get_args(CriticKind))
        self.kind: CriticKind = kind
        hidden = policy.hidden_size
        if inner is None:
            inner = hidden if kind == "head" else 0
        self.head = ValueHead(hidden, inner).to(policy.device, policy.precision)
        self.trunk: Root | None = None
        self._policy = [policy]  # hidden from nn.Module: its weights are not the critic's
        if kind == "adapter":
            policy.add_adapter(CRITIC)
        elif kind == "model":
            trunk = copy.deepcopy(policy.language).requires_grad_(True)
            self.trunk = Root({"language": trunk})

    @property
    def reads_rows(self) -> bool:
        """Whether ``forward`` needs rows; a "head" needs the policy's states instead."""
        return self.kind != "head"

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return everything that the critic's optimiser moves."""
        return [*self._adapter, *self.parameters()]

    @property
    def _adapter(self) -> list[nn.Parameter]:
        return self._policy[0].adapter_parameters(CRITIC) if self.kind == "adapter" else []

    def forward(
        self, rows: Sequence[Row] | None = None, states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return (B, N) values, 0 beyond a row's response tokens.

        Args:
            rows: As scored by the policy.
            states: (B, N, hidden) for a "head": ``Scores.hidden``.
        """
        if not self.reads_rows:
            if states is None:
                raise ValueError("critic='head' needs states=, the hidden states of a scoring pass")
            return self.head(states.detach())
        if rows is None:
            raise ValueError(f"critic={self.kind!r} needs rows=")
        policy = self._policy[0]
        if self.kind == "adapter":
            with policy.adapter(CRITIC):
                flat, _, mask = policy.states(rows)
            return spread(self.head(flat), mask)
        # A tower that is trained is gathered with the policy's own weights.
        flat, mask = policy.root(self._trunk_states, rows)
        return spread(self.head(flat), mask)

    def _trunk_states(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.trunk is not None
        with self._policy[0].using(self.trunk):
            # The tower is the actor's: its features are given, not trained.
            flat, _, mask = self._policy[0].states(rows, train_tower=False)
        return flat, mask

    def role(self) -> Any:
        """Return the context in which to go forward and backward.

        With gradient checkpointing the backward pass computes the forward again, and must meet the
        same adapter, or no gradient arrives, silently.
        """
        return self._policy[0].adapter(CRITIC) if self.kind == "adapter" else nullcontext()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return head, trunk and adapter."""
        state = super().state_dict(*args, **kwargs)
        for i, parameter in enumerate(self._adapter):
            state[f"adapter.{i}"] = parameter.detach()
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load what ``state_dict`` returned."""
        state = dict(state_dict)
        with torch.no_grad():
            for i, parameter in enumerate(self._adapter):
                parameter.copy_(state.pop(f"adapter.{i}"))
        return super().load_state_dict(state, strict=strict, assign=assign)
