"""LongVideoQAVectorEnv: many environments in one process, and one batch that all write into.

The environments are those of ``env.py``, and everything that is decided is decided there. Here,
what they show is written straight into the arrays of the batch, procedural videos are drawn
together, and infos become arrays at once; ``SyncVectorEnv``, which it extends, makes a copy of the
observation of each environment, another one of the batch, and adds infos value by value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gym_longvideo import checks
from gym_longvideo.env import SETTINGS, LongVideoQAEnv
from gym_longvideo.episode import Action
from gym_longvideo.rewards import LedgerRow
from gym_longvideo.suite import Suite
from gym_longvideo.viewer import put_together

_NOTHING = LedgerRow()


class LongVideoQAVectorEnv(SyncVectorEnv):
    """What ``SyncVectorEnv`` of ``LongVideoQAEnv`` gives, bit by bit, in about half the time.

    ``gym.make_vec("gym_longvideo:LongVideoQA-v0", num_envs=16)`` makes it. Tasks, observations,
    rewards and infos are those of the single environments; ``reset(seed=s)`` seeds environment i
    with s + i. Any suite goes; only what is drawn (haystack) gains, video files are decoded one
    after the other: for them ``vectorization_mode="async"`` uses more cores.

    An action is refused before any environment has moved. In ``AutoresetMode.DISABLED``, stepping
    an episode that is over raises ``ResetNeeded``; ``reset(options={"reset_mask": mask})`` starts
    those of a (num_envs,) bool mask.
    """

    envs: list[Any]  # of LongVideoQAEnv; a narrower type than the base's own is refused

    def __init__(
        self,
        num_envs: int = 1,
        suite: str | Suite = "haystack",
        split: str = "train",
        suite_options: Mapping[str, Any] | None = None,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        render_mode: str | None = None,
        rules: str | None = None,
        **settings: Any,
    ) -> None:
        """Make the environments; no video is opened before ``reset``.

        Args:
            num_envs: Number of environments.
            suite: As for ``LongVideoQAEnv``.
            split: As for ``LongVideoQAEnv``.
            suite_options: As for ``LongVideoQAEnv``.
            autoreset_mode: An ``AutoresetMode`` or its value: "NextStep", "SameStep", "Disabled".
            copy: True gives every batch arrays of its own. False writes each into the same ones,
                so that an observation lasts until the next call.
            render_mode: As for ``LongVideoQAEnv``.
            rules: As for ``LongVideoQAEnv``.
            **settings: Fields of ``gym_longvideo.settings.EnvSettings``, the same for all.

        Raises:
            TypeError: For a name that is no setting, with the nearest one.
            ValueError: For a value that is not allowed, naming it and the fix.
        """
        for name in settings.keys() - set(SETTINGS):
            raise TypeError(
                f"LongVideoQAVectorEnv got an unexpected keyword argument {name!r}"
                f"{checks.instead(name, (*SETTINGS, 'autoreset_mode', 'copy'))}; what limits or "
                'wraps single environments needs vectorization_mode="sync" or "async"'
            )
        checks.whole("num_envs", num_envs, 1)
        checks.choice("copy", copy, (True, False))
        mode = autoreset_mode
        if not isinstance(mode, AutoresetMode):
            checks.choice("autoreset_mode", mode, [each.value for each in AutoresetMode])
            mode = AutoresetMode(mode)
        make = partial(
            LongVideoQAEnv, suite, split, suite_options, rules=rules, render_mode=render_mode,
            **settings,
        )  # fmt: skip
        super().__init__([make] * num_envs, copy=copy, autoreset_mode=mode)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start episodes.

        Args:
            seed: Seed of the first environment (the others get the numbers after it), or one for
                each.
            options: As for ``LongVideoQAEnv.reset``, the same for all; and ``"reset_mask"``,
                (num_envs,) bool, which of them to reset (all by default).

        Raises:
            ValueError: For a seed, a mask or options that do not fit.
            VideoError: As from ``LongVideoQAEnv.reset``.
        """
        options = dict(options or {})
        chosen = self._chosen(options.pop("reset_mask", None))
        seeds = self._seeds(seed)
        for i in chosen:
            self.envs[i]._begin(seeds[i], options)
        infos = [self.envs[i]._info(_NOTHING) for i in chosen]
        return self._batch(), stack_infos(infos, chosen, self.num_envs)

    def step(
        self, actions: Any
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one turn in each environment.

        Args:
            actions: (num_envs, 4) of the action space, or a sequence of what
                ``LongVideoQAEnv.step`` takes; ignored where an environment is reset instead.

        Returns:
            The batch of observations; (num_envs,) float64 rewards, bool terminated and truncated;
            infos as ``SyncVectorEnv`` lays them out.

        Raises:
            ValueError: If there is not one action for each environment, or one lies outside the
                action space; no environment has moved then.
            ResetNeeded: Before the first reset, and in mode DISABLED if an episode is over.
            VideoError: As from ``LongVideoQAEnv.reset``.
        """
        taken = self._taken(actions)
        count, same_step = self.num_envs, self.autoreset_mode == AutoresetMode.SAME_STEP
        rewards = np.zeros(count)
        terminated, truncated = np.zeros((2, count), bool)
        infos, ended = [], []
        final_obs, final_info = np.full(count, None, object), []
        for i, (env, action) in enumerate(zip(self.envs, taken, strict=True)):
            paid = _NOTHING
            if action is None:
                env._begin()
            else:
                paid, terminated[i], truncated[i] = env._turn(action)
                rewards[i] = paid.total
                if same_step and env._running().over:
                    ended.append(i)
                    final_obs[i] = env._observation()
                    final_info.append(env._info(paid))
                    env._begin()
                    paid = _NOTHING
            infos.append(env._info(paid))
        batch = stack_infos(infos, list(range(count)), count)
        if ended:
            over = terminated | truncated
            batch |= {"final_obs": final_obs, "_final_obs": over}
            batch["final_info"] = stack_infos(final_info, ended, count)
            batch["_final_info"] = over.copy()
        return self._batch(), rewards, terminated, truncated, batch

    def action_masks(self) -> np.ndarray:
        """Return the (num_envs, 2 + M + M + K) bool masks of legal values.

        >>> envs = LongVideoQAVectorEnv(2, max_turns=1)
        >>> _ = envs.reset(seed=0)
        >>> envs.action_masks()[:, :2].tolist()  # with one turn there is nothing but to answer
        [[False, True], [False, True]]
        """
        masks = np.zeros((self.num_envs, sum(self.envs[0]._nvec)), bool)
        for env, row in zip(self.envs, masks, strict=True):
            env._mask(row)
        return masks

    def _taken(self, actions: Any) -> list[Action | None]:
        """Return the action of each environment, None for one that is reset instead."""
        over = [env._running().over for env in self.envs]
        if any(over) and self.autoreset_mode != AutoresetMode.NEXT_STEP:
            raise ResetNeeded(
                f"the episodes of environments {np.flatnonzero(over).tolist()} are over; call "
                'reset(options={"reset_mask": mask}) with a bool array that is True there'
            )
        rows = actions.tolist() if isinstance(actions, np.ndarray) else actions
        if not isinstance(rows, Sequence) or len(rows) != self.num_envs:
            raise ValueError(
                f"actions={actions!r} must hold one action for each of the {self.num_envs} "
                f"environments: ({self.num_envs}, 4)"
            )
        return [
            None if done else env._parse(row)
            for env, row, done in zip(self.envs, rows, over, strict=True)
        ]

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        count = self.num_envs
        if seed is None:
            return [None] * count
        if checks.is_whole(seed):
            first = checks.whole("seed", seed, 0)
            return list(range(first, first + count))
        if not isinstance(seed, Sequence) or len(seed) != count:
            raise ValueError(
                f"seed={seed!r} is neither a whole number nor a list of {count}, one for each "
                "environment"
            )
        return [checks.whole(f"seed[{i}]", each, 0, optional=True) for i, each in enumerate(seed)]

    def _chosen(self, mask: np.ndarray | None) -> list[int]:
        """Return which environments to reset."""
        count = self.num_envs
        if mask is None:
            return list(range(count))
        fits = isinstance(mask, np.ndarray) and mask.shape == (count,) and mask.dtype == bool
        if not fits or not mask.any():
            raise ValueError(
                f"reset_mask={mask!r} must be a bool array of shape ({count},) that is True "
                "somewhere"
            )
        return np.flatnonzero(mask).tolist()

    def _batch(self) -> dict[str, np.ndarray]:
        """Return what all environments show now."""
        turns = [env._running().turn for env in self.envs]
        batch: Any = self._observations
        if self.copy:
            batch = {key: np.empty_like(array) for key, array in batch.items()}
        viewers = [env.viewer for env in self.envs]
        put_together(viewers, batch["frames"])
        frame_index, frame_time = batch["frame_index"], batch["frame_time"]
        frame_index.fill(-1)
        frame_time.fill(-1.0)
        for i, viewer in enumerate(viewers):
            if count := len(viewer.times):
                frame_index[i, :count] = viewer.view.frame_index[:count]
                frame_time[i, :count] = viewer.times
        for key, name in (("seen", "_seen"), ("question", "_question"), ("options", "_options")):
            rows = [getattr(env, name) for env in self.envs]
            np.concatenate(rows, out=batch[key].reshape(-1))
        batch["turn"][:, 0] = turns
        return batch


def stack_infos(
    infos: Sequence[Mapping[str, Any]], places: Sequence[int], count: int
) -> dict[str, Any]:
    """Return infos of the same keys as one info of arrays, as ``SyncVectorEnv`` does.

    Args:
        infos: One for each of some environments.
        places: Which environments they are.
        count: Number of all environments.

    Returns:
        By key: a (count, ...) array of the values, of the type of the first, zeros (of what is no
        number: None) where there is no info; a dict for values that are dicts. By "_" + key: a
        (count,) bool array that is True in ``places``.

    >>> found = stack_infos([{"iou": 0.5, "terms": {"bonus": 1.0}}], [1], 2)
    >>> found["iou"].tolist(), found["terms"]["bonus"].tolist(), found["_iou"].tolist()
    ([0.0, 0.5], [0.0, 1.0], [False, True])
    """
    present = np.full((len(infos[0]), count), len(places) == count)
    if len(places) < count:
        present[:, places] = True
    columns = zip(*(info.values() for info in infos), strict=True)
    stacked: dict[str, Any] = {}
    for key, values, mask in zip(infos[0], columns, present, strict=True):
        stacked[key] = _stack(values, places, count)
        stacked[f"_{key}"] = mask
    return stacked


def _stack(values: tuple[Any, ...], places: Sequence[int], count: int) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return stack_infos(values, places, count)
    if isinstance(first, np.ndarray):
        array, blank = np.array(values), 0
    else:
        number = isinstance(first, (bool, int, float))
        array = np.fromiter(values, type(first) if number else object, len(values))
        blank = 0 if number else None
    if len(values) == count:
        return array
    whole = np.full((count, *array.shape[1:]), blank, array.dtype)
    whole[places] = array
    return whole
