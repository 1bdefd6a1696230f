"""The benchmarks there are, and how to load one.

Adapters are imported when they are asked for; what is needed to register their ids stands here.
"""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from typing import Any

import gymnasium as gym

from benchmarks.card import Card
from benchmarks.datasets.dataset import Dataset
from benchmarks.suite import BenchmarkSuite
from gym_longvideo.env import LongVideoQAEnv

# name -> id; each lives in the module of its name, or in the one named after the colon.
ENV_IDS: dict[str, str] = {
    "videomme": "LongVideo/VideoMME-v0",
    "mlvu": "LongVideo/MLVU-v0",
    "longvideobench": "LongVideo/LongVideoBench-v0",
    "lvbench": "LongVideo/LVBench-v0",
    "egoschema": "LongVideo/EgoSchema-v0",
    "nextgqa": "LongVideo/NExTGQA-v0",
    "qvhighlights": "LongVideo/QVHighlights-v0",
    "qvhighlights_segments": "LongVideo/QVHighlightsSegments-v0",
    "qvhighlights_grounding": "LongVideo/QVHighlightsGrounding-v0",
    "videomtr": "LongVideo/VideoMTR-v0",
    "jsonl": "LongVideo/Jsonl-v0",
}
_LOADED: dict[str, BenchmarkSuite] = {}
_MOST_LOADED = 4
_SUITE_OPTIONS = tuple(
    name
    for name, each in inspect.signature(BenchmarkSuite).parameters.items()
    if each.kind is each.KEYWORD_ONLY and name != "split"
)


def find_dataset(name: str) -> Dataset:
    """Return a benchmark by its name or its id.

    Raises:
        ValueError: If there is none.
    """
    by_id = {env_id: key for key, env_id in ENV_IDS.items()}
    key = by_id.get(name, name)
    if key not in ENV_IDS:
        raise ValueError(f"benchmark {name!r} is unknown; use one of {list(ENV_IDS)}")
    module = importlib.import_module(f"benchmarks.datasets.{key.partition('_')[0]}")
    return next(
        value for value in vars(module).values() if isinstance(value, Dataset) and value.name == key
    )


def load_suite(name: str, **arguments: Any) -> BenchmarkSuite:
    """Return a benchmark as a suite of tasks; no video is opened.

    Video-MTR trains on tasks whose evidence is short: ``relevant_share_below=0.5,
    longer_than_s=30``.

    Args:
        name: "videomme", ...; ``longvideo suites`` lists them.
        **arguments: Those of ``BenchmarkSuite``: ``root``, ``split``, ``where``, ...

    Raises:
        ValueError: For an unknown name, split or option, or if no task is left.
        FileNotFoundError: If there is no annotation, naming what was looked for.
    """
    return BenchmarkSuite(find_dataset(name), **arguments)


def load_named(name: str, split: str | None = None, **options: Any) -> BenchmarkSuite:
    """Load a suite as ``LongVideoQAEnv(suite="benchmarks.registry:load_named")`` asks for it.

    The last few are kept as long as none of their files and directories changes, so that many
    environments of one process read the annotation once.
    """
    key = repr((name, split, sorted(options.items())))
    suite = _LOADED.get(key)
    if suite is None or suite.finder.state() != suite.state:
        while len(_LOADED) >= _MOST_LOADED:
            _LOADED.pop(next(iter(_LOADED)))
        suite = _LOADED[key] = load_suite(name, split=split, **options)
    return suite


class _ByName:
    """What the entry points of the suites name: ``by_name.videomme`` loads that benchmark."""

    def __getattr__(self, name: str) -> Any:
        if name not in ENV_IDS:
            raise AttributeError(f"benchmark {name!r} is unknown; use one of {list(ENV_IDS)}")
        return partial(load_named, name)


by_name = _ByName()


def make_env(benchmark: str, split: str | None = None, **kwargs: Any) -> LongVideoQAEnv:
    """Make an environment of a benchmark: ``gym.make("benchmarks:LongVideo/VideoMME-v0", ...)``.

    Args:
        benchmark: Its name.
        split: By default the one that is reported.
        **kwargs: Those of ``load_suite`` and those of ``LongVideoQAEnv``; ``seek`` is "exact" here.
    """
    found = find_dataset(benchmark)
    names = (*_SUITE_OPTIONS, *found.options)
    options = {name: kwargs.pop(name) for name in names if name in kwargs}
    settings = {"seek": "exact", **kwargs}
    split = found.default_split if split is None else split
    if "suite" in settings:
        if options:
            raise ValueError(
                f"{sorted(options)} belong to a suite's name; suite= is loaded already"
            )
        return LongVideoQAEnv(split=split, **settings)
    return LongVideoQAEnv(
        suite="benchmarks.registry:load_named",
        split=split,
        suite_options={"name": benchmark, **options, **settings.pop("suite_options", {})},
        **settings,
    )


def dataset_of(card: Card) -> Dataset | None:
    """Return the published benchmark that a card names; ``None`` for other suites."""
    suite = card.protocol.get("suite", {})
    # Only benchmarks have digests of their annotation: another suite may bear the same name.
    known = suite.get("annotation") and suite["name"] in ENV_IDS
    return find_dataset(suite["name"]) if known else None


for _name, _env_id in ENV_IDS.items():
    if _env_id not in gym.registry:
        gym.register(
            id=_env_id, entry_point="benchmarks.registry:make_env", kwargs={"benchmark": _name}
        )
