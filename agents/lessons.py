"""Lessons for the tiny MLLM: dialogues on haystack videos with what a teacher would say.

What each lesson is for, ``pretrain_tiny`` says.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np

import gym_longvideo  # noqa: F401 - registers the ids
from agents.model import tiny
from agents.model.chat import Block, ChatCodec, ImageGrid
from agents.model.rows import Row, make_row
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.haystack.looks import LOOKS
from gym_longvideo.protocol import Turn
from gym_longvideo.suite import lettered
from gym_longvideo.task import Task
from gym_longvideo.wrappers import TextProtocol

FORMAT, PLACE, EVIDENCE, LETTER, ACTION, INTERVAL = range(6)
LETTERS = "ABCDEF"
LessonKind = Literal["drill", "caption", "search", "episode"]
SKILLS = ("format", "place", "evidence", "letter", "action", "interval")

# What episodes look like: (weight, environment, videos). Indices, budgets and lengths vary, so that
# the model suits other settings than the demo's.
WORLDS: tuple[tuple[int, dict[str, Any], dict[str, Any]], ...] = (
    (4, {}, {}),
    (2, {}, {"distractors": 2, "needle_s": 30.0}),
    (1, {"overview_frames": 16, "frame_budget": 32}, {"needle_s": 12.0}),
    (1, {"overview_frames": 4, "max_turns": 5, "frame_budget": None}, {"scenes": 4}),
    (1, {"pool_size": 128, "overview_frames": 16, "frame_budget": 32}, {"scenes": 6}),
    (1, {"pool_size": 32, "frames_per_retrieval": 4, "max_turns": 4}, {"needle_s": 36.0}),
)


class Lesson(NamedTuple):
    """A row with what it teaches.

    Attributes:
        row: The dialogue.
        weights: (n,) float32 for each response token.
        skills: (n,) index into SKILLS of each.
        words: For each frame of a caption, the ids of the words that it shows.
    """

    row: Row
    weights: np.ndarray
    skills: np.ndarray
    words: tuple[np.ndarray, ...] = ()


class Piece(NamedTuple):
    """A part of a scripted reply: its text, what it teaches, and how much that counts."""

    text: str
    skill: int
    weight: float = 1.0


class Teacher:
    """Makes lessons out of haystack videos that nothing else uses.

    Args:
        codec: Of the model.
        seed: Of the videos.
        retrieve_rate: The habit to teach.
        aims: Where to retrieve, see ``PretrainConfig``.
        aim_weight: What that counts.
    """

    def __init__(
        self,
        codec: ChatCodec,
        *,
        seed: int,
        retrieve_rate: float,
        aims: tuple[float, float] = (1 / 3, 1 / 3),
        aim_weight: float = 0.3,
    ) -> None:
        self.codec, self.retrieve_rate = codec, retrieve_rate
        self.aims, self.aim_weight = aims, aim_weight
        self.envs: list[TextProtocol] = []
        for weight, env, videos in WORLDS:
            made = TextProtocol(
                gym.make(
                    "LongVideoQA-v0",
                    disable_env_checker=True,
                    suite_options={
                        **tiny.SUITE_OPTIONS,
                        **videos,
                        "size": 1_000_000,
                        "seed": 1_000_003 + seed,
                    },
                    **{**tiny.ENV_OPTIONS, **env},
                )
            )
            self.envs += [made] * weight
        first = self.envs[0].unwrapped
        assert isinstance(first, LongVideoQAEnv)
        self.suite = first.suite
        texts = codec.tokenizer.convert_ids_to_tokens(range(len(codec.tokenizer)))
        self.words = [text for text in texts if text.isalpha() and text.isascii()]

    def drill(self, rng: np.random.Generator, questions: int = 8) -> Lesson:
        """Return a list of options, and some of them with their letters."""
        if rng.random() < 0.5:
            options = self.suite[int(rng.integers(len(self.suite)))].options
        else:
            count = int(rng.integers(2, 7))
            options = tuple(rng.choice(self.words, count, replace=False).tolist())
        user = self.codec.encode_reply("\n" + "\n".join(lettered(options)), end=False)
        asked = rng.integers(0, len(options), questions).tolist()
        pieces = []
        for choice in asked:
            pieces += [Piece(": ", FORMAT, 0.0), Piece(options[choice], EVIDENCE, 0.0)]
            pieces.append(Piece(f" {LETTERS[choice]}", LETTER))
        return self._lesson([Block(user.ids)], [pieces], end=False)

    def caption(self, rng: np.random.Generator, frames: int = 8) -> Lesson:
        """Return frames of a video, and what each shows."""
        base = self.envs[int(rng.integers(len(self.envs)))].unwrapped
        assert isinstance(base, LongVideoQAEnv) and isinstance(base.suite, HaystackSuite)
        task = base.suite[int(rng.integers(len(base.suite)))]
        world = base.suite.world(task)
        times = rng.random(frames) * world.duration_s
        for place in range(0, frames, 2):  # cards are seldom up; every other frame shows one
            event = world.events[int(rng.integers(len(world.events)))]
            times[place] = event.start_s + rng.random() * (event.end_s - event.start_s)
        times = rng.permutation(times)
        images = np.zeros((frames, tiny.FRAME_SIZE, tiny.FRAME_SIZE, 3), np.uint8)
        base.suite.open_video(task).draw(times, images)
        users, replies, words = [], [], []
        for time_s, image in zip(times, images, strict=True):
            event = world.event_at(float(time_s))
            look = LOOKS[world.looks[world.scene_at(float(time_s))]].name
            card = [event.glyph.colour, event.glyph.name] if event else []
            said = Piece(", ".join(card) or tiny.NOT_SEEN, EVIDENCE)
            users.append(self.codec.image(image))
            replies.append([Piece(f" {look}", PLACE), Piece(": ", FORMAT), said])
            spoken = [self.codec.encode_reply(text, end=False).ids for text in (f" {look}", *card)]
            words.append(np.concatenate(spoken))
        return self._lesson(users, replies, end=False)._replace(words=tuple(words))

    def search(self, rng: np.random.Generator) -> Lesson:
        """Return numbered frames, where the scene in question is, and what its card shows."""
        base = self.envs[int(rng.integers(len(self.envs)))].unwrapped
        assert isinstance(base, LongVideoQAEnv) and isinstance(base.suite, HaystackSuite)
        task = base.suite[int(rng.integers(len(base.suite)))]
        world = base.suite.world(task)
        (start_s, end_s), *_ = task.segments_s
        count = int(rng.integers(3, 9))
        times = rng.random(count) * world.duration_s
        if rng.random() < 0.6:
            times[0] = start_s + rng.random() * (end_s - start_s)
        times = np.sort(times)
        indices = np.sort(rng.choice(128 if rng.random() < 0.3 else 64, count, replace=False))
        images = np.zeros((count, tiny.FRAME_SIZE, tiny.FRAME_SIZE, 3), np.uint8)
        base.suite.open_video(task).draw(times, images)
        content: list[dict[str, Any]] = []
        for index, image in zip(indices, images, strict=True):
            content.append({"type": "text", "text": f"frame_idx:{index}"})
            content.append({"type": "image", "image": image})
        ask = f"Question: {task.question}\nOptions:\n" + "\n".join(lettered(task.options))
        content.append({"type": "text", "text": ask})
        scene = world.scene_at(start_s)
        here = [
            int(index)
            for index, time_s in zip(indices, times, strict=True)
            if world.scene_at(float(time_s)) == scene
        ]
        seen = bool(((times >= start_s) & (times < end_s)).any())
        return self._lesson([self.codec.user(content)], [self._thought(task, here, seen)])

    def episode(self, rng: np.random.Generator) -> Lesson:
        """Return an episode played by the script."""
        env = self.envs[int(rng.integers(len(self.envs)))]
        base = env.unwrapped
        assert isinstance(base, LongVideoQAEnv) and isinstance(base.suite, HaystackSuite)
        env.reset(options={"index": int(rng.integers(len(base.suite)))})
        blocks = [self.codec.system(env.messages()[0]["content"][0]["text"])]
        replies: list[list[Piece]] = []
        over = False
        while not over:
            pieces = self._turn(env.turn, base, rng)
            blocks.append(self.codec.user(env.messages()[-1]["content"]))
            replies.append(pieces)
            _, _, over, _, _ = env.step("".join(piece.text for piece in pieces))
        return self._lesson(blocks, replies)

    def _turn(self, turn: Turn, base: LongVideoQAEnv, rng: np.random.Generator) -> list[Piece]:
        episode, suite = base.episode, base.suite
        assert episode is not None and isinstance(suite, HaystackSuite)
        task = episode.task
        assert task.answer_index is not None
        (start_s, end_s), *_ = task.segments_s
        world = suite.world(task)
        scene = world.scene_at(start_s)
        here = [
            int(index)
            for index, time_s in zip(turn.frame_index, turn.frame_time, strict=True)
            if world.scene_at(float(time_s)) == scene
        ]
        shown = [*episode.overview_shown_s, *(t for log in episode.turns for t in log.shown_s)]
        seen = any(start_s <= time_s < end_s for time_s in shown)
        pieces = self._thought(task, here, seen)
        if not turn.may_retrieve:
            return pieces + self._answer(self._choice(task, seen, rng), seen)
        if rng.random() < 0.5:
            habit = 2 * (1 - self.retrieve_rate)
            return pieces + self._answer(self._choice(task, seen, rng), seen, habit)
        low, high = self._interval(turn, here, rng)
        return [
            *pieces,
            Piece("<retrieve>", ACTION, 2 * self.retrieve_rate),
            Piece(str(low), INTERVAL, self.aim_weight),
            Piece(", ", FORMAT),
            Piece(str(high), INTERVAL, self.aim_weight),
            Piece("</retrieve>", FORMAT),
        ]

    def _choice(self, task: Any, seen: bool, rng: np.random.Generator) -> int:
        return task.answer_index if seen else int(rng.integers(len(task.options)))

    def _interval(self, turn: Turn, here: list[int], rng: np.random.Generator) -> tuple[int, int]:
        """Draw an interval: anywhere, between two frames shown, or around frames just named.

        The last kind begins at the first frame named or the one shown before it, and ends at the
        last one named or the one shown after it.
        """
        shown = turn.frame_index.tolist()
        draw, (around, between) = rng.random(), self.aims
        if draw < around and here:
            first, last = shown.index(here[0]), shown.index(here[-1])
            before, after = rng.random(2) < 0.7
            low, high = shown[max(0, first - before)], shown[min(len(shown) - 1, last + after)]
        elif draw < around + between and shown:
            low, high = rng.choice(turn.frame_index, 2).tolist()
        else:
            low, high = rng.integers(0, turn.last_index + 1, 2).tolist()
        return min(low, high), max(low, high)

    def _thought(self, task: Task, here: list[int], seen: bool) -> list[Piece]:
        """Say which frames show the scene (first and last), and what is on its card, if seen."""
        assert task.answer_index is not None
        place = [Piece("none", PLACE)]
        if here:
            place = [Piece(str(here[0]), PLACE), Piece(", ", FORMAT), Piece(str(here[-1]), PLACE)]
        evidence = [Piece(tiny.NOT_SEEN, EVIDENCE)]
        if seen:
            evidence = [
                Piece(task.options[task.answer_index], EVIDENCE),
                Piece(f" {LETTERS[task.answer_index]}", LETTER),
            ]
        think, close = Piece("<think>", FORMAT), Piece("</think>", FORMAT)
        return [think, *place, Piece(": ", FORMAT), *evidence, close]

    def _answer(self, choice: int, seen: bool = True, weight: float = 1.0) -> list[Piece]:
        return [
            Piece("<answer>", ACTION, weight),
            Piece(LETTERS[choice], LETTER if seen else FORMAT, 1.0 if seen else 0.2),
            Piece("</answer>", FORMAT),
        ]

    def _lesson(
        self, users: list[Block], replies: list[list[Piece]], *, end: bool = True
    ) -> Lesson:
        blocks: list[Block] = users[: len(users) - len(replies)]
        weights: list[float] = []
        skills: list[int] = []
        for i, (user, pieces) in enumerate(
            zip(users[len(users) - len(replies) :], replies, strict=True)
        ):
            ids: list[int] = []
            for piece in pieces:
                encoded = self.codec.encode_reply(piece.text, end=False).ids.tolist()
                ids += encoded
                weights += [piece.weight] * len(encoded)
                skills += [piece.skill] * len(encoded)
            if end:
                ids.append(self.codec.end_id)
                weights.append(1.0)
                skills.append(FORMAT)
            reply = self.codec.reply(ids)
            blocks += [user, reply]
            if end and i + 1 < len(replies):
                blocks.append(self.codec.close(reply))
        row = make_row(blocks, self.codec.grid, self.codec.image_token_id)
        return Lesson(row, np.array(weights, np.float32), np.array(skills))


def codec_of(tokenizer: Any) -> ChatCodec:
    """Return the codec of the tiny MLLM."""
    ids = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|vision_start|>", "<|vision_end|>"])
    return ChatCodec(
        tokenizer,
        image_token_id=ids[0],
        vision_start_id=ids[1],
        vision_end_id=ids[2],
        grid=ImageGrid(14, 2),
    )
