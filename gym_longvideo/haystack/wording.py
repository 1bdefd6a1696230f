"""Wording: how questions are put in English. The first wording of each list is the plain one.

No wording depends on the answer, and a list of what is shown is always in alphabetical order.
"""

from __future__ import annotations

NEEDLE = (
    "In the scene with {look}, a card is held up for a short while. {ask}",
    "A card appears briefly in the scene with {look}. {ask}",
    "Somewhere in the scene with {look} a card is shown for a moment. {ask}",
    "Find the card that is held up in the scene with {look}. {ask}",
)
ABSENT = (
    "In the scene with {look}, a card is held up for a short while. {ask}",
    "A card is shown briefly in the scene with {look}. {ask}",
    "Look for the card in the scene with {look}. {ask}",
)
TIMESTAMP = (
    "A card is on screen at {clock}. {ask}",
    "Go to {clock}, where a card is being held up. {ask}",
    "At the {clock} mark the video shows a card. {ask}",
    "Consider the card that can be seen at {clock}. {ask}",
)
ORDER = (
    "{Number} cards ({names}) are held up one after another in the scene with {look}. In which "
    "order do they appear?",
    "Cards with {names} (listed alphabetically) are shown in the scene with {look}. What is their "
    "order of appearance?",
    "In the scene with {look} one sees {number} cards ({names}), each for a moment. Which order is "
    "the right one?",
)
COUNT = (
    "{Number} {cards} held up in the scene with {look}. How many show {thing}?",
    "In the scene with {look}, {number} {cards} shown for a moment. How many times is it {thing}?",
    "Of what is held up in the scene with {look} ({number} in all), how many cards show {thing}?",
)
COUNTER = (
    "A counter starts at {start}. Each of the {number} cards held up in the scene with {look} says "
    "what is added to it or taken away. What does it read after the last card?",
    "Begin with {start} and apply the {number} cards of the scene with {look}, such as +{step} or "
    "-{step}. Which number results?",
    "The score is {start} at first. In the scene with {look}, {number} cards raise or lower it by "
    "{step}. What is the final score?",
)
COMPASS = (
    "A robot faces {start}. In the scene with {look} three cards steer it: a left or right arrow "
    "is a quarter turn that way, an up-and-down arrow turns it around. Which way does it face at "
    "the end?",
    "Three cards in the scene with {look} turn a robot that faces {start} at first: left arrow, "
    "right arrow (a quarter turn each) or up-and-down arrow (turn around). Where does it look "
    "afterwards?",
)
LAMP = (
    "A lamp is {start} at first. In the scene with {look} three cards are held up: a cross flips "
    "the switch, a circle leaves it alone. Is the lamp on or off afterwards?",
    "Three cards appear in the scene with {look}; every cross switches a lamp, a circle does "
    "nothing. The lamp is {start} before. What is it after the last card?",
)
CHAIN = (
    "A card in the scene with {look} shows a small picture of another scene. {ask}",
    "The card held up in the scene with {look} is a picture of a different scene; go there. {ask}",
    "In the scene with {look}, a card pictures some other scene of the video. {ask}",
)
FIRST = (
    "What does the very first scene of the video look like?",
    "Which background does the video open with?",
    "Which of these is the scene at the beginning of the video?",
)
LAST = (
    "What does the very last scene of the video look like?",
    "Which background does the video end with?",
    "Which of these is the scene at the end of the video?",
)
LONGEST = (
    "Which background is shown for more than half of the video?",
    "One scene takes up most of the video. What does it look like?",
    "Which of these scenes lasts longer than all others together?",
)
AFTER = (
    "Which scene comes directly after the scene with {look}?",
    "What does the scene that follows the one with {look} look like?",
    "The scene with {look} ends. What does the next scene look like?",
)
BEFORE = (
    "Which scene comes directly before the scene with {look}?",
    "What does the scene just ahead of the one with {look} look like?",
    "The scene with {look} begins. What did the scene before it look like?",
)

ASK = {
    "shape": "Which shape is on it?",
    "letter": "Which letter is on it?",
    "digit": "Which digit is on it?",
    "symbol": "Which symbol is on it?",
    "colour": "What colour is the shape on it?",
}
ASK_THERE = {
    "shape": "Which shape is on the card in that other scene?",
    "letter": "Which letter is on the card in that other scene?",
    "digit": "Which digit is on the card in that other scene?",
    "symbol": "Which symbol is on the card in that other scene?",
    "colour": "What colour is the shape on the card in that other scene?",
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


def clock(time_s: int) -> str:
    """Say a time as people do.

    >>> clock(7), clock(754), clock(3725)
    ('0:07', '12:34', '1:02:05')
    """
    minutes, seconds = divmod(time_s, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def thing(kind: str, name: str) -> str:
    """Name what a card shows, with its article.

    >>> thing("shape", "star"), thing("letter", "A"), thing("symbol", "equals sign")
    ('a star', 'the letter A', 'an equals sign')
    >>> thing("colour", "orange")
    'an orange shape'
    """
    if kind in ("letter", "digit"):
        return f"the {kind} {name}"
    name = f"{name} shape" if kind == "colour" else name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
