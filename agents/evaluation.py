"""Evaluation: what episodes say about a policy, whoever played them.

Returns are those that the environment pays, without the learner's bonus.
Episodes that the machinery ended are faults, and left out of every mean.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import numpy as np

from agents.confidence import wilson
from agents.scripted import Agent
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.haystack.suite import HaystackSuite
from gym_longvideo.suite import Suite
from gym_longvideo.video.errors import VideoError

if TYPE_CHECKING:  # scripted agents are evaluated without torch
    from agents.parallel import Processes

_SHOWN = 3  # videos that an error names
NumericPolicy = Callable[[LongVideoQAEnv, dict[str, np.ndarray]], Any]


@dataclass(frozen=True)
class Evaluation:
    """What a policy achieves. Means are NaN where there is nothing to average.

    Attributes:
        accuracy: Share of episodes with the right answer.
        accuracy_low: Lower end of its Wilson 95 % interval.
        accuracy_high: Upper end.
        lenient_accuracy: The same if a forgiving parser reads the last reply.
        retrieval_rate: Share of turns that retrieved.
        malformed_rate: Share of turns whose reply was no action.
        truncated_rate: Share of replies cut at the token limit.
        turns: Mean turns of an episode.
        frames: Mean frames shown in an episode.
        iou_gain: Mean of the best IoU minus that of the overview, where relevance is annotated.
        mean_return: Mean return, as the environment pays it.
        reply_tokens: Mean tokens of a reply; 0 for what plays without words.
        episodes: Episodes that count.
        faults: Episodes that broke, and videos that could not be opened.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    lenient_accuracy: float
    retrieval_rate: float
    malformed_rate: float
    truncated_rate: float
    turns: float
    frames: float
    iou_gain: float
    mean_return: float
    reply_tokens: float
    episodes: int
    faults: int

    @property
    def ci95(self) -> tuple[float, float]:
        """The interval of the accuracy."""
        return self.accuracy_low, self.accuracy_high


class Counted(Protocol):
    """An episode that says what there is to count in it, as ``agents.rollout.Trajectory``."""

    infra_error: str

    def counts(self) -> dict[str, Any]:
        """Return the arguments of ``Tally.count``."""
        ...


class Tally:
    """Sums over episodes, from which an ``Evaluation`` is made."""

    def __init__(self) -> None:
        self._sums = np.zeros(13)

    def add(self, episodes: Iterable[Counted]) -> None:
        """Count episodes."""
        for each in episodes:
            if each.infra_error:
                self.fault()
            else:
                self.count(**each.counts())

    def count(
        self,
        *,
        success: bool,
        lenient_success: bool,
        frames: int,
        earned: float,
        iou_gain: float,
        turns: int,
        retrieved: int,
        malformed: int,
        truncated: int = 0,
        tokens: int = 0,
    ) -> None:
        """Count an episode; ``turns`` and what follows are numbers of turns and tokens in it."""
        judged = not math.isnan(iou_gain)
        self._sums[1:] += (
            1, success, lenient_success, frames, earned, judged, iou_gain if judged else 0.0,
            turns, retrieved, malformed, truncated, tokens,
        )  # fmt: skip

    def fault(self, count: int = 1) -> None:
        """Count tasks that could not be played."""
        self._sums[0] += count

    def result(self, processes: Processes | None = None) -> Evaluation:
        """Return the means, over all processes if there are several."""
        sums = self._sums.tolist()
        faults, count, right, lenient, frames, earned, judged, gain, *of_turns = (
            processes.total(*sums) if processes else sums
        )
        turns, retrieved, malformed, truncated, tokens = of_turns
        low, high = wilson(int(right), int(count))
        return Evaluation(
            accuracy=_mean(right, count),
            accuracy_low=low,
            accuracy_high=high,
            lenient_accuracy=_mean(lenient, count),
            retrieval_rate=_mean(retrieved, turns),
            malformed_rate=_mean(malformed, turns),
            truncated_rate=_mean(truncated, turns),
            turns=_mean(turns, count),
            frames=_mean(frames, count),
            iou_gain=_mean(gain, judged),
            mean_return=_mean(earned, count),
            reply_tokens=_mean(tokens, turns),
            episodes=int(count),
            faults=int(faults),
        )


def play_agent(env: gym.Env, policy: NumericPolicy, tasks: Iterable[int]) -> Evaluation:
    """Play tasks with a function of the environment and its observation.

    Scripted agents are seeded anew for every task, so that what they draw does not depend on the
    tasks before it. A task whose video cannot be opened is a fault.

    Args:
        env: LongVideoQA-v0, perhaps wrapped.
        policy: Returns an action.
        tasks: Indices into the suite.
    """
    base = env.unwrapped
    assert isinstance(base, LongVideoQAEnv)
    tally = Tally()
    for index in tasks:
        try:
            observation, info = env.reset(options={"index": index})
        except VideoError:
            tally.fault()
            continue
        if isinstance(policy, Agent):
            policy.reset(index)
        earned, over = 0.0, False
        while not over:
            action = policy(base, observation)
            observation, reward, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            earned += float(reward)
        if info["infra_error"]:
            tally.fault()
            continue
        episode = base.episode
        assert episode is not None
        done = [log.facts.op for log in episode.turns]
        tally.count(
            success=info["is_success"],
            lenient_success=info["is_success"],
            frames=info["frames_shown"],
            earned=earned,
            iou_gain=episode.best_iou - episode.initial_iou,
            turns=len(done),
            retrieved=done.count("retrieve"),
            malformed=done.count("malformed"),
        )
    return tally.result()


def evaluation_tasks(
    size: int, episodes: int, processes: Processes | None = None
) -> tuple[list[int], list[int]]:
    """Return this process's tasks of an evaluation, the same in every run, and its spare ones.

    Args:
        size: Tasks of the suite.
        episodes: How many to play in all; at most all of them, each once.
        processes: Who share them.

    >>> tasks, spare = evaluation_tasks(10, 6)
    >>> len(tasks), sorted(tasks + spare) == list(range(10))
    (6, True)
    """
    rank, step = (processes.rank, processes.size) if processes else (0, 1)
    order = np.random.default_rng(0).permutation(size).tolist()
    return order[:episodes][rank::step], order[episodes:][rank::step]


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan


def check_held_out(trained: Suite, evaluated: Suite, options: Mapping[str, Any]) -> None:
    """Refuse an evaluation on videos that are trained on.

    Videos are told apart by their files. Procedural ones have none, and differ between splits.

    Args:
        trained: Suite that is trained on.
        evaluated: Suite that is evaluated on.
        options: Of the first; who says "split_by": "none" wants all records in both.

    Raises:
        ValueError: Naming some videos that both have.
    """
    if isinstance(trained, HaystackSuite) or isinstance(evaluated, HaystackSuite):
        return
    if options.get("split_by") == "none":
        return
    held = _videos(evaluated)
    if both := sorted(held & _videos(trained)):
        names = ", ".join(map(os.path.basename, both[:_SHOWN]))
        more = ", ..." if len(both) > _SHOWN else ""
        raise ValueError(
            f"{len(both)} of the {len(held)} videos that are evaluated on ({evaluated.name}:"
            f"{evaluated.split}) are trained on too ({trained.name}:{trained.split}): {names}{more}"
            "; name another eval_suite or eval_split, or give such records one split"
        )


def _videos(suite: Suite) -> set[str]:
    return {os.path.realpath(suite[index].video) for index in range(len(suite))}
