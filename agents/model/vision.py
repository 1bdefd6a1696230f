"""FrameEncoder: images to features, each frame once.

The vision tower is frozen in post-training, so the features of a frame are the same in every turn,
scoring pass and epoch. They are kept under a digest of the pixels: two frames that look alike share
an entry, and a frame that changed can never meet a stale one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.model.chat import ImageGrid
from agents.model.families.family import Family
from agents.model.families.qwen2_vl import QWEN2_5_VL


def patchify(
    frames: np.ndarray, grid: ImageGrid, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Cut frames into normalised patches, as ``Qwen2VLImageProcessor`` does without resizing.

    Args:
        frames: (n, H, W, 3) uint8.
        grid: Patch geometry.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.

    Returns:
        (n * H / patch * W / patch, 3 * temporal * patch * patch) float32; patches that merge into
        one token are neighbours.
    """
    count, height, width, channels = frames.shape
    grid.tokens(height, width)
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).float()
    pixels = (pixels / 255.0 - torch.tensor(mean)) / torch.tensor(std)
    p, m = grid.patch, grid.merge
    rows, columns = height // (p * m), width // (p * m)
    # n, row, merged row, y, column, merged column, x, channel
    cut = pixels.reshape(count, rows, m, p, columns, m, p, channels)
    cut = cut.permute(
        0, 1, 4, 2, 5, 7, 3, 6
    )  # n, row, column, merged row and column, channel, y, x
    cut = cut.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, grid.temporal, -1, -1)
    return cut.reshape(count * rows * m * columns * m, channels * grid.temporal * p * p)


class FrameEncoder:
    """Runs the vision tower, and remembers what it said.

    Args:
        visual: The vision tower.
        grid: Patch geometry.
        mean: Normalisation per channel.
        std: Normalisation per channel.
        capacity_mb: Memory for features; the ones not used for longest go first.
        cached: Whether to remember; a tower that is trained must not.
        batch_frames: Frames encoded at once.
        family: Of the model.

    Attributes:
        hits: Frames answered from memory.
        misses: Frames that went through the tower.
        capacity: Bytes of features that are kept at most.
    """

    def __init__(
        self,
        visual: nn.Module,
        grid: ImageGrid,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        capacity_mb: float = 512.0,
        cached: bool = True,
        batch_frames: int = 256,
        family: Family = QWEN2_5_VL,
    ) -> None:
        if capacity_mb < 0 or batch_frames < 1:
            raise ValueError(
                f"capacity_mb={capacity_mb} and batch_frames={batch_frames} must be positive"
            )
        self.visual: Any = visual
        self.family = family
        self.grid, self.mean, self.std = grid, tuple(mean), tuple(std)
        self.cached = cached
        self.batch_frames = batch_frames
        self.hits = self.misses = 0
        self.capacity = int(capacity_mb * 1e6)
        self._bytes = 0
        self._kept: OrderedDict[tuple[tuple[int, ...], bytes], torch.Tensor] = OrderedDict()

    def __call__(self, frames: Iterable[np.ndarray]) -> list[torch.Tensor]:
        """Return the features of each frame, (tokens, width), without gradients if cached.

        Frames with the same pixels go through the tower once, cached or not.
        """
        wanted = list(frames)
        keys = [(frame.shape, digest(frame)) for frame in wanted]
        missing = {key: frame for key, frame in zip(keys, wanted, strict=True) if key not in self}
        self.hits += len(wanted) - len(missing)
        self.misses += len(missing)
        fresh: dict[Any, torch.Tensor] = {}
        if missing:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.cached):
                fresh = dict(zip(missing, self._encode(list(missing.values())), strict=True))
        found = [fresh[key] if key in fresh else self._recall(key) for key in keys]
        if self.cached:
            for key, features in fresh.items():
                self._keep(key, features)
        return found

    def patches(self, stack: np.ndarray) -> torch.Tensor:
        """Return what the tower takes of (n, H, W, 3) uint8 frames, see ``patchify``."""
        weight = next(self.visual.parameters())
        return patchify(stack, self.grid, self.mean, self.std).to(weight.device, weight.dtype)

    def __contains__(self, key: object) -> bool:
        return key in self._kept

    def clear(self) -> None:
        """Forget everything (after the tower changed)."""
        self._kept.clear()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of features kept."""
        return self._bytes

    def _recall(self, key: Any) -> torch.Tensor:
        self._kept.move_to_end(key)
        return self._kept[key]

    def _keep(self, key: Any, features: torch.Tensor) -> None:
        size = features.numel() * features.element_size()
        self._kept[key] = features
        self._bytes += size
        while self._bytes > self.capacity and self._kept:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.numel() * dropped.element_size()

    def _encode(self, frames: list[np.ndarray]) -> list[torch.Tensor]:
        features: list[torch.Tensor] = [torch.empty(0)] * len(frames)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for place, frame in enumerate(frames):
            by_shape.setdefault(frame.shape, []).append(place)
        for shape, places in by_shape.items():
            for start in range(0, len(places), self.batch_frames):
                chunk = places[start : start + self.batch_frames]
                stack = np.stack([frames[place] for place in chunk])
                for place, each in zip(chunk, self._tower(stack, shape), strict=True):
                    features[place] = each
        return features

    def _tower(self, stack: np.ndarray, shape: tuple[int, ...]) -> Sequence[torch.Tensor]:
        height, width = shape[0] // self.grid.patch, shape[1] // self.grid.patch
        patches = self.patches(stack)
        sizes = torch.tensor([[1, height, width]] * len(stack), device=patches.device)
        merged = self.family.features(self.visual, patches, sizes)
        # Clones, or one frame kept would keep the whole batch.
        parts = merged.split(height * width // self.grid.merge**2)
        return [part.clone() for part in parts] if self.cached else parts


def digest(frame: np.ndarray) -> bytes:
    """Return 16 bytes that stand for the pixels of a frame."""
    return hashlib.blake2b(np.ascontiguousarray(frame).data, digest_size=16).digest()
