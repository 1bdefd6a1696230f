"""What the task allows, by geometry alone: the bounds inside which every arm must end.

    python -m examples.study.geometry

For each setting of the study: accuracy of whoever looks once at the whole budget, of a searcher who
retrieves around the frames that show the scene in question (as often as there are turns), and of
a clairvoyant. All read perfectly and guess evenly where they have not seen the card. Nothing is
trained, so this can be looked at before any result.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

from examples.study.plan import ARMS, MINUTES, SUITE_OPTIONS, Arm
from gym_longvideo.episode import Budget, Retrieval, Retrieve
from gym_longvideo.exploits import POLICIES, Move, ProbePolicy, Situation
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.probes import expect
from gym_longvideo.rewards import make_reward

SHOWN = ("full", "short", "medium", "budget_8", "budget_16", "turns_2", "turns_5")
# What no arm was trained on: the tiny model speaks pool indices, and several frames of a timeline
# retrieval share one.
BEYOND = (
    ("full", MINUTES, "timeline"),
    ("full", 40, "pool"),
    ("full", 40, "timeline"),
    ("full", 60, "pool"),
    ("full", 60, "timeline"),
)


def follow_the_scene(now: Situation, suite: HaystackSuite) -> Move:
    """Retrieve between the neighbours of the frames that show the scene in question.

    A second look at the same scene begins one frame later, so that other frames are shown. Where no
    frame shows the scene, it lies in the longest gap.
    """
    if now.known is not None or not now.may_retrieve:
        return now.answer
    episode = now.episode
    world = suite.world(episode.task)
    scene = world.scene_at(episode.task.segments_s[0][0])
    seen = sorted(episode.seen)
    here = [index for index in seen if world.scene_at(episode.pool_times[index]) == scene]
    if here:
        low = max((index for index in seen if index < here[0]), default=-1) + 1
        high = min((index for index in seen if index > here[-1]), default=now.last + 1) - 1
    else:
        edges = [-1, *seen, now.last + 1]
        before, after = max(pairwise(edges), key=lambda pair: pair[1] - pair[0])
        low, high = before + 1, after - 1
    low += len(episode.turns) > 0
    return Retrieve(low, high) if low <= high else now.answer


def bounds(arm: Arm, retrieval: Retrieval = "pool", tasks: int = 512) -> dict[str, float]:
    """Return the accuracy of one look, of the searcher and of the clairvoyant."""
    options = {**SUITE_OPTIONS, "duration_s": 60.0 * arm.minutes, "size": tasks}
    suite = HaystackSuite("test", **options)
    environment = arm.environment()
    reward = make_reward("accuracy")
    searcher = ProbePolicy("follow", "honest", "", partial(follow_the_scene, suite=suite))
    shown = {
        "one look": (POLICIES["look_once"], 1, Budget(arm.budget, arm.budget, 1)),
        "searcher": (
            searcher,
            arm.turns,
            Budget(arm.budget, environment["overview_frames"], environment["frames_per_retrieval"]),
        ),
    }
    shown["clairvoyant"] = (POLICIES["search"], *shown["searcher"][1:])
    found = {}
    for name, (policy, turns, budget) in shown.items():
        found[name] = (
            sum(
                expect(
                    policy,
                    suite[index],
                    reward,
                    max_turns=turns,
                    budget=budget,
                    pool_size=environment["pool_size"],
                    retrieval=retrieval,
                ).accuracy
                for index in range(tasks)
            )
            / tasks
        )
    return found


def geometry_table() -> str:
    """Return the bounds as a Markdown table."""
    lines = [
        "| setting | what it is | one look | searcher | clairvoyant |",
        "|---|---|---|---|---|",
    ]
    rows = [(name, ARMS[name].change, ARMS[name], "pool") for name in SHOWN]
    for name, minutes, retrieval in BEYOND:
        arm = replace(ARMS[name], minutes=minutes)
        rows.append((f"{retrieval}, {minutes} minutes", "not trained", arm, retrieval))
    for name, change, arm, retrieval in rows:
        numbers = " | ".join(f"{value:.2f}" for value in bounds(arm, retrieval).values())
        lines.append(f"| {name} | {change} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(geometry_table())
