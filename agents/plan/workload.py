"""Workload: the tokens of an episode at its fullest, and of the batches made of it.

At its fullest: every turn is taken, every retrieval shows all of its frames, every reply has as
many tokens as it may. Prompts are those of the protocol, with a question of haystack or one of a
usual length; a tokenizer that lies beside the model counts them, else a rule of thumb does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.config import TrainConfig
from agents.source import EPISODE_SETTINGS, frame_tokens
from gym_longvideo.protocol import Content, Turn, make_protocol
from gym_longvideo.settings import EpisodeSettings
from gym_longvideo.suite import load_suite

Counter = Callable[[str], int]

_QUESTION = (
    "In the part of the video in which the two people talk at the table by the window, what does "
    "the one in the green coat pick up right before the other one leaves the room?"
)
_OPTIONS = tuple(f"The small {what} beside the cup" for what in ("book", "phone", "key", "pen"))
# Of a chat template: around a system message, a user message with the opening of its reply, an
# image, and after a reply.
_SYSTEM, _USER, _IMAGE, _CLOSE = 5, 8, 2, 1
# A word with the blank before it, a digit, or a run of other characters: about a token each.
_PIECE = re.compile(r" ?[^\W\d_]+|\d| ?[^\w\s]+|_|\s+")


@dataclass(frozen=True)
class Step:
    """One turn of an episode, as a session is given it.

    Attributes:
        new: Tokens that are prefilled.
        past: Tokens in the KV cache before that.
        frames: Frames among the new ones, those shown anew where the context is fed again too.
    """

    new: int
    past: int
    frames: int


@dataclass(frozen=True)
class Workload:
    """Tokens of an episode.

    Attributes:
        frame: Tokens of a frame at most.
        frames: Different frames of an episode.
        reply: Tokens of every reply.
        turns: Its turns.
        rows: Length of each training row.
        said: Response tokens of each training row.
    """

    frame: int
    frames: int
    reply: int
    turns: tuple[Step, ...]
    rows: tuple[int, ...]
    said: tuple[int, ...]

    @classmethod
    def of(cls, config: TrainConfig, unit: int, count: Counter | None = None) -> Workload:
        """Work out the tokens of an episode.

        Args:
            config: Of the run.
            unit: Side in pixels of what the model makes a token of.
            count: Counts the tokens of a text; by default ``tokens_about``.
        """
        count = count or tokens_about
        options = {k: v for k, v in config.env_options().items() if k in EPISODE_SETTINGS}
        settings = EpisodeSettings(**options)
        frame = frame_tokens(settings, None if settings.max_pixels else unit)
        budget, turns, reply = settings.budget, settings.max_turns, config.max_new_tokens
        shown, left = [budget.overview], budget.total - budget.overview
        for _ in range(turns - 1):
            shown.append(min(budget.retrieval, left))
            left -= shown[-1]
        protocol = make_protocol(config.protocol)
        question, choices = _asked(config)
        asked = [_turn(settings, k, n, question, choices) for k, n in enumerate(shown)]
        system = count(protocol.system(asked[0])) + _SYSTEM
        users = [
            _tokens(protocol.render(turn), count) + n * (frame + _IMAGE) + _USER
            for turn, n in zip(asked, shown, strict=True)
        ]
        return cls.from_turns(
            system, users, shown, frame, reply, config.ppo.history, _forgets_thoughts(config)
        )

    @classmethod
    def from_turns(
        cls,
        system: int,
        users: list[int],
        frames: list[int],
        frame: int,
        reply: int,
        history: int | None = None,
        forgets: bool = False,
    ) -> Workload:
        """Work out the tokens of an episode from those of its messages.

        Args:
            system: Tokens of the system message.
            users: Tokens of each user message, frames included.
            frames: Frames in each user message.
            frame: Tokens of a frame.
            reply: Tokens of every reply.
            history: Earlier turns in context; None for all.
            forgets: Whether earlier replies are shown without their thoughts, so that every turn is
                prefilled anew and trained on by itself.
        """
        count = len(users)
        whole = [user + reply + _CLOSE for user in users]
        first = count if history is None else min(history + 1, count)
        shared = min(1, count) if forgets else first
        turns: list[Step] = []
        rows, said = [system + sum(whole[:shared]) - _CLOSE], [shared * reply]
        past = 0
        for k, user in enumerate(users):
            start = 0 if history is None else max(0, k - history)
            context = system + sum(whole[start:k]) + user
            if k >= shared:
                rows.append(context + reply)
                said.append(reply)
            fresh = k == 0 or k >= shared
            past = 0 if fresh else past
            new = context if fresh else 1 + _CLOSE + user  # the last token of a reply was not fed
            turns.append(Step(new, past, sum(frames[start : k + 1]) if fresh else frames[k]))
            past += new + reply - 1
        return cls(frame, sum(frames), reply, tuple(turns), tuple(rows), tuple(said))

    @property
    def longest(self) -> int:
        """Tokens of the longest training row."""
        return max(self.rows)


def tokens_about(text: str) -> int:
    """Return about how many tokens a text has, as byte-level BPE of a large vocabulary cuts it.

    >>> tokens_about("frame_idx:12"), tokens_about("Turn 1 of 3.")
    (6, 7)
    """
    return len(_PIECE.findall(text))


def counter_of(path: str | Path) -> Counter | None:
    """Return what counts the tokens of a text, if there is a tokenizer in a directory."""
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # of a kind that this version cannot read; training will say so
        return None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _asked(config: TrainConfig) -> tuple[str, tuple[str, ...]]:
    """Return a question and its options."""
    if config.suite != "haystack":  # others may need files
        return _QUESTION, _OPTIONS
    options = config.suite_of(config.split)["suite_options"]
    task = load_suite(config.suite, split=config.split, options=options)[0]
    return task.question, tuple(task.options)


def _turn(
    settings: EpisodeSettings, number: int, frames: int, question: str, options: tuple[str, ...]
) -> Turn:
    pool = settings.pool_size
    edges = np.linspace(0.0, 3600.0, pool + 1)
    index = np.linspace(0, pool - 1, frames).astype(np.int64)
    times = (edges[:-1] + edges[1:]) / 2
    return Turn(
        number=number + 1,
        max_turns=settings.max_turns,
        question=question,
        options=options,
        may_retrieve=number + 1 < settings.max_turns,
        pool_times=times,
        edges=edges,
        frames=np.zeros((frames, 1, 1, 3), np.uint8),
        frame_index=index,
        frame_time=times[index],
        first=not number,
    )


def _tokens(content: Content, count: Counter) -> int:
    return sum(count(part["text"]) for part in content if part["type"] == "text")


def _forgets_thoughts(config: TrainConfig) -> bool:
    """Guess from a model's name whether its template shows earlier replies without thoughts."""
    name = config.source.path.lower()
    return config.thinking is not False and ("thinking" in name or "qwen3.5" in name)
