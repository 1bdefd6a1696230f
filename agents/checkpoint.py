"""Checkpoints: all that a run needs to go on as if nothing had happened.

A checkpoint is a directory. It is written beside its place under another name, flushed to the disk
and only then renamed; a pointer file named ``latest`` follows. Whatever goes wrong on the way, the
checkpoint before stays as it was.

    checkpoint-000040/
        policy/               what ``MLLMPolicy.from_pretrained`` loads, and longvideo.json; with
                              LoRA, policy/actor is an adapter that peft loads onto the base model
        critic.safetensors
        trainer.pt            optimisers, random numbers and the place in the task order
        state.json            step, configuration, fingerprint of the base model, digests of files

Where weights are sharded, shards/ holds critic and optimisers, and the policy's weights as they are
trained, see ``keeping.shards``; policy/ has them in the number format in which they were played.
Either kind is read by any number of processes.

Left out: the reference of full fine-tuning, because it is the base model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from agents.config import TrainConfig
from agents.keeping.draft import Draft
from agents.keeping.fingerprint import fingerprint_of_policy
from agents.keeping.restoring import check_fingerprint, exported_names, load_weights
from agents.keeping.saved import (
    FORMAT,
    CheckpointError,
    check_files,
    checkpoints,
    find,
    latest,
    read_state,
    step_of,
)
from agents.keeping.shards import SHARDS, ShardWriter, export, wait_for
from agents.model.policy import ACTOR, MLLMPolicy
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.source import MADE_FOR_FILE, made_for_of_state
from gym_longvideo.files import reason
from gym_longvideo.suite import is_annotation
from gym_longvideo.version import __version__


class Checkpoints:
    """The checkpoints of a run.

    Args:
        directory: Of the run.
        keep: How many to keep.
        processes: All that train together; this one alone by default.
    """

    def __init__(
        self, directory: str | Path, keep: int = 3, processes: Processes | None = None
    ) -> None:
        self.directory, self.keep = Path(directory), keep
        self.processes = processes or Processes("cpu")
        self._writer = ShardWriter()
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Callable[[], object] | None = None

    def save(
        self,
        step: int,
        learner: PPOLearner,
        *,
        config: TrainConfig,
        fingerprint: Mapping[str, str],
        workers: list[dict[str, Any]],
    ) -> Path:
        """Write a checkpoint and forget the oldest ones.

        Of a learner whose weights are sharded all processes must call this, and it returns when
        they are copied to main memory: the files are written while training goes on, and
        ``finish`` waits for them. Of any other learner the main process alone calls it.

        Args:
            step: Iterations done.
            learner: With its policy.
            config: Of the run.
            fingerprint: Of the base model, see ``fingerprint_of``.
            workers: What each process wants back.

        Raises:
            CheckpointError: If it, or the one before that was not finished, cannot be written; the
                latest one stays as it was.
        """
        draft = Draft(self.directory, step)

        def head() -> dict[str, Any]:
            return {
                "format": FORMAT,
                "library": __version__,
                "step": step,
                "config": config.to_json(),
                "fingerprint": dict(fingerprint),
            }

        if not learner.sharding.on:
            with self._guarded(draft):
                draft.begin()
                _write(draft.path, learner, workers, config)
                draft.place(head())
            self._forget(step)
            return draft.final
        self.finish()
        dtype = learner.sharding.compute or learner.policy.head.weight.dtype

        def begin() -> None:
            with self._guarded(draft):
                draft.begin()
                policy = draft.path / "policy"
                learner.policy.save_pretrained(policy, config.sampling, but_weights=dtype)
                config.made_for().write(policy)
                state = {"learner": learner.counts(), "workers": workers}
                _save_state(draft.path, state)

        self.processes.by_main(begin)
        tensors = learner.tensors(frozen=learner.policy.lora is None)
        written = self._writer.start(draft.path / SHARDS, tensors)
        self._pending = partial(wait_for, written)
        if self.processes.main:
            names = exported_names(learner.policy, tensors)
            self._pending = self._background.submit(
                self._complete, draft, head(), written, names, dtype
            ).result
        return draft.final

    def finish(self) -> None:
        """Wait for a checkpoint that is being written; all processes must call this together.

        Raises:
            CheckpointError: In every process, if it could not be written.
        """
        if self._pending is None:
            return
        errors = [each for each in self.processes.gather(self.settle()) if each is not None]
        if errors:
            raise CheckpointError(errors[0])

    def settle(self) -> str | None:
        """Wait for what this process has still to write; return what went wrong, if anything."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            pending()
        except CheckpointError as error:
            return str(error)
        except Exception as error:
            return f"a checkpoint could not be written ({reason(error)}); {self._kept()}"
        return None

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint.

        Raises:
            CheckpointError: If ``latest`` is damaged.
        """
        return latest(self.directory)

    def _complete(
        self,
        draft: Draft,
        head: Mapping[str, Any],
        written: Future[Any],
        names: Mapping[str, str],
        dtype: torch.dtype,
    ) -> None:
        """Put a checkpoint in its place as soon as all processes have written their parts."""
        with self._guarded(draft):
            wait_for(written)
            where = draft.path / "policy"
            if (where / ACTOR).is_dir():
                export(draft.path / SHARDS, names, where / ACTOR, name="adapter_model")
            else:
                export(draft.path / SHARDS, names, where, dtype)
            draft.place(head)
        self._forget(head["step"])

    @contextmanager
    def _guarded(self, draft: Draft) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            draft.abandon()
            if not isinstance(error, Exception):
                raise
            raise CheckpointError(
                f"checkpoint {draft.final} could not be written ({reason(error)}); {self._kept()}"
            ) from error

    def _forget(self, step: int) -> None:
        # Later ones are of a run that was resumed before them; they will be replaced.
        earlier = [old for old in checkpoints(self.directory) if step_of(old) <= step]
        for old in earlier[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _kept(self) -> str:
        """Say what there is to go on from."""
        try:
            last = self.latest()
        except CheckpointError as error:
            return str(error)
        return f"the latest one is still {last}" if last else "there is no earlier one"


def config_of(path: str | Path) -> TrainConfig:
    """Return the configuration of a checkpoint, or of the latest one of a run.

    Raises:
        CheckpointError: If there is none, or it is of another format.
        ValueError: If a field is unknown, or a value not allowed.
    """
    found = find(path)
    state = read_state(found)
    written = dict(state["config"])
    if is_annotation(written.get("suite", "")):
        # Of a version in which such records were in every split, if it does not say otherwise.
        written["suite_options"] = {"split_by": "none", **written.get("suite_options", {})}
    config = TrainConfig.from_json(written)
    if not (found / "policy" / MADE_FOR_FILE).is_file():
        # Of a version in which a model's settings were not laid under those of a run.
        made_for = made_for_of_state(state)
        config = replace(
            config,
            env={**asdict(made_for.settings), **config.env},
            suite_options={**config.suite_options, **made_for.suite_options},
        )
    return config


def load_policy(
    path: str | Path, device: Any = None, frame_size: tuple[int, int] | None = None
) -> MLLMPolicy:
    """Load the policy of a checkpoint, adapters included, as it was trained.

    Args:
        path: Of the checkpoint, or of its run.
        device: Where to; the GPU if there is one, by default.
        frame_size: Height and width of the frames it will see, in pixels, if known.

    Raises:
        CheckpointError: If it is damaged, or of another model than its base is now.
        ValueError: If its weights do not fit.
    """
    found = find(path)
    state = read_state(found)
    check_files(found, state)
    policy = config_of(found).load_policy(device, frame_size)
    check_fingerprint(found, state, fingerprint_of_policy(policy))
    load_weights(found, policy)
    return policy


def _write(
    draft: Path, learner: PPOLearner, workers: list[dict[str, Any]], config: TrainConfig
) -> None:
    learner.policy.save_pretrained(draft / "policy", config.sampling)
    config.made_for().write(draft / "policy")
    state = learner.state_dict()
    critic = {name: value.contiguous() for name, value in state.pop("critic").items()}
    save_file(critic, draft / "critic.safetensors")
    state["reference"] = None
    _save_state(draft, {"learner": state, "workers": workers})


def _save_state(draft: Path, state: Mapping[str, Any]) -> None:
    with (draft / "trainer.pt").open("wb") as stream:  # given a path, torch hides why it failed
        torch.save(state, stream)
