"""Scripted agents: the envelope inside which a trained agent should lie.

``Random`` and ``UniformSingleTurn`` are what any agent must beat, ``Bisect`` is what searching
blindly reaches, ``Oracle`` is the most that can be reached, and ``NoisyOracle`` lies anywhere in
between. All speak the numeric view; ``reply`` says the same action in words, so that they also play
through ``TextProtocol``: ``text_env.step(reply(agent(text_env.unwrapped, {}), text_env.turn))``.

Every agent draws from a generator of its own. With that of the environment it would change which
task comes next.
"""

from __future__ import annotations

import inspect
import json
import string
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium.error import ResetNeeded

from gym_longvideo import checks
from gym_longvideo.env import ANSWER, RETRIEVE, LongVideoQAEnv
from gym_longvideo.episode import (
    Action,
    Answer,
    Episode,
    Retrieve,
    longest_gap,
    relevant_frame_index,
)
from gym_longvideo.haystack import oracle
from gym_longvideo.protocol import Turn, TurnProtocol, clock, make_protocol
from gym_longvideo.task import Task

Observation = dict[str, Any]
Interval = tuple[int, int]


@runtime_checkable
class Agent(Protocol):
    """Whatever acts in the numeric view of ``LongVideoQAEnv``.

    An agent may also be called like a function of the environment and the observation.

    Attributes:
        name: A short name for tables.
    """

    name: str

    def reset(self, seed: int | None = None) -> None:
        """Start the agent's own random generator anew; ``None`` lets it run on."""
        ...

    def act(self, env: LongVideoQAEnv, observation: Observation) -> np.ndarray:
        """Return the next action, (4,) int64: op, start, end, choice.

        Args:
            env: The environment itself (``env.unwrapped``), for masks and, in scripted agents, for
                what no agent that learns may look at.
            observation: Its latest observation; scripted agents do without.
        """
        ...

    def __call__(self, env: LongVideoQAEnv, observation: Observation) -> np.ndarray:
        """Return ``act(env, observation)``."""
        return self.act(env, observation)


class Scripted(Agent):
    """An agent with a generator of its own and a way to guess.

    Args:
        seed: Seed of the generator, 0 or more.
    """

    name = "scripted"

    def __init__(self, seed: int = 0) -> None:
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Start the generator anew; ``None`` lets it run on."""
        if seed is not None:
            # Not default_rng(seed): an environment of the same seed draws its tasks from that.
            self.rng = np.random.default_rng([seed, 1])

    def guess(self, task: Task) -> int:
        """Return one of a task's options, each as likely as any other."""
        return int(self.rng.integers(len(task.options)))


class Random(Scripted):
    """Draws each part of the action evenly from the values that the mask allows.

    So it answers in half of the turns in which it might retrieve, and in each of the others.

    >>> import gymnasium as gym
    >>> env = gym.make("gym_longvideo:LongVideoQA-v0", max_turns=1).unwrapped
    >>> observation, info = env.reset(seed=0)
    >>> int(Random().act(env, observation)[0])  # in the only turn there is nothing but to answer
    1
    """

    name = "random"

    def act(self, env: LongVideoQAEnv, observation: Observation) -> np.ndarray:
        """Return a legal action."""
        base, _ = _running(env)
        sizes = base.action_space.nvec  # type: ignore[attr-defined]
        masks = np.split(base.action_masks(), np.cumsum(sizes)[:-1])
        return np.array([self.rng.choice(np.flatnonzero(mask)) for mask in masks], np.int64)


class UniformSingleTurn(Scripted):
    """Answers at once, from the evenly spread overview.

    On haystack this is the bound for every agent that never retrieves: if the overview proves the
    answer it is given, and otherwise nothing in it helps (answers are balanced), so that an even
    guess is as good as anything. Suites without an oracle cannot tell what an overview proves;
    there it is no bound but a plain even guess, the level of chance.
    """

    name = "uniform_single_turn"

    def act(self, env: LongVideoQAEnv, observation: Observation) -> np.ndarray:
        """Return an answer."""
        _, episode = _running(env)
        proved = _proved(episode)
        return _answer(self.guess(episode.task) if proved is None else proved)


class Bisect(Scripted):
    """Searches without knowing where: each retrieval splits the longest stretch not yet seen.

    It answers as soon as the frames seen prove the answer (haystack's oracle lends it perfect eyes,
    never directions) and guesses evenly if no turn is left. What a trained agent reaches beyond it
    comes from knowing where to look. On suites without an oracle nothing is ever proved: it spends
    its turns looking and then guesses.
    """

    name = "bisect"

    def act(self, env: LongVideoQAEnv, observation: Observation) -> np.ndarray:
        """Return a retrieval of the longest gap, or an answer."""
        _, episode = _running(env)
        proved = _proved(episode)
        if proved is None and episode.may_retrieve:
            seen = np.isin(np.arange(len(episode.pool_times)), list(episode.seen))
            if (gap := longest_gap(seen)) is not None:
                return _retrieve(*gap)
        return _answer(self.guess(episode.task) if proved is None else proved)


class Oracle(Scripted):
    """Clairvoyant: retrieves exactly what is missing, and answers as soon as it is proved.

    On haystack it knows where the evidence is, but answers only what the frames shown prove; where
    the pool cannot show the evidence (a needle shorter than the pool's spacing) it guesses evenly,
    as the best of agents must. On other suites it retrieves each annotated segment that was neither
    retrieved nor wholly shown before, in the order of time, and then gives the annotated answer; a
    task without segments is answered at once, one without a public answer by an even guess.
    """

    name = "oracle"

    def act(self, env: LongVideoQAEnv, observation: Observation) -> np.ndarray:
        """Return a retrieval of what is missing, or an answer."""
        base, episode = _running(env)
        known = _proved(episode)
        if known is None and episode.may_retrieve:
            frames = min(base.budget.retrieval, episode.frames_left)
            tried = {log.interval for log in episode.turns}
            for interval in _missing(episode, frames):
                if interval not in tried:  # the same again would show nothing new
                    return _retrieve(*self.aim(interval, len(episode.pool_times)))
        if known is None and not _has_oracle(episode.task):
            known = episode.task.answer_index
        return _answer(self.choose(known, episode.task))

    def aim(self, interval: Interval, pool_length: int) -> Interval:
        """Return the interval that is retrieved where ``interval`` was meant."""
        return interval

    def choose(self, known: int | None, task: Task) -> int:
        """Return the option that is chosen where ``known`` is the answer (``None``: not known)."""
        return self.guess(task) if known is None else known


class NoisyOracle(Oracle):
    """An oracle that looks a little beside the mark, and at times answers at random.

    A retrieval that missed is tried again, with new noise, as long as there are turns.

    Args:
        interval_noise: Each end of an interval is moved by up to so many pool frames, evenly.
        answer_noise: Chance that the answer is an even guess, in [0, 1]; with K options and
            everything proved, success is ``1 - answer_noise * (1 - 1 / K)``.
        seed: Seed of the generator.

    Raises:
        ValueError: If a noise is out of range.
    """

    name = "noisy_oracle"

    def __init__(
        self, interval_noise: int = 0, answer_noise: float = 0.0, *, seed: int = 0
    ) -> None:
        super().__init__(seed)
        self.interval_noise = checks.whole("interval_noise", interval_noise, 0)
        self.answer_noise = float(checks.number("answer_noise", answer_noise, 0, 1))

    def aim(self, interval: Interval, pool_length: int) -> Interval:
        """Return the interval with both ends jittered, inside the pool."""
        noise = self.rng.integers(-self.interval_noise, self.interval_noise + 1, size=2)
        start, end = np.clip(np.array(interval) + noise, 0, pool_length - 1).tolist()
        return start, end

    def choose(self, known: int | None, task: Task) -> int:
        """Return the answer, or a guess."""
        return super().choose(None if self.rng.random() < self.answer_noise else known, task)


AGENTS: dict[str, type[Scripted]] = {
    cls.name: cls for cls in (Random, UniformSingleTurn, Bisect, Oracle, NoisyOracle)
}


def make_agent(name: str, **options: Any) -> Scripted:
    """Return a scripted agent by name.

    Args:
        name: One of ``AGENTS``.
        options: Its arguments: ``seed``, and the noises of "noisy_oracle".

    Raises:
        ValueError: For an unknown name or option.

    >>> make_agent("noisy_oracle", interval_noise=2).name
    'noisy_oracle'
    """
    checks.choice("agent", name, AGENTS)
    parameters = list(inspect.signature(AGENTS[name]).parameters)
    if unknown := sorted(set(options) - set(parameters)):
        raise ValueError(f"agent {name!r} takes no {unknown}; use some of {parameters}")
    return AGENTS[name](**options)


def reply(
    action: np.ndarray, turn: Turn, protocol: str | TurnProtocol = "tags", thought: str = ""
) -> str:
    r"""Say a numeric action in the strict form of a text protocol.

    Reading it back with ``make_protocol(protocol).parse(text, turn)`` gives the same action, the
    ends of an interval in ascending order. Times are written as the prompt writes them, with more
    digits only where those are needed to name the same pool frame.

    Args:
        action: (4,) op, start, end, choice.
        turn: The turn that is replied to (``TextProtocol.turn``).
        protocol: "tags", "tags_seconds" or "tool_call".
        thought: What is said before the action.

    Raises:
        ValueError: If the action names no option or no pool frame of the turn, or if the thought
            holds tags of the protocol.

    >>> from gym_longvideo.protocol import example_turn
    >>> reply(np.array([0, 7, 13, 0]), example_turn(), thought="Early on.")
    '<think>Early on.</think><retrieve>7, 13</retrieve>'
    >>> reply(np.array([0, 7, 13, 0]), example_turn(), "tags_seconds")
    '<think></think><retrieve>01:15, 02:15</retrieve>'
    >>> reply(np.array([1, 0, 0, 2]), example_turn(), "tool_call", "The card says so.")
    'The card says so.\n<answer>C</answer>'
    """
    spoken = make_protocol(protocol)
    op, start, end, choice = (int(part) for part in action)
    if op not in (RETRIEVE, ANSWER):
        raise ValueError(f"action {action!r} has op {op}; use 0 to retrieve, 1 to answer")
    meant: Action = Answer(choice) if op == ANSWER else Retrieve(*sorted((start, end)))
    understood: Any = "nothing: it names an option or a pool frame that does not exist"
    for text in _wordings(meant, turn, spoken.name, thought):
        understood = spoken.parse(text, turn)
        if understood == meant:
            return text
    raise ValueError(
        f"{meant} with the thought {thought!r} cannot be said in protocol {spoken.name!r} in this "
        f"turn; it would be read as {understood}"
    )


def _wordings(meant: Action, turn: Turn, protocol: str, thought: str) -> Iterator[str]:
    """Yield replies that say an action, the shortest first; none for what does not exist."""
    tags = {"tags": "<think>{}</think>", "tags_seconds": "<think>{}</think>", "tool_call": "{}\n"}
    if protocol not in tags:
        raise ValueError(f"no reply is known in protocol {protocol!r}; use one of {list(tags)}")
    head = tags[protocol].format(thought) if thought or protocol != "tool_call" else ""
    match meant:
        case Answer(choice) if 0 <= choice < len(turn.options):
            yield f"{head}<answer>{string.ascii_uppercase[choice]}</answer>"
        case Retrieve(start, end) if 0 <= start and end <= turn.last_index:
            if protocol == "tags":
                yield f"{head}<retrieve>{start}, {end}</retrieve>"
                return
            times = [float(turn.pool_times[index]) for index in (start, end)]
            if protocol == "tags_seconds" and float(turn.edges[1] - turn.edges[0]) >= 2.0:
                yield f"{head}<retrieve>{clock(times[0])}, {clock(times[1])}</retrieve>"
            for digits in range(1 if protocol == "tool_call" else 2, 18):
                first, last = (f"{time_s:.{digits}f}" for time_s in times)
                if protocol == "tags_seconds":
                    yield f"{head}<retrieve>{first}, {last}</retrieve>"
                    continue
                arguments = {"start_s": float(first), "end_s": float(last)}
                call = json.dumps({"name": "retrieve_frames", "arguments": arguments})
                yield f"{head}<tool_call>\n{call}\n</tool_call>"


def _running(env: LongVideoQAEnv) -> tuple[LongVideoQAEnv, Episode]:
    """Return the environment beneath any wrappers, and its episode."""
    base = env.unwrapped
    if not isinstance(base, LongVideoQAEnv):
        raise TypeError(f"{type(base).__name__} is no LongVideoQAEnv; make LongVideoQA-v0")
    if base.episode is None:
        raise ResetNeeded("there is no episode yet; call env.reset()")
    return base, base.episode


def _answer(choice: int) -> np.ndarray:
    return np.array([ANSWER, 0, 0, choice], np.int64)


def _retrieve(start: int, end: int) -> np.ndarray:
    return np.array([RETRIEVE, min(start, end), max(start, end), 0], np.int64)


def _has_oracle(task: Task) -> bool:
    """Return whether a task carries what haystack's oracle needs (its exports do, too)."""
    return {"rule", "scenes", "least_scene_s"} <= task.meta.keys()


def _shown_s(episode: Episode) -> list[float]:
    """Return the playback seconds of every frame that was really shown."""
    return [*episode.overview_shown_s, *(t for log in episode.turns for t in log.shown_s)]


def _proved(episode: Episode) -> int | None:
    """Return the answer if the frames shown prove it; ``None`` where nobody can tell."""
    if not _has_oracle(episode.task):
        return None
    return oracle.solve(episode.task, _shown_s(episode))


def _missing(episode: Episode, frames: int) -> list[Interval]:
    """Return the retrievals that a clairvoyant would make, next one first."""
    task, pool_times = episode.task, episode.pool_times
    if not _has_oracle(task):
        return _uncovered(episode, frames)
    return oracle.oracle_intervals(
        task,
        pool_times,
        _shown_s(episode),
        frames=frames,
        between=episode.retrieval == "timeline",
    )


def _uncovered(episode: Episode, frames: int) -> list[Interval]:
    """Return annotated segments neither retrieved nor wholly shown, neighbours together."""
    intervals: list[Interval] = []
    for segment in episode.task.segments_s:
        relevant = relevant_frame_index((segment,), episode.pool_times)
        first, last = min(relevant), max(relevant)
        retrieved = (log.interval for log in episode.turns)
        if relevant <= episode.seen or any(a <= first and last <= b for a, b in retrieved):
            continue
        if intervals:
            low, high = min(intervals[-1][0], first), max(intervals[-1][1], last)
            if high - low < frames:
                intervals[-1] = (low, high)
                continue
        intervals.append((first, last))
    return intervals
