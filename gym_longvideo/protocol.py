"""Text protocols: render a turn as chat content, parse a reply to an Action.

Parsing is total and strict: any string gives an Action in linear time, and only the exact form
counts as well-formed (the format reward needs it). ``lenient`` reads a reply the way forgiving
benchmark toolkits do; it is reported beside the strict parse and never mixed with it.

Source of the ``tags`` form: Video-MTR, arXiv 2508.20478v2, appendix A.1 and Figure 7.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import string
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gym_longvideo.annotation import parse_time
from gym_longvideo.episode import Action, Answer, Malformed, Retrieve
from gym_longvideo.lenient import read_choice
from gym_longvideo.suite import lettered

Content = list[dict[str, Any]]
IMAGE = "<image>"


@dataclass(frozen=True)
class Turn:
    """What a protocol may show of the present turn.

    Attributes:
        number: 1-based turn.
        max_turns: Turns of an episode.
        question: The question.
        options: Its choices.
        may_retrieve: Whether a retrieval is allowed now.
        pool_times: (m,) float64 seconds of the pool frames.
        edges: (m + 1,) float64 seconds of the borders of the pool cells.
        frames: (n, H, W, 3) uint8, what this turn shows.
        frame_index: (n,) int64 pool index of each frame.
        frame_time: (n,) seconds of each frame.
        objection: Why the previous reply was malformed, "" if it was fine.
        first: Whether this is the first turn of the episode.
        seen: Ascending pool indices of every frame shown so far, those of this turn included.
    """

    number: int
    max_turns: int
    question: str
    options: tuple[str, ...]
    may_retrieve: bool
    pool_times: np.ndarray
    edges: np.ndarray
    frames: np.ndarray = field(repr=False)
    frame_index: np.ndarray = field(repr=False)
    frame_time: np.ndarray = field(repr=False)
    objection: str = ""
    first: bool = False
    seen: tuple[int, ...] = ()

    @property
    def last_index(self) -> int:
        """Highest pool index."""
        return len(self.pool_times) - 1

    @property
    def duration_s(self) -> float:
        """Seconds of the video."""
        return float(self.edges[-1])


@runtime_checkable
class TurnProtocol(Protocol):
    """How an agent that speaks text sees a turn and acts."""

    name: str

    def system(self, turn: Turn) -> str:
        """Return the system message of an episode."""
        ...

    def render(self, turn: Turn) -> Content:
        """Return chat content: text parts and ``{"type": "image", "image": array}`` parts."""
        ...

    def parse(self, reply: str, turn: Turn) -> Action:
        """Return the action of a reply; ``Malformed`` for anything but the exact form."""
        ...


_TIME = re.compile(r"\s{0,9}[0-9][0-9.:]{0,31}\s{0,9}\Z")
_THOUGHT = "<think>"


def with_opening(reply: str, *, closed: bool = False) -> str:
    """Return a reply to a prompt that had opened the thought, together with that opening.

    Chat templates of thinking models end with ``<think>``, so that the model itself only closes the
    thought; with thinking switched off they end with an empty one. The exact form asks for a whole
    thought; what the prompt wrote counts as written, unless the reply has a thought of its own.

    Args:
        reply: What the model said.
        closed: Whether the prompt closed the thought too, so that it is empty.

    >>> with_opening("early on</think><answer>B</answer>")
    '<think>early on</think><answer>B</answer>'
    >>> with_opening("<answer>B</answer>", closed=True)
    '<think></think><answer>B</answer>'
    """
    if reply.lstrip().startswith(_THOUGHT):
        return reply
    return f"{_THOUGHT}</think>{reply}" if closed else _THOUGHT + reply


class Tags:
    """The paper's form: a think part, then a retrieve or an answer tag.

    ``<think>...</think><retrieve>12, 33</retrieve>`` or ``<think>...</think><answer>B</answer>``,
    nothing before, between or after. Indices count frames of the pool.
    """

    name = "tags"
    unit = "frame indices"
    example = "<retrieve>start_index, end_index</retrieve>"

    def system(self, turn: Turn) -> str:
        """Return the rules."""
        return (
            "You answer a multiple-choice question about a long video. At first you see a few "
            f"frames spread evenly over it. In each of at most {turn.max_turns} turns do exactly "
            "one thing: retrieve more frames of one interval, or give your final answer."
        )

    def render(self, turn: Turn) -> Content:
        """State the turn, the frames, the question, what is allowed and in which form."""
        content: Content = []
        head = [f"Turn {turn.number} of {turn.max_turns}."]
        if turn.objection:
            head.append(f"Your last reply was not a valid action ({turn.objection}). Think again.")
        if len(turn.frames):
            shown = ", ".join(self.label(turn, i) for i in range(len(turn.frames)))
            head.append(f"{len(turn.frames)} frames are shown, with {self.unit}: {shown}.")
        else:
            head.append("No new frames are shown.")
        content.append(_text(" ".join(head)))
        for i, frame in enumerate(turn.frames):
            content.append(_text(f"{self.marker}{self.label(turn, i)}"))
            content.append({"type": "image", "image": frame})
        content.append(_text(self.instructions(turn)))
        return content

    marker = "frame_idx:"

    def label(self, turn: Turn, i: int) -> str:
        """Return how frame ``i`` of the turn is called."""
        return str(int(turn.frame_index[i]))

    def valid_range(self, turn: Turn) -> str:
        """Return the sentence that names the valid range."""
        return f"Valid frame indices are 0 to {turn.last_index}."

    def instructions(self, turn: Turn) -> str:
        """Return question, options, allowed actions and the form of the reply."""
        lines = [f"Question: {turn.question}", "Options:", *lettered(turn.options)]
        last = string.ascii_uppercase[len(turn.options) - 1]
        answer = f"<answer>X</answer>, where X is a letter from A to {last}"
        if turn.may_retrieve:
            lines += [
                "You can retrieve more frames of one interval or give your answer.",
                f"Reply with <think>your reasoning</think>{self.example} or "
                f"<think>your reasoning</think>{answer}.",
                self.valid_range(turn),
            ]
        else:
            lines += [
                "You must give your final answer now.",
                f"Reply with <think>your reasoning</think>{answer}.",
            ]
        return "\n".join(lines)

    def parse(self, reply: str, turn: Turn) -> Action:
        """Read the exact form.

        >>> turn = example_turn()
        >>> Tags().parse("<think>early on</think><retrieve>12, 33</retrieve>", turn)
        Retrieve(start=12, end=33)
        >>> Tags().parse("<think>seen</think><answer>B</answer>", turn)
        Answer(choice=1)
        >>> Tags().parse("B", turn)
        Malformed(reason='no <think>...</think> at the start')
        """
        text = reply.strip()
        if not text.startswith("<think>") or "</think>" not in text:
            return Malformed("no <think>...</think> at the start")
        thought, _, act = text[len("<think>") :].partition("</think>")
        act = act.strip()
        if "<think>" in thought or "think>" in act:
            return Malformed("more than one think part")
        for tag, read in (("retrieve", self.interval), ("answer", self.choice)):
            opening, closing = f"<{tag}>", f"</{tag}>"
            if act.startswith(opening) and act.endswith(closing):
                inside = act[len(opening) : -len(closing)]
                if "<" in inside or len(act) < len(opening) + len(closing):
                    return Malformed("more than one action; give exactly one")
                return read(inside, turn)
        return Malformed(
            "no single <retrieve>...</retrieve> or <answer>...</answer> after the think"
        )

    def interval(self, inside: str, turn: Turn) -> Action:
        """Read the two ends of a retrieval."""
        parts = [part.strip() for part in inside.split(",")]
        if len(parts) != 2 or not all(_is_index(part) for part in parts):
            return Malformed(f"retrieve needs two frame indices, got {_clip(inside)}")
        return _checked(int(parts[0]), int(parts[1]), turn)

    def choice(self, inside: str, turn: Turn) -> Action:
        """Read the letter of an answer."""
        letter = inside.strip()
        letters = string.ascii_uppercase[: len(turn.options)]
        if len(letter) != 1 or letter not in letters:
            return Malformed(f"answer needs one letter of {letters}, got {_clip(inside)}")
        return Answer(letters.index(letter))


class TagsSeconds(Tags):
    """The tags form in playback seconds or MM:SS: ``<retrieve>75.5, 02:10</retrieve>``."""

    name = "tags_seconds"
    unit = "times"
    marker = "time:"
    example = "<retrieve>start_time, end_time</retrieve>"

    def label(self, turn: Turn, i: int) -> str:
        """Return the playback time of frame ``i``: MM:SS, or seconds where frames lie closer."""
        if len(turn.edges) > 1 and turn.edges[1] - turn.edges[0] < 2.0:
            return f"{turn.frame_time[i]:.2f}"
        return clock(turn.frame_time[i])

    def valid_range(self, turn: Turn) -> str:
        """Return the sentence that names the valid range."""
        return (
            f"Valid times are 0 to {turn.duration_s:.1f}, in seconds, or 00:00 to "
            f"{clock(turn.duration_s)}."
        )

    def interval(self, inside: str, turn: Turn) -> Action:
        """Read the two ends of a retrieval, in seconds or MM:SS.

        >>> TagsSeconds().parse("<think></think><retrieve>75.5, 02:10</retrieve>", example_turn())
        Retrieve(start=7, end=13)
        """
        parts = inside.split(",")
        if len(parts) != 2 or not all(_TIME.match(part) for part in parts):
            return Malformed(f"retrieve needs two times, got {_clip(inside)}")
        return _from_seconds(parts[0].strip(), parts[1].strip(), turn)


class ToolCall(Tags):
    """Hermes-style JSON tool calls, for models trained with native tools.

    A retrieval is ``<tool_call>{"name": "retrieve_frames", "arguments": {"start_s": 75.5, "end_s":
    130}}</tool_call>``; an answer is ``<answer>B</answer>``. Either ends the reply; whatever stands
    before it is thinking.
    """

    name = "tool_call"
    unit = "times"
    marker = "time:"

    TOOL: dict[str, Any] = {  # noqa: RUF012 - a constant, shared on purpose
        "type": "function",
        "function": {
            "name": "retrieve_frames",
            "description": "Show more frames of one interval of the video.",
            "parameters": {
                "type": "object",
                "properties": {
                    "start_s": {"type": "number", "description": "Start in playback seconds."},
                    "end_s": {"type": "number", "description": "End in playback seconds."},
                },
                "required": ["start_s", "end_s"],
            },
        },
    }

    def system(self, turn: Turn) -> str:
        """Return the rules and the tool's signature."""
        return (
            f"{super().system(turn)}\n\n# Tools\n\nYou may call one function, with its signature "
            f"in <tools></tools> tags:\n<tools>\n{json.dumps(self.TOOL)}\n</tools>\n\nTo call it, "
            'end your reply with <tool_call>\n{"name": "retrieve_frames", "arguments": '
            '{"start_s": ..., "end_s": ...}}\n</tool_call>'
        )

    def label(self, turn: Turn, i: int) -> str:
        """Return the playback time of frame ``i``."""
        return f"{turn.frame_time[i]:.1f} s"

    def instructions(self, turn: Turn) -> str:
        """Return question, options, allowed actions and the form of the reply."""
        lines = [f"Question: {turn.question}", "Options:", *lettered(turn.options)]
        last = string.ascii_uppercase[len(turn.options) - 1]
        answer = f"<answer>X</answer>, where X is a letter from A to {last}"
        if turn.may_retrieve:
            lines.append(
                f"Think, then call retrieve_frames (seconds from 0 to {turn.duration_s:.1f}) "
                f"or end with {answer}."
            )
        else:
            lines.append(f"You must give your final answer now: think, then end with {answer}.")
        return "\n".join(lines)

    def parse(self, reply: str, turn: Turn) -> Action:
        """Read the exact form.

        >>> call = '{"name": "retrieve_frames", "arguments": {"start_s": 75.5, "end_s": 130}}'
        >>> ToolCall().parse(f"Look there.<tool_call>{call}</tool_call>", example_turn())
        Retrieve(start=7, end=13)
        """
        text = reply.strip()
        calls, answers = text.count("<tool_call>"), text.count("<answer>")
        if calls + answers != 1:
            return Malformed(f"need one tool call or one answer, got {calls} and {answers}")
        if answers:
            if not text.endswith("</answer>"):
                return Malformed("the answer must end the reply")
            return self.choice(text[text.index("<answer>") + 8 : -len("</answer>")], turn)
        if not text.endswith("</tool_call>"):
            return Malformed("the tool call must end the reply")
        return self.call(text[text.index("<tool_call>") + 11 : -len("</tool_call>")], turn)

    def call(self, body: str, turn: Turn) -> Action:
        """Read the JSON of a tool call."""
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return Malformed(f"the tool call is not valid JSON: {_clip(body)}")
        if not isinstance(call, dict) or call.get("name") != "retrieve_frames":
            return Malformed(f'the only tool is "retrieve_frames", got {_clip(body)}')
        arguments = call.get("arguments")
        if not isinstance(arguments, dict) or set(arguments) != {"start_s", "end_s"}:
            return Malformed(f"retrieve_frames takes start_s and end_s, got {_clip(body)}")
        ends = arguments["start_s"], arguments["end_s"]
        if any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in ends):
            return Malformed(f"start_s and end_s must be numbers, got {_clip(body)}")
        return _from_seconds(*ends, turn)


PROTOCOLS: dict[str, type[Tags]] = {cls.name: cls for cls in (Tags, TagsSeconds, ToolCall)}


def make_protocol(protocol: str | TurnProtocol) -> TurnProtocol:
    """Return a protocol from its name, or the protocol itself.

    Raises:
        ValueError: For an unknown name.
    """
    if isinstance(protocol, TurnProtocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"protocol={protocol!r} is unknown; use one of {list(PROTOCOLS)}, or an object with "
            "name, system, render and parse"
        )
    return PROTOCOLS[protocol]()


def shown(content: Content, *, apart: bool = True) -> Content:
    r"""Return what a protocol renders as it is shown: parts stand apart, marks are of frames alone.

    A line ends between a text and its neighbour, text or image, where neither has white space
    there; ``<image>`` in a text, which stands for a frame where prompts are text, is reworded.

    Args:
        content: What a protocol renders.
        apart: Whether parts stand apart; False leaves their white space as it is.

    >>> [part["text"] for part in shown([_text("frame_idx:3"), _text("What does <image> show?")])]
    ['frame_idx:3\n', 'What does (image) show?']
    """
    parts = [
        {**part, "text": part["text"].replace(IMAGE, "(image)")} if "text" in part else dict(part)
        for part in content
    ]
    for one, other in itertools.pairwise(parts) if apart else ():
        before, after = one.get("text"), other.get("text")
        if before is not None and not before[-1:].isspace() and not (after or "")[:1].isspace():
            one["text"] = f"{before}\n"
        elif before is None and after is not None and not after[:1].isspace():
            other["text"] = f"\n{after}"
    return parts


def lenient(reply: str, turn: Turn, protocol: TurnProtocol) -> Action:
    """Read a reply forgivingly: the strict form, else the option that it states.

    Deterministic, and never a guess: a reply that states none stays ``Malformed``.

    >>> lenient("I think the answer is (b).", example_turn(), Tags())
    Answer(choice=1)
    """
    action = protocol.parse(reply, turn)
    if not isinstance(action, Malformed):
        return action
    choice = read_choice(reply, turn.options)
    return action if choice is None else Answer(choice)


def clock(seconds: float) -> str:
    """Return MM:SS, or H:MM:SS from an hour on.

    >>> clock(75.4), clock(3723)
    ('01:15', '1:02:03')
    """
    whole = int(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes:02}:{whole % 60:02}"


def example_turn() -> Turn:
    """Return a first turn over a pool of 60 frames and 10 minutes, for examples."""
    times = np.arange(60) * 10.0 + 5.0
    nothing = np.zeros(0)
    frames = np.zeros((0, 8, 8, 3), np.uint8)
    edges = np.arange(61) * 10.0
    return Turn(
        1, 3, "Which?", ("x", "y", "z"), True, times, edges, frames, nothing, nothing, first=True
    )


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _clip(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= 9


def _checked(start: int, end: int, turn: Turn) -> Action:
    if max(start, end) > turn.last_index:
        return Malformed(
            f"interval ({start}, {end}) leaves the pool; valid range is 0..{turn.last_index}"
        )
    return Retrieve(start, end)


def _from_seconds(start: Any, end: Any, turn: Turn) -> Action:
    """Return the retrieval of the pool frames between two playback times."""
    try:
        times = [parse_time(start), parse_time(end)]
    except (ValueError, OverflowError):
        return Malformed(f"({_clip(str(start))}, {_clip(str(end))}) are not two times")
    # The prompt shows rounded times, so the end of the video may be named up to a second late.
    if min(times) < 0 or max(times) > math.ceil(turn.duration_s):
        return Malformed(
            f"({times[0]}, {times[1]}) leaves the video; valid is 0..{turn.duration_s:.1f} s"
        )
    frame_index = np.searchsorted(turn.edges, times, side="right") - 1
    first, last = sorted(np.clip(frame_index, 0, turn.last_index).tolist())
    return Retrieve(first, last)
