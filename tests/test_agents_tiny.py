import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from agents.lessons import ACTION, LETTER, SKILLS, Teacher
from agents.model import tiny
from agents.model.policy import MLLMPolicy
from agents.model.sampling import Sampling
from agents.pretrain_tiny import PretrainConfig, loss_of, pretrain, schedule
from agents.rollout import RolloutCollector, play
from gym_longvideo.wrappers import TextProtocol


def make_env(**options):
    return TextProtocol(
        gym.make(
            "gym_longvideo:LongVideoQA-v0",
            disable_env_checker=True,
            suite_options=tiny.SUITE_OPTIONS,
            **{**tiny.ENV_OPTIONS, **options},
        )
    )


@pytest.fixture(scope="module")
def policy():
    return MLLMPolicy.from_pretrained(tiny.WEIGHTS)


@pytest.fixture(scope="module")
def teacher(policy):
    return Teacher(policy.codec, seed=0, retrieve_rate=0.04)


def test_the_shipped_model_is_a_plain_qwen_of_about_a_million_parameters():
    model = AutoModelForImageTextToText.from_pretrained(tiny.WEIGHTS)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 3e6


def test_the_shipped_tokenizer_is_the_one_that_the_code_builds(policy):
    assert policy.codec.tokenizer.get_vocab() == tiny.build_tokenizer().get_vocab()


def test_a_prompt_of_eight_frames_costs_about_a_hundred_tokens(policy):
    env = make_env()
    env.reset(seed=0)
    block = policy.codec.user(env.messages()[-1]["content"])
    assert len(block.frames) == 8
    assert len(block.ids) <= 100


def test_any_text_survives_the_tokenizer(policy):
    tokenizer = policy.codec.tokenizer
    for text in ("Why? <b>é</b> 12,345 \u4f60\u597d\n\tx", "frame 255 and 256", "<think>a</think>"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_index_of_a_pool_is_one_token_wherever_it_stands(policy):
    for text in ("<retrieve>12, 127</retrieve>", "frame_idx:127", "indices: 4, 127."):
        ids = policy.codec.encode_reply(text, end=False).ids
        assert policy.codec.tokenizer.convert_tokens_to_ids("127") in ids


def test_the_base_answers_at_once_in_the_strict_form_and_reads_what_it_saw(policy):
    torch.set_num_threads(1)
    envs = [make_env(split="val") for _ in range(32)]
    collector = RolloutCollector(envs, policy, keep_records=True)
    episodes = []
    tally = play(collector, range(64), Sampling(max_new_tokens=24), keep=episodes.extend)
    collector.close()
    result = tally.result()
    assert result.malformed_rate == 0
    assert result.retrieval_rate < 0.1
    seen = [e for e in episodes if e.record.overview["iou"]]
    assert len(seen) >= 8
    assert np.mean([e.success for e in seen]) > 0.8  # it reads the card, and finds its letter
    assert np.mean([e.success for e in episodes]) < 0.6  # and guesses where it saw none


def test_scripted_replies_are_well_formed_and_follow_the_habit(policy, teacher):
    rng = np.random.default_rng(0)
    retrieved = 0
    for _ in range(20):
        lesson = teacher.episode(rng)
        assert len(lesson.weights) == len(lesson.skills) == lesson.row.sampled.sum()
        opened = lesson.weights[lesson.skills == ACTION]
        known = np.isclose(opened[:, None], [1.0, 1.92, 0.08])
        assert known.any(1).all()
        retrieved += known[:, 2].sum()
        text = policy.codec.text(lesson.row.ids[lesson.row.sampled])
        assert text.count("<think>") == text.count("</think>") >= 1
    assert retrieved


def test_every_lesson_can_be_learned_from(policy, teacher):
    rng = np.random.default_rng(1)
    for kind in ("drill", "caption", "search", "episode"):
        batch = [getattr(teacher, kind)(rng) for _ in range(3)]
        loss, counts = loss_of(policy, batch, backward=False)
        assert np.isfinite(loss)
        assert (counts[:, 0] <= counts[:, 1]).all()


def test_the_shipped_model_knows_its_lessons(policy, teacher):
    rng = np.random.default_rng(2)
    _, counts = loss_of(policy, [teacher.episode(rng) for _ in range(48)], backward=False)
    shares = dict(zip(SKILLS, counts[:, 0] / counts[:, 1], strict=True))
    assert shares["evidence"] > 0.95
    assert shares["letter"] > 0.9
    assert shares["place"] > 0.6


def test_letters_of_a_drill_follow_their_words(policy, teacher):
    lesson = teacher.drill(np.random.default_rng(3))
    assert (lesson.skills == LETTER).sum() == 8
    assert lesson.weights[lesson.skills != LETTER].sum() == 0


def test_fresh_weights_fetch_the_token_before():
    tokenizer = tiny.build_tokenizer()
    model = tiny.build_model(tiny.build_config(tokenizer))
    model.set_attn_implementation({"text_config": "eager", "vision_config": "eager"})
    ids = torch.from_numpy(np.random.default_rng(0).integers(300, 700, (4, 64)))
    attention = model.model.language_model(ids, output_attentions=True).attentions[0]
    for head, offset in ((0, 1), (1, 2)):
        looked = attention[:, head, 4:].argmax(-1)
        assert (looked == torch.arange(4, 64) - offset).float().mean() > 0.8


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    config = tiny.build_config(tiny.build_tokenizer())
    before = torch.get_rng_state()
    a, b = tiny.build_model(config, seed=3), tiny.build_model(config, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_the_learning_rate_warms_up_in_every_lesson_and_cools_down_in_the_last():
    config = PretrainConfig(lessons=(("drill", 60), ("episode", 200)))
    rates = [schedule(step, config) for step in range(260)]
    assert rates[0] < rates[49] == rates[59] == 1.0
    assert rates[60] < 0.1
    assert rates[-1] < 0.05


def test_heads_too_narrow_for_their_rotation_are_refused():
    with pytest.raises(ValueError, match="hidden=16 is too narrow for heads=4"):
        tiny.build_config(tiny.build_tokenizer(), hidden=16)


@pytest.mark.slow
def test_pretraining_runs_and_writes_its_scores(tmp_path):
    scores = pretrain(
        PretrainConfig(
            out=tmp_path / "out",
            lessons=(("drill", 4), ("caption", 4), ("search", 4), ("episode", 4)),
            batch=8,
            evaluation=8,
        )
    )
    written = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert written == scores
    assert written["held_out"]["episodes"] == 8
    again = pretrain(
        PretrainConfig(
            out=tmp_path / "more",
            start=tmp_path / "out",
            lessons=(("episode", 2),),
            batch=4,
            evaluation=0,
        )
    )
    assert "held_out" not in again
