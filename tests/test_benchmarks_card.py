"""Protocol cards: what is in them, what moves their hash, and what is refused."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from benchmark_records import card
from worlds import GreySuite

from benchmarks.card import (
    Card,
    CardMismatch,
    differences,
    make_card,
    prompt_digest,
    require_same,
    suite_digest,
)
from gym_longvideo import JsonlSuite
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.wrappers import TextProtocol


def card_of(suite=None, *, policy=None, env_options=None, **knobs):
    suite = suite or GreySuite()
    settings = {"frame_budget": 8, "pool_size": 20, "frame_size": 8, "seek": "exact"}
    env = LongVideoQAEnv(suite, **{**settings, **(env_options or {})})
    fields = {
        "protocol": "tags",
        "system_prompt": "You answer.",
        "control": "none",
        "episodes": None,
        "seed": 0,
    }
    policy = policy or {"kind": "scripted", "name": "random"}
    return make_card(env, suite, policy=policy, **{**fields, **knobs})


def test_a_card_names_every_knob():
    made = card_of()
    assert set(made.protocol) == {
        "suite",
        "settings",
        "text_protocol",
        "prompt_digest",
        "control",
        "episodes",
        "seed",
        "scorer",
        "versions",
    }
    assert made.protocol["suite"]["tasks"] == 6
    assert made.protocol["settings"]["frame_budget"] == 8
    assert made.protocol["settings"]["seek"] == "exact"
    assert made.protocol["scorer"] == "strict"
    assert set(made.protocol["versions"]) == {"gym_longvideo", "av"}
    assert len(made.hash) == len(made.protocol_hash) == 12


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "tool_call"},
        {"protocol": "numeric"},
        {"system_prompt": "You guess."},
        {"control": "blind"},
        {"episodes": 5},
        {"seed": 1},
        {"suite": GreySuite(tasks=5)},
        {"suite": GreySuite(answer_index=0)},
        {"suite": GreySuite(question="Which?")},
        {"suite": GreySuite(options=("light", "dark"))},
        {"suite": GreySuite(segments_s=())},
        {"suite": GreySuite(video_id="one video")},
        {"env_options": {"max_turns": 2}},
        {"env_options": {"frame_budget": 12}},
        {"env_options": {"seek": "keyframe"}},
        {"env_options": {"frame_size": 16}},
        {"env_options": {"pool_size": 21}},
        {"env_options": {"retrieval": "timeline"}},
        {"env_options": {"reward": "ungated"}},
    ],
)
def test_every_knob_moves_the_hash_of_the_protocol(change):
    assert card_of(**change).protocol_hash != card_of().protocol_hash


@pytest.mark.parametrize(
    "change",
    [
        {"env_options": {"cache_mb": 8.0}},
        {"env_options": {"order": "sequential"}},
        {"env_options": {"deadline_s": None}},
        {"env_options": {"render_mode": "ansi"}},
    ],
    ids=repr,
)
def test_what_moves_no_number_moves_no_hash(change):
    assert card_of(**change).hash == card_of().hash


def test_another_policy_is_another_card_of_the_same_protocol():
    other = card_of(policy={"kind": "scripted", "name": "oracle"})
    assert other.protocol_hash == card_of().protocol_hash
    assert other.hash != card_of().hash


def test_the_same_dataset_elsewhere_gives_the_same_card(tmp_path, monkeypatch):
    line = json.dumps(
        {"question": "Which?", "options": ["x", "y"], "answer": "A", "video": "v.mp4"}
    )
    digests, hashes = set(), set()
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        path = tmp_path / place / "set.jsonl"
        path.write_text(line + "\n")
        options = {"video_root": str(tmp_path / place)}
        env = LongVideoQAEnv(str(path), suite_options=options)
        assert isinstance(env.suite, JsonlSuite)
        made = make_card(
            env,
            env.suite,
            protocol="numeric",
            system_prompt="",
            control="none",
            episodes=None,
            seed=0,
            policy={},
        )
        assert str(tmp_path) not in made.to_json()
        digests.add(suite_digest(env.suite))
        hashes.add(made.hash)
    assert len(digests) == len(hashes) == 1
    elsewhere = [GreySuite(video_id=f"/{place}/v.mp4") for place in ("here", "there")]
    assert suite_digest(elsewhere[0]) == suite_digest(elsewhere[1])


def test_the_card_of_a_wrapped_environment_is_that_of_the_environment():
    suite = GreySuite()
    env = gym.make("gym_longvideo:LongVideoQA-v0", suite=suite, frame_size=8)
    fields = {
        "protocol": "tags",
        "system_prompt": "",
        "control": "none",
        "episodes": None,
        "seed": 0,
        "policy": {},
    }
    assert make_card(TextProtocol(env), suite, **fields) == make_card(env, suite, **fields)


def test_options_of_a_benchmark_stand_in_its_suite_however_it_was_loaded():
    suite = GreySuite()
    suite.options = {"where": {"duration": ["long"]}}
    suite.annotation_digests = {"test.json": "0123456789ab"}
    made = card_of(suite)
    assert made.protocol["suite"]["options"] == {"where": {"duration": ["long"]}}
    assert made.protocol["suite"]["annotation"] == {"test.json": "0123456789ab"}
    assert made.protocol["settings"]["suite_options"] == {}


def test_the_wording_of_turns_is_part_of_the_prompt(monkeypatch):
    from gym_longvideo.protocol import Tags

    before = prompt_digest("tags", "You answer.")
    monkeypatch.setattr(Tags, "marker", "frame ")
    monkeypatch.setattr(Tags, "unit", "frame numbers")
    monkeypatch.setattr(Tags, "instructions", lambda self, turn: "Answer!")
    assert prompt_digest("tags", "You answer.") != before
    assert prompt_digest("my own", "You answer.") == prompt_digest("my own", "You answer.")


def test_a_card_comes_back_from_json():
    made = card_of(policy={"temperature": 0.5, "digest": None, "sizes": (1, 2)})
    assert Card.from_json(made.to_json()) == made
    assert Card.from_json(made.to_json()).hash == made.hash
    assert json.loads(made.to_json())["protocol_hash"] == made.protocol_hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a protocol card"),
        ("[]", "format 'list'"),
        ('{"format": 9}', "format 9; this version reads 1"),
        ('{"format": 1, "protocol": []}', "needs the objects protocol and policy"),
        (
            '{"format": 1, "protocol": {}, "policy": {}, "hash": "0"}',
            "was edited: it says hash '0'",
        ),
    ],
)
def test_what_is_no_card_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Card.from_json(text)


def test_an_edited_card_is_noticed():
    text = card_of().to_json().replace('"max_turns": 3', '"max_turns": 5')
    with pytest.raises(ValueError, match="was edited"):
        Card.from_json(text)


def test_numbers_are_compared_by_value_and_booleans_are_none():
    one, same = Card({"a": 1, "b": (1, 2)}, {}), Card({"b": [1.0, np.int64(2)], "a": 1.0}, {})
    assert one.hash == same.hash
    assert differences({"a": 1}, {"a": 1.0}) == []
    assert differences({"a": 1}, {"a": True}) == ["a: 1 != true"]


def test_what_json_cannot_say_is_refused_by_name():
    with pytest.raises(ValueError, match=r"policy.sampling.temperature=nan cannot stand"):
        Card({}, {"sampling": {"temperature": float("nan")}})
    with pytest.raises(ValueError, match=r"protocol.suite\[1\]=<object"):
        Card({"suite": [1, object()]}, {})


def test_differences_name_knobs_and_values():
    a = {"settings": {"frame_budget": 32, "seek": "exact"}, "control": "none"}
    b = {"settings": {"frame_budget": 64, "seek": "exact"}, "control": "none", "seed": 1}
    assert differences(a, b) == ["settings.frame_budget: 32 != 64", "seed: absent != 1"]
    assert differences(a, a) == []
    assert len(differences({"x": "y" * 500}, {"x": "z" * 500})[0]) < 200


def test_cards_that_differ_are_refused_with_every_knob_named():
    cards = [card(control="none", seed=0), card(control="blind", seed=0), card(seed=1)]
    with pytest.raises(CardMismatch) as caught:
        require_same(cards)
    assert 'control: "none" != "blind" != "none"' in str(caught.value)
    assert "seed: 0 != 0 != 1" in str(caught.value)
    assert caught.value.knobs == {"control": ["none", "blind", "none"], "seed": [0, 0, 1]}


def test_knobs_that_are_meant_to_differ_are_shown():
    a, b = card(seed=0, control="none"), card(seed=1, control="none")
    assert require_same([a, b], across=("seed",)) == {"seed": [0, 1]}
    assert require_same([a, a], across=("seed",)) == {}
    with pytest.raises(CardMismatch, match="seed: 0 != 1"):
        require_same([a, b], across=("control",))


def test_a_name_stands_for_all_knobs_below_it_and_for_no_other():
    a = card(settings={"frame_budget": 8, "overview_frames": 4}, settings_other=0)
    b = card(settings={"frame_budget": 16, "overview_frames": 8}, settings_other=1)
    with pytest.raises(CardMismatch) as caught:
        require_same([a, b], across=("settings",))
    assert list(caught.value.knobs) == ["settings_other"]


def test_a_frame_budget_stands_for_what_it_is_divided_into():
    a = card(settings={"frame_budget": 8, "overview_frames": 4, "frames_per_retrieval": 2})
    b = card(settings={"frame_budget": 16, "overview_frames": 8, "frames_per_retrieval": 4})
    assert len(require_same([a, b], across=("settings.frame_budget",))) == 3
    with pytest.raises(CardMismatch, match=r"settings\.frame_budget"):
        require_same([a, b], across=("settings.overview_frames",))


def test_a_misspelt_knob_is_refused():
    with pytest.raises(ValueError, match=r"across='settings.max_turn' is no knob"):
        require_same([card(), card()], across=("settings.max_turn",))


def test_policies_may_differ_in_comparisons_and_not_in_merges():
    require_same([card("one"), card("two")])
    with pytest.raises(CardMismatch, match=r'policy\.name: "one" != "two"'):
        require_same([card("one"), card("two")], policy=True)
    require_same([])


def test_a_rescored_card_is_another_card():
    original = card()
    rescored = original.rescored("rescored: reward ungated")
    assert rescored.protocol["scorer"] == "rescored: reward ungated"
    assert rescored.policy["rescored_from"] == original.hash
    assert rescored.hash != original.hash
    with pytest.raises(CardMismatch, match="scorer"):
        require_same([original, rescored])
    # Two policies under the same other scorer can be compared.
    require_same([rescored, card("another").rescored("rescored: reward ungated")])


def test_weights_identify_a_model_and_its_directory_does_not():
    model = {"kind": "model", "name": "checkpoint-000040", "weights": "0123456789ab"}
    one, moved = card_of(policy=model), card_of(policy={**model, "name": "final"})
    assert one.hash == moved.hash and moved.policy["name"] == "final"
    require_same([one, moved], policy=True)
    assert Card.from_json(moved.to_json()) == moved
    assert card_of(policy={**model, "weights": "ba9876543210"}).hash != one.hash
    endpoint = {"kind": "endpoint", "name": "a"}
    assert card_of(policy=endpoint).hash != card_of(policy={**endpoint, "name": "b"}).hash
