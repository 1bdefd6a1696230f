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
import email.utils
import importlib
import io
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from benchmarks.players.answers import (
    Broken,
    NoStream,
    ServerReply,
    may_be_refusal,
    read_stream,
    read_whole,
    reason_of,
    status_of,
)
from benchmarks.players.limits import limits
from gym_longvideo import checks
from gym_longvideo.extras import require

_log = logging.getLogger(__name__)

ImageFormat = Literal["png", "jpeg"]
API_KEY = "OPENAI_API_KEY"
_RETRIED = {408, 409, 425, 429}  # and every 5xx
_NOT_STREAMED = {400, 404, 405, 406, 415, 422, 501}  # what servers say that do not stream
_LONGEST_WAIT_S = 300.0
_CONNECT_S = 10.0
_MOST_REDIRECTS = 3
_SHOWN = 500  # characters of a message
_KEY_IN_TEXT = 8  # shorter keys ("none", "EMPTY") are words, and may stand in a reply
_OWN = {"model", "messages", "stream", "stream_options", "n"}


class EndpointError(Exception):
    """A request got no reply of the model, however often it was tried."""


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
        require("benchmarks.players.client", "openai")
        import openai

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
                event_hooks=limits(self._http, timeout_s),
                max_redirects=_MOST_REDIRECTS,
                # Each request has a connection of its own, which its deadline may close.
                limits=self._http.Limits(max_keepalive_connections=0),
                headers={"Accept-Encoding": "identity"},
            ),
        )
        self._broken: Any = (
            *(openai.OpenAIError, self._http.HTTPError, self._http.StreamError),
            *(Broken, ValueError, RecursionError),
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
                if may_be_refusal(error):
                    failure = self._failure_of_a_minimal(messages, fields)
                    if failure is None:
                        self._tell(said)
                        return ServerReply("", None, None, None, None, failed, reason_of(error))
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
                no_stream = isinstance(error, NoStream)
                may_help = no_stream or status_of(error) in _NOT_STREAMED
                known = may_be_refusal(error) and (self._proven or reason_of(error) != "other")
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
            return read_whole(raw.http_response.json())
        with create(model=self.model, messages=messages, extra_body=fields, **extra) as stream:
            return read_stream(stream, started)

    def _patience(self, error: BaseException, failed: int) -> float | None:
        """Return the seconds to wait before a retry, ``None`` if there is no point in one."""
        status = status_of(error)
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


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait, 0.0 if it does not."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        moment = email.utils.parsedate_tz(value)
        seconds = email.utils.mktime_tz(moment) - time.time() if moment else 0.0
    return seconds if 0 < seconds < math.inf else 0.0
