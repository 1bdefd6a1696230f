from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from benchmark_players import factory, jobs_of, play, reply_of, suite_of
from chat_server import RIGHT, Handler, completion, serve

from benchmarks.players.endpoint import EndpointDown, EndpointPlayer
from benchmarks.players.player import (
    Played,
)


def endpoint_player(url: str, suite: Any, **options: Any) -> EndpointPlayer:
    given = {"model": "m", "retries": 1, "backoff_s": 0.0, "timeout_s": 20.0, **options}
    return EndpointPlayer(url, factory(suite), **given)


def test_an_endpoint_plays_dialogues_with_images() -> None:
    suite = suite_of(4)
    with serve(lambda h, body, n: h.reply(body, reply_of(body))) as server:
        played = play(endpoint_player(server.url, suite, concurrency=2), jobs_of(suite))
    for key, each in played.items():
        assert each.record is not None and each.error == ""
        task = suite[suite.index_of(key)]
        assert [turn["op"] for turn in each.record.turns] == ["retrieve", "answer"]
        assert each.record.turns[0]["interval"] == [2, 5]
        assert each.record.outcome == ("correct" if task.answer_index == 0 else "wrong")
        assert each.record.turns[1]["reply"] == RIGHT
        assert each.cost["requests"] == 2 and each.cost["retries"] == 0
        assert (each.cost["prompt_tokens"], each.cost["reply_tokens"]) == (200, 14)
        assert each.cost["prefill_s"] > 0 and each.cost["generate_s"] >= 0
        assert each.cost["visual_tokens"] is None
        assert each.record.frames_shown == 6
        assert each.cost["frames_decoded"] == 5  # one of the retrieval was in the overview
    longest = max(server.requests, key=lambda body: len(body["messages"]))["messages"]
    assert [message["role"] for message in longest] == ["system", "user", "assistant", "user"]
    assert isinstance(longest[0]["content"], str) and "long video" in longest[0]["content"]
    images = [part for part in longest[1]["content"] if part["type"] == "image_url"]
    assert len(images) == 4 and images[0]["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("text", ["", "nonsense", "<answer>A</answer>"])
def test_a_malformed_reply_is_the_policys_and_counts(text: str) -> None:
    suite = suite_of(1)
    with serve(lambda h, body, n: h.reply(body, text)) as server:
        (played,) = play(endpoint_player(server.url, suite), jobs_of(suite)).values()
    assert played.record is not None and played.record.outcome == "unanswered"
    assert [turn["op"] for turn in played.record.turns] == ["malformed"] * 3
    assert [turn["reply"] for turn in played.record.turns] == [text] * 3


@pytest.mark.parametrize("opened", [False, True])
def test_a_thought_that_the_prompt_opened_is_read_where_that_is_said(opened: bool) -> None:
    suite = suite_of(1)
    replies = ["I look.\n</think>\n\n<retrieve>0, 1</retrieve>", "so\n</think><answer>A</answer>"]
    with serve(lambda h, body, n: h.reply(body, replies[min(n, 1)])) as server:
        player = endpoint_player(server.url, suite, thought_opened=opened)
        assert player.policy.get("thought_opened", False) is opened
        (played,) = play(player, jobs_of(suite)).values()
    assert played.record is not None
    found = [turn["op"] for turn in played.record.turns]
    assert found == (["retrieve", "answer"] if opened else ["malformed"] * 3)
    if opened:
        assert played.record.turns[0]["reply"] == f"<think>{replies[0]}"
        said = server.requests[1]["messages"][2]
        assert said == {"role": "assistant", "content": f"<think>{replies[0]}"}


def test_the_same_policy_has_the_same_accuracy_in_whatever_form_a_server_replies() -> None:
    suite = suite_of(6)
    think, act = "it is red", "<answer>A</answer>"
    plain = f"<think>{think}</think>{act}"
    forms: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain": (completion(plain), {}),
        "cut off": (completion(act, reasoning_content=think), {}),
        "newer": (completion(act, reasoning=think), {}),
        "parts": (
            completion([{"type": "thinking", "thinking": think}, {"type": "text", "text": act}]),
            {},
        ),
        "opened": (completion(f"{think}</think>{act}"), {"thought_opened": True}),
    }
    found = {}
    for name, (answer, options) in forms.items():

        def behave(handler: Handler, body: dict[str, Any], number: int, a: Any = answer) -> None:
            handler.json(a)

        with serve(behave) as server:
            played = play(endpoint_player(server.url, suite, **options), jobs_of(suite))
        found[name] = [each.record.outcome for _, each in sorted(played.items()) if each.record]
    assert len(found["plain"]) == 6 and all(each == found["plain"] for each in found.values())


REFUSALS = {
    "vLLM": (400, {"error": {"message": "longer than the maximum model length", "code": 400}}),
    "DashScope": (400, {"error": {"code": "invalid_parameter_error", "message": "<400> Internal"
                                  "Error.Algo.InvalidParameter: Range of input length should be"}}),
    "Gemini": (400, [{"error": {"code": 400, "message": "Unable to submit request", "status":
                                "INVALID_ARGUMENT"}}]),
    "TGI": (422, {"error": "Input validation error: `inputs` must have less than 9 tokens",
                  "error_type": "validation"}),
    "a proxy": (413, "<html>Request Entity Too Large</html>"),
    "inside a 200": (200, {"error": {"code": 400, "message": "zu lang"}}),
}  # fmt: skip


def test_the_same_policy_has_the_same_accuracy_in_whatever_words_a_server_refuses() -> None:
    suite = suite_of(6)
    long = {suite[i].question for i in (1, 4)}
    found = {}
    for name, (status, answer) in REFUSALS.items():

        def behave(
            handler: Handler, body: dict[str, Any], number: int, s: int = status, a: Any = answer
        ) -> None:
            if any(question in str(body["messages"]) for question in long):
                handler.json(a, s)
            else:
                handler.reply(body)

        with serve(behave) as server:
            played = play(endpoint_player(server.url, suite), jobs_of(suite))
        found[name] = [each.record.outcome for _, each in sorted(played.items()) if each.record]
        assert sum(
            all(turn.get("refused") for turn in each.record.turns)
            for each in played.values()
            if each.record
        ) == len(long)  # fmt: skip
    assert len(found["vLLM"]) == 6 and all(each == found["vLLM"] for each in found.values())


def test_an_endpoint_that_fails_some_episodes_loses_only_those() -> None:
    suite = suite_of(5, shut=(4,))
    bad = suite[1].question, suite[3].question

    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        asked = str(body["messages"])
        turns = len(body["messages"])
        if bad[0] in asked or (bad[1] in asked and turns > 2):  # at first, or in the second turn
            handler.error(500, "out of memory")
        else:
            handler.reply(body, reply_of(body))

    assert len({*bad, suite[0].question, suite[2].question}) == 4
    with serve(behave) as server:
        played = play(endpoint_player(server.url, suite, concurrency=3), jobs_of(suite))
    results = [played[suite[index].task_id] for index in range(5)]
    assert [each.record is not None for each in results] == [True, False, True, False, False]
    assert "EndpointError" in results[1].error and "out of memory" in results[3].error
    assert results[4].error.startswith("VideoOpenError")


def test_an_endpoint_that_is_gone_ends_the_run_after_so_many_episodes() -> None:
    suite = suite_of(30)

    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if len(server.requests) > 4:
            handler.error(503, "overloaded")
        else:
            handler.reply(body)

    with serve(behave) as server:
        player = endpoint_player(server.url, suite, concurrency=1, patience=3)
        played: list[Played] = []
        with pytest.raises(EndpointDown, match=r"3 episodes in a row.*overloaded"):
            for each in player.play(jobs_of(suite)):
                played.append(each)
        player.close()
    assert [each.record is not None for each in played] == [True] * 4 + [False] * 3


def test_videos_that_are_missing_do_not_use_up_the_patience_with_an_endpoint() -> None:
    suite = suite_of(8, shut=(0, 1, 2, 3, 4, 5))
    with serve(lambda h, body, n: h.reply(body)) as server:
        player = endpoint_player(server.url, suite, concurrency=1, patience=2)
        played = play(player, jobs_of(suite))
    assert sum(each.record is not None for each in played.values()) == 2


def test_retries_are_counted_in_the_cost_of_the_episode() -> None:
    suite = suite_of(1)

    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if number % 2 == 0:
            handler.error(500)
        else:
            handler.reply(body, reply_of(body))

    with serve(behave) as server:
        (played,) = play(endpoint_player(server.url, suite), jobs_of(suite)).values()
    assert played.cost["retries"] == 2 and played.cost["requests"] == 2


def test_closing_an_endpoint_player_gives_up_requests_that_hang() -> None:
    suite = suite_of(2)
    with serve(lambda h, body, n: h.server.released.wait(30)) as server:  # type: ignore[arg-type]
        player = endpoint_player(server.url, suite, concurrency=2)
        jobs = player.play(jobs_of(suite))
        starter = threading.Thread(target=lambda: next(jobs, None), daemon=True)
        starter.start()
        deadline = time.monotonic() + 20
        while not server.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        started = time.monotonic()
        player.close()
        assert time.monotonic() - started < 5
