"""Exploration bootstrapping: a passing bonus for retrieving at all.

A policy that answers at once never learns that looking pays. While it seldom retrieves, every
executed retrieval earns a bonus, whatever it showed and whatever the answer: the bonus stands
outside the goal gate, because it must work before answers are right. It has to pass: at +1.0 a
wrong episode with two retrievals earns 2.1, an immediate right answer 1.1.

``RetrievalBonus`` is the schedule, by batches, for a learner that sees whole batches.
``BootstrapCurriculum`` gives it to any library as a wrapper, over a window of recent turns.

The bonus lives in the training reward alone. The environment's episode and its record never hear of
it, so neither evaluation nor ``rescore`` can count it.

Source: Video-MTR, arXiv 2508.20478v2, appendix A.5: the two stages and the permanent end. The paper
says "several" batches where we say ``patience=3``.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs

from gym_longvideo import checks
from gym_longvideo.env import LongVideoQAEnv

STAGES = ((0.1, 1.0), (0.5, 0.5))
PATIENCE = 3
WINDOW = 96  # the paper's batch: 32 episodes of up to 3 turns

# One lock for all, so that bonuses and windows stay picklable and copyable.
_LOCK = threading.RLock()


def executed_retrieve(info: Mapping[str, Any]) -> bool:
    """Return whether the turn of this ``info`` retrieved: well-formed, and its frames arrived."""
    return (
        tuple(info["interval"]) != (-1, -1) and info["malformed"] == "" and not info["infra_error"]
    )


class RetrievalBonus:
    """What each executed retrieval of a batch earns on top, given how often the batch retrieves.

    The rate is the share of turns that retrieve. A batch whose rate lies below a threshold is paid
    that threshold's bonus (the first that applies). After ``patience`` batches in a row at or above
    the last threshold the bonus is off for good.

    Args:
        stages: (threshold, bonus) pairs by rising threshold.
        patience: Batches in a row that switch the bonus off. The paper says only "several".

    Example:
        >>> bonus = RetrievalBonus(patience=2)
        >>> [bonus.update(retrieves, 96) for retrieves in (2, 12, 60, 60, 0)]
        [1.0, 0.5, 0.0, 0.0, 0.0]
        >>> bonus.enabled
        False
    """

    def __init__(
        self, stages: Sequence[Sequence[float]] = STAGES, patience: int = PATIENCE
    ) -> None:
        self.stages = _check_stages(stages)
        self.patience = checks.whole("patience", patience, 1)
        self._streak = 0
        self._enabled = True

    @property
    def enabled(self) -> bool:
        """Whether the bonus may still be paid; once False, always False."""
        return self._enabled

    @property
    def streak(self) -> int:
        """Batches in a row, up to now, at or above the last threshold."""
        return self._streak

    def at(self, rate: float) -> float:
        """Return the bonus that a retrieval rate calls for; counts nothing."""
        if self._enabled:
            for threshold, bonus in self.stages:
                if rate < threshold:
                    return bonus
        return 0.0

    def update(self, retrieves: int, turns: int) -> float:
        """Count a batch and return what each of its executed retrievals earns.

        Args:
            retrieves: Executed retrievals in the batch.
            turns: Turns in the batch, malformed ones included. Without any, nothing changes.

        Raises:
            ValueError: If the counts are none, or there are more retrievals than turns.
        """
        turns = checks.whole("turns", turns, 0)
        if checks.whole("retrieves", retrieves, 0) > turns:
            raise ValueError(
                f"retrieves={retrieves} is more than turns={turns}; count each retrieving turn once"
            )
        if turns == 0:
            return 0.0
        with _LOCK:
            rate = retrieves / turns
            self._streak = self._streak + 1 if rate >= self.stages[-1][0] else 0
            if self._streak >= self.patience:
                self._enabled = False
            return self.at(rate)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, JSON-able; stages and patience are arguments."""
        return {"enabled": self._enabled, "streak": self._streak}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        _check_keys(state, ("enabled", "streak"))
        self._enabled = bool(state["enabled"])
        self._streak = checks.whole("streak", state["streak"], 0)

    def __repr__(self) -> str:
        return f"RetrievalBonus(stages={self.stages}, patience={self.patience})"


class RetrievalWindow:
    """A sliding window over the turns of one or several environments, and the bonus it calls for.

    The bonus in force at a turn is that of the retrieval rate over the turns *before* it, at most
    ``size`` of them; before the first turn the rate is 0. Once per ``size`` turns the window, full
    of turns not judged before, counts as a batch for ``bonus.update`` and so for the latch: the
    bonus ends for good after ``patience`` such windows in a row, which never overlap.

    Safe to share between threads. Processes do not share it: each has its own.

    Args:
        bonus: The schedule; ``None`` for the paper's.
        size: Turns.
    """

    def __init__(self, bonus: RetrievalBonus | None = None, size: int = WINDOW) -> None:
        self.bonus = RetrievalBonus() if bonus is None else bonus
        self.size = checks.whole("window", size, 1)
        self._recent: deque[bool] = deque(maxlen=self.size)
        self._since_update = 0

    def in_force(self) -> tuple[float, float]:
        """Return the bonus of the next retrieval, and the rate it stands on."""
        with _LOCK:
            rate = sum(self._recent) / max(len(self._recent), 1)
            return self.bonus.at(rate), rate

    def count(self, retrieved: bool) -> tuple[float, float]:
        """Return what was in force for a turn, and count that turn."""
        with _LOCK:
            before = self.in_force()
            self._recent.append(bool(retrieved))
            self._since_update += 1
            if self._since_update == self.size:
                self._since_update = 0
                self.bonus.update(sum(self._recent), self.size)
            return before

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, JSON-able, the bonus included."""
        with _LOCK:
            return {
                "bonus": self.bonus.state_dict(),
                "recent": [int(retrieved) for retrieved in self._recent],
                "since_update": self._since_update,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        _check_keys(state, ("bonus", "recent", "since_update"))
        since = checks.whole("since_update", state["since_update"], 0)
        if len(state["recent"]) > self.size or since >= self.size:
            raise ValueError(
                f"the state is of a longer window than window={self.size}; use the size it was "
                "saved with"
            )
        with _LOCK:
            self.bonus.load_state_dict(state["bonus"])
            self._recent = deque(map(bool, state["recent"]), maxlen=self.size)
            self._since_update = since


class BootstrapCurriculum(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Pay the retrieval bonus to any learner, while recent turns seldom retrieve.

    Every executed retrieval is paid the bonus in force at once: it is added to the reward, to
    ``info["reward_terms"]["bonus"]`` and, at the end, to its turn in ``info["turn_rewards"]``, so
    components still add up to the return. Two keys are new: ``retrieval_bonus``, the bonus in force
    for this turn (paid or not), and ``retrieval_rate``, the rate it stands on; see
    ``RetrievalWindow`` for both and for when the bonus ends. A turn that broke (``infra_error``)
    is neither paid nor counted. Leave the wrapper out where you evaluate.

    Its state outlives ``reset``, seeded or not: the same seed and actions may earn another bonus
    later, and so ``spec.nondeterministic`` is True.

    Args:
        env: The environment, or one of its other wrappers.
        bonus: A ``RetrievalBonus`` or, to share one window among environments of a process, a
            ``RetrievalWindow``. ``None`` makes one from ``stages`` and ``patience``, which unlike
            objects can be written in JSON.
        window: Turns of the window; 96 by default (32 episodes of 3 turns).
        stages: Stages of the bonus.
        patience: Patience of the bonus, in windows.

    Example:
        >>> import gymnasium as gym
        >>> from agents.curriculum import BootstrapCurriculum
        >>> env = BootstrapCurriculum(gym.make("gym_longvideo:LongVideoQA-v0"))
        >>> _ = env.reset(seed=0)
        >>> _, reward, _, _, info = env.step([0, 10, 30, 0])
        >>> reward, info["reward_terms"]["bonus"], info["retrieval_rate"]
        (1.0, 1.0, 0.0)
        >>> _, reward, _, _, info = env.step([0, 40, 60, 0])
        >>> reward, info["retrieval_bonus"], info["retrieval_rate"]
        (0.0, 0.0, 1.0)
    """

    def __init__(
        self,
        env: gym.Env,
        bonus: RetrievalBonus | RetrievalWindow | None = None,
        window: int | None = None,
        stages: Sequence[Sequence[float]] | None = None,
        patience: int | None = None,
    ) -> None:
        RecordConstructorArgs.__init__(
            self, bonus=bonus, window=window, stages=stages, patience=patience
        )
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.unwrapped, LongVideoQAEnv):
            raise TypeError(
                f"{type(env.unwrapped).__name__} is no LongVideoQAEnv; wrap LongVideoQA-v0"
            )
        if bonus is None:
            bonus = RetrievalBonus(
                STAGES if stages is None else stages, PATIENCE if patience is None else patience
            )
        elif stages is not None or patience is not None:
            raise ValueError(
                f"stages={stages} and patience={patience} belong to the bonus; pass them, or "
                f"bonus={bonus!r}, not both"
            )
        if isinstance(bonus, RetrievalWindow):
            if window not in (None, bonus.size):
                raise ValueError(
                    f"window={window} contradicts the shared window of {bonus.size} turns; leave "
                    "window= out"
                )
            self.window = bonus
        elif isinstance(bonus, RetrievalBonus):
            self.window = RetrievalWindow(bonus, WINDOW if window is None else window)
        else:
            raise ValueError(f"bonus={bonus!r} is neither a RetrievalBonus nor a RetrievalWindow")
        self._paid: list[float] = []

    @property
    def spec(self) -> EnvSpec | None:
        """The specification, marked as nondeterministic: a seed does not bring the bonus back."""
        spec = super().spec
        if spec is not None:
            spec.nondeterministic = True
        return spec

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; the window goes on."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._paid = []
        bonus, rate = self.window.in_force()
        return observation, {**info, "retrieval_bonus": bonus, "retrieval_rate": rate}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one turn, pay it if it retrieved, and count it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        retrieved = executed_retrieve(info)
        broke = bool(info["infra_error"])
        bonus, rate = self.window.in_force() if broke else self.window.count(retrieved)
        paid = bonus if retrieved else 0.0
        self._paid.append(paid)
        terms = dict(info["reward_terms"])
        terms["bonus"] += paid
        info = {**info, "reward_terms": terms, "retrieval_bonus": bonus, "retrieval_rate": rate}
        if terminated or truncated:
            info["turn_rewards"] = info["turn_rewards"].copy()
            info["turn_rewards"][: len(self._paid)] += self._paid
        return observation, float(reward) + paid, terminated, truncated, info


def _check_stages(stages: Any) -> tuple[tuple[float, float], ...]:
    try:
        pairs = tuple((float(threshold), float(bonus)) for threshold, bonus in stages)
    except (TypeError, ValueError):
        pairs = ()
    if not pairs:
        raise ValueError(
            f"stages={stages!r} must be (threshold, bonus) pairs, such as ((0.1, 1.0), (0.5, 0.5))"
        )
    lowest = 0.0
    for threshold, bonus in pairs:
        if not lowest < threshold <= 1.0:
            raise ValueError(
                f"threshold {threshold} in stages={stages!r} must be greater than {lowest} and at "
                "most 1; list the stages by rising threshold"
            )
        if not 0.0 <= bonus < math.inf:
            raise ValueError(f"bonus {bonus} in stages={stages!r} must be finite, 0 or more")
        lowest = threshold
    return pairs


def _check_keys(state: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    if set(state) != set(keys):
        raise ValueError(
            f"state has the keys {sorted(state)}; state_dict() of this version writes {list(keys)}"
        )
