"""Evaluate a policy on a suite.

    longvideo evaluate --suite haystack --suite-options '{"size": 1000}' --policy bisect
    longvideo evaluate --suite videomme --root DATA --policy runs/train-20250101-120000
    longvideo evaluate --suite my.jsonl --policy http://localhost:8000/v1 --model NAME

Every episode is written as it ends. A run that was stopped, or killed, goes on when the same
command is given again; episodes that broke are tried again then. Another command is refused there.

Exit codes: 0 done; 1 stopped by a fault (no endpoint, no room); 2 arguments that have no meaning;
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

import gym_longvideo.suite as general
from agents.command import overlaid, parse, to_json
from agents.source import EPISODE_SETTINGS, MadeFor, PolicySource, frame_cost
from benchmarks import registry
from benchmarks.controls import ControlledSuite, chosen, control_settings
from benchmarks.evaluate_config import EvaluateConfig
from benchmarks.players.make import make_player
from benchmarks.players.player import Job, MakeEnv, Player
from benchmarks.registry import ENV_IDS
from benchmarks.runs import SUMMARY, RunError, RunWriter, read_run, write_json
from gym_longvideo import checks
from gym_longvideo.command import Parser, as_command, check_directory, fail, write_config
from gym_longvideo.env import SETTINGS, LongVideoQAEnv
from gym_longvideo.extras import require
from gym_longvideo.files import portable
from gym_longvideo.prompt import prompt_text
from gym_longvideo.protocol import PROTOCOLS, example_turn, make_protocol
from gym_longvideo.settings import EpisodeSettings, with_rules
from gym_longvideo.suite import Suite

_log = logging.getLogger(__name__)

SPLIT = "test"  # of suites that name none themselves
FILES = (".json", ".jsonl", *general.TABLES)  # what the benchmark jsonl reads
UNSCORED = "unscored: no task has a public answer"


def suite_to_play(
    suite: str | Suite, *, split: str = "", options: Mapping[str, Any] | None = None
) -> Suite:
    """Return a suite from what the command line takes.

    Args:
        suite: "haystack", the path of one's own annotation (JSON Lines, JSON, CSV, TSV, Parquet:
            the benchmark ``jsonl``), "module:callable", the name of a benchmark, perhaps with a
            split of its own ("nextgqa:val"), or a ``Suite``.
        split: By default that which a benchmark reports (all of one's own annotation), "test" of
            the others.
        options: Keyword arguments of the suite: root, annotation, video_root, filters.

    Raises:
        ValueError: If there is no such suite, or it does not take the options.
    """
    options = dict(options or {})
    if not isinstance(suite, str):
        return general.load_suite(suite, options=options)
    if len(parts := general.parts_of(suite)) > 1:
        raise ValueError(
            f"suite={suite!r} mixes {len(parts)} suites, which is for training; evaluate them one "
            "by one, so that each has scores of its own"
        )
    name, named = general.named_split(suite)
    split = named or split
    if name.lower().endswith(FILES):
        if "annotation" in options:
            raise ValueError(f"suite={suite!r} is an annotation, and annotation="
                             f"{options['annotation']!r} another; give one of them")  # fmt: skip
        name, options = "jsonl", {"annotation": suite, **options}
    elif name not in ENV_IDS:
        return general.load_suite(name, split=split or SPLIT, options=options)
    try:
        return registry.load_suite(name, split=split or None, **options)
    except TypeError as error:
        raise ValueError(f"suite={suite!r} with {sorted(options)}: {error}") from None


def evaluate(
    policy: str | PolicySource | Callable[[MakeEnv], Player],
    suite: str | Suite,
    *,
    out: str | os.PathLike[str] = "",
    split: str = "",
    suite_options: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    protocol: str | None = None,
    prompt: str | os.PathLike[str] = "",
    control: str = "none",
    episodes: int | None = None,
    seed: int = 0,
    concurrency: int = 0,
    policy_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Play a suite, write every episode as it ends, and return the summary.

    Args:
        policy: What ``PolicySource.of`` takes, or a function that makes a player.
        suite: What ``suite_to_play`` takes.
        out: Directory of the run, new or begun; by default one under runs/ named after its card.
        split: Split of the suite.
        suite_options: Keyword arguments of the suite.
        env: Keyword arguments of ``LongVideoQAEnv``; seek is "exact" unless they say otherwise.
            What they leave open of ``EpisodeSettings`` is as the policy was made for.
        protocol: Text protocol; by default that which the policy was made for, else "tags".
            Scripted policies speak none.
        prompt: Template that words the turns of a model: its text, or the path of its file; by
            default the one that the policy was trained with, if any; "default" for the protocol's
            own words.
        control: One of ``controls.CONTROLS``.
        episodes: Questions to play, drawn by ``seed``; ``None`` for all. More than the suite has
            are refused.
        seed: Of that choice, of shuffled options and of the policy.
        concurrency: Episodes played side by side; 0 for what suits the policy.
        policy_options: What else the policy takes by keyword (``model``, ``timeout_s``, ...).
        progress: Whether to show a progress bar.

    Returns:
        What ``summary.summarize`` returns; it is also in ``summary.json``.

    Raises:
        ValueError: For arguments that have no meaning, or a run begun under another card.
        RunError: If the run is in use, cannot be written, or not one episode could be played.
        EndpointDown: If an endpoint stopped replying. In both cases what was played is kept.
    """
    from benchmarks.card import make_card
    from benchmarks.scores.summary import summarize  # heavy

    require("benchmarks.evaluate", "torch", "torchmetrics")  # of the summary, hours from now
    loaded = suite_to_play(suite, split=split, options=suite_options)
    if left_out := len(getattr(loaded, "invalid", ())):
        _log.warning("%d rows were left out of the suite; longvideo validate says more", left_out)
    if missing := len(getattr(loaded, "missing", ())):  # one for each question, not for each video
        _log.warning(
            "%d of %d questions lack their video, which is missing; longvideo validate says more",
            *(missing, len(loaded)),
        )
    tasks = ControlledSuite(
        loaded,
        control,
        indices=chosen(loaded, episodes, seed),
        seed=seed,
        options=_without_paths(suite_options),
    )
    source = None if callable(policy) else PolicySource.of(policy)
    if prompt and source is None:
        raise ValueError("a policy that is a function makes its own player; leave prompt= out")
    given = prompt_text(prompt)
    template = _prompt(source, given)
    protocol, env = _as_made_for(source, protocol, with_rules(env or {}), template)
    unscored = all(tasks[index].answer_index is None for index in range(len(tasks)))
    if unscored:
        _log.warning("%s; there will be no accuracy", UNSCORED)
    env = {"seek": "exact", **env}
    settings = control_settings(control, env)
    _check_settings(settings)
    make_protocol(protocol)
    if out:
        check_directory(out)

    def make_env() -> LongVideoQAEnv:
        return LongVideoQAEnv(suite=tasks, **settings)

    with contextlib.ExitStack() as stack:
        probe = make_env()
        stack.callback(probe.close)
        if callable(policy):
            player = policy(make_env)
        else:
            assert source is not None
            player = make_player(
                source,
                make_env,
                protocol=protocol,
                prompt=template,
                seed=seed,
                concurrency=concurrency,
                options=policy_options,
            )
        stack.callback(player.close)
        if source is not None and source.kind == "endpoint":
            seen = probe.viewer.settings
            unit = seen.pixel_unit
            cost = frame_cost(seen)
            _log.info("for a model that makes a token of %d x %d pixels, %s", unit, unit, cost)
        card = make_card(
            probe,
            tasks,
            protocol=player.protocol,
            system_prompt=_system_prompt(player.protocol, probe.max_turns),
            prompt=template,
            control=control,
            episodes=episodes,
            seed=seed,
            policy=player.policy,
        )
        directory = Path(out or Path("runs") / portable(f"evaluate-{loaded.name}-{card.hash}"))
        keys = _distinct(tasks.keys())
        writer = stack.enter_context(RunWriter(directory, card, keys))
        if source is not None and isinstance(suite, str):
            config = EvaluateConfig.of(
                suite=suite, policy=source.given, out=str(directory), split=split,
                suite_options=suite_options or {}, env=env, protocol=protocol,
                prompt=template or given, control=control, episodes=episodes, seed=seed,
                concurrency=concurrency, policy_options=policy_options or {}, quiet=not progress,
            )  # fmt: skip
            write_config(directory, to_json(config))
        jobs = [Job(key, i) for i, key in enumerate(keys) if key not in writer.outcomes]
        _log.info("%s: %d of %d episodes to play", directory, len(jobs), len(keys))
        _play(player, jobs, writer, len(keys), progress)
        if not writer.outcomes:
            first = read_run(directory).faults[-1]
            raise RunError(f"not one of {len(keys)} episodes could be played; {first['key']!r}: "
                           f"{first['error']}")  # fmt: skip
        summary = summarize(read_run(directory), tasks.dataset)
        write_json(directory / SUMMARY, summary)
    return {**summary, "directory": str(directory)}


def _distinct(keys: list[str]) -> list[str]:
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"task {twice!r} is in the suite twice; ids must be unique")
    return keys


def _prompt(source: PolicySource | None, given: str) -> str:
    """Return the template that words the turns, "" for none."""
    made_for = None if source is None else source.made_for
    return (made_for or MadeFor()).prompt_under(given)


def _as_made_for(
    source: PolicySource | None,
    protocol: str | None,
    env: Mapping[str, Any],
    prompt: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """Fill in what was left open with what a policy was made for; warn of what differs."""
    if source is None:
        return protocol or "tags", dict(env)
    made_for, chosen = source.made_for, source.settings_under(env)
    if made_for is None:
        return protocol or "tags", chosen
    protocol = protocol or made_for.protocol
    settings = EpisodeSettings(**{k: v for k, v in chosen.items() if k in EPISODE_SETTINGS})
    if differing := made_for.departures(protocol, settings, prompt):
        _log.warning("%s is not played as it was trained: %s", source.name, "; ".join(differing))
    return protocol, chosen


def _check_settings(settings: Mapping[str, Any]) -> None:
    for name in settings:
        if name in ("suite", "split", "suite_options", "on_video_error"):
            raise ValueError(f"env sets {name!r}, which the evaluation sets itself")
    checks.names("env: the environment", settings, (*SETTINGS, "render_mode"))


def _play(
    player: Player, jobs: Sequence[Job], writer: RunWriter, total: int, progress: bool
) -> None:
    started = time.perf_counter()
    with tqdm(
        total=total,
        initial=total - len(jobs),
        unit="ep",
        disable=not progress,
        dynamic_ncols=True,
        smoothing=0.1,
    ) as bar:
        for played in player.play(jobs):
            if played.record is None:
                writer.fault(played.key, played.error)
                _log.debug("fault of %s: %s", played.key, played.error)
            else:
                writer.add(played.key, played.record, played.cost)
            state = {"accuracy": f"{writer.accuracy:.3f}"}
            if writer.faults:
                state["faults"] = str(writer.faults)
            bar.set_postfix(state, refresh=False)
            bar.update(played.record is not None)
    spent = max(time.perf_counter() - started, 1e-9)
    if jobs:
        _log.info("%d episodes in %.1f s, %.1f a second", len(jobs), spent, len(jobs) / spent)
    if writer.faults:
        _log.warning(
            "%d episodes broke and say nothing about the policy; the same command tries them again",
            writer.faults,
        )


def _system_prompt(protocol: str, max_turns: int) -> str:
    """Return what a model is told at first; of custom protocols and numeric views nothing."""
    if protocol not in PROTOCOLS:
        return ""
    return make_protocol(protocol).system(replace(example_turn(), max_turns=max_turns))


def _without_paths(options: Mapping[str, Any] | None) -> dict[str, Any]:
    paths = ("root", "annotation", "video_root", "path")
    return {name: value for name, value in (options or {}).items() if name not in paths}


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line; return the exit code."""
    from benchmarks.players.endpoint import EndpointDown

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for name in ("httpx", "httpx2", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # transformers 5 says nothing in these that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning)
    source: PolicySource | None = None

    def defaults(words: Sequence[str], given: Mapping[str, Any]) -> EvaluateConfig:
        nonlocal source
        source = _source(words, given)
        return _defaults(source, given)

    config = parse(
        EvaluateConfig, arguments, "evaluate", description=__doc__, make_default=defaults
    )
    try:
        summary = evaluate(**{**config.arguments(), "policy": source})
    except KeyboardInterrupt:
        print("\nstopped; give the same command again to go on", file=sys.stderr)
        return 130
    except (RunError, EndpointDown) as error:
        return fail(error, 1)
    print("\n".join(_lines(summary)))
    return 0


def _source(words: Sequence[str], given: Mapping[str, Any]) -> PolicySource | None:
    """Return where the policy comes from that a command line or a configuration names."""
    first = Parser(add_help=False)
    first.add_argument("--policy", default=given.get("policy", ""))
    policy = first.parse_known_args(words)[0].policy
    return PolicySource.of(policy) if policy else None


def _defaults(source: PolicySource | None, given: Mapping[str, Any]) -> EvaluateConfig:
    """Return what a command line leaves open: what its policy was made for."""
    made_for = (None if source is None else source.made_for) or MadeFor(protocol="")
    settings = EpisodeSettings(**({} if source is None else source.settings))
    default = EvaluateConfig(
        tyro.MISSING, tyro.MISSING, settings=settings, protocol=made_for.protocol
    )
    return overlaid(default, given)


def _lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is printed at the end."""
    if not summary["scored"]:
        yield UNSCORED
    for name in ("accuracy", "lenient_accuracy"):
        value = summary.get(name)
        if isinstance(value, Mapping) and value.get("value") is not None:
            ends = [value.get("low"), value.get("high")]
            between = "" if None in ends else f" ({ends[0]:.3f} to {ends[1]:.3f})"
            yield f"{name.replace('_', ' ')} {value['value']:.3f}{between}"
    if summary["trouble"]:
        yield f"warning: {summary['trouble']}"
    if summary["grounding_missing"]:
        yield f"warning: {summary['grounding_missing']}"
    yield (
        f"{summary['episodes']} episodes, {summary['faults']} faults, card {summary['hash']}: "
        f"{summary['directory']}"
    )


if __name__ == "__main__":
    sys.exit(main())
