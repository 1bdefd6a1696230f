"""Score a finished run again, without inference: under another reward, or another parser.

    longvideo rescore RUN --reward ungated
    longvideo rescore RUN --parser lenient --out runs/lenient
    longvideo compare RUN runs/lenient --across scorer

A reward can be exchanged fully, because records hold facts. A parser cannot: only the *last* reply
of an episode is read again. A reply that the new parser would have read differently earlier, or an
answer that it does not accept while turns were left, would have led to another dialogue; such
episodes are counted as ``diverging`` and scored as they ended (no accepted last answer:
unanswered). If many diverge, play the run again under that parser.

The card of the result names the new scorer, so that nobody takes it for the original. ``--out``
makes a run of it, which report and compare read; another reward is another "settings.reward" too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.controls import record_key
from benchmarks.datasets.dataset import Dataset
from benchmarks.registry import dataset_of
from benchmarks.scores.grounding import pool_edges, recorded_pool_times
from benchmarks.scores.summary import Results, RunLike, summarize
from gym_longvideo import checks
from gym_longvideo.command import as_command, check_directory, write_config
from gym_longvideo.episode import Action, Answer, Malformed, Retrieve
from gym_longvideo.protocol import PROTOCOLS, Turn, lenient, make_protocol
from gym_longvideo.record import EpisodeRecord, rescore
from gym_longvideo.rewards import BiLevelReward, make_reward

PARSERS = ("strict", "lenient", *PROTOCOLS)


class Rescored(NamedTuple):
    """A run under another scorer.

    Attributes:
        results: The episodes as they are scored now; the card names the scorer.
        changed: Episodes whose outcome changed.
        diverging: Episodes that would have gone differently under the new parser.
    """

    results: Results
    changed: int
    diverging: int


def rescore_run(
    run: RunLike,
    *,
    reward: str | Mapping[str, Any] | BiLevelReward | None = None,
    parser: str | None = None,
) -> Rescored:
    """Score a run's records again.

    Args:
        run: A run; it is not changed.
        reward: Preset, mapping of fields, or reward; ``None`` keeps each record's own.
        parser: "strict" (the run's own protocol), "lenient", or the name of a text protocol;
            ``None`` keeps the outcomes.

    Raises:
        ValueError: For an unknown reward or parser, if both are ``None``, or if replies are wanted
            of a run that has none.
    """
    if reward is None and parser is None:
        raise ValueError("nothing to do: name a reward, a parser, or both")
    if parser is not None:
        checks.choice("parser", parser, PARSERS)
    card = run.card
    protocol = str(card.protocol.get("text_protocol", "numeric"))
    if parser is not None and protocol not in PROTOCOLS:
        raise ValueError(
            f"the run was played in protocol {protocol!r}: there are no replies that a parser of "
            f"{list(PROTOCOLS)} could read again"
        )
    records, changed, diverging = [], 0, 0
    for record in run.records:
        read = record
        if parser is not None:
            read, diverges = reparse(record, parser, protocol)
            changed += read.outcome != record.outcome
            diverging += diverges
        records.append(_paid(read, reward))
    parts, entries = [], {}
    if parser is not None:
        parts.append(f"last reply read by {_parser_name(parser, protocol)}")
    if reward is not None:
        fields = make_reward(reward).to_dict()
        parts.append(f"reward {reward if isinstance(reward, str) else json.dumps(fields)}")
        entries["settings"] = {**card.protocol.get("settings", {}), "reward": fields}
    scorer = f"rescored: {'; '.join(parts)}"
    results = Results(
        card.rescored(scorer, **entries), tuple(records), dict(run.costs), tuple(run.faults)
    )
    return Rescored(results, changed, diverging)


def reparse(record: EpisodeRecord, parser: str, protocol: str) -> tuple[EpisodeRecord, bool]:
    """Read the last reply of an episode again.

    Args:
        record: An episode that was played in words.
        parser: One of ``PARSERS``.
        protocol: The text protocol in which it was played.

    Returns:
        The record with the outcome that follows, and whether the episode diverges: some reply would
        have led elsewhere.

    Raises:
        ValueError: If a turn has no reply.
    """
    turns = [_turn(record, k) for k in range(len(record.turns))]
    actions = [_read(reply, turn, parser, protocol) for reply, turn in turns]
    diverges = any(
        not _same(action, turn)
        for action, turn in zip(actions[:-1], record.turns[:-1], strict=True)
    )
    last, action = record.turns[-1], actions[-1]
    left = len(record.turns) < int(record.settings["max_turns"])
    diverges |= left and not isinstance(action, Answer)
    if isinstance(action, Answer):
        choice, expected = action.choice, record.task["answer_index"]
        outcome = "unscored" if expected is None else "correct" if choice == expected else "wrong"
        turn = {**last, "op": "answer", "choice": choice, "malformed": ""}
    elif last["op"] == "malformed":
        outcome, turn = "unanswered", last
    else:
        reason = action.reason if isinstance(action, Malformed) else "no answer in the last reply"
        outcome = "unanswered"
        turn = {**last, "op": "malformed", "choice": -1, "malformed": reason}
    return replace(record, turns=[*record.turns[:-1], turn], outcome=outcome), diverges


def compare_scores(
    run: RunLike,
    rescored: Rescored,
    dataset: Dataset | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the summary of the rescored run, with what it changed under "rescored"."""
    before = summarize(run, dataset, resamples=resamples, seed=seed)
    after = summarize(rescored.results, dataset, resamples=resamples, seed=seed)
    after["rescored"] = {
        "from": run.card.hash,
        "changed": rescored.changed,
        "diverging": rescored.diverging,
        "accuracy_before": before["accuracy"],
        "return_before": before["return"],
    }
    return after


def write_rescored(directory: Path, rescored: Rescored, summary: Mapping[str, Any]) -> None:
    """Write a rescored run as a run of its own.

    Args:
        directory: Where; it must not exist, or be empty.
        rescored: The run.
        summary: Its numbers, as ``compare_scores`` returns them.

    Raises:
        ValueError: If there is something already, or an episode is recorded twice.
        OSError: If it cannot be written.
    """
    from benchmarks.runs import SUMMARY, RunWriter, write_json

    if directory.is_dir() and any(directory.iterdir()):
        raise ValueError(
            f"--out {directory} is not empty; name a new directory, or a path that ends in .json "
            "for the summary alone"
        )
    results = rescored.results
    with RunWriter(directory, results.card) as writer:
        for record in results.records:
            key = record_key(record)
            writer.add(key, record, results.costs.get(key, {}))
        for fault in results.faults:
            writer.fault(str(fault.get("key")), str(fault.get("error", "")))
    write_json(directory / SUMMARY, summary)


def table(summary: Mapping[str, Any]) -> str:
    """Return a rescored summary as text."""
    changes = summary["rescored"]
    lines = [
        f"scorer: {summary['scorer']}",
        f"card {summary['hash']}, rescored from {changes['from']}",
        f"{_episodes(summary['episodes'])}, {changes['changed']} with another outcome",
        "",
        f"{'':12s}{'before':>9s}{'after':>9s}",
    ]
    for name in ("accuracy", "return"):
        before, after = changes[f"{name}_before"]["value"], summary[name]["value"]
        lines.append(f"{name:12s}{_number(before)}{_number(after)}")
    for part in ("accuracy", "relevance", "format"):
        before, after = changes["return_before"][part], summary["return"][part]
        lines.append(f"  {part:10s}{_number(before)}{_number(after)}")
    if changes["diverging"]:
        lines += [
            "",
            f"{_episodes(changes['diverging'])} would have gone differently under this parser, and "
            "count as they",
            "ended: only last replies can be read again without inference.",
        ]
    return "\n".join(lines)


def _paid(record: EpisodeRecord, reward: Any) -> EpisodeRecord:
    """Return a record with the ledger that a reward gives; ``None`` for the record's own."""
    settings = dict(record.settings)
    if reward is not None:
        settings["reward"] = make_reward(reward).to_dict()
    ledger = [row._asdict() for row in rescore(record, settings["reward"])]
    return replace(record, settings=settings, ledger=ledger)


def _turn(record: EpisodeRecord, k: int) -> tuple[str, Turn]:
    """Return the reply of turn k (from 0), and the turn as a parser saw it."""
    reply = record.turns[k].get("reply")
    if not isinstance(reply, str):
        raise ValueError(
            f"episode {record.task['task_id']!r}, turn {k + 1} has no reply to read again; only "
            "runs played in words can be read by another parser"
        )
    nothing = np.zeros(0)
    turn = Turn(
        number=k + 1,
        max_turns=int(record.settings["max_turns"]),
        question=record.task["question"],
        options=tuple(record.task["options"]),
        may_retrieve=k + 1 < int(record.settings["max_turns"]),
        pool_times=recorded_pool_times(record),
        edges=pool_edges(record),
        frames=np.zeros((0, 1, 1, 3), np.uint8),
        frame_index=nothing,
        frame_time=nothing,
        first=k == 0,
    )
    return reply, turn


def _read(reply: str, turn: Turn, parser: str, protocol: str) -> Action:
    if parser == "lenient":
        return lenient(reply, turn, make_protocol(protocol))
    return make_protocol(protocol if parser == "strict" else parser).parse(reply, turn)


def _same(action: Action, turn: Mapping[str, Any]) -> bool:
    """Return whether an action does what a recorded turn did."""
    match action:
        case Answer(choice):
            return turn["op"] == "answer" and turn["choice"] == choice
        case Retrieve(start, end):
            if turn["op"] == "retrieve":
                return turn["interval"] == [min(start, end), max(start, end)]
            # Else refused by the environment, whatever the parser.
            backwards = start > end and turn["malformed"].endswith("ends before it starts")
            return backwards or turn["malformed"].startswith("the frame budget")
        case Malformed():
            return turn["op"] == "malformed"


def _parser_name(parser: str, protocol: str) -> str:
    return f"{parser}({protocol})" if parser in ("strict", "lenient") else parser


def _episodes(count: int) -> str:
    return f"{count} episode{'' if count == 1 else 's'}"


def _number(value: float | None) -> str:
    return f"{'-':>9s}" if value is None else f"{value:9.4f}"


@dataclass(frozen=True)
class RescoreConfig:
    """What to score again, and how.

    Attributes:
        run: Directory of the run; nothing in it is changed.
        reward: Preset of the reward, e.g. ungated.
        parser: strict, lenient, or the name of a text protocol.
        out: Directory to write the rescored run to, new or empty; a path that ends in .json gets
            the summary alone.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """

    run: Path
    reward: str | None = None
    parser: str | None = None
    out: Path | None = None
    resamples: int = 2000
    seed: int = 0


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line; return the exit code."""
    from agents.command import parse, to_json
    from benchmarks.runs import read_run, write_json

    config = parse(RescoreConfig, arguments, "rescore", positional=True)
    if config.out is not None and config.out.resolve().is_relative_to(config.run.resolve()):
        raise ValueError(
            f"--out {config.out} lies in the run itself; write it elsewhere, so that it is "
            "never taken for the run's own summary"
        )
    if config.out is not None:
        check_directory(config.out.parent)
    run = read_run(config.run)
    rescored = rescore_run(run, reward=config.reward, parser=config.parser)
    options = {"resamples": config.resamples, "seed": config.seed}
    summary = compare_scores(run, rescored, dataset_of(run.card), **options)
    print(table(summary))
    if config.out is not None:
        if config.out.suffix.lower() == ".json":
            write_json(config.out, summary)
        else:
            write_rescored(config.out, rescored, summary)
            write_config(config.out, to_json(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
