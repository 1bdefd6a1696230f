"""LongVideoQAEnv: spaces and the five-tuple around ``Episode``.

The class docstring is the environment's page. Everything that decides (turns, budget, rewards) is
in ``episode.py`` and ``rewards.py``; here are the spaces, the choice of the next task, and the
pixels.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from gym_longvideo import checks
from gym_longvideo.episode import (
    Action,
    Answer,
    Episode,
    Malformed,
    Retrieval,
    Retrieve,
    View,
    listed_frame_index,
)
from gym_longvideo.order import TaskOrder
from gym_longvideo.record import EpisodeRecord
from gym_longvideo.rewards import LedgerRow
from gym_longvideo.settings import EnvSettings, with_rules
from gym_longvideo.suite import Suite, load_suite, question_text, utf8_prefix
from gym_longvideo.task import Task
from gym_longvideo.video import BackendUnavailableError, MachineError, VideoError
from gym_longvideo.video.errors import VideoOpenError
from gym_longvideo.viewer import Viewer

RETRIEVE, ANSWER = 0, 1
SETTINGS = tuple(each.name for each in fields(EnvSettings))
_LONGEST_S = 1e6  # finite, because check_env warns of infinite bounds; eleven days


class LongVideoQAEnv(gym.Env[dict[str, Any], np.ndarray]):
    """Answer a question about a long video by looking twice.

    ## Description
    An episode is one multiple-choice question about one video. The agent first sees a sparse
    overview. In each turn it either *retrieves* denser frames of an interval or *answers*; after
    ``max_turns`` turns without an answer the episode ends unanswered. The decision process and the
    default reward are those of Video-MTR (arXiv 2508.20478).

    ## Action Space
    ``MultiDiscrete([2, M, M, K])``: (op, start, end, choice). op 0 retrieves the interval between
    the pool indices start and end (inclusive, either order) and ignores choice; op 1 answers choice
    and ignores the interval. ``action_masks()`` gives the flat mask, of length ``2 + M + M + K``,
    that sb3-contrib's MaskablePPO asks for.

    ## Observation Space
    A flat ``Dict``; F is the larger of the overview and the frames of a retrieval:

    | key | space | meaning |
    |---|---|---|
    | frames | ``Box(0, 255, (F, H, W, 3), uint8)`` | frames of this turn, zero padded |
    | frame_index | ``Box(-1, M-1, (F,), int64)`` | pool index of each frame, -1 for padding |
    | frame_time | ``Box(-1, 1e6, (F,), float32)`` | playback seconds, -1 for padding |
    | seen | ``Box(0, 1, (M,), int8)`` | every pool frame shown so far |
    | question | ``Box(0, 255, (L,), uint8)`` | UTF-8 of question and options, zero padded |
    | options | ``Box(0, 1, (K,), int8)`` | which choices exist |
    | turn | ``Box(0, max_turns, (1,), int64)`` | turns used so far |

    ## Rewards
    ``reward="video_mtr"``: 1 for the right answer; 0.1 for each well-formed turn; for a retrieval
    whose frames overlap the relevant frames better (set IoU) than anything shown before 0.5, for a
    worse one 0.5 times the drop is taken off. The rewards of turns before the last count only if
    the answer is right, so all is paid in the terminal step; ``info["turn_rewards"]`` puts it back
    where it was earned. Use a discount of 1. Other presets: ``gym_longvideo.rewards.PRESETS``.

    A retrieval in the last turn, a choice that does not exist or an interval outside the pool is
    *malformed*: it spends the turn, shows nothing and earns no format reward.

    ## Starting State
    The next task of the suite (``order``, ``shard``), or the one that
    ``options={"task_id": ...}`` or ``options={"index": ...}`` names.

    ## Episode End
    ``terminated``: an answer, or ``max_turns`` turns. ``truncated``: only a fault of the machinery
    (a decode error in mid-episode, a file that was exchanged); reward 0.0, ``info["infra_error"]``
    says what, and such episodes belong in no loss. The limit of turns is part of the process, never
    a TimeLimit.

    ## Information
    Every key at every step, of one shape and type: ``task_id``, ``question``, ``options`` (tuple of
    K, "" where there is none), ``interval`` (tuple, (-1, -1) if none), ``iou`` (of this turn's
    frames), ``best_iou`` (both -1.0 if nothing was judged: no segments, or no retrieval),
    ``turns``, ``frames_shown``, ``frames_decoded``, ``suspect_frames``, ``malformed`` (str),
    ``infra_error`` (str), ``reward_terms`` (what this step's reward is made of). What the answer
    and the segments are is empty before the end: ``is_success`` (False), ``outcome`` (""; then
    "correct", "wrong", "unanswered", "unscored", "infra_error"), ``turn_rewards`` ((max_turns,)
    float64, zeros; then what each turn finally earned), ``answer_index`` (-1; also if unknown),
    ``segments`` (""; then JSON of [start, end] pairs in seconds).

    ## Arguments
    See ``__init__`` and ``gym_longvideo.settings.EnvSettings``. All are JSON-able, except that a
    ``Suite`` or ``BiLevelReward`` may be passed.

    ## References
    Y. Xie, T. Chen, Z. Ge, L. Ni, Video-MTR: Reinforced Multi-Turn Reasoning for Long Video
    Understanding, arXiv 2508.20478.

    ## Version History
    v0: initial version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium's own declaration
        "render_modes": ["rgb_array", "ansi"],
        "render_fps": 1,
    }

    def __init__(
        self,
        suite: str | Suite = "haystack",
        split: str = "train",
        suite_options: Mapping[str, Any] | None = None,
        *,
        render_mode: str | None = None,
        rules: str | None = None,
        **settings: Any,
    ) -> None:
        """Make an environment; no video is opened before ``reset``.

        Args:
            suite: "haystack" (procedural), the name of an installed suite, the path of a JSON Lines
                annotation, "module:callable" that returns a ``Suite``, or a ``Suite``.
            split: Split of the suite.
            suite_options: Keyword arguments of the suite, e.g. ``{"families": "needle"}``.
            render_mode: "rgb_array", "ansi" or ``None``.
            rules: Name of settings that are set at once, under those that are given:
                "video_mtr_code" plays the released code of Video-MTR.
            **settings: Fields of ``gym_longvideo.settings.EnvSettings``, where each is explained.

        Raises:
            TypeError: For a name that is no setting, with the nearest one.
            ValueError: For a value that is not allowed, naming it and the fix.
        """
        for name in settings.keys() - set(SETTINGS):  # in Python's words, which TorchRL reads
            raise TypeError(
                f"LongVideoQAEnv got an unexpected keyword argument {name!r}"
                f"{checks.instead(name, SETTINGS)}"
            )
        given = EnvSettings(**with_rules({"rules": rules, **settings}))
        checks.choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self.suite = load_suite(suite, split=split, options=suite_options)
        self._suite_options = {
            name: os.fspath(value) if isinstance(value, os.PathLike) else value
            for name, value in (suite_options or {}).items()
        }
        self._given = given
        self.max_turns, self.pool_size = given.max_turns, given.pool_size
        self.budget, self.frame_size = given.budget, given.frame_shape
        self.retrieval: Retrieval = given.retrieval
        self.reward = given.bi_level_reward
        self.order = TaskOrder(self.suite, given.order, given.shard)
        self.on_video_error = given.on_video_error
        self.render_mode = render_mode
        self.max_options = self.suite.max_options
        if given.max_options is not None:
            self.max_options = checks.whole(
                "max_options", given.max_options, self.suite.max_options
            )

        height, width = self.frame_size
        count = max(self.budget.overview, self.budget.retrieval)
        self._frames_shape = (count, height, width, 3)
        self._no_index = np.full(count, -1, np.int64)
        self._no_time = np.full(count, -1.0, np.float32)
        self.observation_space = spaces.Dict(
            {
                "frames": spaces.Box(0, 255, self._frames_shape, np.uint8),
                "frame_index": spaces.Box(-1, self.pool_size - 1, (count,), np.int64),
                "frame_time": spaces.Box(-1.0, _LONGEST_S, (count,), np.float32),
                "seen": spaces.Box(0, 1, (self.pool_size,), np.int8),
                "question": spaces.Box(0, 255, (given.question_bytes,), np.uint8),
                "options": spaces.Box(0, 1, (self.max_options,), np.int8),
                "turn": spaces.Box(0, self.max_turns, (1,), np.int64),
            }
        )
        self._nvec = (2, self.pool_size, self.pool_size, self.max_options)
        self.action_space = spaces.MultiDiscrete(list(self._nvec))

        self.viewer = Viewer(self.suite, given)
        self.episode: Episode | None = None
        self.skipped: list[tuple[str, str]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Reseeds the order of tasks and starts it over.
            options: ``{"task_id": str}`` or ``{"index": int}`` picks a task.

        Raises:
            ValueError: For unknown options.
            VideoError: If the video cannot be opened or its overview not decoded (with
                ``on_video_error="skip"`` only if no task of the shard has a usable video, or the
                machine is to blame).
        """
        self._begin(seed, options)
        return self._observation(), self._info(LedgerRow())

    def step(
        self, action: np.ndarray | Action
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take one turn.

        Args:
            action: (4,) of the action space; or an ``Action`` of ``gym_longvideo.episode``, as
                views that speak otherwise give it: ``Malformed(reason)`` spends the turn.

        Raises:
            ValueError: If an array lies outside the action space, or an ``Action`` holds something
                else than whole numbers.
            ResetNeeded: If the episode is over.
        """
        paid, terminated, truncated = self._turn(self._parse(action))
        return self._observation(), paid.total, terminated, truncated, self._info(paid)

    def action_masks(self) -> np.ndarray:
        """Return the flat bool mask of legal values, of length ``2 + M + M + K``.

        >>> import gymnasium as gym
        >>> env = gym.make("gym_longvideo:LongVideoQA-v0", max_turns=1).unwrapped
        >>> _ = env.reset(seed=0)
        >>> env.action_masks()[:2].tolist()  # with one turn there is nothing but to answer
        [False, True]
        """
        masks = np.zeros(sum(self._nvec), bool)
        self._mask(masks)
        return masks

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent opening and decoding files since the environment was made."""
        return dict(self.viewer.timings)

    @property
    def record(self) -> EpisodeRecord:
        """The ``EpisodeRecord`` of the episode so far."""
        return EpisodeRecord.of(
            self._running(), suite=self.suite.name, split=self.suite.split, settings=self.settings
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that can move a result, JSON-able."""
        return {
            "suite_options": self._suite_options,
            "max_options": self.max_options,
            **self._given.resolved(),
        }

    def render(self) -> np.ndarray | str | None:  # type: ignore[override]
        """Draw the present state: a fixed canvas, (720, 1280, 3) uint8, or text."""
        if self.render_mode is None:
            gym.logger.warn('render() needs a mode: gym.make(..., render_mode="rgb_array")')
            return None
        from gym_longvideo import rendering  # Pillow is needed only here

        if self.render_mode == "ansi":
            return rendering.draw_text(self._running())
        episode = self._running()
        frames, times = self.viewer.frames, self.viewer.times
        if episode.over and not len(frames):  # the last look says more than an empty sheet
            frames, times = self.viewer.last_shown
        return rendering.draw_canvas(episode, frames, times)

    def close(self) -> None:
        """Release the decoders. Idempotent."""
        self.viewer.close()

    # ``reset``, ``step`` and ``action_masks`` in parts: ``vector.py`` is made of the same ones.

    def _begin(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        super().reset(seed=seed)
        if seed is not None:
            self.order.restart()
        picked = self.order.pick(options)
        # A reset that fails leaves no episode: its pixels would be those of another video.
        self.episode = None
        if picked is not None:
            self._start(self.suite[picked])
        else:
            self._start_next()

    def _turn(self, action: Action) -> tuple[LedgerRow, bool, bool]:
        """Take one turn; return what is paid, terminated and truncated."""
        episode = self._running()
        if episode.over:
            raise ResetNeeded(f"the episode is over ({episode.outcome}); call reset()")
        view, paid = episode.step(action)
        try:
            self._show(view)
            episode.turns[-1].shown_s = self.viewer.times.tolist()
        except VideoError as error:
            episode.fail(f"{type(error).__name__}: {error}")
            paid = LedgerRow()
        truncated = episode.outcome == "infra_error"
        return paid, episode.over and not truncated, truncated

    def _mask(self, masks: np.ndarray) -> None:
        """Set what is legal in a (2 + M + M + K,) bool mask of nothing."""
        episode, m = self._running(), self.pool_size
        masks[0], masks[1] = episode.may_retrieve, True
        length = len(episode.pool_times)
        masks[2 : 2 + length] = masks[2 + m : 2 + m + length] = True
        masks[2 + 2 * m : 2 + 2 * m + len(episode.task.options)] = True

    def _running(self) -> Episode:
        if self.episode is None:
            raise ResetNeeded("there is no episode yet; call reset()")
        return self.episode

    def _start_next(self) -> None:
        # A shuffled order may repeat tasks at the border of two epochs before it has named all.
        tried: set[int] = set()
        while len(tried) < len(self.order.indices):
            index = self.order.next(self.np_random)
            if index in tried:
                continue
            tried.add(index)
            task = self.suite[index]
            try:
                return self._start(task)
            except VideoError as error:
                # Where the machine is short of something, or lacks the backend, no file is to
                # blame: the next one would fail as well.
                blameless = isinstance(error, MachineError | BackendUnavailableError)
                if self.on_video_error == "raise" or blameless:
                    raise
                self._skip(task, error)
        last_id, last_error = self.skipped[-1]
        raise VideoError(
            f"no task of the {len(self.order.indices)} in this shard has a usable video; "
            f"the last one, {last_id!r}, failed with {last_error}"
        )

    def _skip(self, task: Task, error: VideoError) -> None:
        """Write down a task that was skipped, once however often its turn comes."""
        self.skipped[:] = [entry for entry in self.skipped if entry[0] != task.task_id]
        self.skipped.append((task.task_id, f"{type(error).__name__}: {error}"))

    def _start(self, task: Task) -> None:
        if len(task.options) > self.max_options:
            raise ValueError(
                f"task {task.task_id!r} has {len(task.options)} options, more than "
                f"max_options={self.max_options}; raise it"
            )
        pool_times, info = self.viewer.open(task)
        for start_s, end_s in task.segments_s:
            if start_s >= info.duration_s:
                raise VideoOpenError(
                    f"task {task.task_id!r} has a segment ({start_s:g}, {end_s:g}) beyond the end "
                    f"of its video at {info.duration_s:.2f} s; correct the annotation, or fetch "
                    "the file again if it is cut short",
                    path=task.video,
                )
        listed = listed_frame_index(task) if self._given.evidence == "listed" else frozenset()
        if listed and max(listed) >= len(pool_times):
            raise VideoOpenError(
                f"task {task.task_id!r} lists the evidence frame {max(listed)}, and the pool of "
                f"its video has frames 0..{len(pool_times) - 1}; use the pool it was made for, or "
                "evidence='segments'",
                path=task.video,
            )
        episode = Episode(
            task,
            pool_times,
            info.duration_s,
            info.fps if info.even else None,
            self.max_turns,
            self.budget,
            self.retrieval,
            self.reward,
            truncated_video=info.truncated,
            sampling=self._given.sampling,
            interval_order=self._given.interval_order,
            listed=listed,
        )
        self._seen = np.zeros(self.pool_size, np.int8)
        self._question = _encode(question_text(task), self._given.question_bytes)
        self._options = np.zeros(self.max_options, np.int8)
        self._options[: len(task.options)] = 1
        self._show(episode.overview)
        episode.overview_shown_s = self.viewer.times.tolist()
        self.episode = episode

    def _parse(self, action: np.ndarray | Action) -> Action:
        if isinstance(action, Action):
            return _checked(action)
        try:
            # Python numbers compare several times faster than those of numpy.
            given = action.tolist() if isinstance(action, np.ndarray) else list(action)
            op, start, end, choice = parts = [int(part) for part in given]
            inside = parts == given and 0 <= op < 2 and 0 <= choice < self.max_options
            inside = inside and 0 <= start < self.pool_size and 0 <= end < self.pool_size
        except (TypeError, ValueError, OverflowError):
            op, start, end, choice, inside = 0, 0, 0, 0, False
        if not inside:
            raise ValueError(
                f"action {action!r} is outside MultiDiscrete({list(self._nvec)}): "
                "(op: 0 retrieve, 1 answer; start; end; choice)"
            )
        return Answer(choice) if op == ANSWER else Retrieve(start, end)

    def _show(self, view: View) -> None:
        self.viewer.show(view)
        self._seen[view.frame_index] = 1  # only what really arrived

    def _observation(self) -> dict[str, Any]:
        episode, viewer = self._running(), self.viewer
        count = len(viewer.times)
        frames = np.empty(self._frames_shape, np.uint8)
        viewer.put(frames)
        frame_index = self._no_index.copy()
        frame_index[:count] = viewer.view.frame_index[:count]
        frame_time = self._no_time.copy()
        frame_time[:count] = viewer.times
        return {
            "frames": frames,
            "frame_index": frame_index,
            "frame_time": frame_time,
            "seen": self._seen.copy(),
            "question": self._question.copy(),
            "options": self._options.copy(),
            "turn": np.array([episode.turn], np.int64),
        }

    def _info(self, paid: LedgerRow) -> dict[str, Any]:
        episode = self._running()
        log = episode.turns[-1] if episode.turns else None
        iou = log.iou if log else episode.initial_iou
        task, over = episode.task, episode.over
        blanks = ("",) * (self.max_options - len(task.options))
        known = over and task.answer_index is not None
        return {
            "task_id": task.task_id,
            "question": task.question,
            "options": (*task.options, *blanks),
            "interval": log.interval if log else (-1, -1),
            "iou": _judged(iou),
            "best_iou": _judged(episode.best_iou),
            "turns": episode.turn,
            "frames_shown": episode.frames_shown,
            "frames_decoded": self.viewer.decoded,
            "suspect_frames": self.viewer.suspect,
            "malformed": log.action.reason if log and isinstance(log.action, Malformed) else "",
            "infra_error": episode.error,
            "reward_terms": paid._asdict(),
            "is_success": episode.outcome == "correct",
            "outcome": episode.outcome,
            "turn_rewards": episode.turn_rewards() if over else np.zeros(self.max_turns),
            "answer_index": task.answer_index if known else -1,
            "segments": json.dumps(task.segments_s) if over else "",
        }


def _checked(action: Action) -> Action:
    """Return an action of Python's own numbers: it goes into the record."""
    if isinstance(action, Malformed):
        if not isinstance(action.reason, str) or not action.reason:
            raise ValueError(f"{action!r} must say why in words")
        return action
    kind = Answer if isinstance(action, Answer) else Retrieve
    return kind(
        *(checks.whole(f"{kind.__name__}.{each.name}", getattr(action, each.name))
          for each in fields(kind))
    )  # fmt: skip


def _judged(iou: float) -> float:
    """Return -1.0 for NaN: check_env compares infos with ==, and NaN never equals itself."""
    return -1.0 if math.isnan(iou) else iou


def _encode(text: str, size: int) -> np.ndarray:
    """Return (size,) uint8 of UTF-8, cut on a character boundary, zero padded."""
    return np.frombuffer(utf8_prefix(text, size).ljust(size, b"\0"), np.uint8)


def _signature() -> inspect.Signature:
    """Return the signature of the constructor with every setting by name."""
    written = inspect.signature(LongVideoQAEnv.__init__).parameters
    named = [each for each in written.values() if each.kind is not each.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            *named,
            *(
                inspect.Parameter(each.name, keyword, default=each.default, annotation=each.type)
                for each in fields(EnvSettings)
            ),
        ]
    )


setattr(LongVideoQAEnv.__init__, "__signature__", _signature())  # noqa: B010 - functions have it

__all__ = ["ANSWER", "RETRIEVE", "LongVideoQAEnv"]
