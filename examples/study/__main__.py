"""The four claims of Video-MTR at laptop scale: one command, resumable.

    python -m examples.study --quick        # what the claims need, two seeds
    python -m examples.study                # everything, five seeds
    python -m examples.study --report docs/study   # figures and tables again, from the CSVs there

Says first how long it will take: on two cores a quarter of an hour with ``--quick``, two hours
without. Expect a bar that counts runs, and at the end the path of the tables. Ctrl-C stops it; the
same command goes on with the runs that are not finished. Results go to ``--out``: ``runs.csv``,
``curves.csv``, figures, ``tables.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.study.page import write_report
from examples.study.plan import ARMS, BATCH, Run, plan
from examples.study.runs import load, path_of, run_all, seconds_of, settings_of
from examples.study.tables import write_csvs


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="examples.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="what the claims need, two seeds")
    parser.add_argument("--arms", default="", help=f"only these, of {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, default=0, help="seeds of each arm")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--updates", type=int, default=0, help="of each run; 0 as planned")
    parser.add_argument("--batch", type=int, default=BATCH, help="episodes of an update")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="train nothing; draw what the CSVs there hold"
    )
    return parser.parse_args(arguments)


def estimate(todo: Sequence[Run], out: Path, jobs: int, batch: int) -> str:
    """Return how long the runs will take, from a small one made now."""
    if not todo:
        return "every run is finished"
    cost = sum(ARMS[run.arm].cost for run in todo)
    minutes = seconds_of(Run("full", 0), out, batch) * cost / jobs / 60
    return f"{len(todo)} runs, {jobs} at a time: about {minutes:.0f} minutes"


def strangers(out: Path, updates: int, batch: int) -> list[Path]:
    """Return finished runs in a directory that follow from other settings than now."""
    found = []
    for path in sorted((out / "runs").glob("*.json")):
        result = load(path) or {}
        run = Run(result.get("arm", ""), result.get("seed", -1))
        known = run.arm in ARMS and run.seed >= 0
        if not known or result.get("settings") != settings_of(run, updates, batch):
            found.append(path)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0; 1 if a run failed; 2 for arguments without a meaning; 130 after Ctrl-C.
    """
    args = parse(arguments)
    try:
        if args.report is not None:
            print(write_report(args.report))
            return 0
        names = [name for name in args.arms.split(",") if name]
        runs = plan(quick=args.quick, arms=names, seeds=args.seeds)
        for name, least in (("jobs", 1), ("updates", 0), ("batch", 1)):
            if getattr(args, name) < least:
                raise ValueError(f"--{name} {getattr(args, name)} must be {least} or more")
        if others := strangers(args.out, args.updates, args.batch):
            raise ValueError(
                f"{others[0]} (one of {len(others)}) is a run with other settings, and nothing is "
                "compared with what was trained otherwise; pass another --out, or delete it"
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failures = []
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        todo = [run for run in runs if load(path_of(run, args.out)) is None]
        if not args.updates:
            print(estimate(todo, args.out, args.jobs, args.batch), flush=True)
        for result in run_all(
            runs, args.out, jobs=args.jobs, updates=args.updates, batch=args.batch
        ):
            if isinstance(result, BaseException):
                failures.append(result)
                print(f"a run failed: {type(result).__name__}: {result}", file=sys.stderr)
            write_csvs(args.out)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    write_csvs(args.out)
    print(write_report(args.out))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
