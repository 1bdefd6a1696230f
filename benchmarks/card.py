"""Card: the protocol under which a number came about, and its hash.

The same checkpoint scores 33 to 65 on one benchmark, depending on scorer and frame budget. So every
knob that can move a number stands in the card of each result. Results of different cards are never
merged, and compared only if the knobs that are meant to differ are named.

Paths are no knobs: the same files elsewhere give the same card.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np

from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.prompt import digest as digest_of_template
from gym_longvideo.protocol import PROTOCOLS, example_turn, shown
from gym_longvideo.suite import Suite
from gym_longvideo.version import __version__

FORMAT = 1
_PATHS = ("root", "annotation", "video_root", "path")
_DISTRIBUTIONS = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}


class CardMismatch(ValueError):
    """Results of different protocols were to be put together.

    Attributes:
        knobs: Dotted name of each differing knob -> its value in each card.
    """

    def __init__(self, message: str, knobs: Mapping[str, list[Any]]) -> None:
        super().__init__(message)
        self.knobs = dict(knobs)


@dataclass(frozen=True)
class Card:
    """How a result came about.

    Attributes:
        protocol: Every knob that can move a number, nested, JSON-able.
        policy: Who played: "kind", "name", and whatever else makes it another policy. Beside a
            digest of "weights" the name is for display alone: directories are moved and renamed.
    """

    protocol: Mapping[str, Any]
    policy: Mapping[str, Any]

    def __post_init__(self) -> None:
        for part in ("protocol", "policy"):
            object.__setattr__(self, part, _plain(getattr(self, part), part))

    @property
    def hash(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of both parts."""
        return digest({"protocol": self.protocol, "policy": _identity(self.policy)})

    @property
    def protocol_hash(self) -> str:
        """The same of the protocol alone."""
        return digest(self.protocol)

    def to_json(self) -> str:
        """Return indented JSON, with both hashes."""
        fields = {
            "format": FORMAT,
            "hash": self.hash,
            "protocol_hash": self.protocol_hash,
            "protocol": self.protocol,
            "policy": self.policy,
        }
        return json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: If it is no card, or one that was changed since its hash was taken.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a protocol card: {error}") from None
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
            raise ValueError(f"protocol card of format {found!r}; this version reads {FORMAT}")
        protocol, policy = fields.get("protocol"), fields.get("policy")
        if not (isinstance(protocol, dict) and isinstance(policy, dict)):
            raise ValueError("not a protocol card: it needs the objects protocol and policy")
        card = cls(protocol, policy)
        if fields.get("hash") != card.hash:
            raise ValueError(
                f"the protocol card was edited: it says hash {fields.get('hash')!r}, its contents "
                f"give {card.hash!r}; restore it, or run the evaluation again"
            )
        return card

    def rescored(self, scorer: str, **protocol: Any) -> Card:
        """Return the card of the same episodes under another scorer.

        Args:
            scorer: Its name.
            **protocol: Entries of the protocol that changed with it.
        """
        return replace(
            self,
            protocol={**self.protocol, **protocol, "scorer": scorer},
            policy={**self.policy, "rescored_from": self.hash},
        )


def make_card(
    env: Any,
    suite: Suite,
    *,
    protocol: str,
    system_prompt: str,
    prompt: str = "",
    control: str,
    episodes: int | None,
    seed: int,
    policy: Mapping[str, Any],
) -> Card:
    """Return the card of an evaluation.

    Args:
        env: A ``LongVideoQAEnv``, wrapped or not, as it will be played.
        suite: The tasks as they will be put: with a control's changes.
        protocol: Name of the text protocol, or "numeric".
        system_prompt: What a model is told at first; "" in the numeric view.
        prompt: Template that words the turns in place of the protocol, "" for none.
        control: "none", or what is controlled for.
        episodes: How many tasks are played, ``None`` for all.
        seed: Of the evaluation.
        policy: Who plays; no credentials.

    Raises:
        ValueError: If a value is not JSON-able, naming it.
    """
    base = env.unwrapped
    if not isinstance(base, LongVideoQAEnv):
        raise TypeError(f"{type(base).__name__} is no LongVideoQAEnv; make LongVideoQA-v0")
    settings = dict(base.settings)
    options = getattr(suite, "options", None)
    given = {} if options is not None else settings["suite_options"]
    settings["suite_options"] = {key: value for key, value in given.items() if key not in _PATHS}
    return Card(
        protocol={
            "suite": {
                "name": suite.name,
                "split": suite.split,
                "tasks": len(suite),
                "digest": suite_digest(suite),
                "annotation": dict(getattr(suite, "annotation_digests", {})),
                "options": dict(options or {}),
            },
            "settings": settings,
            "text_protocol": protocol,
            "prompt_digest": digest_of_template(prompt)
            if prompt
            else prompt_digest(protocol, system_prompt),
            "control": control,
            "episodes": episodes,
            "seed": seed,
            "scorer": "strict",
            "versions": _versions(settings["backend"]),
        },
        policy=policy,
    )


def digest(value: Any) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a value's canonical JSON.

    >>> digest({"a": 1, "b": (2.0,)}) == digest({"b": [2], "a": 1.0})
    True
    """
    return hashlib.sha256(_canonical(_plain(value, "value")).encode()).hexdigest()[:12]


def suite_digest(suite: Suite) -> str:
    """Return a digest of all tasks in their order: what is asked, not where its files lie."""
    whole = hashlib.sha256()
    for index in range(len(suite)):
        task = suite[index]
        video_id = os.path.basename(task.video_id) if os.path.isabs(task.video_id) else ""
        parts = (
            task.task_id,
            task.question,
            task.options,
            task.answer_index,
            task.segments_s,
            video_id or task.video_id,
        )
        whole.update(json.dumps(parts).encode() + b"\n")
    return whole.hexdigest()[:12]


def prompt_digest(protocol: str, system_prompt: str) -> str:
    """Return a digest of the system message and, for a known protocol, of how it words a turn."""
    words: list[Any] = [system_prompt]
    if protocol in PROTOCOLS:
        turn = example_turn()
        last = replace(turn, number=3, may_retrieve=False, objection="...", first=False)
        words += [shown(PROTOCOLS[protocol]().render(each)) for each in (turn, last)]
    return digest(words)


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Say in which knobs two protocols (or policies) differ.

    >>> differences({"settings": {"frame_budget": 32}}, {"settings": {"frame_budget": 64}})
    ['settings.frame_budget: 32 != 64']
    """
    return [f"{knob}: {' != '.join(map(_show, two))}" for knob, two in _varied([a, b]).items()]


_BUDGET = "settings.frame_budget"
_DERIVED = ("settings.overview_frames", "settings.frames_per_retrieval")


def require_same(
    cards: Sequence[Card], *, across: Sequence[str] = (), policy: bool = False
) -> dict[str, list[Any]]:
    """Refuse results of different protocols.

    Args:
        cards: Of the results to be put together.
        across: Dotted names of knobs that are meant to differ; "settings" stands for all below it,
            "settings.frame_budget" for the overview and the retrievals that it is divided into too.
        policy: Whether the policies must be the same too, as for merging.

    Returns:
        Those of ``across`` that do differ, with their values in each card.

    Raises:
        CardMismatch: Naming every other knob that differs, and its values.
        ValueError: If ``across`` names a knob that no card has.
    """
    protocols = [card.protocol for card in cards]
    known = {knob for protocol in protocols for knob, _ in _leaves(protocol)}
    for name in across:
        if not any(_within(knob, name) for knob in known):
            raise ValueError(
                f"across={name!r} is no knob of these cards; use some of {sorted(known)}"
            )
    varied = _varied(protocols)
    named = [*across, *(_DERIVED if _BUDGET in across else ())]
    meant = {k: v for k, v in varied.items() if any(_within(k, name) for name in named)}
    wrong = {k: v for k, v in varied.items() if k not in meant}
    if policy:
        policies = _varied([_identity(card.policy) for card in cards])
        wrong |= {f"policy.{knob}": values for knob, values in policies.items()}
    if wrong:
        lines = [f"  {knob}: {' != '.join(_show(v) for v in wrong[knob])}" for knob in wrong]
        advice = (
            "merge only runs of one card"
            if policy
            else "name those that are meant to differ in across="
        )
        raise CardMismatch(
            "\n".join([f"the results have different protocol cards ({advice}):", *lines]), wrong
        )
    return meant


class _Absent:
    """Stands for a knob that a card does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def _varied(parts: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the knobs whose values differ, in the order in which they first stand."""
    flat = [dict(_leaves(part)) for part in parts]
    knobs = {knob: None for leaves in flat for knob in leaves}
    values = {knob: [leaves.get(knob, ABSENT) for leaves in flat] for knob in knobs}
    return {knob: row for knob, row in values.items() if len({*map(_show_all, row)}) > 1}


def _identity(policy: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in policy.items() if k != "name" or "weights" not in policy}


def _leaves(part: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in part.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _within(knob: str, name: str) -> bool:
    return knob == name or knob.startswith(f"{name}.")


def _canonical(value: Any) -> str:
    # ASCII: a name read from a disk may hold what UTF-8 cannot.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _show_all(value: Any) -> str:
    return "absent" if value is ABSENT else _canonical(_plain(value, "value"))


def _show(value: Any) -> str:
    text = _show_all(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({digest(value)})"


def _plain(value: Any, where: str) -> Any:
    """Return a value as JSON gives it back; whole floats as integers, so that 1 is 1.0."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float) and np.isfinite(value):
        return int(value) if value.is_integer() else value
    raise ValueError(f"{where}={value!r} cannot stand in a protocol card; use JSON-able values")


def _versions(backend: str) -> dict[str, str]:
    versions = {"gym_longvideo": __version__}
    for name in _distributions(backend):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def _distributions(backend: str) -> Iterable[str]:
    """Return what decodes and resizes: PyAV always scales."""
    return sorted({"av", _DISTRIBUTIONS.get(backend, "av")})
