"""Packages of our names that are not ours, and what is built to be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from importlib.machinery import PathFinder
from importlib.metadata import distributions
from pathlib import Path

import pytest

import gym_longvideo
from gym_longvideo import extras
from gym_longvideo.extras import check_ours, in_the_way

ROOT = Path(__file__).parents[1]
PACKAGES = ("gym_longvideo", "agents", "benchmarks")
THEIRS = '"""Agents of others."""\n'
AGAIN = "pip install --force-reinstall --no-deps gym-longvideo"


def copy_packages(to: Path) -> None:
    skip = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, to / package, ignore=skip)


def install(site: Path, name: str, *paths: str) -> None:
    """Lay down a distribution of Python files in a directory, overwriting what is there."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in paths))
    for path in paths:
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(THEIRS)


@pytest.fixture
def look_in(monkeypatch):
    """Return a function that has packages looked for in directories, and ours be in one of them."""

    def look(home: Path, *places: Path) -> None:
        paths = [str(place) for place in places]
        monkeypatch.setattr(extras, "HOME", home)
        monkeypatch.setattr(extras, "find_spec", lambda name: PathFinder.find_spec(name, paths))
        monkeypatch.setattr(extras, "distributions", partial(distributions, path=paths))

    return look


def python(cwd: Path, *words: str, path: list[Path]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True
    )


def test_our_own_packages_are_in_nobodys_way():
    check_ours("agents", "benchmarks", "numpy")
    assert in_the_way("agents") == in_the_way("benchmarks") == ""


def test_a_package_that_comes_first_is_named_with_its_distribution(tmp_path, look_in):
    site, home = tmp_path / "site", tmp_path / "home"
    install(site, "openai-agents", "agents/__init__.py", "agents/run.py")
    install(home, "gym-longvideo", "agents/__init__.py")
    look_in(home, site, home)
    assert in_the_way("agents") == (
        f"agents is imported from {site / 'agents'} (openai-agents), not from {home / 'agents'}: "
        "pip uninstall openai-agents, or install gym-longvideo into an environment of its own"
    )
    with pytest.raises(ImportError, match="pip uninstall openai-agents"):
        check_ours("agents")


def test_a_directory_of_ones_own_that_comes_first_is_named(tmp_path, look_in):
    own, home = tmp_path / "project", tmp_path / "home"
    (own / "agents").mkdir(parents=True)
    (own / "agents/__init__.py").touch()
    look_in(home, own, home)
    assert in_the_way("agents").endswith(": rename it, or work in another directory")


def test_a_package_whose_init_was_overwritten_is_refused(tmp_path, look_in):
    install(tmp_path, "gym-longvideo", "agents/__init__.py", "agents/train.py")
    install(tmp_path, "innocent", "agents/more.py")
    install(tmp_path, "openai-agents", "agents/__init__.py", "agents/run.py")
    look_in(tmp_path, tmp_path)
    assert in_the_way("agents") == (
        f"{tmp_path / 'agents/__init__.py'} was overwritten by openai-agents: install "
        "gym-longvideo into an environment of its own, or pip uninstall openai-agents, then "
        f"{AGAIN}"
    )


def test_a_package_whose_init_went_with_another_is_refused(tmp_path, look_in):
    install(tmp_path, "gym-longvideo", "agents/train.py")
    look_in(tmp_path, tmp_path)
    assert in_the_way("agents").endswith(f"is gone, perhaps with what was uninstalled: {AGAIN}")
    look_in(tmp_path, tmp_path / "nowhere")
    assert in_the_way("agents").endswith(AGAIN)


def test_files_of_others_beside_ours_are_in_nobodys_way(tmp_path, look_in):
    copy_packages(tmp_path)
    install(tmp_path, "torchrl", "benchmarks/conftest.py", "benchmarks/bench_collectors.py")
    look_in(tmp_path, tmp_path)
    assert in_the_way("benchmarks") == ""


@pytest.fixture(scope="module")
def overwritten(tmp_path_factory) -> Path:
    """Return a site directory in which openai-agents was installed after us."""
    site = tmp_path_factory.mktemp("site")
    copy_packages(site)
    install(site, "openai-agents", "agents/__init__.py", "agents/run.py")
    return site


@pytest.mark.parametrize(
    "words",
    [("gym_longvideo", "train"), ("benchmarks.compare",)],
    ids=" ".join,
)
def test_commands_refuse_to_run_in_the_package_of_another(words, overwritten, tmp_path):
    done = python(tmp_path, "-m", *words, "--help", path=[overwritten])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "was overwritten by openai-agents" in done.stderr and AGAIN in done.stderr


def test_what_another_package_lacks_is_explained_where_ours_imports_it(tmp_path):
    install(tmp_path, "openai-agents", "agents/__init__.py")
    done = python(tmp_path, "-m", "benchmarks.evaluate", "--help", path=[tmp_path, ROOT])
    assert done.returncode == 2 and "pip uninstall openai-agents, or install" in done.stderr


def test_a_suite_of_ours_is_not_looked_for_in_the_package_of_another(tmp_path, look_in):
    install(tmp_path, "others", "benchmarks/__init__.py")
    look_in(ROOT, tmp_path)
    with pytest.raises(ValueError, match=r"suite='mlvu' cannot be imported: benchmarks .*others"):
        gym_longvideo.load_suite("mlvu")


def test_suites_do_not_mind_agents_of_another(tmp_path, look_in):
    install(tmp_path, "openai-agents", "agents/__init__.py")
    look_in(ROOT, tmp_path, ROOT)
    with pytest.raises(FileNotFoundError):
        gym_longvideo.load_suite("mlvu", split=None, options={"root": str(tmp_path)})


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Return a source tree, and beside it the wheel and the editable wheel that it gives."""
    tree = tmp_path_factory.mktemp("built") / "tree"
    copy_packages(tree)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for extra in ("benchmarks/report/templates/page.html", "tests/__init__.py", "tests/test_x.py"):
        (tree / extra).parent.mkdir(exist_ok=True)
        (tree / extra).touch()
    (tree / "agents/weights/tiny/model.safetensors").touch()
    code = (
        "import setuptools.build_meta as b; b.build_wheel('../wheel'); b.build_editable('../edit')"
    )
    done = python(tree, "-c", code, path=[])
    assert done.returncode == 0, done.stderr
    return tree


def test_the_wheel_holds_the_packages_whole_and_nothing_else(built):
    (wheel,) = (built.parent / "wheel").glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(built).as_posix()
        for package in PACKAGES
        for path in (built / package).rglob("*")
        if path.is_file()
    }
    assert held == wanted
    assert held >= {f"{package}/py.typed" for package in PACKAGES}
    assert {"agents/weights/tiny/model.safetensors", "benchmarks/report/templates/page.html"} < held


def test_an_editable_install_is_found_although_torchrl_left_a_directory_of_our_name(
    built, tmp_path
):
    (wheel,) = (built.parent / "edit").glob("*.whl")
    torchrl = tmp_path / "torchrl"
    (torchrl / "benchmarks").mkdir(parents=True)
    (torchrl / "benchmarks/conftest.py").touch()
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = """
import os, site, sys
# Without the checkout that this environment may have installed itself.
own = [path for path in sys.path if os.path.isdir(os.path.join(path, "gym_longvideo"))]
sys.path = [sys.argv[2], *(path for path in sys.path if path not in own)]
sys.meta_path = [each for each in sys.meta_path if "editable" not in repr(each)]
site.addsitedir(sys.argv[1])
import benchmarks
print(benchmarks)
"""
    done = python(tmp_path, "-I", "-c", code, str(site), str(torchrl), path=[])
    assert str(built / "benchmarks/__init__.py") in done.stdout, done.stdout + done.stderr
