"""Watch one episode: writes a picture of every turn, and a film of the episode.

    python -m examples.watch_episode --out runs/watch
    python -m examples.watch_episode --annotation my.jsonl --video-root videos/

Takes two seconds. Expect ``turn0.png`` (the overview), one picture for each turn after it,
``episode.mp4`` and the episode's ``record.json``; the oracle answers rightly.
"""

from __future__ import annotations

import argparse
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import numpy as np
from PIL import Image

import gym_longvideo  # noqa: F401 - registers the ids
from agents.scripted import AGENTS, make_agent

SECONDS_PER_PICTURE = 3


def write_film(pictures: list[np.ndarray], path: Path) -> None:
    """Write (H, W, 3) uint8 pictures as an H.264 film, each shown for some seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(2))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            for _ in range(2 * SECONDS_PER_PICTURE):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def main() -> None:
    """Play and draw one episode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/watch"))
    parser.add_argument("--family", default="chain", help="a haystack family, or all")
    parser.add_argument("--annotation", help="a JSON Lines annotation instead of haystack")
    parser.add_argument("--video-root", help="directory of the annotation's videos")
    parser.add_argument("--policy", choices=sorted(AGENTS), default="oracle")
    parser.add_argument("--index", type=int, default=0, help="which task of the suite")
    parser.add_argument("--frame-size", type=int, default=112)
    args = parser.parse_args()

    options: dict[str, Any] = {"suite_options": {"families": args.family}, "split": "val"}
    if args.annotation:
        extra = {"video_root": args.video_root} if args.video_root else {}
        options = {"suite": args.annotation, "suite_options": extra}
    started = time.monotonic()
    print(f"{args.policy} plays task {args.index} of {args.annotation or args.family}")
    env = gym.make("LongVideoQA-v0", render_mode="rgb_array", frame_size=args.frame_size, **options)
    agent = make_agent(args.policy)

    observation, info = env.reset(seed=0, options={"index": args.index})
    print(f"{info['question']} {' / '.join(filter(None, info['options']))}")
    pictures: list[Any] = [env.render()]
    over = False
    while not over:
        observation, _, terminated, truncated, info = env.step(agent(env.unwrapped, observation))
        pictures.append(env.render())
        looked = "pool frames {} to {}".format(*info["interval"])
        print(f"turn {info['turns']}: {info['outcome'] or looked}")
        over = terminated or truncated

    args.out.mkdir(parents=True, exist_ok=True)
    for k, picture in enumerate(pictures):
        Image.fromarray(picture).save(args.out / f"turn{k}.png")
    write_film(pictures, args.out / "episode.mp4")
    (args.out / "record.json").write_text(env.unwrapped.record.to_json() + "\n", encoding="utf-8")
    print(
        f"{info['outcome']}; {len(pictures)} pictures, episode.mp4, record.json in {args.out}, "
        f"{time.monotonic() - started:.1f} s"
    )
    env.close()


if __name__ == "__main__":
    main()
