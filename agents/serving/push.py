"""Push: the weights that training moves, from a learner to servers, by way of files.

Files work on every device and across machines that share a directory. Only what is trained is
written: all trained weights of the policy in pieces, or the adapter alone. Sharded weights are
gathered one tensor at a time, by all processes together, and only the main one keeps and writes
them, so that no more than a piece is ever whole.

A server is given a version with the weights, and says with every reply which version it came from:
see ``wire.read``. For adapters the version is the adapter's name.

Left out: pushes from GPU to GPU (vLLM's own nccl and ipc engines), which nobody could run here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from agents.keeping.restoring import exported_names
from agents.model.policy import ACTOR
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.serving.client import Server
from agents.serving.errors import Mismatch, Refused
from agents.sharding import whole

_PIECE = 2 * 2**30  # bytes of a file, and of memory while it is made
CACHES = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")
EXTENSION = "longvideo_vllm.PushedWeights"
WORKER = Path(__file__).with_name("worker")
HOW_TO_START = (
    "start vLLM with VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and "
    f"PYTHONPATH={WORKER}, and with --enable-scale-out --worker-extension-cls {EXTENSION}, for "
    "adapters with --enable-lora --max-lora-rank too (docs/serving.md)"
)


@dataclass(frozen=True)
class Push:
    """Weights that lie ready.

    Attributes:
        version: Their name; no two pushes have the same one.
        directory: Where they lie, as servers see it too.
        files: Of weights that replace the served model's; none for an adapter.
        count: Tensors in them.
    """

    version: str
    directory: Path
    files: tuple[str, ...]
    count: int

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter beside the served model's own weights."""
        return not self.files


def write(learner: PPOLearner, directory: Path, version: str, processes: Processes) -> Push:
    """Write what is trained of a learner's policy; all processes must call this together.

    Args:
        learner: Between two updates.
        directory: New directory, made by the main process.
        version: Name of the push.
        processes: All that hold the weights.

    Raises:
        OSError: In every process, if it cannot be written.
    """
    policy = learner.policy
    tensors = {name: t for name, t in learner.tensors().items() if "/" not in name}
    names = exported_names(policy, tensors)
    adapter = policy.lora is not None
    dtype = None if adapter else learner.sharding.compute
    files: list[str] = []
    failure = None
    if processes.main:
        try:
            directory.mkdir(parents=True)
            if adapter:
                policy.peft.peft_config[ACTOR].save_pretrained(str(directory))
        except OSError as error:
            failure = error
    for piece in _pieces(names, tensors, dtype, keep=processes.main and failure is None):
        name = "adapter_model" if adapter else f"{len(files):05d}"
        files.append(str(directory / f"{name}.safetensors"))
        try:
            save_file(piece, files[-1], metadata={"format": "pt"})
        except OSError as error:
            failure = failure or error
    processes.agree(failure)
    (files,) = processes.gather(files)[:1]
    return Push(version, directory, () if adapter else tuple(files), len(names))


def _pieces(
    names: dict[str, str], tensors: dict[str, torch.Tensor], dtype: torch.dtype | None, keep: bool
) -> Iterator[dict[str, torch.Tensor]]:
    """Gather tensors one by one; yield them in pieces to who keeps them, an adapter in one."""
    piece: dict[str, torch.Tensor] = {}
    for new, name in names.items():
        tensor = whole(tensors[name], dtype)  # all processes, whoever keeps it
        if keep:
            piece[new] = tensor.cpu().contiguous()
        del tensor
        full = sum(each.nbytes for each in piece.values()) >= _PIECE
        if full and not new.startswith("base_model."):
            yield piece
            piece = {}
    if piece:
        yield piece


def give(server: Server, push: Push) -> None:
    """Have a server take what was pushed, unless it has it.

    Raises:
        ServerError: If it did not, or not all of it.
    """
    try:
        if not _holds(server, push):
            _give_adapter(server, push) if push.is_adapter else _give_weights(server, push)
    except Refused as error:
        raise Mismatch(f"{server.url} takes no weights ({error}); {HOW_TO_START}") from None


def _give_adapter(server: Server, push: Push) -> None:
    named = {"lora_name": push.version, "lora_path": str(push.directory)}
    server.tell("/v1/load_lora_adapter", named)
    for old in adapters(server):
        if old != push.version and old.rpartition("-")[0] == push.version.rpartition("-")[0]:
            server.tell("/v1/unload_lora_adapter", {"lora_name": old})


def _give_weights(server: Server, push: Push) -> None:
    server.post("/pause?mode=wait")
    try:
        server.post("/update_weight_version", {"new_version": f"half of {push.version}"})
        arguments = {"files": list(push.files)}
        answer = server.post("/collective_rpc", {"method": "longvideo_load", "kwargs": arguments})
        _check_taken(server, push, answer)
        for cache in CACHES:
            reset = server.post(cache)
            if isinstance(reset, dict) and reset.get("success") is False:
                raise Mismatch(f"{server.url}{cache}: old entries could not be dropped")
        server.post("/update_weight_version", {"new_version": push.version})
    finally:
        server.post("/resume")


def _check_taken(server: Server, push: Push, answer: Any) -> None:
    workers = answer.get("results") if isinstance(answer, dict) else None
    if not workers or not all(isinstance(each, dict) and "taken" in each for each in workers):
        raise Mismatch(f"{server.url}: its workers do not say what they took: {answer!r:.200}")
    for each in workers:
        if each["lost"] or each["taken"] != push.count:
            raise Mismatch(
                f"{server.url} took {each['taken']} of {push.count} weights and found no place for "
                f"{each['lost'][:3]}: it serves a model of another kind"
            )


def _holds(server: Server, push: Push) -> bool:
    if push.is_adapter:
        return push.version in adapters(server)
    answer = server.get("/weight_info")
    return isinstance(answer, dict) and answer.get("weight_version") == push.version


def adapters(server: Server) -> list[str]:
    """Return the adapters that a server has."""
    return [each["id"] for each in models(server) if each.get("parent")]


def models(server: Server) -> Sequence[dict[str, Any]]:
    """Return what a server lists at ``/v1/models``: its model first, then adapters.

    Raises:
        Mismatch: If it lists none.
    """
    answer = server.get("/v1/models", timeout_s=min(30.0, server.timeout_s))
    listed = answer.get("data") if isinstance(answer, dict) else None
    if not listed or not all(isinstance(each, dict) and "id" in each for each in listed):
        raise Mismatch(f"{server.url}/v1/models lists no model: {answer!r:.200}")
    return listed


def forget(push: Push) -> None:
    """Remove files that no server needs any more."""
    shutil.rmtree(push.directory, ignore_errors=True)
