"""What a chat endpoint refuses: this dialogue, or every one; and errors inside its answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import HELLO, RIGHT, Behaviour, Handler, ask, completion, endpoint, serve

from benchmarks.players.client import EndpointError, chat_message

CASES = Path(__file__).parents[2] / "shared" / "cases" / "refusals.jsonl"
REFUSALS = [
    (400, "context", "This model's maximum context length is 4096 tokens. However, you requested "
     "5000 tokens (4488 in the messages, 512 in the completion)."),
    (400, "context", "You passed 4097 input tokens and requested 512 output tokens. However, the "
     "model's context length is only 4096 tokens."),
    (400, "context", "The decoder prompt (length 5000) is longer than the maximum model length of "
     "4096."),
    (400, "context", "The input (5000 tokens) is longer than the model's context length (4096)."),
    (400, "context", "the request exceeds the available context size, try increasing it"),
    (400, "context", "prompt is too long: 208310 tokens > 200000 maximum"),
    (400, "context", "The input token count (9000) exceeds the maximum number of tokens allowed."),
    (400, "context", "<400> InternalError.Algo.InvalidParameter: Range of input length should be "
     "[1, 129024]"),
    (422, "context", "Input validation error: `inputs` must have less than 4096 tokens. Given: 9"),
    (422, "context", "At most 4 image(s) may be provided in one prompt."),
    (400, "context", "Too many images in request: 33 > 32."),
    (413, "context", "Too many tokens"),
    (413, "other", "Request Entity Too Large"),
    (400, "other", "Das ist zu lang."),
    (400, "other", ""),
    (400, "policy", "The response was filtered due to the prompt triggering the content management "
     "policy."),
    (400, "policy", "Your request was rejected as a result of our safety system."),
]  # fmt: skip

LONG = [{"role": "user", "content": "hello " * 1000}]


def is_long(body: dict[str, Any]) -> bool:
    return len(json.dumps(body["messages"])) > 4000


def ask_at_length(refuse: Behaviour, **options: Any) -> Any:
    """Ask something long of a server that answers what is short, and refuses what is not."""

    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        (refuse(handler, body, number) if is_long(body) else handler.reply(body))

    with serve(behave) as server:
        client = endpoint(server.url, **options)
        try:
            return client.reply(LONG), server.requests
        except EndpointError as error:
            return str(error), server.requests
        finally:
            client.close()


@pytest.mark.parametrize(("status", "reason", "message"), REFUSALS)
def test_a_dialogue_refused_for_what_it_holds_is_an_empty_reply(
    status: int, reason: str, message: str
) -> None:
    reply, requests = ask_at_length(lambda handler, body, number: handler.error(status, message))
    assert reply == ("", None, None, None, None, 0, reason)
    # Not tried again; in other forms only where the words may mean the form.
    forms = 3 if reason == "other" and status != 413 else 1
    assert [is_long(each) for each in requests] == [True] * forms + [False]


@pytest.mark.parametrize(("status", "reason", "message"), REFUSALS)
def test_an_endpoint_that_refuses_everything_is_a_fault(
    status: int, reason: str, message: str
) -> None:
    error, _ = ask(lambda handler, body, number: handler.error(status, message))
    assert isinstance(error, str) and message[:60] in error and "minimal dialogue" in error


@pytest.mark.skipif(not CASES.exists(), reason="needs the cases beside the project")
def test_real_refusals_are_empty_replies() -> None:
    for case in map(json.loads, CASES.read_text().splitlines()):
        reply, _ = ask_at_length(lambda h, b, n, c=case: h.json(c["body"], c["status"]))
        assert (reply.text, reply.refused) == ("", "context"), case["server"]


def test_later_refusals_cost_one_request_and_a_probe() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        handler.error(400, "zu lang") if is_long(body) else handler.reply(body)

    with serve(behave) as server:
        client = endpoint(server.url)
        assert [client.reply(LONG).refused for _ in range(3)] == ["other"] * 3
        assert client.reply(HELLO).text == RIGHT
        client.close()
    assert len(server.requests) == (3 + 1) + 2 * (1 + 1) + 1


@pytest.mark.parametrize("asked", ["images", "a system message"])
def test_a_model_that_takes_no_dialogue_of_the_kind_is_a_fault(asked: str) -> None:
    image = {"type": "image", "image": np.zeros((8, 8, 3), np.uint8)}
    text = {"type": "text", "text": "hello " * 1000}
    rules = {"role": "system", "content": "Rules."}
    dialogue = [rules, chat_message({"role": "user", "content": [image, text, image]})]

    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        held = "image_url" if asked == "images" else '"system"'
        handler.error(400, "not for me") if held in json.dumps(body["messages"]) else handler.reply(
            body
        )

    with serve(behave) as server:
        client = endpoint(server.url)
        with pytest.raises(EndpointError, match=r"not for me.*minimal dialogue"):
            client.reply(dialogue)
        client.close()
    probe = server.requests[-1]["messages"]
    assert [each["role"] for each in probe] == ["system", "user"]
    assert json.dumps(probe).count("image_url") == 2 and not is_long(server.requests[-1])


def test_a_probe_that_gets_no_answer_is_tried_again_and_nothing_is_held_against_the_model() -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        handler.error(400, "zu lang") if is_long(body) else handler.error(503, "busy")

    with serve(behave) as server:
        client = endpoint(server.url)
        with pytest.raises(EndpointError, match=r"zu lang.*busy.*3 times"):
            client.reply(LONG)
        client.close()


def test_a_refusal_is_known_by_its_code_and_within_an_answer_too() -> None:
    coded = {"error": {"message": "no", "code": "context_length_exceeded"}}
    assert ask_at_length(lambda h, b, n: h.json(coded, 400))[0].refused == "context"
    filtered = {"error": {"message": "no", "code": "content_filter"}}
    assert ask_at_length(lambda h, b, n: h.json(filtered, 400))[0].refused == "policy"
    late = b'data: {"error": {"message": "longer than the context length", "code": 400}}\n\n'
    assert ask_at_length(lambda h, b, n: h.stream([late]))[0].refused == "context"
    for code in (400, "400"):
        inside = {"error": {"message": "zu lang", "code": code}}
        assert ask_at_length(lambda h, b, n, i=inside: h.json(i))[0].refused == "other"
    worded = {"error": "the prompt is longer than the context length"}
    assert ask_at_length(lambda h, b, n: h.json(worded))[0].refused == "context"


ERRORS: dict[str, Any] = {
    "an object": {"error": {"message": "cuda went away", "code": 500}},
    "a string": {"error": "cuda went away"},
    "beside a choice": {**completion(RIGHT), "error": {"message": "cuda went away"}},
    "in a choice": {
        "choices": [
            {
                "message": {"content": "<think>s"},
                "error": {"code": 502, "message": "cuda went away"},
            }
        ]
    },
    "of old vLLM": {"object": "error", "message": "cuda went away", "code": 500},
}


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_inside_an_answer_is_a_fault(kind: str) -> None:
    error, _ = ask(lambda h, b, n: h.json(ERRORS[kind]))
    assert isinstance(error, str) and "cuda went away" in error and "3 times" in error


def test_a_reply_that_the_server_ended_with_an_error_is_a_fault() -> None:
    broken = {"choices": [{"message": {"content": RIGHT}, "finish_reason": "error"}]}
    error, _ = ask(lambda h, b, n: h.json(broken))
    assert isinstance(error, str) and "ended the reply with an error" in error
    half = {"choices": [{"delta": {}, "finish_reason": "error"}]}
    event = b"data: " + json.dumps(half).encode() + b"\n\n"
    error, _ = ask(lambda h, b, n: h.stream([{"content": RIGHT}, event]))
    assert isinstance(error, str) and "ended the reply with an error" in error


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Unrecognized request argument supplied: top_k"),
        (400, "max_tokens is too large: 9000. This model supports at most 4096 completion tokens"),
        (404, "The model `m` with a large context length does not exist"),
        (401, "the key breaks the usage policy"),
        (500, "context length exceeded"),
    ],
)
def test_what_is_refused_for_anything_else_is_an_error(status: int, message: str) -> None:
    error, _ = ask(lambda handler, body, number: handler.error(status, message))
    assert isinstance(error, str) and message in error


def test_the_first_refusal_is_logged_and_later_requests_stream_as_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if is_long(body):
            handler.error(400, "maximum context length is 4096 tokens")
        else:
            handler.reply(body)

    with serve(behave) as server:
        client = endpoint(server.url)
        refused = [client.reply(each).refused for each in (LONG, LONG, HELLO)]
        assert refused == ["context", "context", ""]
        client.close()
    assert all("stream_options" in request for request in server.requests)
    assert [record.getMessage().count("4096") for record in caplog.records
            if record.name == "benchmarks.players.client"] == [1]  # fmt: skip
