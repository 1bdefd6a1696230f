"""Prompts of one's own: a Jinja2 template that words every turn in place of a protocol.

A template is asked for every kind of turn when it is loaded, so that a slip in it is found before
the first episode. It is rendered in a sandbox, reads no other file, and draws nothing at random.
``docs/prompts.md`` lists its variables.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import string
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gym_longvideo import checks
from gym_longvideo.episode import Action
from gym_longvideo.extras import require
from gym_longvideo.protocol import Content, Turn, TurnProtocol, clock, example_turn

VARIABLES = (
    "question", "options", "turn", "max_turns", "first", "frames", "seen", "last_index",
    "duration", "may_retrieve", "must_answer", "malformed",
)  # fmt: skip
DEFAULT = "default"  # names this project's own wording where a policy brings another
_OPENINGS = ("{{", "{%")
# Stands in the text for a frame; drawn anew in each process, so that no question can hold it.
_MARK = f"\ufdd0{secrets.token_hex(8)}:"
_MARKED = re.compile(f"{_MARK}([0-9]+)\ufdd1")


def digest(text: str) -> str:
    """Return the SHA-256 of a template in UTF-8, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_text(prompt: str | os.PathLike[str]) -> str:
    """Return the text of a template that was tried on every kind of turn.

    Args:
        prompt: As ``Prompt`` takes it; "" and "default" name none, and stay as they are.

    Raises:
        ValueError: As ``Prompt`` raises it.
    """
    return prompt if prompt in ("", DEFAULT) else Prompt(prompt).text  # type: ignore[return-value]


class Prompt:
    """The wording of turns, as a template.

    Args:
        source: The text of a template (it holds ``{{`` or ``{%``), the path of a file, or a
            ``Prompt``.

    Attributes:
        text: The template.
        name: What errors call it: its path, or "the prompt".

    Raises:
        ValueError: If the template cannot be read, or does not word some kind of turn: naming file
            and line.
        ImportError: If Jinja2 is not installed, naming the extra that brings it.
    """

    def __init__(self, source: str | os.PathLike[str] | Prompt) -> None:
        self.text, self.name = _read(source)
        self._template = self._compile()
        for kind, turn in _kinds():
            where = f"{self.name}, asked for {kind}"
            if not any(_says(part) for part in self.render(turn, where)):
                raise ValueError(f"{where}: it says nothing; word the turn")
            self.system(turn, where)

    @property
    def digest(self) -> str:
        """The digest of the template."""
        return digest(self.text)

    def system(self, turn: Turn, where: str = "") -> str | None:
        """Return what the macro ``system`` says; None if the template has none.

        Raises:
            ValueError: If it cannot be rendered, or says nothing.
        """
        macro = getattr(self._module(turn, where), "system", None)
        if macro is None:
            return None
        text = self._guarded(lambda: str(macro()), where)
        if not text.strip() or _MARKED.search(text):
            raise ValueError(
                f"{where or self.name}: the macro system must give words without frames; leave it "
                "out for the protocol's own system message"
            )
        return text

    def render(self, turn: Turn, where: str = "") -> Content:
        """Return the content of a turn, its frames where the template places them.

        Args:
            turn: The turn.
            where: What errors say it was, by default the name of the template.

        Raises:
            ValueError: If it cannot be rendered, or does not place each frame once, in order.
        """
        words = _MARKED.split(str(self._module(turn, where)))
        placed = [int(number) for number in words[1::2]]
        if placed != list(range(len(turn.frames))):
            raise ValueError(
                f"{where or self.name}: of {len(turn.frames)} frames it places {placed}; place "
                "each once and in order: {% for frame in frames %}{{ frame.image }}{% endfor %}"
            )
        content: Content = []
        for place, part in enumerate(words):
            if place % 2:
                content.append({"type": "image", "image": turn.frames[int(part)]})
            elif part:
                content.append({"type": "text", "text": part})
        return content

    def _module(self, turn: Turn, where: str) -> Any:
        return self._guarded(lambda: self._template.make_module(_values(turn)), where)

    def _guarded(self, render: Callable[[], Any], where: str) -> Any:
        try:
            return render()
        except Exception as error:  # whatever an expression of the template raises
            lines = [
                self._template.get_corresponding_lineno(each.lineno)
                for each in traceback.extract_tb(error.__traceback__)
                if each.filename == self.name
            ]
            line = f", line {lines[-1]}" if lines else ""
            asked = where.removeprefix(self.name)
            raise ValueError(f"{self.name}{line}{asked}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"text": self.text, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._template = self._compile()

    def _compile(self) -> Any:
        require("gym_longvideo.prompt", "jinja2")
        from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
        from jinja2.meta import find_undeclared_variables
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        del environment.globals["lipsum"], environment.filters["random"]
        environment.filters["clock"] = clock
        try:
            tree = environment.parse(self.text, self.name, self.name)
            unknown = find_undeclared_variables(tree) - {*VARIABLES, *environment.globals}
            for node in tree.find_all(nodes.Name):
                if node.name in unknown:
                    raise ValueError(
                        f"{self.name}, line {node.lineno}: {node.name!r} is no variable of a prompt"
                        f"{checks.instead(node.name, VARIABLES)}"
                    )
            code = environment.compile(self.text, self.name, self.name)
        except TemplateSyntaxError as error:
            raise ValueError(f"{self.name}, line {error.lineno}: {error.message}") from error
        globals_ = environment.make_globals(None)
        return environment.template_class.from_code(environment, code, globals_)


class Prompted:
    """A protocol whose turns a template words; replies are read as the protocol reads them.

    Args:
        protocol: Reads the replies, and gives the system message if the template has none.
        prompt: Words the turns.
    """

    def __init__(self, protocol: TurnProtocol, prompt: Prompt) -> None:
        self.name, self.protocol, self.prompt = protocol.name, protocol, prompt

    def system(self, turn: Turn) -> str:
        """Return the system message of an episode."""
        text = self.prompt.system(turn)
        return self.protocol.system(turn) if text is None else text

    def render(self, turn: Turn) -> Content:
        """Return the content of a turn."""
        return self.prompt.render(turn)

    def parse(self, reply: str, turn: Turn) -> Action:
        """Return the action of a reply."""
        return self.protocol.parse(reply, turn)


def _read(source: str | os.PathLike[str] | Prompt) -> tuple[str, str]:
    """Return the text of a template and what errors call it."""
    if isinstance(source, Prompt):
        return source.text, source.name
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"prompt={source!r} must be the text of a template, or the path of one")
    if isinstance(source, str) and any(opening in source for opening in _OPENINGS):
        return source, "the prompt"
    path = Path(source)
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"prompt={str(source)!r} cannot be read: {error}") from error
    if not any(opening in text for opening in _OPENINGS):
        raise ValueError(
            f"{path} is no template: it says the same in every turn; write "
            "{{ question }} and the like where the question and the frames go"
        )
    return text, str(path)


def _values(turn: Turn) -> dict[str, Any]:
    """Return the variables of a turn."""
    return {
        "question": turn.question,
        "options": [
            {"letter": letter, "text": text}
            for letter, text in zip(string.ascii_uppercase, turn.options, strict=False)
        ],
        "turn": turn.number,
        "max_turns": turn.max_turns,
        "first": turn.first,
        "frames": [
            {"index": int(index), "time": float(time), "image": f"{_MARK}{i}\ufdd1"}
            for i, (index, time) in enumerate(zip(turn.frame_index, turn.frame_time, strict=True))
        ],
        "seen": list(turn.seen),
        "last_index": turn.last_index,
        "duration": turn.duration_s,
        "may_retrieve": turn.may_retrieve,
        "must_answer": not turn.may_retrieve,
        "malformed": turn.objection,
    }


def _kinds() -> Iterator[tuple[str, Turn]]:
    """Yield every kind of turn, with what it is called."""
    first = replace(example_turn(), options=("w", "x", "y", "z"))
    shown = {
        "frames": np.zeros((2, 8, 8, 3), np.uint8),
        "frame_index": np.array([3, 40]),
        "frame_time": np.array([35.0, 405.0]),
    }
    later = {"number": 2, "first": False, "seen": (3, 40)}
    last = {**later, "number": first.max_turns, "may_retrieve": False}
    objection = {"objection": "no single action"}
    yield "the first turn", replace(first, **shown, seen=(3, 40))
    yield "a first turn without frames", first
    only = replace(first, max_turns=1, may_retrieve=False)
    yield "a first turn that is the last", replace(only, **shown)
    yield "an only turn without frames", only
    yield "a turn with frames", replace(first, **later, **shown)
    yield "a turn after a malformed reply", replace(first, **later, **objection)
    yield "the last turn", replace(first, **last, **shown)
    yield "the last turn after a malformed reply", replace(first, **last, **objection)


def _says(part: dict[str, Any]) -> bool:
    return bool(part.get("text", "").strip())
