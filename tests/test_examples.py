"""Every example runs, by its own command line, small."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gym_longvideo import EpisodeRecord
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.haystack.export import export_suite

# Under Python 3.11 with NumPy 2.4, TensorBoard and Ray warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example's main() with arguments; return what it printed."""

    def _run(name: str, *args: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        importlib.import_module(f"examples.{name}").main()
        return capsys.readouterr().out

    return _run


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    suite = HaystackSuite("val", families="needle", duration_s=60, size=2)
    return export_suite(suite, tmp_path_factory.mktemp("export"), size=(32, 32))


def test_random_agent_prints_episodes(run):
    assert run("random_agent", "--episodes", 2).count("outcome") == 2


def test_watch_episode_writes_pictures_a_film_and_a_record(run, tmp_path):
    run("watch_episode", "--out", tmp_path, "--frame-size", 28)
    assert (tmp_path / "turn0.png").stat().st_size > 1000
    assert (tmp_path / "episode.mp4").stat().st_size > 1000
    record = EpisodeRecord.from_json((tmp_path / "record.json").read_text())
    assert record.outcome == "correct"


def test_custom_dataset_plays_a_users_files_and_names_the_broken_one(run, exported, tmp_path):
    videos = sorted((exported.parent / "videos").glob("*.mp4"))
    assert run("custom_dataset", *videos, "--out", tmp_path).count("frames shown") == 2
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    line = {"video": "broken.mp4", "question": "?", "options": ["x", "y"], "answer": "A"}
    good = {**line, "video": videos[0].name}
    (tmp_path / videos[0].name).write_bytes(videos[0].read_bytes())
    (tmp_path / "my.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(good)}\n")
    printed = run("custom_dataset", "--annotation", tmp_path / "my.jsonl", "--frame-size", 16)
    assert "0: skipped, VideoOpenError" in printed
    assert "1: " in printed


def test_custom_dataset_plays_the_real_videos(run, tmp_path):
    videos = sorted(Path(__file__).parents[1].glob("../shared/data/videos/*.*[4m]"))
    if not videos:
        pytest.skip("no real videos here")
    assert run("custom_dataset", *videos, "--out", tmp_path).count("frames shown") == len(videos)


@pytest.mark.parametrize("algo", ["ppo", "maskable"])
def test_train_sb3_trains_and_evaluates(run, algo):
    pytest.importorskip("sb3_contrib")
    sizes = ("--steps", 128, "--n-envs", 4, "--n-steps", 32, "--episodes", 4)
    assert "accuracy" in run("train_sb3", "--algo", algo, *sizes)


def test_cleanrl_ppo_trains(run, tmp_path):
    pytest.importorskip("torch")
    sizes = ("--total-timesteps", 128, "--num-envs", 4, "--num-steps", 16)
    assert "step 128: success" in run("cleanrl_ppo", *sizes)


def test_torchrl_rolls_out(run):
    pytest.importorskip("torchrl")
    assert "episodes, mean return" in run("torchrl_rollout", "--steps", 4)


def test_rllib_trains(run):
    pytest.importorskip("ray.rllib")
    assert "iteration 0: return" in run("rllib_ppo", "--iterations", 1, "--batch", 128)


def test_needle_seeds_compares_with_intervals_and_says_when_the_goal_is_missed(run, tmp_path):
    pytest.importorskip("sb3_contrib")
    sizes = ("--seeds", 1, "--steps", 1024, "--episodes", 8, "--json", tmp_path / "seeds.json")
    with pytest.raises(SystemExit) as stop:
        run("needle_seeds", *sizes)
    seeds = json.loads((tmp_path / "seeds.json").read_text())["seeds"]
    assert bool(stop.value.code) == (seeds[0]["gap"] < 0.3)
    assert seeds[0]["gap_ci95"][0] < seeds[0]["gap"] < seeds[0]["gap_ci95"][1]


def test_demo_writes_the_table_it_prints(run, tmp_path):
    pytest.importorskip("transformers")
    sizes = ("--seconds", 60, "--iterations", 1, "--batch", 8, "--episodes", 8, "--out", tmp_path)
    printed = run("demo", *sizes)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary)[:4] == ["random", "base", "trained", "oracle"]
    assert summary["oracle"]["accuracy"] == 1.0
    assert summary["base"]["turns"] < 1.5  # answering at once is its habit
    assert summary["updates"] == 1
    for name in ("random", "base", "trained", "oracle"):
        score = summary[name]
        assert score["ci95"][0] <= score["accuracy"] <= score["ci95"][1]
        assert f"{name:10s}{score['accuracy']:9.3f}" in printed
    train = tmp_path / "train"
    assert list((train / "checkpoint-000001").rglob("*.safetensors"))
    assert list((train / "records").iterdir())
    assert list((train / "samples").glob("*.png"))
    assert list((train / "tensorboard").iterdir())
    run("demo", *sizes)  # an earlier demo is replaced


def test_seeds_of_the_demo_are_judged_by_interval_and_by_the_gap_closed():
    pytest.importorskip("transformers")
    from agents.evaluation import Tally
    from examples.demo import closed
    from examples.demo_seeds import verdict

    line = replace(Tally().result(), accuracy=0.4)
    lines = {"base": line, "trained": replace(line, accuracy=0.7)}
    lines["oracle"] = replace(line, accuracy=1.0)
    assert closed(lines) == pytest.approx(0.5)
    results = {seed: {"low": 0.1 - seed / 10, "closed": seed / 4} for seed in range(5)}
    assert verdict(results) == (1, 0.5)
