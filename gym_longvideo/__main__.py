"""One command line: ``longvideo COMMAND ...``.

It finds the module of a command by its name and imports nothing else, so that the commands of this
package work where torch is not installed, and those of the others say what they need.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from gym_longvideo import checks
from gym_longvideo.command import as_command, fail
from gym_longvideo.extras import check_ours, explain, floors


class Command(NamedTuple):
    """Where a command lives, and what it does."""

    module: str
    help: str


COMMANDS = {
    "train": Command("agents.train", "train a policy with multi-turn PPO"),
    "plan": Command("agents.plan.__main__", "say what a training run needs"),
    "evaluate": Command("benchmarks.evaluate", "play a suite with a policy"),
    "rescore": Command("benchmarks.rescore", "score a run again, without playing"),
    "compare": Command("benchmarks.compare", "compare two runs by question"),
    "report": Command("benchmarks.report.__main__", "write a report of runs"),
    "validate": Command("benchmarks.validate", "check a benchmark on disk"),
    "suites": Command("benchmarks.suites", "list the benchmarks, and what is found"),
    "submission": Command("benchmarks.submission", "make EgoSchema's submission"),
    "probe": Command("gym_longvideo.probes", "probe a reward for hacks"),
    "export": Command("gym_longvideo.haystack.export", "write haystack videos to files"),
    "speed video": Command("benchmarks.speed.video", "time decoding against rivals"),
    "speed loading": Command("benchmarks.speed.loading", "time annotation loading"),
    "speed training": Command("benchmarks.speed.training", "time rollouts and updates"),
    "speed scale": Command("benchmarks.speed.scale", "time an iteration at real sizes"),
    "speed memory": Command("benchmarks.speed.memory", "compare memory with its plan"),
}


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code, 2 for an unknown one or one that lacks its extra."""
    words = list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    count = 2 if words[0] == "speed" and words[1:2] not in ([], ["-h"], ["--help"]) else 1
    name = " ".join(words[:count])
    if name == "speed":
        print(usage("speed "))
        return 0
    if name not in COMMANDS:
        return fail(f"there is no command {name!r}{checks.instead(name, COMMANDS)}")
    command = COMMANDS[name]
    try:
        check_ours(*floors(command.module))
        run = importlib.import_module(command.module).main
    except ImportError as error:
        return fail(explain(error, command.module, f"longvideo {name}"))
    return run(words[count:])


def usage(start: str = "") -> str:
    """Return the commands whose names start so, with what they do."""
    shown = {name: command for name, command in COMMANDS.items() if name.startswith(start)}
    lines = [f"  {name:16s}{command.help}" for name, command in shown.items()]
    more = "longvideo COMMAND --help says more."
    return "\n".join([f"usage: longvideo {start}COMMAND ...", "", *lines, "", more])


if __name__ == "__main__":
    sys.exit(main())
