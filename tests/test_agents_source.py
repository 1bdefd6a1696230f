"""What a policy's name means, and what the policy was made for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from agents_training import ENV, SUITE, small, trained

from agents.checkpoint import config_of, load_policy
from agents.config import TrainConfig, make_train_config
from agents.model import tiny
from agents.parallel import Processes
from agents.source import MADE_FOR_FILE, WEIGHTS, MadeFor, PolicySource
from agents.train import parse
from agents.trainer import Trainer
from benchmarks.card import differences
from benchmarks.evaluate import _as_made_for, _defaults, evaluate
from benchmarks.players.model import weights_digest
from benchmarks.runs import read_run
from gym_longvideo.settings import EpisodeSettings

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bisect", "scripted"),
        ("tiny", "model"),
        (str(WEIGHTS), "model"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "hub"),
        ("http://localhost:8000/v1", "endpoint"),
        (GOLDEN / "checkpoint", "checkpoint"),
    ],
)
def test_a_name_means_one_thing(name, kind):
    source = PolicySource.of(name)
    assert (source.kind, source.given) == (kind, str(name))
    assert PolicySource.of(source) is source


@pytest.mark.parametrize("name", ["", "clever", "./here", "/no/where", "tests/golden/nothing"])
def test_what_is_nothing_is_refused_with_what_there_is(name):
    with pytest.raises(ValueError, match=r"use one of \['random'.*'tiny'.*hub id.*endpoint"):
        PolicySource.of(name)


def test_the_shipped_policy_says_what_it_was_made_for():
    made_for = PolicySource.of("tiny").made_for
    assert made_for == tiny.MADE_FOR
    assert made_for.settings.resolved()["frame_size"] == [28, 28]


def test_what_a_policy_was_made_for_survives_its_file_and_nothing_else_is_read(tmp_path):
    made_for = MadeFor("tool_call", EpisodeSettings(max_turns=5), 64, 2, "mlvu", {"root": "x"})
    made_for.write(tmp_path)
    assert MadeFor.read(tmp_path) == made_for
    path = tmp_path / MADE_FOR_FILE
    good = json.loads(path.read_text())
    for change, says in (
        ({"format": 2}, "has format 2"),
        ({"colour": 1}, "has no 'colour'"),
        ({"settings": {"turns": 3}}, "has no 'turns'"),
        ({"settings": {"max_turns": 0}}, "max_turns=0 must be"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=rf"longvideo.json cannot be read: .*{says}"):
            MadeFor.read(tmp_path)


def test_a_checkpoint_of_another_checkout_plays_as_it_was_trained(tmp_path):
    """It was written before policies had settings of their own, and names a path of elsewhere."""
    source = PolicySource.of(GOLDEN / "checkpoint")
    assert source.made_for.settings == tiny.MADE_FOR.settings
    assert (source.made_for.max_new_tokens, source.made_for.history) == (24, 2)
    before = read_run(GOLDEN / "run-trained")
    assert weights_digest(load_policy(source.path, "cpu")) == before.card.policy["weights"]
    summary = evaluate(
        str(GOLDEN / "checkpoint"), "haystack", out=tmp_path / "run", split="val", episodes=6,
        suite_options={"families": "needle", "size": 12}, policy_options={"device": "cpu"},
    )  # fmt: skip
    now = read_run(summary["directory"])
    # Since then the parts of a prompt stand apart, which this policy's template takes back.
    changed = differences(now.card.protocol, before.card.protocol)
    assert [each.partition(":")[0] for each in changed] == ["prompt_digest"]
    outcomes = [{r.task["task_id"]: r.outcome for r in run.records} for run in (before, now)]
    assert outcomes[0] == outcomes[1]


def test_weights_of_another_checkout_that_is_still_there_play_as_they_were_trained(tmp_path):
    other = tmp_path / "agents" / "weights" / "tiny"
    shutil.copytree(WEIGHTS, other)
    (other / "longvideo.json").unlink()  # as earlier versions had them
    shutil.copytree(GOLDEN / "checkpoint", tmp_path / "checkpoint-000001")
    state = json.loads((tmp_path / "checkpoint-000001" / "state.json").read_text())
    state["config"]["model"] = str(other)
    (tmp_path / "checkpoint-000001" / "state.json").write_text(json.dumps(state))
    made_for = PolicySource.of(tmp_path).made_for
    assert made_for.settings == tiny.MADE_FOR.settings
    assert made_for.suite_options == tiny.SUITE_OPTIONS
    base = config_of(tmp_path).make_env("val").unwrapped
    assert base.settings["pool_size"] == 64 and base.settings["suite_options"] == tiny.SUITE_OPTIONS
    state["config"]["suite"] = "gym_longvideo.haystack:needle"  # then it had no settings of its own
    (tmp_path / "checkpoint-000001" / "state.json").write_text(json.dumps(state))
    base = config_of(tmp_path).make_env("val").unwrapped
    assert base.settings["pool_size"] == 128 and base.settings["suite_options"] == {}


def test_a_checkpoint_of_earlier_goes_on_with_the_settings_that_it_had(tmp_path):
    for name in ("state.json",):
        shutil.copy(GOLDEN / "checkpoint" / name, tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    state["config"]["env"] = {"pool_size": 9}
    (tmp_path / "state.json").write_text(json.dumps(state))
    # Then these replaced all that the shipped model was made for; now they are laid over it.
    settings = EpisodeSettings(pool_size=9)
    assert PolicySource.of(tmp_path).made_for.settings == settings
    base = config_of(tmp_path).make_env("val").unwrapped
    assert base.settings["pool_size"] == 9 and base.settings["frame_size"] == [56, 56]


def test_a_saved_policy_carries_its_settings_wherever_it_is_copied(tmp_path):
    trained(small(tmp_path / "run", iterations=1, eval_every=0, protocol="tags_seconds"))
    shutil.copytree(tmp_path / "run" / "checkpoint-000001" / "policy", tmp_path / "copy")
    for place in (tmp_path / "run", tmp_path / "copy"):
        made_for = PolicySource.of(place).made_for
        assert made_for.protocol == "tags_seconds" and made_for.max_new_tokens == 5
        assert made_for.settings == EpisodeSettings(**ENV)
        assert (made_for.suite, made_for.suite_options) == ("haystack", SUITE)


def test_the_settings_of_a_run_are_laid_over_those_of_its_model():
    base = TrainConfig(env={"pool_size": 9}).make_env("val").unwrapped
    assert base.settings["pool_size"] == 9 and base.settings["frame_size"] == [28, 28]
    assert base.settings["suite_options"] == tiny.SUITE_OPTIONS


def test_a_split_in_the_name_of_a_suite_is_trained_on_and_never_evaluated_on():
    config = TrainConfig(suite="haystack:val", eval_split="test")
    assert (config.suite, config.split, config.eval_split) == ("haystack", "val", "test")
    assert config.make_env(config.split).unwrapped.suite.split == "val"
    assert TrainConfig(suite="haystack:val", eval_every=0).split == "val"
    with pytest.raises(ValueError, match="split='val' would be trained and evaluated on"):
        TrainConfig(suite="haystack:val")


@pytest.mark.parametrize(
    "values",
    [
        {"suite": 5}, {"ppo": 5}, {"env": [1]}, {"out": 5}, {"batch": "4"}, {"lora_alpha": "x"},
        {"bonus": "yes"}, {"ppo": {"epochs": "2"}}, {"suite_options": None}, {"preset": "best"},
    ],
)  # fmt: skip
def test_a_configuration_of_other_types_is_refused_by_name(values):
    name = next(iter(values))
    with pytest.raises(ValueError, match=rf"the configuration's ({name}|epochs)=|{name}='best'"):
        TrainConfig.from_json(values)


def test_a_model_of_the_hub_that_cannot_be_had_is_refused_at_once(monkeypatch):
    import huggingface_hub

    asked = []

    def unreachable(name, file):
        asked.append((name, file))
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "file_exists", unreachable)
    with pytest.raises(ValueError, match=r"not in the local cache, and the hub cannot be reached"):
        TrainConfig(model="some/model").load_policy("cpu")
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda *_: False)
    with pytest.raises(ValueError, match="the hub has no model 'some/model'"):
        PolicySource.of("some/model").check()
    assert asked == [("some/model", "config.json")]


def test_large_models_see_frames_of_a_size_of_their_own(tmp_path):
    wide = {"model_type": "qwen2_5_vl", "text_config": {"hidden_size": 2048}}
    for name, config in (("wide", wide), ("flat", {"model_type": "x", "hidden_size": 1536})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "narrow").mkdir()
    narrow = json.loads((WEIGHTS / "config.json").read_text())
    (tmp_path / "narrow" / "config.json").write_text(json.dumps(narrow))
    large = ["Qwen/Qwen2.5-VL-3B-Instruct", "http://127.0.0.1:9/v1"]
    for name in (*large, tmp_path / "wide", tmp_path / "flat"):
        own = {"frame_size": 224, "max_pixels": 128 * 28 * 28, "pixel_unit": 28}
        source = PolicySource.of(name)
        assert source.settings == own
        assert _as_made_for(source, None, {"frame_budget": 64}) == (
            "tags", {**own, "frame_budget": 64},
        )  # fmt: skip
        # A size of one's own is what the model then sees.
        assert _as_made_for(source, None, {"frame_size": 56}) == ("tags", {"frame_size": 56})
    for name in ("random", tmp_path / "narrow"):
        assert PolicySource.of(name).settings == {}
    assert PolicySource.of("tiny").settings["frame_size"] == 28
    config = _defaults(PolicySource.of(large[1]), {})
    assert config.settings.frame_size == 224


def test_the_command_line_chooses_the_preset_by_the_model_and_lays_settings_over_it():
    assert parse([]).preset == "tiny"
    large = parse(["--model", "Qwen/Qwen2.5-VL-7B-Instruct", "--env", '{"frame_budget": 64}'])
    assert (large.preset, large.model) == ("recommended", "Qwen/Qwen2.5-VL-7B-Instruct")
    assert large.lora_rank == 64 and large.max_new_tokens == 512
    assert large.env == {"frame_size": 224, "frame_budget": 64}
    paper = parse(["--preset", "paper", "--env", '{"frame_budget": 64}'])
    assert paper.preset == "paper" and paper.env == {"frame_size": 224, "frame_budget": 64}
    said = parse(["--model", "Qwen/Qwen2.5-VL-3B-Instruct", "--preset", "tiny"])
    assert said.preset == "tiny" and said.env_options()["frame_size"] == 224
    assert make_train_config(model="Qwen/Qwen2.5-VL-3B-Instruct").preset == "recommended"
    assert make_train_config(batch=8).preset == "tiny"
    on = parse(["--resume", str(GOLDEN / "checkpoint"), "--env", '{"max_turns": 2}'])
    before = parse(["--resume", str(GOLDEN / "checkpoint")])
    assert on.env == {**before.env, "max_turns": 2} and before.env


def test_a_large_model_under_the_tiny_preset_is_warned_of(tmp_path, monkeypatch, caplog):
    Trainer(small(tmp_path / "one"), processes=Processes("cpu"))
    assert "preset" not in caplog.text
    monkeypatch.setattr("agents.source._LARGE", 64)
    Trainer(small(tmp_path / "two"), processes=Processes("cpu"))
    assert "replies of 5 tokens at most; use preset='recommended'" in caplog.text


def test_what_names_no_split_is_not_trained_and_evaluated_on(tmp_path):
    path = tmp_path / "mine.jsonl"
    row = {"question": "Which?", "options": ["x", "y"], "answer": "A"}
    path.write_text("\n".join(json.dumps({**row, "id": i, "video": f"{i}.mp4"}) for i in range(40)))
    config = TrainConfig(suite=str(path))
    assert config.suite_options == {"split_by": "video"}
    suites = [config.make_env(split).unwrapped.suite for split in ("train", "val")]
    one, other = ({suite[i].video for i in range(len(suite))} for suite in suites)
    assert (len(one), len(other)) == (32, 4) and not one & other
    assert config.made_for().suite_options == {"split_by": "video"}
    both = TrainConfig(suite=str(path), suite_options={"split_by": "none"})
    assert len(both.make_env("val").unwrapped.suite) == 40
    assert TrainConfig().suite_options == {}


def test_a_checkpoint_of_earlier_goes_on_with_all_the_records_that_it_had(tmp_path, monkeypatch):
    from agents import checkpoint

    state = checkpoint.read_state(checkpoint.find(GOLDEN / "checkpoint"))
    old = {**state, "config": {**state["config"], "suite": "mine.jsonl", "suite_options": {}}}
    new = {**old, "config": TrainConfig(suite="mine.jsonl").to_json()}
    for written, split_by in ((old, "none"), (new, "video")):
        monkeypatch.setattr(checkpoint, "read_state", lambda path, written=written: written)
        config = checkpoint.config_of(GOLDEN / "checkpoint")
        assert config.suite_options["split_by"] == split_by


def test_a_model_of_the_hub_that_is_not_here_yet_is_seen_at_the_size_of_its_tokens():
    for name, unit in (("Qwen/Qwen3-VL-4B-Instruct", 32), ("Qwen/Qwen2.5-VL-7B-Instruct", 28)):
        assert PolicySource.of(name).settings["pixel_unit"] == unit
