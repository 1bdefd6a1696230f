"""Interrupts: Ctrl-C and SIGTERM as a wish to stop at the next good moment.

The first signal is remembered; work that may be given up without loss ends at once by ``Stopped``.
A second one ends the process on the spot. Launchers pass a Ctrl-C on to processes that the terminal
has told already, so a repetition within a second counts as the same wish.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# The last is what Windows has for SIGTERM between processes; other systems lack it.
WISHES = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
]


class Stopped(Exception):
    """Somebody wants the program to stop."""


class Interrupts:
    """Takes the signals in ``WISHES`` while it is entered; does nothing outside the main thread.

    Args:
        quiet: Say nothing; another process does.

    Attributes:
        signum: The signal that arrived, 0 if none did.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.signum, self.quiet = 0, quiet
        self._since = 0.0
        self._may_give_up = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for signum in WISHES:
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Mark work that a signal may end at once.

        Raises:
            Stopped: When a signal arrives inside, or has arrived before.
        """
        if self.signum:
            raise Stopped
        self._may_give_up = True
        try:
            yield
        finally:
            self._may_give_up = False

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.signum:
            if time.monotonic() - self._since > 1.0:
                os._exit(128 + signum)
            return
        self.signum, self._since = signum, time.monotonic()
        if not self.quiet:
            # Not through logging or print: the signal may have come while either held its lock.
            with suppress(OSError):  # nobody may be listening any more
                os.write(
                    2,
                    f"\n{signal.Signals(signum).name}: saving a checkpoint, then stopping; "
                    "once more to stop at once\n".encode(),
                )
        if self._may_give_up:
            raise Stopped
