"""Extras: which brings what, and what is said where one is missing."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.evaluate import evaluate
from gym_longvideo.__main__ import COMMANDS
from gym_longvideo.extras import EXTRAS, explain, install_of, require

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]
OWN = {"gym_longvideo", "agents", "benchmarks", "examples"}
# Installed with transformers, whose own parts they are; TRL is a rival that may be absent, and vLLM
# imports a module of ours in an environment of its own.
WITH_OTHERS = {"tokenizers", "huggingface_hub", "trl", "vllm"}
RUN = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for package in sorted(OWN)
    for path in sorted((ROOT / package).rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]
# Modules that need the core alone, at least until they have read their options.
CORE = {
    "gym_longvideo",
    "gym_longvideo.probes",
    "gym_longvideo.haystack.export",
    "benchmarks.speed.video",
    "examples.custom_dataset",
    "examples.random_agent",
    "examples.rllib_ppo",
    "examples.torchrl_rollout",
    "examples.watch_episode",
}
FIX = r'(\w+): pip install "gym-longvideo\[(\w+)\]"'
NO_EXTRA = f"""
import sys
sys.modules.update(dict.fromkeys({sorted({each for names in EXTRAS.values() for each in names})}))
sys.modules.update(torchrl=None, ray=None)
"""
# Runs modules as python -m does, one after another, up to the hook for what nobody caught.
RUN_ALL = """
import contextlib, io, json, runpy
said = {}
for name, *words in json.loads(sys.argv[1]):
    sys.argv = [name, *words]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code
        except Exception:
            try:
                sys.excepthook(*sys.exc_info())
                code = 1
            except SystemExit as end:
                code = end.code
    said[" ".join([name, *words])] = code or 0, out.getvalue()
print(json.dumps(said))
"""


def module_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return {"pillow": "PIL"}.get(match[0], match[0].replace("-", "_"))


def python(*words: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True
    )


def imported(package: str) -> Iterator[str]:
    """Yield the top-level names that the modules of a package import."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield (node.module or "").partition(".")[0]


def test_extras_are_those_of_the_project():
    declared = {
        extra: {module_of(each) for each in wanted}
        for extra, wanted in OPTIONAL.items()
        if extra not in ("dev", "all")
    }
    assert {extra: set(modules) for extra, modules in EXTRAS.items()} == declared


def test_all_brings_every_extra_but_the_developers():
    (everything,) = OPTIONAL["all"]
    assert everything == f"{PROJECT['name']}[{','.join(_extras_in_order())}]"


def _extras_in_order() -> list[str]:
    order = ["agents", "benchmarks", "study", "sb3", "decord", "torchcodec"]
    # peft imports torchao as soon as it is there, so only who wants it gets it.
    assert set(order) == OPTIONAL.keys() - {"dev", "all", "adam8bit"}
    return order


@pytest.mark.parametrize("package", sorted(OWN))
def test_everything_that_is_imported_is_declared(package):
    core = {module_of(each) for each in PROJECT["dependencies"]}
    foreign = set(imported(package)) - core - OWN - sys.stdlib_module_names - WITH_OTHERS
    unknown = {each for each in foreign if not install_of(each, package)}
    assert not unknown


@pytest.fixture(scope="module")
def without_extras() -> dict[str, tuple[int, str]]:
    """Return code and output of every module that can be run, where the core alone is installed."""
    runs = [[name, "--help"] for name in RUN if name != "gym_longvideo"]
    runs += [["gym_longvideo", *command.split(), "--help"] for command in COMMANDS]
    runs += [["examples.torchrl_rollout"], ["examples.rllib_ppo"]]
    done = python("-c", NO_EXTRA + RUN_ALL, json.dumps(runs))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [each for each in RUN if each != "gym_longvideo"])
def test_a_module_that_is_run_names_the_extra_that_it_lacks(name, without_extras):
    code, said = without_extras[f"{name} --help"]
    if name in CORE:
        assert code == 0 and "usage: " in said
        return
    found = re.fullmatch(
        r'error: ([\w.]+) needs (\w+): pip install "gym-longvideo\[(\w+)\]"\n', said
    )
    assert found and code == 2, said
    assert found[1] == name and found[2] in EXTRAS[found[3]]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_the_extra_that_it_lacks(command, without_extras):
    code, said = without_extras[f"gym_longvideo {command} --help"]
    module = COMMANDS[command].module
    if module in CORE:
        assert code == 0 and f"usage: longvideo {command}" in said
        return
    who = f"(longvideo {command}|{re.escape(module)})"
    found = re.fullmatch(rf'error: {who} needs (\w+): pip install "gym-longvideo\[(\w+)\]"\n', said)
    assert found and code == 2, said
    assert found[2] in EXTRAS[found[3]]


def test_examples_name_the_library_that_they_are_about(without_extras):
    for name, wanted in (("torchrl_rollout", "torchrl"), ("rllib_ppo", "ray[rllib]")):
        module = wanted.partition("[")[0]
        code, said = without_extras[f"examples.{name}"]
        assert code == 2 and said.endswith(
            f'error: examples.{name} needs {module}: pip install "{wanted}"\n'
        )


@pytest.mark.parametrize("module", ["agents.train", "benchmarks.report", "examples.study"])
def test_python_m_says_so_too(module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_EXTRA)
    done = python("-m", module, path=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(
        rf'error: {module} needs tyro: pip install "gym-longvideo\[\w+\]"\n', done.stderr
    )


def test_other_errors_of_a_module_that_is_run_keep_their_traceback(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['argparse'] = None\n")
    done = python("-m", "examples.random_agent", path=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("Traceback")


@pytest.mark.parametrize(
    ("name", "said", "says"),
    [
        ("torch", "", "a.b needs torch: INSTALL"),
        ("peft.new", "No 'peft.new'", "a.b cannot use the peft that is installed (SAID): INSTALL"),
        ("peft", "cannot import 'Y'", "a.b cannot use the peft that is installed (SAID): INSTALL"),
        ("mine", "No module named 'mine'", "SAID"),
        ("agents.no", "No module named 'agents.no'", "SAID"),
        (None, "libcudart.so.12: cannot open shared object file", "SAID"),
    ],
)
def test_what_is_broken_is_told_from_what_is_missing(name, said, says):
    kind = ModuleNotFoundError if said.startswith("No") or not said else ImportError
    says = says.replace("SAID", said).replace("INSTALL", 'pip install "gym-longvideo[agents]"')
    assert explain(kind(said, name=name), "a.b") == says


def test_evaluate_misses_what_its_summary_needs_before_it_plays(monkeypatch):
    def player(make_env):
        raise AssertionError("played")

    for name in [each for each in sys.modules if each.partition(".")[0] == "torchmetrics"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    says = r'benchmarks.evaluate needs torchmetrics: pip install "gym-longvideo\[benchmarks\]"'
    with pytest.raises(ImportError, match=says):
        evaluate(player, "haystack", suite_options={"size": 2})


def test_evaluate_needs_nothing_later_that_it_does_not_ask_for_at_first(tmp_path):
    asked = {"tyro", "torch", "torchmetrics", "filelock"}
    blocked = {each for names in EXTRAS.values() for each in names} - asked
    # What torchmetrics looks for itself it may find.
    code = f"""
import sys
import torchmetrics.aggregation
for name in {blocked} | {{each for each in sys.modules if each.partition(".")[0] in {blocked}}}:
    sys.modules[name] = None
from gym_longvideo.__main__ import main
options = ["--suite-options", '{{"size": 2}}', "--quiet", "--out", {str(tmp_path / "run")!r}]
sys.exit(main(["evaluate", "--suite", "haystack", "--policy", "bisect", *options]))
"""
    done = python("-c", code)
    assert done.returncode == 0 and (tmp_path / "run/summary.json").is_file(), done.stderr


def test_what_is_required_is_imported():
    require("a.b", "json")
    with pytest.raises(ImportError, match="No module named 'no_such_module'"):
        require("a.b", "no_such_module")
