from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from agents_models import model_dir
from agents_training import ENV, small, trained
from benchmark_players import factory, jobs_of, play, suite_of

from agents.checkpoint import load_policy
from agents.command import parse
from agents.model.policy import MLLMPolicy
from agents.model.tiny import ENV_OPTIONS, SUITE_OPTIONS, WEIGHTS
from agents.source import EPISODE_SETTINGS, MadeFor, PolicySource
from benchmarks.card import Card
from benchmarks.controls import ControlledSuite
from benchmarks.evaluate import _defaults, evaluate
from benchmarks.evaluate_config import EvaluateConfig
from benchmarks.players import model as model_player
from benchmarks.players.model import (
    ModelPlayer,
    stack,
    weights_digest,
)
from benchmarks.players.player import (
    MeteredText,
)
from benchmarks.runs import RunWriter, read_run
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.settings import EpisodeSettings


def test_a_model_plays_what_it_would_play_alone_and_its_tokens_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = ControlledSuite(HaystackSuite("val", size=5, **SUITE_OPTIONS))
    jobs = jobs_of(suite)
    genuine = MeteredText.step

    def look_first(env: MeteredText, action: str) -> Any:
        look = "<think></think><retrieve>10, 30</retrieve>"
        return genuine(env, look if env.turn.first else action)

    monkeypatch.setattr(MeteredText, "step", look_first)

    def player(concurrency: int) -> ModelPlayer:
        make_env = factory(suite, **ENV_OPTIONS)
        return ModelPlayer(
            str(WEIGHTS), make_env, concurrency=concurrency, max_new_tokens=16, device="cpu"
        )

    alone, together = play(player(1), jobs), play(player(3), jobs)
    for key in alone:
        one, other = alone[key], together[key]
        assert one.record == other.record and one.record is not None
        for name in ("prompt_tokens", "visual_tokens", "reply_tokens", "requests"):
            assert one.cost[name] == other.cost[name]
        # A frame of 28 pixels is one token, and each was fed once.
        assert one.cost["visual_tokens"] == one.record.frames_shown == 16
        assert one.cost["prompt_tokens"] > one.cost["visual_tokens"]
        turns = len(one.record.turns)
        assert one.cost["requests"] == turns and turns < one.cost["reply_tokens"] <= 16 * turns
        assert one.cost["prefill_s"] > 0 and one.cost["generate_s"] > 0
        assert 8 < one.cost["frames_decoded"] <= 16


@pytest.mark.parametrize("shut", [(0,), (6,), (1, 2, 5), (0, 1, 2, 3, 4, 5), tuple(range(7))])
def test_a_model_plays_around_videos_that_do_not_open(shut: tuple[int, ...]) -> None:
    suite = suite_of(7, shut=shut)
    player = ModelPlayer(
        str(model_dir()), factory(suite), concurrency=3, max_new_tokens=3, device="cpu"
    )
    played = play(player, jobs_of(suite))
    for index in range(7):
        each = played[suite[index].task_id]
        assert (each.record is None) == (index in shut)
        if each.record is None:
            assert each.error.startswith("VideoOpenError")
        else:
            assert each.record.task["task_id"] == each.key


def test_the_card_of_a_model_names_its_weights() -> None:
    player = ModelPlayer(str(WEIGHTS), factory(suite_of(1)), device="cpu")
    again = MLLMPolicy.from_pretrained(WEIGHTS, device="cpu")
    assert player.policy == {
        "kind": "model", "name": "tiny", "weights": weights_digest(again), **stack(again),
        "sampling": "greedy", "max_new_tokens": 512, "history": None,
    }  # fmt: skip
    weight = again.actor_parameters()[-1]
    weight.data[..., -1] += 1e-4
    assert weights_digest(again) != player.policy["weights"]
    player.close()


def test_the_card_of_a_model_names_what_its_weights_run_in(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = MLLMPolicy.from_pretrained(WEIGHTS, device="cpu")
    own = stack(policy)
    assert own == stack(MLLMPolicy.from_pretrained(WEIGHTS, device="cpu"))
    assert own["attention"] == {"text": "sdpa", "vision": "eager"}
    assert (own["dtype"], own["device"]) == ("float32", "cpu")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    assert own["versions"] == versions
    assert own["images"]["patch"] == 14 and len(own["images"]["mean"]) == 3

    def changed() -> list[str]:
        now = stack(policy)
        return [knob for knob in own if now[knob] != own[knob]]

    tokenizer: Any = policy.codec.tokenizer
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "chat_template", tokenizer.chat_template + " ")
        assert changed() == ["chat_template"]
    with monkeypatch.context() as patch:
        patch.setattr(policy.encoder, "std", (0.5, 0.5, 0.5))
        assert changed() == ["images"]
    # Which of its two module objects transformers is depends on what was imported before.
    for library in (torch, model_player.transformers):
        with monkeypatch.context() as patch:
            patch.setattr(library, "__version__", "0.1")
            assert changed() == ["versions"]
    with monkeypatch.context() as patch:
        patch.setattr(MLLMPolicy, "device", torch.device("cuda", 1))
        assert changed() == ["device"] and stack(policy)["device"] == "cuda"
    tokenizer.add_tokens(["unheard-of"])
    assert changed() == ["tokenizer"]
    policy = MLLMPolicy.from_pretrained(WEIGHTS, device="cpu", attention="eager")
    assert changed() == ["attention"]
    policy = MLLMPolicy.from_pretrained(WEIGHTS, device="cpu", dtype=torch.bfloat16)
    assert changed() == ["dtype"]


def test_a_run_does_not_go_on_in_another_stack(tmp_path: Path) -> None:
    suite = suite_of(1)
    player = ModelPlayer(str(WEIGHTS), factory(suite), device="cpu")
    player.close()
    with RunWriter(tmp_path, Card({}, player.policy)):
        pass
    with RunWriter(tmp_path, Card({}, {**player.policy, "name": "moved"})):
        pass  # the same weights elsewhere
    for knob in (
        "dtype",
        "device",
        "attention",
        "versions",
        "tokenizer",
        "chat_template",
        "images",
    ):
        value = player.policy[knob]
        other = {**value, next(iter(value)): 0} if isinstance(value, dict) else "another"
        card = Card({}, {**player.policy, knob: other})
        with pytest.raises(ValueError, match=rf"begun under another card(.|\n)*policy\.{knob}"):
            RunWriter(tmp_path, card).__enter__()


def test_a_checkpoint_is_played_as_it_was_trained_unless_told_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    env = {**ENV, "max_turns": 2, "retrieval": "timeline"}
    run = tmp_path / "run"
    trained(small(run, eval_every=0, iterations=1, env=env, protocol="tags_seconds"))

    def settings_of(name: str, **options: Any) -> tuple[str, dict[str, Any]]:
        out = tmp_path / name
        evaluate(
            str(run), "haystack", out=out, split="val", suite_options={"size": 1},
            policy_options={"device": "cpu"}, **options,
        )  # fmt: skip
        protocol = read_run(out).card.protocol
        return protocol["text_protocol"], protocol["settings"]

    def warned() -> list[str]:
        said = [r.getMessage() for r in caplog.records if "as it was trained" in r.getMessage()]
        caplog.clear()
        return said

    protocol, settings = settings_of("as-trained")
    assert protocol == "tags_seconds" and warned() == []
    assert {name: settings[name] for name in EPISODE_SETTINGS if name in settings} == {
        "max_turns": 2, "frame_budget": 6, "overview_frames": 2, "frames_per_retrieval": 2,
        "pool_size": 16, "pool_rule": "midpoint", "frame_size": [28, 28], "fit": "stretch",
        "retrieval": "timeline",
    }  # fmt: skip
    given = {"pool_size": 8, "frame_size": 28, "retrieval": "pool", "max_turns": 2}
    protocol, other = settings_of("otherwise", protocol="tags", env=given)
    assert protocol == "tags"
    assert other == {**settings, "pool_size": 8, "retrieval": "pool"}
    assert warned() == [
        f"{run.name} is not played as it was trained: protocol='tags' "
        "(trained with 'tags_seconds'); pool_size=8 (trained with 16); "
        "retrieval='pool' (trained with 'timeline')"
    ]
    # A control is not what the user asked of these knobs.
    _, blind = settings_of("blind", control="blind")
    assert (blind["overview_frames"], blind["max_turns"]) == (0, 1) and warned() == []


def test_shares_of_a_frame_budget_are_compared_as_numbers() -> None:
    trained = MadeFor(settings=EpisodeSettings(overview_frames=16, frames_per_retrieval=8))
    assert trained.departures("tags", EpisodeSettings()) == []
    assert trained.departures("tags", EpisodeSettings(frame_budget=64)) == [
        "frame_budget=64 (trained with 32)",
        "overview_frames=32 (trained with 16)",
        "frames_per_retrieval=16 (trained with 8)",
    ]


def test_what_is_no_checkpoint_says_nothing_of_its_training(tmp_path: Path) -> None:
    assert PolicySource.of("some/model").made_for is None
    assert PolicySource.of(model_dir()).made_for is None
    with pytest.raises(ValueError, match="is no checkpoint, and no run that has one"):
        PolicySource.of(tmp_path)
    state = {"format": 1, "step": 1, "fingerprint": {}, "config": {"modle": "m"}}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="modle"):
        PolicySource.of(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="format None"):
        PolicySource.of(tmp_path)


def test_the_command_line_leaves_open_what_a_policy_was_made_for() -> None:
    def read(*words: str) -> dict[str, Any]:
        default = _defaults(PolicySource.of("tiny"), {})
        words = ("--suite", "haystack", "--policy", "tiny", *words)
        return parse(EvaluateConfig, words, "evaluate", default=default).arguments()

    left = read()
    assert left["protocol"] == "tags" and left["env"]["seek"] == "exact"
    own = EpisodeSettings(**ENV_OPTIONS)
    assert {name: left["env"][name] for name in EPISODE_SETTINGS} == asdict(own)
    given = read(
        "--protocol", "tool_call", "--frame-budget", "None", "--overview-frames", "4",
        "--frames-per-retrieval", "6", "--frame-size", "56", "--pool-rule", "linspace",
        "--seek", "auto",
    )  # fmt: skip
    assert given["protocol"] == "tool_call" and given["env"]["seek"] == "auto"
    assert {name: given["env"][name] for name in EPISODE_SETTINGS} == {
        **asdict(own), "frame_budget": None, "overview_frames": 4,
        "frames_per_retrieval": 6, "pool_rule": "linspace", "frame_size": 56,
    }  # fmt: skip


# peft 0.21 asks for a name that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_trained_adapter_plays_as_it_was_trained(tmp_path: Path) -> None:
    ppo = {"critic": "adapter", "history": 1}
    config = small(tmp_path, eval_every=0, iterations=1, lora_rank=4, lora_alpha=8.0, ppo=ppo)
    trained(config)
    suite = suite_of(3)
    player = ModelPlayer(str(tmp_path), factory(suite, max_turns=4), device="cpu")
    assert player.policy["weights"] == weights_digest(load_policy(tmp_path))
    assert player.policy["weights"] != weights_digest(MLLMPolicy.from_pretrained(model_dir()))
    assert player.policy["max_new_tokens"] == 5 and player.policy["history"] == 1
    again = ModelPlayer(str(tmp_path / "checkpoint-000001"), factory(suite), device="cpu")
    assert again.policy["name"] == "checkpoint-000001" != player.policy["name"]
    assert Card({}, again.policy).hash == Card({}, player.policy).hash
    again.close()
    for each in play(player, jobs_of(suite)).values():
        assert each.record is not None and each.cost["reply_tokens"] <= 5 * 4
        assert each.cost["visual_tokens"] == 4  # the overview was fed once, and left the window
    with pytest.raises(ValueError, match="a checkpoint has its own"):
        ModelPlayer(str(tmp_path), factory(suite), dtype="float32")
    (tmp_path / "checkpoint-000001" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot be loaded: checkpoint .* has format None"):
        ModelPlayer(str(tmp_path), factory(suite))


def test_weights_of_half_precision_and_single_numbers_have_a_digest() -> None:
    policy = MLLMPolicy.from_pretrained(WEIGHTS, device="cpu", dtype=torch.bfloat16)
    before = weights_digest(policy)
    assert len(before) == 12
    policy.base.register_parameter("scale", torch.nn.Parameter(torch.tensor(1.0)))
    assert weights_digest(policy) != before


def test_frames_that_do_not_fit_a_model_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"frame_size=\[28, 28\]"):
        ModelPlayer(str(WEIGHTS), factory(suite_of(1), frame_size=30), device="cpu")
