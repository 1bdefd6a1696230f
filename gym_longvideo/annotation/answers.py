"""Which option an answer names: by its letter, its 0-based index, its key, or its text.

Where options are letters or numbers themselves, an answer can be read in two ways: of ``c, a, t``
the answer "c" is the third by its letter and the first by its text. A row does not tell which is
meant, but its file does: rows that can be read in one way only show how answers are written there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gym_longvideo.annotation.fields import ANSWER, canonical, first
from gym_longvideo.annotation.options import Options, read_options

_TAGGED = re.compile(r"^\s*<answer>(.*)</answer>\s*$", re.DOTALL)
_LETTER = re.compile(r"^\(?([A-Za-z])[.):]?$")
_LETTER_THEN_TEXT = re.compile(r"^\(?([A-Z])[.):]\s*\S")
_CLEAR = 10  # times as many rows must show one way of writing as another that they contradict


def readings(answer: Any, options: Sequence[str], keys: Sequence[str] = ()) -> dict[str, int]:
    """Return the index of the option that an answer names in each way of reading it.

    >>> readings("c", ("c", "a", "t"))
    {'letter': 2, 'text': 0}
    """
    if isinstance(answer, bool) or not isinstance(answer, (int, str)):
        return {}
    text = _untagged(str(answer))
    if text in keys:
        return {"key": list(keys).index(text)}
    found: dict[str, int] = {}
    if isinstance(answer, str) and (letter := _LETTER.match(text)):
        found["letter"] = ord(letter[1].upper()) - ord("A")
    if text.isascii() and text.isdecimal():
        found["index"] = int(text)
    found = {way: index for way, index in found.items() if index < len(options)}
    if same := _alike(text, options):
        found["text"] = same[0]
    return found


@dataclass(frozen=True)
class Writing:
    """How the answers of a file are written.

    Attributes:
        shown: How many rows can be read in one way alone, by the type of their answer ("str" or
            "int") and that way.
    """

    shown: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Any]) -> Writing:
        """Look at all records of a file; those that cannot be read show nothing."""
        shown: Counter[tuple[str, str]] = Counter()
        for record in records:
            if not isinstance(record, Mapping):
                continue
            record = canonical(record)
            try:
                options, (_, answer) = read_options(record), _main(record)
            except ValueError:
                continue
            found = readings(answer, *options)
            if len(found) == 1:
                shown[type(answer).__name__, next(iter(found))] += 1
        return cls(shown)

    def choose(self, answer: Any, options: Sequence[str], ways: Mapping[str, int]) -> str:
        """Return the way in which an answer is read that can be read in several.

        Raises:
            ValueError: If neither the file nor the answer tells which is meant.
        """
        kind = type(answer).__name__
        counts = {way: self.shown.get((kind, way), 0) for way in ways}
        most = max(counts, key=lambda way: counts[way])
        others = max(count for way, count in counts.items() if way != most)
        if counts[most] > 0 and counts[most] >= _CLEAR * others:
            return most
        if not any(counts.values()):
            if "index" in ways:  # a number that is an option, unless it is written as a number
                return "text" if isinstance(answer, str) else "index"
            if _untagged(str(answer)) in options and _untagged(str(answer)).islower():
                return "text"  # letters that stand for options are capitals
        means = " or ".join(f"{options[index]!r} (by {way})" for way, index in ways.items())
        raise ValueError(
            f"answer={answer!r} names {means} of the options {list(options)}, and the other rows "
            "do not show which is meant; write the 0-based index as a number"
        )


def answer_of(
    record: Mapping[str, Any], options: Options, writing: Writing
) -> tuple[int | None, bool]:
    """Return the index of a record's answer, and whether its text stands under several letters.

    Where it can be read in several ways, another field that names the answer settles it (a number
    beside the text), or else the rest of the file.

    Raises:
        ValueError: If there is none that can be read, or nothing tells how it is meant.
    """
    name, answer = _main(record)
    ways = readings(answer, *options)
    if not ways:
        return parse_answer(answer, options.texts)
    for other in ANSWER:
        if other != name and len(set(ways.values())) > 1:
            beside = set(readings(record.get(other), *options).values())
            ways = {way: index for way, index in ways.items() if index in beside} or ways
    if len(set(ways.values())) > 1:
        way = writing.choose(answer, options.texts, ways)
        ways = {way: ways[way]}
    repeated = "text" in ways and len(_alike(_untagged(str(answer)), options.texts)) > 1
    return next(iter(ways.values())), repeated


def _main(record: Mapping[str, Any]) -> tuple[str, Any]:
    """Return name and value of the first field that names the answer."""
    given = [name for name in ANSWER if record.get(name) is not None]
    return (given[0], record[given[0]]) if given else ("answer", first(record, ANSWER, "answer"))


def parse_answer(answer: Any, options: tuple[str, ...]) -> tuple[int | None, bool]:
    """Return the answer's index, and whether its text stands under several letters.

    Understood: a letter ("B", "(b)", "B."), a 0-based index (2, "2"), "<answer>B</answer>",
    "(D) 1633", and the text of an option. ``None`` and -1 mean that no answer is public. Letters
    come first here, as nothing is known of other rows.

    >>> parse_answer("<answer>B</answer>", ("x", "y"))
    (1, False)
    >>> parse_answer("y", ("x", "y", "y"))
    (1, True)
    """
    if answer is None or (answer == -1 and not isinstance(answer, bool)):
        return None, False
    if isinstance(answer, bool) or not isinstance(answer, (int, str)):
        raise ValueError(f"answer={answer!r} must be a letter, a 0-based index or an option's text")
    if isinstance(answer, int):
        return _in_range(answer, answer, options), False
    text = _untagged(answer)
    exact = [i for i, option in enumerate(options) if option == text]
    if letter := _LETTER.match(text):
        index = ord(letter[1].upper()) - ord("A")
        # A letter names its option even where another option's text is that very letter.
        if index < len(options) or not exact:
            return _in_range(index, answer, options), exact not in ([], [index])
    if found := _alike(text, options):
        return found[0], len(found) > 1
    if letter := _LETTER_THEN_TEXT.match(text):
        return _in_range(ord(letter[1]) - ord("A"), answer, options), False
    if text == "-1":
        return None, False
    if re.fullmatch(r"-?\d+", text):
        return _in_range(int(text), answer, options), False
    raise ValueError(
        f"answer={answer!r} is not among the options {list(options)}; give a letter, a 0-based "
        "index or an option's text"
    )


def _untagged(text: str) -> str:
    tagged = _TAGGED.match(text)
    return (tagged[1] if tagged else text).strip()


def _alike(text: str, options: Sequence[str]) -> list[int]:
    """Return the options that have this text, or else those that differ in capitals alone."""
    exact = [i for i, option in enumerate(options) if option == text]
    return exact or [i for i, option in enumerate(options) if option.casefold() == text.casefold()]


def _in_range(index: int, answer: Any, options: Sequence[str]) -> int:
    if not 0 <= index < len(options):
        last = chr(ord("A") + len(options) - 1)
        raise ValueError(
            f"answer={answer!r} is not among the {len(options)} options; use A..{last} or "
            f"0..{len(options) - 1}"
        )
    return index
