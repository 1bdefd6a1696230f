"""PolicySource: what a policy's name means, found out once, before anything is loaded.

A directory of a policy holds ``longvideo.json``: the settings it was made for. Whoever plays it,
goes on with it or serves it sees what it has learned to see. Nothing here needs torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from agents.keeping.saved import CheckpointError, find, read_state
from agents.plan.published import PUBLISHED
from agents.scripted import AGENTS
from gym_longvideo import checks
from gym_longvideo.command import json_object
from gym_longvideo.prompt import DEFAULT, digest
from gym_longvideo.settings import EpisodeSettings

Kind = Literal["scripted", "checkpoint", "model", "hub", "endpoint"]
TINY = "tiny"  # the name of the policy that is shipped
WEIGHTS = Path(__file__).parent / "weights" / TINY
MADE_FOR_FILE = "longvideo.json"
_FORMAT = 1  # of that file
_LARGE = 512  # hidden size; the smallest published vision-language models have 576
_FRAME_SIZE = 224  # of large models, in pixels: what is left for the numeric observation
_KINDS = {"protocol": str, "suite": str, "suite_options": Mapping, "prompt": str}  # of MadeFor
FRAME_TOKENS = 128  # of a frame that a large model sees
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+\Z")
EPISODE_SETTINGS = tuple(each.name for each in fields(EpisodeSettings))


@dataclass(frozen=True)
class MadeFor:
    """What a policy was made for.

    Attributes:
        protocol: Text protocol it speaks.
        settings: What it sees and may do.
        max_new_tokens: Longest reply it was trained on; None if nothing was sampled.
        history: Earlier turns in its context; None for all.
        suite: Suite that it was trained on.
        suite_options: Keyword arguments of that suite.
        thinking: Whether it thinks before it replies; None leaves it to its chat template.
        prompt: Template that words its turns; "" for the protocol's own words.
    """

    protocol: str = "tags"
    settings: EpisodeSettings = field(default_factory=EpisodeSettings)
    max_new_tokens: int | None = None
    history: int | None = None
    suite: str = ""
    suite_options: Mapping[str, Any] = field(default_factory=dict)
    thinking: bool | None = None
    prompt: str = ""

    def __post_init__(self) -> None:
        checks.whole("max_new_tokens", self.max_new_tokens, 1, optional=True)
        checks.whole("history", self.history, 0, optional=True)
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a {kind.__name__}")
        if not isinstance(self.thinking, bool | None):
            raise ValueError(f"thinking={self.thinking!r} must be True, False or None")

    def write(self, directory: str | Path) -> None:
        """Write ``longvideo.json`` beside the weights."""
        written = {"format": _FORMAT, **asdict(self)}
        if self.prompt:
            written["prompt_digest"] = digest(self.prompt)
        text = json.dumps(written, indent=2)
        (Path(directory) / MADE_FOR_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: str | Path) -> MadeFor | None:
        """Return what ``write`` wrote, or None if there is no such file.

        Raises:
            ValueError: If the file is of another format, or holds something that is not allowed.
        """
        path = Path(directory) / MADE_FOR_FILE
        if not path.is_file():
            return None
        try:
            given = json_object(path.read_text(encoding="utf-8"))
            if (found := given.pop("format", None)) != _FORMAT:
                raise ValueError(f"it has format {found!r}; this version reads {_FORMAT}")
            said = given.pop("prompt_digest", None)
            checks.names("it", given, [each.name for each in fields(cls)])
            settings = given.pop("settings", {})
            checks.names("settings", settings, EPISODE_SETTINGS)
            made = cls(**given, settings=EpisodeSettings(**settings))
            if said != (digest(made.prompt) if made.prompt else None):
                raise ValueError(
                    f"its prompt was edited: prompt_digest={said!r} is that of another; restore it,"
                    " or train on with --prompt FILE"
                )
            return made
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error

    def prompt_under(self, given: str) -> str:
        """Return the template that words turns, "" for the protocol's own words.

        Args:
            given: A template; "" for that of the policy, "default" for none.
        """
        return "" if given == DEFAULT else given or self.prompt

    def departures(
        self, protocol: str, settings: EpisodeSettings, prompt: str | None = None
    ) -> list[str]:
        """Say in which settings a choice differs from this one.

        Shares of a frame budget are compared as the numbers that they come to.

        Args:
            protocol: Text protocol.
            settings: What is seen.
            prompt: Template that words the turns; by default its own.
        """
        asked = self.prompt if prompt is None else prompt
        ours = {"protocol": protocol, **EpisodeSettings.resolved(settings)}
        theirs = {"protocol": self.protocol, **self.settings.resolved()}
        ours["prompt"], theirs["prompt"] = _named(asked), _named(self.prompt)
        pairs = {  # what cards leave out is as the settings have it
            name: (
                ours.get(name, getattr(settings, name, None)),
                theirs.get(name, getattr(self.settings, name, None)),
            )
            for name in {**theirs, **ours}
        }
        return [
            f"{name}={one!r} (trained with {other!r})"
            for name, (one, other) in pairs.items()
            if one != other
        ]


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from.

    Attributes:
        kind: "scripted", "checkpoint" (of ``agents.train``), "model" (a directory), "hub", or
            "endpoint" (an OpenAI-compatible server).
        name: What cards and tables call it.
        path: Name of the scripted agent; directory of the checkpoint or model; hub id; base URL.
        made_for: What it was made for, if it says so.
        given: What it was called.
    """

    kind: Kind
    name: str
    path: str
    made_for: MadeFor | None = None
    given: str = ""

    @classmethod
    def of(cls, policy: str | Path | PolicySource) -> PolicySource:
        """Find out what a policy's name means.

        Args:
            policy: A scripted agent; "tiny", the model that is shipped; a directory of a run of
                ``agents.train``, of one of its checkpoints, or of a model; a hub id; the base URL
                of an endpoint; or what this returned before.

        Raises:
            ValueError: If it is none of these, or its settings cannot be read.
        """
        if isinstance(policy, PolicySource):
            return policy
        text = str(policy)
        if text in AGENTS:
            return cls("scripted", text, text, given=text)
        if text.startswith(("http://", "https://")):
            return cls("endpoint", text, text, given=text)
        path = _shipped(text)
        if text and path.is_dir():
            return replace(_directory(path), given=text)
        # What looks like a hub id but lies where runs are is a path with a slip in it.
        if _HUB_ID.match(text) and not text.startswith((".", "runs/")):
            return cls("hub", text, text, given=text)
        what = f"no directory {text}" if _like_a_path(text) else f"policy={text!r} is unknown"
        raise ValueError(
            f"{what}; use one of {list(AGENTS)}, {TINY!r} (the model that is shipped), the "
            "directory of a run or a model, a hub id (Qwen/Qwen2.5-VL-3B-Instruct), or the URL of "
            "an endpoint (http://host:8000/v1)"
        )

    @property
    def is_large(self) -> bool:
        """Whether this is a model that people publish, and none that learns on a laptop."""
        if self.kind == "model":
            return _hidden_size(Path(self.path)) >= _LARGE
        return self.kind in ("hub", "endpoint")

    @property
    def settings(self) -> dict[str, Any]:
        """What it sees and may do unless something else is said, as settings of the environment.

        What it was made for. Large models that do not say so see frames as they are, of up to 128
        tokens: at the environment's own 56 x 56 pixels (4 tokens) they are all but blind.
        """
        if self.made_for is not None:
            return asdict(self.made_for.settings)
        if not self.is_large:
            return {}
        unit = self._pixel_unit()
        return {
            "frame_size": _FRAME_SIZE,
            "max_pixels": FRAME_TOKENS * unit * unit,
            "pixel_unit": unit,
        }

    def settings_under(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return its settings with others laid over them, which win.

        Whoever gives a large model frames of a size of their own wants just that, and not frames as
        they are.
        """
        own = self.settings
        size = given.get("frame_size", own.get("frame_size"))
        if size != own.get("frame_size") and self.made_for is None:
            own = {name: own[name] for name in own if name not in ("max_pixels", "pixel_unit")}
        return {**own, **given}

    def _pixel_unit(self) -> int:
        """Return the side in pixels of a token, as the model's configuration says; else 28.

        What is on the hub and not here yet is looked up among the models that are known.
        """
        try:
            path = Path(self.path) / "config.json"
            if self.kind == "hub":
                from huggingface_hub import try_to_load_from_cache

                found = try_to_load_from_cache(self.path, "config.json")
                path = Path(found) if isinstance(found, str) else path
            if self.kind == "hub" and not path.is_file() and self.path in PUBLISHED:
                config = PUBLISHED[self.path][1]
            else:
                config = json.loads(path.read_text(encoding="utf-8"))
            tower = config["vision_config"]
            unit = tower["patch_size"] * tower.get("spatial_merge_size", 2)
        except (OSError, ImportError, KeyError, TypeError, ValueError):
            return 28
        return int(unit)

    def check(self) -> None:
        """Ask once whether a model of the hub can be had, before its many retries begin.

        Raises:
            ValueError: If it cannot.
        """
        if self.kind != "hub":
            return
        import huggingface_hub

        if isinstance(huggingface_hub.try_to_load_from_cache(self.path, "config.json"), str):
            return
        try:
            there = huggingface_hub.file_exists(self.path, "config.json")
        except Exception as error:  # each way of having no network has its own
            raise ValueError(
                f"model {self.path!r} is not in the local cache, and the hub cannot be reached "
                f"({error}); give the directory of a model"
            ) from error
        if not there:
            raise ValueError(
                f"the hub has no model {self.path!r} with a config.json, or does not show it; see "
                "to the id, or to your access token"
            )


def _named(template: str) -> str:
    """Return what a message calls a template."""
    return digest(template)[:12] if template else DEFAULT


def frame_tokens(settings: EpisodeSettings, unit: int | None = None) -> int:
    """Return the tokens of a frame at most.

    Args:
        settings: What is seen.
        unit: Side in pixels of what makes one token; by default that of the settings.
    """
    unit = unit or settings.pixel_unit
    if settings.max_pixels is not None:
        return settings.max_pixels // unit**2
    height, width = settings.frame_shape
    return max(1, round(height / unit)) * max(1, round(width / unit))


def frame_cost(settings: EpisodeSettings, unit: int | None = None) -> str:
    """Say what a frame, a turn and an episode cost in tokens.

    Args:
        settings: What is seen.
        unit: As ``frame_tokens`` takes it.

    >>> frame_cost(EpisodeSettings(frame_size=224))
    'a frame of 224 x 224 pixels is 64 tokens, a turn 1,024 at most, an episode 2,048'
    >>> frame_cost(EpisodeSettings(max_pixels=128 * 28 * 28))
    'a frame as it is, of 100,352 pixels at most, is 128 tokens, a turn 2,048 at most, an \
episode 4,096'
    """
    tokens, budget = frame_tokens(settings, unit), settings.budget
    height, width = settings.frame_shape
    frame = f"a frame of {width} x {height} pixels"
    if settings.max_pixels is not None:
        frame = f"a frame as it is, of {settings.max_pixels:,} pixels at most,"
    plural = "s" if tokens > 1 else ""
    turn = tokens * max(budget.overview, budget.retrieval)
    return (
        f"{frame} is {tokens:,} token{plural}, a turn {turn:,} at most, an episode "
        f"{tokens * budget.total:,}"
    )


def check_frames(settings: EpisodeSettings, unit: int, model: str = "") -> None:
    """Refuse frames that do not fit a model's grid.

    Args:
        settings: What is seen.
        unit: Side in pixels of what the model makes one token of.
        model: Its name, for the message.

    Raises:
        ValueError: Naming the setting that would fit.
    """
    if settings.max_pixels is not None and settings.pixel_unit % unit:
        raise ValueError(
            f"pixel_unit={settings.pixel_unit} does not fit {model or 'the model'}, which makes a "
            f"token of {unit} x {unit} pixels; use pixel_unit={unit}"
        )


def _hidden_size(directory: Path) -> int:
    """Return the width of a model's language layers, 0 if its configuration does not say."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config")
    found = (text if isinstance(text, dict) else config).get("hidden_size", 0)
    return found if isinstance(found, int) else 0


def _shipped(text: str) -> Path:
    """Return a path; one of the shipped weights in another checkout is the one in this."""
    path = Path(text)
    elsewhere = path.parts[-3:] == WEIGHTS.parts[-3:] and not (path / MADE_FOR_FILE).is_file()
    return WEIGHTS if text == TINY or elsewhere else path


def _like_a_path(text: str) -> bool:
    return "/" in text or text.startswith((".", "~"))


def _directory(path: Path) -> PolicySource:
    try:
        checkpoint = find(path)
    except CheckpointError as error:
        if _is_model(path):
            return PolicySource("model", path.resolve().name, str(path), MadeFor.read(path))
        raise ValueError(f"policy={str(path)!r} cannot be loaded: {error}") from error
    try:
        made_for = MadeFor.read(checkpoint / "policy") or made_for_of_state(read_state(checkpoint))
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"policy={str(path)!r} cannot be loaded: {error}") from error
    return PolicySource("checkpoint", path.resolve().name, str(checkpoint), made_for)


def _is_model(path: Path) -> bool:
    """Return whether a directory holds a model; runs have a config.json too, of their own kind."""
    try:
        return "model_type" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def made_for_of_state(state: Mapping[str, Any]) -> MadeFor:
    """Return what a checkpoint of a version that wrote no ``longvideo.json`` was made for."""
    config = state["config"]
    needed = ("model", "suite", "suite_options", "env", "protocol", "max_new_tokens", "ppo")
    if absent := [name for name in needed if name not in config]:
        raise ValueError(f"its configuration has no {absent}, only {sorted(config)}")
    shipped = _shipped(config["model"]) == WEIGHTS and config["suite"] == "haystack"
    own = MadeFor.read(WEIGHTS) if shipped else None
    given = {name: value for name, value in config["env"].items() if name in EPISODE_SETTINGS}
    return MadeFor(
        protocol=config["protocol"],
        settings=own.settings if own and not config["env"] else EpisodeSettings(**given),
        max_new_tokens=config["max_new_tokens"],
        history=config["ppo"]["history"],
        suite=config["suite"],
        suite_options=config["suite_options"] or (own.suite_options if own else {}),
    )
