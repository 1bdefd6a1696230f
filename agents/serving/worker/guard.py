"""Runs a command for as long as somebody holds the other end of its standard input.

However the one who started it ends, by a kill too, the command and all that it started end as well.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def _end_with_input() -> None:
    while os.read(0, 4096):  # not by sys.stdin, whose lock would be held at the end
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> int:
    """Run the command that the arguments are; return its exit code."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # what is killed with it is a group of its own
    with subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL) as child:
        threading.Thread(target=_end_with_input, daemon=True).start()
        return child.wait()
