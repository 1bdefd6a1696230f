"""Text protocols: what a prompt states, and which replies are actions."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gym_longvideo.episode import Answer, Malformed, Retrieve
from gym_longvideo.protocol import (
    PROTOCOLS,
    Tags,
    TagsSeconds,
    ToolCall,
    TurnProtocol,
    clock,
    example_turn,
    lenient,
    make_protocol,
)

# 60 pool frames over 10 minutes: cell k reaches from 10 k to 10 (k + 1) seconds; options x, y, z.
TURN = example_turn()
LAST = replace(TURN, number=3, may_retrieve=False, first=False)


def shown(*cells):
    """The example turn with some frames of its pool in view, frame k grey of value k."""
    frames = np.zeros((len(cells), 8, 8, 3), np.uint8)
    frames += np.array(cells, np.uint8)[:, None, None, None]
    index = np.array(cells, np.int64)
    return replace(TURN, frames=frames, frame_index=index, frame_time=TURN.pool_times[index])


def texts(content):
    return [part["text"] for part in content if part["type"] == "text"]


def call(start, end):
    arguments = json.dumps({"start_s": start, "end_s": end})
    return f'<tool_call>{{"name": "retrieve_frames", "arguments": {arguments}}}</tool_call>'


# --- prompts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_a_prompt_states_turn_question_options_and_what_is_allowed(name):
    prompt = "\n".join(texts(make_protocol(name).render(shown(3, 40))))
    assert prompt.startswith("Turn 1 of 3. 2 frames are shown")
    assert "Question: Which?\nOptions:\nA. x\nB. y\nC. z" in prompt
    assert "<answer>X</answer>, where X is a letter from A to C" in prompt
    assert "retrieve" in prompt and "final answer now" not in prompt


def test_tags_name_pool_indices_their_range_and_the_form():
    prompt = "\n".join(texts(Tags().render(shown(3, 40))))
    assert "with frame indices: 3, 40." in prompt
    assert "<think>your reasoning</think><retrieve>start_index, end_index</retrieve>" in prompt
    assert "Valid frame indices are 0 to 59." in prompt


def test_tags_seconds_name_times_their_range_and_the_form():
    prompt = "\n".join(texts(TagsSeconds().render(shown(3, 40))))
    assert "with times: 00:35, 06:45." in prompt
    assert "<retrieve>start_time, end_time</retrieve>" in prompt
    assert "Valid times are 0 to 600.0, in seconds, or 00:00 to 10:00." in prompt


def test_tool_calls_name_times_their_range_and_the_signature():
    protocol = ToolCall()
    prompt = "\n".join(texts(protocol.render(shown(3, 40))))
    assert "with times: 35.0 s, 405.0 s." in prompt
    assert "retrieve_frames (seconds from 0 to 600.0)" in prompt
    system = protocol.system(TURN)
    tool = json.loads(system.split("<tools>\n")[1].split("\n</tools>")[0])
    assert tool["function"]["name"] == "retrieve_frames"
    assert tool["function"]["parameters"]["required"] == ["start_s", "end_s"]


@pytest.mark.parametrize(
    ("name", "markers"),
    [
        ("tags", ["frame_idx:3", "frame_idx:40"]),
        ("tags_seconds", ["time:00:35", "time:06:45"]),
        ("tool_call", ["time:35.0 s", "time:405.0 s"]),
    ],
)
def test_each_image_follows_its_own_marker(name, markers):
    content = make_protocol(name).render(shown(3, 40))
    assert [part["type"] for part in content] == ["text", *["text", "image"] * 2, "text"]
    assert [part["text"] for part in content[1:5:2]] == markers
    assert [int(part["image"][0, 0, 0]) for part in content[2:5:2]] == [3, 40]


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_the_last_turn_asks_for_an_answer_and_offers_no_retrieval(name):
    prompt = "\n".join(texts(make_protocol(name).render(LAST)))
    assert prompt.startswith("Turn 3 of 3. No new frames are shown.")
    assert "You must give your final answer now" in prompt
    assert "<answer>X</answer>" in prompt
    assert "retriev" not in prompt and "Valid" not in prompt


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_a_prompt_after_a_malformed_reply_says_what_was_wrong(name):
    prompt = texts(make_protocol(name).render(replace(TURN, objection="no tag at all")))[0]
    assert "Your last reply was not a valid action (no tag at all). Think again." in prompt


def test_the_system_message_states_the_number_of_turns():
    for name in PROTOCOLS:
        assert "at most 3 turns" in make_protocol(name).system(TURN)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00"), (59.99, "00:59"), (3599, "59:59"), (36000, "10:00:00")]
)
def test_a_clock_shows_hours_only_from_the_first_on(seconds, text):
    assert clock(seconds) == text


# --- the strict forms ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ("<think>a</think><retrieve>12, 33</retrieve>", Retrieve(12, 33)),
        ("<think></think><retrieve>12,33</retrieve>", Retrieve(12, 33)),
        ("  <think>a\nb</think>\n<retrieve> 0 , 59 </retrieve>\n", Retrieve(0, 59)),
        ("<think>a</think><retrieve>33, 12</retrieve>", Retrieve(33, 12)),
        ("<think>a</think><retrieve>7, 7</retrieve>", Retrieve(7, 7)),
        ("<think>1 < 2 </answer> B</think><answer>B</answer>", Answer(1)),
        ("<think>a</think><answer> C\n</answer>", Answer(2)),
    ],
)
def test_tags_read_the_exact_form(reply, action):
    assert Tags().parse(reply, TURN) == action


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "no <think>"),
        ("B", "no <think>"),
        ("<answer>B</answer>", "no <think>"),
        ("I see. <think>a</think><answer>B</answer>", "no <think>"),
        ("<think>a<answer>B</answer>", "no <think>"),
        ("<THINK>a</THINK><answer>B</answer>", "no <think>"),
        ("<think>a</think>", "no single"),
        ("<think>a</think>B", "no single"),
        ("<think>a</think><answer>B</answer> done", "no single"),
        ("<think>a</think>so <answer>B</answer>", "no single"),
        ("<think>a</think><Answer>B</Answer>", "no single"),
        ("<think>a</think><retrive>1, 2</retrive>", "no single"),
        ("<think>a</think><answer>B", "no single"),
        ("<think>a</think><think>b</think><answer>B</answer>", "more than one think part"),
        ("<think>a<think>b</think></think><answer>B</answer>", "more than one think part"),
        ("<think>a</think><answer>A</answer><answer>B</answer>", "more than one action"),
        (
            "<think>a</think><retrieve>1, 2</retrieve><answer>B</answer>",
            "no single",
        ),
        ("<think>a</think><answer><answer>B</answer></answer>", "more than one action"),
        ("<think>a</think><answer>D</answer>", "one letter of ABC, got 'D'"),
        ("<think>a</think><answer>b</answer>", "one letter of ABC"),
        ("<think>a</think><answer></answer>", "one letter of ABC"),
        ("<think>a</think><answer>AB</answer>", "one letter of ABC"),
        ("<think>a</think><answer>A. x</answer>", "one letter of ABC"),
        ("<think>a</think><answer>Ａ</answer>", "one letter of ABC"),  # noqa: RUF001
        ("<think>a</think><retrieve>12, 60</retrieve>", r"\(12, 60\) leaves the pool; .* 0..59"),
        ("<think>a</think><retrieve>12</retrieve>", "two frame indices"),
        ("<think>a</think><retrieve>1, 2, 3</retrieve>", "two frame indices"),
        ("<think>a</think><retrieve>-1, 2</retrieve>", "two frame indices"),
        ("<think>a</think><retrieve>+1, 2</retrieve>", "two frame indices"),
        ("<think>a</think><retrieve>1.0, 2</retrieve>", "two frame indices"),
        ("<think>a</think><retrieve>1_0, 20</retrieve>", "two frame indices"),
        ("<think>a</think><retrieve>1 2, 3</retrieve>", "two frame indices"),
        ("<think>a</think><retrieve>١٢, ٣٣</retrieve>", "two frame indices"),
        ("<think>a</think><retrieve>², ³</retrieve>", "two frame indices"),
        ("<think>a</think><retrieve>1, 9999999999</retrieve>", "two frame indices"),
        (f"<think>a</think><retrieve>1, {'9' * 10000}</retrieve>", "two frame indices"),
        ("<think>a</think><retrieve>a, b</retrieve>", "two frame indices"),
        ("<think>a</think><retrieve></retrieve>", "two frame indices"),
    ],
)
def test_tags_refuse_anything_else_and_say_why(reply, reason):
    action = Tags().parse(reply, TURN)
    assert isinstance(action, Malformed)

    assert re.search(reason, action.reason)
    assert len(action.reason) < 200


@pytest.mark.parametrize(
    ("inside", "action"),
    [
        ("75.5, 130", Retrieve(7, 13)),
        ("01:15, 02:09", Retrieve(7, 12)),
        ("75.5, 02:09.9", Retrieve(7, 12)),
        ("0:01:15, 129", Retrieve(7, 12)),
        ("129, 75", Retrieve(7, 12)),
        ("0, 600", Retrieve(0, 59)),
        ("00:00, 10:00", Retrieve(0, 59)),
        ("5, 5", Retrieve(0, 0)),
    ],
)
def test_tags_seconds_read_seconds_and_clock_times(inside, action):
    assert TagsSeconds().parse(f"<think></think><retrieve>{inside}</retrieve>", TURN) == action


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "75",
        "1, 2, 3",
        "-5, 10",
        "75, 601",
        "00:10, 11:00",
        "1, 1e400",
        "nan, 5",
        "inf, 5",
        "1e1, 20",
        "1_0, 20",
        "\u0661\u0660, \u0662\u0660",
        "1:2:3:4, 20",
        "75 s, 80 s",
        "5., .",
        f"1, {'9' * 5000}",
    ],
)
def test_tags_seconds_refuse_anything_else(inside):
    action = TagsSeconds().parse(f"<think></think><retrieve>{inside}</retrieve>", TURN)
    assert isinstance(action, Malformed) and len(action.reason) < 200


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        (call(75.5, 130), Retrieve(7, 13)),
        (f"Look there.\n{call(129, 75)}\n", Retrieve(7, 12)),
        (call(0, 600.0).replace("{", " {\n", 1), Retrieve(0, 59)),
        ("It is y.\n<answer>B</answer>", Answer(1)),
        ("<answer> B </answer>", Answer(1)),
    ],
)
def test_tool_calls_read_the_exact_form(reply, action):
    assert ToolCall().parse(reply, TURN) == action


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "B",
        "<tool_call></tool_call>",
        "<tool_call>{</tool_call>",
        "<tool_call>[]</tool_call>",
        "<tool_call>null</tool_call>",
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        '<tool_call>{"name": "zoom", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "retrieve_frames"}</tool_call>',
        '<tool_call>{"name": "retrieve_frames", "arguments": [1, 2]}</tool_call>',
        '<tool_call>{"name": "retrieve_frames", "arguments": {"start_s": 1}}</tool_call>',
        call(1, 2).replace('"end_s"', '"fps": 2, "end_s"'),
        call("1", "2"),
        call(True, 2),
        call(None, 2),
        call(-1, 2),
        call(1, 700),
        call(float("nan"), 2),
        call(1, float("inf")),
        call(1, 10**400),
        call(1, 2).replace("2}", "9" * 5000 + "}"),
        call(1, 2) + call(3, 4),
        call(1, 2) + "<answer>B</answer>",
        call(1, 2) + " and then I will see",
        "<answer>B</answer> I am sure",
        "<answer>B</answer></answer>",
        "<answer>B. y</answer>",
        "</answer><answer>",
    ],
)
def test_tool_calls_refuse_anything_else(reply):
    action = ToolCall().parse(reply, TURN)
    assert isinstance(action, Malformed) and len(action.reason) < 200


def test_only_existing_options_have_letters():
    two = replace(TURN, options=("x", "y"))
    for name in PROTOCOLS:
        protocol = make_protocol(name)
        assert "letter from A to B" in "\n".join(texts(protocol.render(two)))
        assert isinstance(protocol.parse("<think></think><answer>C</answer>", two), Malformed)
    many = replace(TURN, options=tuple("option" for _ in range(26)))
    assert Tags().parse("<think></think><answer>Z</answer>", many) == Answer(25)


# --- what the prompt asks for is what the parser reads --------------------------------------------


def test_a_reply_in_the_form_that_the_prompt_shows_is_well_formed():
    forms = {
        "tags": ("<retrieve>start_index, end_index</retrieve>", ("start_index, end_index", "3, 4")),
        "tags_seconds": (
            "<retrieve>start_time, end_time</retrieve>",
            ("start_time, end_time", "00:35, 44.9"),
        ),
    }
    for name, (form, (blank, filled)) in forms.items():
        protocol = make_protocol(name)
        prompt = "\n".join(texts(protocol.render(TURN)))
        template = f"<think>your reasoning</think>{form}"
        assert template in prompt
        assert protocol.parse(template.replace(blank, filled), TURN) == Retrieve(3, 4)
        template = "<think>your reasoning</think><answer>X</answer>"
        assert template in prompt
        assert protocol.parse(template.replace("X", "B"), TURN) == Answer(1)


def test_a_tool_call_as_the_system_message_shows_it_is_well_formed():
    protocol = ToolCall()
    form = protocol.system(TURN).rpartition("end your reply with ")[2]
    reply = form.replace('"start_s": ...', '"start_s": 35').replace('"end_s": ...', '"end_s": 44.9')
    assert protocol.parse(f"Let me look. {reply}", TURN) == Retrieve(3, 4)


@given(st.integers(0, 59), st.integers(0, 59))
def test_a_frame_called_by_its_label_is_found_again(a, b):
    for protocol, form in ((Tags(), "{}, {}"), (TagsSeconds(), "{}, {}")):
        labels = [protocol.label(shown(a, b), i) for i in range(2)]
        reply = f"<think></think><retrieve>{form.format(*labels)}</retrieve>"
        action = protocol.parse(reply, TURN)
        assert sorted([action.start, action.end]) == sorted([a, b])


# --- any string at all ----------------------------------------------------------------------------

PIECES = (
    "<think> </think> <retrieve> </retrieve> <answer> </answer> <tool_call> </tool_call> "
    "B, 12 33 { } [ ] : 00:10 -1 1e9 nan \x00"
).split(" ")
CALL = '{"name": "retrieve_frames", "arguments": {"start_s": 1, "end_s": 2}}'
fragments = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from([*PIECES, CALL])),
    max_size=12,
).map("".join)


@given(st.one_of(st.text(), fragments))
@example("<think></think><answer></answer>")
@example("<tool_call>" + "9" * 5000 + "</tool_call>")
def test_any_string_is_an_action(reply):
    for name in PROTOCOLS:
        protocol = make_protocol(name)
        for turn in (TURN, LAST):
            for action in (protocol.parse(reply, turn), lenient(reply, turn, protocol)):
                match action:
                    case Retrieve(start, end):
                        assert 0 <= start <= 59 and 0 <= end <= 59
                    case Answer(choice):
                        assert 0 <= choice < 3
                    case Malformed(reason):
                        assert reason
                    case _:
                        pytest.fail(f"{action!r} is no action")


@pytest.mark.parametrize("name", list(PROTOCOLS))
@pytest.mark.parametrize(
    "unit",
    [
        "a",
        " ",
        "<think>",
        "</think>",
        "<answer>",
        "<answer>B</answer>",
        "<retrieve>1, ",
        "1,",
        "<tool_call>{",
        "[",
        "answer is ",
        "answer" + " " * 50,
        "(",
        "A ",
        "A.",
    ],
)
def test_parsing_takes_linear_time_on_hostile_replies(name, unit):
    protocol = make_protocol(name)
    bodies = [unit * (500_000 // len(unit))]
    bodies += [f"<think>{bodies[0]}", f"<think></think><answer>{bodies[0]}</answer>"]
    bodies += [f"<tool_call>{bodies[0]}</tool_call>"]
    started = time.process_time()
    for body in bodies:
        protocol.parse(body, TURN)
        lenient(body, TURN, protocol)
    # Some milliseconds each; anything quadratic takes hours.
    assert time.process_time() - started < 4.0


# --- the lenient reading --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B. y", 1),
        ("The answer is C.", 2),
        ("the answer is (c)", 2),
        ("Answer: B", 1),
        ("I first thought of option A, but the answer is B.", 1),
        ("<answer>B. y</answer>", 1),
        ("<think>A?</think><answer>c</answer>", 2),
        ("<answer>The answer is B</answer>", 1),
        ("no tags at all: C", 2),
    ],
)
def test_a_forgiving_reading_finds_the_last_letter_that_looks_like_an_answer(reply, choice):
    assert isinstance(Tags().parse(reply, TURN), Malformed)
    assert lenient(reply, TURN, Tags()) == Answer(choice)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I cannot tell.",
        "It shows a dog.",
        "The answer is a dog.",
        "My choice: both of them.",
        "answer is D",  # there is no D
        "the retrieve failed: <retrieve>1, 999</retrieve>",
        "<answer></answer>",
    ],
)
def test_a_forgiving_reading_never_guesses(reply):
    assert isinstance(lenient(reply, TURN, Tags()), Malformed)


@given(st.one_of(st.text(), fragments))
def test_a_forgiving_reading_never_contradicts_the_strict_one(reply):
    for name in PROTOCOLS:
        protocol = make_protocol(name)
        strict = protocol.parse(reply, TURN)
        forgiving = lenient(reply, TURN, protocol)
        assert forgiving == strict or isinstance(strict, Malformed)
        assert not (isinstance(strict, Malformed) and isinstance(forgiving, Retrieve))


# --- names ----------------------------------------------------------------------------------------


def test_protocols_have_names_and_may_be_objects():
    assert list(PROTOCOLS) == ["tags", "tags_seconds", "tool_call"]
    assert all(isinstance(make_protocol(name), TurnProtocol) for name in PROTOCOLS)
    mine = Tags()
    assert make_protocol(mine) is mine
    with pytest.raises(ValueError, match=r"protocol='xml' is unknown; use one of \['tags', 'tags_"):
        make_protocol("xml")
