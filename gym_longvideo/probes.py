"""Probe a reward for hacks, before anything is trained on it.

    longvideo probe --reward video_mtr
    longvideo probe --reward '{"preset": "video_mtr", "format": 0.0}'
    longvideo probe --reward all

Scripted exploiters (``exploits.py``) play against honest policies on the same haystack tasks. An
exploiter *beats* an honest policy if it earns more and answers no better: a learner paid this way
has a reason to become that exploiter. Exits with 1 if any does, with 0 if none does.

Returns and accuracies are exact: policies are deterministic but for even guesses, whose outcomes
are weighed, and the mean is over all tasks of the suite. No frame is drawn.

A reward that passes may still have exploits that are not tried here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from tqdm import tqdm

from gym_longvideo import checks
from gym_longvideo.command import Parser, as_command, json_object
from gym_longvideo.episode import Answer, Budget, Episode, Retrieval
from gym_longvideo.exploits import EXPLOITERS, HONEST, POLICIES, Guess, ProbePolicy, Situation
from gym_longvideo.haystack.suite import HaystackSuite
from gym_longvideo.rewards import PRESETS, BiLevelReward, make_reward
from gym_longvideo.suite import Suite
from gym_longvideo.task import Task
from gym_longvideo.video.pool import pool_times

TOLERANCE = 1e-9  # of means of exact numbers: rounding alone


@dataclass(frozen=True)
class Expectation:
    """What a policy can expect, over the tasks of a suite.

    Attributes:
        episode_return: Mean return.
        accuracy: Mean chance of the right answer.
        turns: Mean turns of an episode.
        frames: Mean frames shown.
    """

    episode_return: float
    accuracy: float
    turns: float
    frames: float


@dataclass(frozen=True)
class Exploit:
    """An exploiter that beats an honest policy.

    Attributes:
        exploiter: Name of the one.
        honest: Name of the other.
        gain: By how much more it earns.
        accuracy_gap: Its accuracy minus that of the honest policy, 0 or less.
    """

    exploiter: str
    honest: str
    gain: float
    accuracy_gap: float


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found.

    Attributes:
        reward: The reward probed.
        tasks: Tasks played.
        policies: Expectation of each policy, by name.
        exploits: Which exploiter beats which honest policy, the largest gain first.
    """

    reward: BiLevelReward
    tasks: int
    policies: Mapping[str, Expectation]
    exploits: tuple[Exploit, ...]

    @property
    def passed(self) -> bool:
        """Whether no exploiter beats an honest policy."""
        return not self.exploits

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "reward": self.reward.to_dict(),
            "tasks": self.tasks,
            "passed": self.passed,
            "policies": {name: asdict(row) for name, row in self.policies.items()},
            "exploits": [asdict(exploit) for exploit in self.exploits],
        }

    def table(self) -> str:
        """Return the report as text: a line a policy, then who beats whom."""
        lines = [
            f"{'policy':16s} {'return':>7s} {'accuracy':>9s} {'turns':>6s} {'frames':>7s}  "
            "beats (by)"
        ]
        for name, row in self.policies.items():
            beaten = [
                f"{exploit.honest} ({exploit.gain:+.3f})"
                for exploit in self.exploits
                if exploit.exploiter == name
            ]
            honest = POLICIES[name].intent == "honest"
            lines.append(
                f"{name:16s} {row.episode_return:7.3f} {row.accuracy:9.3f} {row.turns:6.2f} "
                f"{row.frames:7.1f}  {'(honest)' if honest else ', '.join(beaten) or '-'}"
            )
        return "\n".join(lines)


def probe_reward(
    reward: str | Mapping[str, Any] | BiLevelReward,
    suite: Suite | None = None,
    *,
    max_turns: int = 3,
    budget: Budget | None = None,
    pool_size: int = 128,
    retrieval: Retrieval = "pool",
    progress: bool = False,
) -> ProbeReport:
    """Play all probe policies on all tasks of a suite and compare what they earn.

    Args:
        reward: Preset name, mapping of fields, or ``BiLevelReward``.
        suite: A haystack suite; by default the validation split with all families.
        max_turns: Turns of an episode (K_max).
        budget: Frames; by default that of the environment, 32 = 16 + 8 + 8.
        pool_size: Candidate frames of a video (M).
        retrieval: "pool" or "timeline", as in the environment.
        progress: Show a progress bar.

    Raises:
        ValueError: For a reward that has no meaning, or a task without an oracle.

    >>> suite = HaystackSuite("val", families="needle", size=8)
    >>> probe_reward("accuracy", suite).passed
    True
    >>> probe_reward("ungated", suite).exploits[0].exploiter
    'find_and_guess'
    """
    reward = make_reward(reward)
    suite = HaystackSuite("val") if suite is None else suite
    tasks = [suite[index] for index in range(len(suite))]
    if not tasks:
        raise ValueError(f"{suite!r} has no tasks; a probe needs one at least")
    options: dict[str, Any] = {
        "max_turns": max_turns,
        "budget": budget or Budget.split(32),
        "pool_size": pool_size,
        "retrieval": retrieval,
    }
    policies = {}
    bar = tqdm(POLICIES.values(), "probing", unit="policy", disable=not progress, leave=False)
    for policy in bar:
        found = [astuple(expect(policy, task, reward, **options)) for task in tasks]
        means = (math.fsum(column) / len(tasks) for column in zip(*found, strict=True))
        policies[policy.name] = Expectation(*means)
    return ProbeReport(reward, len(tasks), policies, find_exploits(policies))


def find_exploits(policies: Mapping[str, Expectation]) -> tuple[Exploit, ...]:
    """Return which exploiter beats which honest policy, the largest gain first.

    Args:
        policies: Expectation of each probe policy, by name.
    """
    found = []
    for exploiter in EXPLOITERS:
        for honest in HONEST:
            one, other = policies[exploiter.name], policies[honest.name]
            gain = one.episode_return - other.episode_return
            accuracy_gap = one.accuracy - other.accuracy
            if gain > TOLERANCE and accuracy_gap <= TOLERANCE:
                found.append(Exploit(exploiter.name, honest.name, gain, accuracy_gap))
    return tuple(sorted(found, key=lambda exploit: -exploit.gain))


def expect(
    policy: ProbePolicy,
    task: Task,
    reward: BiLevelReward,
    *,
    max_turns: int = 3,
    budget: Budget,
    pool_size: int = 128,
    retrieval: Retrieval = "pool",
) -> Expectation:
    """Return what a policy can expect on one task, the outcomes of a guess weighed.

    Raises:
        ValueError: If the task has no oracle or no known answer.
    """
    if "rule" not in task.meta or task.answer_index is None or task.duration_s is None:
        raise ValueError(
            f"task {task.task_id!r} has no oracle; probe on a haystack suite, whose tasks say "
            "which frames prove the answer"
        )
    right = task.answer_index
    wrong = (right + 1) % len(task.options)
    times = pool_times(task.duration_s, pool_size)
    outcomes = []
    for chance, choice in ((1 / len(task.options), right), (1 - 1 / len(task.options), wrong)):
        episode = Episode(task, times, task.duration_s, None, max_turns, budget, retrieval, reward)
        guessed = _play(policy, episode, choice)
        earned = math.fsum(row.total for row in episode.rows)
        facts = (earned, episode.outcome == "correct", episode.turn, episode.frames_shown)
        if not guessed:
            return Expectation(*map(float, facts))
        outcomes.append([chance * float(fact) for fact in facts])
    return Expectation(*(math.fsum(column) for column in zip(*outcomes, strict=True)))


def _play(policy: ProbePolicy, episode: Episode, choice: int) -> bool:
    """Play an episode in which a guess falls on ``choice``; return whether there was one."""
    guessed = False
    while not episode.over:
        move = policy.act(Situation(episode))
        if isinstance(move, Guess):
            guessed, move = True, Answer(choice)
        episode.step(move)
    return guessed


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="longvideo probe", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--reward",
        default="video_mtr",
        help=f"a preset ({', '.join(sorted(PRESETS))}), 'all' of them, or a JSON object of fields",
    )
    parser.add_argument("--families", default="all", help="haystack families, comma-separated")
    parser.add_argument("--tasks", type=int, default=256, help="tasks of the suite")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the videos")
    parser.add_argument("--turns", type=int, default=3, help="turns of an episode")
    parser.add_argument("--budget", type=int, default=32, help="frames of an episode")
    parser.add_argument("--pool", type=int, default=128, help="candidate frames of a video")
    parser.add_argument("--retrieval", choices=("pool", "timeline"), default="pool")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line.

    Returns:
        0 if no exploiter beats an honest policy, 1 if one does, 2 for arguments without a meaning.
    """
    args = parse(arguments)
    names: dict[str, Any] = {args.reward: _reward(args.reward)}
    if args.reward == "all":
        names = {name: name for name in PRESETS}
    families = args.families if args.families == "all" else args.families.split(",")
    suite = HaystackSuite("val", families=families, size=args.tasks, duration_s=60.0 * args.minutes)
    budget = Budget.split(args.budget)
    checks.whole("--turns", args.turns, 1)
    checks.whole("--pool", args.pool, 1)
    reports = {
        name: probe_reward(
            reward,
            suite,
            max_turns=args.turns,
            budget=budget,
            pool_size=args.pool,
            retrieval=args.retrieval,
            progress=True,
        )
        for name, reward in names.items()
    }
    if args.json:
        print(json.dumps({name: report.to_dict() for name, report in reports.items()}, indent=2))
    else:
        for name, report in reports.items():
            print(f"reward {name}, {report.tasks} tasks\n\n{report.table()}\n\n{verdict(report)}\n")
    return int(any(not report.passed for report in reports.values()))


def verdict(report: ProbeReport) -> str:
    """Say in a sentence what was found."""
    if report.passed:
        return "passed: no exploiter earns more than an honest policy that answers as well"
    worst = report.exploits[0]
    count = len({exploit.exploiter for exploit in report.exploits})
    return (
        f"caught: {count} of {len(EXPLOITERS)} exploiters beat an honest policy; "
        f"{worst.exploiter} ({POLICIES[worst.exploiter].summary}) earns {worst.gain:.3f} more than "
        f"{worst.honest} and answers "
        + ("as well" if worst.accuracy_gap > -TOLERANCE else f"{-worst.accuracy_gap:.3f} worse")
    )


def _reward(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json_object(text)
    except ValueError as error:
        raise ValueError(f"--reward {error}") from None


if __name__ == "__main__":
    sys.exit(main())
