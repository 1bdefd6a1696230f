"""EvaluateConfig: the command line of ``benchmarks.evaluate``, as one frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

import tyro

from agents.command import Options
from agents.scripted import AGENTS
from benchmarks.controls import Control
from gym_longvideo.settings import DecodingSettings, EpisodeSettings, with_rules

_PATHS = ("root", "annotation", "video_root")
_OF_ENDPOINTS = (
    "model", "temperature", "request", "image_format", "timeout_s", "retries", "patience",
    "api_key_env", "thought_opened",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation. What a policy was made for is the default of its settings.

    Attributes:
        suite: "haystack", the path of an annotation (JSON, JSON Lines, CSV, TSV, Parquet),
            "module:callable" or the name of a benchmark (longvideo suites lists them).
        policy: A scripted agent (random, uniform_single_turn, bisect, oracle, noisy_oracle), tiny
            (the model that is shipped), the directory of a model or of a run of longvideo train, or
            the URL of an endpoint.
        out: Directory of the run, new or begun; by default one under runs/ named after its card.
        model: Name of the model at an endpoint.
        root: Directory of the dataset.
        annotation: Path of the annotation, if it is not below the root.
        video_root: Directory of the videos, if they are not below the root.
        split: Split of the suite; by default that which a benchmark reports, "test" of others.
        suite_options: Further keyword arguments of the suite.
        protocol: Text protocol of models: tags, tags_seconds or tool_call; by default the one that
            the policy was made for, or else tags.
        prompt: File of a template that words the turns of a model (docs/prompts.md); by default the
            one that the policy was trained with, if any; "default" for this project's own words.
        control: none, blind, single_frame, shuffled or circular.
        episodes: Questions to play, drawn by the seed; all by default.
        seed: Of that choice, of shuffled options and of the policy.
        concurrency: Episodes played side by side; 0 for what suits the policy.
        settings: What the policy sees and may do.
        decoding: How frames are read from a file.
        env: Further keyword arguments of the environment; they win over those above. Under "rules"
            the name of many at once: video_mtr_code plays the released code of Video-MTR.
        max_new_tokens: Longest reply of a model; 0 for its own.
        thinking: Whether a local model thinks before it replies, if its chat template has that
            switch (enable_thinking); by default as it was made for, or as the template has it.
        temperature: Of an endpoint's replies.
        request: Further fields of requests to an endpoint.
        image_format: png or jpeg, of images sent to an endpoint.
        timeout_s: Seconds that a request may take.
        retries: How often a request is tried again.
        patience: Episodes in a row without a reply that end the run.
        api_key_env: Environment variable that holds the key of an endpoint.
        thought_opened: Whether an endpoint's chat template opens the thought (ends the prompt with
            <think>), as those of thinking models do.
        policy_options: Further keyword arguments of the policy.
        quiet: Show no progress.
    """

    suite: str
    policy: str
    out: str = ""
    model: str = ""
    root: str = ""
    annotation: str = ""
    video_root: str = ""
    split: str = ""
    suite_options: Options = field(default_factory=dict)
    protocol: str = ""
    prompt: str = ""
    control: Control = "none"
    episodes: int | None = None
    seed: int = 0
    concurrency: int = 0
    settings: Annotated[EpisodeSettings, tyro.conf.OmitArgPrefixes] = field(
        default_factory=EpisodeSettings
    )
    decoding: Annotated[DecodingSettings, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: DecodingSettings(seek="exact")
    )
    env: Options = field(default_factory=dict)
    max_new_tokens: int = 0
    thinking: bool | None = None
    temperature: float = 0.0
    request: Options = field(default_factory=dict)
    image_format: Literal["png", "jpeg"] = "png"
    timeout_s: float = 300.0
    retries: int = 4
    patience: int = 16
    api_key_env: str = "OPENAI_API_KEY"
    thought_opened: bool = False
    policy_options: Options = field(default_factory=dict)
    quiet: bool = False

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``evaluate``."""
        return {
            "policy": self.policy,
            "suite": self.suite,
            "out": self.out,
            "split": self.split,
            "suite_options": self._suite_options(),
            "env": self._env(),
            "protocol": self.protocol or None,
            "prompt": self.prompt,
            "control": self.control,
            "episodes": self.episodes,
            "seed": self.seed,
            "concurrency": self.concurrency,
            "policy_options": self._policy_options(),
            "progress": not self.quiet,
        }

    def _suite_options(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in _PATHS if getattr(self, name)}
        return {**given, **self.suite_options}

    def _env(self) -> dict[str, Any]:
        return {**asdict(self.settings), **asdict(self.decoding), **with_rules(self.env)}

    def _policy_options(self) -> dict[str, Any]:
        names: tuple[str, ...] = ("max_new_tokens",)
        if self.policy.startswith(("http://", "https://")):
            names += _OF_ENDPOINTS
        given = {} if self.policy in AGENTS else {name: getattr(self, name) for name in names}
        if self.thinking is not None:  # what is no local model refuses it
            given["thinking"] = self.thinking
        return {**given, **self.policy_options}

    @classmethod
    def of(
        cls,
        *,
        suite_options: Mapping[str, Any],
        env: Mapping[str, Any],
        policy_options: Mapping[str, Any],
        **others: Any,
    ) -> EvaluateConfig:
        """Return the configuration whose ``arguments`` these are."""

        def taken(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
            return {name: given.pop(name) for name in names if name in given}

        left, paths, options = dict(env), dict(suite_options), dict(policy_options)
        settings = EpisodeSettings(**taken(left, _names(EpisodeSettings)))
        decoding = DecodingSettings(**taken(left, _names(DecodingSettings)))
        named = {name: str(path) for name, path in taken(paths, _PATHS).items()}
        named |= taken(options, ("max_new_tokens", "thinking", *_OF_ENDPOINTS))
        return cls(
            settings=settings,
            decoding=decoding,
            suite_options=paths,
            env=left,
            policy_options=options,
            **named,
            **others,
        )


def _names(kind: type) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind))
