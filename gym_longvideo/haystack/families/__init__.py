"""Families: the eight kinds of questions, each a function from dice to a draft.

In every family the answer is drawn uniformly among the options, and the options independently of
it: a blind guess is right one time in ``options``.
"""

from collections.abc import Callable

from gym_longvideo.haystack.dice import Dice
from gym_longvideo.haystack.draft import Draft
from gym_longvideo.haystack.families.holistic import holistic
from gym_longvideo.haystack.families.several import count, order, state
from gym_longvideo.haystack.families.single import absent, chain, needle, timestamp
from gym_longvideo.haystack.knobs import Knobs

BUILDERS: dict[str, Callable[[Dice, Knobs], Draft]] = {
    "needle": needle,
    "timestamp": timestamp,
    "order": order,
    "count": count,
    "state": state,
    "chain": chain,
    "holistic": holistic,
    "absent": absent,
}
