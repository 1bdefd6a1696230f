"""Scripted agents span the envelope that they claim to, and disturb nothing."""

from __future__ import annotations

import math
import string
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given
from hypothesis import strategies as st
from worlds import GreySuite

from agents.scripted import (
    AGENTS,
    Agent,
    Bisect,
    NoisyOracle,
    Oracle,
    Random,
    UniformSingleTurn,
    make_agent,
    reply,
)
from examples.evaluate import evaluate
from examples.needle import ENV_OPTIONS, SUITE_OPTIONS
from gym_longvideo.episode import Answer, Retrieve, cell_edges
from gym_longvideo.haystack.export import export_suite
from gym_longvideo.haystack.suite import HaystackSuite
from gym_longvideo.protocol import PROTOCOLS, Turn, example_turn, make_protocol
from gym_longvideo.wrappers import TextProtocol

ID = "gym_longvideo:LongVideoQA-v0"
FAMILIES = ("needle", "order", "count", "state", "chain", "holistic", "absent", "timestamp")


def make(families="needle", size=32, suite_options=None, **options):
    suite_options = {"families": families, "size": size, **(suite_options or {})}
    options = {"frame_size": 8, "split": "val", **options}
    return gym.make(ID, suite_options=suite_options, **options)


def needle(**options):
    """The needle suite of the training examples, where an overview sees 24 % of the needles."""
    return gym.make(ID, suite_options=SUITE_OPTIONS, split="val", **{**ENV_OPTIONS, **options})


def grey(suite=None, **options):
    options = {"pool_size": 20, "frame_budget": 8, "frame_size": 8, "max_turns": 4, **options}
    return gym.make(ID, suite=suite or GreySuite(), order="sequential", **options).unwrapped


def play(env, agent, index=0):
    """Return the actions of an episode, and its last info."""
    observation, info = env.reset(seed=0, options={"index": index})
    actions, over = [], False
    while not over:
        actions.append(agent(env.unwrapped, observation))
        observation, _, terminated, truncated, info = env.step(actions[-1])
        over = terminated or truncated
    return [action.tolist() for action in actions], info


# --- The envelope ---------------------------------------------------------------------------------


@pytest.mark.parametrize("retrieval", ["pool", "timeline"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_is_always_right(family, retrieval):
    score = evaluate(make(family, retrieval=retrieval), Oracle(), 32)
    assert (score.accuracy, score.episodes) == (1.0, 32)
    if family == "holistic":  # the overview answers it; a retrieval would be waste
        assert (score.turns, score.frames) == (1.0, 16.0)


def test_the_oracle_shows_the_relevant_frames_of_a_needle_and_no_others():
    env, looked = make("needle"), 0
    for index in range(16):
        actions, info = play(env, Oracle(), index)
        episode = env.unwrapped.episode
        if len(actions) == 1:
            assert set(episode.overview.frame_index.tolist()) & episode.relevant
            continue
        looked += 1
        assert len(actions) == 2
        assert info["best_iou"] == 1.0
        assert info["frames_shown"] == 16 + len(episode.relevant)
        assert info["turn_rewards"].tolist() == pytest.approx([0.6, 1.1, 0.0])
    assert looked > 8


def test_the_oracle_asks_for_no_more_frames_than_the_budget_still_allows():
    needle_s = 3 * 600 / 128  # three pool frames each, of which one is enough
    budget = {"frame_budget": 18, "overview_frames": 16, "frames_per_retrieval": 8}
    env = make(suite_options={"needle_s": needle_s}, **budget)
    assert evaluate(env, Oracle(), 32).accuracy == 1.0
    for index in range(32):
        actions, _ = play(env, Oracle(), index)
        assert all(end - start + 1 <= 2 for op, start, end, _ in actions if op == 0)


def test_the_oracle_follows_a_chain_one_card_at_a_time():
    env = make("chain")
    lengths = {len(play(env, Oracle(), index)[0]) for index in range(16)}
    assert 3 in lengths
    assert max(lengths) == 3
    # With two turns there is only one retrieval, and nobody can have seen both cards.
    assert evaluate(make("chain", max_turns=2), Oracle(), 32).accuracy < 0.8


def test_where_the_pool_misses_the_needle_even_the_oracle_guesses_unless_it_may_look_between():
    tiny = {"needle_s": 1.0}  # the pool's frames are 4.7 s apart
    seen = evaluate(make(suite_options=tiny, size=128), Oracle(), 128)
    between = evaluate(make(suite_options=tiny, size=128, retrieval="timeline"), Oracle(), 128)
    assert between.accuracy == 1.0
    assert seen.accuracy < 0.6


def test_the_single_turn_agent_is_right_as_often_as_geometry_says():
    env = needle()
    suite, base = env.unwrapped.suite, env.unwrapped
    base.reset(seed=0)
    overview_s = base.episode.overview.times
    proved = sum(
        any(start <= t < end for start, end in suite[i].segments_s for t in overview_s)
        for i in range(256)
    )
    score = evaluate(env, UniformSingleTurn(), 256)
    assert (score.turns, score.frames) == (1.0, 4.0)
    # 4 frames for needles of 36 s in 600 s.
    assert proved / 256 == pytest.approx(4 * 36 / 600, abs=0.08)
    spread = math.sqrt((256 - proved) * 0.25 * 0.75)
    assert score.accuracy * 256 == pytest.approx(proved + (256 - proved) / 4, abs=3 * spread)


def test_bisecting_lies_between_a_single_turn_and_the_oracle():
    env = needle()
    single, blind, best = (
        evaluate(env, agent, 256) for agent in (UniformSingleTurn(), Bisect(), Oracle())
    )
    assert single.ci95[1] < blind.ci95[0]
    assert blind.ci95[1] < best.ci95[0]
    assert best.accuracy == 1.0
    assert 1.0 < blind.turns < 3.0


def test_bisecting_splits_the_longest_gap_and_then_the_next():
    # Overview 16 of 128 at 4, 12, ...: gaps of 7 between, and the oracle's eyes prove nothing here.
    env = make(suite_options={"needle_s": 0.01})
    actions, info = play(env, Bisect())
    assert [action[:3] for action in actions[:2]] == [[0, 5, 11], [0, 13, 19]]
    assert info["frames_shown"] == 16 + 7 + 7
    env = make(suite_options={"needle_s": 0.01}, overview_frames=0, frames_per_retrieval=2)
    assert [action[:3] for action in play(env, Bisect())[0][:2]] == [[0, 0, 127], [0, 1, 126]]


def test_noise_makes_an_oracle_worse_step_by_step():
    env = needle()
    aims = [evaluate(env, NoisyOracle(noise), 256).accuracy for noise in (0, 6, 24)]
    words = [evaluate(env, NoisyOracle(0, noise), 256).accuracy for noise in (0.0, 0.5, 1.0)]
    assert aims[0] == words[0] == 1.0
    assert aims[0] > aims[1] + 0.05 > aims[2] + 0.1
    assert words[1] == pytest.approx(1 - 0.5 * 0.75, abs=0.1)
    assert words[2] == pytest.approx(0.25, abs=0.09)


def test_jittered_intervals_stay_in_the_pool_and_within_the_noise():
    env, exact, noisy = make(size=64), Oracle(), NoisyOracle(3)
    offsets = set()
    for index in range(64):
        observation, _ = env.reset(seed=0, options={"index": index})
        meant, done = (agent(env.unwrapped, observation).tolist() for agent in (exact, noisy))
        if meant[0] == 0:
            assert 0 <= done[1] <= done[2] <= 127
            offsets.add(done[1] - meant[1])
    assert min(offsets) >= -3
    assert max(offsets) <= 3
    assert len(offsets) > 4


# --- Manners --------------------------------------------------------------------------------------


def test_random_actions_are_always_legal_and_differ():
    env, agent, met = make(families=FAMILIES, size=64), Random(), set()
    for index in range(64):
        actions, info = play(env, agent, index)
        assert info["malformed"] == ""
        assert info["outcome"] != "unanswered"
        met.update(map(tuple, actions))
    assert len(met) > 64
    assert {action[0] for action in met} == {0, 1}
    assert {action[3] for action in met} == {0, 1, 2, 3}


def test_random_keeps_to_a_pool_that_is_shorter_than_pool_size_and_to_the_options_there_are():
    env, agent = grey(GreySuite(frames=6, segments_s=((1.0, 2.0),))), Random()
    for index in range(6):
        for _ in range(10):
            assert play(env, agent, index)[1]["malformed"] == ""


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_an_agent_is_deterministic_given_its_seed(name):
    noise = {"interval_noise": 9, "answer_noise": 0.5} if name == "noisy_oracle" else {}
    env = make(families=("needle", "chain"), overview_frames=4)

    def actions(agent):
        return [play(env, agent, index)[0] for index in range(32)]

    agent = make_agent(name, seed=3, **noise)
    first = actions(agent)
    assert actions(make_agent(name, seed=3, **noise)) == first
    agent.reset(3)
    assert actions(agent) == first
    if name != "oracle":  # proved answers leave it nothing to draw
        assert actions(make_agent(name, seed=4, **noise)) != first
        agent.reset()
        assert actions(agent) != first


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_agents_do_not_disturb_the_order_of_tasks(name):
    noise = {"interval_noise": 9, "answer_noise": 0.5} if name == "noisy_oracle" else {}

    def tasks(agent):
        env, met = make(size=8), []
        observation, info = env.reset(seed=0)
        for _ in range(20):  # into the third epoch
            met.append(info["task_id"])
            over = False
            while not over:
                action = agent(env.unwrapped, observation)
                observation, _, over, _, _ = env.step(action)
            observation, info = env.reset()
        return met

    assert tasks(make_agent(name, **noise)) == tasks(lambda env, _: np.array([1, 0, 0, 0]))


def test_an_agent_does_not_draw_the_numbers_of_an_environment_with_its_seed():
    env = make().unwrapped
    env.reset(seed=7, options={"index": 0})
    assert Random(7).rng.random() != env.np_random.random()


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_actions_are_int64_and_inside_the_space(name):
    env, agent = make(), make_agent(name)
    assert isinstance(agent, Agent)
    assert agent.name == name
    observation, _ = env.reset(seed=0)
    action = agent.act(env.unwrapped, observation)
    assert (action.dtype, action.shape) == (np.int64, (4,))
    assert action in env.action_space
    assert agent(env, observation) in env.action_space  # wrapped is fine, too


def test_an_agent_asked_too_early_says_to_reset():
    with pytest.raises(ResetNeeded, match=r"call env\.reset"):
        Oracle().act(make().unwrapped, {})
    with pytest.raises(TypeError, match="CartPole"):
        Random().act(gym.make("CartPole-v1"), {})


def test_unknown_agents_and_options_are_named_with_those_that_exist():
    with pytest.raises(ValueError, match=r"'clever' is unknown; use one of .*'bisect'.*'oracle'"):
        make_agent("clever")
    with pytest.raises(ValueError, match=r"takes no \['noise'\]; use some of .*'answer_noise'"):
        make_agent("noisy_oracle", noise=1)


@pytest.mark.parametrize(
    "options",
    [
        {"interval_noise": -1},
        {"interval_noise": 1.5},
        {"interval_noise": True},
        {"answer_noise": 1.1},
        {"answer_noise": float("nan")},
    ],
)
def test_noise_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        NoisyOracle(**options)


def test_scripted_agents_need_no_torch():
    code = "import agents.scripted, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- Suites of real files -------------------------------------------------------------------------


def test_the_oracle_of_a_real_suite_retrieves_the_segment_and_gives_the_annotated_answer():
    env = grey()  # pool frames at 2.5, 7.5, ...; the segment 40..50 holds cells 8 and 9
    for index in range(6):
        actions, info = play(env, Oracle(), index)
        assert actions == [[0, 8, 9, 0], [1, 0, 0, index % 2]]
        assert (info["outcome"], info["best_iou"]) == ("correct", 1.0)


def test_the_oracle_of_a_real_suite_takes_neighbours_together_and_stops_when_turns_run_out():
    parts = ((10.0, 14.0), (15.0, 20.0), (50.0, 55.0), (70.0, 75.0), (90.0, 95.0))
    env = grey(GreySuite(segments_s=parts), overview_frames=0, frames_per_retrieval=4)
    actions, info = play(env, Oracle())
    assert actions[:3] == [[0, 2, 3, 0], [0, 10, 10, 0], [0, 14, 14, 0]]
    assert info["is_success"]
    # A long segment is shown at a stride, once.
    env = grey(GreySuite(segments_s=((0.0, 90.0),)))
    assert play(env, Oracle())[0] == [[0, 0, 17, 0], [1, 0, 0, 0]]


def test_the_oracle_retrieves_nothing_that_the_overview_showed_whole():
    env = grey(GreySuite(segments_s=((10.0, 15.0),)))  # of cell 2 alone, which the overview shows
    assert play(env, Oracle())[0] == [[1, 0, 0, 0]]


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agent_plays_tasks_without_segments_or_answer(name):
    for fields in ({"segments_s": ()}, {"answer_index": None}, {"options": ("one",)}):
        fields = {**fields, **({"answer_index": 0} if "options" in fields else {})}
        env = grey(GreySuite(**fields))
        for index in range(6):
            actions, info = play(env, make_agent(name), index)
            assert info["malformed"] == ""
            assert actions[-1][0] == 1
            unscored = "answer_index" in fields and fields["answer_index"] is None
            assert (info["outcome"] == "unscored") == unscored


def test_without_segments_the_oracle_answers_at_once_and_without_an_answer_it_guesses():
    assert play(grey(GreySuite(segments_s=())), Oracle())[0] == [[1, 0, 0, 0]]
    env, agent = grey(GreySuite(answer_index=None)), Oracle()
    answers = {play(env, agent, 2)[0][-1][3] for _ in range(60)}
    assert answers == {0, 1, 2, 3}


def test_on_a_real_suite_nothing_is_proved_so_that_guessers_stay_at_chance():
    suite = GreySuite(400, answer_index=1, options=("a", "b", "c", "d"))
    env = grey(suite, max_turns=3)
    for agent, turns in ((UniformSingleTurn(), 1.0), (Bisect(), 3.0)):
        score = evaluate(env, agent, 400)
        assert score.turns == turns
        assert score.accuracy == pytest.approx(0.25, abs=0.065)


def test_the_oracle_also_reads_the_secrets_of_exported_files(tmp_path):
    suite = HaystackSuite("val", families=("needle", "chain"), duration_s=60, size=4)
    path = export_suite(suite, tmp_path, size=(16, 16))
    env = gym.make(ID, suite=str(path), split="val", frame_size=8)
    assert evaluate(env, Oracle(), 4).accuracy == 1.0
    assert evaluate(env, Oracle(), 4).turns > 1.0


def test_where_keyframes_stand_in_the_oracle_does_not_try_the_same_twice(tmp_path):
    suite = HaystackSuite("val", families="needle", duration_s=60, size=8)
    path = export_suite(suite, tmp_path, size=(16, 16))
    env = gym.make(
        ID, suite=str(path), split="val", frame_size=8, seek="keyframe", overview_frames=0
    )
    missed = 0
    for index in range(8):  # a keyframe every 8 s hardly ever shows a card of half a second
        actions, info = play(env, Oracle(), index)
        missed += not info["is_success"]
        assert [action[0] for action in actions] == [0, 1]
    assert missed > 0


# --- Replies --------------------------------------------------------------------------------------


@st.composite
def turns(draw):
    """Turns over pools of any length, spacing and rule."""
    duration_s = draw(st.floats(0.5, 20_000))
    count = draw(st.integers(1, 200))
    match draw(st.sampled_from(("midpoint", "linspace", "odd"))):
        case "midpoint":
            times = (np.arange(count) + 0.5) * duration_s / count
        case "linspace":
            times = np.linspace(0.0, duration_s, count)
        case _:
            shares = draw(st.lists(st.integers(0, 9999), min_size=1, max_size=50, unique=True))
            times = np.sort(shares) / 9999 * duration_s
    options = tuple(string.ascii_lowercase[: draw(st.integers(1, 26))])
    nothing = np.zeros(0)
    frames = np.zeros((0, 8, 8, 3), np.uint8)
    edges = cell_edges(times, duration_s)
    return Turn(1, 3, "Which?", options, True, times, edges, frames, nothing, nothing)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@given(turn=turns(), data=st.data(), thought=st.text(st.characters(exclude_characters="<>")))
def test_a_reply_is_read_back_as_the_action_it_says(protocol, turn, data, thought):
    cells, choices = st.integers(0, turn.last_index), st.integers(0, len(turn.options) - 1)
    start, end, choice = data.draw(cells), data.draw(cells), data.draw(choices)
    parse = make_protocol(protocol).parse
    said = reply(np.array([0, start, end, choice]), turn, protocol, thought)
    assert parse(said, turn) == Retrieve(min(start, end), max(start, end))
    assert parse(reply([1, start, end, choice], turn, protocol, thought), turn) == Answer(choice)


def test_times_are_written_as_the_prompt_writes_them():
    turn = example_turn()  # frames at 5, 15, 25 ... of 600 s
    for protocol, said in (
        ("tags", "<think></think><retrieve>3, 40</retrieve>"),
        ("tags_seconds", "<think></think><retrieve>00:35, 06:45</retrieve>"),
        (
            "tool_call",
            '<tool_call>\n{"name": "retrieve_frames", "arguments": '
            '{"start_s": 35.0, "end_s": 405.0}}\n</tool_call>',
        ),
    ):
        assert reply(np.array([0, 40, 3, 0]), turn, protocol) == said


def test_frames_closer_than_the_labels_get_as_many_digits_as_they_need():
    times = np.array([0.001, 0.002, 0.003])
    nothing, frames = np.zeros(0), np.zeros((0, 8, 8, 3), np.uint8)
    edges = cell_edges(times, 0.004)
    turn = Turn(1, 3, "?", ("x",), True, times, edges, frames, nothing, nothing)
    said = reply(np.array([0, 1, 2, 0]), turn, "tags_seconds")
    assert said.endswith("<retrieve>0.002, 0.003</retrieve>")
    # Where the prompt speaks of seconds, whole ones are no clock times either.
    times = np.arange(8.0)
    turn = Turn(1, 3, "?", ("x",), True, times, cell_edges(times, 8.0), frames, nothing, nothing)
    said = reply(np.array([0, 1, 2, 0]), turn, "tags_seconds")
    assert said.endswith("<retrieve>1.00, 2.00</retrieve>")


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@pytest.mark.parametrize("action", [(1, 0, 0, 3), (0, 0, 60, 0), (0, -1, 5, 0), (2, 0, 0, 0)])
def test_an_action_that_does_not_exist_cannot_be_said(protocol, action):
    with pytest.raises(ValueError, match=r"does not exist|has op 2"):
        reply(np.array(action), example_turn(), protocol)


@pytest.mark.parametrize(
    ("protocol", "thought"),
    [
        ("tags", "<think>"),
        ("tags", "</think>"),
        ("tags_seconds", "</think><answer>A</answer>"),
        ("tool_call", "<answer>"),
        ("tool_call", "<tool_call>"),
    ],
)
def test_a_thought_that_would_break_the_reply_is_refused(protocol, thought):
    with pytest.raises(ValueError, match=r"cannot be said .* read as Malformed"):
        reply(np.array([1, 0, 0, 1]), example_turn(), protocol, thought)


def test_unknown_protocols_are_refused_with_the_names_of_those_known():
    with pytest.raises(ValueError, match="tags_seconds"):
        reply(np.array([1, 0, 0, 0]), example_turn(), "morse")

    class Morse(PROTOCOLS["tags"]):
        name = "morse"

    with pytest.raises(ValueError, match="no reply is known in protocol 'morse'"):
        reply(np.array([1, 0, 0, 0]), example_turn(), Morse())


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@pytest.mark.parametrize("name", sorted(AGENTS))
def test_agents_play_the_text_view_as_they_play_the_numeric_one(protocol, name):
    env = make("chain", size=4)
    text = TextProtocol(make("chain", size=4), protocol)
    one, other = make_agent(name), make_agent(name)
    for index in range(4):
        _, expected = play(env, one, index)
        text.reset(seed=0, options={"index": index})
        over = False
        while not over:
            said = reply(other(text.unwrapped, {}), text.turn, protocol, "Hm.")
            _, _, over, _, info = text.step(said)
            assert info["malformed"] == ""
        assert info["outcome"] == expected["outcome"]
        assert info["turn_rewards"].tolist() == expected["turn_rewards"].tolist()
