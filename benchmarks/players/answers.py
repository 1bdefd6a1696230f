"""Answers of a chat endpoint: what a model said, and what an error in place of it means.

An answer is read whole or refused: one that holds no choice, that ends before the reply did, or
that holds an error is ``Broken``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

_REFUSED = {400, 413, 422}
# Known words of refusals. They give a refusal its name, and never decide whether it is one.
_REASONS: dict[str, re.Pattern[str]] = {
    "context": re.compile(
        r"context[ _]?(length|window|size|limit)|context (is )?too long|model length|"
        r"(maximum|max) (sequence|input|prompt) length|range of input length|"
        r"(prompt|input|request|messages?) (is|are) (too long|longer than)|"
        r"(too many|(number|count) of|exceed\w* the (maximum|max)\w*) (input |prompt |image )?"
        r"(tokens|images)|input (tokens? )?(count|length).{0,60}exceed|string_above_max_length|"
        r"must have less than \d+ tokens|"
        r"at most \d+ (image|multi-?modal)|limit.mm.per.prompt",
        re.IGNORECASE | re.DOTALL,
    ),
    "policy": re.compile(
        r"content[ _-]?(policy|filter|management)|content_policy|usage polic|safety (system|filter)"
        r"|moderation|data_inspection_failed|responsible ?ai",
        re.IGNORECASE,
    ),
}
_THINKING = {"thinking", "reasoning"}  # types of parts


class ServerReply(NamedTuple):
    """What a model said.

    Attributes:
        text: The reply, "" if it said nothing.
        prompt_tokens: Tokens of the whole dialogue so far, ``None`` if the server does not say.
        reply_tokens: Tokens of the reply, ``None`` if the server does not say.
        prefill_s: Seconds before the first token, ``None`` if the reply was not streamed.
        generate_s: Seconds after it, ``None`` if the reply was not streamed.
        retries: Requests that failed before this one.
        refused: Why the server does not let the model see the dialogue: "context", "policy",
            "other" (its words are not known), or "" where it does.
    """

    text: str
    prompt_tokens: int | None
    reply_tokens: int | None
    prefill_s: float | None
    generate_s: float | None
    retries: int
    refused: str = ""


class Broken(Exception):
    """What came back is no completion."""


class NoStream(Broken):
    """A stream was asked for, and something else came."""


class _Complaint(Broken):
    """An error that came inside an answer, with its status if it names one."""

    def __init__(self, error: Any) -> None:
        super().__init__(f"the answer holds an error: {error}")
        self.body = error if isinstance(error, Mapping) else {"message": error}
        self.status_code = _code(self.body)


def read_stream(stream: Any, started: float) -> ServerReply:
    """Read a stream of chunks to its end."""
    text: list[str] = []
    thought: list[str] = []
    usage: Any = None
    first = ended = 0.0
    some = finished = False
    for chunk in stream:
        some = True
        usage = getattr(chunk, "usage", None) or usage
        for choice in (getattr(chunk, "choices", None) or [])[:1]:
            delta = getattr(choice, "delta", None)
            content, reasoning = _said(_mapping(delta))
            if content or reasoning:
                ended = time.perf_counter()
                first = first or ended
                text.append(content)
                thought.append(reasoning)
            _complain(_mapping(choice))
            finished |= bool(getattr(choice, "finish_reason", None))
    if not some:
        raise NoStream("the answer to a request for a stream holds no event")
    if not finished:
        raise Broken("the stream ended before the reply did")
    ended = ended or time.perf_counter()
    first = first or ended
    return ServerReply(
        _text("".join(text), "".join(thought)),
        *_tokens(_mapping(usage)),
        first - started,
        ended - first,
        0,
    )


def read_whole(body: Any) -> ServerReply:
    """Read an answer that came in one piece."""
    _complain(body if isinstance(body, dict) else {})
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Broken(f"the answer holds no choice: {body}")
    _complain(choices[0])
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise Broken(f"the choice holds no message: {choices[0]}")
    return ServerReply(_text(*_said(message)), *_tokens(_mapping(body.get("usage"))), None, None, 0)


def _complain(piece: Mapping[str, Any]) -> None:
    """Raise the error that an answer, or a choice of it, holds."""
    if piece.get("error"):
        raise _Complaint(piece["error"])
    if piece.get("object") == "error":
        raise _Complaint(piece)
    if piece.get("finish_reason") == "error":
        raise Broken("the server ended the reply with an error")


def _said(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return the content of a message (or of a part of one), and the thinking told apart from it.

    Servers that know a model's thinking marks cut it off: vLLM and SGLang call it
    ``reasoning_content``, newer ones ``reasoning``; others send parts of type ``thinking``.
    """
    content = message.get("content")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    reasoning = reasoning if isinstance(reasoning, str) else ""
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else _mapping(part) for part in content]
        reasoning += "".join(_thinking(part) for part in parts if not isinstance(part, str))
        content = "".join(
            part if isinstance(part, str) else str(part.get("text") or "")
            for part in parts
            if isinstance(part, str) or part.get("type") not in _THINKING
        )
    if not isinstance(content, str | None):
        raise Broken(f"the content of the message is {type(content).__name__}, not text")
    return content or "", reasoning


def _thinking(part: Mapping[str, Any]) -> str:
    """Return what a part of a message thinks: a text, or parts of text (Mistral)."""
    if part.get("type") not in _THINKING:
        return ""
    inside = next((part[name] for name in ("thinking", "reasoning", "text") if part.get(name)), "")
    if isinstance(inside, list):
        return "".join(str(_mapping(each).get("text") or "") for each in inside)
    return str(inside)


def _text(content: str, reasoning: str) -> str:
    """Return a reply as the model wrote it, thinking put back; no lone surrogates."""
    if reasoning and not content.lstrip().startswith("<think>"):
        content = f"<think>{reasoning}</think>{content}" if content else f"<think>{reasoning}"
    return content.encode("utf-8", "replace").decode("utf-8")


def _tokens(usage: Mapping[str, Any]) -> tuple[int | None, int | None]:
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, reply = (
        each if isinstance(each, int) and not isinstance(each, bool) and each >= 0 else None
        for each in counts
    )
    return prompt, reply


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a piece of an answer as a mapping; the client makes models of what it knows."""
    if hasattr(value, "model_dump"):
        return {**(getattr(value, "model_extra", None) or {}), **vars(value)}
    return value if isinstance(value, Mapping) else {}


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error, if it has one."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _body(error: BaseException) -> Mapping[str, Any]:
    """Return the error object that a server sent, if any."""
    body = _mapping(getattr(error, "body", None))
    return _mapping(body.get("error")) or body


def _code(body: Mapping[str, Any]) -> int | None:
    """Return the HTTP status that an error object names, if any."""
    for value in (body.get("status"), body.get("code")):
        if isinstance(value, int | str) and re.fullmatch(r"[45][0-9]{2}", str(value)):
            return int(value)
    return None


def may_be_refusal(error: BaseException) -> bool:
    """Return whether a server may mean this dialogue, rather than every one."""
    status = status_of(error) or _code(_body(error))  # an error within a stream has only the latter
    return status in _REFUSED or (status is None and bool(_body(error)) and
                                  reason_of(error) != "other")  # fmt: skip


def reason_of(error: BaseException) -> str:
    """Return the name of a refusal, as far as its words are known."""
    body = _body(error)
    said = f"{body.get('code')} {body.get('type')} {body.get('message')} {error}"
    return next((reason for reason, words in _REASONS.items() if words.search(said)), "other")
