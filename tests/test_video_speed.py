"""The measuring program: its files are right, and its arithmetic."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import clips
import numpy as np
import pytest

from benchmarks.speed import films
from benchmarks.speed import video as speed
from gym_longvideo.video import open_video


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Twelve seconds made of a clip of three, repeated."""
    folder = tmp_path_factory.mktemp("film")
    unit = clips.h264(folder / "unit.mp4")
    films.repeat(unit, folder / "film.mp4", times=4, unit_s=3)
    return folder / "film.mp4"


def test_a_repeated_file_plays_its_frames_over_and_over(film):
    video = open_video(film)
    assert video.info.duration_s == pytest.approx(12.0)
    assert video.info.frame_count == 360
    numbers = np.arange(5, 360, 11)
    batch = video.read((numbers + 0.5) / 30, size=(48, 64))
    assert clips.read_barcodes(batch.frames) == (numbers % 90).tolist()
    video.close()


def test_the_floor_counts_frames_from_the_keyframe_to_the_last_target(film, monkeypatch):
    clock = iter([0.0, 900.0])  # 900 seconds for all 360 frames: 2.5 each
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    # Keyframes every 24 frames: 30 and 26 share the run 24..30, 100 lies in 90..113.
    shown = [[30 / 30, 100 / 30], [26 / 30]]
    assert speed.run_floor(str(film), shown)["seconds"] == pytest.approx(2.5 * (7 + 11))


def test_rivals_return_how_long_they_took(film):
    shown = [[0.0, 4.0, 8.0]]
    for threads in speed.RIVALS["textbook_pyav"]:
        assert speed.run_textbook_pyav(str(film), shown, threads)["seconds"] > 0
    ours = speed.run_ours(str(film), "exact", turns=3)
    # Slots 44, 52, 60, 68 were seen when the second turn comes, 52 and 56 when the third does.
    assert [len(times) for times in ours["shown"]] == [16, 4, 6]


def test_ratios_are_the_worst_over_the_files_and_absent_rivals_are_none():
    fast = {"reset_exact/ours": 1.0, "reset_exact/decord": 9.0}
    slow = {"reset_exact/ours": 2.0, "reset_exact/decord": 6.0}
    fast |= {"reset_exact/one_thread": 1.5, "reset_exact/floor": 1.0}
    slow |= {"reset_exact/one_thread": 3.0, "reset_exact/floor": 4.0}
    found = speed.compare([fast, slow])
    assert found["reset_exact_vs_decord"] == 3.0
    assert found["reset_exact_vs_floor"] == 1.5  # one thread, not two
    assert found["reset_exact_vs_torchcodec"] is None


def test_of_a_rivals_settings_the_faster_counts(monkeypatch):
    class Fake:
        def __init__(self, name):
            self.name = name

        def run(self, threads=2, **arguments):
            if self.name in speed.RIVALS:
                return {"seconds": 5.0 if threads else 3.0}
            return {"seconds": 1.0 + (threads == 1), "shown": [[0.0]]}

        def close(self):
            pass

    monkeypatch.setattr(speed, "Contender", Fake)
    runs = []
    progress = SimpleNamespace(update=lambda: runs.append(1))
    medians = speed.race(Path("film.mp4"), 1, progress)  # type: ignore[arg-type]
    assert medians["episode_exact/torchcodec"] == 3.0
    assert (medians["reset_exact/ours"], medians["reset_exact/one_thread"]) == (1.0, 2.0)
    assert len(runs) == speed.runs_per_repeat()
