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

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from agents.config import TrainConfig
from agents.keeping.fingerprint import fingerprint_of_policy
from agents.keeping.saved import (
    FORMAT,
    LATEST,
    STATE,
    CheckpointError,
    check_files,
    checkpoints,
    digests_of_files,
    find,
    latest,
    read_state,
    step_of,
)
from agents.keeping.shards import (
    SHARDS,
    ShardWriter,
    export,
    fill_part,
    names_of_shards,
    read_shards,
    wait_for,
)
from agents.model.policy import ACTOR, MLLMPolicy, load_whole
from agents.model.weights import WeightFiles, fill, refuse_keys
from agents.optimizers import remember
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.source import MADE_FOR_FILE, made_for_of_state
from gym_longvideo.files import reason, write_whole
from gym_longvideo.files import replace as rename
from gym_longvideo.files import sync as _sync
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
                draft.open()
                _write(draft.path, learner, workers, config)
                draft.place(head())
            self._forget(step)
            return draft.final
        self.finish()
        dtype = learner.sharding.compute or learner.policy.head.weight.dtype

        def begin() -> None:
            with self._guarded(draft):
                draft.open()
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
            names = _exported(learner.policy, tensors)
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


class Draft:
    """A checkpoint that is being written, beside its place.

    Args:
        directory: Of the run.
        step: Iterations done.

    Attributes:
        path: Where to write.
        final: Its place.
    """

    def __init__(self, directory: Path, step: int) -> None:
        self.directory = directory
        self.final = directory / f"checkpoint-{step:06d}"
        self.path = directory / f".checkpoint-{step:06d}.part"
        self._aside = directory / f".checkpoint-{step:06d}.old"
        self._placed = False

    def open(self) -> None:
        """Make its directory, and clear away what a run that was killed left of one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for left in self.directory.glob(".checkpoint-*"):
            _remove(left)
        if self.final.exists() and not self.final.is_dir():
            raise FileExistsError(f"{self.final} is in the way: no checkpoint; move it elsewhere")
        self.path.mkdir()

    def place(self, head: Mapping[str, Any]) -> None:
        """Write ``state.json``, flush everything to the disk, and rename it."""
        files = sorted(each for each in self.path.rglob("*") if each.is_file())
        names = [each.relative_to(self.path).as_posix() for each in files]
        state = {**head, "files": dict(zip(names, digests_of_files(files), strict=True))}
        text = json.dumps(state, indent=2) + "\n"
        (self.path / STATE).write_text(text, encoding="utf-8", newline="\n")
        _flush(self.path)
        if self.final.exists():  # of a run that was resumed before it
            rename(self.final, self._aside)
        rename(self.path, self.final)
        self._placed = True
        write_whole(self.directory / LATEST, self.final.name + "\n", durable=True)
        shutil.rmtree(self._aside, ignore_errors=True)

    def abandon(self) -> None:
        """Take everything back."""
        shutil.rmtree(self.final if self._placed else self.path, ignore_errors=True)
        if self._aside.exists() and not self.final.exists():
            rename(self._aside, self.final)


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


def restore(path: Path, learner: PPOLearner, fingerprint: Mapping[str, str]) -> list[Any]:
    """Put a learner, made from the base model, where a checkpoint left it.

    Returns:
        What each process wanted back, by rank.

    Raises:
        CheckpointError: If the checkpoint is of another model, or damaged.
    """
    state = read_state(path)
    _check_fingerprint(path, state, fingerprint)
    learner.processes.by_main(lambda: check_files(path, state))
    try:
        kept = torch.load(path / "trainer.pt", map_location="cpu", weights_only=True, mmap=True)
        if (path / SHARDS).is_dir():
            _read_shards(path / SHARDS, learner)
            learner.load_counts(kept["learner"])
        elif learner.sharding.on:
            _read_whole(path, learner, kept["learner"])
            learner.load_counts(kept["learner"])
        else:
            load_weights(path, learner.policy)
            critic = load_file(path / "critic.safetensors")
            learner.load_state_dict({**kept["learner"], "critic": critic})
        return kept["workers"]
    except Exception as error:  # torch, safetensors and transformers each have their own
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error


def _check_fingerprint(
    path: Path, state: Mapping[str, Any], fingerprint: Mapping[str, str]
) -> None:
    theirs = state.get("fingerprint", {})
    if odd := [part for part in fingerprint if theirs.get(part) != fingerprint[part]]:
        part = odd[0]
        raise CheckpointError(
            f"checkpoint {path} is of another model: its {part} is {theirs.get(part)}, here it is "
            f"{fingerprint[part]}; use the model and adapters it was trained with"
        )


def load_weights(path: Path, policy: MLLMPolicy) -> None:
    """Give a policy the weights of a checkpoint, all of them and no others.

    Raises:
        ValueError: If some are missing, or belong to no part of it, naming them.
    """
    if policy.peft is not None:
        from peft import (
            get_peft_model_state_dict,
            load_peft_weights,
            set_peft_model_state_dict,
        )

        place = path / "policy" / ACTOR
        weights = load_peft_weights(str(place), device=str(policy.device))
        wanted = get_peft_model_state_dict(policy.peft, adapter_name=ACTOR).keys()
        refuse_keys(f"the adapter {place}", wanted - weights.keys(), weights.keys() - wanted)
        set_peft_model_state_dict(policy.peft, weights, adapter_name=ACTOR)
        return
    trained = load_whole(path / "policy", dtype=policy.head.weight.dtype)
    policy.base.load_state_dict(trained.state_dict())
    policy.encoder.clear()


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
    _check_fingerprint(found, state, fingerprint_of_policy(policy))
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


def _exported(policy: MLLMPolicy, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the names of a policy's weights among tensors, by those in files that others read."""
    own_names = [name for name in tensors if "/" not in name and not name.startswith("critic.")]
    if policy.lora is None:
        return {name: name for name in own_names}
    return {
        f"base_model.model.{name.replace(f'.{ACTOR}.', '.')}": name
        for name in own_names
        if f".{ACTOR}." in name
    }


def _read_shards(directory: Path, learner: PPOLearner) -> None:
    if any("/" in name for name in names_of_shards(directory)):
        for optimizer in (learner.actor_optimizer, learner.critic_optimizer):
            remember(optimizer)
    read_shards(directory, learner.tensors(frozen=learner.policy.lora is None))


def _read_whole(path: Path, learner: PPOLearner, state: Mapping[str, Any]) -> None:
    """Give a learner that is sharded what one wrote that was not, each process its parts."""
    policy = learner.policy
    if policy.lora is None:
        files = WeightFiles(path / "policy")
        places = files.named(dict(policy.base.named_parameters()), policy.tied)
        fill(policy.base, "", places)
    else:
        from peft import load_peft_weights

        place = path / "policy" / ACTOR
        weights = load_peft_weights(str(place), device="cpu")
        names = _exported(policy, learner.tensors())
        refuse_keys(f"the adapter {place}", names.keys() - weights.keys(),
                    weights.keys() - names.keys())  # fmt: skip
        tensors = learner.tensors()
        for new, name in names.items():
            fill_part(tensors[name], weights[new])
    critic = load_file(path / "critic.safetensors")
    ours = learner.critic.state_dict()
    refuse_keys(str(path / "critic.safetensors"), ours.keys() - critic.keys(),
                critic.keys() - ours.keys())  # fmt: skip
    for name, tensor in ours.items():
        fill_part(tensor, critic[name])
    for name in ("actor", "critic"):
        optimizer = getattr(learner, f"{name}_optimizer")
        theirs = state[f"{name}_optimizer"]["state"]
        if theirs:
            remember(optimizer)
        for i, parameter in enumerate(getattr(learner, f"{name}_parameters")):
            for key, value in theirs.get(i, {}).items():
                fill_part(optimizer.state[parameter][key], value)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _flush(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            _sync(Path(folder, name))
        _sync(folder)
