"""The environment on files that are odd, and on files that change under it."""

from __future__ import annotations

import json
import os
import pickle

import clips
import gymnasium as gym
import numpy as np
import odd_clips
import pytest

TASK = {"question": "Which?", "options": ["a", "b"], "answer": "A"}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return clips.Library(tmp_path_factory.mktemp("clips"))


def make(folder, *names, **settings):
    """Make an environment over files of a folder."""
    lines = [json.dumps({"id": name, "video": name, **TASK}) for name in names]
    annotation = folder / "tasks.jsonl"
    annotation.write_text("\n".join(lines))
    settings = {"frame_size": 32, "order": "sequential", "seek": "exact", **settings}
    env = gym.make("gym_longvideo:LongVideoQA-v0", suite=str(annotation), **settings)
    return env, env.unwrapped


def film(path, content):
    path.write_bytes(content)
    return path


def exchange(path, content):
    """Put another file in the place of one, of the same age."""
    before = path.stat()
    other = film(path.with_suffix(".new"), content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("isolate", [False, True])
def test_a_file_exchanged_in_mid_episode_truncates_it_and_no_other(
    library, tmp_path, copied, isolate
):
    path = film(tmp_path / "film.mp4", library["cfr.mp4"].read_bytes())
    env, base = make(tmp_path, "film.mp4", isolate=isolate)
    env.reset(seed=0)
    exchange(path, library["open-gop.mp4"].read_bytes())
    if copied:
        copy = pickle.loads(pickle.dumps(base))
        env.close()
        env = base = copy
    _, reward, terminated, truncated, info = env.step(np.array([0, 3, 9, 0]))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["infra_error"].startswith("VideoChangedError")
    env.reset()  # the next episode is of the new file
    *_, truncated, info = env.step(np.array([0, 3, 9, 0]))
    assert not truncated and info["frames_shown"] > 16
    assert base.skipped == []
    env.close()


def test_a_copy_of_an_episode_goes_on_where_the_file_is_the_same(library, tmp_path):
    film(tmp_path / "film.mp4", library["cfr.mp4"].read_bytes())
    env, base = make(tmp_path, "film.mp4")
    env.reset(seed=0)
    copy = pickle.loads(pickle.dumps(base))
    for each in (env, copy):
        *_, truncated, info = each.step(np.array([0, 3, 9, 0]))
        assert not truncated, info["infra_error"]
        each.close()


@pytest.mark.parametrize("retrieval", ["pool", "timeline"])
def test_every_slide_of_a_recorded_talk_can_be_looked_at(tmp_path, retrieval):
    odd_clips.talk(tmp_path / "talk.mp4")
    env, base = make(
        tmp_path, "talk.mp4", retrieval=retrieval, frame_budget=48, frame_size=(48, 64)
    )
    env.reset(seed=0)
    assert len(base.episode.pool_times) == 128
    observation, *_ = env.step(np.array([0, 0, 11, 0]))  # the first minute, slide by slide
    shown = observation["frame_index"] >= 0
    assert shown.sum() == 12
    assert len(set(clips.read_barcodes(observation["frames"][shown]))) >= 11
    env.close()


def test_a_title_in_another_encoding_starts_an_episode(library, tmp_path):
    odd_clips.titled(tmp_path / "film.mkv", library["cfr.mp4"], "Fußgänger".encode("latin-1"))
    env, base = make(tmp_path, "film.mkv", on_video_error="skip")
    _, info = env.reset(seed=0)
    assert info["frames_shown"] == 16 and base.skipped == []
    env.close()


def test_no_descriptor_left_stops_the_run_instead_of_skipping_its_tasks(library, tmp_path):
    resource = pytest.importorskip("resource")
    for name in ("one.mp4", "two.mp4"):
        film(tmp_path / name, library["cfr.mp4"].read_bytes())
    env, base = make(tmp_path, "one.mp4", "two.mp4", on_video_error="skip")
    env.reset(seed=0)
    env.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 2, hard))
        with pytest.raises(OSError):
            while True:
                taken.append(os.dup(0))
        with pytest.raises(Exception, match="Too many open files") as caught:
            env.reset()
        assert type(caught.value).__name__ == "MachineError"
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert base.skipped == []
    env.reset()
    env.close()
