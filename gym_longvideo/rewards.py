"""The bi-level reward: what an answer earns, and what each retrieval earns if the answer is right.

Everything here is pure. A reward is data (``BiLevelReward``), an episode is a list of facts
(``TurnFacts``), and ``settle`` turns the two into a ledger. Because the environment pays what
``settle`` says and a stored record holds the same facts, an episode can be scored again under
another reward without running anything (``record.rescore``).

Source: Video-MTR, arXiv 2508.20478v2, section 3.2. Symbols: q_k ``TurnFacts.iou``, b_k the
baseline, R_acc ``LedgerRow.accuracy``, R_fm ``LedgerRow.relevance``, R_format ``LedgerRow.format``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from gym_longvideo import checks

Baseline = Literal["best", "previous", "initial"]
Gate = Literal["hard", "soft", "none"]
Rule = Literal["improvement", "last_iou"]
Timing = Literal["terminal", "immediate"]
Op = Literal["retrieve", "answer", "malformed"]


class TurnFacts(NamedTuple):
    """What a reward needs to know of one turn.

    Attributes:
        op: What the turn did; "malformed" turns spent the turn and showed nothing.
        iou: Set IoU of the frames shown with the relevant frames; NaN unless a retrieval was
            judged.
    """

    op: Op
    iou: float = math.nan


class LedgerRow(NamedTuple):
    """What one turn earned, by component."""

    accuracy: float = 0.0
    relevance: float = 0.0
    format: float = 0.0
    bonus: float = 0.0

    @property
    def total(self) -> float:
        """The turn's whole reward."""
        return self.accuracy + self.relevance + self.format + self.bonus


def frame_iou(shown: Collection[int], relevant: Collection[int]) -> float:
    """Set IoU of shown and relevant pool frames (q_k); NaN if nothing relevant is annotated.

    >>> frame_iou([2, 3, 4], [3, 4, 5])
    0.5
    >>> frame_iou([], [3])
    0.0
    """
    if not relevant:
        return math.nan
    shown, relevant = set(shown), set(relevant)
    return len(shown & relevant) / len(shown | relevant)


@dataclass(frozen=True)
class BiLevelReward:
    """A reward as data. The defaults are the paper's (preset ``video_mtr``).

    Attributes:
        accuracy: Paid for the right answer.
        accuracy_decay: Subtracted from it for every turn before the answer.
        format: Paid for every well-formed turn.
        relevance: Paid for a retrieval whose IoU beats the baseline by more than ``min_gain``.
        penalty: Slope of the penalty for falling below it: ``-penalty * (baseline - iou)``.
        min_gain: IoU by which the baseline must be beaten.
        baseline: Which IoU a retrieval must beat: the "best" so far, that of the "previous" view,
            or that of the "initial" overview. The first two count the overview too.
        rule: "improvement" pays every retrieval by the baseline; "last_iou" pays only the last
            retrieval, ``relevance * iou``.
        gate: "hard": rewards of the turns before the last count only if the answer is right.
            "none": they always count. "soft": as "hard", and the accuracy reward is multiplied by
            ``min(1, best retrieved IoU / gate_scale)`` where relevant frames are annotated.
        gate_scale: IoU at which the soft gate is fully open.
        timing: "terminal" holds everything in escrow until the episode ends; "immediate" pays each
            turn at once, which needs ``gate="none"`` and ``rule="improvement"``.
    """

    accuracy: float = 1.0
    accuracy_decay: float = 0.0
    format: float = 0.1
    relevance: float = 0.5
    penalty: float = 0.5
    min_gain: float = 0.0
    baseline: Baseline = "best"
    rule: Rule = "improvement"
    gate: Gate = "hard"
    gate_scale: float = 0.05
    timing: Timing = "terminal"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            checks.choice(f"reward {name}", getattr(self, name), choices)
        for name in _NUMBERS:
            checks.number(f"reward {name}", getattr(self, name))
        if self.gate_scale <= 0:
            raise ValueError(f"reward gate_scale={self.gate_scale} must be greater than 0")
        if self.penalty < 0:
            raise ValueError(
                f"reward penalty={self.penalty} would pay for worse retrievals; use 0 or more"
            )
        if self.timing == "immediate" and (self.gate != "none" or self.rule != "improvement"):
            raise ValueError(
                f"timing='immediate' pays a turn before the answer is known, which "
                f"gate={self.gate!r} and rule={self.rule!r} need; use gate='none' and "
                "rule='improvement', or timing='terminal'"
            )

    def settle(
        self, turns: Sequence[TurnFacts], *, initial_iou: float, correct: bool
    ) -> list[LedgerRow]:
        """Say what each turn finally earned.

        Args:
            turns: The turns of an episode, in order; the last one is turn K.
            initial_iou: IoU of the overview, NaN if nothing relevant is annotated.
            correct: Whether the last turn gave the right answer.

        Returns:
            One row a turn. The last turn keeps its format reward whatever the answer (R_format^K
            stands outside the gate in the paper's formula).
        """
        counts = correct or self.gate == "none"
        relevance = self._relevance(turns, initial_iou) if counts else [0.0] * len(turns)
        last = len(turns) - 1
        rows = []
        for k, turn in enumerate(turns):
            well_formed = turn.op != "malformed"
            row = LedgerRow(
                accuracy=self._accuracy(turns, k, initial_iou) if correct and k == last else 0.0,
                relevance=relevance[k],
                format=self.format if (counts or k == last) and well_formed else 0.0,
            )
            rows.append(row)
        return rows

    def _relevance(self, turns: Sequence[TurnFacts], initial_iou: float) -> list[float]:
        earned = [0.0] * len(turns)
        if self.rule == "last_iou":
            judged = [k for k, turn in enumerate(turns) if not math.isnan(turn.iou)]
            if judged:
                earned[judged[-1]] = self.relevance * turns[judged[-1]].iou
            return earned
        best = previous = initial_iou
        for k, turn in enumerate(turns):
            if math.isnan(turn.iou):
                continue
            reference = {"best": best, "previous": previous, "initial": initial_iou}[self.baseline]
            if turn.iou > reference + self.min_gain:
                earned[k] = self.relevance
            elif self.penalty and turn.iou < reference:
                earned[k] = -self.penalty * (reference - turn.iou)
            best, previous = max(best, turn.iou), turn.iou
        return earned

    def _accuracy(self, turns: Sequence[TurnFacts], k: int, initial_iou: float) -> float:
        paid = self.accuracy - self.accuracy_decay * k
        judged = [turn.iou for turn in turns if not math.isnan(turn.iou)]
        if self.gate == "soft" and not math.isnan(initial_iou):
            paid *= min(1.0, max(judged, default=0.0) / self.gate_scale)
        return paid

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-able dict; ``make_reward`` reads it back."""
        return asdict(self)


_CHOICES = {
    "baseline": get_args(Baseline),
    "rule": get_args(Rule),
    "gate": get_args(Gate),
    "timing": get_args(Timing),
}
_NUMBERS = (
    "accuracy",
    "accuracy_decay",
    "format",
    "relevance",
    "penalty",
    "min_gain",
    "gate_scale",
)

PRESETS: Mapping[str, BiLevelReward] = {
    # Video-MTR, the paper. It gives no slope for the penalty; 0.5 keeps it below the bonus.
    "video_mtr": BiLevelReward(),
    # Video-MTR, the released code: step bonus over the previous view, no penalty, no gate, and a
    # correct answer loses 0.1 for each earlier turn. Its whole environment: settings.RULES.
    "video_mtr_code": BiLevelReward(
        accuracy_decay=0.1,
        penalty=0.0,
        min_gain=0.001,
        baseline="previous",
        gate="none",
        timing="immediate",
    ),
    # The paper's reward without its gate: its Figure 5 shows what happens.
    "ungated": BiLevelReward(gate="none", timing="immediate"),
    # The answer alone: the baseline that every method is compared with.
    "accuracy": BiLevelReward(format=0.0, relevance=0.0, penalty=0.0),
    # LongVT, arXiv 2511.20785: accuracy + format + temporal IoU of the last crop.
    "longvt": BiLevelReward(relevance=1.0, penalty=0.0, rule="last_iou", gate="none"),
    # VideoSEAL, arXiv 2605.12571: accuracy multiplied by min(1, IoU / 0.05).
    "videoseal": BiLevelReward(format=0.0, relevance=0.0, penalty=0.0, gate="soft"),
}


def make_reward(reward: str | Mapping[str, Any] | BiLevelReward) -> BiLevelReward:
    """Return a reward from a preset's name, a mapping of fields, or a reward.

    A mapping may name the preset it starts from: ``{"preset": "video_mtr", "penalty": 1.0}``.

    Raises:
        ValueError: For an unknown preset or field.

    >>> make_reward({"preset": "ungated", "penalty": 0.0}).gate
    'none'
    """
    if isinstance(reward, BiLevelReward):
        return reward
    if isinstance(reward, str):
        if reward not in PRESETS:
            raise ValueError(f"reward={reward!r} is unknown; use one of {sorted(PRESETS)}")
        return PRESETS[reward]
    if not isinstance(reward, Mapping):
        raise ValueError(f"reward={reward!r} is neither a preset's name, a mapping nor a reward")
    fields = dict(reward)
    base = make_reward(fields.pop("preset", "video_mtr"))
    if unknown := sorted(set(fields) - set(asdict(base))):
        raise ValueError(f"reward has no field {unknown}; use some of {sorted(asdict(base))}")
    return replace(base, **fields)
