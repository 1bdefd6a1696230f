"""Scale: the models are those that are published, the arithmetic is right, and it runs small."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from agents.model import tiny
from agents.plan.sizes import Sizes
from agents.plan.work import Work
from agents.ppo import PPOLearner
from agents.ppo_config import make_config
from benchmarks.speed import memory, scale
from benchmarks.speed.iteration import Meter, Phase, iterate
from benchmarks.speed.scaled import ScaleConfig, build_policy, dialogues
from benchmarks.speed.sizes import SIZES, build_config

SMALL = {
    "size": "tiny",
    "device": "cpu",
    "episodes": 3,
    "frame_tokens": 2,
    "reply_tokens": 4,
    "minibatch": 2,
    "lora_rank": 2,
    "warmup": 0,
    "repeats": 2,
    "threads": 1,
}


@pytest.fixture(scope="module")
def policy():
    return build_policy(ScaleConfig(**SMALL))


@pytest.mark.parametrize(("size", "billions"), [("3b", 3.7546), ("7b", 8.2922)])
def test_the_large_sizes_have_the_published_number_of_weights(size, billions):
    from transformers import Qwen2_5_VLForConditionalGeneration

    config = build_config(SIZES[size], tiny.build_tokenizer())
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=1e-4)
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == SIZES[size].tied


def test_flop_of_a_forward_pass_by_hand(policy):
    work = Work(Sizes.of(policy.base))
    attention = 64 * 64 + 64 + 2 * (64 * 32 + 32) + 64 * 64
    layers = 2 * (attention + 3 * 64 * 96 + 2 * 64)
    assert work.language == layers
    # Three tokens after two: 6 pairs with what went before, and half of 3 x 3.
    assert work.forward(3, 2) == 2 * layers * 3 + 4 * 2 * 64 * (6 + 4.5)
    assert work.forward(5) == work.forward(2) + work.forward(3, 2)
    assert work.logits(3) == 2 * 2048 * 64 * 3
    patches, merged = 4 * 7, 7
    assert work.vision(7) == 2 * (work.tower * patches + work.merger * merged)
    assert work.tower + work.merger == sum(p.numel() for p in policy.encoder.visual.parameters())


def test_episodes_have_the_frames_of_the_budget(policy):
    episodes = dialogues(policy.codec, ScaleConfig(**{**SMALL, "frame_tokens": 8}))
    for episode in episodes:
        assert [len(turn.user.frames) for turn in episode.turns] == [16, 8, 8]
        frame = episode.turns[0].user.frames[0]
        assert math.prod(policy.codec.grid.tokens(*frame.shape[:2])) == 8
        assert not (frame == episode.turns[1].user.frames[0]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_iteration_goes_through_every_phase(dtype):
    config = ScaleConfig(**SMALL, dtype=dtype)
    torch.manual_seed(0)
    policy = build_policy(config)
    assert policy.head.weight.dtype == getattr(torch, dtype)
    assert policy.base.config.vision_config._attn_implementation == "eager"
    learner = PPOLearner(policy, make_config("recommended", history=None))
    before = [parameter.detach().clone() for parameter in learner.actor_parameters]
    episodes = dialogues(policy.codec, config)
    generator = torch.Generator().manual_seed(0)
    phases = iterate(learner, episodes, config, generator, Meter(policy.device))
    assert list(phases) == ["vision", "prefill", "decode", "score", "critic", "actor"]
    replies = [turn.reply for episode in episodes for turn in episode.turns]
    assert [len(reply.ids) for reply in replies] == [4] * 9
    assert phases["vision"].tokens == 3 * 32 * 2
    assert phases["decode"].tokens == 3 * 3 * 4
    # Every token of an episode goes through the model once, but for the last one.
    work = Work(Sizes.of(policy.base))
    lengths = [len(policy.row(next(iter(e.rows(policy.codec, None)))).ids) for e in episodes]
    played = phases["prefill"].flop + phases["decode"].flop - work.logits(36)
    assert played == pytest.approx(sum(work.forward(n - 1) for n in lengths))
    assert phases["score"].tokens == phases["actor"].tokens == sum(lengths)
    once = sum(work.forward(n) for n in lengths)
    assert phases["score"].flop == pytest.approx(3 * once + 2 * work.logits(36))
    assert phases["critic"].flop == pytest.approx(2 * once)
    assert phases["actor"].flop == pytest.approx(2 * once + 2 * work.logits(36))
    assert all(phase.seconds > 0 and math.isnan(phase.peak_bytes) for phase in phases.values())
    moved = [not torch.equal(p, b) for p, b in zip(learner.actor_parameters, before, strict=True)]
    assert any(moved)


def test_full_training_counts_the_gradients_of_weights_and_no_critic_that_is_a_head():
    config = ScaleConfig(**{**SMALL, "lora_rank": 0})
    torch.manual_seed(0)
    policy = build_policy(config)
    learner = PPOLearner(policy, config.training.ppo)
    assert learner.critic.kind == "head" and learner.reference is not None
    episodes = dialogues(policy.codec, config)
    generator = torch.Generator().manual_seed(0)
    kept = []

    def prepare() -> object:
        kept.append(len(phases_so_far.phases))
        return kept

    phases_so_far = Meter(policy.device)
    phases = iterate(learner, episodes, config, generator, phases_so_far, prepare)
    assert kept == [3]  # after the rollout, before the update
    work = Work(Sizes.of(policy.base))
    lengths = [len(policy.row(next(iter(e.rows(policy.codec, None)))).ids) for e in episodes]
    once = sum(work.forward(n) for n in lengths)
    assert phases["score"].flop == pytest.approx(2 * once + 2 * work.logits(36))
    assert phases["critic"].flop == 0
    assert phases["actor"].flop == pytest.approx(3 * once + 3 * work.logits(36))


def test_rates_are_those_of_the_median_iteration():
    config = ScaleConfig(peak_tflops=10.0, device="cpu")
    kept = [
        {"score": Phase(seconds, 100, 8e12, peak), "actor": Phase(1.0, 100, 2e12, 1e9)}
        for seconds, peak in ((9.0, 2e9), (4.0, 3e9), (2.0, 2e9))
    ]
    planned = {"score": 2.5e9, "actor": 1.5e9, "whole": 2.5e9}
    phases = scale.report(config, kept, "bfloat16", planned)["phases"]
    assert phases["score"] == pytest.approx(
        {"seconds": 4.0, "tokens": 100, "tokens_per_second": 25.0, "tflop": 8.0, "mfu": 0.2,
         "peak_gb": 3.0, "plan_bytes": 2.5e9}
    )  # fmt: skip
    assert phases["whole"] == pytest.approx(
        {"seconds": 5.0, "tokens": 100, "tokens_per_second": 20.0, "tflop": 10.0, "mfu": 0.2,
         "peak_gb": 3.0, "plan_bytes": 2.5e9}
    )  # fmt: skip


def test_the_command_prints_a_table_and_writes_json(monkeypatch, capsys, tmp_path):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    monkeypatch.setattr(sys, "argv", ["scale", *words, f"--json-file={tmp_path / 'out.json'}"])
    scale.main()
    printed = capsys.readouterr().out.splitlines()
    written = json.loads((tmp_path / "out.json").read_text())
    assert printed[0].startswith("tiny on cpu, float32")
    assert [line.split()[0] for line in printed[2:]] == list(written["phases"])
    assert list(written["phases"])[-1] == "whole"
    assert written["phases"]["whole"]["peak_gb"] is None
    assert written["config"]["reply_tokens"] == 4
    assert all(row["plan_bytes"] > 0 for row in written["phases"].values())


def test_memory_is_measured_beside_its_plan(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(memory, "measure_apart", memory.measure)
    words = ["--size=tiny", "--episodes=2", "--frame-tokens=1", "--reply-tokens=2"]
    assert memory.main([*words, f"--json-file={tmp_path / 'out.json'}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    phases = json.loads((tmp_path / "out.json").read_text())["phases"]
    assert list(phases) == ["vision", "prefill", "decode", "score", "critic", "actor", "whole"]
    assert [line.split()[0] for line in printed[2:]] == list(phases)
    for row in phases.values():
        assert row["plan_bytes"] > 0
        assert row["ratio"] == pytest.approx(row["plan_bytes"] / row["measured_bytes"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_a_meter_of_resident_memory_sees_what_was_freed_again():
    meter = memory.ResidentMeter(torch.device("cpu"), memory.resident())
    with meter.measure("once", 0, 0.0):
        size = torch.ones(2**26, dtype=torch.uint8).numel()
    assert meter.phases["once"].peak_bytes == pytest.approx(size, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"lora_rank": 0}, {"checkpointing": False}])
def test_what_is_measured_is_within_a_tenth_of_the_plan(options):
    found = memory.measure_apart(memory.MemoryConfig(**options))
    for name, row in found["phases"].items():
        assert row["ratio"] == pytest.approx(1, abs=0.1), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turns": 1}, "turns=1 must be a whole number, 2 or more"),
        ({"repeats": 0}, "repeats=0 must be a whole number, 1 or more"),
        ({"peak_tflops": 0.0}, "peak_tflops=0.0 must be a number greater than 0"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ScaleConfig(**options)
