"""Markup: what a chat template puts around texts, and what it makes of them.

The template is asked, with marks in place of the texts; nothing is known of any template by its
name. Those that show earlier replies without their thinking are asked again for each such reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

_SYSTEM, _USER, _AGAIN = "\u241esystem\u241f", "\u241euser\u241f", "\u241eagain\u241f"
_THOUGHT, _SAID = "\u241ethought\u241f", "\u241ereply\u241f"
_REPLY = f"<think>{_THOUGHT}</think>{_SAID}"  # a template that drops thinking must meet some
_OPENED, _SKIPPED = re.compile(r"<think>\s*\Z"), re.compile(r"<think>\s*</think>\s*\Z")

Trims = Literal["", "texts", "messages"]


class Markup:
    """What stands around the texts of a dialogue.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        thinking: Whether the model thinks before it replies (the template's ``enable_thinking``);
            None leaves it to the template.

    Attributes:
        before: What stands before the system message.
        between: Between it and the first user message.
        joint: Between a reply and the next user message.
        after: Between a user message and the reply that is asked for.
        past: The same, if the reply is an earlier one.
        drops_thinking: Whether earlier replies are shown without their thinking.
        opens_thought: Whether every reply begins inside a thought (after ``<think>``).
        skips_thought: Whether every reply begins after an empty thought, ``<think></think>``.
        trims: Whether white space is stripped around each of the "texts" that are shown, or around
            whole "messages", or kept ("").

    Raises:
        ValueError: If the template has no such switch, or a dialogue cannot be continued with it.
    """

    def __init__(self, tokenizer: Any, thinking: bool | None = None) -> None:
        if thinking is not None and not isinstance(thinking, bool):
            raise ValueError(f"thinking={thinking!r} must be True, False or None")
        self._tokenizer = tokenizer
        self._options: dict[str, Any] = {}
        if thinking is not None:
            self._options = {"enable_thinking": not thinking}
            other = self._render(_SYSTEM, _USER, _REPLY, _AGAIN)
            self._options = {"enable_thinking": thinking}
            if other == self._render(_SYSTEM, _USER, _REPLY, _AGAIN):
                raise ValueError(
                    f"thinking={thinking} cannot be said to the chat template of "
                    f"{getattr(tokenizer, 'name_or_path', '')!r}: it knows no enable_thinking; use "
                    "thinking=None, or a model that has this switch"
                )
        opening = self._render(_SYSTEM, _USER)
        self.before, found, rest = opening.partition(_SYSTEM)
        self.between, also_found, self.after = rest.partition(_USER)
        if not found or not also_found:
            raise ValueError("the chat template drops the system or the user message")
        self.past, self.joint, self.drops_thinking = self._continued(opening)
        self.opens_thought = bool(_OPENED.search(self.after))
        self.skips_thought = bool(_SKIPPED.search(self.after))
        self.trims: Trims = self._trimming()

    def seen(self, reply: str) -> str:
        """Return what later turns are shown of a reply, given with its thought.

        Raises:
            ValueError: If the template puts something else around this reply than around others.
        """
        tail = f"{self.joint}{_AGAIN}{self.after}"
        _, _, rest = self._render(_SYSTEM, _USER, reply, _AGAIN).partition(_USER)
        shown = rest.removeprefix(self.past)
        if not rest.startswith(self.past) or not shown.endswith(tail):
            raise ValueError(
                f"the chat template puts something of its own around the reply {reply!r}; contexts "
                "cannot be extended with it"
            )
        return shown.removesuffix(tail)

    def _continued(self, opening: str) -> tuple[str, str, bool]:
        """Find out how a dialogue goes on: return ``past``, ``joint`` and ``drops_thinking``."""
        longer = self._render(_SYSTEM, _USER, _REPLY, _AGAIN)
        drops = _THOUGHT not in longer
        head, found, rest = longer.partition(_SAID if drops else _REPLY)
        joint, also_found, tail = rest.partition(_AGAIN)
        start = opening.removesuffix(self.after)
        past = head.removeprefix(start)
        if drops:
            alike = head.startswith(start) and _unbegun(past) == _unbegun(self.after)
        else:
            # What is left is "", or the thought that a reply would repeat.
            alike = opening.startswith(head) and not _unbegun(opening.removeprefix(head))
        if not found or not also_found or not alike or tail != self.after:
            raise ValueError(
                "the chat template rewrites earlier messages, or prefixes a reply, when a dialogue "
                f"goes on; contexts cannot be extended with it: after {opening!r} it shows "
                f"{longer!r}"
            )
        return past, joint, drops

    def _trimming(self) -> Trims:
        """Find out what the template does to the white space around texts that are shown."""
        texts = [f"\t{_SYSTEM}\t", f"\t{_USER}\t"]
        shown = self._render(*texts)
        if all(text in shown for text in texts):
            return ""
        if "\t" not in shown:
            inside = self._render(_SYSTEM, [f"{_USER}\t", f"\t{_AGAIN}"])
            return "messages" if f"{_USER}\t\t{_AGAIN}" in inside else "texts"
        raise ValueError(
            "the chat template neither keeps all texts as they are nor strips the white space "
            f"around each: of the tabs around {_SYSTEM!r} and {_USER!r} it makes {shown!r}"
        )

    def _render(self, *messages: str | list[str]) -> str:
        """Return what the template makes of a system message, then user messages and replies."""
        roles = ("system", "user", "assistant", "user")
        dialogue = [
            {
                "role": role,
                "content": [
                    {"type": "text", "text": text}
                    for text in ([message] if isinstance(message, str) else message)
                ],
            }
            for role, message in zip(roles, messages, strict=False)
        ]
        return self._tokenizer.apply_chat_template(
            dialogue, tokenize=False, add_generation_prompt=True, **self._options
        )


def _unbegun(text: str) -> str:
    """Return what leads up to a reply, without a thought that is opened or skipped there."""
    return _OPENED.sub("", _SKIPPED.sub("", text)).rstrip()


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Return what matches any of some words, the longest that fits; nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")


def until(words: re.Pattern[str], text: str) -> tuple[str, str]:
    """Split a text where the first of some words begins, or else at its end."""
    found = words.search(text)
    cut = found.start() if found else len(text)
    return text[:cut], text[cut:]


def since(words: re.Pattern[str], text: str) -> tuple[str, str]:
    """Split a text where the last of some words ends, or else at its beginning."""
    cut = max((found.end() for found in words.finditer(text)), default=0)
    return text[:cut], text[cut:]
