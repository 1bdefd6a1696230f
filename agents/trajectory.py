"""Trajectory: one dialogue about one task, as it was sampled and as it is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.model.chat import Block, ChatCodec, window
from agents.model.policy import MLLMPolicy
from agents.model.rows import Row
from agents.model.sampling import Reply
from gym_longvideo.record import EpisodeRecord

_UNSAID = Reply(np.zeros(0, np.int64), np.zeros(0, np.float32), False)
_NOTHING = Block(np.zeros(0, np.int64))


@dataclass
class Exchange:
    """One exchange.

    Attributes:
        user: What the environment showed.
        reply: What the policy said.
        close: What the template puts after the reply.
        reward: What the turn finally earned from the environment.
        retrieved: Whether a retrieval was carried out.
        malformed: Why the reply was no action, "" if it was one.
        bonus: What the learner paid for retrieving, beside the reward.
    """

    user: Block
    reply: Reply
    close: Block
    reward: float = 0.0
    retrieved: bool = False
    malformed: str = ""
    bonus: float = 0.0

    @classmethod
    def opened(cls, user: Block) -> Exchange:
        """Return one in which nothing is said yet."""
        return cls(user, _UNSAID, _NOTHING)

    @property
    def earned(self) -> float:
        """Reward and bonus."""
        return self.reward + self.bonus


@dataclass
class Trajectory:
    """One dialogue about one task.

    Attributes:
        system: The system message.
        turns: In order.
        place: In the batch, which may be spread over processes.
        task_id: Of the task.
        success: Whether the answer was right.
        outcome: As in the environment's info.
        infra_error: What broke, "" if nothing did.
        frames_shown: In all.
        iou_gain: Best IoU minus that of the overview; NaN if not judged.
        lenient_success: Whether a forgiving parser would have read the right answer.
        record: The environment's record, if wanted.
        frames: What each turn showed, (n, H, W, 3) uint8, if records are wanted.
        played: The environment's own episode, for pictures, if records are wanted.
    """

    system: Block
    turns: list[Exchange] = field(default_factory=list)
    place: int = 0
    task_id: str = ""
    success: bool = False
    outcome: str = ""
    infra_error: str = ""
    frames_shown: int = 0
    iou_gain: float = float("nan")
    lenient_success: bool = False
    record: EpisodeRecord | None = None
    frames: list[np.ndarray] = field(default_factory=list)
    played: Any = None

    @property
    def episode_return(self) -> float:
        """What the episode earned, bonus included once the learner has paid it."""
        return sum(turn.earned for turn in self.turns)

    def counts(self) -> dict[str, Any]:
        """Return what an evaluation counts, see ``agents.evaluation.Tally``."""
        return {
            "success": self.success,
            "lenient_success": self.lenient_success,
            "frames": self.frames_shown,
            "earned": sum(turn.reward for turn in self.turns),
            "iou_gain": self.iou_gain,
            "turns": len(self.turns),
            "retrieved": sum(turn.retrieved for turn in self.turns),
            "malformed": sum(bool(turn.malformed) for turn in self.turns),
            "truncated": sum(turn.reply.truncated for turn in self.turns),
            "tokens": sum(len(turn.reply.ids) for turn in self.turns),
        }

    def rows(self, codec: ChatCodec, history: int | None) -> Iterator[list[Block]]:
        """Yield sequences that hold every reply exactly once, in the context it was sampled in.

        Turns whose context only grew share one sequence; a turn for which the window moved on, or
        whose earlier replies are shown without their thinking, has one of its own, in which earlier
        replies are not trained on again.
        """
        count = len(self.turns)
        shared = count if history is None else min(history + 1, count)
        if codec.drops_thinking:
            shared = min(1, count)
        blocks = [block for turn in self.turns[:shared] for block in _said(turn)]
        yield [self.system, *blocks[:-1]]  # nothing is learned from the last close
        for k in range(shared, count):
            reply = codec.reply(self.turns[k].reply.ids)
            yield [*self._context(k, codec, history), reply]

    def context(self, codec: ChatCodec, history: int | None) -> list[Block]:
        """Return the context of the last turn, which is not answered yet."""
        return self._context(len(self.turns) - 1, codec, history)

    def _context(self, k: int, codec: ChatCodec, history: int | None) -> list[Block]:
        earlier = [codec.past(turn.user, turn.reply.ids) for turn in self.turns[:k]]
        return [self.system, *window([*earlier, [self.turns[k].user]], history)]


def _said(turn: Exchange) -> list[Block]:
    return [turn.user, Block(turn.reply.ids, (), True), turn.close]


def rows_of(
    trajectories: Sequence[Trajectory], policy: MLLMPolicy, history: int | None
) -> tuple[list[Row], list[int]]:
    """Return the training rows of episodes, and which episode each belongs to."""
    rows: list[Row] = []
    owners: list[int] = []
    for i, trajectory in enumerate(trajectories):
        for blocks in trajectory.rows(policy.codec, history):
            rows.append(policy.row(blocks))
            owners.append(i)
    return rows, owners
