"""Rollout servers: what goes over the wire, faults, replicas, and a collector that never waits."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from agents_models import DOT, WIDE, load, picture, several, shared, show
from fake_vllm import FakeVLLM, serving
from test_agents_rollout import environments, replies
from worlds import GreySuite

from agents.model.chat import Block
from agents.model.sampling import Sampling
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.ppo_config import make_config
from agents.rollout import RolloutCollector
from agents.rollout import play as greedily
from agents.serving.client import Server, addresses
from agents.serving.continuous import ContinuousCollector
from agents.serving.errors import Mismatch, Refused, Unreachable
from agents.serving.mismatch import RolloutGapError, corrected
from agents.serving.replicas import MOST_FAILURES, Replicas
from agents.serving.session import ServedSession, Target
from agents.serving.wire import Prompt, read, request, sampling_params
from benchmarks.speed.served import Rival
from gym_longvideo.video.errors import VideoError

GREEDY = Sampling(temperature=0.7, max_new_tokens=6, greedy=True)
TARGET = Target("policy", "default")


def replicas(*servers: FakeVLLM, admit: Callable[[Server], object] | None = None, **options: Any):
    timeout_s = options.pop("timeout_s", 20.0)
    return Replicas(
        [Server(each.url, timeout_s=timeout_s) for each in servers],
        admit=admit or (lambda server: server.get("/health")),
        **options,
    )


def collector(envs, servers: Replicas, *, target=lambda: TARGET, **options: Any):
    codec = shared().codec
    return ContinuousCollector(
        envs,
        shared(),
        session=lambda sampling: ServedSession(codec, sampling, servers, target),
        **options,
    )


def played_locally(tasks, envs=None, **options):
    local = RolloutCollector(envs or environments(4), shared(), workers=0, **options)
    with closing(local):
        return local.collect(tasks, GREEDY)


# --- the wire -------------------------------------------------------------------------------------


def test_a_placeholder_an_image_goes_out_and_its_pixels_once():
    codec, rng = shared().codec, np.random.default_rng(0)
    frames = [picture(rng, DOT), picture(rng, WIDE), picture(rng, DOT)]
    prompt = Prompt.of([codec.system("Hi."), codec.user(show("Turn 1.", *frames))])
    body = request("m", prompt, {}, codec.image_token_id, known={prompt.pictures[1].name})
    assert (prompt.ids == codec.image_token_id).sum() == 1 + 2 + 1
    assert body["token_ids"].count(codec.image_token_id) == 3
    rest = [i for i in prompt.ids.tolist() if i != codec.image_token_id]
    assert [i for i in body["token_ids"] if i != codec.image_token_id] == rest
    sent = [part["url"] is not None for part in body["content_parts"]]
    assert sent == [True, False, True] and len({p.name for p in prompt.pictures}) == 3
    with pytest.raises(ValueError, match="was a placeholder sampled"):
        request("m", prompt._replace(pictures=()), {}, codec.image_token_id)


def test_everything_that_decides_a_reply_is_sent_and_no_seed():
    codec = shared().codec
    params = sampling_params(codec, Sampling(temperature=0.7, max_new_tokens=9))
    assert (params["temperature"], params["max_tokens"]) == (0.7, 9)
    assert params["stop_token_ids"] == [codec.end_id] and params["ignore_eos"]
    assert sorted(map(int, params["logit_bias"])) == codec.suppressed.tolist()
    assert params["repetition_penalty"] == 1.0 and "seed" not in params
    assert sampling_params(codec, GREEDY)["temperature"] == 0.0
    for part in ({"top_p": 0.9}, {"top_k": 5}):
        with pytest.raises(ValueError, match=r"use ppo\.top_p=1"):
            sampling_params(codec, Sampling(**part))


def good_answer() -> tuple[Prompt, dict[str, Any]]:
    codec = shared().codec
    prompt = Prompt.of([Block(np.array([5, 6, 7]))])
    choice = {
        "finish_reason": "stop",
        "token_ids": [8, 9, codec.end_id],
        "logprobs": {"content": [{"logprob": p} for p in (-0.5, -1.0, 0.0)]},
        "weight_versions": [{"version": "3", "start": 0, "end": 3}],
    }
    return prompt, {"model": "m", "prompt_token_ids": [5, 6, 7], "choices": [choice]}


def test_a_good_answer_is_a_reply():
    prompt, answer = good_answer()
    reply = read(answer, prompt, shared().codec, 4, model="m", version="3")
    assert reply.ids.tolist() == [8, 9, shared().codec.end_id] and not reply.truncated
    assert reply.log_probs.tolist() == [-0.5, -1.0, 0.0]


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(answer: Any) -> None:
        *way, last = path.split("/")
        for step in way:
            answer = answer[int(step) if step.isdigit() else step]
        answer[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (_set("choices", []), Unreachable, "--enable-scale-out"),
        (_set("choices/0/logprobs", None), Unreachable, "not one of"),
        (_set("prompt_token_ids", None), Unreachable, "not one of"),
        (_set("prompt_token_ids", [5, 6, 6, 7]), Mismatch, "4 tokens of a prompt of 3"),
        (_set("model", "other"), Mismatch, "'other' answered"),
        (_set("choices/0/weight_versions", None), Mismatch, "'3' were pushed"),
        (_set("choices/0/weight_versions", [{"version": "2"}, {"version": "3"}]), Mismatch, "'2'"),
        (_set("choices/0/finish_reason", "abort"), Unreachable, "abort"),
        (_set("choices/0/finish_reason", "length"), Mismatch, "stopped by 'length'"),
        (_set("choices/0/token_ids", []), Mismatch, "0 tokens"),
        (_set("choices/0/token_ids", [8, 9, 10]), Mismatch, "without the end token"),
        (_set("choices/0/token_ids", [8, 9, -1]), Mismatch, "without the end token"),
        (_set("choices/0/logprobs/content", [{"logprob": -1.0}]), Mismatch, "1 log-prob"),
        (_set("choices/0/logprobs/content", [{"logprob": float("nan")}] * 3), Mismatch, "3 log"),
        (_set("choices/0/logprobs/content", [{"logprob": 7.5}] * 3), Mismatch, "or none at all"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(change, error, says):
    prompt, answer = good_answer()
    change(answer)
    with pytest.raises(error, match=says):
        read(answer, prompt, shared().codec, 4, model="m", version="3")


def test_ids_that_are_never_sampled_and_replies_that_the_server_cut_are_refused():
    codec = shared().codec
    for bad in (int(codec.suppressed[0]), 10**6):
        prompt, answer = good_answer()
        answer["choices"][0]["token_ids"][0] = bad
        with pytest.raises(Mismatch, match="never sampled"):
            read(answer, prompt, codec, 4, model="m")
    prompt, answer = good_answer()
    answer["choices"][0] |= {"finish_reason": "length", "token_ids": [8, 9, 9]}
    with pytest.raises(Mismatch, match="raise its --max-model-len"):
        read(answer, prompt, codec, 4, model="m")
    assert read(answer, prompt, codec, 3, model="m").truncated  # that was our own limit


# --- one server -----------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "localhost", "ftp://a", "http://", "http://a:x", "http://a?b"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="is not an address"):
        Server(url)


def test_addresses_are_told_apart():
    two = ["http://a", "http://a/b"]
    assert addresses("") == [] and addresses(" http://a/v1 ,http://a/b") == two
    with pytest.raises(ValueError, match="twice"):
        addresses("http://a,http://a/v1/")


@pytest.mark.parametrize(
    ("fault", "says"),
    [("drop", "RemoteDisconnected"), ("cut", "middle"), ("500", "status 500"), ("text", "JSON")],
)
def test_no_whole_answer_is_a_server_that_cannot_be_reached(fault, says):
    with serving(shared()) as (server,):
        server.fault = lambda path, body, number: fault
        with pytest.raises(Unreachable, match=says):
            Server(server.url).get("/v1/models")
    with pytest.raises(Unreachable, match="ConnectionRefused"):
        Server(server.url).get("/health")


def test_what_a_server_will_not_do_is_told_in_its_words():
    with serving(shared()) as (server,):
        with pytest.raises(Refused, match="status 404: Not Found") as error:
            Server(server.url).post("/nothing")
    assert error.value.status == 404


def test_a_server_that_sends_a_byte_now_and_then_meets_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        over = threading.Event()

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    while not over.wait(0.02):
                        connection.send(b"H")
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(Unreachable, match=r"within 0\.2 s"):
                Server(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout_s=0.2).get("/")
        finally:
            over.set()
            thread.join()


# --- sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [None, 1])
def test_greedy_episodes_are_those_of_the_policy_itself(history):
    """Ids, log-probabilities, records; and every image is sent once."""
    tasks = [3, 0, 2, 1, 4]
    local = played_locally(tasks, history=history, keep_records=True)
    with serving(load()) as (server,):
        with closing(collector(environments(3), replicas(server), history=history,
                               keep_records=True)) as served:  # fmt: skip
            episodes = served.collect(tasks, GREEDY, places=[9, 8, 7, 6, 5])
        bodies = server.generated()
    assert replies(episodes) == replies(local)
    assert max(len(each.turns) for each in episodes) > 1
    assert [e.place for e in episodes] == [9, 8, 7, 6, 5]
    for ours, theirs in zip(episodes, local, strict=True):
        assert (ours.task_id, ours.outcome, ours.frames_shown) == (
            theirs.task_id, theirs.outcome, theirs.frames_shown)  # fmt: skip
        assert ours.record.to_json() == theirs.record.to_json()
        assert [t.reward for t in ours.turns] == [t.reward for t in theirs.turns]
        assert len(ours.frames) == len(theirs.frames)
    assert served.stats["decoded"] == sum(e.counts()["tokens"] for e in local)
    parts = [part for body in bodies for part in body["content_parts"]]
    shown = sum(len(t.user.frames) for e in episodes for t in e.turns)
    assert 0 < sum(part["url"] is not None for part in parts) <= shown < len(parts)


def test_log_probabilities_are_those_of_the_same_suppressed_set():
    codec, rng = shared().codec, np.random.default_rng(0)
    context = [codec.system("Hi."), codec.user(show("Turn 1.", picture(rng, WIDE)))]
    with serving(load()) as (server,):
        session = ServedSession(codec, Sampling(temperature=0.7, max_new_tokens=9),
                                replicas(server), lambda: TARGET)  # fmt: skip
        (reply,) = session.reply(["a"], [context], fresh=True)
    with torch.no_grad():
        scores = shared().score([shared().row([*context, codec.reply(reply.ids)])], temperature=0.7)
    np.testing.assert_allclose(scores.log_probs[0].numpy(), reply.log_probs, atol=1e-4)


def test_images_that_a_server_has_forgotten_are_sent_again():
    codec, rng = shared().codec, np.random.default_rng(0)
    first = [codec.system("Hi."), codec.user(show("Turn 1.", picture(rng), picture(rng)))]
    with serving(load()) as (server,):
        session = ServedSession(codec, GREEDY, replicas(server), lambda: TARGET)
        (said,) = session.reply(["a"], [first], fresh=True)
        server.images = {}
        more = [codec.close(codec.reply(said.ids)), codec.user(show("Turn 2.", picture(rng)))]
        session.reply(["a"], [more])
        sent = [[p["url"] is not None for p in b["content_parts"]] for b in server.generated()]
    assert sent == [[True, True], [False, False, True], [True, True, True]]
    with pytest.raises(ValueError, match="fresh=True"):
        session.reply(["b"], [more])


def test_a_dialogue_that_is_too_long_is_told_once_and_not_tried_elsewhere():
    codec = shared().codec
    with serving(load(), load()) as servers:
        servers[0].context = servers[1].context = 8
        session = ServedSession(codec, GREEDY, replicas(*servers), lambda: TARGET)
        with pytest.raises(Refused, match="longer than the maximum"):
            session.reply(["a"], [[codec.system("Hi."), codec.user(show("Turn 1."))]], fresh=True)
        assert sum(len(each.generated()) for each in servers) == 1


# --- several servers ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["drop", "hang", "500", "cut", "abort", "text"])
def test_a_server_that_fails_in_mid_batch_costs_no_episode(fault):
    tasks = [0, 1, 2, 3, 4, 5]
    local = played_locally(tasks)
    asked_again = threading.Event()

    def admit(server: Server) -> None:
        asked_again.wait()
        raise Unreachable("still ill")

    with serving(load(), load()) as (well, ill):
        begun: list[int] = []

        def fails(path: str, body: Any, number: int) -> str | None:
            begun.append(number)
            return fault if len(begun) > 2 else None  # in the middle of its dialogues

        ill.fault = fails
        group = replicas(well, ill, admit=admit, timeout_s=1.0)
        with closing(group), closing(collector(environments(3), group)) as served:
            assert replies(served.collect(tasks, GREEDY)) == replies(local)
            assert [each.url for each in group.up()] == [well.url]
            asked_again.set()
        assert len(begun) > 2


def test_a_server_that_comes_back_plays_again_and_one_with_other_weights_is_admitted_first():
    admitted: list[str] = []
    codec = shared().codec
    context = [codec.system("Hi."), codec.user(show("Turn 1."))]
    with serving(load()) as (server,):
        server.version = "of somebody else"

        def admit(given: Server) -> None:
            admitted.append(given.url)
            if len(admitted) < 3:
                raise Unreachable("not yet")
            server.version = "default"

        group = replicas(server, admit=admit)
        session = ServedSession(codec, GREEDY, group, lambda: TARGET)
        with closing(group):
            assert len(session.reply(["a"], [context], fresh=True)) == 1
    assert len(admitted) == 3


def test_a_server_that_goes_on_failing_ends_it_and_so_does_one_that_stays_away():
    codec = shared().codec
    context = [codec.system("Hi."), codec.user(show("Turn 1."))]
    with serving(load()) as (server,):
        server.version = "of somebody else"
        with closing(replicas(server)) as group:
            session = ServedSession(codec, GREEDY, group, lambda: TARGET)
            with pytest.raises(Mismatch, match="'of somebody else'"):
                session.reply(["a"], [context], fresh=True)
        assert len(server.generated()) == MOST_FAILURES
    with closing(replicas(server, patience_s=0.1)) as group:
        session = ServedSession(codec, GREEDY, group, lambda: TARGET)
        with pytest.raises(Unreachable, match=r"for 0\.1 s: .*ConnectionRefused"):
            session.reply(["a"], [context], fresh=True)


# --- dialogues that wait for nobody ---------------------------------------------------------------


def test_an_environment_that_sleeps_delays_no_other_episode():
    """The log of events: while one steps, all others come to their end."""
    envs, log = environments(4, GreySuite(8)), []
    others_done = threading.Event()
    step = envs[0].step

    def sleeps(reply: str) -> Any:
        log.append("the slow one steps")
        assert others_done.wait(30)
        return step(reply)

    envs[0].step = sleeps
    with serving(load()) as (server,):
        with closing(collector(envs, replicas(server))) as served:

            def done(count: int) -> None:
                log.append("an episode is over")
                if log.count("an episode is over") == 7:
                    others_done.set()

            episodes = served.collect(range(8), GREEDY, progress=done)
    assert replies(episodes) == replies(played_locally(range(8), environments(4, GreySuite(8))))
    slow = log.index("the slow one steps")
    assert log[slow:].count("an episode is over") == 8
    assert served.stats["waiting"] > 0.1


def test_videos_that_cannot_be_opened_are_replaced_and_tasks_are_opened_ahead():
    suite = GreySuite(9)
    local = played_locally([0, 5, 6, 3], environments(4, suite))
    suite.broken = {"grey-1", "grey-2"}
    spare = iter([5, 6])
    with serving(load()) as (server,):
        envs = environments(2, suite)
        with closing(collector(envs, replicas(server))) as served:
            episodes = served.collect([0, 1, 2, 3], GREEDY, replacement=lambda: next(spare, None),
                                      upcoming=[7, 8])  # fmt: skip
            ahead = {task for task, _ in served._ready.values()}
            again = served.collect([8, 7], GREEDY)
        with closing(collector(environments(2, suite), replicas(server))) as served2:
            with pytest.raises(VideoError):
                served2.collect([0, 1], GREEDY)
            assert len(served2.collect([0, 3], GREEDY)) == 2  # all is well again
    assert sorted(task for task, _ in served.skipped) == [1, 2]
    assert sorted(map(str, replies(episodes))) == sorted(map(str, replies(local)))
    assert ahead == {7, 8} and [e.task_id for e in again] == ["grey-8", "grey-7"]


def test_what_ends_one_episode_ends_all_and_nobody_is_left_waiting():
    with serving(load()) as (server,):
        server.fault = lambda path, body, number: "hang" if number else None
        envs = environments(3)

        def breaks(reply: str) -> Any:
            raise RuntimeError("the environment broke")

        for env in envs:
            env.step = breaks
        with closing(collector(envs, replicas(server))) as served:
            with pytest.raises(RuntimeError, match="the environment broke"):
                served.collect([0, 1, 2], GREEDY)


def test_evaluations_play_there_too():
    with serving(load()) as (server,):
        with closing(collector(environments(2), replicas(server))) as served:
            there = greedily(served, [0, 1, 2], GREEDY).result()
    with closing(RolloutCollector(environments(2), shared())) as local:
        assert there == greedily(local, [0, 1, 2], GREEDY).result()


def test_several_dialogues_may_be_asked_for_at_once():
    tasks = [0, 1, 2, 3]
    with serving(load()) as (server,):
        group = replicas(server)
        lockstep = RolloutCollector(
            environments(4),
            shared(),
            session=lambda policy, sampling, _: ServedSession(
                policy.codec, sampling, group, lambda: TARGET
            ),
        )
        with closing(lockstep):
            assert replies(lockstep.collect(tasks, GREEDY)) == replies(played_locally(tasks))


def test_a_rival_plays_scripted_dialogues_with_empty_caches():
    policy, codec = load(), shared().codec
    rng = np.random.default_rng(0)
    contexts = [[codec.system("Hi."), codec.user(show("Turn 1.", picture(rng)))] for _ in range(2)]
    with serving(load()) as (server,):
        rival = Rival(server.url, policy)
        before = len(server.generated())
        policy.codec.end_id = server.policy.codec.end_id = -1
        for _ in range(2):
            rival.play([contexts, contexts], 5)
        bodies = server.generated()[before:]
        assert sum(path == "/reset_prefix_cache" for path, _ in server.asked) == 2
    assert [body["sampling_params"]["stop_token_ids"] for body in bodies] == [[]] * 8
    sent = [body["content_parts"][0]["url"] is not None for body in bodies]
    assert sent == [True, True, False, False] * 2


def test_an_engines_probabilities_are_made_up_for():
    """Two episodes; the policy's advantage of a token is multiplied by min(pi / mu, 2)."""
    policy = load()
    episodes = several(policy.codec)[:2]
    config = make_config("tiny", beta=0.0, critic="head", whiten=False)
    learner = PPOLearner(policy, config, processes=Processes("cpu"))
    batch = learner.prepare(episodes)
    said = batch.old_log_probs + torch.tensor([0.0, 1.0, -2.0]).repeat(99)[: batch.mask.shape[1]]
    for i, each in enumerate(episodes):
        flat, done = said[i][batch.mask[i]].numpy(), 0
        for turn in each.turns:
            n = len(turn.reply.ids)
            turn.reply = turn.reply._replace(log_probs=flat[done : done + n])
            done += n
    metrics = learner.batch_metrics(batch, episodes)
    ask = {"limit": 2.0, "clip": 2.0}
    weighted, told = corrected(batch, episodes, metrics, learner.processes, **ask)
    ratio = torch.tensor([1.0, math.exp(-1.0), 2.0]).repeat(99)[: batch.mask.shape[1]]
    expected = torch.where(batch.mask, batch.advantages * ratio, batch.advantages)
    torch.testing.assert_close(weighted.advantages, expected)
    assert torch.equal(weighted.returns, batch.returns)
    assert told["rollout_is"] == pytest.approx(float(ratio.expand_as(said)[batch.mask].mean()))
    clipped = (batch.mask & (ratio == 2.0)).sum() / batch.mask.sum()
    assert told["rollout_is_clipped"] == pytest.approx(float(clipped))
    assert corrected(batch, episodes, metrics, learner.processes, limit=2.0, clip=None)[0] is batch
    with pytest.raises(RolloutGapError, match=r"rollout_gap_limit=0\.5"):
        corrected(batch, episodes, metrics, learner.processes, limit=0.5, clip=2.0)
    nothing = {**metrics, "rollout_gap": float("nan")}
    with pytest.raises(RolloutGapError):
        corrected(batch, episodes, nothing, learner.processes, **ask)
