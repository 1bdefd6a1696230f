"""Shards: tensors that lie in several processes, written and read by all of them together.

PyTorch's distributed checkpoints do that: each process writes the parts it holds, and any number of
processes reads what any other number wrote. From such files plain safetensors are made, one tensor
after another, which transformers and servers load.

    shards/
        __0_0.distcp, __1_0.distcp, ...     a file a process
        .metadata                           which part stands where
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from agents.model.weights import own_part, refuse_keys
from agents.parallel import own

SHARDS = "shards"
_PIECE = 2 * 2**30  # bytes of a safetensors file, and of memory while it is made


class ShardWriter:
    """Writes tensors in the background, while they already change again.

    They are copied to main memory first. All processes must call this together.
    """

    def __init__(self) -> None:
        self._group: Any = None

    def start(self, directory: Path, tensors: Mapping[str, torch.Tensor]) -> Future[Any]:
        """Copy tensors, and begin to write them; in the main process the result is the last one."""
        if self._group is None and dist.get_world_size() > 1:
            # A group of its own: what is said in the background must not mix with the rest.
            self._group = dist.new_group(backend="gloo")
        writer = FileSystemWriter(directory, sync_files=True)
        found: Any = async_save(
            {name: _portable(tensor) for name, tensor in tensors.items()},
            storage_writer=writer,
            process_group=self._group,
        )
        return getattr(found, "upload_completion", found)


def wait_for(written: Future[Any]) -> None:
    """Wait for what ``ShardWriter.start`` began.

    Raises:
        OSError: If a process could not write its part, saying which and why.
    """
    try:
        written.result()
    except CheckpointException as error:  # no Exception in torch
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"process {rank}: {cause}") from error


@torch.no_grad()
def read_shards(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Read tensors, each process the parts that it holds.

    Args:
        directory: What ``ShardWriter`` wrote.
        tensors: To be filled, by name: all that were written, and no others.

    Raises:
        ValueError: If some are missing, unknown, or of another shape.
    """
    known = _known(directory)
    refuse_keys(str(directory), tensors.keys() - known.keys(), known.keys() - tensors.keys())
    for name, tensor in tensors.items():
        if known[name].size != tensor.shape:
            raise ValueError(
                f"{directory}: {name} has shape {tuple(known[name].size)}, here it has "
                f"{tuple(tensor.shape)}"
            )
    targets = {name: _portable(tensor) for name, tensor in tensors.items()}
    _load(targets, directory, alone=not dist.is_initialized())
    for name, tensor in tensors.items():
        if targets[name] is not tensor:
            own(tensor).copy_(own(targets[name]))


def fill_part(into: torch.Tensor, tensor: torch.Tensor) -> None:
    """Copy the part that this process holds out of a tensor that is whole."""
    first, local = own_part(into)
    local.copy_(tensor[first : first + len(local)] if local.ndim else tensor)


def export(
    directory: Path,
    names: Mapping[str, str],
    out: Path,
    dtype: torch.dtype | None = None,
    name: str = "model",
) -> None:
    """Make safetensors files out of what ``ShardWriter`` wrote; needs no other process.

    Args:
        directory: What it wrote.
        names: What each tensor that is wanted is called there, by its name in the new files.
        out: Directory of the new files.
        dtype: Number format of the new files; None for that of the tensors.
        name: Of the new files.
    """
    known = _known(directory)
    pieces = list(_pieces(names, known, dtype))
    places: dict[str, str] = {}
    total = 0
    for i, piece in enumerate(pieces):
        part = f"-{i + 1:05d}-of-{len(pieces):05d}" if len(pieces) > 1 else ""
        file = f"{name}{part}.safetensors"
        tensors = {}
        for new in piece:
            data = known[names[new]]
            into = torch.empty(data.size, dtype=data.properties.dtype)
            _load({names[new]: into}, directory, alone=True)
            tensors[new] = into.to(dtype or into.dtype)
        save_file(tensors, out / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(pieces) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        text = json.dumps(index, indent=2) + "\n"
        (out / f"{name}.safetensors.index.json").write_text(text, encoding="utf-8")


def _pieces(
    names: Mapping[str, str], known: Mapping[str, Any], dtype: torch.dtype | None
) -> Iterator[list[str]]:
    """Yield names of new tensors that stand in one file."""
    piece: list[str] = []
    size = 0
    for new, old in names.items():
        data = known[old]
        more = data.size.numel() * (dtype or data.properties.dtype).itemsize
        if piece and size + more > _PIECE:
            yield piece
            piece, size = [], 0
        piece.append(new)
        size += more
    if piece:
        yield piece


def _load(tensors: dict[str, torch.Tensor], directory: Path, *, alone: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(tensors, storage_reader=FileSystemReader(directory), no_dist=alone)


def names_of_shards(directory: Path) -> set[str]:
    """Return the names of the tensors that ``ShardWriter`` wrote."""
    return set(_known(directory))


def _known(directory: Path) -> dict[str, TensorStorageMetadata]:
    metadata = FileSystemReader(directory).read_metadata()
    held = metadata.state_dict_metadata
    return {name: data for name, data in held.items() if isinstance(data, TensorStorageMetadata)}


def _portable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as any number of processes can read it: eight-bit ones as numbers."""
    local: Any = own(tensor)
    if not hasattr(local, "dequantize") or type(local) is torch.Tensor:
        return tensor
    plain = local.dequantize()
    if not isinstance(tensor, DTensor):
        return plain
    return DTensor.from_local(
        plain,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
