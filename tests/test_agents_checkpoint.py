import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch
from agents_models import SIZES, load, several
from agents_training import differing, small, trained
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents import checkpoint
from agents.checkpoint import Checkpoints, load_policy
from agents.keeping import draft
from agents.keeping.saved import CheckpointError, find
from agents.model import tiny
from agents.model.policy import MLLMPolicy
from agents.model.sampling import Sampling
from agents.parallel import Processes
from agents.train import parse
from agents.trainer import Trainer

LORA = {"lora_rank": 4, "lora_alpha": 8.0, "ppo": {"critic": "adapter"}}
QUIET = {"eval_every": 0, "iterations": 1}


def names(out):
    return sorted(path.name for path in out.iterdir() if "checkpoint" in path.name)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run of all weights with three checkpoints, of which two are kept."""
    out = tmp_path_factory.mktemp("full")
    trained(small(out, iterations=3, eval_every=0, save_every=1, keep=2))
    return out


def test_the_last_checkpoints_are_kept_and_latest_points_to_the_newest(full):
    assert names(full) == ["checkpoint-000002", "checkpoint-000003"]
    assert (full / "latest").read_text() == "checkpoint-000003\n"
    assert find(full) == full / "checkpoint-000003"
    assert find(full / "checkpoint-000002") == full / "checkpoint-000002"
    with pytest.raises(CheckpointError, match="is no checkpoint, and no run that has one"):
        find(full / "samples")


def test_a_pointer_to_nothing_falls_back_on_the_newest_checkpoint(full, tmp_path):
    for name in names(full):
        (tmp_path / name).symlink_to(full / name)
    (tmp_path / "latest").write_text("checkpoint-000009\n")
    assert find(tmp_path).name == "checkpoint-000003"


def test_a_fully_trained_policy_loads_as_any_model_does(full):
    path = full / "checkpoint-000003"
    ours = load_policy(path)
    theirs = MLLMPolicy.from_pretrained(path / "policy", device="cpu")
    a, b = ours.base.state_dict(), theirs.base.state_dict()
    assert differing(a, b) == []
    assert differing(a, load().base.state_dict()) != []  # it learned something
    rows = [ours.row(blocks) for blocks in several(ours.codec)[0].rows(ours.codec, None)]
    assert torch.equal(ours.score(rows).log_probs, theirs.score(rows).log_probs)


# peft 0.21 asks for a name that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_trained_adapter_loads_into_the_policy_and_into_peft(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    config = small(tmp_path, **QUIET, **LORA)
    trainer = trained(config)
    loaded = load_policy(tmp_path)
    for ours, theirs in zip(
        trainer.policy.actor_parameters(), loaded.actor_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    base = AutoModelForImageTextToText.from_pretrained(config.model, dtype=torch.float32)
    adapter = find(tmp_path) / "policy" / "actor"
    peft = PeftModel.from_pretrained(base, str(adapter)).eval()
    ids = torch.arange(5)[None] + 300
    with torch.no_grad():
        expected = trainer.policy.base(input_ids=ids).logits
        assert torch.allclose(peft(input_ids=ids).logits, expected, atol=1e-6)
    assert not (find(tmp_path) / "policy" / "critic").exists()


def test_a_checkpoint_holds_no_second_copy_of_the_base_model(full):
    kept = torch.load(full / "checkpoint-000003" / "trainer.pt", weights_only=True)
    assert kept["learner"]["reference"] is None


@pytest.mark.parametrize("stage", ["policy", "critic", "trainer", "state", "flush", "pointer"])
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written(
    tmp_path, monkeypatch, stage
):
    trainer = Trainer(small(tmp_path, iterations=2, eval_every=0), processes=Processes("cpu"))
    trainer.save()
    before = (tmp_path / "checkpoint-000000" / "trainer.pt").read_bytes()

    def full_disk(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if stage == "policy":
        monkeypatch.setattr(MLLMPolicy, "save_pretrained", full_disk)
    elif stage == "critic":
        monkeypatch.setattr(checkpoint, "save_file", full_disk)
    elif stage == "trainer":
        # What torch raises, from under it, when its writer cannot write.
        monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("ENOSPC")))
    elif stage == "state":
        monkeypatch.setattr(type(trainer.config), "to_json", full_disk)
    elif stage == "flush":
        monkeypatch.setattr(draft, "_sync", full_disk)
    else:
        monkeypatch.setattr(os, "replace", full_disk)
    trainer.step = trainer.learner.step = 1
    with pytest.raises(CheckpointError, match=r"latest one is still .*checkpoint-000000"):
        trainer.save()
    monkeypatch.undo()
    trainer.close()
    assert names(tmp_path) == ["checkpoint-000000"]
    assert find(tmp_path).name == "checkpoint-000000"
    assert (tmp_path / "checkpoint-000000" / "trainer.pt").read_bytes() == before
    resumed = small(tmp_path, iterations=1, eval_every=0, resume=str(tmp_path))
    assert trained(resumed).step == 1


def test_training_stops_cleanly_when_a_checkpoint_cannot_be_written(tmp_path, monkeypatch):
    trainer = Trainer(
        small(tmp_path, iterations=5, eval_every=0, save_every=2), processes=Processes("cpu")
    )
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(CheckpointError, match=r"\(full\); there is no earlier one"):
        trainer.run()
    assert trainer.step == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2  # the log is there


def test_what_a_killed_run_left_half_written_is_swept_away(tmp_path):
    left = tmp_path / ".checkpoint-000007.part"
    left.mkdir(parents=True)
    (left / "trainer.pt").write_bytes(b"half")
    trained(small(tmp_path, **QUIET))
    assert names(tmp_path) == ["checkpoint-000001"]


def test_a_run_resumed_from_an_earlier_checkpoint_replaces_the_later_ones(full, tmp_path):
    shutil.copytree(full, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint-000003" / "trainer.pt").read_bytes()
    earlier = str(tmp_path / "run" / "checkpoint-000002")
    again = small(
        tmp_path / "run", iterations=3, eval_every=0, resume=earlier, ppo={"actor_lr": 1e-3}
    )
    trainer = trained(again)
    assert trainer.learner.actor_optimizer.param_groups[0]["lr"] == 1e-3
    assert names(tmp_path / "run") == ["checkpoint-000002", "checkpoint-000003"]
    assert (tmp_path / "run" / "checkpoint-000003" / "trainer.pt").read_bytes() != before
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [0, 1, 2]


def test_a_run_may_go_on_with_another_batch_and_repeats_no_task(full, tmp_path):
    config = small(tmp_path, batch=2, resume=str(full / "checkpoint-000002"))
    trainer = Trainer(config, processes=Processes("cpu"))
    dealt = trainer.dealing.state()
    assert (dealt["count"], dealt["pending"]) == (8, [])
    trainer.close()


def test_a_checkpoint_of_another_model_is_refused(full, tmp_path):
    wider = tiny.save_untrained(tmp_path / "wider", **{**SIZES, "intermediate": 128})
    same_shapes = tiny.save_untrained(tmp_path / "other", seed=5, **SIZES)
    for changes, says in (
        ({"model": str(wider)}, "its configuration is"),
        ({"model": str(same_shapes)}, "its base weights is"),
        ({"ppo": {"critic": "model"}}, "its shapes of the critic is"),
        (LORA, "its shapes of the actor is"),
    ):
        config = small(tmp_path / "run", resume=str(full), **changes)
        with pytest.raises(CheckpointError, match=f"of another model: {says}"):
            Trainer(config, processes=Processes("cpu"))


def test_a_damaged_checkpoint_is_refused_by_name(full, tmp_path):
    for file in ("trainer.pt", "critic.safetensors", "state.json"):
        path = tmp_path / file / "checkpoint-000003"
        shutil.copytree(full / "checkpoint-000003", path)
        (path / file).write_bytes(b"{damaged")
        with pytest.raises(CheckpointError, match=rf"cannot be read|is damaged: {file}"):
            Trainer(small(tmp_path / "run", resume=str(path)), processes=Processes("cpu"))


def test_a_flipped_bit_in_any_file_is_noticed(full, tmp_path):
    files = json.loads((full / "checkpoint-000003" / "state.json").read_text())["files"]
    assert {"trainer.pt", "critic.safetensors", "policy/model.safetensors"} <= set(files)
    for name in files:
        path = tmp_path / name.replace("/", "-") / "checkpoint-000003"
        shutil.copytree(full / "checkpoint-000003", path)
        raw = bytearray((path / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (path / name).write_bytes(raw)
        with pytest.raises(CheckpointError, match=rf"is damaged: {name} is not as it was written"):
            load_policy(path)


# peft 0.21 asks for a name that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("fault", ["renamed", "halved", "more"])
def test_an_adapter_of_other_names_is_refused_not_loaded_as_zeros(fault, tmp_path):
    trained(small(tmp_path / "run", **QUIET, **LORA))
    path = tmp_path / "run" / "checkpoint-000001"
    file = path / "policy" / "actor" / "adapter_model.safetensors"
    weights = load_file(file)
    if fault == "renamed":  # as another version of the library names them
        weights = {name.replace(".language_model.", "."): w for name, w in weights.items()}
    elif fault == "halved":
        weights = dict(list(weights.items())[::2])
    else:
        weights["base_model.model.other.lora_A.weight"] = torch.zeros(4, 4)
    save_file(weights, file)
    state = json.loads((path / "state.json").read_text())
    del state["files"]  # as versions wrote it that took no digests
    (path / "state.json").write_text(json.dumps(state))
    says = "lacks weights" if fault != "more" else "has unknown weights"
    with pytest.raises(ValueError, match=rf"adapter .* {says} \(\d+\): base_model"):
        load_policy(path)
    with pytest.raises(CheckpointError, match=says):
        Trainer(small(tmp_path / "again", resume=str(path), **LORA), processes=Processes("cpu"))


def test_a_model_of_which_weights_are_missing_is_refused(tmp_path):
    path = tiny.save_untrained(tmp_path / "model", **SIZES)
    weights = load_file(path / "model.safetensors")
    lost = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({k: v for k, v in weights.items() if k != lost}, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks weights \(1\): .*q_proj\.weight"):
        MLLMPolicy.from_pretrained(path)


def test_a_checkpoint_plays_on_no_other_model(tmp_path):
    base = tiny.save_untrained(tmp_path / "base", seed=1, **SIZES)
    trained(small(tmp_path / "run", **QUIET, model=str(base)))
    tiny.save_untrained(base, seed=2, **SIZES)  # another one in its place
    with pytest.raises(CheckpointError, match="of another model: its base weights is"):
        load_policy(tmp_path / "run")


def test_a_checkpoint_imports_no_code_unless_it_is_told_to(full, tmp_path):
    path = tmp_path / "checkpoint-000003"
    shutil.copytree(full / "checkpoint-000003", path)
    state = json.loads((path / "state.json").read_text())
    state["config"]["suite"] = "gym_longvideo.haystack:needle"
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="which imports code; repeat it"):
        parse(["--resume", str(path)])
    again = ["--resume", str(path), "--suite", "gym_longvideo.haystack:needle"]
    assert parse(again).suite == "gym_longvideo.haystack:needle"


def test_a_saved_policy_sees_the_same_pixels_and_samples_as_it_was_trained(full, tmp_path):
    policy = MLLMPolicy.from_pretrained(tiny.save_untrained(tmp_path / "m", **SIZES), device="cpu")
    policy.base.generation_config.repetition_penalty = 1.05
    policy.images = Qwen2VLImageProcessorPil(patch_size=14, min_pixels=3136, max_pixels=10**7)
    policy.save_pretrained(tmp_path / "saved", Sampling(0.7, max_new_tokens=5))
    frames = np.random.default_rng(0).integers(0, 256, (2, 28, 56, 3), np.uint8)
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "saved")(
        images=[Image.fromarray(frame) for frame in frames], return_tensors="pt"
    )
    assert theirs["image_grid_thw"].tolist() == [[1, 2, 4]] * 2
    torch.testing.assert_close(theirs["pixel_values"], policy.encoder.patches(frames))
    assert theirs is not None and policy.images.size["shortest_edge"] == 3136
    written = AutoImageProcessor.from_pretrained(tmp_path / "saved").size
    assert written["longest_edge"] == 10**7
    drawn = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.do_sample) == (0.7, 1.0, 0, True)
    assert drawn.repetition_penalty in (None, 1.0) and drawn.max_new_tokens == 5
    shipped = AutoImageProcessor.from_pretrained(full / "checkpoint-000003" / "policy")
    assert shipped.do_resize is False


def test_saving_survives_a_path_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    trainer = Trainer(small(tmp_path / "run", **QUIET), processes=Processes("cpu"))
    trainer.checkpoints = Checkpoints(tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match="could not be written"):
        trainer.save()
    trainer.close()
