"""Probes: exact expectations, worked out by hand, and the presets that must be caught."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from worlds import GreySuite

from gym_longvideo.episode import Answer, Budget, Episode, Malformed, Retrieve
from gym_longvideo.exploits import EXPLOITERS, GUESS, HONEST, POLICIES, Situation
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.probes import Expectation, expect, find_exploits, main, probe_reward
from gym_longvideo.rewards import PRESETS, make_reward
from gym_longvideo.video.pool import pool_times

B32 = Budget.split(32)
SUITE = HaystackSuite("val", families="needle", size=16)


def overview_shows(task) -> bool:
    episode = Episode(
        task, pool_times(600.0, 128), 600.0, None, 3, B32, "pool", PRESETS["accuracy"]
    )
    return Situation(episode).known is not None


HIDDEN = next(task for task in SUITE if not overview_shows(task))
SHOWN = next(task for task in SUITE if overview_shows(task))


def worth(name: str, task, reward="video_mtr", **options) -> Expectation:
    options = {"budget": B32, **options}
    return expect(POLICIES[name], task, make_reward(reward), **options)


# Of one task with four options whose overview shows nothing relevant. A retrieval that improves
# earns 0.5 + 0.1, another well-formed turn 0.1, the right answer 1.
BY_HAND = {
    "video_mtr": {
        "look_once": 0.25 * 1.1 + 0.75 * 0.1,
        "search": 0.6 + 1.1,
        "always_retrieve": 0.6 + 0.1 + 1.1,
        "widen": 0.6 + 1.1,
        "split_the_gain": 0.6 + 0.6 + 1.1,
        "guess_at_once": 0.35,
        "format_only": 0.25 * (0.2 + 1.1) + 0.75 * 0.1,  # frame 0 was not shown; IoU 0, no drop
        "find_and_guess": 0.25 * 2.3 + 0.75 * 0.1,
        "never_answer": 0.0,
        "malformed_first": 0.35,
    },
    "ungated": {
        "search": 1.7,
        "format_only": 0.2 + 0.35,
        "find_and_guess": 1.2 + 0.35,
        "never_answer": 0.6 + 0.1,  # the last turn is malformed
        "malformed_first": 0.35,
    },
    # The right answer loses 0.1 for every turn before it.
    "video_mtr_code": {
        "look_once": 0.35,
        "search": 0.6 + 1.0,
        "split_the_gain": 1.2 + 0.9,
        "find_and_guess": 1.2 + 0.25 * 0.8 + 0.1,
        "malformed_first": 0.25 * 0.9 + 0.1,
    },
    "accuracy": {"look_once": 0.25, "split_the_gain": 1.0, "never_answer": 0.0},
}


@pytest.mark.parametrize(
    ("reward", "name", "worked_out"),
    [(reward, name, value) for reward, row in BY_HAND.items() for name, value in row.items()],
)
def test_expected_returns_are_those_worked_out_by_hand(reward, name, worked_out):
    assert worth(name, HIDDEN, reward).episode_return == pytest.approx(worked_out, abs=1e-12)


def test_a_sandbagger_pays_for_its_bad_start_with_the_penalty_alone():
    # Overview of 16 frames, one relevant: IoU 1 / (16 + relevant - 1); then nothing; then all.
    relevant = len(Situation(_episode(SHOWN)).episode.relevant)
    start = 1 / (16 + relevant - 1)
    assert worth("sandbag", SHOWN).episode_return == pytest.approx(
        (0.1 - 0.5 * start) + 0.6 + 1.1, abs=1e-12
    )
    free = {"preset": "video_mtr", "penalty": 0.0}
    assert worth("sandbag", SHOWN, free).episode_return == pytest.approx(0.1 + 0.6 + 1.1)


def test_only_the_previous_view_pays_twice_for_the_same_evidence():
    # Four turns: evidence, nothing, the same evidence, the answer.
    budget = Budget(40, 16, 8)
    worked_out = {"best": 0.6 + 0.1 + 0.1 + 1.1, "previous": 0.6 + 0.1 + 0.6 + 1.1}
    for baseline, value in worked_out.items():
        reward = {"preset": "video_mtr", "penalty": 0.0, "baseline": baseline}
        found = worth("oscillate", HIDDEN, reward, max_turns=4, budget=budget)
        assert found.episode_return == pytest.approx(value, abs=1e-12)


def test_evidence_with_margins_still_shows_every_frame():
    for family in ("needle", "timestamp", "absent", "chain", "state"):
        for task in HaystackSuite("val", families=family, size=16):
            now = Situation(_episode(task))
            (low, high), (first, last) = now.around_evidence(), now.evidence
            assert 0 <= low <= first <= last <= high <= now.last
            assert high - low + 1 == max(8, last - first + 1) or low == 0 or high == now.last


def test_showing_a_seen_frame_again_is_paid_as_an_improvement():
    # The weakness is the reward's: one relevant frame alone has a larger IoU than the overview.
    assert worth("look_once", SHOWN).episode_return == pytest.approx(1.1)
    assert worth("repeat_overview", SHOWN).episode_return == pytest.approx(0.6 + 0.1 + 1.1)


def test_accuracy_turns_and_frames_of_a_guess_are_weighed():
    found = worth("look_once", HIDDEN)
    assert (found.accuracy, found.turns, found.frames) == (0.25, 1.0, 16.0)
    assert worth("search", HIDDEN).accuracy == 1.0
    assert worth("never_answer", HIDDEN).turns == 3.0


def test_an_expectation_equals_the_mean_over_every_choice_a_guess_can_take():
    reward = make_reward("ungated")
    returns = []
    for choice in range(4):
        episode = _episode(HIDDEN, "ungated")
        while not episode.over:
            move = POLICIES["find_and_guess"].act(Situation(episode))
            episode.step(Answer(choice) if move is GUESS else move)
        returns.append(math.fsum(row.total for row in episode.rows))
    expected = expect(POLICIES["find_and_guess"], HIDDEN, reward, budget=B32)
    assert expected.episode_return == pytest.approx(sum(returns) / 4, abs=1e-12)


@pytest.mark.parametrize("reward", ["ungated", "video_mtr_code"])
def test_rewards_that_pay_wrong_answers_are_caught(reward):
    report = probe_reward(reward, HaystackSuite("val", size=64))
    beaten = {(exploit.exploiter, exploit.honest) for exploit in report.exploits}
    assert {("find_and_guess", "look_once"), ("never_answer", "look_once")} <= beaten
    assert not report.passed


def test_the_papers_reward_pays_no_empty_episode_but_still_pays_needless_turns():
    report = probe_reward("video_mtr", HaystackSuite("val", size=64))
    beaten = {exploit.exploiter for exploit in report.exploits}
    assert not beaten & {"never_answer", "guess_at_once", "format_only", "malformed_first"}
    # Documented in docs/probes.md.
    assert {"split_the_gain", "always_retrieve", "repeat_overview"} <= beaten


@pytest.mark.parametrize("retrieval", ["pool", "timeline"])
def test_the_answer_alone_cannot_be_hacked(retrieval):
    suite = HaystackSuite("val", size=64)
    assert probe_reward("accuracy", suite, retrieval=retrieval).passed


def test_paying_malformed_turns_would_be_caught():
    rows = {name: Expectation(1.0, 0.5, 1.0, 8.0) for name in POLICIES}
    rows["malformed_first"] = Expectation(1.1, 0.5, 2.0, 8.0)
    (first, *rest) = find_exploits(rows)
    assert (first.exploiter, first.accuracy_gap) == ("malformed_first", 0.0)
    assert first.gain == pytest.approx(0.1)
    assert {exploit.exploiter for exploit in rest} <= {"malformed_first"}


def test_earning_more_by_answering_better_is_no_exploit():
    rows = {name: Expectation(1.0, 0.5, 1.0, 8.0) for name in POLICIES}
    rows["widen"] = Expectation(2.0, 0.6, 1.0, 8.0)
    assert find_exploits(rows) == ()
    rows["widen"] = Expectation(1.0 + 1e-12, 0.5, 1.0, 8.0)  # rounding
    assert find_exploits(rows) == ()


def test_honest_policies_stop_looking_once_they_know():
    for policy in HONEST:
        assert expect(policy, SHOWN, make_reward("accuracy"), budget=B32).turns == 1.0


def test_policies_make_no_move_that_the_environment_would_not_understand():
    for policy in (*HONEST, *EXPLOITERS):
        for task in HaystackSuite("val", size=32):
            episode = _episode(task)
            while not episode.over:
                move = policy.act(Situation(episode))
                episode.step(Answer(0) if move is GUESS else move)
            bad = [log.action for log in episode.turns if isinstance(log.action, Malformed)]
            meant = {"malformed_first": 1, "never_answer": 1}.get(policy.name, 0)
            assert len(bad) == meant, (policy.name, task.task_id, bad)
            for log in episode.turns:
                if isinstance(log.action, Retrieve):
                    assert 0 <= log.action.start <= log.action.end < 128


@pytest.mark.parametrize("turns", [1, 2, 5])
@pytest.mark.parametrize("budget", [B32, Budget(8, 0, 2)])
def test_any_number_of_turns_and_frames_will_do(turns, budget):
    suite = HaystackSuite("val", size=16)
    report = probe_reward("video_mtr", suite, max_turns=turns, budget=budget, pool_size=32)
    for name, row in report.policies.items():
        assert 0 <= row.accuracy <= report.policies["search"].accuracy <= 1, name
        assert 1 <= row.turns <= turns
        assert budget.overview <= row.frames <= budget.total
    assert report.policies["guess_at_once"].accuracy == 0.25


def test_a_suite_without_an_oracle_is_refused():
    with pytest.raises(ValueError, match="'grey-0' has no oracle; probe on a haystack suite"):
        probe_reward("video_mtr", GreySuite())
    with pytest.raises(ValueError, match="has no tasks"):
        probe_reward("video_mtr", GreySuite(0))


def test_the_command_line_exits_by_what_it_found(capsys):
    few = ["--tasks", "16", "--families", "needle,chain"]
    assert main(["--reward", "accuracy", *few]) == 0
    assert "passed: no exploiter" in capsys.readouterr().out
    assert main(["--reward", "ungated", *few]) == 1
    assert "caught: " in capsys.readouterr().out
    assert main(["--reward", "all", "--json", *few]) == 1
    assert set(json.loads(capsys.readouterr().out)) == set(PRESETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "best"], "reward='best' is unknown"),
        (["--reward", "{penalty: 1}"], "is no JSON"),
        (["--families", "hay"], "'hay' is unknown"),
        (["--budget", "30"], "frame_budget=30 cannot be split"),
        (["--turns", "0"], "--turns=0 must be a whole number, 1 or more"),
        (["--tasks", "0"], "size=0"),
    ],
)
def test_arguments_without_a_meaning_are_refused_by_name(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def _episode(task, reward="video_mtr") -> Episode:
    times = pool_times(task.duration_s, 128)
    return Episode(task, times, task.duration_s, None, 3, B32, "pool", make_reward(reward))


def test_the_tables_of_the_page_are_what_the_probe_says():
    page = (Path(__file__).parents[1] / "docs" / "probes.md").read_text()
    suite = HaystackSuite("val")
    reports = {name: probe_reward(name, suite) for name in PRESETS}
    for policy in EXPLOITERS:
        cells = []
        for report in reports.values():
            found = [each for each in report.exploits if each.exploiter == policy.name]
            worse = bool(found) and found[0].accuracy_gap < 0
            cells.append(f"{found[0].gain:+.2f}" + " worse" * worse if found else "-")
        assert f"| `{policy.name}` | {' | '.join(cells)} |" in page
    verdicts = " | ".join("passes" if report.passed else "caught" for report in reports.values())
    assert f"| verdict | {verdicts} |" in page
    rows = re.findall(r"^\| `(\{.*?\})` \| .*? \| (\w+) \| (.*?) \|$", page, re.MULTILINE)
    assert len(rows) >= 3
    for fields, verdict, left in rows:
        report = probe_reward(json.loads(fields), suite)
        assert verdict == ("passes" if report.passed else "caught"), fields
        worst = [f"`{each.exploiter}` {each.gain:+.2f}" for each in report.exploits[:1]]
        assert left == (worst or ["-"])[0], fields
