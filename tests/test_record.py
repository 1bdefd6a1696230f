"""Records: JSON of what happened, replaying it, and scoring it again."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import FailingSuite, GreySuite

from gym_longvideo import EpisodeRecord, rescore
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.episode import Malformed
from gym_longvideo.rewards import PRESETS


def make(suite=None, **kwargs):
    settings = {"frame_budget": 8, "pool_size": 20, "frame_size": 8, "order": "sequential"}
    return LongVideoQAEnv(suite or GreySuite(), **{**settings, **kwargs})


def play(env, actions, index=0):
    env.reset(options={"index": index})
    for action in actions:
        _, _, terminated, truncated, _ = env.step(np.array(action))
        if terminated or truncated:
            break
    return env.record


def replay(env, record):
    """Do again what a record says was done."""
    env.reset(options={"task_id": record.task["task_id"]})
    for turn in record.turns:
        if turn["op"] == "malformed":
            env.step(Malformed(turn["malformed"]))
            continue
        op = int(turn["op"] == "answer")
        start, end = (max(0, cell) for cell in turn["interval"])
        env.step(np.array([op, start, end, max(0, turn["choice"])]))
    return env.record


def test_a_record_holds_what_was_shown_and_done():
    record = play(make(), [[0, 8, 9, 0], [1, 0, 0, 0]])
    assert (record.suite, record.split, record.outcome) == ("grey", "train", "correct")
    assert record.task["question"] == "Which grey is it in video 0?"
    assert record.task["options"] == ["dark", "middle"]
    assert (record.task["answer_index"], record.task["segments_s"]) == (0, [[40.0, 50.0]])
    assert record.pool == {
        "duration_s": 100.0,
        "length": 20,
        "relevant": [8, 9],
        "truncated": False,
    }
    # Slot k stands for (k + .5) * 5 s; a grey frame starts every whole second.
    assert record.overview["frame_index"] == [2, 7, 12, 17]
    assert record.overview["time_s"] == [12.5, 37.5, 62.5, 87.5]
    assert record.overview["shown_s"] == [12.0, 37.0, 62.0, 87.0]
    assert record.overview["iou"] == 0.0
    look, answer = record.turns
    assert (look["op"], look["interval"], look["choice"]) == ("retrieve", [8, 9], -1)
    assert (look["frame_index"], look["shown_s"], look["iou"]) == ([8, 9], [42.0, 47.0], 1.0)
    assert (answer["op"], answer["choice"], answer["iou"]) == ("answer", 0, None)
    assert answer["frame_index"] == []
    assert record.ledger == [
        {"accuracy": 0.0, "relevance": 0.5, "format": 0.1, "bonus": 0.0},
        {"accuracy": 1.0, "relevance": 0.0, "format": 0.1, "bonus": 0.0},
    ]
    assert record.total_reward == pytest.approx(1.7)
    assert record.frames_shown == 6


def test_a_record_names_every_setting_that_can_move_a_result():
    settings = play(make(retrieval="timeline", seek="exact"), [[1, 0, 0, 0]]).settings
    assert settings == {
        "suite_options": {},
        "max_options": 4,
        "question_bytes": 512,
        "max_turns": 3,
        "frame_budget": 8,
        "overview_frames": 4,
        "frames_per_retrieval": 2,
        "pool_size": 20,
        "pool_rule": "midpoint",
        "frame_size": [8, 8],
        "fit": "stretch",
        "retrieval": "timeline",
        "reward": PRESETS["video_mtr"].to_dict(),
        "seek": "exact",
        "backend": "pyav",
    }


def test_a_record_survives_json_in_one_strict_line():
    suite = GreySuite(question="第几个 🎬\n\u2028", segments_s=())
    record = play(make(suite), [[0, 1, 2, 0], [1, 0, 0, 3], [1, 0, 0, 0]])
    line = record.to_json()
    assert "\n" not in line and "NaN" not in line and "🎬" in line
    assert EpisodeRecord.from_json(line) == record
    assert record.overview["iou"] is None and record.turns[0]["iou"] is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not an episode record"),
        ("[]", "episode record of format 'list'; this version of gym_longvideo reads 1"),
        ('{"format": 2}', "episode record of format 2"),
        ('{"format": 1}', "not an episode record: .*missing"),
        ('{"format": 1, "colour": "red"}', "not an episode record: .*colour"),
    ],
)
def test_what_is_no_record_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        EpisodeRecord.from_json(line)


def test_what_strict_json_cannot_hold_is_refused():
    record = play(make(GreySuite(meta={"score": float("nan")})), [[1, 0, 0, 0]])
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.to_json()


def test_a_running_episode_can_be_recorded_but_not_scored():
    env = make()
    env.reset(seed=0)
    record = env.record
    assert (record.outcome, record.turns) == ("", [])
    with pytest.raises(ValueError, match=r"'grey-0' has outcome '': no reward"):
        rescore(record, "accuracy")


def test_a_broken_episode_is_recorded_with_its_error_but_not_scored():
    record = play(make(FailingSuite()), [[0, 8, 9, 0]])
    assert record.error == "FrameDecodeError: grey: no frame at 40.0 s"
    assert record.total_reward == 0.0
    assert EpisodeRecord.from_json(record.to_json()) == record
    with pytest.raises(ValueError, match="'infra_error': no reward"):
        rescore(record, "video_mtr")


def test_a_later_step_does_not_change_an_earlier_record():
    env = make()
    env.reset(seed=0)
    env.step(np.array([0, 8, 9, 0]))
    record = env.record
    before = record.to_json()
    env.step(np.array([1, 0, 0, 0]))
    env.reset()
    assert record.to_json() == before


actions = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 19), st.integers(0, 19), st.integers(0, 3)),
    min_size=4,
    max_size=4,
)


@given(
    actions,
    st.integers(0, 5),
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from(["pool", "timeline"]),
)
def test_replaying_a_record_gives_the_same_record(actions, index, reward, retrieval):
    settings = {"max_turns": 4, "reward": reward, "retrieval": retrieval}
    record = play(make(**settings), actions, index)
    assert replay(make(**settings), EpisodeRecord.from_json(record.to_json())) == record


@given(
    actions, st.integers(0, 5), st.sampled_from(sorted(PRESETS)), st.sampled_from(sorted(PRESETS))
)
def test_rescoring_gives_what_the_other_reward_would_have_paid(actions, index, first, second):
    record = play(make(max_turns=4, reward=first), actions, index)
    played = play(make(max_turns=4, reward=second), actions, index)
    rows = rescore(EpisodeRecord.from_json(record.to_json()), second)
    assert [row._asdict() for row in rows] == played.ledger
    assert rescore(record, first) == rescore(record, record.settings["reward"])
    assert [row._asdict() for row in rescore(record, first)] == record.ledger


def test_every_field_of_a_record_is_plain_json():
    record = play(make(), [[0, 8, 9, 0], [1, 0, 0, 0]])
    fields = dataclasses.asdict(record)
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields


def test_the_record_of_a_running_episode_claims_no_pay_in_escrow():
    env = make()
    env.reset(options={"index": 0})
    env.step([0, 8, 9, 0])
    assert env.record.ledger == [] and env.record.total_reward == 0.0
    paid = make(reward="ungated")
    paid.reset(options={"index": 0})
    reward = paid.step([0, 8, 9, 0])[1]
    assert paid.record.total_reward == pytest.approx(reward) and reward > 0
