"""The released code of Video-MTR, played exactly: its rules, written down here a second time.

``docs/fidelity.md`` is the table of these rules. Nothing here calls what the environment calls.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from agents_training import small
from worlds import GreySuite

import gym_longvideo
from agents.source import MadeFor, PolicySource
from agents.train import parse
from benchmarks.evaluate import evaluate
from benchmarks.evaluate_config import EvaluateConfig
from benchmarks.runs import read_run
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.settings import RULES, EnvSettings, EpisodeSettings, with_rules
from gym_longvideo.task import Task
from gym_longvideo.video import ArrayVideo, VideoOpenError
from gym_longvideo.wrappers import TextProtocol

ROOT = Path(__file__).parents[1]
RULE = "video_mtr_code"
SMALL = {"frame_size": 8}


def spread(first: int, last: int, most: int) -> list[int]:
    """Both ends and equal steps between, rounded down; all where there are fewer."""
    count = min(most, last - first + 1)
    if count < 2:
        return [first][:count]
    return [first + (last - first) * i // (count - 1) for i in range(count)]


def pool(total: int, fps: Fraction) -> list[int]:
    """Source frames of the pool: one a second, 4 to 64, an even number, rounded to the nearest."""
    count = min(max(total / fps, 4), 64, total) // 2 * 2
    return [round(Fraction(total - 1, int(count) - 1) * i) for i in range(int(count))]


class Rules:
    """One episode: which pool frames are shown, and what is paid, turn by turn."""

    def __init__(self, length: int, relevant: set[int], options: int, answer: int) -> None:
        self.length, self.relevant = length, relevant
        self.options, self.answer = options, answer
        self.turn, self.over = 0, False
        self.shown = spread(0, length - 1, 16)
        self.previous = self.iou()

    def iou(self) -> Fraction:
        both, either = set(self.shown) & self.relevant, set(self.shown) | self.relevant
        return Fraction(len(both), len(either))

    def step(self, op: int, start: int, end: int, choice: int) -> Fraction:
        self.turn += 1
        self.shown, paid = [], Fraction(0)
        if op == 1 and choice < self.options:
            self.over = True
            paid = Fraction(1, 10)
            if choice == self.answer:
                paid += 1 - Fraction(self.turn - 1, 10)
        elif op == 0 and self.turn < 3 and start <= end < self.length:
            self.shown, paid = spread(start, end, 8), Fraction(1, 10)
            now = self.iou()
            if self.relevant and now > self.previous + Fraction(1, 1000):
                paid += Fraction(1, 2)
            self.previous = now
        self.over |= self.turn == 3
        return paid


class Films(GreySuite):
    """Films of many lengths and rates; the pixels of a frame say which frame it is."""

    def __init__(self, count: int, seed: int = 0) -> None:
        super().__init__(0)
        dice = np.random.default_rng(seed)
        self.films: dict[str, tuple[int, Fraction]] = {}
        self.relevant: dict[str, set[int]] = {}
        for i in range(count):
            fps = Fraction(int(dice.choice([1, 2, 25, 30])), int(dice.choice([1, 1, 2])))
            total = int(dice.integers(2, 90 * max(1, fps)))
            name, source = f"film-{i}", pool(total, fps)
            segments, relevant = [], set()
            for _ in range(int(dice.integers(0, 3))):
                first = int(dice.integers(len(source)))
                last = int(dice.integers(first, len(source)))
                segments.append((float(source[first] / fps), float((source[last] + 1) / fps)))
                relevant |= set(range(first, last + 1))
            options = ("dark", "middle", "light", "white")[: 2 + i % 3]
            answer = int(dice.integers(len(options)))
            self.films[name], self.relevant[name] = (total, fps), relevant
            merged = tuple(sorted(segments))
            self.tasks.append(Task(name, name, "Which?", options, answer, merged))

    def open_video(self, task, *, backend="pyav", isolate=False):
        total, fps = self.films[task.video]
        pixels = np.zeros((total, 8, 8, 3), np.uint8)
        pixels[..., 0] = (np.arange(total) // 256)[:, None, None]
        pixels[..., 1] = (np.arange(total) % 256)[:, None, None]
        return ArrayVideo(pixels, fps=float(fps), name=task.video)


def sources(observation: dict[str, np.ndarray]) -> tuple[list[int], list[int]]:
    """Return the pool indices and the source frames that an observation shows."""
    count = int((observation["frame_index"] >= 0).sum())
    pixels = observation["frames"][:count, 4, 4].astype(int)
    return observation["frame_index"][:count].tolist(), (pixels[:, 0] * 256 + pixels[:, 1]).tolist()


def test_two_thousand_random_episodes_are_those_of_the_rules():
    suite, dice = Films(2000), np.random.default_rng(1)
    env = LongVideoQAEnv(suite, rules=RULE, order="sequential", **SMALL)
    kinds, lengths = set(), set()
    for task in suite.tasks:
        observation, _ = env.reset()
        source = pool(*suite.films[task.video])
        assert task.answer_index is not None
        rules = Rules(len(source), suite.relevant[task.video], len(task.options), task.answer_index)
        lengths.add(len(source))
        assert sources(observation) == (rules.shown, [source[i] for i in rules.shown])
        while not rules.over:
            op, choice = int(dice.random() < 0.35), int(dice.integers(4))
            start = int(dice.integers(64 if dice.random() < 0.1 else len(source)))
            end = int(dice.integers(0 if dice.random() < 0.1 else start, 64))
            if dice.random() < 0.8:
                end = min(end, len(source) - 1)
            paid = rules.step(op, start, end, choice)
            observation, reward, terminated, truncated, info = env.step(
                np.array([op, start, end, choice])
            )
            said = op, rules.turn, bool(info["malformed"]), round(float(paid), 1)
            assert sources(observation) == (rules.shown, [source[i] for i in rules.shown]), said
            assert reward == pytest.approx(float(paid), abs=1e-12), said
            assert (terminated, truncated) == (rules.over, False), said
            kinds.add(said)
    assert {2, 4, 38, 64} <= lengths and len(kinds) > 15  # nothing was left untried


def test_each_view_reaches_both_ends_of_what_it_shows():
    env = gym.make("LongVideo/VideoMTR-Released-v0", **SMALL)
    shown = env.reset(seed=0)[0]["frame_index"].tolist()
    assert shown == [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]
    for start, end, wanted in (
        (0, 63, [0, 9, 18, 27, 36, 45, 54, 63]),
        (10, 20, [10, 11, 12, 14, 15, 17, 18, 20]),
        (5, 7, [5, 6, 7]),  # each once
        (9, 9, [9]),
    ):
        env.reset(seed=0)
        shown = env.step(np.array([0, start, end, 0]))[0]["frame_index"]
        assert shown[shown >= 0].tolist() == wanted


@pytest.mark.parametrize(
    ("total", "fps", "length", "last"),
    [
        (9000, 30, 64, 8999),
        (64, 1, 64, 63),
        (39, 1, 38, 38),  # an even number
        (975, 25, 38, 974),  # 39 s
        (50, 25, 4, 49),  # 2 s: four frames at least
        (3, 1, 2, 2),
        (1, 1, 1, 0),  # where the released code stops with an error
        (40, 0.5, 40, 39),  # no frame twice
    ],
)
def test_a_pool_has_a_frame_a_second_and_an_even_number(total, fps, length, last):
    suite = GreySuite(1, segments_s=())
    suite.open_video = lambda task, **_: ArrayVideo(  # type: ignore[method-assign]
        np.zeros((total, 8, 8, 3), np.uint8), fps=fps
    )
    env = LongVideoQAEnv(suite, rules=RULE, **SMALL)
    env.reset(seed=0)
    times = env._running().pool_times
    assert len(times) == length
    assert math.floor(times[-1] * fps) == last


def test_a_pool_of_any_moments_goes_by_seconds_too():
    for duration_s, length in ((600.0, 64), (61.0, 60)):
        env = LongVideoQAEnv(
            rules=RULE, suite_options={"duration_s": duration_s, "families": "timestamp"}, **SMALL
        )
        env.reset(seed=0)
        times = env._running().pool_times
        assert (len(times), times[0], times[-1]) == (length, 0.0, duration_s)


def test_an_interval_that_ends_before_it_starts_is_malformed_there_alone():
    for rules, said in ((RULE, "interval (30, 3) ends before it starts"), (None, "")):
        env = LongVideoQAEnv(GreySuite(), rules=rules, **SMALL)
        env.reset(seed=0)
        assert env.step(np.array([0, 30, 3, 0]))[4]["malformed"] == said


def test_frames_that_an_annotation_lists_are_the_relevant_ones():
    listed = {"evidence_frames": [3, 9], "evidence_unit": "pool_index"}
    for meta, evidence, relevant in (
        (listed, "listed", {3, 9}),
        (listed, "segments", {26, 27, 28, 29, 30, 31}),
        ({**listed, "evidence_unit": "source_frame"}, "listed", {26, 27, 28, 29, 30, 31}),
        ({**listed, "evidence_frames": []}, "listed", {26, 27, 28, 29, 30, 31}),
    ):
        env = LongVideoQAEnv(GreySuite(meta=meta), rules=RULE, evidence=evidence, **SMALL)
        env.reset(seed=0)
        assert env.record.pool["relevant"] == sorted(relevant)
    far = GreySuite(1, meta={**listed, "evidence_frames": [64]})
    with pytest.raises(VideoOpenError, match=r"lists the evidence frame 64, and .* frames 0\.\.63"):
        LongVideoQAEnv(far, rules=RULE, **SMALL).reset()
    odd = GreySuite(1, meta={**listed, "evidence_frames": [1.5]})
    with pytest.raises(ValueError, match=r"task 'grey-0': each of evidence_frames=1\.5"):
        LongVideoQAEnv(odd, rules=RULE, **SMALL).reset()


def test_the_same_view_is_paid_again_only_after_a_worse_one():
    env = LongVideoQAEnv(GreySuite(), rules=RULE, max_turns=6, **SMALL)
    env.reset(seed=0)
    exact, elsewhere = np.array([0, 26, 31, 0]), np.array([0, 0, 5, 0])
    steps = [env.step(action) for action in (exact, exact, elsewhere, elsewhere, exact)]
    assert [step[1] for step in steps] == pytest.approx([0.6, 0.1, 0.1, 0.1, 0.6])


def test_views_are_as_large_in_every_turn_of_longer_episodes():
    env = LongVideoQAEnv(GreySuite(), rules=RULE, max_turns=6, **SMALL)
    env.reset(seed=0)
    for _ in range(5):
        info = env.step(np.array([0, 0, 63, 0]))[4]
    assert info["frames_shown"] == 16 + 5 * 8 and not info["malformed"]


def test_what_is_given_wins_over_the_rules():
    env = LongVideoQAEnv(GreySuite(), rules=RULE, pool_size=32, reward="accuracy", **SMALL)
    assert env.pool_size == 32 and env.reward.format == 0.0
    assert env.settings["sampling"] == "linspace"
    wider = EnvSettings(**with_rules({"rules": RULE, "frame_budget": 64}))
    assert (wider.budget.overview, wider.budget.retrieval) == (32, 16)
    with pytest.raises(ValueError, match=r"rules='paper' is unknown; use one of .*video_mtr_code"):
        LongVideoQAEnv(rules="paper")
    for name, value in (("sampling", "middle"), ("interval_order", "any"), ("evidence", "all")):
        with pytest.raises(ValueError, match=rf"{name}='{value}' is unknown; use one of"):
            LongVideoQAEnv(**{name: value})


def test_settings_from_before_are_what_they_were():
    assert not {"sampling", "interval_order", "evidence"} & set(EpisodeSettings().resolved())
    released = EpisodeSettings(sampling="linspace")
    assert released.resolved()["sampling"] == "linspace"
    assert MadeFor().departures("tags", released) == ["sampling='linspace' (trained with 'even')"]
    assert PolicySource.of("tiny").settings["sampling"] == "even"


def test_the_text_view_and_vectors_play_by_the_rules_too():
    text = TextProtocol(gym.make(gym_longvideo.RELEASED_ID, **SMALL))
    text.reset(seed=0)
    info = text.step("<think></think><retrieve>10, 20</retrieve>")[4]
    assert text.turn.frame_index.tolist() == [10, 11, 12, 14, 15, 17, 18, 20]
    assert info["reward_terms"]["format"] == 0.1  # paid at once
    assert text.step("<think></think><retrieve>20, 10</retrieve>")[4]["malformed"]
    made = gym.make_vec(gym_longvideo.RELEASED_ID, num_envs=2, **SMALL)
    assert made.reset(seed=0)[0]["frame_index"][:, 5].tolist() == [21, 21]


def released(settings: dict) -> bool:
    wanted = EnvSettings(**with_rules({"rules": RULE})).resolved()
    return all(settings[name] == wanted[name] for name in {*RULES[RULE], "frame_budget"})


def test_an_evaluation_is_played_and_recorded_by_the_rules(tmp_path):
    config = EvaluateConfig("haystack", "random", env={"rules": RULE, "frame_size": 8})
    arguments = config.arguments()
    assert arguments["env"]["sampling"] == "linspace" and "rules" not in arguments["env"]
    played = evaluate(
        "random", "haystack", out=tmp_path, episodes=2, env={"rules": RULE, "frame_size": 8}
    )
    assert released(read_run(played["directory"]).card.protocol["settings"])


def test_a_policy_trained_by_the_rules_is_made_for_them(tmp_path):
    config = small(tmp_path, env={"rules": RULE, "frame_size": 28, "pool_size": 32})
    assert config.env_options()["reward"] == RULE and "rules" not in config.env
    made = asdict(config.made_for().settings)
    wanted = {**RULES[RULE], "pool_size": 32, "frame_size": 28}
    assert {name: made[name] for name in made if name in wanted} == {
        name: value for name, value in wanted.items() if name in made
    }
    words = ["--env", '{"rules": "video_mtr_code"}', "--preset", "recommended", "--model", "tiny"]
    assert parse(words).env == {**RULES[RULE], "frame_size": 224}


def test_every_test_that_the_table_names_is_there():
    table = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", table)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test
