from __future__ import annotations

import base64
import email.utils
import gzip
import io
import json
import socket
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from chat_server import (
    HELLO,
    RIGHT,
    USAGE,
    Behaviour,
    Handler,
    ask,
    completion,
    endpoint,
    serve,
)  # fmt: skip
from PIL import Image

from benchmarks.players.client import Endpoint, EndpointError, Request, chat_message, data_url


def test_a_streamed_reply_tells_prefill_from_generation_and_counts_tokens() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        time.sleep(0.2)
        handler.event({"role": "assistant", "content": "a"})
        time.sleep(0.1)
        handler.event({"content": "b"})
        for event in ("stop", USAGE, b"data: [DONE]\n\n"):
            handler.event(event)
        handler.close_connection = True

    reply, requests = ask(behave)
    assert (reply.text, reply.prompt_tokens, reply.reply_tokens, reply.retries) == ("ab", 100, 7, 0)
    assert reply.prefill_s > 0.19 and reply.generate_s > 0.09
    assert requests[0]["path"] == "/v1/chat/completions" and requests[0]["stream"] is True
    assert requests[0]["temperature"] == 0.0 and requests[0]["max_tokens"] == 512
    assert requests[0]["model"] == "some-model" and requests[0]["messages"] == HELLO
    assert "seed" not in requests[0]


def test_a_server_that_refuses_streams_is_asked_plainly_from_then_on() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if body.get("stream"):
            handler.error(400, "stream is not supported")
        else:
            handler.reply(body)

    with serve(behave) as server:
        client = endpoint(server.url)
        for _ in range(2):
            reply = client.reply(HELLO)
            assert reply.text == RIGHT and reply.retries == 0
            assert reply.prefill_s is None and reply.generate_s is None
            assert (reply.prompt_tokens, reply.reply_tokens) == (100, 7)
        client.close()
    streamed = [bool(request.get("stream")) for request in server.requests]
    assert streamed == [True, True, False, False]


def test_a_server_that_knows_no_stream_options_still_streams() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if "stream_options" in body:
            handler.error(422, "extra fields not permitted")
        else:
            handler.stream([{"content": RIGHT}, "stop"])

    reply, requests = ask(behave)
    assert reply.text == RIGHT and reply.prefill_s is not None
    assert reply.prompt_tokens is None and reply.reply_tokens is None
    assert len(requests) == 2


def test_a_hiccup_does_not_cost_the_counts_of_all_later_replies() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if number == 0:
            handler.send(200, b"<html>busy</html>", "text/html")
        else:
            handler.reply(body)

    with serve(behave) as server:
        client = endpoint(server.url)
        assert client.reply(HELLO).text == client.reply(HELLO).text == RIGHT
        client.close()
    assert ["stream_options" in request for request in server.requests] == [True, False, True]


def test_a_server_that_ignores_the_wish_for_a_stream_is_understood() -> None:
    reply, _ = ask(lambda handler, body, number: handler.json(completion(RIGHT)))
    assert reply.text == RIGHT and reply.prefill_s is None and reply.prompt_tokens == 100


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("text", [None, "", "nonsense"])
def test_what_a_model_says_is_its_reply_be_it_nothing(text: str | None, plain: bool) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if plain and body.get("stream"):
            handler.error(501)
        elif plain:
            handler.json(completion(text))
        else:
            handler.stream([{"content": text}, "length", USAGE])

    reply, _ = ask(behave)
    assert reply.text == (text or "") and reply.retries == 0


def test_a_refusal_and_a_native_tool_call_are_empty_replies() -> None:
    for message in ({"refusal": "I will not"}, {"tool_calls": [{"id": "1"}]}):
        reply, _ = ask(lambda h, b, n, m=message: h.json(completion(None, **m)))
        assert reply.text == ""


GARBAGE: dict[str, Behaviour] = {
    "not JSON": lambda h, b, n: h.send(200, b"<html>busy</html>", "text/html"),
    "half a JSON": lambda h, b, n: h.send(200, b'{"choices": [{"mess'),
    "a list": lambda h, b, n: h.json([1, 2]),
    "no choices": lambda h, b, n: h.json({"id": "1"}),
    "empty choices": lambda h, b, n: h.json({"choices": []}),
    "null choices": lambda h, b, n: h.json({"choices": None}),
    "a choice of text": lambda h, b, n: h.json({"choices": ["A"]}),
    "no message": lambda h, b, n: h.json({"choices": [{"index": 0}]}),
    "content that is a number": lambda h, b, n: h.json(completion(5)),
    "nothing": lambda h, b, n: h.send(200, b""),
    "deep nesting": lambda h, b, n: h.send(200, b"[" * 100_000),
    "not UTF-8": lambda h, b, n: h.send(200, b'{"choices": "\xff\xfe"}'),
    "an error in a stream": lambda h, b, n: h.stream([b'data: {"error": {"message": "x"}}\n\n']),
    "events that are no JSON": lambda h, b, n: h.stream([b"data: {{{\n\n"]),
    "events of other kinds": lambda h, b, n: h.stream([b"data: [1]\n\n"]),
    "a stream without an end": lambda h, b, n: h.stream([{"content": RIGHT}], end=False),
    "a stream without a reply": lambda h, b, n: h.stream([USAGE]),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_a_fault_after_all_retries(kind: str) -> None:
    error, requests = ask(GARBAGE[kind])
    assert isinstance(error, str) and "3 times" in error
    assert len(requests) >= 3


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_server_that_recovers_gives_a_reply(kind: str) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        # A request for a stream, one without stream options and a plain one make one attempt.
        if number == 0 or (not body.get("stream") and number < 3):
            GARBAGE[kind](handler, body, number)
        else:
            handler.reply(body)

    reply, _ = ask(behave)
    assert reply.text == RIGHT


@pytest.mark.parametrize("status", [500, 502, 503, 529, 408, 409, 429])
def test_a_status_that_may_pass_is_tried_again(status: int) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if number < 2:
            handler.error(status)
        else:
            handler.reply(body)

    reply, requests = ask(behave)
    assert reply.text == RIGHT and reply.retries == 2 and len(requests) == 3
    error, requests = ask(lambda handler, body, number: handler.error(status))
    assert str(status) in error and "3 times" in error and len(requests) == 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_status_that_stays_is_not_tried_again(status: int) -> None:
    error, requests = ask(lambda handler, body, number: handler.error(status, "wrong key"))
    assert "wrong key" in error and len(requests) == 1


def test_a_request_that_is_wrong_in_every_form_fails_once() -> None:
    error, requests = ask(lambda handler, body, number: handler.error(400, "no such model"))
    # One for each form, of the dialogue and of a minimal one, which is refused as well.
    assert "no such model" in error and "minimal dialogue" in error and len(requests) == 6


def test_garbage_costs_one_request_a_retry_once_every_form_was_tried() -> None:
    error, requests = ask(GARBAGE["not JSON"], retries=4)
    assert "5 times" in error
    assert ["stream" in request for request in requests] == [True, True, *[False] * 5]


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_heeded(date: bool) -> None:
    waited: list[float] = []

    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        after = email.utils.formatdate(time.time() + 40, usegmt=True) if date else "7.5"
        if number < 2:
            handler.error(429, "slow down", Retry_After=after)
        else:
            handler.reply(body)

    reply, _ = ask(behave, backoff_s=5.0, wait=lambda seconds: waited.append(seconds) is not None)
    assert reply.retries == 2
    if date:
        assert all(37 < seconds <= 40 for seconds in waited)
    else:
        assert waited == [7.5, 10.0]  # the longer of what was asked for and 5 * 2 ** n


def test_waiting_ends_when_nobody_wants_the_reply_any_more() -> None:
    error, requests = ask(lambda h, b, n: h.error(500), backoff_s=1e6, wait=lambda seconds: True)
    assert "500" in error and len(requests) == 1


def test_a_server_that_hangs_is_given_up_after_the_time_out() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        handler.server.released.wait(30)
        handler.close_connection = True

    started = time.monotonic()
    error, requests = ask(behave, timeout_s=0.3, retries=1)
    assert "timed out" in error.lower() and len(requests) == 2
    assert time.monotonic() - started < 10


def test_a_server_that_trickles_is_given_up_after_the_time_out() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        while not handler.server.released.wait(0.05):
            handler.wfile.write(b": still there\n\n")
            handler.wfile.flush()

    started = time.monotonic()
    error, _ = ask(behave, timeout_s=0.4, retries=0)
    assert "timeout_s=0.4" in error and time.monotonic() - started < 10


def test_a_plain_answer_that_trickles_is_given_up_too() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if body.get("stream"):
            return handler.error(501)
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not handler.server.released.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    error, _ = ask(behave, timeout_s=0.4, retries=0)
    assert "timeout_s=0.4" in error


def test_headers_that_trickle_are_given_up_too() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not handler.server.released.wait(0.05):
            handler.wfile.write(b"X-Busy: 1\r\n")
            handler.wfile.flush()

    started = time.monotonic()
    error, requests = ask(behave, timeout_s=0.4, retries=1)
    assert "timeout_s=0.4" in error and len(requests) == 2 and time.monotonic() - started < 5


def test_an_answer_has_a_largest_size_packed_or_not() -> None:
    def flood(handler: Handler, body: dict[str, Any], number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        while not handler.server.released.is_set():
            handler.wfile.write(b" " * 2**20)
        handler.close_connection = True

    bomb = gzip.compress(b" " * 2**28)
    assert len(bomb) < 2**19
    behaviours: list[Behaviour] = [
        flood,
        lambda h, b, n: h.send(200, bomb, Content_Encoding="gzip"),
        lambda h, b, n: h.send(400, bomb, Content_Encoding="gzip"),
    ]
    for behave in behaviours:
        tracemalloc.start()
        error, _ = ask(behave, retries=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(error, str) and "larger than 32 MiB" in error
        assert peak < 150e6


def test_a_packed_answer_is_read_or_refused() -> None:
    whole = json.dumps(completion(RIGHT)).encode()
    packings = {"gzip": gzip.compress(whole), "deflate": zlib.compress(whole), "identity": whole}
    for name, data in packings.items():
        reply, _ = ask(lambda h, b, n, d=data, k=name: h.send(200, d, Content_Encoding=k))
        assert reply.text == RIGHT
    error, _ = ask(lambda h, b, n: h.send(200, whole, Content_Encoding="br"), retries=0)
    assert "packed as 'br'" in error
    error, _ = ask(lambda h, b, n: h.send(200, whole, Content_Encoding="gzip"), retries=0)
    assert isinstance(error, str)


def test_redirects_are_followed_and_come_to_an_end() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if number < 2:
            handler.send(307, b"", Location=f"/v1/{number}")
        else:
            handler.reply(body)

    reply, _ = ask(behave)
    assert reply.text == RIGHT
    error, requests = ask(lambda h, b, n: h.send(307, b"", Location="/v1/again"), retries=0)
    assert "redirect" in error.lower() and len(requests) == 4


@pytest.mark.parametrize("after", ["nothing", "headers", "half a body", "half a stream"])
def test_a_connection_that_breaks_is_a_fault(after: str) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if after != "nothing":
            handler.send_response(200)
            kind = "text/event-stream" if "stream" in after else "application/json"
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
        if after == "half a body":
            handler.wfile.write(b'{"choices": [')
        if after == "half a stream":
            handler.event({"content": "<think>"})
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True

    error, requests = ask(behave)
    assert isinstance(error, str) and "3 times" in error and len(requests) >= 3


def test_a_server_that_is_not_there_is_a_fault() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    client = endpoint(f"http://127.0.0.1:{port}/v1")
    with pytest.raises(EndpointError, match=r"Connection.*3 times"):
        client.reply(HELLO)
    client.close()


def test_thinking_that_the_server_cut_off_is_put_back() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        deltas = [{"reasoning_content": "it is "}, {"reasoning_content": "red"}]
        handler.stream([*deltas, {"content": "<answer>B</answer>"}, "stop"])

    assert ask(behave)[0].text == "<think>it is red</think><answer>B</answer>"
    plain = completion("<answer>B</answer>", reasoning="red")
    assert ask(lambda h, b, n: h.json(plain))[0].text == "<think>red</think><answer>B</answer>"
    cut = completion(None, reasoning_content="and then")
    assert ask(lambda h, b, n: h.json(cut))[0].text == "<think>and then"
    thought: Any
    for thought in ("red", [{"type": "text", "text": "re"}, {"type": "text", "text": "d"}]):
        said = [
            {"type": "thinking", "thinking": thought},
            {"type": "text", "text": "<answer>B</answer>"},
        ]
        right = "<think>red</think><answer>B</answer>"
        answer = completion(said)
        assert ask(lambda h, b, n, a=answer: h.json(a))[0].text == right
        deltas = [{"content": [part]} for part in said]
        assert ask(lambda h, b, n, d=deltas: h.stream([*d, "stop"]))[0].text == right
    mixed = completion(["<answer>", {"type": "text", "text": "B</answer>"}])
    assert ask(lambda h, b, n: h.json(mixed))[0].text == "<answer>B</answer>"
    whole = completion("<think>x</think>y", reasoning="x")
    assert ask(lambda h, b, n: h.json(whole))[0].text == "<think>x</think>y"


def test_content_in_parts_is_joined_and_lone_surrogates_are_replaced() -> None:
    parts = completion([{"type": "text", "text": "a"}, {"type": "text", "text": "\ud800b"}])
    assert ask(lambda h, b, n: h.json(parts))[0].text == "a?b"


def test_usage_that_is_no_count_is_not_known() -> None:
    for usage in (None, "many", {"prompt_tokens": "9", "completion_tokens": -1}, {}):
        answer = {**completion("x"), "usage": usage}
        reply, _ = ask(lambda h, b, n, answer=answer: h.json(answer))
        assert reply.prompt_tokens is None and reply.reply_tokens is None and reply.text == "x"


def test_fields_of_requests_are_as_given_and_a_seed_goes_when_asked_for() -> None:
    drawn = Request(temperature=0.7, max_tokens=9)
    assert drawn.fields() == {"temperature": 0.7, "max_tokens": 9}
    assert Request(temperature=0.7, more={"seed": 5}).fields()["seed"] == 5
    more = {"max_tokens": None, "max_completion_tokens": 20, "temperature": None, "top_k": 3}
    assert Request(more=more).fields() == {"max_completion_tokens": 20, "top_k": 3}
    _, requests = ask(lambda h, b, n: h.reply(b), request=Request(more={"top_k": 3}))
    assert requests[0]["top_k"] == 3
    wrongs: list[dict[str, Any]] = [
        {"more": {"messages": []}},
        {"image_format": "gif"},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"max_tokens": 0},
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"\w+="):
            Request(**wrong)


def test_the_key_comes_from_the_environment_and_is_never_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve(lambda h, b, n: h.error(401, "Incorrect API key: sk-secret-123")) as server:
        client = endpoint(server.url, api_key_env="MY_KEY")
        with pytest.raises(EndpointError) as caught:
            client.reply(HELLO)
        client.close()
        assert server.headers_seen[0]["authorization"] == "Bearer sk-secret-123"
    assert "secret" not in str(caught.value) and "***" in str(caught.value)
    for filler in range(440, 480):  # the cut must not leave half of it
        said = "x" * filler + "sk-secret-123"
        answers: list[Behaviour] = [
            lambda h, b, n, s=said: h.error(401, s),
            lambda h, b, n, s=said[filler - 250 :]: h.json({"id": s}),
        ]
        error, _ = ask(answers[filler % 2], api_key_env="MY_KEY", retries=0)
        assert "sk-s" not in error
    for stream in (True, False):
        reply, _ = ask(
            lambda h, b, n, s=stream: h.reply({"stream": s}, "my key is sk-secret-123"),
            api_key_env="MY_KEY",
        )
        assert reply.text == "my key is ***"
    monkeypatch.setenv("MY_KEY", "none")  # what people set for local servers is a word
    reply, _ = ask(lambda h, b, n: h.reply(b, "there is none"), api_key_env="MY_KEY")
    assert reply.text == "there is none"
    with pytest.raises(ValueError, match=r"NO_KEY.*is set"):
        endpoint("http://127.0.0.1:9/v1", api_key_env="NO_KEY")
    _, requests = ask(lambda h, b, n: h.reply(b))  # local servers need none
    assert len(requests) == 1


@pytest.mark.parametrize(
    "wrong", [{"retries": -1}, {"timeout_s": 0}, {"backoff_s": -1}, {"timeout_s": float("inf")}]
)
def test_arguments_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        endpoint("http://127.0.0.1:9/v1", **wrong)
    with pytest.raises(ValueError, match="which model"):
        Endpoint("http://127.0.0.1:9/v1", "")


def test_images_travel_as_data_urls_and_png_keeps_every_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 42, 3), dtype=np.uint8)
    url = data_url(image)
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), image)
    assert data_url(image, "jpeg").startswith("data:image/jpeg;base64,/9j/")
    parts = [{"type": "text", "text": "one"}, {"type": "image", "image": image}]
    sent = chat_message({"role": "user", "content": parts})
    assert sent["content"] == [
        {"type": "text", "text": "one"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    said = {"role": "assistant", "content": [{"type": "text", "text": "hm"}]}
    assert chat_message(said) == {"role": "assistant", "content": "hm"}
