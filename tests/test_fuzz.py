"""The fuzzing script: its mutants depend on their numbers alone, and it tells good from bad."""

from __future__ import annotations

from collections import Counter

import clips
import fuzz_videos
import numpy as np
import pytest


@pytest.fixture
def one_film(tmp_path, monkeypatch):
    def films(videos, folder):
        return [clips.h264(folder / "cfr.mp4", frames=12)]

    monkeypatch.setattr(fuzz_videos, "films", films)


@pytest.mark.parametrize("kind", fuzz_videos.KINDS)
def test_a_mutant_is_the_same_every_time_and_never_the_original(kind):
    content = bytes(np.random.default_rng(0).bytes(5000))
    first, again, other = (
        fuzz_videos.mutate(content, kind, np.random.default_rng([0, n])) for n in (1, 1, 2)
    )
    assert first == again != other
    assert first != content
    assert (len(first) < 5000, len(first) > 5000) == (kind == "cut", kind == "repeated")


def test_damaged_videos_are_read_or_refused(one_film, capsys):
    assert fuzz_videos.run(10, 0, ["pyav"], None) == 0
    said = capsys.readouterr().out
    assert all(f"pyav          {kind}" in said for kind in fuzz_videos.KINDS)


@pytest.mark.parametrize("outcome", ["escaped", "hang", "crash"])
def test_what_must_not_happen_fails_the_run(outcome):
    tally = {("pyav", "cut"): Counter({outcome: 1, "frames": 99})}
    arguments = Counter({"pyav": 9}), Counter({"pyav": 9}), Counter(), (0.0, "")
    assert fuzz_videos.report(tally, *arguments) == 1


def test_refusing_what_plays_fails_the_run():
    tally = {("pyav", "cut"): Counter(frames=90, VideoError=10)}
    arguments = Counter({"pyav": 100}), Counter({"pyav": 90}), Counter(), (0.0, "")
    assert fuzz_videos.report(tally, *arguments) == 1


def test_a_worker_that_dies_is_noticed():
    worker = fuzz_videos.Worker()
    worker._process.kill()
    assert worker.ask(path="a.mp4") == "crash"
    worker.close()
