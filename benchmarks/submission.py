"""What EgoSchema's server takes: the answers of a run on its full set, {q_uid: index}.

What a run did not answer is left out, and its number is said.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.datasets.egoschema import EGOSCHEMA, QUESTIONS
from benchmarks.runs import read_run
from gym_longvideo.command import as_command
from gym_longvideo.record import EpisodeRecord


def submission(records: Iterable[EpisodeRecord]) -> dict[str, int]:
    """Return the answers of a run as the server takes them; unanswered questions are left out.

    Options that were put in another order are put back.

    Raises:
        ValueError: If a question was played in several rotations of its options.
    """
    found: dict[str, int] = {}
    for record in records:
        meta, uid = record.task["meta"], record.task["task_id"]
        if "circular" in meta:
            raise ValueError(
                'the run rotates the options (control "circular"), so a question has several '
                'answers; make a submission of a run with control "none"'
            )
        choice = record.turns[-1]["choice"] if record.turns else -1
        if choice < 0:
            continue
        found[uid] = int(meta["shuffled"][choice]) if "shuffled" in meta else int(choice)
    return found


@dataclass(frozen=True)
class SubmissionConfig:
    """Make a submission to EgoSchema's server of a run on its full set.

    Attributes:
        run: Directory of the run.
        out: File to write.
    """

    run: Path
    out: Path = Path("submission.json")


@as_command
def main(arguments: Sequence[str]) -> int:
    """Write a submission, and say what it lacks."""
    from agents.command import parse

    chosen = parse(SubmissionConfig, arguments, "submission", positional=True)
    run = read_run(chosen.run)
    if {record.suite for record in run.records} - {EGOSCHEMA.name}:
        raise ValueError(f"{chosen.run} is no run of {EGOSCHEMA.name}")
    found = submission(run.records)
    chosen.out.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")
    print(f"{chosen.out}: {len(found)} answers")
    if len(found) < QUESTIONS:
        print(
            f"The full set has {QUESTIONS} questions; {len(run.records) - len(found)} of this run "
            f"were not answered, {max(0, QUESTIONS - len(run.records))} not played."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
