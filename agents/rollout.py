"""Rollouts: many dialogues with many environments at once.

All episodes of a wave go turn by turn: one batched generation for those still running, then their
environments step side by side in a thread pool (decoding runs outside the GIL). An environment that
is done starts on its next task at once, so that its overview is decoded while others still talk.

Episodes that a fault of the machinery ended are returned like all others, with ``infra_error`` set;
the learner leaves them out and counts them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from agents.curriculum import executed_retrieve
from agents.evaluation import Tally
from agents.model.chat import Block
from agents.model.decoding import DecodeSession
from agents.model.policy import MLLMPolicy
from agents.model.sampling import Noise, Reply, Sampling, greedy
from agents.trajectory import Exchange, Trajectory
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.video.errors import MachineError, VideoError
from gym_longvideo.wrappers import TextProtocol


class Session(Protocol):
    """Replies for a batch of dialogues that go on turn by turn, as ``DecodeSession`` gives them.

    Attributes:
        prefilled: Tokens fed before replies, padding left out.
        decoded: Tokens sampled.
    """

    prefilled: int
    decoded: int

    def reply(
        self, keys: Sequence[Any], blocks: Sequence[Sequence[Block]], *, fresh: bool = False
    ) -> list[Reply]:
        """Return a reply for each dialogue, given what is new in each."""
        ...


MakeSession = Callable[[MLLMPolicy, Sampling, Noise | None], Session]
Replacement = Callable[[], int | None]
MOST_SKIPPED = 100  # videos in a row: then it is not the videos


class TrainingOrder:
    """Endless shuffled passes over a suite, dealt out in turn to those who share it.

    The environments are told which task to take, so that the order needs no state but a count and
    a run that was interrupted goes on with the very task that was next.

    Args:
        size: Tasks of the suite.
        seed: Of the order.
        rank: Of this sharer: a process, or a place of the batch.
        sharers: How many share the order.

    Attributes:
        start: Tasks of the order that nobody gets, because they were used before.
        count: Tasks that this sharer got.
    """

    def __init__(self, size: int, seed: int, rank: int = 0, sharers: int = 1) -> None:
        if size < 1:
            raise ValueError(f"a suite of size={size} has no task to train on")
        self.size, self.seed, self.rank, self.sharers = size, seed, rank, sharers
        self.start = self.count = 0

    def next(self) -> int:
        """Return the index of this sharer's next task."""
        epoch, within = divmod(self.start + self.count * self.sharers + self.rank, self.size)
        self.count += 1
        return int(_shuffled(self.size, self.seed, epoch)[within])


@lru_cache(maxsize=4)
def _shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


class RolloutCollector:
    """Plays episodes with a policy.

    Args:
        envs: Text environments (``TextProtocol``), stepped side by side.
        policy: The policy.
        history: Earlier turns that stay in context (w); ``None`` for all.
        workers: Threads; by default as many as environments, at most 16. 0 steps them one by one.
        reuse_cache: Keep the KV cache from turn to turn. Off, each turn is prefilled anew (the
            replies are the same; for measurements), as it always is where the chat template shows
            earlier replies without their thinking.
        keep_records: Keep records and frames of every episode.
        session: Makes what draws the replies of one wave of dialogues.

    Attributes:
        skipped: Tasks whose video could not be opened, and why.
        stats: Of the latest ``collect``: tokens "prefilled" and "decoded", and "waiting", the share
            of the time that was spent waiting for environments, that is for their videos.
    """

    def __init__(
        self,
        envs: Sequence[TextProtocol],
        policy: MLLMPolicy,
        *,
        history: int | None = None,
        workers: int | None = None,
        reuse_cache: bool = True,
        keep_records: bool = False,
        session: MakeSession = DecodeSession,
    ) -> None:
        if not envs:
            raise ValueError("envs is empty; pass at least one TextProtocol environment")
        for env in envs:
            if not isinstance(env, TextProtocol):
                raise TypeError(f"{type(env).__name__} speaks no text; wrap it in TextProtocol")
        self.envs, self.policy, self.history = list(envs), policy, history
        self.reuse_cache, self.keep_records = reuse_cache, keep_records
        self.session = session
        workers = min(16, len(envs)) if workers is None else workers
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._ready: dict[int, Any] = {}
        self.skipped: list[tuple[int, str]] = []
        self.stats: dict[str, float] = {}

    def close(self) -> None:
        """Stop the threads and close the environments."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for env in self.envs:
            env.close()

    def collect(
        self,
        tasks: Sequence[int],
        sampling: Sampling,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        *,
        replacement: Replacement | Sequence[Replacement] | None = None,
        places: Sequence[int] | None = None,
        upcoming: Sequence[int] = (),
        progress: Callable[[int], object] | None = None,
    ) -> list[Trajectory]:
        """Play an episode of each task.

        Args:
            tasks: Indices into the suite.
            sampling: How replies are drawn.
            generator: Of random numbers: one for all, or one for each task; then a reply does not
                depend on which others are drawn beside it.
            replacement: Gives another task where a video cannot be opened, or None to do without;
                one for all, or one for each task. Without it the error is raised. What was skipped
                is in ``skipped``.
            places: The place of each task in the batch; by default 0, 1, and so on.
            upcoming: Tasks of the next call, opened as soon as environments are idle.
            progress: Given the number newly done, each time some are.

        Returns:
            Episodes in the order of ``tasks``, less those for which there was no video.

        Raises:
            ValueError: If generators, replacements or places are not as many as tasks.
            VideoError: If a video cannot be opened and has no replacement, or if a hundred in a row
                cannot.
        """
        self._begin_to_collect()
        trajectories: list[Trajectory] = []
        following = [*tasks, *upcoming]
        places = range(len(tasks)) if places is None else places
        check_lengths(tasks, generator=generator, replacement=replacement, places=places)
        for start in range(0, len(tasks), len(self.envs)):
            part = slice(start, start + len(self.envs))
            wave = list(tasks[part])
            ahead = following[start + len(wave) : start + len(wave) + len(self.envs)]
            noise = (
                dict(enumerate(generator[part])) if isinstance(generator, Sequence) else generator
            )
            others = (
                replacement[part]
                if isinstance(replacement, Sequence)
                else [replacement] * len(wave)
            )
            for i, played in self._wave(wave, ahead, sampling, noise, others).items():
                played.place = places[start + i]
                trajectories.append(played)
            if progress is not None:
                progress(len(wave))
        self.stats["waiting"] = self._waited_s / max(time.perf_counter() - self._began, 1e-9)
        return trajectories

    def _begin_to_collect(self) -> None:
        self.stats = {"prefilled": 0.0, "decoded": 0.0, "waiting": 0.0}
        self._began, self._waited_s = time.perf_counter(), 0.0

    def _wave(
        self,
        tasks: list[int],
        ahead: list[int],
        sampling: Sampling,
        noise: Noise | None,
        others: Sequence[Replacement | None],
    ) -> dict[int, Trajectory]:
        for place, task in enumerate(tasks):
            self._open(place, task)
        codec = self.policy.codec
        began = time.perf_counter()
        begun = [(place, self._begin(place, other)) for place, other in enumerate(others)]
        self._waited_s += time.perf_counter() - began
        trajectories = {place: each for place, each in begun if each is not None}
        session = self.session(self.policy, sampling, noise)
        running = list(trajectories)
        turn = 0
        while running:
            fresh = self._is_fresh(turn)
            new = [self._new_blocks(trajectories[place], fresh) for place in running]
            replies = session.reply(running, new, fresh=fresh)
            texts = [codec.text(reply.ids) for reply in replies]
            began = time.perf_counter()
            steps = self._step(running, texts)
            self._waited_s += time.perf_counter() - began
            still = []
            for place, reply, step in zip(running, replies, steps, strict=True):
                if self._goes_on(trajectories[place], place, reply, step):
                    still.append(place)
                elif place < len(ahead):
                    self._open(place, ahead[place])
            running, turn = still, turn + 1
        self.stats["prefilled"] += session.prefilled
        self.stats["decoded"] += session.decoded
        return trajectories

    def _is_fresh(self, turn: int) -> bool:
        """Return whether a turn's context is no continuation of that of the turn before."""
        moved = self.history is not None and turn > self.history
        return turn == 0 or moved or self.policy.codec.drops_thinking or not self.reuse_cache

    def _new_blocks(self, trajectory: Trajectory, fresh: bool) -> list[Block]:
        """Return what a session is given for the turn that is not answered yet."""
        if fresh:
            return trajectory.context(self.policy.codec, self.history)
        return [trajectory.turns[-2].close, trajectory.turns[-1].user]

    def _goes_on(self, trajectory: Trajectory, place: int, reply: Reply, step: Any) -> bool:
        """Note a reply and what the environment made of it; return whether there is a next turn."""
        codec, said = self.policy.codec, trajectory.turns[-1]
        said.reply = reply
        said.close = codec.close(codec.reply(reply.ids))
        _, _, terminated, truncated, info = step
        said.retrieved, said.malformed = executed_retrieve(info), info["malformed"]
        if terminated or truncated:
            self._finish(trajectory, place, info)
            return False
        trajectory.turns.append(Exchange.opened(self._user(place)))
        if self.keep_records:
            trajectory.frames.append(self.envs[place].turn.frames.copy())
        return True

    def _open(self, place: int, task: int) -> None:
        """Start a reset, unless the very same one is under way."""
        if place in self._ready and self._ready[place][0] == task:
            return
        if place in self._ready:
            _settle(self._ready.pop(place)[1])
        reset = self.envs[place].reset
        run = self._pool.submit if self._pool is not None else _at_once
        self._ready[place] = (task, run(reset, options={"index": task}))

    def _begin(self, place: int, replacement: Replacement | None) -> Trajectory | None:
        failed = 0
        while True:
            task, opened = self._ready.pop(place)
            try:
                _, info = opened.result()
                break
            except VideoError as error:
                if replacement is None or isinstance(error, MachineError):
                    raise
                self.skipped.append((task, f"{type(error).__name__}: {error}"))
                failed += 1
                if failed == MOST_SKIPPED:
                    raise VideoError(
                        f"{failed} videos in a row could not be opened, so it is not the videos; "
                        f"see to where they should be. The last one: {error}"
                    ) from error
                if (other := replacement()) is None:
                    return None
                self._open(place, other)
        env = self.envs[place]
        system = env.messages()[0]["content"][0]["text"]
        trajectory = Trajectory(self.policy.codec.system(system), task_id=info["task_id"])
        trajectory.turns.append(Exchange.opened(self._user(place)))
        if self.keep_records:
            trajectory.frames.append(env.turn.frames.copy())
        return trajectory

    def _user(self, place: int) -> Block:
        return self.policy.codec.user(self.envs[place].messages()[-1]["content"])

    def _step(self, places: list[int], texts: list[str]) -> list[Any]:
        if self._pool is None:
            return [self.envs[p].step(text) for p, text in zip(places, texts, strict=True)]
        waiting = [
            self._pool.submit(self.envs[place].step, text)
            for place, text in zip(places, texts, strict=True)
        ]
        return [future.result() for future in waiting]

    def _finish(self, trajectory: Trajectory, place: int, info: dict[str, Any]) -> None:
        base = self.envs[place].unwrapped
        assert isinstance(base, LongVideoQAEnv) and base.episode is not None
        for turn, reward in zip(trajectory.turns, info["turn_rewards"], strict=False):
            turn.reward = float(reward)
        trajectory.success, trajectory.outcome = bool(info["is_success"]), info["outcome"]
        trajectory.infra_error = info["infra_error"]
        trajectory.frames_shown = int(info["frames_shown"])
        trajectory.iou_gain = float(base.episode.best_iou - base.episode.initial_iou)
        trajectory.lenient_success = 0 <= info["answer_index"] == info["lenient_choice"]
        if self.keep_records:
            trajectory.record, trajectory.played = base.record, base.episode


def play(
    collector: RolloutCollector,
    tasks: Sequence[int],
    sampling: Sampling,
    *,
    spare: Sequence[int] = (),
    keep: Callable[[Sequence[Trajectory]], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tally:
    """Play tasks greedily, as many at once as there are environments, and tally them.

    Args:
        collector: Over environments that nobody else uses.
        tasks: Indices into the suite.
        sampling: Limits of a reply.
        spare: Tasks to play for those whose video cannot be opened, as long as there are any; such
            videos count as faults.
        keep: Given the trajectories of each wave, which are then forgotten: frames are large.
        progress: Given the number of episodes done since the last call.

    Raises:
        VideoError: If a hundred videos in a row cannot be opened.
    """
    tally, wave = Tally(), len(collector.envs)
    others, skipped = iter(spare), len(collector.skipped)
    for start in range(0, len(tasks), wave):
        trajectories = collector.collect(
            tasks[start : start + wave],
            greedy(sampling),
            replacement=lambda: next(others, None),
            upcoming=tasks[start + wave : start + 2 * wave],
            progress=progress,
        )
        tally.add(trajectories)
        if keep is not None:
            keep(trajectories)
    tally.fault(len(collector.skipped) - skipped)
    return tally


def check_lengths(tasks: Sequence[int], **options: Any) -> None:
    """Refuse options that are lists with another length than the tasks.

    Raises:
        ValueError: Naming the option.
    """
    for name, given in options.items():
        if isinstance(given, Sequence) and len(given) != len(tasks):
            raise ValueError(f"{name} has {len(given)} for {len(tasks)} tasks; pass one a task")


def _at_once(function: Callable[..., Any], **options: Any) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(function(**options))
    except BaseException as error:
        future.set_exception(error)
    return future


def _settle(future: Future[Any]) -> None:
    """Wait for a reset that nobody wants any more; its environment must be idle."""
    try:
        future.result()
    except VideoError:
        pass
