"""Pretrain the tiny MLLM: perception and habits, but not the use of retrieval.

    python -m agents.pretrain_tiny --out agents/weights/tiny

The model learns from scripted replies to say which of the frames before it show the scene asked
about, what is on the card if it has seen it, which letter stands for that, and the form of a reply.
Its habit is to answer at once, guessing where it has not seen the card; seldom, and whatever it has
seen, it retrieves: any interval, one between two frames shown, or one around frames it has just
named, a third each. When and where to look is left to reinforcement learning.

Four kinds of lesson, from the part to the whole. Drills without pictures: find a word among
shuffled options, name its letter. Captions: say what single frames show, in words that their
features are drawn to. Searches: of numbered frames say where the scene in question is and what its
card shows. Episodes, in which the script retrieves half of the time so that later turns are seen
too; the choice between answer and retrieval is weighted so that the model learns the habit, not the
script.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

import gym_longvideo  # noqa: F401 - registers the ids
from agents.command import parse
from agents.lessons import SKILLS, Lesson, LessonKind, Teacher, codec_of
from agents.model import tiny
from agents.model.policy import MLLMPolicy
from agents.model.rows import micro_batches
from agents.model.sampling import Sampling
from agents.rollout import RolloutCollector, play
from gym_longvideo.command import as_command
from gym_longvideo.wrappers import TextProtocol


@dataclass(frozen=True)
class PretrainConfig:
    """How to pretrain.

    Attributes:
        out: Directory of the weights.
        start: Weights to go on from; None for fresh ones.
        seed: Of weights and data.
        lessons: What is taught in turn, and for how many steps: "drill", "caption", "search" or
            "episode". Letters are learned far sooner by a model that can already read frames.
        batch: Rows a step.
        lr: Highest learning rate.
        retrieve_rate: How often the habit is to retrieve.
        aims: Of the intervals that it then retrieves, the shares that lie around the frames named
            and between two frames shown; the others lie anywhere.
        aim_weight: What the ends of an interval count, next to other tokens.
        threads: Of the trainer; one more process makes the data.
        evaluation: Held-out episodes of the final scores.
    """

    out: Path = tiny.WEIGHTS
    start: Path | None = None
    seed: int = 0
    lessons: tuple[tuple[LessonKind, int], ...] = (
        ("drill", 120),
        ("caption", 100),
        ("search", 300),
        ("episode", 300),
        ("drill", 300),
        ("search", 60),
        ("episode", 800),
    )
    batch: int = 48
    lr: float = 2e-3
    retrieve_rate: float = 0.04
    aims: tuple[float, float] = (1 / 3, 1 / 3)
    aim_weight: float = 0.3
    threads: int = 1
    evaluation: int = 512


_teacher: Teacher | None = None


def _open_school(
    seed: int, retrieve_rate: float, aims: tuple[float, float], aim_weight: float
) -> None:
    global _teacher
    torch.set_num_threads(1)
    tokenizer = tiny.build_tokenizer()
    _teacher = Teacher(
        codec_of(tokenizer),
        seed=seed,
        retrieve_rate=retrieve_rate,
        aims=aims,
        aim_weight=aim_weight,
    )


def _teach(kind: str, count: int, seed: tuple[int, ...]) -> list[Lesson]:
    assert _teacher is not None
    rng = np.random.default_rng(seed)
    # A few drills go on all the time, or they are forgotten.
    drills = 0 if kind == "drill" else count // 4
    made = [getattr(_teacher, kind)(rng) for _ in range(count - drills)]
    return made + [_teacher.drill(rng) for _ in range(drills)]


def lessons(config: PretrainConfig) -> Iterator[list[Lesson]]:
    """Yield the batches of all lessons, made by a process of their own."""
    plan = [
        (kind, config.batch, (config.seed, place, step))
        for place, (kind, steps) in enumerate(config.lessons)
        for step in range(steps)
    ]
    with ProcessPoolExecutor(
        1,
        mp_context=get_context("spawn"),
        initializer=_open_school,
        initargs=(config.seed, config.retrieve_rate, config.aims, config.aim_weight),
    ) as school:
        waiting = [school.submit(_teach, *job) for job in plan[:8]]
        for job in [*plan[8:], *[None] * 8]:
            if not waiting:
                return
            yield waiting.pop(0).result()
            if job is not None:
                waiting.append(school.submit(_teach, *job))


def loss_of(
    policy: MLLMPolicy, batch: list[Lesson], *, max_tokens: int = 2048, backward: bool = True
) -> tuple[float, np.ndarray]:
    """Return the weighted cross-entropy a token, and (6, 2) right and total tokens by skill."""
    total = float(sum(lesson.weights.sum() for lesson in batch))
    loss, counts = 0.0, np.zeros((len(SKILLS), 2))
    for group in micro_batches([len(lesson.row.ids) for lesson in batch], max_tokens):
        chosen = [batch[i] for i in group]
        scores = policy.score([lesson.row for lesson in chosen], with_entropy=False)
        flat = scores.log_probs[scores.mask]
        weights = torch.from_numpy(np.concatenate([lesson.weights for lesson in chosen]))
        part = -(flat * weights).sum() / total
        if captions := [lesson for lesson in chosen if lesson.words]:
            part = part + align(policy, captions) * len(captions) / len(batch)
        if backward:
            part.backward()
        loss += part.item()
        # A token whose probability is above one half is the greedy one.
        right = (flat.detach() > math.log(0.5)).numpy()
        for skill in range(len(SKILLS)):
            of = np.concatenate([lesson.skills for lesson in chosen]) == skill
            of &= np.concatenate([lesson.weights for lesson in chosen]) > 0
            counts[skill] += right[of].sum(), of.sum()
    return loss, counts


def align(policy: MLLMPolicy, captions: list[Lesson]) -> torch.Tensor:
    """Return the loss of reading each frame's words straight off its features.

    It puts features where the embeddings of their words are, so that attention, which starts out
    matching likes, can match a question with the frames it speaks of.
    """
    frames = [frame for caption in captions for frame in caption.row.frames]
    words = [each for caption in captions for each in caption.words]
    log_probs = policy.head(torch.cat(policy.encoder(frames))).log_softmax(-1)
    losses = [-log_probs[i, torch.from_numpy(ids)].mean() for i, ids in enumerate(words)]
    return torch.stack(losses).mean()


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Pretrain, write the weights and return the scores."""
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    tokenizer = tiny.build_tokenizer()
    model = tiny.build_model(tiny.build_config(tokenizer), seed=config.seed)
    if config.start is not None:
        model.load_state_dict(type(model).from_pretrained(config.start).state_dict())
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "eager"})
    policy = MLLMPolicy(model, codec_of(tokenizer), mean=_MEAN, std=_STD, train_vision=True)
    optimizer = torch.optim.AdamW(policy.actor_parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    total = sum(steps for _, steps in config.lessons)
    counts = np.zeros((len(SKILLS), 2))
    bar = tqdm(lessons(config), total=total, desc="pretraining", unit="step", mininterval=5)
    for step, batch in enumerate(bar):
        loss, seen = loss_of(policy, batch)
        torch.nn.utils.clip_grad_norm_(policy.actor_parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule(step, config)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        counts = 0.9 * counts + seen
        if step % 20 == 19:
            bar.set_postfix_str(f"loss {loss:.3f} {_percent(counts)}")
    tiny.save(model, tokenizer, config.out)
    tiny.MADE_FOR.write(config.out)
    scores: dict[str, Any] = {
        "config": {
            **asdict(config),
            "out": config.out.name,
            "start": config.start.name if config.start else "",
            "lessons": [list(lesson) for lesson in config.lessons],
            "aims": list(config.aims),
        },
        "skills": {name: float(a / max(b, 1)) for name, (a, b) in zip(SKILLS, counts, strict=True)},
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    if config.evaluation:
        scores["held_out"] = examine(config.out, config.evaluation)
    (config.out / "pretraining.json").write_text(
        json.dumps(scores, indent=2) + "\n", encoding="utf-8"
    )
    return scores


def examine(directory: Path, episodes: int) -> dict[str, float]:
    """Return what saved weights reach, greedily, on held-out videos of the demo's kind."""
    policy = MLLMPolicy.from_pretrained(directory)
    envs = [
        TextProtocol(
            gym.make(
                "LongVideoQA-v0",
                disable_env_checker=True,
                split="val",
                suite_options={**tiny.SUITE_OPTIONS, "size": episodes},
                **tiny.ENV_OPTIONS,
            )
        )
        for _ in range(min(64, episodes))
    ]
    collector = RolloutCollector(envs, policy)
    result = play(collector, range(episodes), Sampling(max_new_tokens=48)).result()
    collector.close()
    return asdict(result)


def schedule(step: int, config: PretrainConfig) -> float:
    """Return the share of the learning rate: each lesson warms up, the last cools down."""
    *earlier, last = (steps for _, steps in config.lessons)
    for length in earlier:
        if step < length:
            return min(1.0, (step + 1) / 50)
        step -= length
    warm = min(1.0, (step + 1) / 50)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / max(last, 1))))


def _percent(counts: np.ndarray) -> str:
    return " ".join(
        f"{name} {a / b:.2f}" for name, (a, b) in zip(SKILLS, counts, strict=True) if b > 1
    )


_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line."""
    print(
        json.dumps(
            pretrain(parse(PretrainConfig, arguments, "python -m agents.pretrain_tiny")), indent=2
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
