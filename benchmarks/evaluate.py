"""Evaluate a policy on a suite: ``python -m benchmarks.evaluate``.

    python -m benchmarks.evaluate --suite haystack --suite-options '{"size": 1000}' --policy bisect
    python -m benchmarks.evaluate --suite videomme --root DATA --policy runs/train-20250101-120000
    python -m benchmarks.evaluate --suite my.jsonl --policy http://localhost:8000/v1 --model NAME

Every episode is written as it ends. A run that was stopped, or killed, goes on when the same
command is given again; episodes that broke are tried again then. Another command is refused there.

Exit codes: 0 done; 1 stopped by a fault (no endpoint, no room); 2 arguments that have no meaning;
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agents.scripted import AGENTS
from benchmarks.controls import ControlledSuite, chosen, control_settings
from benchmarks.evaluate_config import EvaluateConfig
from benchmarks.players.make import make_player
from benchmarks.players.player import Job, MakeEnv, Player
from benchmarks.runs import SUMMARY, RunError, RunWriter, read_run, write_json
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.protocol import PROTOCOLS, example_turn, make_protocol
from gym_longvideo.suite import Suite

_log = logging.getLogger(__name__)

SPLIT = "test"  # of suites that name none themselves
FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")  # what the jsonl benchmark reads
UNSCORED = "unscored: no task has a public answer"


def load_suite(
    suite: str | Suite, *, split: str = "", options: Mapping[str, Any] | None = None
) -> Suite:
    """Return a suite from what the command line takes.

    Args:
        suite: "haystack", the path of one's own annotation (JSON Lines, JSON, CSV, TSV, Parquet:
            the benchmark ``jsonl``), "module:callable", the name of a benchmark, or a ``Suite``.
        split: By default that which a benchmark reports (all of one's own annotation), "test" of
            the others.
        options: Keyword arguments of the suite: root, annotation, video_root, filters.

    Raises:
        ValueError: If there is no such suite, or it does not take the options.
    """
    import gym_longvideo.suite as general

    options = dict(options or {})
    if not isinstance(suite, str):
        return general.load_suite(suite, options=options)
    if suite.lower().endswith(FILES):
        if "annotation" in options:
            raise ValueError(f"suite={suite!r} is an annotation, and annotation="
                             f"{options['annotation']!r} another; give one of them")  # fmt: skip
        suite, options = "jsonl", {"annotation": suite, **options}
    elif suite == "haystack" or ":" in suite:
        return general.load_suite(suite, split=split or SPLIT, options=options)
    import benchmarks

    try:
        return benchmarks.load_suite(suite, split=split or None, **options)
    except TypeError as error:
        raise ValueError(f"suite={suite!r} with {sorted(options)}: {error}") from None


def evaluate(
    policy: str | Callable[[MakeEnv], Player],
    suite: str | Suite,
    *,
    out: str | os.PathLike[str] = "",
    split: str = "",
    suite_options: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    protocol: str | None = None,
    control: str = "none",
    episodes: int | None = None,
    seed: int = 0,
    concurrency: int = 0,
    policy_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Play a suite, write every episode as it ends, and return the summary.

    Args:
        policy: What ``players.make_player`` takes, or a function that makes a player.
        suite: What ``load_suite`` takes.
        out: Directory of the run, new or begun; by default one under runs/ named after its card.
        split: Split of the suite.
        suite_options: Keyword arguments of the suite.
        env: Keyword arguments of ``LongVideoQAEnv``; seek is "exact" unless they say otherwise.
            What they leave open of ``model_player.TRAINED`` is as a checkpoint was trained.
        protocol: Text protocol; by default that of a checkpoint, else "tags". Scripted policies
            speak none.
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

    loaded = load_suite(suite, split=split, options=suite_options)
    for what in ("invalid", "missing"):
        if found := len(getattr(loaded, what, ())):
            _log.warning("%d %s in the suite; python -m benchmarks.validate says more", found,
                         "rows were left out" if what == "invalid" else "videos are missing"
                         )  # fmt: skip
    tasks = ControlledSuite(
        loaded,
        control,
        indices=chosen(loaded, episodes, seed),
        seed=seed,
        options=_without_paths(suite_options),
    )
    protocol, env = _as_trained(policy, protocol, env or {})
    unscored = all(tasks[index].answer_index is None for index in range(len(tasks)))
    if unscored:
        _log.warning("%s; there will be no accuracy", UNSCORED)
    settings = control_settings(control, {"seek": "exact", **env})
    _check_settings(settings)

    def make_env() -> LongVideoQAEnv:
        return LongVideoQAEnv(suite=tasks, **settings)

    with contextlib.ExitStack() as stack:
        probe = make_env()
        stack.callback(probe.close)
        if callable(policy):
            player = policy(make_env)
        else:
            player = make_player(
                policy,
                make_env,
                protocol=protocol,
                seed=seed,
                concurrency=concurrency,
                options=policy_options,
            )
        stack.callback(player.close)
        card = make_card(
            probe,
            tasks,
            protocol=player.protocol,
            system_prompt=_system_prompt(player.protocol, probe.max_turns),
            control=control,
            episodes=episodes,
            seed=seed,
            policy=player.policy,
        )
        directory = Path(out or Path("runs") / f"evaluate-{loaded.name}-{card.hash}")
        keys = _distinct(tasks.keys())
        writer = stack.enter_context(RunWriter(directory, card, keys))
        jobs = [Job(key, i) for i, key in enumerate(keys) if key not in writer.outcomes]
        _log.info("%s: %d of %d episodes to play", directory, len(jobs), len(keys))
        _play(player, jobs, writer, len(keys), progress)
        if not writer.outcomes:
            first = read_run(directory).faults[-1]
            raise RunError(f"not one of {len(keys)} episodes could be played; {first['key']!r}: "
                           f"{first['error']}")  # fmt: skip
        from benchmarks.scores.summary import summarize  # heavy, and not needed until now

        summary = summarize(read_run(directory), tasks.dataset)
        write_json(directory / SUMMARY, summary)
    return {**summary, "directory": str(directory)}


def _distinct(keys: list[str]) -> list[str]:
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"task {twice!r} is in the suite twice; ids must be unique")
    return keys


def _as_trained(
    policy: Any, protocol: str | None, env: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Fill in what was left open with what a checkpoint was trained with; warn of what differs."""
    if isinstance(policy, str) and policy not in AGENTS and Path(policy).is_dir():
        from benchmarks.players.model import departures, trained_with  # heavy

        if trained := trained_with(policy):
            chosen = {**trained, **{k: value for k, value in env.items() if k in trained}}
            chosen["protocol"] = protocol or trained["protocol"]
            if differing := departures(trained, chosen):
                _log.warning("%s is not played as it was trained: %s", policy, "; ".join(differing))
            protocol = chosen.pop("protocol")
            env = {**env, **chosen}
    return protocol or "tags", dict(env)


def _check_settings(settings: Mapping[str, Any]) -> None:
    known = set(inspect.signature(LongVideoQAEnv).parameters)
    for name in settings:
        if name in ("suite", "split", "suite_options", "on_video_error"):
            raise ValueError(f"env sets {name!r}, which the evaluation sets itself")
        if name not in known:
            raise ValueError(f"env={dict(settings)}: the environment takes no {name!r}; use some "
                             f"of {sorted(known)}")  # fmt: skip


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    import tyro

    from benchmarks.players.endpoint import EndpointDown

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for name in ("httpx", "httpx2", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # transformers 5 says nothing in these that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        config = tyro.cli(
            EvaluateConfig, args=list(given), description=__doc__, prog="benchmarks.evaluate"
        )
        summary = evaluate(**config.arguments())
    except KeyboardInterrupt:
        print("\nstopped; give the same command again to go on", file=sys.stderr)
        return 130
    except (RunError, EndpointDown) as error:
        return _fail(error, 1)
    except (ValueError, OSError, ImportError) as error:
        return _fail(error, 2)
    print("\n".join(_lines(summary)))
    return 0


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
    yield (
        f"{summary['episodes']} episodes, {summary['faults']} faults, card {summary['hash']}: "
        f"{summary['directory']}"
    )


def _fail(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
