"""Evaluation: what episodes say about a policy, and greedy episodes on a held-out split.

Returns are those that the environment pays, without the learner's bonus.
Episodes that the machinery ended are faults, and left out of every mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agents.confidence import wilson
from agents.model.sampling import Sampling, greedy
from agents.parallel import Processes
from agents.rollout import RolloutCollector, Trajectory


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
        reply_tokens: Mean tokens of a reply.
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


class Tally:
    """Sums over episodes, from which an ``Evaluation`` is made."""

    def __init__(self) -> None:
        self._sums = np.zeros(13)

    def add(self, episodes: Sequence[Trajectory]) -> None:
        """Count episodes."""
        for episode in episodes:
            if episode.infra_error:
                self.fault()
                continue
            judged = not math.isnan(episode.iou_gain)
            turns = episode.turns
            self._sums[1:] += (
                1,
                episode.success,
                episode.lenient_success,
                episode.frames_shown,
                sum(turn.reward for turn in episode.turns),
                judged,
                episode.iou_gain if judged else 0.0,
                len(turns),
                sum(turn.retrieved for turn in turns),
                sum(bool(turn.malformed) for turn in turns),
                sum(turn.reply.truncated for turn in turns),
                sum(len(turn.reply.ids) for turn in turns),
            )

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


def play(
    collector: RolloutCollector,
    tasks: Sequence[int],
    sampling: Sampling,
    *,
    spare: Sequence[int] = (),
    keep: Callable[[Sequence[Trajectory]], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tally:
    """Play tasks greedily, as many at once as there are environments, and tally them.

    Args:
        collector: Over environments that nobody else uses.
        tasks: Indices into the suite.
        sampling: Limits of a reply.
        spare: Tasks for those whose video cannot be opened, which count as faults; without any the
            ``VideoError`` is raised.
        keep: Given the episodes of each wave, which are then forgotten: frames are large.
        progress: Given the number of episodes done since the last call.
    """
    tally, wave = Tally(), len(collector.envs)
    others, skipped = iter(spare), len(collector.skipped)
    for start in range(0, len(tasks), wave):
        episodes = collector.collect(
            tasks[start : start + wave],
            greedy(sampling),
            replacement=others.__next__ if len(spare) else None,
            upcoming=tasks[start + wave : start + 2 * wave],
            progress=progress,
        )
        tally.add(episodes)
        if keep is not None:
            keep(episodes)
    tally.fault(len(collector.skipped) - skipped)
    return tally


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
