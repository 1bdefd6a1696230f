"""Keeper: when a run is saved, and what is left of it when it breaks.

What is saved always stands between two iterations, so that the run can go on from there as if
nothing had happened.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from agents.checkpoint import Checkpoints
from agents.config import TrainConfig
from agents.keeping.divergence import DivergedError
from agents.keeping.fingerprint import fingerprint_of
from agents.keeping.restoring import restore
from agents.keeping.saved import CheckpointError, checkpoints
from agents.parallel import Processes
from agents.ppo import PPOLearner

logger = logging.getLogger(__name__)


class Keeper:
    """Saves a run, from all of its processes or, when it breaks, from the main one alone.

    Args:
        config: All settings.
        learner: Before it is trained.
        processes: All that train together.

    Attributes:
        workers: What each process needs to go on from the last iteration's end, by rank.
        whole: Whether the learner stands between two iterations.
    """

    def __init__(self, config: TrainConfig, learner: PPOLearner, processes: Processes) -> None:
        self.config, self.learner, self.processes = config, learner, processes
        self.fingerprint = fingerprint_of(learner)
        self.workers: list[dict[str, Any]] = []
        self.whole = True
        self._saved = -1
        self.start()

    def start(self) -> None:
        """Start the clock of ``save_minutes``."""
        self._since = time.monotonic()

    def resume(self, path: Path) -> list[dict[str, Any]]:
        """Put the learner where a checkpoint left it; return what each process kept, by rank.

        Raises:
            CheckpointError: If it is damaged, or of another model.
        """
        workers = restore(path, self.learner, self.fingerprint)
        self._saved = self.learner.step
        return workers

    def is_due(self, step: int) -> bool:
        """Return whether it is time for a checkpoint, in all processes alike."""
        config, limit_s = self.config, 60 * self.config.save_minutes
        if config.save_every and step % config.save_every == 0:
            return True
        return bool(limit_s) and self.processes.by_clock(time.monotonic() - self._since >= limit_s)

    def save(self, where: Checkpoints, step: int) -> None:
        """Write a checkpoint, unless this step has one.

        Raises:
            CheckpointError: In every process, if it cannot be written.
            DivergedError: If weights are not finite.
        """
        if self._saved == step:
            return
        self.learner.check(f"at step {step}")
        if self.learner.sharding.on:
            self._write(where, step)
        else:
            self.processes.by_main(lambda: self._write(where, step))
        self._saved = step
        self.start()

    def rescue(self, where: Checkpoints, step: int, error: BaseException) -> None:
        """Leave a checkpoint of a run that broke. Asks no other process: they may be gone.

        None is left of a learner in the midst of an update, of one that holds what is not finite,
        and, if there is one from before, of one that has just diverged. Weights that are sharded
        can be saved only if all processes broke together, as by a fault that one of them told the
        others; else the checkpoint that was being written is what remains.
        """
        sharded = self.learner.sharding.on
        if wrong := where.settle():
            logger.error("%s", wrong)
        if not (self.processes.agreed if sharded else self.processes.main):
            return
        diverged = isinstance(error, DivergedError) and checkpoints(where.directory)
        if self._saved == step or not self.whole or diverged:
            return
        names = self.learner.not_finite()
        if self.processes.total(len(names))[0] if sharded else names:
            return
        try:
            self._write(where, step)
            if sharded:
                where.finish()
        except CheckpointError as second:
            logger.error("%s", second)
        else:
            if self.processes.main:
                logger.warning("the run broke at step %d, which is saved", step)

    def _write(self, where: Checkpoints, step: int) -> None:
        where.save(
            step,
            self.learner,
            config=self.config,
            fingerprint=self.fingerprint,
            workers=self.workers,
        )
