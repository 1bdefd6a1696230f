"""Refusal: a run that cannot fit is refused before its model is loaded."""

from __future__ import annotations

import logging
import math

import torch

from agents.config import TrainConfig
from agents.parallel import Processes
from agents.plan.advice import advise
from agents.plan.limits import main_memory
from agents.plan.memory import plan_memory
from agents.plan.moments import GIB, Place

logger = logging.getLogger(__name__)
MARGIN = 0.1  # of the limit, in which a plan is too near to tell


def refuse_what_cannot_fit(config: TrainConfig, processes: Processes) -> None:
    """Refuse a run that needs more memory than there is; warn of one that may.

    On a GPU the limit is the memory of the card, on a CPU this process's share of the main memory
    that is available. Where that is not known, or the model cannot be planned, the run goes on.

    Args:
        config: Of the run.
        processes: Of the run.

    Raises:
        ValueError: In every process, if one needs over a tenth more than it has, naming need,
            limit, and what to change.
    """
    gpu = processes.device.type == "cuda"
    place = Place(processes.size, processes.local_size, gpu)
    need = extra = 0.0
    where = ""
    try:
        peak = plan_memory(config, place).peak
        where = f"{peak.phase}: {peak.name}"
        need = peak.total if gpu else peak.tensors  # on a CPU this process is there already
        extra = peak.total - need
    except Exception as error:  # a plan must never keep a model from being trained
        logger.info("the memory of this run is not planned: %s", error)
    if gpu:
        limit = float(torch.cuda.mem_get_info(processes.device)[1])
    else:
        available = main_memory()
        limit = (
            math.inf if available is None else available / min(place.processes, place.per_machine)
        )
    # All go on, or none: what is left differs from process to process.
    found = processes.gather((need, limit))
    need, limit = max(need for need, _ in found), min(limit for _, limit in found)
    if need <= (1 - MARGIN) * limit:
        return
    text = (
        f"this run needs about {need / GIB:.3g} GiB in each process ({where}), and one here "
        f"has {limit / GIB:.3g}"
    )
    if need <= (1 + MARGIN) * limit:
        logger.warning("%s; it may run out of memory", text)
        return
    change = advise(config, place, limit + extra)
    remedy = "use a smaller model"
    if change is not None:
        remedy = f"use {change.options}"
        if "--gpus" in change.options:
            remedy += ", that is so many processes"
    raise ValueError(f"{text}; {remedy} (longvideo plan says more)")
