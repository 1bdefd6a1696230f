"""The forgiving reading: a table of replies, and what must not move a reading."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_longvideo.lenient import cut_thinking, read_choice

TABLE = [
    json.loads(line)
    for line in (Path(__file__).parent / "replies.jsonl").read_text(encoding="utf-8").splitlines()
]
LETTERS = "ABCDE"
ANIMALS = ["a cat", "a dog", "a horse", "a cow"]


def read(reply: str, options: list[str]) -> str | None:
    choice = read_choice(reply, options)
    return None if choice is None else LETTERS[choice]


@pytest.mark.parametrize("row", TABLE, ids=[row["form"] for row in TABLE])
def test_replies_say_what_a_person_takes_them_to_say(row):
    assert read(row["reply"], row["options"]) == row["lenient"]


def test_the_table_is_wide_and_its_letters_are_balanced():
    counts = Counter(row["lenient"] for row in TABLE)
    assert len(TABLE) >= 150 and counts[None] >= len(TABLE) / 3
    answered = [counts[letter] for letter in LETTERS]
    assert max(answered) <= 1.25 * min(answered)


@pytest.mark.parametrize(
    "thought",
    [
        "<think>Option {d}? (A) or (B)? The answer is {d}.</think>",
        "<THINK>\n**{d}**\n</THINK>\n\n",
        "<thinking>Answer: {d}</thinking>\n",
        "◁think▷\\boxed{{{d}}}◁/think▷",
        "[THINK]{d}[/THINK]\n",
        "I look; the answer is {d}.\n</think>\n\n",
        "<think>one</think><think>The answer is {d}</think>",
    ],
)
def test_no_thinking_moves_a_reading(thought):
    for row in TABLE:
        if "</" in row["reply"] or "<think" in row["reply"]:
            continue
        for decoy in LETTERS[: len(row["options"])]:
            reply = thought.format(d=decoy) + row["reply"]
            assert read(reply, row["options"]) == row["lenient"], reply


def test_what_is_thought_and_never_said_is_no_answer():
    for row in TABLE:
        if "think" not in row["reply"]:
            assert read("<think>" + row["reply"], row["options"]) is None
            assert read(row["reply"] + "</think>", row["options"]) is None


def test_a_reading_follows_its_option_wherever_the_option_stands():
    for turn in range(4):
        options = ANIMALS[turn:] + ANIMALS[:turn]
        letter = LETTERS[options.index("a dog")]
        for reply in (
            "a dog", "The answer is a dog.", f"{letter}. a dog", f"Answer: ({letter}) a dog",
            f"<answer>{letter}</answer>", f"**{letter}**", f"So the answer is {letter}.",
        ):  # fmt: skip
            assert read(reply, options) == letter, reply
        other = LETTERS[(options.index("a dog") + 1) % 4]
        assert read(f"{other}. a dog", options) is None  # letter and text contradict each other


def test_texts_that_two_options_have_name_neither():
    assert read("The answer is red.", ["red", "red", "blue"]) is None
    assert read("The answer is blue.", ["red", "red", "blue"]) == "C"
    assert read("The answer is a dog and a cat.", ["a dog", "a dog and a cat"]) == "B"
    assert read("2", ["1", "2"]) == "B" and read("The answer is No.", ["Yes", "No"]) == "B"
    assert read("The answer is B.", ["D", "C", "B", "A"]) is None


def test_thinking_is_cut_in_every_form():
    assert cut_thinking("no thought") == "no thought"
    assert cut_thinking("a<think>b</think>c</think>d") == "d"
    assert cut_thinking("x <think> never closed") == "x "


@given(st.text(alphabet="AaBbCcDd .,:()[]{}*\\<>/\n'\"answeristhkof选答案", max_size=300))
def test_any_text_is_read_and_gives_an_option_or_none(text):
    assert read_choice(text, ANIMALS) in (None, 0, 1, 2, 3)


@pytest.mark.parametrize(
    "piece", ["answer is ", "{a", "<answer>", "(A) ", "A or ", "\\boxed{", "**A** ", "A\n", "选"]
)
def test_long_replies_take_no_longer_than_short_ones_by_more_than_their_length(piece):
    def seconds(count: int) -> float:
        began = time.process_time()
        read_choice(piece * count, ANIMALS)
        return time.process_time() - began

    assert seconds(200_000) < 2.0  # only the last of it is read
