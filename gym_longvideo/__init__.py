"""Long-video question answering as a Gymnasium environment.

``gym.make("gym_longvideo:LongVideoQA-v0")`` works in every process, also in spawned workers,
because the prefix imports this module, and importing it registers the ids.
"""

import gymnasium as gym

from gym_longvideo.record import EpisodeRecord, rescore
from gym_longvideo.rewards import BiLevelReward
from gym_longvideo.suite import JsonlSuite, Suite, load_suite
from gym_longvideo.task import Task
from gym_longvideo.version import __version__

__all__ = [
    "BiLevelReward",
    "EpisodeRecord",
    "JsonlSuite",
    "Suite",
    "Task",
    "__version__",
    "load_suite",
    "rescore",
]

HAYSTACK_IDS = {
    f"LongVideo/Haystack-{family.capitalize()}-v0": f"gym_longvideo.haystack:{family}"
    for family in (
        "needle",
        "timestamp",
        "order",
        "count",
        "state",
        "chain",
        "holistic",
        "absent",
    )
}

RELEASED_ID = "LongVideo/VideoMTR-Released-v0"  # plays the released code of Video-MTR


def _register() -> None:
    """Register every id once; importing again changes nothing."""
    entry_point = "gym_longvideo.env:LongVideoQAEnv"
    vector_entry_point = "gym_longvideo.vector:LongVideoQAVectorEnv"
    ids: dict[str, dict] = {"LongVideoQA-v0": {}}
    ids |= {name: {"suite": suite} for name, suite in HAYSTACK_IDS.items()}
    ids[RELEASED_ID] = {"rules": "video_mtr_code"}
    for name, kwargs in ids.items():
        if name not in gym.registry:
            gym.register(
                name, entry_point=entry_point, vector_entry_point=vector_entry_point, kwargs=kwargs
            )


_register()
