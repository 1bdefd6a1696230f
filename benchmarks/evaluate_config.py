"""EvaluateConfig: the command line of ``benchmarks.evaluate``, as one frozen dataclass."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

from agents.scripted import AGENTS
from benchmarks.controls import Control

_JSON = PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda words: _mapping(words[0]),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)
Options = Annotated[dict[str, Any], _JSON]
Auto = Literal["auto"]


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no JSON ({error}); try '{{\"families\": \"needle\"}}'"
                         ) from None  # fmt: skip
    if not isinstance(value, dict):
        raise ValueError(f'{text!r} is no JSON object; try \'{{"families": "needle"}}\'')
    return value


@dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation.

    What is "auto" is as a checkpoint of agents.train was trained; for every other policy it is what
    stands in brackets.

    Attributes:
        suite: "haystack", the path of an annotation (JSON, JSON Lines, CSV, TSV, Parquet),
            "module:callable" or the name of a benchmark (python -m benchmarks.suites lists them).
        policy: A scripted agent (random, uniform_single_turn, bisect, oracle, noisy_oracle), the
            directory of a model or of a run of agents.train, or the URL of an endpoint.
        out: Directory of the run, new or begun; by default one under runs/ named after its card.
        model: Name of the model at an endpoint.
        root: Directory of the dataset.
        annotation: Path of the annotation, if it is not below the root.
        video_root: Directory of the videos, if they are not below the root.
        split: Split of the suite; by default that which a benchmark reports, "test" of others.
        suite_options: Further keyword arguments of the suite.
        protocol: Text protocol of models: tags, tags_seconds or tool_call [tags].
        control: none, blind, single_frame, shuffled or circular.
        episodes: Questions to play, drawn by the seed; all by default.
        seed: Of that choice, of shuffled options and of the policy.
        concurrency: Episodes played side by side; 0 for what suits the policy.
        max_turns: Turns of an episode [3].
        frame_budget: Frames shown in an episode at most; None for the sum of the next two [32].
        overview_frames: Frames of the overview; None for half of the budget [None].
        frames_per_retrieval: Most frames of a retrieval; None for a quarter of the budget [None].
        pool_size: Candidate frames of a video [128].
        pool_rule: midpoint or linspace [midpoint].
        frame_size: Side of the frames in pixels [56]. 56 suit haystack; real models want 224 or
            more.
        fit: stretch or letterbox [stretch].
        retrieval: pool or timeline [pool].
        seek: exact, keyframe or auto.
        backend: pyav, decord or torchcodec.
        isolate: Decode in child processes.
        deadline_s: Seconds a decoding call may take.
        cache_mb: Megabytes of decoded frames kept between episodes.
        cache_dir: Directory for decoded frames.
        env: Further keyword arguments of the environment; they win over those above.
        max_new_tokens: Longest reply of a model; 0 for its own.
        temperature: Of an endpoint's replies.
        request: Further fields of requests to an endpoint.
        image_format: png or jpeg, of images sent to an endpoint.
        timeout_s: Seconds that a request may take.
        retries: How often a request is tried again.
        patience: Episodes in a row without a reply that end the run.
        api_key_env: Environment variable that holds the key of an endpoint.
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
    protocol: str = "auto"
    control: Control = "none"
    episodes: int | None = None
    seed: int = 0
    concurrency: int = 0
    max_turns: int | Auto = "auto"
    frame_budget: int | Auto | None = "auto"
    overview_frames: int | Auto | None = "auto"
    frames_per_retrieval: int | Auto | None = "auto"
    pool_size: int | Auto = "auto"
    pool_rule: Literal["midpoint", "linspace", "auto"] = "auto"
    frame_size: int | Auto = "auto"
    fit: Literal["stretch", "letterbox", "auto"] = "auto"
    retrieval: Literal["pool", "timeline", "auto"] = "auto"
    seek: Literal["exact", "keyframe", "auto"] = "exact"
    backend: str = "pyav"
    isolate: bool = False
    deadline_s: float | None = 60.0
    cache_mb: float = 0.0
    cache_dir: str | None = None
    env: Options = field(default_factory=dict)
    max_new_tokens: int = 0
    temperature: float = 0.0
    request: Options = field(default_factory=dict)
    image_format: Literal["png", "jpeg"] = "png"
    timeout_s: float = 300.0
    retries: int = 4
    patience: int = 16
    api_key_env: str = "OPENAI_API_KEY"
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
            "protocol": None if self.protocol == "auto" else self.protocol,
            "control": self.control,
            "episodes": self.episodes,
            "seed": self.seed,
            "concurrency": self.concurrency,
            "policy_options": self._policy_options(),
            "progress": not self.quiet,
        }

    def _suite_options(self) -> dict[str, Any]:
        named = ("root", "annotation", "video_root")
        given = {name: getattr(self, name) for name in named if getattr(self, name)}
        return {**given, **self.suite_options}

    def _env(self) -> dict[str, Any]:
        names = (
            "max_turns", "frame_budget", "overview_frames", "frames_per_retrieval", "pool_size",
            "pool_rule", "frame_size", "fit", "retrieval", "seek", "backend", "isolate",
            "deadline_s", "cache_mb", "cache_dir",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in names}
        # seek has a mode of that name.
        kept = {k: value for k, value in given.items() if value != "auto" or k == "seek"}
        return {**kept, **self.env}

    def _policy_options(self) -> dict[str, Any]:
        names: tuple[str, ...] = ("max_new_tokens",)
        if self.policy.startswith(("http://", "https://")):
            names += ("model", "temperature", "request", "image_format", "timeout_s", "retries",
                      "patience", "api_key_env")  # fmt: skip
        given = {} if self.policy in AGENTS else {name: getattr(self, name) for name in names}
        return {**given, **self.policy_options}
