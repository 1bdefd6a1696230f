"""Metrics: the names under which a run's numbers are logged, those that dashboards know.

``charts`` is what the episodes were like, without any bonus; ``losses`` what the learner says;
``perf`` and ``time`` what it cost: ``perf/waiting`` is the share of a rollout in which dialogues
waited for their environments, that is for videos to be decoded. All are over all processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agents.evaluation import Tally
from agents.parallel import Processes
from agents.rollout import RolloutCollector
from agents.trajectory import Trajectory

_TIMES = {"score_s": "time/score", "optimise_s": "time/update"}
_CHARTS = ("bonus", "bonus_share", "response_tokens")
_PLAIN = ("infra_errors",)


def of_rollout(
    collector: RolloutCollector,
    trajectories: Sequence[Trajectory],
    seconds: float,
    processes: Processes,
) -> dict[str, float]:
    """Return the metrics of collected episodes.

    Args:
        collector: That collected them just now.
        trajectories: Of this process.
        seconds: That it took.
        processes: All that collected.
    """
    tally = Tally()
    tally.add(trajectories)
    means = tally.result(processes)
    stats = collector.stats
    decoded, prefilled, waiting, skipped = processes.total(
        stats["decoded"], stats["prefilled"], stats["waiting"], len(collector.skipped)
    )
    return {
        "charts/return": means.mean_return,
        "charts/accuracy": means.accuracy,
        "charts/lenient_accuracy": means.lenient_accuracy,
        "charts/retrieval_rate": means.retrieval_rate,
        "charts/malformed_rate": means.malformed_rate,
        "charts/truncated_rate": means.truncated_rate,
        "charts/turns": means.turns,
        "charts/frames": means.frames,
        "charts/iou_gain": means.iou_gain,
        "charts/reply_tokens": means.reply_tokens,
        "charts/skipped_videos": skipped,
        "perf/tokens_per_second": decoded / seconds,
        "perf/prefill_tokens_per_second": prefilled / seconds,
        "perf/episodes_per_second": means.episodes / seconds,
        "perf/waiting": waiting / processes.size,
        "time/rollout": seconds,
    }


def of_learning(learned: Mapping[str, float]) -> dict[str, float]:
    """Return what ``PPOLearner.update`` said, under the names of the log."""
    named = {}
    for name, value in learned.items():
        if name in _PLAIN:
            named[name] = value
        else:
            group = "charts" if name in _CHARTS else "losses"
            named[_TIMES.get(name, f"{group}/{name}")] = value
    return named
