"""Haystack: procedural long videos with exact oracles, the suite that needs no download.

Reader's path: ``suite.py`` (what a user holds) -> ``families.py`` (the eight kinds of questions) ->
``draft.py`` (a task in the making, and its twins) -> ``world.py`` (what a video shows) ->
``video.py`` (its pixels) -> ``oracle.py`` (which moments prove an answer).
"""

from gym_longvideo.haystack.knobs import FAMILIES
from gym_longvideo.haystack.suite import HaystackSuite
from gym_longvideo.haystack.video import HaystackVideo

__all__ = ["FAMILIES", "HaystackSuite", "HaystackVideo"]
