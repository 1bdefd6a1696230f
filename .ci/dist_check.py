"""What a built wheel is once it is installed: with each extra, and beside others of our names.

    python .ci/dist_check.py dist/gym_longvideo-*.whl

Makes environments in a temporary directory, one at a time; all of them need some 2 GB and 10
minutes. Nothing is run in the checkout, so that nothing is imported from it by chance. Ends with 1
if a check failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gym_longvideo", "agents", "benchmarks")
NAME = "gym-longvideo"
# What must be importable with an extra: these modules and those below them, but for the others.
IMPORTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "": (("gym_longvideo", "agents.scripted", "agents.source", "benchmarks.datasets"), ()),
    "decord": (("decord",), ()),
    "torchcodec": (("torch",), ()),
    "agents": (("agents",), ("agents.sb3",)),
    "benchmarks": (("benchmarks",), ("benchmarks.players.model", "benchmarks.speed")),
    "study": (("matplotlib", "scipy"), ()),
    "sb3": (("agents.sb3",), ()),
    "all": (PACKAGES, ()),
}
# Files that another distribution has too. pip keeps those of the one that was installed last.
SHARED = {"torchrl": [], "openai-agents": ["agents/__init__.py", "agents/py.typed"]}

IMPORT = """
import importlib, json, sys
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""
CHANGED = """
import base64, hashlib, importlib.metadata, json, sys
changed = []
for path in importlib.metadata.distribution(sys.argv[1]).files:
    held = path.locate()
    if path.hash and not held.is_file():
        changed.append(str(path))
    elif path.hash:
        digest = hashlib.new(path.hash.mode, held.read_bytes()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != path.hash.value:
            changed.append(str(path))
print(json.dumps(changed))
"""
USE = """
import benchmarks, gymnasium, gym_longvideo
benchmarks.load_suite("jsonl", annotation="my.jsonl")
gym_longvideo.load_suite("jsonl", split=None, options={"annotation": "my.jsonl"})
gymnasium.make("benchmarks:LongVideo/Jsonl-v0", annotation="my.jsonl").close()
"""
COMMANDS = """
import json
from gym_longvideo.__main__ import COMMANDS
print(json.dumps(list(COMMANDS)))
"""
TINY = """
from agents.model import tiny
from agents.model.policy import MLLMPolicy
MLLMPolicy.from_pretrained(tiny.WEIGHTS)
"""
failures: list[str] = []


def check(what: str, fine: bool, said: object = "") -> None:
    """Print a check, and keep it if it failed."""
    print(f"{'ok    ' if fine else 'FAILED'} {what}{'' if fine else f': {said}'}", flush=True)
    if not fine:
        failures.append(what)


class Environment:
    """A virtual environment, and an empty directory to work in."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.work = directory / "work"
        self.work.mkdir()
        line = {"video": "v.mp4", "question": "Who?", "options": ["a", "b"], "answer": "A"}
        (self.work / "my.jsonl").write_text(json.dumps(line) + "\n")
        venv.create(directory / "venv", with_pip=True)

    def run(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the directory."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [self.bin / command, *words], cwd=self.work, env=kept, capture_output=True, text=True
        )

    def python(self, code: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run some code."""
        return self.run("python", "-c", code, *words)

    def pip(self, *words: str) -> None:
        """Run pip; what it cannot do is the end."""
        done = self.run("python", "-m", "pip", "--disable-pip-version-check", *words)
        if done.returncode:
            raise SystemExit(f"pip {' '.join(words)}: {done.stderr}")

    def changed(self, distribution: str) -> list[str]:
        """Return the files of a distribution that are not, or no longer as it holds them."""
        return json.loads(self.python(CHANGED, distribution).stdout)


@contextmanager
def environment() -> Iterator[Environment]:
    """Make an environment, and remove it."""
    with tempfile.TemporaryDirectory(prefix="dist-check-") as directory:
        yield Environment(Path(directory))


def check_contents(wheel: Path) -> list[str]:
    """Check that a wheel holds what the checkout's packages hold and no more; return modules."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".pyo")
    }
    check("the wheel holds every file of the packages, and no other", held == wanted, held ^ wanted)
    check("all packages are typed", {f"{each}/py.typed" for each in PACKAGES} <= held)
    names = (name.removesuffix(".py").replace("/", ".") for name in held if name.endswith(".py"))
    return sorted(name.removesuffix(".__init__") for name in names)


def check_extra(wheel: Path, extra: str, modules: list[str]) -> None:
    """Check what an extra brings; what it does not bring must be named with the fix."""
    wanted, but = IMPORTS[extra]
    with environment() as env:
        brackets = f"[{extra}]" if extra else ""
        env.pip("install", "-q", "-c", str(ROOT / "constraints.txt"), f"{wheel}{brackets}")
        said = env.run("longvideo", "--help")
        check(f"{NAME}{brackets}: longvideo --help", "usage: longvideo" in said.stdout, said.stderr)

        done = env.python(IMPORT, *modules, *(name for name in wanted if name not in modules))
        failed = json.loads(done.stdout) if done.returncode == 0 else {"": done.stderr}
        missed = {
            name: why for name, why in failed.items() if within(name, wanted, but) or not name
        }
        count = len(modules) - len(failed)
        check(f"{NAME}{brackets}: {count} of {len(modules)} modules import", not missed, missed)

        commands = json.loads(env.python(COMMANDS).stdout)
        silent = {}
        for command in commands:
            said = env.run("longvideo", *command.split(), "--help")
            named = f'pip install "{NAME}[' in said.stderr and extra != "all"
            if said.returncode and not (said.returncode == 2 and named):
                silent[command] = said.stderr
        check(f"{NAME}{brackets}: commands run, or name an extra", not silent, silent)

        if extra in ("agents", "all"):
            said = env.python(TINY)
            check(f"{NAME}{brackets}: the tiny model loads", said.returncode == 0, said.stderr)
        if extra in ("benchmarks", "all"):
            words = ("--suite", "haystack", "--suite-options", '{"size": 4}', "--quiet")
            policy = "tiny" if extra == "all" else "bisect"
            said = env.run("longvideo", "evaluate", *words, "--policy", policy, "--out", "run")
            check(f"{NAME}{brackets}: evaluate", said.returncode == 0, said.stderr)
            said = env.run("longvideo", "report", "run", "--out", "report")
            check(f"{NAME}{brackets}: report", said.returncode == 0, said.stderr)


def within(name: str, wanted: tuple[str, ...], but: tuple[str, ...]) -> bool:
    """Return whether a module is one of some, or below one, and none of others."""
    inside = [f"{name}.".startswith(f"{each}.") for each in wanted]
    return any(inside) and not any(f"{name}.".startswith(f"{each}.") for each in but)


def check_beside(env: Environment, wheel: Path, other: str, editable: bool, first: bool) -> None:
    """Check what becomes of us and of another distribution, installed in an order and removed."""
    ours = ["-e", str(ROOT)] if editable else [str(wheel)]
    form, order = ("editable" if editable else "wheel"), ("before" if first else "after")
    what, shared = f"{form}, installed {order} {other}", SHARED[other]
    lost = [] if editable else shared
    for kept in (NAME, other):
        for install in (ours, [other]) if first else ([other], ours):
            env.pip("install", "-q", "--no-deps", *install)
        under = NAME if first else other
        both = {name: env.changed(name) for name in (NAME, other)}
        expected = {name: lost if name == under else [] for name in both}
        check(f"{what}: {lost or 'nothing'} is overwritten", both == expected, both)
        refused = bool(shared) and (editable or first)
        check_use(env, what, other if refused else "")

        gone = other if kept == NAME else NAME
        env.pip("uninstall", "-q", "-y", gone)
        left = env.changed(kept)
        check(f"{what}: without {gone}, {kept} lacks {lost or 'nothing'}", left == lost, left)
        if kept == NAME:
            check_use(env, f"{what}, which is gone", "--force-reinstall" if lost else "")
            if lost:
                env.pip("install", "-q", "--force-reinstall", "--no-deps", *ours)
                check_use(env, f"{what}, which is gone, and reinstalled", "")
        env.pip("uninstall", "-q", "-y", kept)


def check_use(env: Environment, what: str, fix: str) -> None:
    """Check that our commands and suites work, or that commands say what is in the way."""
    said = env.run("longvideo", "train", "--help")
    wanted = fix or f'longvideo train needs tyro: pip install "{NAME}[agents]"'
    check(f"{what}: train says {wanted!r}", wanted in said.stderr, said.stderr or said.stdout)
    for module in ("benchmarks.compare", "benchmarks.evaluate"):
        said = env.run("python", "-m", module, "--help")
        wanted = fix or f'{module} needs tyro: pip install "{NAME}[benchmarks]"'
        check(f"{what}: {module} says {wanted!r}", wanted in said.stderr, said.stderr)
    said = env.python(USE)
    check(f"{what}: benchmarks load", said.returncode == 0, said.stderr)


def main(words: list[str]) -> int:
    """Run all checks."""
    wheel = Path(words[0]).resolve()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"dev"}
    check("every extra is checked", {"", *extras} == IMPORTS.keys(), extras ^ IMPORTS.keys())
    modules = check_contents(wheel)
    with environment() as env:
        env.pip("install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel))
        env.pip("uninstall", "-q", "-y", NAME)
        for other, editable, first in product(SHARED, (False, True), (True, False)):
            check_beside(env, wheel, other, editable, first)
    for extra in IMPORTS:
        check_extra(wheel, extra, modules)
    print(f"{len(failures)} checks failed", *failures, sep="\n  ")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
