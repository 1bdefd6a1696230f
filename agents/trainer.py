"""Trainer: collect, learn, log; evaluate and save now and then.

Step i of every number is the policy after i updates: evaluated, then sampled from, then updated. A
checkpoint is always taken between iterations, so a run that goes on from one repeats nothing and
leaves nothing out; on a CPU, and with as many processes, it is the very same run, bit by bit. To
that end features of frames are forgotten between iterations: encoding a frame in another company
changes its last bits. What each process plays and learns is the affair of ``dealing``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from agents.checkpoint import Checkpoints
from agents.config import TrainConfig
from agents.curriculum import RetrievalBonus
from agents.dealing.deal import deal_out
from agents.evaluation import Evaluation, Tally, check_held_out, evaluation_tasks
from agents.keeping.directory import Hold, claim
from agents.keeping.divergence import not_finite, refuse
from agents.keeping.interrupts import Interrupts, Stopped
from agents.keeping.keeper import Keeper
from agents.keeping.saved import CheckpointError
from agents.keeping.undo import Undo
from agents.logbook import Logbook, Progress
from agents.metrics import of_learning, of_rollout
from agents.model.policy import MLLMPolicy
from agents.parallel import Processes
from agents.plan.refusal import refuse_what_cannot_fit
from agents.ppo import PPOLearner
from agents.rollout import RolloutCollector, play
from agents.serving.continuous import ContinuousCollector
from agents.serving.fleet import Fleet, open_fleet
from agents.sharding import Sharding
from agents.source import check_frames, frame_cost, frame_tokens
from agents.trajectory import Trajectory
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.haystack.suite import HaystackSuite
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
        stopped_by: The signal that ended the run early, in whichever process it arrived; 0 if none.

    Raises:
        ValueError: For settings that have no meaning together, or need more memory than there is.
        CheckpointError: If there is nothing to resume, or it is of another model.
        RunError: If another process writes to the directory, or nothing can be written there.
        DivergedError: If the model holds weights that are not finite.
        ServerError: If servers are to play and do not answer, or do not run the model as it is
            trained.
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
        compute = config.compute_dtype(self.processes.device.type)
        self.sharding = Sharding(self.processes, config.shard, compute)
        # What costs little comes first: a slip is told before a model is loaded.
        splits = [config.split, *([config.eval_split] if config.eval_every else [])]
        count = config.envs or self.share
        envs = [[config.make_env(split) for _ in range(count)] for split in splits[:1]]
        if config.eval_every:
            envs.append([config.make_env("", held_out=True) for _ in range(count)])
            trained, evaluated = (_base(each[0]).suite for each in envs)
            check_held_out(trained, evaluated, config.suite_options)
        self._hold: Hold | None = None  # of the main process alone
        if policy is None:
            refuse_what_cannot_fit(config, self.processes)
        self.fleet: Fleet | None = None
        self.out, resumed = self.processes.by_main(self._claim)
        try:
            self._set_up(policy, splits, envs, resumed)
        except BaseException:
            if self.fleet is not None:
                self.fleet.close()
            if self._hold is not None:
                self._hold.abandon()
            raise

    def _claim(self) -> tuple[Path, Path | None]:
        self._hold, resumed = claim(self.config.out, self.config.resume)
        return self._hold.directory, resumed

    def _set_up(
        self,
        policy: MLLMPolicy | None,
        splits: list[str],
        envs: list[list[TextProtocol]],
        resumed: Path | None,
    ) -> None:
        config, serving = self.config, self.config.serving
        torch.manual_seed(config.seed)  # adapters and heads start alike in all processes
        if config.lora_rank and self.processes.device.type == "cuda":
            # All weights, where they are trained, are in single precision for a reason.
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        seen = _base(envs[0][0]).viewer.settings
        frame_size = seen.frame_shape if seen.max_pixels is None else None
        self.policy = policy or config.load_policy(
            self.processes.device, frame_size, empty=self.sharding.on
        )
        grid = self.policy.codec.grid
        unit = grid.patch * grid.merge
        check_frames(seen, unit, config.model)
        if frame_size is not None:
            grid.tokens(*frame_size)  # or no frame can be read
        self.policy.remember(self.share * seen.budget.total, frame_tokens(seen, unit))
        if self.processes.main:
            _announce(config, self.policy, splits, envs)
        bonus = RetrievalBonus(config.bonus_stages, config.bonus_patience) if config.bonus else None
        self.learner = PPOLearner(
            self.policy,
            config.ppo,
            bonus=bonus,
            seed=config.seed,
            processes=self.processes,
            sharding=self.sharding,
            rollout_gap_limit=serving.rollout_gap_limit if serving.by_servers else None,
        )
        odd = self.processes.gather(not_finite(self.policy.base.named_parameters()))
        refuse([name for names in odd for name in names], "before training")
        if policy is None and self.sharding.on:  # what was loaded whole was asked then
            self.sharding.check(self.policy)
        self.keeper = Keeper(config, self.learner, self.processes)
        workers = self.keeper.resume(resumed) if resumed is not None else None
        if serving.by_servers:
            self.fleet = open_fleet(
                serving,
                self.learner,
                self.processes,
                out=self.out,
                images=seen.budget.total,
                frame_size=frame_size,
            )
        collectors = [self._collector(each, held_out) for held_out, each in enumerate(envs)]
        self.collector = collectors[0]
        self.examiner = collectors[1] if config.eval_every else None
        self.dealing = deal_out(
            _suite_size(self.collector),
            config.batch,
            config.seed,
            self.processes,
            self.policy.device,
            workers,
        )
        self.learner.minibatches = self.dealing.minibatches
        self.evaluation: Evaluation | None = None
        self.step = self.learner.step
        self.stopped_by = 0
        self.interrupts = Interrupts(quiet=not self.processes.main)
        self.checkpoints = Checkpoints(self.out, config.keep, self.processes)
        if resumed is not None:
            logger.info("resumed %s at step %d", resumed, self.step)
        self.keeper.workers = self.processes.gather(self.dealing.state())
        self.logbook: Logbook | None = None
        self.progress = Progress(0, 1.0, quiet=True)

    def run(self) -> Evaluation | None:
        """Train to the end, or until a signal; leave a checkpoint behind, whatever ends it.

        Returns:
            The last evaluation, if there was one.

        Raises:
            CheckpointError: If a checkpoint could not be written. Training stops there; everything
                that was written before is intact.
            DivergedError: If weights are not finite, or no step can be taken any more. The last
                checkpoint is one from before.
            VideoError: If a hundred videos in a row cannot be opened.
            RunError: If the log cannot be written.
            ProcessError: If another process of the run failed.
            ServerError: If servers play, and none answers any more or one does not do as asked.
            RolloutGapError: If servers play with other weights than those that are trained.
        """
        config, main = self.config, self.processes.main
        try:
            if main:
                self.logbook = Logbook(self.out, step=self.step)
                self.logbook.config(replace(config, out=str(self.out), resume="").to_json())
            self.progress = Progress(
                config.iterations, config.seconds, step=self.step, quiet=not main
            )
            began = time.monotonic()
            self.keeper.start()
            with self.interrupts:
                try:
                    while not self._finished(began):
                        if not self.iterate():
                            break
                    else:
                        if self.examiner is not None and self._may_go_on():
                            self._log(self.evaluate() or {})
                    self.save()
                    self.checkpoints.finish()
                except CheckpointError:
                    raise
                except BaseException as error:
                    self.keeper.rescue(self.checkpoints, self.step, error)
                    raise
        finally:
            self.close()
        return self.evaluation

    def iterate(self) -> bool:
        """Evaluate if it is time, then collect, learn, log, and save if it is time.

        Returns:
            False if a signal came before the policy was updated; then nothing has changed.

        Raises:
            Exception: Whatever broke, after what had changed was put back.
        """
        config, metrics = self.config, {}
        self.learner.check(f"at step {self.step}")
        if config.eval_every and self.step % config.eval_every == 0:
            evaluated = self.evaluate()
            if evaluated is None:
                return False
            metrics |= evaluated
        before = self.dealing.state()
        try:
            workers = self._advance(metrics)
        except BaseException:
            self.dealing.load(before)
            raise
        if workers is None:
            self.dealing.load(before)
            return False
        self.step, self.keeper.workers = self.step + 1, workers
        self.progress.step(
            self.step,
            accuracy=metrics["charts/accuracy"],
            **{"return": metrics["charts/return"]},
            retrieving=metrics["charts/retrieval_rate"],
            kl=metrics.get("losses/approx_kl", 0.0),
        )
        if self.keeper.is_due(self.step):
            self.save()
        return True

    def _advance(self, metrics: dict[str, float]) -> list[dict[str, Any]] | None:
        """Collect, learn, and log; a learner that broke is put back as it was.

        Returns:
            What each process needs to go on from here, or None if a signal came before the policy
            was updated.
        """
        began = time.perf_counter()
        episodes, failure = [], None
        try:
            episodes = self.collect()
        except Exception as error:
            failure = error
        self.processes.agree(failure)
        if not self._may_go_on():
            return None
        rollout_s = time.perf_counter() - began
        metrics |= of_rollout(self.collector, episodes, rollout_s, self.processes)
        self.progress.phase("learning")
        undo = Undo(self.learner)
        try:
            metrics |= of_learning(self.learner.update(episodes))
            self._log(metrics)
            return self.processes.gather(self.dealing.state())
        except BaseException:
            self.keeper.whole = undo.possible
            undo()
            raise

    def collect(self) -> list[Trajectory]:
        """Play this iteration's episodes; those a signal cut off are not returned."""
        self.policy.encoder.clear()
        tasks = self.dealing.deal()
        skipped = len(self.collector.skipped)
        try:
            with self._playing(), self.interrupts.abandonable():
                episodes = self.collector.collect(
                    tasks,
                    self.config.sampling,
                    self.dealing.generator(self.step),
                    replacement=self.dealing.replacement,
                    places=self.dealing.places,
                    upcoming=self.dealing.pending,
                    progress=self._counting("rollout", len(tasks)),
                )
        except Stopped:
            return []
        _warn_of(self.collector.skipped[skipped:])
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

        skipped, tally, failure = len(self.examiner.skipped), Tally(), None
        try:
            with self._playing(), self.interrupts.abandonable():
                tally = play(
                    self.examiner,
                    tasks,
                    config.sampling,
                    spare=spare,
                    keep=keep,
                    progress=self._counting("evaluation", len(tasks)),
                )
        except Stopped:
            pass
        except Exception as error:
            failure = error
        self.processes.agree(failure)
        if not self._may_go_on():
            return None
        _warn_of(self.examiner.skipped[skipped:])
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
            DivergedError: If weights are not finite.
        """
        self.progress.phase("saving")
        self.keeper.save(self.checkpoints, self.step)

    def close(self) -> None:
        """Stop threads, close environments and files, and let others write to the directory."""
        with ExitStack() as last:
            if self._hold is not None:
                last.callback(self._hold.release)
            if self.logbook is not None:
                last.callback(self.logbook.close)
            if self.examiner is not None:
                last.callback(self.examiner.close)
            last.callback(self.collector.close)
            if self.fleet is not None:
                last.callback(self.fleet.close)
            self.progress.close()

    def _collector(self, envs: list[TextProtocol], held_out: int) -> RolloutCollector:
        history, keep_records = self.config.ppo.history, bool(held_out)
        if self.fleet is not None:
            session = self.fleet.session
            return ContinuousCollector(
                envs, self.policy, session=session, history=history, keep_records=keep_records
            )
        return RolloutCollector(envs, self.policy, history=history, keep_records=keep_records)

    def _playing(self) -> AbstractContextManager[None]:
        """Have whoever plays hold the weights as they are; all processes must ask together."""
        if self.fleet is None:
            return self.sharding.playing()
        self.fleet.sync(self.interrupts.abandonable)
        return nullcontext()

    def _log(self, metrics: dict[str, float]) -> None:
        if self.logbook is not None and metrics:
            self.logbook.write(self.step, metrics)

    def _may_go_on(self) -> bool:
        """Return whether no process got a signal; all get the same answer."""
        self.stopped_by = int(self.processes.largest(self.interrupts.signum))
        return not self.stopped_by

    def _finished(self, began: float) -> bool:
        config = self.config
        late = 0 < config.seconds <= time.monotonic() - began
        stop = self.processes.by_clock(late) or not self._may_go_on()
        return stop or 0 < config.iterations <= self.step

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


def _warn_of(skipped: Sequence[tuple[int, str]]) -> None:
    for task, why in skipped:
        logger.warning("task %d was skipped: %s", task, why)


def _announce(
    config: TrainConfig, policy: MLLMPolicy, splits: list[str], envs: list[list[TextProtocol]]
) -> None:
    """Say what is about to be trained, and what frames cost."""
    if config.preset == "tiny" and config.source.is_large:
        logger.warning(
            "preset='tiny' is for models of a million parameters, and %s is large: it "
            "trains in float32 at its learning rate, with replies of %d tokens at most; "
            "use preset='recommended', or make_train_config(model=%r)",
            config.model, config.max_new_tokens, config.model,
        )  # fmt: skip
    grid = policy.codec.grid
    logger.info("%s", frame_cost(_base(envs[0][0]).viewer.settings, grid.patch * grid.merge))
    if not isinstance(_base(envs[0][0]).suite, HaystackSuite):
        for split, each in zip(splits, envs, strict=True):
            suite = _base(each[0]).suite
            videos = {suite[index].video for index in range(len(suite))}
            logger.info("%s: %d tasks of %d videos", split, len(suite), len(videos))
