"""Say what a training run needs, without loading anything.

All options of ``longvideo train`` are taken beside its own. With several numbers of GPUs there is a
line for each; with one, every part of the memory of a process and the work of an iteration:

    longvideo plan --preset paper --model Qwen/Qwen2.5-VL-7B-Instruct --gpus 8 --memory 80
    longvideo plan --model Qwen/Qwen3-VL-4B-Instruct --gpus 1 2 4 8 --markdown
    longvideo plan --config runs/NAME/config.json --envs 8

The exit code is 1 if a run does not fit into --memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from agents import train
from agents.plan.limits import memory_of
from agents.plan.memory import plan_memory
from agents.plan.moments import GIB, Place
from agents.plan.sizes import sizes_of
from agents.plan.table import (
    fits,
    fits_table,
    gib,
    overview_table,
    parts_table,
    seconds,
    to_json,
    work_table,
)
from agents.plan.work import Work, iteration
from agents.plan.workload import Workload, counter_of
from gym_longvideo import checks
from gym_longvideo.command import Parser, as_command
from gym_longvideo.files import write_whole


def _parser() -> Parser:
    import argparse

    text = (__doc__ or "").splitlines()
    parser = Parser(prog="longvideo plan", description=text[0], epilog="\n".join(text[2:]))

    class Layout(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Defaults in the help, and the description as it stands."""

    parser.formatter_class = Layout
    add = parser.add_argument
    add("--gpus", type=int, nargs="+", default=[1], help="processes of a run, each with a GPU")
    add("--gpus-per-node", type=int, default=8, help="most GPUs of a machine")
    add("--memory", help="of each GPU: 24, 40, 80 or 141 for cards of so many GB, "
        "any other number in GiB")  # fmt: skip
    add("--peak-tflops", type=float, default=0.0, help="of a GPU, for seconds by calculation")
    add("--mfu", type=float, default=0.1, help="share of that peak that is reached")
    add("--markdown", action="store_true", help="print tables as Markdown")
    add("--json-file", type=Path, default=None, help="where to write bytes and FLOP as JSON")
    return parser


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line; return 1 if a run does not fit into the memory that is given."""
    said, words = _parser().parse_known_args(arguments)
    config = train.parse(words)
    for name, value in (("gpus-per-node", said.gpus_per_node), *(("gpus", n) for n in said.gpus)):
        checks.whole(f"--{name}", value, 1)
    checks.number("--peak-tflops", said.peak_tflops, 0)
    checks.number("--mfu", said.mfu, above=0, most=1)
    limit = memory_of(said.memory) if said.memory else None
    gpu = config.device != "cpu"
    places = [Place(n, min(n, said.gpus_per_node), gpu) for n in said.gpus]
    plans = [plan_memory(config, place) for place in places]
    sizes = sizes_of(config.source)
    load = Workload.of(config, sizes.unit, counter_of(config.source.path))
    work = iteration(config, Work(sizes), load)
    if len(places) > 1:
        print(overview_table(config, places, markdown=said.markdown))
    for place, plan in zip(places, plans, strict=True):
        if len(places) == 1:
            print(_title(config.model, sizes.total, load, place), end="\n\n")
            print(parts_table(plan, markdown=said.markdown), end="\n\n")
            if gpu:
                print(fits_table(config, place, plan, markdown=said.markdown), end="\n\n")
                print(
                    f"Main memory of a machine, in GiB: {gib(plan.loading)} while the model is "
                    f"loaded, {gib(plan.host)} to take updates back.",
                    end="\n\n",
                )
            print(work_table(work, place, said.peak_tflops, said.mfu, markdown=said.markdown))
        if limit is not None:
            print(f"\n{_verdict(place, plan.peak.total, limit, fits(config, place, plan, limit))}")
    if said.json_file is not None:
        found = [
            to_json(config, place, plan, work) for place, plan in zip(places, plans, strict=True)
        ]
        if said.peak_tflops:
            for place, each in zip(places, found, strict=True):
                each["seconds_by_calculation"] = {
                    name: seconds(flop, place, said.peak_tflops, said.mfu)
                    for name, flop in work.items()
                }
        write_whole(said.json_file, json.dumps(found, indent=2) + "\n")
    return int(limit is not None and any(plan.peak.total > limit for plan in plans))


def _title(model: str, weights: int, load: Workload, place: Place) -> str:
    where = "GPU" if place.gpu else "process on a CPU"
    plural = "" if place.processes == 1 else "s" if place.gpu else "es"
    return (
        f"{model}: {weights / 1e9:.2f} billion weights on {place.processes} {where}{plural}; "
        f"episodes of {sum(load.rows):,} tokens at most, {sum(load.said):,} of them replies"
    )


def _verdict(place: Place, need: float, limit: float, answer: str) -> str:
    says = "fits" if answer == "yes" else f"does not fit; it would {answer}"
    if answer == "no":
        says = "does not fit, and no change that was tried makes it"
    return (
        f"{place.processes} x {limit / GIB:.1f} GiB: {need / GIB:.1f} GiB are needed in each "
        f"process, which {says}."
    )


if __name__ == "__main__":
    sys.exit(main())
