"""Memory: what the layers of a language model keep of a batch of dialogues.

Layers of attention keep keys and values, a column a token, and a mask says which columns a dialogue
may look at. Layers that are recurrent keep a state, which whatever is fed changes for good: so they
are fed no padding, and a dialogue that has ended gets its state back.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch


class Memory:
    """The memory of a batch.

    Args:
        config: Of the language model.

    Attributes:
        cache: What the language model takes as ``cache`` or ``past_key_values``.
        recurrent: Whether some layers keep a state.
    """

    def __init__(self, config: Any) -> None:
        from transformers import DynamicCache

        self.cache: Any = DynamicCache(config=config)
        self.recurrent = any(map(_is_recurrent, self.cache.layers))

    def select(self, index: torch.Tensor, columns: torch.Tensor) -> None:
        """Keep some dialogues, in this order, and some columns of keys and values."""
        for layer in self.cache.layers:
            if _is_recurrent(layer):
                _replace_states(layer, lambda state: state[index])
            else:
                layer.keys = layer.keys[index][:, :, columns].contiguous()
                layer.values = layer.values[index][:, :, columns].contiguous()

    def part(self, index: torch.Tensor) -> Memory:
        """Return the memory of some dialogues by itself."""
        part = copy.copy(self)
        part.cache = copy.copy(self.cache)
        part.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in part.cache.layers:
            if _is_recurrent(layer):
                _replace_states(layer, lambda state: state[index])
            elif layer.is_initialized:
                layer.keys, layer.values = layer.keys[index], layer.values[index]
        return part

    def join(self, parts: Sequence[tuple[torch.Tensor, Memory]], count: int, length: int) -> None:
        """Take over what parts have become; their new columns are padded on the right.

        Args:
            parts: The dialogues of each, and its memory; each dialogue is in one of them.
            count: Dialogues in all.
            length: Columns in all.
        """
        order = torch.cat([index for index, _ in parts]).argsort()
        for i, layer in enumerate(self.cache.layers):
            theirs = [part.cache.layers[i] for _, part in parts]
            joined = self.cache.layers[i] = copy.copy(theirs[0])
            if _is_recurrent(layer):
                for name in ("conv_states", "recurrent_states"):
                    states = [getattr(each, name) for each in theirs]
                    setattr(joined, name, {
                        key: torch.cat([each[key] for each in states])[order]
                        if states[0][key] is not None else None
                        for key in states[0]
                    })  # fmt: skip
            else:
                for name in ("keys", "values"):
                    padded = [_padded(getattr(each, name), length) for each in theirs]
                    setattr(joined, name, torch.cat(padded)[order])
        assert len(order) == count

    def states(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return copies of the states of some dialogues, to be given to ``restore``."""
        return [state[rows].clone() for state in self._states()]

    def restore(self, rows: torch.Tensor, states: Sequence[torch.Tensor]) -> None:
        """Give some dialogues states back that they had before."""
        for state, before in zip(self._states(), states, strict=True):
            state[rows] = before

    def _states(self) -> list[torch.Tensor]:
        layers = [layer for layer in self.cache.layers if _is_recurrent(layer)]
        both = [(layer.conv_states, layer.recurrent_states) for layer in layers]
        return [state for pair in both for part in pair for state in part.values()
                if state is not None]  # fmt: skip


def _is_recurrent(layer: Any) -> bool:
    return hasattr(layer, "recurrent_states")


def _replace_states(layer: Any, change: Any) -> None:
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name)
        changed = {key: None if state is None else change(state) for key, state in states.items()}
        setattr(layer, name, changed)
        ready = f"is_{name}_initialized"  # copies of a layer share it
        setattr(layer, ready, dict(getattr(layer, ready)))


def _padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Return (B, heads, n, width) keys or values with zeros up to ``length`` columns."""
    return torch.nn.functional.pad(tensor, (0, 0, 0, length - tensor.shape[2]))
