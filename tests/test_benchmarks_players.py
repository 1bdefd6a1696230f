from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_players import factory, jobs_of, play, suite_of

from agents.model.tiny import WEIGHTS
from benchmarks.players.crew import Crew
from benchmarks.players.make import make_player
from benchmarks.players.player import Job, seed_of, workers
from benchmarks.players.scripted import ScriptedPlayer
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.task import Task
from gym_longvideo.video.errors import VideoOpenError


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
