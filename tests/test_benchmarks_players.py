from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import tyro
from agents_models import model_dir
from agents_training import ENV, small, trained
from chat_server import RIGHT, Handler, serve

from agents.checkpoint import load_policy
from agents.policy import MLLMPolicy
from agents.tiny import ENV_OPTIONS, SUITE_OPTIONS, WEIGHTS
from benchmarks.card import Card
from benchmarks.controls import ControlledSuite
from benchmarks.crew import Crew
from benchmarks.endpoint_player import EndpointDown, EndpointPlayer
from benchmarks.evaluate import evaluate
from benchmarks.evaluate_config import EvaluateConfig
from benchmarks.model_player import (
    TRAINED,
    ModelPlayer,
    departures,
    stack,
    trained_with,
    weights_digest,
)
from benchmarks.players import (
    Job,
    MeteredText,
    Played,
    Player,
    ScriptedPlayer,
    make_player,
    seed_of,
    workers,
)
from benchmarks.runs import RunWriter, read_run
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.task import Task
from gym_longvideo.video.errors import VideoOpenError

SMALL: dict[str, Any] = {"frame_size": 28, "pool_size": 16, "frame_budget": 8}


class Broken(HaystackSuite):
    """A suite some of whose videos do not open."""

    shut: tuple[int, ...] = ()

    def open_video(self, task: Task, *, backend: str = "pyav", isolate: bool = False) -> Any:
        if self.index_of(task.task_id) in self.shut:
            raise VideoOpenError("is empty", path=task.video)
        return super().open_video(task, backend=backend, isolate=isolate)


def suite_of(size: int, shut: tuple[int, ...] = (), control: str = "none") -> ControlledSuite:
    inner = Broken("val", size=size, families="needle")
    inner.shut = shut
    return ControlledSuite(inner, control)


def factory(suite: Any, **settings: Any) -> Callable[[], LongVideoQAEnv]:
    return lambda: LongVideoQAEnv(suite=suite, **{**SMALL, **settings})


def jobs_of(suite: ControlledSuite) -> list[Job]:
    return [Job(key, index) for index, key in enumerate(suite.keys())]


def play(player: Player, jobs: list[Job]) -> dict[str, Played]:
    try:
        played = list(player.play(jobs))
    finally:
        player.close()
    assert sorted(each.key for each in played) == sorted(job.key for job in jobs)
    return {each.key: each for each in played}


def reply_of(body: dict[str, Any]) -> str:
    """Say what a good model would: look once, then answer."""
    turns = sum(message["role"] == "assistant" for message in body["messages"])
    return RIGHT if turns else "<think>look</think><retrieve>2, 5</retrieve>"


@pytest.mark.parametrize("policy", ["random", "bisect"])
def test_what_a_scripted_agent_does_depends_on_the_key_alone(policy: str) -> None:
    suite = suite_of(12)
    jobs = jobs_of(suite)
    one = play(ScriptedPlayer(policy, factory(suite), concurrency=1), jobs)
    many = play(ScriptedPlayer(policy, factory(suite), concurrency=4), jobs[::-1])
    some = play(ScriptedPlayer(policy, factory(suite), concurrency=2), jobs[5:7])
    assert {key: each.record for key, each in one.items()} == {
        key: each.record for key, each in many.items()
    }
    assert all(some[key].record == one[key].record for key in some)
    other = play(ScriptedPlayer(policy, factory(suite), seed=1), jobs)
    assert any(other[key].record != one[key].record for key in one)


def test_costs_of_a_scripted_agent_are_frames_and_seconds() -> None:
    suite = suite_of(1)
    (played,) = play(ScriptedPlayer("bisect", factory(suite)), jobs_of(suite)).values()
    assert played.record is not None and played.cost["decode_s"] > 0
    assert played.cost["frames_decoded"] == played.record.frames_shown > 4
    nothing = {name for name, value in played.cost.items() if value is None}
    assert nothing == {"prompt_tokens", "visual_tokens", "reply_tokens", "prefill_s", "generate_s"}
    assert played.cost["requests"] == played.cost["retries"] == 0


def test_seeds_of_episodes_are_the_same_everywhere() -> None:
    assert seed_of(0, "val-00000-needle") == 888936821 != seed_of(1, "val-00000-needle")
    assert len({seed_of(0, str(key)) for key in range(1000)}) == 1000
    assert 0 <= min(seed_of(0, str(key)) for key in range(1000))
    assert seed_of(0, "\ud800") >= 0


def test_a_video_that_does_not_open_is_a_fault_and_the_others_are_played() -> None:
    suite = suite_of(6, shut=(0, 3, 5))
    played = play(ScriptedPlayer("random", factory(suite), concurrency=2), jobs_of(suite))
    faults = {key for key, each in played.items() if each.record is None}
    assert faults == {suite[index].task_id for index in (0, 3, 5)}
    for key in faults:
        assert played[key].error.startswith("VideoOpenError: ") and "is empty" in played[key].error


def test_a_fault_in_mid_episode_is_a_fault_too(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = suite_of(2)
    genuine = LongVideoQAEnv._show

    def show(env: LongVideoQAEnv, view: Any) -> None:
        if env.episode is not None and env.episode.task.task_id == suite[1].task_id:
            raise VideoOpenError("broke off")
        genuine(env, view)

    monkeypatch.setattr(LongVideoQAEnv, "_show", show)
    played = play(ScriptedPlayer("bisect", factory(suite)), jobs_of(suite))
    assert played[suite[0].task_id].record is not None
    assert played[suite[1].task_id] == (
        suite[1].task_id, None, {}, "VideoOpenError: broke off"
    )  # fmt: skip


def test_an_error_of_ours_ends_the_play_and_is_not_called_a_fault() -> None:
    class Wrong(HaystackSuite):
        def __getitem__(self, index: int) -> Task:
            if index == 2:
                raise ZeroDivisionError("a defect")
            return super().__getitem__(index)

    player = ScriptedPlayer("random", factory(Wrong("val", size=4)), concurrency=1)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        list(player.play([Job(str(i), i) for i in range(4)]))
    player.close()

    def no_env() -> LongVideoQAEnv:
        raise ValueError("no such environment")

    player = ScriptedPlayer("random", no_env)
    with pytest.raises(ValueError, match="no such environment"):
        list(player.play([Job("a", 0)]))
    player.close()


def test_threads_stop_when_nobody_takes_results_any_more() -> None:
    done: list[int] = []

    def work(_: object, job: int) -> int:
        done.append(job)
        return job

    crew = Crew(object, work, lambda tool: None, 2, grace_s=5.0)
    results: Iterator[int] = crew.run(range(10_000))
    assert next(results) in range(10)
    crew.close()
    count = len(done)
    time.sleep(0.05)
    assert len(done) == count < 100 and crew.stopped
    crew.close()


def test_closing_does_not_wait_for_work_that_hangs() -> None:
    release = threading.Event()
    crew = Crew(object, lambda tool, job: release.wait(30), lambda tool: None, 1, grace_s=0.1)
    results = crew.run([1])
    starter = threading.Thread(target=lambda: next(results, None), daemon=True)
    starter.start()
    time.sleep(0.05)
    started = time.monotonic()
    crew.close()
    assert time.monotonic() - started < 5
    release.set()


def test_nothing_to_play_gives_nothing() -> None:
    suite = suite_of(1)
    player = ScriptedPlayer("random", factory(suite))
    assert list(player.play([])) == []
    player.close()


def test_policies_are_told_apart_and_unknown_ones_refused(tmp_path: Path) -> None:
    make_env = factory(suite_of(1))
    scripted = make_player("noisy_oracle", make_env, options={"interval_noise": 2})
    assert scripted.protocol == "numeric"
    assert scripted.policy == {
        "kind": "scripted", "name": "noisy_oracle", "options": {"interval_noise": 2},
    }  # fmt: skip
    endpoint = make_player("http://127.0.0.1:9/v1", make_env, options={"model": "m"})
    assert endpoint.protocol == "tags"
    assert endpoint.policy == {
        "kind": "endpoint", "name": "m", "image_format": "png",
        "request": {"temperature": 0.0, "max_tokens": 512},
    }  # fmt: skip
    endpoint.close()
    refused: list[tuple[str, dict[str, Any], str]] = [
        ("clever", {}, r"'clever' is unknown; use one of \['random'"),
        ("random", {"noise": 1}, r"takes no \['noise'\]"),
        ("random", {"seed": 1}, "seeded by their keys"),
        ("http://127.0.0.1:9/v1", {}, "which model"),
        ("http://127.0.0.1:9/v1", {"modle": "m"}, "modle.*use some of"),
        ("http://127.0.0.1:9/v1", {"model": "m", "patience": 0}, "patience=0"),
        (str(tmp_path), {}, "is no checkpoint"),
        (str(WEIGHTS), {"history": 1, "temperature": 1}, "temperature.*use some of"),
        (str(WEIGHTS), {"dtype": "float33"}, "float33"),
    ]
    for policy, options, says in refused:
        with pytest.raises(ValueError, match=says):
            make_player(policy, make_env, options=options)
    for wrong in (-1, True, 1.5):
        with pytest.raises(ValueError, match="concurrency="):
            workers(wrong)  # type: ignore[arg-type]
    assert workers(3) == 3 and workers(0) >= 1


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


def test_a_model_plays_what_it_would_play_alone_and_its_tokens_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = ControlledSuite(HaystackSuite("val", size=5, **SUITE_OPTIONS))
    jobs = jobs_of(suite)
    genuine = MeteredText.step

    def look_first(env: MeteredText, action: str) -> Any:
        look = "<think></think><retrieve>10, 30</retrieve>"
        return genuine(env, look if env.turn.first else action)

    monkeypatch.setattr(MeteredText, "step", look_first)

    def player(concurrency: int) -> ModelPlayer:
        make_env = factory(suite, **ENV_OPTIONS)
        return ModelPlayer(
            str(WEIGHTS), make_env, concurrency=concurrency, max_new_tokens=16, device="cpu"
        )

    alone, together = play(player(1), jobs), play(player(3), jobs)
    for key in alone:
        one, other = alone[key], together[key]
        assert one.record == other.record and one.record is not None
        for name in ("prompt_tokens", "visual_tokens", "reply_tokens", "requests"):
            assert one.cost[name] == other.cost[name]
        # A frame of 28 pixels is one token, and each was fed once.
        assert one.cost["visual_tokens"] == one.record.frames_shown == 16
        assert one.cost["prompt_tokens"] > one.cost["visual_tokens"]
        turns = len(one.record.turns)
        assert one.cost["requests"] == turns and turns < one.cost["reply_tokens"] <= 16 * turns
        assert one.cost["prefill_s"] > 0 and one.cost["generate_s"] > 0
        assert 8 < one.cost["frames_decoded"] <= 16


@pytest.mark.parametrize("shut", [(0,), (6,), (1, 2, 5), (0, 1, 2, 3, 4, 5), tuple(range(7))])
def test_a_model_plays_around_videos_that_do_not_open(shut: tuple[int, ...]) -> None:
    suite = suite_of(7, shut=shut)
    player = ModelPlayer(
        str(model_dir()), factory(suite), concurrency=3, max_new_tokens=3, device="cpu"
    )
    played = play(player, jobs_of(suite))
    for index in range(7):
        each = played[suite[index].task_id]
        assert (each.record is None) == (index in shut)
        if each.record is None:
            assert each.error.startswith("VideoOpenError")
        else:
            assert each.record.task["task_id"] == each.key


def test_the_card_of_a_model_names_its_weights() -> None:
    player = ModelPlayer(str(WEIGHTS), factory(suite_of(1)), device="cpu")
    again = MLLMPolicy.from_pretrained(WEIGHTS, device="cpu")
    assert player.policy == {
        "kind": "model", "name": "tiny", "weights": weights_digest(again), **stack(again),
        "sampling": "greedy", "max_new_tokens": 512, "history": None,
    }  # fmt: skip
    weight = again.actor_parameters()[-1]
    weight.data[..., -1] += 1e-4
    assert weights_digest(again) != player.policy["weights"]
    player.close()


def test_the_card_of_a_model_names_what_its_weights_run_in(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = MLLMPolicy.from_pretrained(WEIGHTS, device="cpu")
    own = stack(policy)
    assert own == stack(MLLMPolicy.from_pretrained(WEIGHTS, device="cpu"))
    assert own["attention"] == {"text": "sdpa", "vision": "eager"}
    assert (own["dtype"], own["device"]) == ("float32", "cpu")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    assert own["versions"] == versions
    assert own["images"]["patch"] == 14 and len(own["images"]["mean"]) == 3

    def changed() -> list[str]:
        now = stack(policy)
        return [knob for knob in own if now[knob] != own[knob]]

    tokenizer: Any = policy.codec.tokenizer
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "chat_template", tokenizer.chat_template + " ")
        assert changed() == ["chat_template"]
    with monkeypatch.context() as patch:
        patch.setattr(policy.encoder, "std", (0.5, 0.5, 0.5))
        assert changed() == ["images"]
    for library in (torch, transformers):
        with monkeypatch.context() as patch:
            patch.setattr(library, "__version__", "0.1")
            assert changed() == ["versions"]
    with monkeypatch.context() as patch:
        patch.setattr(MLLMPolicy, "device", torch.device("cuda", 1))
        assert changed() == ["device"] and stack(policy)["device"] == "cuda"
    tokenizer.add_tokens(["unheard-of"])
    assert changed() == ["tokenizer"]
    policy = MLLMPolicy.from_pretrained(WEIGHTS, device="cpu", attention="eager")
    assert changed() == ["attention"]
    policy = MLLMPolicy.from_pretrained(WEIGHTS, device="cpu", dtype=torch.bfloat16)
    assert changed() == ["dtype"]


def test_a_run_does_not_go_on_in_another_stack(tmp_path: Path) -> None:
    suite = suite_of(1)
    player = ModelPlayer(str(WEIGHTS), factory(suite), device="cpu")
    player.close()
    with RunWriter(tmp_path, Card({}, player.policy)):
        pass
    with RunWriter(tmp_path, Card({}, {**player.policy, "name": "moved"})):
        pass  # the same weights elsewhere
    for knob in (
        "dtype",
        "device",
        "attention",
        "versions",
        "tokenizer",
        "chat_template",
        "images",
    ):
        value = player.policy[knob]
        other = {**value, next(iter(value)): 0} if isinstance(value, dict) else "another"
        card = Card({}, {**player.policy, knob: other})
        with pytest.raises(ValueError, match=rf"begun under another card(.|\n)*policy\.{knob}"):
            RunWriter(tmp_path, card).__enter__()


def test_a_checkpoint_is_played_as_it_was_trained_unless_told_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    env = {**ENV, "max_turns": 2, "retrieval": "timeline"}
    run = tmp_path / "run"
    trained(small(run, eval_every=0, iterations=1, env=env, protocol="tags_seconds"))

    def settings_of(name: str, **options: Any) -> tuple[str, dict[str, Any]]:
        out = tmp_path / name
        evaluate(
            str(run), "haystack", out=out, split="val", suite_options={"size": 1},
            policy_options={"device": "cpu"}, **options,
        )  # fmt: skip
        protocol = read_run(out).card.protocol
        return protocol["text_protocol"], protocol["settings"]

    def warned() -> list[str]:
        said = [r.getMessage() for r in caplog.records if "as it was trained" in r.getMessage()]
        caplog.clear()
        return said

    protocol, settings = settings_of("as-trained")
    assert protocol == "tags_seconds" and warned() == []
    assert {name: settings[name] for name in TRAINED} == {
        "max_turns": 2, "frame_budget": 6, "overview_frames": 2, "frames_per_retrieval": 2,
        "pool_size": 16, "pool_rule": "midpoint", "frame_size": [28, 28], "fit": "stretch",
        "retrieval": "timeline",
    }  # fmt: skip
    given = {"pool_size": 8, "frame_size": 28, "retrieval": "pool", "max_turns": 2}
    protocol, other = settings_of("otherwise", protocol="tags", env=given)
    assert protocol == "tags"
    assert other == {**settings, "pool_size": 8, "retrieval": "pool"}
    assert warned() == [
        f"{run} is not played as it was trained: protocol='tags' (trained with 'tags_seconds'); "
        "pool_size=8 (trained with 16); retrieval='pool' (trained with 'timeline')"
    ]
    # A control is not what the user asked of these knobs.
    _, blind = settings_of("blind", control="blind")
    assert (blind["overview_frames"], blind["max_turns"]) == (0, 1) and warned() == []


def test_shares_of_a_frame_budget_are_compared_as_numbers() -> None:
    env = LongVideoQAEnv()
    trained = {"protocol": "tags", **{name: env.settings[name] for name in TRAINED}}
    assert trained["overview_frames"] == 16
    open_ = {**trained, "overview_frames": None, "frames_per_retrieval": None}
    assert departures(trained, open_) == []
    assert departures(trained, {**open_, "frame_budget": 64}) == [
        "frame_budget=64 (trained with 32)",
        "overview_frames=32 (trained with 16)",
        "frames_per_retrieval=16 (trained with 8)",
    ]


def test_what_is_no_checkpoint_says_nothing_of_its_training(tmp_path: Path) -> None:
    assert trained_with(str(WEIGHTS)) == trained_with("some/model") == {}
    assert trained_with(str(tmp_path)) == {}
    state = {"format": 1, "config": {"modle": "m"}}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="modle"):
        trained_with(str(tmp_path))
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="format None"):
        trained_with(str(tmp_path))


def test_the_command_line_tells_what_was_given_from_what_was_left_open() -> None:
    def read(*words: str) -> dict[str, Any]:
        args = ["--suite", "haystack", "--policy", "p", *words]
        return tyro.cli(EvaluateConfig, args=args).arguments()

    left = read()
    assert left["protocol"] is None and left["env"]["seek"] == "exact"
    assert not set(TRAINED) & set(left["env"])
    given = read(
        "--protocol", "tags", "--frame-budget", "None", "--overview-frames", "4",
        "--frames-per-retrieval", "None", "--frame-size", "56", "--pool-rule", "midpoint",
        "--seek", "auto",
    )  # fmt: skip
    assert given["protocol"] == "tags" and given["env"]["seek"] == "auto"
    assert {name: given["env"][name] for name in TRAINED if name in given["env"]} == {
        "frame_budget": None, "overview_frames": 4, "frames_per_retrieval": None,
        "pool_rule": "midpoint", "frame_size": 56,
    }  # fmt: skip


# peft 0.21 asks for a name that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_trained_adapter_plays_as_it_was_trained(tmp_path: Path) -> None:
    ppo = {"critic": "adapter", "history": 1}
    config = small(tmp_path, eval_every=0, iterations=1, lora_rank=4, lora_alpha=8.0, ppo=ppo)
    trained(config)
    suite = suite_of(3)
    player = ModelPlayer(str(tmp_path), factory(suite, max_turns=4), device="cpu")
    assert player.policy["weights"] == weights_digest(load_policy(tmp_path))
    assert player.policy["weights"] != weights_digest(MLLMPolicy.from_pretrained(model_dir()))
    assert player.policy["max_new_tokens"] == 5 and player.policy["history"] == 1
    again = ModelPlayer(str(tmp_path / "checkpoint-000001"), factory(suite), device="cpu")
    assert again.policy["name"] == "checkpoint-000001" != player.policy["name"]
    assert Card({}, again.policy).hash == Card({}, player.policy).hash
    again.close()
    for each in play(player, jobs_of(suite)).values():
        assert each.record is not None and each.cost["reply_tokens"] <= 5 * 4
        assert each.cost["visual_tokens"] == 4  # the overview was fed once, and left the window
    with pytest.raises(ValueError, match="a checkpoint has its own"):
        ModelPlayer(str(tmp_path), factory(suite), dtype="float32")
    (tmp_path / "checkpoint-000001" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot be loaded: checkpoint .* has format None"):
        ModelPlayer(str(tmp_path), factory(suite))


def test_weights_of_half_precision_and_single_numbers_have_a_digest() -> None:
    policy = MLLMPolicy.from_pretrained(WEIGHTS, device="cpu", dtype=torch.bfloat16)
    before = weights_digest(policy)
    assert len(before) == 12
    policy.base.register_parameter("scale", torch.nn.Parameter(torch.tensor(1.0)))
    assert weights_digest(policy) != before


def test_frames_that_do_not_fit_a_model_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"frame_size=\[28, 28\]"):
        ModelPlayer(str(WEIGHTS), factory(suite_of(1), frame_size=30), device="cpu")
