"""Sharding: one copy of the weights over several processes, on PyTorch's FSDP2.

Every tensor that is large lies in parts: the weights of policy, critic and reference, gradients,
and what the optimisers remember. A forward or backward pass gathers a layer just before it runs,
and embeddings, last norm and head for the length of the pass; gradients are added up over all
processes and cut again. What is trained stays in single precision; passes run in ``compute``.

Two things are whole for a while, because processes do not need them at the same times: language
model and head for the length of a rollout, in the number format of the passes (``playing``), and a
frozen tower for that of a rollout or an update (``seeing``). Both are plain modules, for which
nobody has to wait.

All processes take every pass together, so each must make as many as the others: see
``agents.ppo``. Copies of modules are made before they are sharded, optimisers after.

Left out: pipeline and tensor parallelism, and offloading to main memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from agents.model.policy import MLLMPolicy
from agents.model.root import Root, hollow_copy
from agents.model.weights import WeightFiles, fill
from agents.parallel import Processes


def shard_size(shard: int, size: int, local_size: int) -> int:
    """Return how many processes hold one copy of the weights together.

    Args:
        shard: The setting: 0 for all of a machine, if they are as many on each.
        size: Processes in all.
        local_size: Processes on this machine.

    Raises:
        ValueError: If the processes cannot be shared out so.

    >>> shard_size(0, 16, 8), shard_size(0, 3, 3), shard_size(1, 4, 4)
    (8, 3, 1)
    """
    wanted = shard or (local_size if size % local_size == 0 else size)
    if size % wanted:
        fitting = [n for n in range(1, size + 1) if size % n == 0]
        raise ValueError(
            f"shard={shard}: {size} processes cannot be shared out in groups of {wanted}; use one "
            f"of {fitting}"
        )
    return wanted


class Sharding:
    """How the weights of a run lie in its processes.

    Args:
        processes: All that train together.
        shard: Processes that hold one copy together; 0 for all of a machine, 1 for a whole copy in
            each.
        compute: Number format of passes where all weights are trained; None for that of the
            weights.

    Attributes:
        on: Whether weights are sharded at all. If not, nothing here does anything.

    Raises:
        ValueError: If the processes cannot be shared out so.
    """

    def __init__(
        self, processes: Processes, shard: int = 0, compute: torch.dtype | None = None
    ) -> None:
        self.processes, self.compute = processes, compute
        self._size = shard_size(shard, processes.size, processes.local_size)
        # Passes in another number format need FSDP's casts, in one process too.
        self.on = self._size > 1 or compute is not None
        self._policy: MLLMPolicy | None = None
        self._whole = self._tower = None

    def apply(self, policy: MLLMPolicy, critic: nn.Module, reference: Root | None) -> None:
        """Shard the modules of a learner in place, and fill those that are empty.

        Args:
            policy: Its language model and head, its adapters and its tower.
            critic: With a ``head``, and a ``trunk`` where it is a model of its own.
            reference: The frozen copy, if there is one.

        Raises:
            ValueError: If the weights of an empty policy cannot be read. Whether it runs its model
                as the model runs itself is not asked, because that is a pass; see ``check``.
        """
        if not self.on:
            return
        self.processes.join()
        self._policy = policy
        compute = None if policy.lora is not None else self.compute
        visual = policy.base.model.visual
        if compute is not None:
            frozen = [reference, None if policy.train_vision else visual]
            for weight in (
                p for module in frozen if module is not None for p in module.parameters()
            ):
                # Not module.to: positions are worked out from tensors that are no weights.
                weight.data = weight.data.to(compute)
        if not policy.train_vision:
            self._tower = Whole(visual, policy.device)
            policy.encoder.visual = self._tower.modules
        self._whole = Whole(policy.root, policy.device, compute)
        empty = policy.is_empty
        mesh = self._make_mesh()
        trunk: Any = getattr(critic, "trunk", None)
        roots = [root for root in (policy.root, trunk, reference) if root is not None]
        for root in roots:
            language: Any = root["language"]
            _shard(root, language.layers, mesh, compute)
        _shard(critic.get_submodule("head"), (), mesh, None)
        if not policy.train_vision:
            _shard(visual, (), mesh, None)
        if empty:
            self._fill(policy, roots)

    def _make_mesh(self) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        kind, size = self.processes.device.type, self.processes.size
        if size == self._size:
            return init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
        shape = (size // self._size, self._size)
        return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))

    def _fill(self, policy: MLLMPolicy, roots: Iterable[Root]) -> None:
        """Read the weights of modules that were laid out only, each process its parts."""
        base, device = policy.base, policy.device
        names = [name for name, _ in base.named_parameters() if ".lora_" not in name]
        places = WeightFiles(base.name_or_path).named(
            (name.replace(".base_layer", "") for name in names), policy.tied
        )
        towers = [] if policy.train_vision else [Root({"visual": base.model.visual})]
        prefixes = {"language": "model.language_model.", "head": "lm_head.",
                    "visual": "model.visual."}  # fmt: skip
        for root in (*roots, *towers):
            root._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))
            for part, module in root.items():
                tied = part == "head" and f"{prefixes[part]}weight" not in places
                if not tied:
                    fill(module, prefixes[part], places)

    def check(self, policy: MLLMPolicy) -> None:
        """Compare a policy that was empty with its model; all processes must do so together.

        Raises:
            ValueError: If it would run the model otherwise than the model runs itself.
        """
        with self.seeing():
            policy.check()

    @contextmanager
    def seeing(self) -> Iterator[None]:
        """Keep a frozen tower whole; all processes must enter together."""
        if self._tower is None or self._policy is None:
            yield
            return
        with self._tower.gathered(self._policy.base.model.visual):
            yield

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Keep all of the policy whole, for rollouts; all processes must enter together.

        It may be left at any time: nothing is exchanged at the end.
        """
        policy, whole = self._policy, self._whole
        if policy is None or whole is None:
            yield
            return
        with self.seeing(), whole.gathered(policy.root), policy.using(whole.modules):
            yield


class Whole:
    """A plain copy of modules that are about to be sharded, with weights only while it is used.

    Args:
        modules: Not sharded yet.
        device: Of the copy.
        dtype: Number format of the copy; None for that of the weights.

    Attributes:
        modules: The copy.
    """

    def __init__(
        self, modules: nn.Module, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        self.modules: Any = hollow_copy(modules, device)
        self._dtype = dtype
        self._users = 0

    @contextmanager
    def gathered(self, sharded: nn.Module) -> Iterator[None]:
        """Hold the weights of the sharded modules; they are gathered unless they are here."""
        if not self._users:
            self._take(sharded)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._drop()

    @torch.no_grad()
    def _take(self, sharded: nn.Module) -> None:
        known: dict[int, nn.Parameter] = {}
        for ours, theirs in zip(self.modules.modules(), sharded.modules(), strict=True):
            for name, parameter in theirs.named_parameters(recurse=False):
                if id(parameter) not in known:  # modules may share a weight
                    weight = whole(parameter, self._dtype)
                    known[id(parameter)] = nn.Parameter(weight, requires_grad=False)
                ours._parameters[name] = known[id(parameter)]

    def _drop(self) -> None:
        kept: dict[int, nn.Parameter] = {}
        for module in self.modules.modules():
            for name, weight in module.named_parameters(recurse=False):
                if id(weight) not in kept:
                    hollow = torch.empty_like(weight, device="meta")
                    kept[id(weight)] = nn.Parameter(hollow, requires_grad=False)
                module._parameters[name] = kept[id(weight)]
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # passes ask for pieces of other sizes


def whole(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a tensor whole, however it is sharded; all processes must ask together.

    Args:
        tensor: Sharded or not.
        dtype: Number format of the result; None for its own.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach().to(dtype or tensor.dtype)
    local = tensor.to_local().detach()
    cast = DTensor.from_local(
        local.to(dtype or local.dtype),
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
    return cast.full_tensor()


def _shard(
    module: nn.Module, layers: Iterable[nn.Module], mesh: Any, compute: torch.dtype | None
) -> None:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mixed = MixedPrecisionPolicy(
        param_dtype=compute, reduce_dtype=None if compute is None else torch.float32
    )
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ValueError(
            f"torch {torch.__version__} cannot add up the gradients of sharded weights as sums; "
            "install a newer one (2.13 is known to work), or use shard=1"
        )
    for each in (*layers, module):
        fully_shard(each, mesh=mesh, mp_policy=mixed, reshard_after_forward=True)
    for each in module.modules():
        if isinstance(each, FSDPModule):
            # Losses are sums over all processes, and gloo cannot divide while it adds.
            each.set_gradient_divide_factor(1.0)
            each.set_force_sum_reduction_for_comms(True)
