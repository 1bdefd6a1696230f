"""Whether the ends of the supported range of versions hold: runs tests there, writes the table.

    python -m tools.compat                # all; an hour, and some GB of downloads
    python -m tools.compat gymnasium av   # those whose name holds one of these words

Each combination gets a virtual environment of its own, with ``constraints.txt`` but for what it
holds at another version, and runs the tests that this can touch.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tools import page
from tools.page import Combination
from tools.venvs import CONSTRAINTS, DIRECTORY, ROOT, InstallError, Venv, venv

_TESTING = ("pytest", "pytest-xdist", "hypothesis", "psutil")
# Modules of tests, without "test_", by what they are about.
GROUPS = {
    "environment": "env episode golden protocol record rendering rewards spaces_and_ids suite "
    "viewer wrappers env_files annotation annotation_files haystack haystack_video "
    "haystack_oracle probes",
    "vectors": "order vector",  # these name kinds of autoreset, which Gymnasium 1.0 does not have
    "video": "video_cache video_exactness video_faults video_pool video_processes video_threads "
    "video_border video_kinds real_videos haystack_export",
    "backends": "video_exactness",
    "models": "agents_chat agents_checkpoint agents_critic agents_decoding agents_families "
    "agents_losses agents_policy agents_ppo agents_rollout agents_rows agents_tiny "
    "agents_trainer agents_vision",
    "learners": "agents_sb3 libraries",
}


@dataclass(frozen=True)
class Case:
    """A combination to be tried.

    Attributes:
        what: Its name in the table.
        pins: What is held at another version than in ``constraints.txt``, or at its newest.
        tests: Names of ``GROUPS``.
        extras: Extras of the package that these need.
        python: The interpreter, as found on the path.
    """

    what: str
    pins: tuple[str, ...]
    tests: str
    extras: tuple[str, ...] = ()
    python: str = sys.executable


CASES = (
    Case("Gymnasium, oldest", ("gymnasium==1.0.0",), "environment"),
    Case("Gymnasium 1.1", ("gymnasium~=1.1.0",), "environment vectors"),
    Case("Gymnasium, newest", ("gymnasium",), "environment vectors"),
    Case("NumPy 1.26", ("numpy~=1.26.0",), "environment vectors video"),
    Case("NumPy, newest", ("numpy",), "environment vectors video"),
    Case("PyAV, oldest", ("av==18.1.0",), "video"),
    Case("PyAV, newest", ("av",), "video"),
    Case("PyAV, newest, on Python 3.13", ("av",), "video", python="python3.13"),
    Case("TorchCodec 0.13", ("torchcodec~=0.13.0",), "backends", ("torchcodec",)),
    Case(
        "TorchCodec, newest, with its PyTorch",
        ("torchcodec>=0.14", "torch"),
        "backends",
    ),
    Case("SB3, newest", ("stable-baselines3", "sb3-contrib"), "learners", ("sb3",)),
    Case(
        "SB3, the minor before",
        ("stable-baselines3~=2.8.0", "sb3-contrib~=2.8.0", "gymnasium"),
        "learners",
        ("sb3",),
    ),
    Case("transformers, newest", ("transformers", "tokenizers"), "models", ("agents",)),
    Case(
        "transformers, the minor before",
        ("transformers~=5.23.0", "tokenizers"),
        "models",
        ("agents",),
    ),
    Case("transformers, oldest", ("transformers==5.20.0", "tokenizers"), "models", ("agents",)),
    Case("Python 3.12", (), "environment vectors video", python="python3.12"),
    Case("Python 3.13", (), "environment vectors video", python="python3.13"),
    Case("Python 3.13 with models", (), "models", ("agents",), python="python3.13"),
)


def modules(case: Case) -> list[str]:
    """Return the modules of tests that a case runs, without ``test_``."""
    return " ".join(GROUPS[group] for group in case.tests.split()).split()


def name_of(requirement: str) -> str:
    """Return the distribution that a requirement names."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def constraints(pins: Sequence[str], directory: Path) -> Path:
    """Write ``constraints.txt`` without what is pinned otherwise, and return the file."""
    pinned = {name_of(pin) for pin in pins}
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    path = directory / "constraints.txt"
    path.write_text(
        "\n".join(line for line in lines if name_of(line) not in pinned) + "\n", encoding="utf-8"
    )
    return path


def counts(report: Path) -> dict[str, int]:
    """Return what a JUnit report counts: passed, failed, skipped."""
    suite = ET.parse(report).getroot().find("testsuite")
    assert suite is not None
    all_of, failed, skipped = (
        sum(int(suite.get(name, 0)) for name in names)
        for names in (("tests",), ("failures", "errors"), ("skipped",))
    )
    return {"passed": all_of - failed - skipped, "failed": failed, "skipped": skipped}


def run(case: Case, *, keep: bool = False, directory: Path = DIRECTORY) -> Combination:
    """Try a combination; what does not install is a row as well."""
    names = [name_of(pin) for pin in case.pins]
    row = Combination(case.what, {}, case.tests.replace(" ", ", "))
    interpreter = shutil.which(case.python)
    if interpreter is None:
        return replace(row, error=f"{case.python} is not on the path")
    with tempfile.TemporaryDirectory() as kept:
        limits = constraints(case.pins, Path(kept))
        extras = f"[{','.join(case.extras)}]" if case.extras else ""
        wanted = ["-e", f"{ROOT}{extras}", *_TESTING, *case.pins]
        slug = re.sub(r"\W+", "-", case.what).lower()
        try:
            with venv(
                slug, ["-c", str(limits), *wanted],
                interpreter=interpreter, keep=keep, directory=directory,
            ) as made:  # fmt: skip
                row = replace(row, versions=made.versions(names) or python_of(made))
                return replace(row, **outcome(made, case, Path(kept) / "report.xml"))
        except InstallError as error:
            return replace(row, error=str(error))


def outcome(made: Venv, case: Case, report: Path) -> dict[str, int | str]:
    """Run a case's tests, and return its counts or what went wrong."""
    files = [f"tests/test_{name}.py" for name in modules(case)]
    code, printed = made.run(
        *("-m", "pytest", "-q", "-m", "not slow", f"--junitxml={report}", *files),
        timeout_s=1800,
        # TorchCodec wants FFmpeg of the system, which may be another or none.
        library_path=made.link_ffmpeg() if case.tests == "backends" else None,
    )
    print(printed[-3000:] if code else printed.strip().rpartition("\n")[2], flush=True)
    if not report.exists():
        return {"error": (printed.strip().splitlines() or [f"exit code {code}"])[-1]}
    return dict(counts(report))


def python_of(made: Venv) -> dict[str, str]:
    """Return the version of an environment's Python."""
    _, printed = made.run("-c", "import platform; print(platform.python_version())", timeout_s=60)
    return {"Python": printed.strip()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0; 1 if anything failed.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="parts of names, of those to run")
    parser.add_argument("--keep", action="store_true", help="leave the virtual environments")
    args = parser.parse_args(arguments)
    words = [word.lower() for word in args.words]
    cases = [case for case in CASES if not words or any(w in case.what.lower() for w in words)]
    if not cases:
        parser.error(f"no combination has any of {words} in its name; there are "
                     f"{', '.join(case.what for case in CASES)}")  # fmt: skip
    failed = False
    for case in cases:
        print(f"{case.what}: {', '.join(case.pins) or case.python}", flush=True)
        row = run(case, keep=args.keep)
        failed |= bool(row.failed or row.error)
        page.put_combinations([row], [each.what for each in CASES])
        print(f"  {row.error or f'{row.passed} passed, {row.failed} failed'}", flush=True)
    print(page.write())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
