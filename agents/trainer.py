"""Trainer: collect, learn, log; evaluate and save now and then.

Step i of every number is the policy after i updates: evaluated, then sampled from, then updated. A
checkpoint is always taken between iterations, so a run that goes on from one repeats nothing and
leaves nothing out; on a CPU it is the very same run, bit by bit. To that end features of frames are
forgotten between iterations: encoding a frame in another company changes its last bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.checkpoint import CheckpointError, Checkpoints, find, fingerprint_of, restore
from agents.config import TrainConfig
from agents.curriculum import RetrievalBonus
from agents.evaluation import Evaluation, Tally, evaluation_tasks
from agents.interrupts import Interrupts, Stopped
from agents.logbook import Logbook, Progress, run_directory
from agents.metrics import of_learning, of_rollout
from agents.model.policy import MLLMPolicy
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.rollout import RolloutCollector, TrainingOrder, play
from agents.source import check_frames, frame_cost, frame_tokens
from agents.trajectory import Trajectory
from gym_longvideo.command import check_directory
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.suite import is_annotation
from gym_longvideo.wrappers import TextProtocol

logger = logging.getLogger(__name__)


class Trainer:
    """One training run.

    Args:
        config: All settings.
        policy: A policy that is loaded already; by default the configuration's.
        processes: Peers that train together; by default those that the launcher started.

    Attributes:
        step: Iterations done.
        evaluation: The latest evaluation, if there was one.
        out: Directory of the run.

    Raises:
        ValueError: For settings that have no meaning together.
        CheckpointError: If there is nothing to resume, or it is of another model.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        policy: MLLMPolicy | None = None,
        processes: Processes | None = None,
    ) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.processes = processes or Processes(config.device)
        self.share = config.share(self.processes.size)
        resumed = find(config.resume) if config.resume else None
        self.out = run_directory(config.out, resumed)
        # What costs little comes first: a slip is told before a model is loaded.
        splits = [config.split, *([config.eval_split] if config.eval_every else [])]
        count = config.envs or self.share
        envs = [[config.make_env(split) for _ in range(count)] for split in splits]
        if self.processes.main:
            check_directory(self.out)
        torch.manual_seed(config.seed)  # adapters and heads start alike in all processes
        seen = _base(envs[0][0]).viewer.settings
        frame_size = seen.frame_shape if seen.max_pixels is None else None
        self.policy = policy or config.load_policy(self.processes.device, frame_size)
        grid = self.policy.codec.grid
        unit = grid.patch * grid.merge
        check_frames(seen, unit, config.model)
        if frame_size is not None:
            grid.tokens(*frame_size)  # or no frame can be read
        self.policy.remember(self.share * seen.budget.total, frame_tokens(seen, unit))
        if self.processes.main:
            if config.preset == "tiny" and config.source.is_large:
                logger.warning(
                    "preset='tiny' is for models of a million parameters, and %s is large: it "
                    "trains in float32 at its learning rate, with replies of %d tokens at most; "
                    "use preset='recommended', or make_train_config(model=%r)",
                    config.model, config.max_new_tokens, config.model,
                )  # fmt: skip
            logger.info("%s", frame_cost(seen, unit))
        bonus = RetrievalBonus(config.bonus_stages, config.bonus_patience) if config.bonus else None
        self.learner = PPOLearner(
            self.policy, config.ppo, bonus=bonus, seed=config.seed, processes=self.processes
        )
        self.fingerprint = fingerprint_of(self.learner)
        rank = self.processes.rank
        self.generator = torch.Generator(self.policy.device)
        self.generator.manual_seed(
            int(np.random.SeedSequence([config.seed, rank]).generate_state(1)[0])
        )
        collectors = [
            self._collector(each, split) for each, split in zip(envs, splits, strict=True)
        ]
        self.collector = collectors[0]
        self.examiner = collectors[1] if config.eval_every else None
        self.order = TrainingOrder(
            _suite_size(self.collector), config.seed, rank, self.processes.size
        )
        if self.processes.main and is_annotation(config.suite):
            for split, each in zip(splits, envs, strict=True):
                suite = _base(each[0]).suite
                videos = {suite[index].video for index in range(len(suite))}
                logger.info("%s: %d tasks of %d videos", split, len(suite), len(videos))
        self.pending: list[int] = []
        self.evaluation: Evaluation | None = None
        self.step = 0
        self.interrupts = Interrupts(quiet=not self.processes.main)
        self.checkpoints = Checkpoints(self.out, config.keep)
        self._saved = -1
        if resumed is not None:
            self._resume(resumed)
        self.logbook: Logbook | None = None
        self.progress = Progress(0, 1.0, quiet=True)

    @property
    def stopped_by(self) -> int:
        """The signal that ended the run early, 0 if none did."""
        return self.interrupts.signum

    def run(self) -> Evaluation | None:
        """Train to the end, or until a signal; leave a checkpoint behind.

        Returns:
            The last evaluation, if there was one.

        Raises:
            CheckpointError: If a checkpoint could not be written. Training stops there; everything
                that was written before is intact.
        """
        config, main = self.config, self.processes.main
        if main:
            self.logbook = Logbook(self.out, step=self.step)
            self.logbook.config(replace(config, out=str(self.out), resume="").to_json())
        self.progress = Progress(config.iterations, config.seconds, step=self.step, quiet=not main)
        began = time.monotonic()
        try:
            with self.interrupts:
                while not self._finished(began):
                    if not self.iterate():
                        break
                else:
                    if self.examiner is not None and self._may_go_on():
                        self._log(self.evaluate() or {})
                self.save()
        finally:
            self.close()
        return self.evaluation

    def iterate(self) -> bool:
        """Evaluate if it is time, then collect, learn, log, and save if it is time.

        Returns:
            False if a signal came before the policy was updated; then nothing has changed.
        """
        config, metrics = self.config, {}
        if config.eval_every and self.step % config.eval_every == 0:
            evaluated = self.evaluate()
            if evaluated is None:
                return False
            metrics |= evaluated
        before = self.worker_state()
        began = time.perf_counter()
        episodes = self.collect()
        if not self._may_go_on():
            self.load_worker_state(before)
            return False
        rollout_s = time.perf_counter() - began
        metrics |= of_rollout(self.collector, episodes, rollout_s, self.processes)
        self.progress.phase("learning")
        metrics |= of_learning(self.learner.update(episodes))
        self._log(metrics)
        self.step += 1
        self.progress.step(
            self.step,
            accuracy=metrics["charts/accuracy"],
            **{"return": metrics["charts/return"]},
            retrieving=metrics["charts/retrieval_rate"],
            kl=metrics.get("losses/approx_kl", 0.0),
        )
        if config.save_every and self.step % config.save_every == 0:
            self.save()
        return True

    def collect(self) -> list[Trajectory]:
        """Play this iteration's episodes; those a signal cut off are not returned."""
        self.policy.encoder.clear()
        tasks = self.pending or self._draw()
        self.pending = self._draw()
        skipped = len(self.collector.skipped)
        try:
            with self.interrupts.abandonable():
                episodes = self.collector.collect(
                    tasks,
                    self.config.sampling,
                    self.generator,
                    replacement=self.order.next,
                    upcoming=self.pending,
                    progress=self._counting("rollout", len(tasks)),
                )
        except Stopped:
            return []
        for task, why in self.collector.skipped[skipped:]:
            logger.warning("task %d was skipped: %s", task, why)
        return episodes

    def evaluate(self) -> dict[str, float] | None:
        """Play the held-out episodes greedily and write samples and records.

        Returns:
            Metrics, or None if a signal cut it short.
        """
        assert self.examiner is not None
        config, began = self.config, time.perf_counter()
        self.policy.encoder.clear()
        tasks, spare = evaluation_tasks(
            _suite_size(self.examiner), config.eval_episodes, self.processes
        )
        lines: list[str] = []
        samples: list[Trajectory] = []

        def keep(episodes: Sequence[Trajectory]) -> None:
            lines.extend(each.record.to_json() for each in episodes if each.record is not None)
            samples.extend(episodes[: config.samples - len(samples)])

        try:
            with self.interrupts.abandonable():
                tally = play(
                    self.examiner,
                    tasks,
                    config.sampling,
                    spare=spare,
                    keep=keep,
                    progress=self._counting("evaluation", len(tasks)),
                )
        except Stopped:
            tally = Tally()
        if not self._may_go_on():
            return None
        self.evaluation = tally.result(self.processes)
        everyones = self.processes.gather(lines)
        if self.logbook is not None:
            self.logbook.records(self.step, [line for part in everyones for line in part])
            for i, episode in enumerate(samples):
                self.logbook.sample(self.step, str(i), episode, self.policy.codec)
        values = {f"eval/{name}": float(value) for name, value in asdict(self.evaluation).items()}
        return {**values, "time/eval": time.perf_counter() - began}

    def save(self) -> None:
        """Write a checkpoint, unless this step has one.

        Raises:
            CheckpointError: In every process, if it cannot be written.
        """
        if self._saved == self.step:
            return
        self.progress.phase("saving")
        workers = self.processes.gather(self.worker_state())
        failure: CheckpointError | None = None
        if self.processes.main:
            try:
                self.checkpoints.save(
                    self.step,
                    self.learner,
                    config=self.config,
                    fingerprint=self.fingerprint,
                    workers=workers,
                )
            except CheckpointError as error:
                failure = error
        if self.processes.total(failure is not None)[0]:
            raise failure or CheckpointError("the main process could not write a checkpoint")
        self._saved = self.step

    def worker_state(self) -> dict[str, Any]:
        """Return what this process needs to go on from here: random numbers and tasks.

        Nothing draws from numpy's global generator; minibatches have one of their own a step.
        """
        return {
            "count": self.order.count,
            "pending": list(self.pending),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
        }

    def load_worker_state(self, state: dict[str, Any]) -> None:
        """Go on from what ``worker_state`` returned."""
        self.order.count = int(state["count"])
        self.pending = [int(task) for task in state["pending"]]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])

    def close(self) -> None:
        """Stop threads, close environments and files."""
        self.progress.close()
        self.collector.close()
        if self.examiner is not None:
            self.examiner.close()
        if self.logbook is not None:
            self.logbook.close()

    def _resume(self, path: Path) -> None:
        workers = restore(path, self.learner, self.fingerprint)
        if len(workers) != self.processes.size:
            raise CheckpointError(
                f"checkpoint {path} is of {len(workers)} processes, this run has "
                f"{self.processes.size}; start as many"
            )
        self.load_worker_state(workers[self.processes.rank])
        if len(self.pending) != self.share:  # the batch has another size now
            self.order.count -= len(self.pending)
            self.pending = []
        self.step = self._saved = self.learner.step
        logger.info("resumed %s at step %d", path, self.step)

    def _collector(self, envs: list[TextProtocol], split: str) -> RolloutCollector:
        return RolloutCollector(
            envs,
            self.policy,
            history=self.config.ppo.history,
            keep_records=split == self.config.eval_split,
        )

    def _draw(self) -> list[int]:
        return [self.order.next() for _ in range(self.share)]

    def _log(self, metrics: dict[str, float]) -> None:
        if self.logbook is not None and metrics:
            self.logbook.write(self.step, metrics)

    def _may_go_on(self) -> bool:
        """Return whether no process got a signal; all get the same answer."""
        return not self.processes.total(bool(self.interrupts.signum))[0]

    def _finished(self, began: float) -> bool:
        config = self.config
        late = self.processes.main and 0 < config.seconds <= time.monotonic() - began
        stop = self.processes.total(bool(self.interrupts.signum) or late)[0]
        return bool(stop) or 0 < config.iterations <= self.step

    def _counting(self, phase: str, total: int) -> Any:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.progress.phase(phase, done, total)

        count(0)
        return count


def _base(env: TextProtocol) -> LongVideoQAEnv:
    base = env.unwrapped
    assert isinstance(base, LongVideoQAEnv)
    return base


def _suite_size(collector: RolloutCollector) -> int:
    return len(_base(collector.envs[0]).suite)
