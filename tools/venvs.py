"""Fresh virtual environments, one for each question that is asked of other people's releases.

For Linux and macOS, as the Makefile is.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
DIRECTORY = ROOT / "build" / "venvs"


class InstallError(Exception):
    """pip, or venv, refused; its own words."""


@dataclass(frozen=True)
class Venv:
    """A virtual environment.

    Attributes:
        path: Its directory.
    """

    path: Path

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.path / "bin" / "python")

    def run(
        self, *arguments: str, timeout_s: float, library_path: Path | None = None
    ) -> tuple[int, str]:
        """Run its interpreter in the repository's root.

        Args:
            *arguments: Arguments of the interpreter.
            timeout_s: Seconds after which it is stopped, with all that it started.
            library_path: Where the system looks for shared libraries first.

        Returns:
            The exit code, -1 if time ran out, and what it printed.
        """
        command = [self.python, *arguments]
        # One thread: nets this small lose by more. No plots on screens, no telemetry.
        extra = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "WANDB_MODE": "disabled"}
        if library_path is not None:
            extra["LD_LIBRARY_PATH"] = str(library_path)
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                printed, _ = process.communicate(timeout=timeout_s)
                return process.returncode, printed
            except subprocess.TimeoutExpired:
                return -1, f"stopped after {timeout_s:.0f} s"
            finally:
                _end(process)

    def link_ffmpeg(self) -> Path:
        """Give the FFmpeg libraries in PyAV's wheel the names under which others look for them.

        Returns:
            The directory of the links; empty where PyAV's wheel has none.
        """
        directory = self.path / "ffmpeg"
        directory.mkdir(exist_ok=True)
        for library in self.path.glob("lib/python*/site-packages/av.libs/*.so.*"):
            plain = re.sub(r"-[0-9a-f]{8}\.so\.(\d+).*", r".so.\1", library.name)
            for name in {library.name, plain}:
                (directory / name).unlink(missing_ok=True)
                (directory / name).symlink_to(library)
        return directory

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """Return the versions of those distributions that are installed."""
        script = (
            "import importlib.metadata as m, sys\n"
            "for n in sys.argv[1:]:\n"
            "    try: print(n, m.version(n))\n"
            "    except m.PackageNotFoundError: pass\n"
        )
        _, printed = self.run("-c", script, *names, timeout_s=60)
        pairs = (line.split() for line in printed.splitlines())
        return dict(pair for pair in pairs if len(pair) == 2)


@contextmanager
def venv(
    name: str,
    *installs: Sequence[str],
    interpreter: str = sys.executable,
    directory: Path = DIRECTORY,
    keep: bool = False,
) -> Iterator[Venv]:
    """Make a virtual environment, and remove it at the end.

    Args:
        name: Name of its directory.
        *installs: Arguments of ``pip install``, one call each.
        interpreter: The Python that it is made of.
        directory: Where environments, and what pip downloads, are kept.
        keep: Whether to leave it there; a kept one is used again if nothing about it changed.

    Raises:
        InstallError: If it cannot be made, or pip refuses.
    """
    made = Venv(directory / name)
    stamp, wanted = made.path / "installs.txt", repr((interpreter, installs))
    try:
        if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
            shutil.rmtree(made.path, ignore_errors=True)
            _call(interpreter, "-m", "venv", str(made.path))
            for arguments in installs:
                _call(made.python, *PIP, "--cache-dir", str(directory / "cache"), *arguments)
            stamp.write_text(wanted, encoding="utf-8")
        yield made
    finally:
        if not keep:
            shutil.rmtree(made.path, ignore_errors=True)


PIP = ("-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-compile")


def dependencies() -> list[str]:
    """Return the requirements of the package."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["dependencies"]


def pinned(name: str) -> str:
    """Return the line of ``constraints.txt`` for a distribution."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def _call(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise InstallError(" ".join(said or [done.stderr.strip()[-300:]]))


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
