"""Endpoint: replies of a model behind an OpenAI-compatible server (vLLM, SGLang, hosted ones).

Where the line lies between the policy and the machinery: a completion that arrived whole is what
the model said, and counts, whatever it says; no content at all (null, empty, refused, cut at the
token limit) is an empty or cut reply, which the environment finds malformed. So is a dialogue that
the server refuses for what it holds (too long, too many images, against a content policy). It would
be refused for ever, and leaving such episodes out would favour models that can read less; so the
reply is empty, and ``ServerReply.refused`` says why. Which refusals those are is told by what the
server does, not by its words, which no two servers share: status 400, 413 or 422, while a minimal
dialogue of the same kind, with the same parameters, is answered. Everything else is the
machinery's: a minimal dialogue that is refused as well (a wrong parameter, a model that takes no
images), no connection, a time-out, any other status, an error inside an answer, a body that is no
JSON or holds no choice, a stream that ends before the reply did. Such a request is tried again
where that may help, and when it keeps failing it raises ``EndpointError``; nobody is ever marked
wrong for it.

Requests stream where the server lets them, because only then can the time before the first token
be told from the time after it.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import importlib
import io
import logging
import math
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from gym_longvideo import checks

_log = logging.getLogger(__name__)

ImageFormat = Literal["png", "jpeg"]
API_KEY = "OPENAI_API_KEY"
_RETRIED = {408, 409, 425, 429}  # and every 5xx
_NOT_STREAMED = {400, 404, 405, 406, 415, 422, 501}  # what servers say that do not stream
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
_LONGEST_WAIT_S = 300.0
_CONNECT_S = 10.0
_MOST_BYTES = 32 * 2**20  # of an answer, once unpacked
_MOST_REDIRECTS = 3
_SHOWN = 500  # characters of a message
_KEY_IN_TEXT = 8  # shorter keys ("none", "EMPTY") are words, and may stand in a reply
_THINKING = {"thinking", "reasoning"}  # types of parts
_OWN = {"model", "messages", "stream", "stream_options", "n"}


class EndpointError(Exception):
    """A request got no reply of the model, however often it was tried."""


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


@dataclass(frozen=True)
class Request:
    """How replies are asked for.

    Attributes:
        temperature: 0.0 always takes the likeliest token.
        max_tokens: Longest reply.
        more: Further fields of the request ("top_p", "chat_template_kwargs", ...); they win over
            the two above, and ``None`` leaves a field out. A ``seed`` is sent only if it is among
            them: some servers (vLLM with chunked prefill) break on one.
        image_format: "png" keeps every pixel, "jpeg" (quality 90) makes smaller requests.
    """

    temperature: float = 0.0
    max_tokens: int = 512
    more: Mapping[str, Any] = field(default_factory=dict)
    image_format: ImageFormat = "png"

    def __post_init__(self) -> None:
        if own := sorted(_OWN & set(self.more)):
            raise ValueError(f"request={dict(self.more)} sets {own}, which the evaluation sets")
        checks.choice("image_format", self.image_format, get_args(ImageFormat))
        checks.number("temperature", self.temperature, 0)
        checks.whole("max_tokens", self.max_tokens, 1)

    def fields(self) -> dict[str, Any]:
        """Return the fields of a request."""
        fields = {"temperature": self.temperature, "max_tokens": self.max_tokens, **self.more}
        return {name: value for name, value in fields.items() if value is not None}


class Endpoint:
    """A model behind a server. Safe to use from many threads.

    Args:
        base_url: Of the API, such as ``http://localhost:8000/v1``.
        model: Name of the model there.
        request: How replies are asked for.
        timeout_s: Seconds until the headers of an answer are whole, and again until its body is.
        retries: How often a request is tried again.
        backoff_s: Seconds before the first retry, doubled for each further one; a ``Retry-After``
            of the server is heeded if it is longer.
        api_key_env: Environment variable that holds the key. Local servers need none.
        wait: Sleeps; returns whether to give up.

    Raises:
        ValueError: For arguments that have no meaning.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        request: Request | None = None,
        timeout_s: float = 300.0,
        retries: int = 4,
        backoff_s: float = 1.0,
        api_key_env: str = API_KEY,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        if not model:
            raise ValueError(f"which model of {base_url}? Name it with model=")
        checks.whole("retries", retries, 0)
        checks.number("backoff_s", backoff_s, 0, unit="seconds")
        checks.number("timeout_s", timeout_s, above=0, unit="seconds")
        try:
            import openai
        except ImportError:
            raise ValueError("endpoints need the openai package: pip install openai") from None
        key = os.environ.get(api_key_env, "")
        if not key and api_key_env != API_KEY:
            raise ValueError(f"api_key_env={api_key_env!r}: no such environment variable is set")
        self.model, self.request = model, request or Request()
        self.retries, self.backoff_s, self._key = retries, backoff_s, key
        self._wait = wait or threading.Event().wait
        self._mode = 0  # an index into _MODES; grows where the server refuses
        self._proven = False  # whether that mode was ever answered
        self._told = False  # whether a refusal was logged
        library = openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]
        self._http: Any = importlib.import_module(library)  # httpx, or what has replaced it
        self._client = openai.OpenAI(
            base_url=base_url.rstrip("/").removesuffix("/chat/completions"),
            api_key=key or "none",
            max_retries=0,  # ours also try again what broke in the middle of a body
            timeout=self._http.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            http_client=openai.DefaultHttpxClient(
                event_hooks=_limits(self._http, timeout_s),
                max_redirects=_MOST_REDIRECTS,
                # Each request has a connection of its own, which its deadline may close.
                limits=self._http.Limits(max_keepalive_connections=0),
                headers={"Accept-Encoding": "identity"},
            ),
        )
        self._broken: Any = (
            *(openai.OpenAIError, self._http.HTTPError, self._http.StreamError),
            *(_Broken, ValueError, RecursionError),
        )

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._client.close()

    def reply(self, messages: Sequence[Mapping[str, Any]]) -> ServerReply:
        """Return what the model says next.

        Args:
            messages: The dialogue, as the API takes it; see ``chat_message``.

        Raises:
            EndpointError: If there is no reply after all retries.
        """
        fields = self.request.fields()
        failed = first = 0
        while True:
            tried: list[int] = []
            first = max(first, self._mode)
            try:
                reply = self._negotiate(messages, fields, first, tried)
                return reply._replace(text=self._without_key(reply.text), retries=failed)
            except self._broken as fault:
                error, said = fault, self._redacted(fault)
                if _may_be_refusal(error):
                    failure = self._failure_of_a_minimal(messages, fields)
                    if failure is None:
                        self._tell(said)
                        return ServerReply("", None, None, None, None, failed, _reason(error))
                    error = failure
                    said += f"; and a minimal dialogue: {self._redacted(failure)}"
                first = tried[-1]  # every form has had its turn: a retry is one request
                wait_s = self._patience(error, failed)
                failed += 1
                if wait_s is None or failed > self.retries or self._wait(wait_s):
                    raise EndpointError(said if failed == 1 else f"{said} ({failed} times)"
                                        ) from None  # fmt: skip
                _log.debug("%s; again in %.1f s", said, wait_s)

    def _failure_of_a_minimal(
        self, messages: Sequence[Mapping[str, Any]], fields: dict[str, Any]
    ) -> BaseException | None:
        """Ask what every server takes that takes such dialogues at all; return what breaks it."""
        try:
            self._negotiate(_minimal(messages, self.request.image_format), fields, self._mode, [])
        except self._broken as error:
            return error
        return None

    def _tell(self, said: str) -> None:
        if not self._told:
            self._told = True
            _log.warning(
                "the endpoint refuses a dialogue for what it holds; this and every further one "
                "counts as an empty reply: %s",
                said,
            )

    def _negotiate(
        self, messages: Any, fields: dict[str, Any], first: int, tried: list[int]
    ) -> ServerReply:
        """Ask in the best way that the server takes, from ``first`` on; remember which that was."""
        said_so = True
        for mode in range(first, len(_MODES)):
            tried.append(mode)
            try:
                reply = self._ask(messages, fields, _MODES[mode])
            except Exception as error:
                no_stream = isinstance(error, _NoStream)
                may_help = no_stream or _status(error) in _NOT_STREAMED
                known = _may_be_refusal(error) and (self._proven or _reason(error) != "other")
                if mode + 1 == len(_MODES) or not may_help or known:
                    raise
                said_so &= not no_stream
                continue
            # An empty answer before a stream was a hiccup, and before a plain answer a refusal.
            if mode > max(first, self._mode) and (said_so or not _MODES[mode]):
                _log.info("the endpoint takes no %s", _MODES[first])
                self._mode = mode
            self._proven |= mode == self._mode
            return reply
        raise AssertionError("unreachable")

    def _ask(self, messages: Any, fields: dict[str, Any], extra: dict[str, Any]) -> ServerReply:
        started = time.perf_counter()
        create = self._client.chat.completions.create
        if not extra:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, extra_body=fields
            )
            return _whole(raw.http_response.json())
        with create(model=self.model, messages=messages, extra_body=fields, **extra) as stream:
            return _streamed(stream, started)

    def _patience(self, error: BaseException, failed: int) -> float | None:
        """Return the seconds to wait before a retry, ``None`` if there is no point in one."""
        status = _status(error)
        if status is not None and status < 500 and status not in _RETRIED:
            return None
        asked = _retry_after(getattr(getattr(error, "response", None), "headers", {}))
        return min(max(self.backoff_s * 2**failed, asked), _LONGEST_WAIT_S)

    def _redacted(self, error: BaseException) -> str:
        cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) else ""
        said = f"{type(error).__name__.lstrip('_')}: {error}{cause}"
        said = said.replace(self._key, "***") if self._key else said
        return said if len(said) <= _SHOWN else said[: _SHOWN - 3] + "..."

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) >= _KEY_IN_TEXT else text


_MODES: tuple[dict[str, Any], ...] = (
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True},
    {},
)


class _Broken(Exception):
    """What came back is no completion."""


class _NoStream(_Broken):
    """A stream was asked for, and something else came."""


class _Complaint(_Broken):
    """An error that came inside an answer, with its status if it names one."""

    def __init__(self, error: Any) -> None:
        super().__init__(f"the answer holds an error: {error}")
        self.body = error if isinstance(error, Mapping) else {"message": error}
        self.status_code = _code(self.body)


def chat_message(message: Mapping[str, Any], image_format: ImageFormat = "png") -> dict[str, Any]:
    """Return a message of ``TextProtocol.messages`` as the API takes it.

    Images become data URLs. Messages without any become plain strings, which every server takes.
    """
    parts = message["content"]
    if all(part["type"] == "text" for part in parts):
        return {"role": message["role"], "content": "".join(part["text"] for part in parts)}
    content = [
        {"type": "text", "text": part["text"]}
        if part["type"] == "text"
        else {"type": "image_url", "image_url": {"url": data_url(part["image"], image_format)}}
        for part in parts
    ]
    return {"role": message["role"], "content": content}


def data_url(image: np.ndarray, image_format: ImageFormat = "png") -> str:
    """Return an image, (H, W, 3) uint8, as a data URL."""
    from PIL import Image

    stream = io.BytesIO()
    options = {"quality": 90} if image_format == "jpeg" else {}
    Image.fromarray(image).save(stream, image_format, **options)
    return f"data:image/{image_format};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _minimal(
    messages: Sequence[Mapping[str, Any]], image_format: ImageFormat
) -> list[dict[str, Any]]:
    """Return a dialogue that holds as little as one of this kind can: one word, one grey image."""
    kinds = {part["type"] for each in messages if not isinstance(each["content"], str)
             for part in each["content"]}  # fmt: skip
    word = {"type": "text", "text": "Reply with the word yes."}
    grey = {"type": "image", "image": np.full((64, 64, 3), 128, np.uint8)}
    said = [word, grey] if "image_url" in kinds else [word]
    roles = [role for role in ("system", "user") if any(each["role"] == role for each in messages)]
    return [
        chat_message({"role": role, "content": said if role == "user" else [word]}, image_format)
        for role in roles
    ]


def _streamed(stream: Any, started: float) -> ServerReply:
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
        raise _NoStream("the answer to a request for a stream holds no event")
    if not finished:
        raise _Broken("the stream ended before the reply did")
    ended = ended or time.perf_counter()
    first = first or ended
    return ServerReply(
        _text("".join(text), "".join(thought)),
        *_tokens(_mapping(usage)),
        first - started,
        ended - first,
        0,
    )


def _whole(body: Any) -> ServerReply:
    """Read an answer that came in one piece."""
    _complain(body if isinstance(body, dict) else {})
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _Broken(f"the answer holds no choice: {body}")
    _complain(choices[0])
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise _Broken(f"the choice holds no message: {choices[0]}")
    return ServerReply(_text(*_said(message)), *_tokens(_mapping(body.get("usage"))), None, None, 0)


def _complain(piece: Mapping[str, Any]) -> None:
    """Raise the error that an answer, or a choice of it, holds."""
    if piece.get("error"):
        raise _Complaint(piece["error"])
    if piece.get("object") == "error":
        raise _Complaint(piece)
    if piece.get("finish_reason") == "error":
        raise _Broken("the server ended the reply with an error")


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
        raise _Broken(f"the content of the message is {type(content).__name__}, not text")
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


def _status(error: BaseException) -> int | None:
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


def _may_be_refusal(error: BaseException) -> bool:
    """Return whether a server may mean this dialogue, rather than every one."""
    status = _status(error) or _code(_body(error))  # an error within a stream has only the latter
    return status in _REFUSED or (status is None and bool(_body(error)) and
                                  _reason(error) != "other")  # fmt: skip


def _reason(error: BaseException) -> str:
    """Return the name of a refusal, as far as its words are known."""
    body = _body(error)
    said = f"{body.get('code')} {body.get('type')} {body.get('message')} {error}"
    return next((reason for reason, words in _REASONS.items() if words.search(said)), "other")


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait, 0.0 if it does not."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        moment = email.utils.parsedate_tz(value)
        seconds = email.utils.mktime_tz(moment) - time.time() if moment else 0.0
    return seconds if 0 < seconds < math.inf else 0.0


def _limits(http: Any, timeout_s: float) -> dict[str, list[Callable[[Any], None]]]:
    """Return hooks that give the headers and the body of an answer a deadline, and it a size.

    The client's own time-out is one of silence: a server that sends a byte now and then (or the
    comments that keep a stream alive) would never meet it. What comes packed is unpacked here,
    because the client would unpack it whole, whatever it grows to.
    """
    timers = threading.local()

    class Limited(http.SyncByteStream):
        def __init__(self, stream: Any, unpack: Any) -> None:
            self.stream, self.unpack = stream, unpack
            self.deadline, self.left = time.monotonic() + timeout_s, _MOST_BYTES

        def __iter__(self) -> Any:
            for packed in self.stream:
                try:
                    part = self.unpack.decompress(packed, self.left + 1) if self.unpack else packed
                except zlib.error as error:
                    raise http.DecodingError(f"the answer is packed wrongly: {error}") from None
                self.left -= len(part)
                if self.left < 0:
                    raise http.ReadError(f"the answer is larger than {_MOST_BYTES >> 20} MiB")
                yield part
                if time.monotonic() > self.deadline:
                    raise http.ReadTimeout(f"the answer took longer than timeout_s={timeout_s:g}")

        def close(self) -> None:
            self.stream.close()

    def hang_up(connection: Any, late: threading.Event) -> None:
        late.set()
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def watch(name: str, info: Mapping[str, Any]) -> None:
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            stop()
            connection = info["return_value"].get_extra_info("socket")
            timers.late = threading.Event()
            timers.timer = threading.Timer(timeout_s, hang_up, [connection, timers.late])
            timers.timer.daemon = True
            timers.timer.start()
        elif ".receive_response_headers." in name and name.endswith((".complete", ".failed")):
            stop()
            if name.endswith(".failed") and timers.late.is_set():
                raise http.ReadTimeout(f"the headers took longer than timeout_s={timeout_s:g}")

    def stop() -> None:
        if timer := getattr(timers, "timer", None):
            timer.cancel()

    def request(request: Any) -> None:
        request.extensions["trace"] = watch

    def response(response: Any) -> None:
        packing = response.headers.pop("content-encoding", "identity").strip().lower()
        if packing not in _UNPACK:
            raise http.DecodingError(
                f"the answer is packed as {packing!r}, which was not asked for; have the server "
                "or the proxy before it send it as it is"
            )
        unpack = _UNPACK[packing]
        response.stream = Limited(response.stream, unpack and zlib.decompressobj(unpack))

    return {"request": [request], "response": [response]}


_UNPACK = {"identity": 0, "": 0, "gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
