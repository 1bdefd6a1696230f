"""The environment on real footage, short and an hour long (skipped where the files are absent)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import av
import gymnasium as gym
import numpy as np
import pytest

from gym_longvideo.video import open_video

ROOT = Path(__file__).parents[1] / "../shared/data/videos"
ANNOTATION = Path(__file__).with_name("real_videos.jsonl")
needs_videos = pytest.mark.skipif(not ROOT.is_dir(), reason="no real videos here")


def repeat_to(path: Path, source: Path, duration_s: float) -> tuple[Path, float]:
    """Repeat the packets of a file until it is so long; return it and one period in seconds."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        time_base = stream.time_base
        assert time_base is not None
        packets = [packet for packet in container.demux(stream) if packet.size]
        shown = [packet.pts for packet in packets if packet.pts is not None]
        step = packets[0].duration or shown[1] - shown[0]
        span = max(shown) - min(shown) + step
        with av.open(str(path), "w") as output:
            copy = output.add_stream_from_template(stream)
            for k in range(math.ceil(duration_s / float(span * time_base))):
                for packet in packets:
                    assert packet.pts is not None
                    dts = packet.pts if packet.dts is None else packet.dts
                    again = av.Packet(bytes(packet))
                    again.stream, again.time_base = copy, time_base
                    again.pts, again.dts = packet.pts + k * span, dts + k * span
                    again.is_keyframe = packet.is_keyframe
                    output.mux(again)
    return path, float(span * time_base)


@needs_videos
@pytest.mark.parametrize("retrieval", ["pool", "timeline"])
def test_looking_at_the_annotated_segment_pays_on_real_videos(retrieval):
    env = gym.make(
        "gym_longvideo:LongVideoQA-v0",
        suite=str(ANNOTATION),
        suite_options={"video_root": str(ROOT)},
        retrieval=retrieval,
        order="sequential",
    )
    base = env.unwrapped
    for _ in range(len(base.suite)):
        observation, info = env.reset()
        relevant = sorted(base.episode.relevant)
        start, end = relevant[0], relevant[-1]
        observation, _, terminated, _, info = env.step(np.array([0, start, end, 0]))
        assert info["iou"] > base.episode.initial_iou, info["task_id"]
        shown = observation["frame_time"][observation["frame_index"] >= 0]
        edges = base.episode.task.segments_s
        assert edges[0][0] - 0.5 <= shown.min() and shown.max() <= edges[-1][1] + 0.5
        assert observation["frames"].std() > 5
        answer = base.episode.task.answer_index
        observation, reward, terminated, _, info = env.step(np.array([1, 0, 0, answer]))
        assert terminated and info["outcome"] == "correct"
        assert reward == pytest.approx(1.7)
    env.close()


@needs_videos
@pytest.mark.parametrize("name", ["tears_of_steel_battle.webm", "intel_car_detection.mp4"])
def test_an_hour_made_of_a_clip_shows_the_frames_of_the_clip(tmp_path, name):
    path, period_s = repeat_to(tmp_path / name, ROOT / name, 3600.0)
    hour, clip = open_video(path), open_video(ROOT / name)
    assert hour.info.duration_s == pytest.approx(3600, rel=0.03)
    assert not hour.info.truncated
    # Quarter frames off the grid, lest rounding of sums of floats decide which frame is meant.
    frame_s = 1 / (clip.info.fps or 1)
    places = (np.array([3, 31, 150, 200]) + 0.25) * frame_s
    periods = np.array([0, 7, 20, 48])
    long = hour.read(places + periods * period_s, size=(48, 64))
    short = clip.read(places, size=(48, 64))
    np.testing.assert_array_equal(long.frames, short.frames)

    line = {
        "video": name,
        "question": "When?",
        "options": ["early", "late"],
        "answer": "A",
        "segments": [[600, 700]],
    }
    (tmp_path / "hour.jsonl").write_text(json.dumps(line))
    env = gym.make("gym_longvideo:LongVideoQA-v0", suite=str(tmp_path / "hour.jsonl"))
    _, info = env.reset(seed=0)
    assert info["frames_shown"] == 16
    _, _, _, _, info = env.step(np.array([0, 21, 24, 0]))
    assert info["best_iou"] == info["iou"] > 0.7
    env.close()
