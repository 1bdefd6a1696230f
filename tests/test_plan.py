"""Plans: exact counts, numbers by hand, advice that holds, refusals, documented tables."""

from __future__ import annotations

import json
import logging
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from agents_families import KINDS, family_dir, load_family
from agents_models import model_dir
from agents_tensors import Alive
from agents_training import small

from agents import train
from agents.config import TrainConfig, make_train_config
from agents.model.policy import LoRA
from agents.parallel import Processes
from agents.plan import refusal
from agents.plan.__main__ import main
from agents.plan.advice import advise
from agents.plan.limits import CARDS, main_memory, memory_of
from agents.plan.memory import plan_memory
from agents.plan.moments import GIB, PHASES, Place
from agents.plan.passes import Batch, Passes, TowerPasses
from agents.plan.published import PUBLISHED, Size
from agents.plan.sizes import Sizes, sizes_of
from agents.plan.work import Work, iteration
from agents.plan.workload import Step, Workload, counter_of
from agents.source import PolicySource
from agents.trainer import Trainer
from benchmarks.speed import scaled
from benchmarks.speed.scale import planned_bytes
from benchmarks.speed.scaled import ScaleConfig, build_policy, dialogues
from gym_longvideo import __main__ as cli

DOCS = Path(__file__).parents[1] / "docs" / "plan.md"
SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"
# Safetensors metadata of the models on the hub.
COUNTS = {
    "Qwen2.5-VL-3B": 3_754_622_976, "Qwen2.5-VL-7B": 8_292_166_656, "Qwen3-VL-2B": 2_127_532_032,
    "Qwen3-VL-4B": 4_437_815_808, "Qwen3-VL-8B": 8_767_123_696,
}  # fmt: skip


def config_dir(kind: str, tied: bool, path: Path) -> Path:
    values = json.loads((family_dir(kind) / "config.json").read_text())
    values["tie_word_embeddings"] = values["text_config"]["tie_word_embeddings"] = tied
    (path / "config.json").write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_a_real_model_part_by_part(kind, tied, tmp_path):
    path = config_dir(kind, tied, tmp_path)
    sizes = sizes_of(PolicySource.of(str(path)))
    config = transformers.AutoConfig.from_pretrained(path)
    model: Any = transformers.AutoModelForImageTextToText.from_config(config)
    assert sizes.total == sum(p.numel() for p in model.parameters())
    language = model.model.language_model
    assert sizes.language == sum(p.numel() for p in language.parameters())
    assert sizes.tower == sum(p.numel() for p in model.model.visual.parameters())
    assert sizes.head == (0 if tied else model.lm_head.weight.numel())
    assert sizes.decoder == sum(p.numel() for p in language.layers.parameters())
    norm = sum(p.numel() for p in language.norm.parameters())
    assert sizes.root == language.embed_tokens.weight.numel() + norm + sizes.head
    assert sizes == Sizes.of(model)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_have_the_weights_that_peft_gives_them_and_count_no_more(kind):
    policy = load_family(kind, lora=LoRA(3))
    sizes = Sizes.of(policy.base)
    assert 3 * sizes.adapted == sum(p.numel() for p in policy.actor_parameters())
    assert sizes == sizes_of(PolicySource.of(str(family_dir(kind))))


def test_published_models_have_their_published_numbers_of_weights():
    found = {name: sizes_of(PolicySource.of(name)).total for name in PUBLISHED}
    for name, count in found.items():
        assert count == COUNTS[name.removeprefix("Qwen/").rpartition("-")[0]], name


def test_a_session_of_turns_by_hand():
    # System 10; users 100, 50, 40 with 4, 2, 1 frames; replies of 8, and one token after each.
    load = Workload.from_turns(10, [100, 50, 40], [4, 2, 1], 16, 8)
    assert load.turns == (Step(110, 0, 4), Step(52, 117, 2), Step(42, 176, 1))
    assert load.rows == (10 + 109 + 59 + 48,) and load.said == (24,) and load.frames == 7
    # One earlier turn in context: the third turn is prefilled anew, and a row of its own.
    load = Workload.from_turns(10, [100, 50, 40], [4, 2, 1], 16, 8, history=1)
    assert load.turns[2] == Step(10 + 59 + 40, 0, 3)
    assert load.rows == (10 + 109 + 58, 10 + 59 + 48) and load.said == (16, 8)
    # Earlier thoughts are dropped: every turn.
    load = Workload.from_turns(10, [100, 50], [4, 2], 16, 8, forgets=True)
    assert load.turns == (Step(110, 0, 4), Step(10 + 109 + 50, 0, 6))
    assert load.rows == (118, 10 + 109 + 58)


def test_the_tokens_of_an_episode_are_those_of_the_environment():
    config = TrainConfig()
    load = Workload.of(config, 28, counter_of(config.source.path))
    policy = config.load_policy("cpu")
    env = config.make_env("train")
    env.reset(options={"index": 0})
    system = policy.codec.system(env.messages()[0]["content"][0]["text"])
    first = policy.codec.user(env.messages()[-1]["content"])
    assert load.turns[0].new == pytest.approx(len(system.ids) + len(first.ids), rel=0.1)
    assert load.frames == 24 and load.frame == 1 and load.reply == 48


def test_seven_billion_weights_on_eight_gpus_by_hand():
    config = make_train_config("paper", model=SEVEN)
    sizes = sizes_of(config.source)
    actor, trunk, tower = 7.615616e9, 7.070619e9, 0.676550e9
    assert sizes.actor == pytest.approx(actor, rel=1e-6)
    assert sizes.language == pytest.approx(trunk, rel=1e-6)
    assert sizes.tower == pytest.approx(tower, rel=1e-6)
    plan = plan_memory(config, Place(8, 8))
    rest, learning = plan.moment("rest").parts, plan.moment("actor").parts
    assert rest["weights"] == pytest.approx(4 * actor / 8, rel=1e-6)
    assert rest["critic"] == pytest.approx(4 * trunk / 8, rel=1e-5)
    assert rest["optimiser"] == pytest.approx(8 * (actor + trunk) / 8, rel=1e-5)
    assert rest["reference"] == pytest.approx(2 * actor / 8, rel=1e-6)
    assert rest["tower"] == pytest.approx(2 * tower / 8, rel=1e-6)
    assert learning["tower"] == pytest.approx(2 * tower * 9 / 8, rel=1e-6)
    # b (A + C) / 8 + 2 A / 8 + 2 V with b = 16, were both gradients there at once.
    states = sum(rest[name] for name in ("weights", "critic", "optimiser", "reference"))
    states += 2 * tower + plan.moment("actor").parts["gradients"]
    states += plan.moment("critic").parts["gradients"]
    assert states / GIB == pytest.approx(30.4, abs=0.05)
    assert plan.moment("decode").parts["generation copy"] == pytest.approx(2 * actor, rel=1e-6)
    # Embedding, norm and head; two layers; gradients of the former, of a layer, and these in fp32.
    root, layer = 2 * 152064 * 3584 + 3584, 233057792
    gathered = 2 * (root + 2 * layer) + 2 * root + (2 + 4) * layer
    assert learning["gathered weights"] == gathered
    # 28 layers of 4 key heads of 128, in two bytes, for keys and values of 4 dialogues.
    columns = sum(turn.new for turn in Workload.of(config, 28).turns) + 3 * 512 - 2
    kept = plan.moment("decode").parts["KV cache"]
    assert kept == pytest.approx(4 * columns * 2 * 28 * 512 * 2 * 29 / 28, rel=1e-3)
    assert plan.loading == 0 and plan.host == 0  # read in parts; too much to be taken back


def test_the_iteration_that_was_measured_on_a_gpu_is_planned_within_a_twentieth():
    found = json.loads((DOCS.parent / "performance" / "h200-3b-lora.json").read_text())
    config = ScaleConfig()  # as it was then
    assert {k: found["config"][k] for k in ("size", "episodes", "frame_tokens", "lora_rank")} == {
        "size": "3b", "episodes": 32, "frame_tokens": 128, "lora_rank": 64,
    }  # fmt: skip
    load = Workload.from_turns(30, [2165, 1114, 1112], [16, 8, 8], 128, config.reply_tokens)
    plan = plan_memory(
        config.training,
        Place(),
        sizes=sizes_of(PolicySource.of("Qwen/Qwen2.5-VL-3B-Instruct")),
        load=load,
        micro=Batch(load.longest, load.longest, 1, False),
    )
    for name, peak in planned_bytes(plan).items():
        assert peak / 1e9 == pytest.approx(found["phases"][name]["peak_gb"], rel=0.05), name


def test_other_settings_take_what_they_should():
    place = Place(8, 8)
    paper = make_train_config("paper", model=SEVEN)
    whole = plan_memory(paper, place).moment("rest").parts

    def rest(**changes: Any) -> dict[str, float]:
        ppo = replace(paper.ppo, **changes.pop("ppo", {}))
        return dict(plan_memory(replace(paper, ppo=ppo, **changes), place).moment("rest").parts)

    small_moments = rest(ppo={"optimizer": "adamw8bit"})
    assert small_moments["optimiser"] == pytest.approx(whole["optimiser"] * 2.0625 / 8)
    assert "reference" not in rest(ppo={"beta": 0.0})
    assert rest(ppo={"critic": "head"})["optimiser"] < 0.6 * whole["optimiser"]
    assert rest(shard=4)["weights"] == 2 * whole["weights"]
    seen = rest(train_vision=True)
    assert seen["tower"] == 2 * whole["tower"] and seen["optimiser"] > whole["optimiser"]
    sizes = sizes_of(paper.source)
    lora = make_train_config("recommended", model=SEVEN)
    parts = plan_memory(lora, Place()).moment("rest").parts
    assert parts["weights"] == 2 * sizes.actor and parts["tower"] == 2 * sizes.tower
    assert parts["adapters"] == 4 * 2 * 64 * sizes.adapted and "reference" not in parts
    one = plan_memory(lora, Place())
    assert "generation copy" not in one.moment("decode").parts
    assert "gathered weights" not in one.moment("actor").parts
    assert one.loading == 2 * sizes.total
    assert one.host == pytest.approx(12 * (2 * 64 * sizes.adapted + 3 * 3584 + 1))
    two = plan_memory(lora, Place(2, 2))
    assert two.moment("decode").parts["generation copy"] > 2 * sizes.actor
    assert plan_memory(replace(lora, attention="eager"), Place()).peak.total > one.peak.total
    flash = plan_memory(replace(lora, attention="flash_attention_2"), Place())
    assert flash.moment("prefill").total < one.moment("prefill").total
    cpu = plan_memory(TrainConfig(), Place(gpu=False))
    assert "undo" in cpu.worst("learning").parts and "undo" not in cpu.worst("rollout").parts


@pytest.mark.parametrize("name", ["recommended", "paper"])
def test_parts_sum_to_totals_and_the_peak_is_the_worst_phase(name):
    plan = plan_memory(make_train_config(name, model=SEVEN), Place(4, 4))
    for moment in plan.moments:
        assert moment.total == sum(moment.parts.values())
        assert moment.tensors == moment.total - moment.parts["runtime"]
        assert min(moment.parts.values()) > 0
    assert plan.peak.total == max(plan.worst(phase).total for phase in PHASES)


MIDDLE = Size(128, 3, 4, 2, 352, 2048, True, (4, 6, 6), 3, 64, 2, 172, (0, 2))


@pytest.mark.parametrize("checkpointing", [True, False], ids=["again", "kept"])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "even"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 16])
def test_passes_take_the_bytes_of_their_tensors(rank, dtype, padded, checkpointing, monkeypatch):
    monkeypatch.setitem(scaled.SIZES, "tiny", MIDDLE)
    config = ScaleConfig(
        "tiny", "cpu", dtype, episodes=2, frame_budget=16, frame_tokens=8, lora_rank=rank,
        checkpointing=checkpointing,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = build_policy(config)
    episodes = dialogues(policy.codec, config)
    ids = np.random.default_rng(0).integers(0, 256, 40)
    said = policy.codec.reply(ids)._replace(sampled=True)
    blocks = [[e.system, e.turns[0].user, said] for e in episodes]
    for i, row in enumerate(blocks):  # frames of all turns, to make rows long
        row[2:2] = [turn.user for turn in episodes[i].turns[1 : 2 if padded and i else None]]
    rows = [policy.row(row) for row in blocks]
    if not padded:
        rows = [rows[0], rows[0]]
    longest = max(len(row.ids) for row in rows)
    batch = Batch(2 * longest, longest, 2, padded)
    sizes = Sizes.of(policy.base)
    e = 4 if dtype == "float32" else 2
    passes, tower = Passes(sizes, e, rank), TowerPasses(sizes, e)
    frames = [frame for row in rows for frame in row.frames]
    patches = len({frame.tobytes() for frame in frames}) * 8 * 4
    with torch.no_grad(), Alive() as alive:
        kept = policy.encoder(frames)
        del kept
    assert tower.forward(patches) == pytest.approx(alive.peak, rel=0.1)
    with torch.no_grad(), Alive() as alive:
        policy.states(rows)
    assert passes.forward(batch) == pytest.approx(alive.peak, rel=0.1)
    with Alive() as alive:
        loss = policy.states(rows)[0].float().sum()
        assert passes.saved(batch, checkpointing) == pytest.approx(alive.now, rel=0.1)
        alive.peak = 0
        loss.backward()
    gradients = sum(p.grad.nbytes for p in policy.actor_parameters() if p.grad is not None)
    expected = passes.saved(batch, checkpointing) + passes.backward(batch, checkpointing)
    largest = sizes.largest * e * (not rank)
    assert alive.peak <= 1.1 * (expected + gradients + largest)
    assert alive.peak >= 0.9 * expected


def test_work_of_an_iteration_by_hand():
    config = make_train_config("recommended", model=SEVEN, batch=2)
    sizes = sizes_of(config.source)
    work = Work(sizes)
    load = Workload.from_turns(10, [100, 50], [4, 2], 16, 8)
    found = iteration(config, work, load)
    once, logits = work.forward(10 + 109 + 58), work.logits(16)
    assert found["vision"] == 2 * work.vision(96)
    assert found["prefill"] == 2 * (work.forward(110) + work.forward(52, 117))
    assert found["decode"] == 2 * (work.forward(7, 110) + work.forward(7, 169) + logits)
    assert found["score"] == 2 * (3 * once + 2 * logits)
    assert found["critic"] == 2 * 2 * once
    assert found["actor"] == 2 * 2 * (once + logits)
    full = iteration(replace(make_train_config("paper", model=SEVEN), batch=2), work, load)
    assert full["actor"] == 2 * 3 * (once + logits) and full["critic"] == 2 * 3 * once


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("preset", ["recommended", "paper"])
@pytest.mark.parametrize("count", [1, 8])
def test_advice_is_made_of_options_with_which_the_run_fits(card, preset, count):
    limit, place = CARDS[card], Place(count, count)
    words = ["--preset", preset, "--model", SEVEN]
    config = train.parse(words)
    change = advise(config, place, limit)
    if change is None:
        return
    options = shlex.split(change.options)
    processes = count
    if "--gpus" in options:
        at = options.index("--gpus")
        processes = int(options[at + 1])
        del options[at : at + 2]
    again = train.parse([*words, *options])
    assert again == change.config and processes == change.place.processes
    assert plan_memory(again, Place(processes, min(8, processes))).peak.total <= limit


def test_one_setting_is_changed_where_that_is_enough_and_the_mildest_comes_first():
    config = make_train_config("recommended", model=SEVEN, checkpointing=False)
    place = Place()

    def peak(**changes: Any) -> float:
        return plan_memory(replace(config, **changes), place).peak.total

    assert peak(checkpointing=True) < peak()
    change = advise(config, place, peak(checkpointing=True))
    assert change is not None and change.options == "--checkpointing"
    config = replace(config, checkpointing=True)
    change = advise(config, place, peak(envs=8))
    assert change is not None and change.options == "--envs 8"
    assert advise(config, place, 1 * GIB) is None


def test_a_run_that_cannot_fit_is_refused_before_its_model_is_loaded(tmp_path, monkeypatch):
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(TrainConfig, "load_policy", load)
    monkeypatch.setattr(refusal, "main_memory", lambda: 20e3)
    with pytest.raises(ValueError, match=r"this run needs about .* GiB .*longvideo plan says more"):
        Trainer(small(tmp_path / "run"), processes=Processes("cpu"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("share", "says"), [(1.2, ""), (1.05, "may run out"), (0.95, "may run out"), (0.8, "refused")]
)
def test_near_the_limit_there_is_a_warning(share, says, monkeypatch, caplog):
    config = make_train_config("recommended", model=SEVEN, device="cpu")
    need = plan_memory(config, Place(gpu=False)).peak.tensors
    monkeypatch.setattr(refusal, "main_memory", lambda: share * need)
    if says == "refused":
        with pytest.raises(ValueError, match=r"; use --\S.* \(longvideo plan"):
            refusal.refuse_what_cannot_fit(config, Processes("cpu"))
    else:
        refusal.refuse_what_cannot_fit(config, Processes("cpu"))
        assert says in caplog.text and bool(caplog.text) == bool(says)


def test_the_process_with_the_least_memory_decides_for_all(monkeypatch):
    class One(Processes):
        def gather(self, value: Any) -> list[Any]:
            return [value, (value[0], 40 * GIB)]  # another process has 40 GiB

    config = make_train_config("recommended", model=SEVEN, device="cpu")
    monkeypatch.setattr(refusal, "main_memory", lambda: 100 * GIB)
    refusal.refuse_what_cannot_fit(config, Processes("cpu"))
    with pytest.raises(ValueError, match="and one here has 40;"):
        refusal.refuse_what_cannot_fit(config, One("cpu"))


def test_what_is_not_known_is_not_refused(tmp_path, monkeypatch, caplog):
    config = small(tmp_path)
    monkeypatch.setattr(refusal, "main_memory", lambda: None)
    refusal.refuse_what_cannot_fit(config, Processes("cpu"))
    monkeypatch.setattr(refusal, "main_memory", lambda: 1.0)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    other = replace(config, model=str(tmp_path))
    with caplog.at_level(logging.INFO):
        refusal.refuse_what_cannot_fit(other, Processes("cpu"))
    assert "the memory of this run is not planned: the model of" in caplog.text


def test_main_memory_is_what_is_available_or_left_of_a_group(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    proc.mkdir()
    groups.mkdir()
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert main_memory(proc, groups) == 4000 * 1024
    (groups / "memory.max").write_text("3000000\n")
    (groups / "memory.current").write_text("1500000\n")
    (groups / "memory.stat").write_text("anon 7\ninactive_file 500000\n")
    assert main_memory(proc, groups) == 2_000_000
    (groups / "memory.max").write_text("max\n")
    assert main_memory(proc, groups) == 4000 * 1024
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("1000")
    (groups / "memory" / "memory.usage_in_bytes").write_text("400")
    (groups / "memory" / "memory.stat").write_text("total_inactive_file 100")
    assert main_memory(proc, groups) == 700


@pytest.mark.parametrize("name", ["0", "-3", "much", "nan", "inf"])
def test_memory_that_is_no_number_is_refused(name):
    with pytest.raises(ValueError, match="must be a number of GiB, or a card: 24, 40, 80, 141"):
        memory_of(name)


def test_the_command_says_whether_it_fits(capsys, tmp_path):
    words = ["--preset", "paper", "--model", SEVEN, "--gpus", "8"]
    out = tmp_path / "plan.json"
    more = ["--peak-tflops", "1000", "--mfu", "0.5", "--json-file", str(out)]
    assert cli.main(["plan", *words, "--memory", "80", *more]) == 0
    said = capsys.readouterr().out
    assert "8 x 79.2 GiB: " in said and "which fits." in said and "seconds by calculation" in said
    (found,) = json.loads(out.read_text())
    plan = plan_memory(make_train_config("paper", model=SEVEN), Place(8, 8))
    assert found["peak_bytes"] == plan.peak.total
    assert found["fits"]["40 GB"] == "with --ppo.optimizer adamw8bit"
    flop = found["flop"]["actor"]
    assert found["seconds_by_calculation"]["actor"] == pytest.approx(flop / 8 / 1e15 / 0.5)
    assert cli.main(["plan", *words, "--memory", "40"]) == 1
    assert "does not fit; it would with --ppo.optimizer adamw8bit." in capsys.readouterr().out
    assert main([*words, "--memory", "40", "--ppo.optimizer", "adamw8bit"]) == 0


def test_a_directory_of_a_configuration_alone_is_planned_and_an_unknown_model_is_not(
    capsys, tmp_path
):
    path = config_dir("qwen2_5_vl", True, tmp_path)
    assert main(["--model", str(path), "--device", "cpu"]) == 0
    assert "1 process on a CPU" in capsys.readouterr().out
    assert main(["--model", "Nobody/Nothing-VL", "--gpus", "2"]) == 2
    assert "give the directory of its config.json, or one of ['Qwen/" in capsys.readouterr().err
    assert main(["--model", str(model_dir()), "--gpus", "0"]) == 2
    assert main(["--model", str(model_dir()), "--gpus", "3", "--shard", "2"]) == 2
    assert "shard=2: 3 processes cannot be shared out" in capsys.readouterr().err


def test_the_documentation_shows_what_the_command_prints(capsys):
    text = DOCS.read_text(encoding="utf-8")
    commands = re.findall(r"^longvideo plan (.+ --markdown)$", text, re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        assert main(shlex.split(command)) == 0
        shown = f"```bash\nlongvideo plan {command}\n```\n\n{capsys.readouterr().out}"
        assert shown in text, command
