"""Plan: what a training run needs, worked out from its configuration alone.

Nothing is loaded: a model is built on PyTorch's meta device, where tensors have shapes and no
memory. In reading order:

    published.py    architectures of models that people publish, by hub id
    sizes.py        Sizes: what a model's weights and widths come to, part by part
    workload.py     Workload: the tokens of an episode, and of the batches made of them
    passes.py       bytes that a forward or backward pass takes, token by token
    moments.py      MemoryPlan: bytes of a process by part, at some moments
    memory.py       works it out
    work.py         Work: FLOP of an iteration, by phase
    limits.py       what cards and this machine hold
    advice.py       which setting to change so that a run fits
    table.py        plans as text, Markdown and JSON
    refusal.py      a run that cannot fit is refused before its model is loaded

``longvideo plan`` is the command. Left out: what depends on the kernels that a library picks, such
as the workspace of convolutions; a share of the memory stands for it, under the name of runtime.
"""
