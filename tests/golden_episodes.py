"""Two hundred episodes that never change: what they were is in ``golden/episodes.jsonl.gz``.

    python tests/golden_episodes.py    # writes the file; only where a change of results is meant

What a forgiving reading makes of replies (``lenient_choice``) is that of ``gym_longvideo.lenient``.

Ten kinds of environments, numeric and text, each with every sort of action: retrievals, answers,
choices that do not exist, replies that are no action. Pixels are left out, because they may differ
in their last bits between processors; the tests of the haystack look at them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import gym_longvideo  # noqa: F401 - registers the ids
from gym_longvideo.wrappers import TextProtocol

PATH = Path(__file__).parent / "golden" / "episodes.jsonl.gz"
EPISODES = 20  # of each kind
SMALL: dict[str, Any] = {"frame_size": 8, "suite_options": {"size": 40, "duration_s": 300}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("", {}),
    "timeline": ("", {"retrieval": "timeline", "reward": "ungated"}),
    "as released": ("", {"pool_size": 30, "reward": "video_mtr_code"}),
    "many turns": ("", {"max_turns": 5, "frame_budget": 20, "reward": "longvt"}),
    "blind": ("", {"overview_frames": 0, "frames_per_retrieval": 5, "reward": "videoseal"}),
    "ordered": ("", {"order": "sequential", "shard": (1, 3), "reward": {"penalty": 2.0}}),
    "tags": ("tags", {"pool_size": 64}),
    "tags_seconds": ("tags_seconds", {"retrieval": "timeline"}),
    "tool_call": ("tool_call", {"frame_budget": None, "overview_frames": 4,
                                "frames_per_retrieval": 3}),
    "one turn": ("tags", {"max_turns": 1, "reward": "accuracy"}),
}  # fmt: skip


def episodes() -> Iterator[dict[str, Any]]:
    """Play them all; yield what each was: its kind, its steps and its record."""
    for number, (kind, (protocol, settings)) in enumerate(KINDS.items()):
        env: Any = gym.make("LongVideoQA-v0", **{**SMALL, **settings})
        env = TextProtocol(env, protocol) if protocol else env
        dice = np.random.default_rng(number)
        for count in range(EPISODES):
            observation, info = env.reset(seed=number if count == 0 else None)
            steps, over = [_plain(observation, info)], False
            while not over:
                action = _reply(env, protocol, dice) if protocol else _action(env, dice)
                observation, reward, terminated, truncated, info = env.step(action)
                steps.append({"reward": reward, **_plain(observation, info)})
                over = terminated or truncated
            record = json.loads(env.unwrapped.record.to_json())
            del record["library"]
            yield json.loads(json.dumps({"kind": kind, "steps": steps, "record": record}))
        env.close()


def golden() -> list[dict[str, Any]]:
    """Return the episodes as they were when the file was written."""
    with gzip.open(PATH, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _action(env: gym.Env, dice: np.random.Generator) -> np.ndarray:
    action = np.array([dice.integers(n) for n in env.action_space.nvec])  # type: ignore[attr-defined]
    action[0] = dice.random() < 0.4
    return action


def _reply(env: TextProtocol, protocol: str, dice: np.random.Generator) -> str:
    turn, roll = env.turn, dice.random()
    last = turn.last_index
    start, end = (int(place) for place in dice.integers(0, last + 3, 2))
    if roll < 0.15:
        return "Let me see; perhaps B."
    if roll < 0.5:
        return f"<think>It is this.</think><answer>{'ABCDEZ'[dice.integers(6)]}</answer>"
    if protocol == "tags":
        return f"<think>Look.</think><retrieve>{start}, {end}</retrieve>"
    start_s, end_s = turn.duration_s * start / last, turn.duration_s * end / last
    if protocol == "tags_seconds":
        return f"<think>Look.</think><retrieve>{start_s:.1f}, {end_s:.1f}</retrieve>"
    call = {"name": "retrieve_frames", "arguments": {"start_s": start_s, "end_s": end_s}}
    return f"Look.<tool_call>{json.dumps(call)}</tool_call>"


def _plain(observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    seen = {k: v if isinstance(v, str) else v.tolist() for k, v in observation.items()
            if k != "frames"}  # fmt: skip
    told = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in info.items()}
    return {"observation": seen, "info": told}


def main() -> None:
    """Write the file."""
    PATH.parent.mkdir(exist_ok=True)
    text = "".join(f"{json.dumps(episode)}\n" for episode in episodes())
    PATH.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
