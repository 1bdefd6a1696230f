"""Checkpoints of weights that lie in several processes: any number reads what any other wrote."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from agents_models import model_dir
from agents_peers import together
from agents_training import small
from test_agents_processes import launch
from transformers import AutoModelForImageTextToText

import agents.checkpoint as checkpoint_module
from agents.checkpoint import Checkpoints, load_policy
from agents.config import TrainConfig
from agents.keeping import shards
from agents.keeping.fingerprint import fingerprint_of
from agents.keeping.restoring import restore
from agents.keeping.saved import CheckpointError, DamagedCheckpoint, latest, read_state
from agents.keeping.shards import export, read_shards
from agents.parallel import Processes, own
from agents.ppo import PPOLearner
from agents.sharding import Sharding, whole
from agents.trainer import Trainer

KINDS: dict[str, dict[str, Any]] = {
    "model": {"ppo": {"critic": "model"}},
    "adapter": {"lora_rank": 4, "ppo": {"critic": "adapter"}},
    "head": {},
}


def config_of(out: Path, kind: str, **changes: Any) -> TrainConfig:
    """Return the configuration of a short run."""
    kept = {"eval_every": 0, "iterations": 2, "save_every": 1, "max_new_tokens": 4}
    return small(out, **{**kept, **KINDS[kind], **changes})


def trained(out: str, kind: str, resume: bool = False) -> None:
    """Train in one of several processes, and write down what weights and moments became."""
    model_dir()
    config = config_of(Path(out), kind, resume="auto" if resume else "")
    trainer = Trainer(config)
    trainer.run()
    found = {name: whole(t) for name, t in trainer.learner.tensors().items()}
    if trainer.processes.main:
        torch.save(found, Path(out, f"{kind}.pt"))
    trainer.processes.close()


def learner_of(kind: str, processes: Processes, **changes: Any) -> PPOLearner:
    """Return a learner as it is before training."""
    config = config_of(Path("unused"), kind, **changes)
    torch.manual_seed(config.seed)
    sharding = Sharding(processes)
    policy = config.load_policy("cpu", empty=sharding.on)
    return PPOLearner(policy, config.ppo, processes=processes, sharding=sharding)


def loaded(path: str, kind: str, out: str = "") -> dict[str, torch.Tensor]:
    """Load a checkpoint in one process, or in one of several."""
    model_dir()
    processes = Processes("cpu")
    learner = learner_of(kind, processes)
    restore(Path(path), learner, fingerprint_of(learner))
    found = {name: whole(t) for name, t in learner.tensors().items()}
    if out and processes.main:
        torch.save(found, out)
    assert learner.step == 2
    processes.close()
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return directories of runs on two processes, and of the same on one."""
    where = {}
    for kind in KINDS:
        out = tmp_path_factory.mktemp(kind)
        together(trained, 2, str(out), kind)
        where[2, kind] = out
        out = tmp_path_factory.mktemp(f"{kind}-alone")
        trained(str(out), kind)
        where[1, kind] = out
    return where


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2])
def test_one_process_reads_what_any_number_wrote(written, size, kind):
    run = written[size, kind]
    same(torch.load(run / f"{kind}.pt"), loaded(str(latest(run)), kind))


@pytest.mark.parametrize(("size", "readers"), [(1, 2), (2, 3)])
def test_several_processes_read_what_any_number_wrote(written, tmp_path, size, readers):
    for kind in KINDS:
        run = written[size, kind]
        out = tmp_path / f"{kind}.pt"
        together(loaded, readers, str(latest(run)), kind, str(out))
        same(torch.load(run / f"{kind}.pt"), torch.load(out))


def test_the_policy_beside_the_shards_is_one_that_others_load(written):
    run = written[2, "model"]
    model, info = AutoModelForImageTextToText.from_pretrained(
        latest(run) / "policy", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    found = torch.load(run / "model.pt")
    for name, weight in model.named_parameters():
        assert name not in found or torch.equal(weight, found[name])
    policy = load_policy(run, device="cpu")
    assert torch.equal(policy.head.weight, found["model.language_model.embed_tokens.weight"])


def test_the_adapter_beside_the_shards_is_one_that_peft_loads(written):
    run = written[2, "adapter"]
    found = torch.load(run / "adapter.pt")
    policy = load_policy(run, device="cpu")
    ours = {k: v for k, v in policy.base.named_parameters() if ".actor." in k}
    assert len(ours) > 10
    assert all(torch.equal(tensor, found[name]) for name, tensor in ours.items())


def test_a_policy_larger_than_a_file_becomes_several(written, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_PIECE", 50_000)
    source = latest(written[2, "model"])
    shutil.copytree(source / "policy", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    names = [n for n in shards.names_of_shards(source / "shards") if n.startswith("model.")]
    names = [name for name in names if "/" not in name]
    export(source / "shards", {name: name for name in names}, tmp_path, torch.bfloat16)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    found = torch.load(written[2, "model"] / "model.pt")
    for name, weight in model.named_parameters():
        assert name not in found or torch.equal(weight, found[name].bfloat16())


def test_damage_is_refused_by_name(written, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(written[2, "head"], run)
    shard = latest(run) / "shards" / "__1_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=r"__1_0\.distcp is not as it was written; go on"):
        loaded(str(latest(run)), "head")


def test_tensors_of_other_names_or_shapes_are_refused(written):
    directory = latest(written[2, "head"]) / "shards"
    names = shards.names_of_shards(directory)
    tensors = {name: torch.zeros(1) for name in names}
    with pytest.raises(ValueError, match=r"lacks weights .*: other"):
        read_shards(directory, {**tensors, "other": torch.zeros(1)})
    with pytest.raises(ValueError, match="has unknown weights"):
        read_shards(directory, dict(list(tensors.items())[1:]))
    with pytest.raises(ValueError, match=r"has shape .* here it has \(1,\)"):
        read_shards(directory, tensors)


def saved_while_it_changes(out: str) -> None:
    """Change weights at once after a checkpoint has begun; it must hold what they were."""
    model_dir()
    processes = Processes("cpu")
    learner = learner_of("model", processes)
    before = {name: whole(t).clone() for name, t in learner.tensors(frozen=True).items()}
    where = Checkpoints(out, processes=processes)
    config = config_of(Path(out), "model")
    path = where.save(1, learner, config=config, fingerprint={}, workers=[])
    with torch.no_grad():
        for tensor in learner.tensors(frozen=True).values():
            own(tensor).zero_()
    where.finish()
    read_shards(path / "shards", learner.tensors(frozen=True))
    same(before, {name: whole(t) for name, t in learner.tensors(frozen=True).items()})
    processes.close()


def test_a_checkpoint_holds_the_weights_of_when_it_began(tmp_path):
    together(saved_while_it_changes, 2, str(tmp_path))


def full_disk(out: str, culprit: int) -> None:
    """Let the disk of one process be full at the second checkpoint."""
    model_dir()
    trainer = Trainer(config_of(Path(out), "head", iterations=3))
    if trainer.processes.rank == culprit:
        genuine = shards.FileSystemWriter.write_data

        def write_data(self, *args, **options):
            if ".checkpoint-000002" in str(self.path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return genuine(self, *args, **options)

        shards.FileSystemWriter.write_data = write_data
    with pytest.raises(CheckpointError, match=r"could not be written.*still .*checkpoint-000001"):
        trainer.run()
    trainer.processes.close()


@pytest.mark.parametrize("culprit", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_for_one_process_stops_all_and_spoils_nothing(tmp_path, culprit):
    together(full_disk, 2, str(tmp_path), culprit)
    assert latest(tmp_path).name == "checkpoint-000001"
    assert sorted(p.name for p in tmp_path.glob("*checkpoint-*")) == ["checkpoint-000001"]


def killed_in_mid_save(out: str) -> None:
    """Die, in all processes, while the second checkpoint is being put together."""
    model_dir()
    trainer = Trainer(config_of(Path(out), "head", iterations=9))

    def die(directory: Path, *_: Any, **__: Any) -> None:
        if ".checkpoint-000002" in str(directory):
            os._exit(0)
        genuine(directory, *_, **__)

    genuine = checkpoint_module.export
    checkpoint_module.export = die  # type: ignore[assignment]
    try:
        trainer.run()
    except BaseException:  # the other process noticed
        os._exit(0)


def test_a_kill_in_mid_save_costs_nothing_but_that_checkpoint(tmp_path):
    together(killed_in_mid_save, 2, str(tmp_path))
    assert latest(tmp_path).name == "checkpoint-000001"
    assert read_state(latest(tmp_path))["step"] == 1
    left = list(tmp_path.glob(".checkpoint-*.part"))
    assert [path.name for path in left] == [".checkpoint-000002.part"]
    together(trained, 2, str(tmp_path), "head", True)
    assert latest(tmp_path).name == "checkpoint-000002" and not left[0].exists()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][-1] == 1


def moments_in_bytes(out: str) -> None:
    """Train with moments of eight bits; another learner must read what was written."""
    model_dir()
    eight: dict[str, Any] = {"ppo": {"critic": "model", "optimizer": "adamw8bit"}}
    trainer = Trainer(config_of(Path(out), "head", **eight))
    trainer.run()
    processes = trainer.processes
    learner = learner_of("head", processes, **eight)
    found = latest(Path(out))
    assert found is not None
    restore(found, learner, fingerprint_of(learner_of("head", processes, **eight)))
    ours, theirs = trainer.learner.tensors(), learner.tensors()
    assert ours.keys() == theirs.keys()
    coded = 0
    for name, tensor in ours.items():
        a, b = (shards._portable(each) for each in (tensor, theirs[name]))
        assert torch.equal(own(a), own(b)), name
        coded += type(own(tensor)) is not torch.Tensor and "/exp_avg" in name
    assert coded or processes.size > 1  # of small tensors moments keep four bytes
    processes.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_moments_of_eight_bits_are_trained_written_and_read(tmp_path, size):
    pytest.importorskip("torchao")
    # Its step is compiled, which processes that were forked do not always survive.
    launch(["-c", f"import test_agents_shards as t; t.moments_in_bytes({str(tmp_path)!r})"], size)
