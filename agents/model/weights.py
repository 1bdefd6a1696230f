"""Weights in safetensors files, read a part at a time: whoever needs half a tensor reads half.

``MLLMPolicy.from_pretrained`` leaves whole models to transformers. This is for models that no
process could hold: an empty one is laid out first, sharded, and then each process fills its parts.
Files are read and not mapped, so that nothing but the parts is ever in memory.

Source: the format, https://huggingface.co/docs/safetensors (8 bytes with the length of a JSON
header, the header, the tensors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
# Models of these families are also published under the names of older versions of transformers.
_OLD_NAMES = {"": "", "visual.": "model.visual.", "model.": "model.language_model."}
_PIECE = 2**24  # bytes read at once where numbers are converted
_LONGEST_HEADER = 10**8  # bytes, as the format says
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Place(NamedTuple):
    """Where a tensor stands.

    Attributes:
        file: The safetensors file.
        offset: Of its first byte.
        dtype: Of its numbers.
        shape: Of the tensor.
    """

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def empty_model(config: Any, dtype: torch.dtype, **options: Any) -> Any:
    """Return a model whose weights are laid out and take no memory.

    Args:
        config: Of the model.
        dtype: Of its weights.
        **options: As transformers' ``from_config`` takes them.

    Raises:
        ValueError: If it holds tensors that are no weights and cannot be made without them.
    """
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype, **options)
    for name, module in model.named_modules():
        buffers = dict(module.named_buffers(recurse=False))
        for key, buffer in buffers.items():
            filled = torch.full(buffer.shape, torch.nan, dtype=buffer.dtype)
            module._buffers[key] = filled
        if not buffers:
            continue
        model._init_weights(module)  # as transformers makes them after it has read the weights
        for key in buffers:
            if not torch.isfinite(module._buffers[key]).all():
                raise ValueError(
                    f"{type(model).__name__} cannot be loaded in parts: {name}.{key} is not made "
                    "again; use shard=1"
                )
    return model.eval()


class WeightFiles:
    """The safetensors files of a model.

    Args:
        path: Directory, or hub id, whose files are fetched if they are not there.

    Raises:
        ValueError: If there are no such files, or they are damaged or hold what cannot be trained.
        OSError: If they cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.places: dict[str, Place] = {}
        for file in _files(self.path):
            for key, place in _header(file).items():
                if key in self.places:
                    raise ValueError(f"{file} and {self.places[key].file} both hold {key}")
                self.places[key] = place

    def named(self, names: Iterable[str], tied: Iterable[str] = ()) -> dict[str, Place]:
        """Return where the weights of a model stand, all of them and no others.

        Args:
            names: Of all weights of the model.
            tied: Names under which files may hold a weight once more.

        Raises:
            ValueError: If some are missing, or belong to no part of it, naming them.
        """
        wanted, skipped = set(names), set(tied)
        found: dict[str, Place] = {}
        unknown = []
        for key, place in self.places.items():
            old_names = _OLD_NAMES.items()
            known = [new + key[len(old) :] for old, new in old_names if key.startswith(old)]
            name = next((name for name in known if name in wanted), None)
            if name is not None and name not in found:
                found[name] = place
            elif skipped.isdisjoint(known):
                unknown.append(key)
        refuse_keys(self.path, wanted - found.keys(), unknown)
        return found


@torch.no_grad()
def fill(module: nn.Module, prefix: str, places: Mapping[str, Place]) -> None:
    """Read the weights of a module, of sharded ones the parts of this process.

    Adapters are left as they are.

    Args:
        module: Part of a model.
        prefix: Its name in the model with a full stop, or nothing.
        places: Where the weights of the model stand.

    Raises:
        ValueError: If a weight has another shape in the file.
    """
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            continue
        place = places[prefix + name.replace(".base_layer", "")]
        if place.shape != tuple(parameter.shape):
            raise ValueError(
                f"{place.file}: {prefix}{name} has shape {place.shape}, the model's has "
                f"{tuple(parameter.shape)}"
            )
        first, local = own_part(parameter)
        _read(place, first, local)


def own_part(tensor: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Return the first row of what this process holds of a tensor, and the rows themselves."""
    if not isinstance(tensor, DTensor):
        return 0, tensor.detach()
    mesh = tensor.device_mesh
    rows = math.ceil(tensor.shape[0] / mesh.size(mesh.ndim - 1))  # as torch.chunk cuts
    first = min(rows * mesh.get_local_rank(mesh.ndim - 1), tensor.shape[0])
    return first, tensor.to_local().detach()


def _read(place: Place, first: int, into: torch.Tensor) -> None:
    width = math.prod(place.shape[1:]) * place.dtype.itemsize
    with place.file.open("rb", buffering=0) as stream:
        stream.seek(place.offset + first * width)
        whole = into.reshape(-1) if into.is_contiguous() else None
        if whole is None:
            raise ValueError(f"a weight of shape {tuple(into.shape)} is not contiguous")
        if into.device.type == "cpu" and into.dtype == place.dtype:
            _read_into(stream, whole.view(torch.uint8), place)
            return
        step = _PIECE // place.dtype.itemsize
        for start in range(0, len(whole), step):
            target = whole[start : start + step]
            piece = torch.empty(len(target), dtype=place.dtype)
            _read_into(stream, piece.view(torch.uint8), place)
            target.copy_(piece)


def _read_into(stream: Any, target: torch.Tensor, place: Place) -> None:
    view, done = target.numpy().data, 0
    while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
            raise ValueError(f"{place.file} ends before its tensors do; it is damaged")
        done += count


def refuse_keys(what: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse weights of which some are missing, or belong to no part of a model.

    Raises:
        ValueError: Naming the first of them.
    """
    for kind, names in (("lacks", sorted(missing)), ("has unknown", sorted(unexpected))):
        if names:
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            raise ValueError(
                f"{what} {kind} weights ({len(names)}): {shown}; the files are damaged, or of "
                "another version of the library"
            )


def _files(path: str) -> list[Path]:
    directory = Path(path)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        directory = Path(snapshot_download(path, allow_patterns=["*.safetensors*", "*.json"]))
    if (index := directory / INDEX).is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if odd := [name for name in names if Path(name).name != name]:
                raise ValueError(f"{odd[0]!r} is no name of a file")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} cannot be read: {error!r}") from error
        return [directory / name for name in sorted(names)]
    if (single := directory / SINGLE).is_file():
        return [single]
    raise ValueError(
        f"{path} holds no {SINGLE} and no {INDEX}; only safetensors can be read in parts: save the "
        "model with save_pretrained, or use shard=1"
    )


def _header(file: Path) -> dict[str, Place]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size, _LONGEST_HEADER):
                raise ValueError(f"its header would have {length} bytes")
            held = json.loads(stream.read(length))
        places = {}
        for key, entry in held.items():
            if key == "__metadata__":
                continue
            if entry["dtype"] not in _DTYPES:
                raise ValueError(
                    f"{key} is {entry['dtype']}; weights must be one of {sorted(_DTYPES)}"
                )
            dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            if end - begin != math.prod(shape) * dtype.itemsize or 8 + length + end > size:
                raise ValueError(f"{key} has {end - begin} bytes, which does not fit {shape}")
            places[key] = Place(file, 8 + length + begin, dtype, shape)
        return places
    except (ValueError, KeyError, TypeError, struct.error, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
