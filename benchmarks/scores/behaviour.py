"""Behaviour and cost: how a policy goes about it, and what that takes. Means without intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.controls import record_key
from benchmarks.scores.questions import is_answered, mean
from gym_longvideo.record import EpisodeRecord

_SHOWN = 240  # characters of an example
MEASURED = (
    "frames_decoded",
    "visual_tokens",
    "prompt_tokens",
    "reply_tokens",
    "decode_s",
    "prefill_s",
    "generate_s",
)


def costs(
    records: Sequence[EpisodeRecord], costs: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | None]:
    """Return means over episodes; what was not measured does not count, ``None`` if nothing was."""
    found: dict[str, float | None] = {
        "turns": mean([len(record.turns) for record in records]),
        "frames_shown": mean([record.frames_shown for record in records]),
    }
    lines = [costs.get(record_key(record), {}) for record in records]
    for name in MEASURED:
        values = [line[name] for line in lines if line.get(name) is not None]
        found[name] = mean(values)
    return found


def trouble(records: Sequence[EpisodeRecord]) -> str:
    """Return a sentence where most episodes are unanswered or hold a malformed turn, else "".

    Numbers of such a run say how the policy's replies were read, and little of what it knows.
    """
    malformed = [
        (record, turn) for record in records for turn in record.turns if turn["op"] == "malformed"
    ]
    odd = {id(record) for record, _ in malformed}
    silent = sum(not is_answered(record) for record in records)
    affected = sum(id(record) in odd or not is_answered(record) for record in records)
    if 2 * affected <= len(records):
        return ""
    said = (
        f"{affected} of {len(records)} episodes are unanswered ({silent}) or hold a turn that was "
        f"not read as an action ({len(odd)})"
    )
    refused = sum(bool(turn.get("refused")) for _, turn in malformed)
    if refused:
        said += f"; the endpoint refused {refused} of {len(malformed)} such turns"
    replied = [turn for _, turn in malformed if not turn.get("refused")]
    if not replied:
        return f"{said}."
    reply = str(replied[0].get("reply", ""))
    shown = reply if len(reply) <= _SHOWN else f"{reply[: _SHOWN // 2]} ... {reply[-_SHOWN // 2 :]}"
    return f"{said}. For example {shown!r}: {replied[0]['malformed']}."


def behaviour(records: Sequence[EpisodeRecord]) -> dict[str, float | None]:
    """Return how a policy goes about it; shares, ``None`` where there is nothing to share.

    retrieval_rate and malformed_rate are shares of turns; episodes_retrieving and unanswered_rate
    of episodes; repeat_rate of retrievals (the interval was retrieved before in the episode);
    interval_share is the mean width of a retrieval as a share of the pool; first_hit_rate is the
    share of first retrievals that show a relevant frame, where relevance is annotated.
    """
    operations = [turn["op"] for record in records for turn in record.turns]
    repeats: list[bool] = []
    widths: list[float] = []
    first_hits: list[bool] = []
    retrieving: list[bool] = []
    for record in records:
        retrievals = [turn for turn in record.turns if turn["op"] == "retrieve"]
        retrieving.append(bool(retrievals))
        seen: set[tuple[int, int]] = set()
        for turn in retrievals:
            start, end = turn["interval"]
            repeats.append((start, end) in seen)
            seen.add((start, end))
            widths.append((end - start + 1) / record.pool["length"])
        if retrievals and record.pool["relevant"]:
            hit = set(retrievals[0]["frame_index"]) & set(record.pool["relevant"])
            first_hits.append(bool(hit))
    return {
        "retrieval_rate": mean([op == "retrieve" for op in operations]),
        "episodes_retrieving": mean(retrieving),
        "malformed_rate": mean([op == "malformed" for op in operations]),
        "repeat_rate": mean(repeats),
        "interval_share": mean(widths),
        "unanswered_rate": mean([not is_answered(record) for record in records]),
        "first_hit_rate": mean(first_hits),
    }
