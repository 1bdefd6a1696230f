"""Haystack: procedural long videos with exact oracles, the suite that needs no download.

Reader's path: ``suite.py`` (what a user holds) -> ``families.py`` (the eight kinds of questions) ->
``draft.py`` (a task in the making, and its twins) -> ``world.py`` (what a video shows) ->
``video.py`` (its pixels) -> ``oracle.py`` (which moments prove an answer).
"""

from functools import partial

from gym_longvideo.haystack.knobs import FAMILIES
from gym_longvideo.haystack.suite import HaystackSuite
from gym_longvideo.haystack.video import HaystackVideo

__all__ = ["FAMILIES", "HaystackSuite", "HaystackVideo"]

# Suites of one family, under names that an environment id can hold and knobs can be added to.
needle = partial(HaystackSuite, families="needle")
timestamp = partial(HaystackSuite, families="timestamp")
order = partial(HaystackSuite, families="order")
count = partial(HaystackSuite, families="count")
state = partial(HaystackSuite, families="state")
chain = partial(HaystackSuite, families="chain")
holistic = partial(HaystackSuite, families="holistic")
absent = partial(HaystackSuite, families="absent")
