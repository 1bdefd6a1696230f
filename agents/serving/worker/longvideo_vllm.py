"""Runs inside vLLM's workers and takes weights from files that a trainer has written.

Started with ``PYTHONPATH=.../agents/serving/worker vllm serve ... --worker-extension-cls
longvideo_vllm.PushedWeights``. It stands alone: vLLM's environment needs nothing else of ours.
Written for vLLM 0.32.
"""

from __future__ import annotations

from typing import Any


class PushedWeights:
    """What ``/collective_rpc`` reaches in every worker; vLLM mixes it into its own class."""

    def longvideo_load(self, files: list[str]) -> dict[str, Any]:
        """Load weights from safetensors files.

        Returns:
            ``taken``: how many found their place; ``lost``: the names of those that found none.
        """
        import torch
        from safetensors import safe_open
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        worker: Any = self
        model = worker.model_runner.get_model()
        taken, lost = 0, []
        with set_current_vllm_config(worker.vllm_config), torch.no_grad():
            initialize_layerwise_reload(model)
            try:
                for file in files:
                    with safe_open(file, "pt") as stream:
                        for name in stream.keys():
                            # One at a time: vLLM passes over names that it does not know, and says
                            # only which of its own weights it has filled.
                            if model.load_weights([(name, stream.get_tensor(name))]):
                                taken += 1
                            else:
                                lost.append(name)
            finally:
                finalize_layerwise_reload(model, worker.model_runner.model_config)
            _repack_heads(model)
        return {"taken": taken, "lost": lost}


def _repack_heads(model: Any) -> None:
    """On a CPU a head goes on with its packed copy of the old weights, above all a tied one."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for module in model.modules():
        kind = type(module).__name__
        if kind in ("VocabParallelEmbedding", "ParallelLMHead") and hasattr(module, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
