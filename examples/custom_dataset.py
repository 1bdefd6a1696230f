"""Your own videos: write a few lines of JSON, and they are an environment.

    python -m examples.custom_dataset my_videos/*.mp4
    python -m examples.custom_dataset --annotation my.jsonl --video-root my_videos

Given video files of one directory, this writes an annotation with one stand-in question about each,
so that there is something to run; given your annotation, it uses that. Either way it then plays
every task once at random and prints what happened, a broken file included.

Takes about a second for each video. Expect one line a task, and where the seconds went at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium as gym

import gym_longvideo  # noqa: F401 - registers the ids
from agents.scripted import Random
from gym_longvideo.video import VideoError, open_video


def write_annotation(videos: list[Path], path: Path) -> None:
    """Write one question about each video: a line of JSON is all it takes."""
    lines = []
    for video in videos:
        try:
            opened = open_video(video)
            duration_s = opened.info.duration_s
            opened.close()
        except VideoError as error:
            print(f"left out: {error}")
            continue
        third = round(duration_s / 3, 3)
        lines.append(
            {
                "id": video.name,
                "video": video.name,
                "question": "In which part of the video does its middle third begin?",
                "options": ["in the first half", "in the second half"],
                "answer": "A",
                "segments": [[third, 2 * third]],
            }
        )
    if not lines:
        raise SystemExit("none of the files is a readable video")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Play every task once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*", type=Path, help="video files in one directory")
    parser.add_argument("--annotation", type=Path)
    parser.add_argument("--video-root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/custom"))
    parser.add_argument("--frame-size", type=int, default=112)
    args = parser.parse_args()

    annotation, root = args.annotation, args.video_root
    if annotation is None:
        if not args.videos:
            parser.error("name some video files, or --annotation")
        args.out.mkdir(parents=True, exist_ok=True)
        annotation, root = args.out / "annotation.jsonl", args.videos[0].parent
        write_annotation(args.videos, annotation)

    options: dict[str, Any] = {"video_root": str(root)} if root else {}
    env = gym.make(
        "LongVideoQA-v0",
        suite=str(annotation),
        suite_options=options,
        frame_size=args.frame_size,
        order="sequential",
        on_video_error="skip",
    )
    base, agent = env.unwrapped, Random()
    print(f"{len(base.suite)} questions of {annotation}, each played once at random")
    for _ in range(len(base.suite)):
        observation, info = env.reset()
        over = False
        while not over:
            observation, _, terminated, truncated, info = env.step(agent(base, observation))
            over = terminated or truncated
        print(
            f"{info['task_id']}: {info['outcome']}, best IoU {info['best_iou']:.2f}, "
            f"{info['frames_shown']} frames shown, {info['frames_decoded']} decoded"
        )
    for task_id, error in base.skipped:
        print(f"{task_id}: skipped, {error}")
    print(f"opening {base.timings['open_s']:.2f} s, decoding {base.timings['decode_s']:.2f} s")
    env.close()


if __name__ == "__main__":
    main()
