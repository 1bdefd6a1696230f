"""Wrappers: the text view for language models, and views for learners with simpler spaces.

All record their constructor arguments, so ``env.spec.to_json()`` rebuilds the wrapped environment.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector.utils import create_shared_memory

from gym_longvideo import checks
from gym_longvideo.env import ANSWER, RETRIEVE, LongVideoQAEnv
from gym_longvideo.episode import Answer, Malformed, cell_edges
from gym_longvideo.prompt import Prompt, Prompted
from gym_longvideo.protocol import IMAGE, Turn, lenient, make_protocol, shown


class UnicodeText(spaces.Text):
    """Any string of up to ``max_length`` characters.

    ``gymnasium.spaces.Text`` lists its characters one by one, which cannot hold all of Unicode;
    samples are printable ASCII.
    """

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        printable = frozenset(map(chr, range(32, 127)))
        super().__init__(max_length, min_length=0, charset=printable, seed=seed)

    def contains(self, x: Any) -> bool:
        """Return whether ``x`` is a string that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and other.max_length == self.max_length

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"


@create_shared_memory.register(UnicodeText)
def _refuse_shared_memory(space: UnicodeText, n: int = 1, ctx: Any = None) -> Any:
    # Gymnasium 1.4 reads strings out of shared memory once, at construction: observations would
    # stay at their initial value for ever, without a word.
    raise ValueError(
        "TextProtocol cannot live in AsyncVectorEnv(shared_memory=True): its text would never "
        "change. Step text environments from a thread pool, use SyncVectorEnv, or pass "
        "shared_memory=False"
    )


class TextProtocol(gym.Wrapper[dict[str, Any], Any, dict[str, Any], Any], RecordConstructorArgs):
    """Text in, text and frames out, for multimodal language models.

    The action is the model's reply; the observation is ``{"text", "frames"}``: the prompt of this
    turn with an ``<image>`` placeholder for each frame, and the frames, (F, H, W, 3) uint8, zero
    padded. ``messages()`` gives the whole dialogue as chat messages with images, which most callers
    want. A reply that is no action spends the turn (``info["malformed"]`` says why).
    ``info["lenient_choice"]`` is the option that a forgiving parser reads in a final reply (-1:
    none).

    Args:
        env: The environment.
        protocol: "tags", "tags_seconds", "tool_call", or an object with
            ``name``, ``system``, ``render`` and ``parse``.
        max_length: Characters of the longest reply and prompt.
        prompt: Template that words the turns instead of the protocol, which goes on reading the
            replies: its text, the path of its file, or a ``gym_longvideo.prompt.Prompt``.

    Example:
        >>> import gymnasium as gym
        >>> from gym_longvideo.wrappers import TextProtocol
        >>> env = TextProtocol(gym.make("gym_longvideo:LongVideoQA-v0"))
        >>> observation, info = env.reset(seed=0)
        >>> observation["text"].splitlines()[0][:14]
        'Turn 1 of 3. 1'
        >>> reply = "<think>Look closer.</think><retrieve>10, 30</retrieve>"
        >>> observation, reward, terminated, truncated, info = env.step(reply)
        >>> info["interval"], info["malformed"], len(env.messages())
        ((10, 30), '', 4)
    """

    def __init__(
        self,
        env: gym.Env,
        protocol: Any = "tags",
        max_length: int = 32768,
        prompt: str | os.PathLike[str] | Prompt | None = None,
    ) -> None:
        self.protocol = make_protocol(protocol)
        if prompt is not None:
            prompt = Prompt(prompt)
            self.protocol = Prompted(self.protocol, prompt)
        RecordConstructorArgs.__init__(
            self, protocol=protocol, max_length=max_length, prompt=prompt and prompt.text
        )
        gym.Wrapper.__init__(self, env)
        checks.whole("max_length", max_length, 1)
        if self.protocol.name == "tags" and _base(self).retrieval == "timeline":
            raise ValueError(
                "protocol='tags' names frames by pool index, and retrieval='timeline' shows "
                "several frames of one index; use protocol='tags_seconds' or 'tool_call'"
            )
        frames = _frames_space(env)
        self.action_space = UnicodeText(max_length)
        self.observation_space = spaces.Dict({"text": UnicodeText(max_length), "frames": frames})
        self._messages: list[dict[str, Any]] = []
        self._turn: Turn | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode and its dialogue."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._turn = turn = self._look()
        self._messages = [
            {"role": "system", "content": [{"type": "text", "text": self.protocol.system(turn)}]}
        ]
        return self._observe(observation), {**info, "lenient_choice": -1}

    def step(self, action: str) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take the reply of a model."""
        if not isinstance(action, str):
            raise ValueError(f"action {action!r} is not a string; TextProtocol takes replies")
        base, turn = _base(self), self._turn
        if turn is None or base.episode is None:
            raise gym.error.ResetNeeded("there is no episode yet; call reset()")
        parsed = self.protocol.parse(action, turn)
        forgiving = lenient(action, turn, self.protocol)
        observation, reward, terminated, truncated, info = self.env.step(parsed)
        choice = forgiving.choice if isinstance(forgiving, Answer) else -1
        base.episode.turns[-1].notes.update(reply=action, lenient_choice=choice)
        self._messages.append({"role": "assistant", "content": [{"type": "text", "text": action}]})
        self._turn = self._look()
        over = terminated or truncated
        view = self._blank() if over else self._observe(observation)
        return view, float(reward), terminated, truncated, {**info, "lenient_choice": choice}

    def messages(self) -> list[dict[str, Any]]:
        """Return the dialogue so far as chat messages; images are (H, W, 3) uint8 arrays."""
        return [{**message, "content": list(message["content"])} for message in self._messages]

    @property
    def turn(self) -> Turn:
        """The present turn, as the protocol sees it."""
        if self._turn is None:
            raise gym.error.ResetNeeded("there is no episode yet; call reset()")
        return self._turn

    def _look(self) -> Turn:
        base = _base(self)
        episode = base.episode
        assert episode is not None
        last = episode.turns[-1].action if episode.turns else None
        viewer = base.viewer
        frames = viewer.frames
        return Turn(
            number=min(episode.turn + 1, episode.max_turns),
            max_turns=episode.max_turns,
            question=episode.task.question,
            options=episode.task.options,
            may_retrieve=episode.may_retrieve,
            pool_times=episode.pool_times,
            edges=cell_edges(episode.pool_times, episode.duration_s),
            frames=frames,
            frame_index=viewer.view.frame_index[: len(frames)],
            frame_time=viewer.times,
            objection=last.reason if isinstance(last, Malformed) else "",
            first=not episode.turns,
            seen=tuple(sorted(episode.seen)),
        )

    def _observe(self, observation: Mapping[str, np.ndarray]) -> dict[str, Any]:
        exact = isinstance(self.protocol, Prompted)
        content = shown(self.protocol.render(self.turn), apart=not exact)
        self._messages.append({"role": "user", "content": content})
        parts = [part["text"] if part["type"] == "text" else IMAGE for part in content]
        return {"text": "".join(parts), "frames": observation["frames"]}

    def _blank(self) -> dict[str, Any]:
        frames = _frames_space(self.env)
        return {"text": "", "frames": np.zeros(frames.shape, frames.dtype)}


class DiscreteIntervals(
    gym.ActionWrapper[dict[str, np.ndarray], np.int64, np.ndarray], RecordConstructorArgs
):
    """One ``Discrete`` action for learners without MultiDiscrete (DQN, CleanRL).

    The pool is cut into ``n_bins`` equal parts. Actions 0 .. n_bins * (n_bins + 1) / 2 - 1 retrieve
    from the start of one part to the end of the same or a later one; the K after them answer.

    Args:
        env: The environment.
        n_bins: Parts of the pool.

    Example:
        >>> import gymnasium as gym
        >>> from gym_longvideo.wrappers import DiscreteIntervals
        >>> env = DiscreteIntervals(gym.make("gym_longvideo:LongVideoQA-v0"), n_bins=8)
        >>> env.action_space
        Discrete(40)
        >>> _ = env.reset(seed=0)
        >>> env.action(0).tolist(), env.action(1).tolist(), env.action(37).tolist()
        ([0, 0, 15, 0], [0, 0, 31, 0], [1, 0, 0, 1])
        >>> env.action_masks().shape
        (40,)
    """

    def __init__(self, env: gym.Env, n_bins: int = 8) -> None:
        RecordConstructorArgs.__init__(self, n_bins=n_bins)
        gym.ActionWrapper.__init__(self, env)
        base = _base(self)
        checks.whole("n_bins", n_bins)
        if not 1 <= n_bins <= base.pool_size:
            raise ValueError(f"n_bins={n_bins} must lie in 1..pool_size={base.pool_size}")
        self.n_bins = n_bins
        self.pairs = [(a, b) for a in range(n_bins) for b in range(a, n_bins)]
        self.action_space = spaces.Discrete(len(self.pairs) + base.max_options)

    def action(self, action: np.int64 | int) -> np.ndarray:
        """Return the (op, start, end, choice) of a discrete action."""
        try:
            index = operator.index(action.item() if isinstance(action, np.ndarray) else action)
        except (TypeError, ValueError):
            index = -1
        if not 0 <= index < self.action_space.n:  # type: ignore[attr-defined]
            raise ValueError(f"action {action!r} is outside {self.action_space}")
        if index >= len(self.pairs):
            return np.array([ANSWER, 0, 0, index - len(self.pairs)])
        first, last = self.pairs[index]
        edges = self._edges()
        start = min(edges[first], edges[-1] - 1)
        return np.array([RETRIEVE, start, max(start, edges[last + 1] - 1), 0])

    def action_masks(self) -> np.ndarray:
        """Return the bool mask of legal actions."""
        base = _base(self)
        masks = base.action_masks()
        retrievals = np.full(len(self.pairs), masks[RETRIEVE])
        return np.concatenate([retrievals, masks[2 + 2 * base.pool_size :]])

    def _edges(self) -> list[int]:
        episode = _base(self).episode
        if episode is None:
            raise gym.error.ResetNeeded("there is no episode yet; call reset()")
        length = len(episode.pool_times)
        return [i * length // self.n_bins for i in range(self.n_bins + 1)]


class ChannelStack(
    gym.ObservationWrapper[np.ndarray, np.ndarray, dict[str, np.ndarray]], RecordConstructorArgs
):
    """Only the frames, stacked along the channels, for NatureCNN and its kind: uint8.

    Question and options are dropped: use it with suites whose question never changes.

    Args:
        env: The environment.
        channels_first: Whether channels come first, (3 F, H, W), as d3rlpy and AgileRL want them,
            and not last, (H, W, 3 F).

    Example:
        >>> import gymnasium as gym
        >>> from gym_longvideo.wrappers import ChannelStack
        >>> env = gym.make("gym_longvideo:LongVideoQA-v0", frame_size=64)
        >>> ChannelStack(env).reset(seed=0)[0].shape
        (64, 64, 48)
        >>> ChannelStack(env, channels_first=True).reset(seed=0)[0].shape
        (48, 64, 64)
    """

    def __init__(self, env: gym.Env, channels_first: bool = False) -> None:
        RecordConstructorArgs.__init__(self, channels_first=channels_first)
        gym.ObservationWrapper.__init__(self, env)
        self.channels_first = channels_first
        count, height, width, _ = _frames_space(env).shape
        if 3 * count > min(height, width):
            gym.logger.warn(
                f"ChannelStack gives {3 * count} channels at {height}x{width}: SB3 takes the "
                "smallest side for the channels and would misread it; use a larger frame_size or "
                "fewer frames"
            )
        shape = (3 * count, height, width) if channels_first else (height, width, 3 * count)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)

    def observation(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """Return the stack; its channels 3i..3i+2 are frame i."""
        frames = observation["frames"]
        if self.channels_first:
            return frames.transpose(0, 3, 1, 2).reshape(-1, *frames.shape[1:3])
        return frames.transpose(1, 2, 0, 3).reshape(*frames.shape[1:3], -1)


class FlatBox(
    gym.ObservationWrapper[np.ndarray, np.ndarray, dict[str, np.ndarray]], RecordConstructorArgs
):
    """The observation as one vector of numbers from 0 to 1: (N,) float32.

    Each entry is scaled by the bounds of its space, so that pixels and indices weigh alike.

    Args:
        env: The environment.
        keys: Parts of the observation, in this order. The question and the times are left out by
            default: as bytes, and as shares of the longest time there may be, they say little.

    Example:
        >>> import gymnasium as gym
        >>> from gym_longvideo.wrappers import FlatBox
        >>> env = FlatBox(gym.make("gym_longvideo:LongVideoQA-v0"), keys=("seen", "turn"))
        >>> env.observation_space
        Box(0.0, 1.0, (129,), float32)
        >>> observation, _ = env.reset(seed=0)
        >>> int(observation.sum())  # the overview's frames, of 128
        16
    """

    KEYS = ("frames", "frame_index", "seen", "options", "turn")

    def __init__(self, env: gym.Env, keys: Sequence[str] = KEYS) -> None:
        RecordConstructorArgs.__init__(self, keys=tuple(keys))
        gym.ObservationWrapper.__init__(self, env)
        _frames_space(env)
        inner = env.observation_space
        assert isinstance(inner, spaces.Dict)
        if not keys or isinstance(keys, str) or not set(keys) <= set(inner.spaces):
            raise ValueError(
                f"keys={list(keys)!r} must name parts of the observation; use some of {list(inner)}"
            )
        self.keys = tuple(keys)
        self._spaces = [inner[key] for key in keys]
        size = sum(spaces.flatdim(space) for space in self._spaces)
        self.observation_space = spaces.Box(0.0, 1.0, (size,), np.float32)

    def observation(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """Return (N,) float32 in 0..1."""
        flat = np.empty(self.observation_space.shape or (), np.float32)
        start = 0
        for key, space in zip(self.keys, self._spaces, strict=True):
            assert isinstance(space, spaces.Box)
            low, high = float(space.low.flat[0]), float(space.high.flat[0])
            part = flat[start : (start := start + observation[key].size)]
            np.subtract(observation[key].ravel(), low, out=part, casting="unsafe")
            part /= high - low
        return flat


def _base(env: gym.Env) -> LongVideoQAEnv:
    base = env.unwrapped
    if not isinstance(base, LongVideoQAEnv):
        raise TypeError(f"{type(base).__name__} is no LongVideoQAEnv; wrap LongVideoQA-v0")
    return base


def _frames_space(env: gym.Env) -> spaces.Box:
    space = env.observation_space
    frames = space["frames"] if isinstance(space, spaces.Dict) else None
    if not isinstance(frames, spaces.Box):
        raise TypeError(f"observation space {space} has no frames; wrap LongVideoQA-v0 directly")
    return frames
