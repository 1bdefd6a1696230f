"""Weights must be read from safetensors as transformers reads them, in parts, or be refused."""

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from agents_families import KINDS, family_dir
from agents_models import model_dir
from agents_peers import together
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from agents.model import tiny
from agents.model.policy import LoRA, MLLMPolicy
from agents.model.weights import WeightFiles, empty_model, fill
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.ppo_config import PRESETS


def filled(path: Path, dtype: torch.dtype = torch.float32):
    model = empty_model(AutoConfig.from_pretrained(path), dtype)
    places = WeightFiles(path).named(
        [name for name, _ in model.named_parameters()], model._tied_weights_keys
    )
    model._apply(lambda t: torch.empty_like(t, device="cpu") if t.is_meta else t)
    model.tie_weights()
    fill(model, "", places)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_is_read_as_transformers_reads_it(kind, dtype):
    ours, theirs = (
        filled(family_dir(kind), dtype),
        AutoModelForImageTextToText.from_pretrained(family_dir(kind), dtype=dtype),
    )
    for which in ("named_parameters", "named_buffers"):
        wanted = dict(getattr(theirs, which)())
        found = dict(getattr(ours, which)())
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_files_of_several_pieces_and_newer_names_are_read(tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(model_dir())
    shutil.copytree(model_dir(), tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"{i}.safetensors")
    places = {name: f"{i % 2}.safetensors" for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = dict(filled(tmp_path).named_parameters())
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_head_that_stands_in_the_file_though_it_is_tied_is_passed_over(tmp_path):
    shutil.copytree(model_dir(), tmp_path, dirs_exist_ok=True)
    held = load_file(tmp_path / "model.safetensors")
    held["lm_head.weight"] = torch.zeros_like(held["model.embed_tokens.weight"])
    save_file(held, tmp_path / "model.safetensors")
    model = filled(tmp_path)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, held["model.embed_tokens.weight"])


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "no header": lambda data: b"\xff" * 8 + data[8:],
    "empty": lambda data: b"",
    "no json": lambda data: data[:8] + b"]" + data[9:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_by_name(tmp_path, damage):
    shutil.copytree(model_dir(), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        WeightFiles(tmp_path)


def rewritten(tmp_path: Path, change) -> Path:
    shutil.copytree(model_dir(), tmp_path, dirs_exist_ok=True)
    held = load_file(tmp_path / "model.safetensors")
    change(held)
    save_file(held, tmp_path / "model.safetensors")
    return tmp_path


def test_missing_unknown_and_misshapen_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lacks weights \(1\): model.language_model.norm"):
        filled(rewritten(tmp_path / "a", lambda held: held.pop("model.norm.weight")))
    with pytest.raises(ValueError, match=r"has unknown weights \(1\): other"):
        filled(rewritten(tmp_path / "b", lambda held: held.update(other=torch.zeros(1))))
    with pytest.raises(ValueError, match=r"norm.weight has shape \(3,\), the model's has \(64,\)"):
        filled(
            rewritten(
                tmp_path / "c", lambda held: held.update({"model.norm.weight": torch.zeros(3)})
            )
        )
    with pytest.raises(ValueError, match=r"norm\.weight is I64; weights must be one of"):
        filled(
            rewritten(
                tmp_path / "d",
                lambda held: held.update({"model.norm.weight": torch.zeros(64, dtype=torch.int64)}),
            )
        )


def test_a_directory_without_safetensors_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"no model\.safetensors .* use shard=1"):
        WeightFiles(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json cannot be read"):
        WeightFiles(tmp_path)


def test_a_tensor_that_overlaps_the_end_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    with pytest.raises(ValueError, match="a has 8 bytes"):
        WeightFiles(tmp_path)


def test_adapters_are_drawn_alike_whether_weights_are_there_or_only_laid_out():
    drawn = []
    for empty in (False, True):
        torch.manual_seed(3)
        policy = MLLMPolicy.from_pretrained(model_dir(), device="cpu", lora=LoRA(4), empty=empty)
        assert policy.is_empty == empty
        drawn.append([*policy.actor_parameters(), *policy.add_adapter("critic"), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    assert len({tuple(p.flatten()[:3].tolist()) for p in drawn[0]}) > len(drawn[0]) // 2


def resident() -> int:
    """Return the most bytes that this process has held in memory so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM"))


def read_in_parts(path: str, limit: float) -> None:
    """Load a model into a learner, and measure what that takes."""
    processes, before = Processes("cpu"), resident()
    policy = MLLMPolicy.from_pretrained(path, device="cpu", dtype="float32", empty=True)
    PPOLearner(policy, replace(PRESETS["tiny"], beta=0.0), processes=processes)
    assert resident() - before < limit
    processes.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what it held")
def test_no_process_ever_holds_more_than_its_part_of_a_billion_weights(tmp_path):
    tokenizer = tiny.build_tokenizer()
    sizes = {"hidden": 1536, "layers": 22, "heads": 12, "intermediate": 8960, "vision_hidden": 32}
    config = tiny.build_config(tokenizer, **sizes)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    tiny.save(model, tokenizer, tmp_path)
    del model
    file = tmp_path / "model.safetensors"
    assert file.stat().st_size > 4e9
    together(read_in_parts, 2, str(tmp_path), 0.55 * file.stat().st_size)
    file.unlink()
