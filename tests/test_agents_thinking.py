"""Models whose chat templates drop earlier thinking: played, trained and evaluated as they show."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from agents_models import DOT, load, model_dir
from agents_training import small, trained
from benchmark_players import factory, jobs_of, suite_of
from chat_templates import QWEN3_5, QWEN3_THINKING
from worlds import GreySuite

from agents.checkpoint import load_policy
from agents.command import parse
from agents.config import TrainConfig
from agents.model.chat import ChatCodec
from agents.model.sampling import Reply, Sampling
from agents.rollout import RolloutCollector
from agents.source import MadeFor, PolicySource
from agents.trajectory import rows_of
from benchmarks.evaluate_config import EvaluateConfig
from benchmarks.players.make import make_player
from benchmarks.players.model import ModelPlayer
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.episode import Retrieve
from gym_longvideo.wrappers import TextProtocol

T = 0.7
ACT = "<retrieve>2, 9</retrieve>"
THINK = f"\nIt was early on.</think>\n\n{ACT}"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """Return the directory of a tiny model with the chat template of Qwen3.5."""
    place = tmp_path_factory.mktemp("thinker") / "model"
    shutil.copytree(model_dir(), place)
    (place / "chat_template.jinja").write_text(QWEN3_5)
    return place


def thinking(policy):
    """Give a policy the chat template of Qwen3-VL Thinking."""
    codec = policy.codec
    codec.tokenizer.chat_template = QWEN3_THINKING
    ids = codec.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    policy.codec = ChatCodec(
        codec.tokenizer,
        image_token_id=codec.image_token_id,
        vision_start_id=ids[0],
        vision_end_id=ids[1],
        grid=codec.grid,
        vocab_size=policy.head.out_features,
    )
    return policy


def collect(policy, history=None, **options):
    envs = [
        TextProtocol(
            LongVideoQAEnv(
                GreySuite(), pool_size=16, overview_frames=2, frames_per_retrieval=2,
                frame_budget=None, frame_size=list(DOT), max_turns=4,
            )
        )
        for _ in range(2)
    ]  # fmt: skip
    collector = RolloutCollector(envs, policy, history=history, workers=0, **options)
    try:
        return collector.collect(
            (0, 1), Sampling(temperature=T, max_new_tokens=6), torch.Generator().manual_seed(0)
        )
    finally:
        collector.close()


@pytest.mark.parametrize("history", [0, 1, None])
def test_each_turn_begins_with_the_whole_context_and_no_earlier_thought(history):
    policy, calls = thinking(load()), []

    class Says:
        prefilled = decoded = 0

        def reply(self, keys, blocks, *, fresh=False):
            ids = policy.codec.encode_reply(THINK).ids
            calls.append((blocks, fresh))
            return [Reply(ids, np.zeros(len(ids), np.float32), False) for _ in keys]

    episodes = collect(policy, history, session=lambda *_: Says())
    assert len(calls) == 4 and all(fresh for _, fresh in calls)
    rows = rows_of(episodes, policy, history)[0]
    assert len(rows) == 8  # one a turn
    for turn, (blocks, _) in enumerate(calls):
        for place, context in enumerate(blocks):
            ids = np.concatenate([block.ids for block in context])
            words = policy.codec.tokenizer.decode(ids.tolist())
            kept = turn if history is None else min(turn, history)
            assert words.count(f"assistant\n{ACT}<|im_end|>") == kept
            assert "It was early on" not in words and words.endswith("assistant\n<think>\n")
            row = rows[4 * place + turn]
            assert (
                row.ids[: len(ids)].tolist() == ids.tolist() and not row.sampled[: len(ids)].any()
            )
            said = episodes[place].turns[turn].reply.ids
            assert row.ids[len(ids) :].tolist() == said.tolist() and row.sampled[len(ids) :].all()


@pytest.mark.parametrize("history", [1, None])
def test_what_is_trained_has_the_log_probs_that_were_decoded(history):
    policy = thinking(load())
    episodes = collect(policy, history)
    assert max(len(each.turns) for each in episodes) > 2
    rows, owners = rows_of(episodes, policy, history)
    with torch.no_grad():
        scores = policy.score(rows, temperature=T)
    for owner, each in enumerate(episodes):
        mine = [scores.log_probs[i][scores.mask[i]] for i, o in enumerate(owners) if o == owner]
        said = np.concatenate([turn.reply.log_probs for turn in each.turns])
        torch.testing.assert_close(torch.cat(mine), torch.from_numpy(said), atol=1e-4, rtol=0)


def test_a_run_is_trained_and_played_with_thinking_as_it_was_switched(thinker, tmp_path):
    config = small(tmp_path, model=str(thinker), thinking=False, eval_every=0, iterations=1)
    assert config.load_policy("cpu").codec.skips_thought
    assert replace(config, thinking=None).load_policy("cpu").codec.opens_thought
    trained(config)
    assert load_policy(tmp_path, "cpu").codec.skips_thought
    saved = tmp_path / "checkpoint-000001" / "policy"
    assert MadeFor.read(saved).thinking is False
    # What it was made for is what it goes on with, and what it is played with.
    assert small(tmp_path, model=str(saved)).load_policy("cpu").codec.skips_thought
    suite = suite_of(1)
    for place, options, off in (
        (tmp_path, {}, True), (saved, {}, True), (saved, {"thinking": True}, False),
        (thinker, {}, None), (thinker, {"thinking": False}, True),
    ):  # fmt: skip
        player = ModelPlayer(str(place), factory(suite), device="cpu", **options)
        assert player._model.codec.skips_thought == bool(off)
        assert player.policy.get("thinking") == (None if off is None else not off)
        player.close()


def test_a_local_model_is_shown_its_whole_context_each_turn(thinker, monkeypatch):
    suite = suite_of(1)
    monkeypatch.setattr("gym_longvideo.protocol.Tags.parse", lambda *_: Retrieve(0, 3))
    player = make_player(
        str(thinker), factory(suite, max_turns=3), options={"max_new_tokens": 2, "device": "cpu"}
    )
    (played,) = player.play(jobs_of(suite))
    cost, shown = played.cost, played.record.frames_shown
    # The frames of the first turn were fed three times, those of the second twice.
    assert cost["visual_tokens"] > shown > 0 and cost["requests"] == 3
    player.close()


def test_a_switch_that_a_template_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="thinking=False cannot be said to the chat template"):
        small(tmp_path, thinking=False).load_policy("cpu")
    with pytest.raises(ValueError, match="thinking=True cannot be said to the chat template"):
        ModelPlayer(str(model_dir()), factory(suite_of(1)), device="cpu", thinking=True)
    with pytest.raises(ValueError, match="thinking='no' must be True, False or None"):
        MadeFor(thinking="no")  # type: ignore[arg-type]


def test_thinking_is_switched_on_the_command_line_of_local_models():
    words = ("--suite", "haystack", "--policy", "some/model", "--thinking", "False")
    config = parse(EvaluateConfig, words, "evaluate")
    options = config.arguments()["policy_options"]
    assert options == {"max_new_tokens": 0, "thinking": False}
    assert EvaluateConfig.of(**{**_arguments(config), "policy_options": options}) == config
    assert "thinking" not in replace(config, thinking=None).arguments()["policy_options"]
    config = parse(TrainConfig, ("--thinking", "True"), "train")
    assert config.thinking is True and TrainConfig().thinking is None
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    for policy in ("http://localhost:1/v1", "random"):
        with pytest.raises(ValueError, match="thinking"):
            make_player(PolicySource.of(policy), factory(suite_of(1)), options={"thinking": True})


def _arguments(config):
    given = config.arguments()
    given["protocol"] = given["protocol"] or ""
    given["quiet"] = not given.pop("progress")
    return given
