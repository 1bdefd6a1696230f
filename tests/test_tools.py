"""The tables of other libraries and versions: what fails, hangs or does not install is a row."""

from __future__ import annotations

import importlib
import json
import math
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from examples.needle import ENV_OPTIONS, SUITE_OPTIONS
from tools import compat, libraries, page, venvs
from tools.checks import needle
from tools.checks.rows import ENDED, Check, Checks, Row, outcome, read, tried

ROOT = Path(__file__).parents[1]
BEGUN = Row("lib", "1.0", "what", "as is", "failed", ENDED)


def row_of(run, **options) -> Row:
    return tried(Check("what", run, "as is", **{"trains": False, "limit": "", **options}), BEGUN)


def raises() -> None:
    raise ValueError("no /home/user/such/place\nto be had")


def play(episodes: int = 9) -> None:
    env = needle.make()
    for seed in range(episodes):
        env.reset(seed=seed)
        env.step([1, 0, 0, 0])


def test_a_check_works_fails_with_its_error_or_shows_a_known_limit() -> None:
    assert row_of(lambda: None).result == "works"
    failed = row_of(raises)
    assert (failed.result, failed.note) == ("failed", "ValueError: no ... to be had")
    limited = row_of(raises, limit="theirs")
    assert (limited.result, limited.note) == ("no", f"theirs ({failed.note})")
    assert row_of(lambda: sys.exit(3)).note == "SystemExit: 3"


def test_a_limit_that_is_gone_is_reported() -> None:
    row = row_of(lambda: None, limit="theirs")
    assert row.result == "failed" and "although it should not: theirs" in row.note


def test_success_of_training_is_that_of_the_first_and_of_the_last_episodes() -> None:
    row = row_of(play, trains=True)
    ends = list(needle.ENDS)
    assert row.result == "trains" and row.steps == len(ends) == 9
    assert row.start == round(sum(ends[:3]) / 3, 3) and row.end == round(sum(ends[-3:]) / 3, 3)
    assert row_of(lambda: None, trains=True).note == "no episode ended in training"


def test_a_row_stands_before_its_check_begins_and_is_not_tried_twice(tmp_path, monkeypatch) -> None:
    path, seen, check = tmp_path / "rows.jsonl", [], Checks("numpy")
    check("one")(lambda: seen.append([row.note for row in read(path)]))
    check("two")(lambda: seen.append([row.note for row in read(path)]))
    monkeypatch.setattr(sys, "argv", ["x", str(path)])
    check.main()
    check.main()
    assert seen == [[ENDED], ["", ENDED]]
    assert [(row.what, row.result) for row in read(path)] == [("one", "works"), ("two", "works")]
    assert math.isnan(read(path)[0].start)


class Dying:
    """A virtual environment whose checks take the process down, one after another."""

    def __init__(self, *checks: str) -> None:
        self.checks = list(checks)

    def run(self, *arguments: str, timeout_s: float) -> tuple[int, str]:
        if not self.checks:
            return 1, "Traceback\nImportError: no such thing"
        what = self.checks.pop(0)
        row = Row("lib", "1.0", what, "as is", "failed", ENDED)
        with Path(arguments[2]).open("a") as file:
            file.write(row.to_json() + "\n")
        return (-9 if self.checks else 0), ""


def test_a_check_that_takes_the_process_down_leaves_a_row_and_the_others_are_tried() -> None:
    rows = libraries.run_checks(Dying("a", "b", "c"), libraries.LIBRARIES[0], 1.0)
    assert [(row.what, row.note) for row in rows] == [("a", ENDED), ("b", ENDED), ("c", ENDED)]


def test_a_library_that_is_not_imported_is_a_row_with_the_last_line() -> None:
    (row,) = libraries.run_checks(Dying(), libraries.LIBRARIES[0], 1.0)
    assert (row.what, row.note) == ("import", "ImportError: no such thing")


def test_what_does_not_install_is_a_row_with_the_reason_of_pip(tmp_path, monkeypatch) -> None:
    calls = []

    @contextmanager
    def refuse(name, *installs, **options):
        calls.append(installs[0])
        raise venvs.InstallError("ERROR: No matching distribution found for skrl")
        yield

    monkeypatch.setattr(libraries, "venv", refuse)
    monkeypatch.setattr(compat, "venv", refuse)
    library = next(each for each in libraries.LIBRARIES if each.module == "skrl")
    versions, (row,) = libraries.try_library(library, scale=1.0, keep=False)
    assert versions == {} and outcome(row).endswith("No matching distribution found for skrl")
    assert [each[0] == "-c" for each in calls] == [True, False]  # then without the constraints
    assert "No matching" in compat.run(compat.CASES[0]).error
    missing = compat.Case("x", (), "env", python="python9.9")
    assert compat.run(missing).error == "python9.9 is not on the path"


def test_a_virtual_environment_runs_what_it_is_given_and_ends_it_in_time() -> None:
    here = venvs.Venv(Path(sys.prefix))
    assert here.run("-c", "print(2 + 2)", timeout_s=60) == (0, "4\n")
    code, printed = here.run("-c", "import time; time.sleep(60)", timeout_s=0.5)
    assert code == -1 and printed == "stopped after 0 s"
    assert here.versions(["pytest", "nonesuch"]).keys() == {"pytest"}


def test_a_virtual_environment_is_made_once_kept_if_asked_and_removed_else(
    tmp_path, monkeypatch
) -> None:
    called = []

    def call(*command: str) -> None:
        called.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        if "refused" in command:
            raise venvs.InstallError("ERROR: refused")

    monkeypatch.setattr(venvs, "_call", call)
    for keep, number in ((True, 2), (True, 2), (False, 2), (False, 4)):
        with venvs.venv("x", ["numpy"], directory=tmp_path, keep=keep) as made:
            assert (made.path / "installs.txt").exists()
        assert made.path.exists() is keep and len(called) == number
    with pytest.raises(venvs.InstallError, match="refused"):
        with venvs.venv("x", ["refused"], directory=tmp_path, keep=True):
            pass
    with pytest.raises(venvs.InstallError, match="refused"):  # a half-made one is not used
        with venvs.venv("x", ["refused"], directory=tmp_path):
            pass
    assert not (tmp_path / "x").exists()


def test_the_libraries_of_pyav_get_the_names_that_others_look_for(tmp_path) -> None:
    held = tmp_path / "lib" / "python3.11" / "site-packages" / "av.libs"
    held.mkdir(parents=True)
    (held / "libavcodec-5e6b81c2.so.62.28.102").write_text("codec", encoding="utf-8")
    for _ in range(2):
        links = venvs.Venv(tmp_path).link_ffmpeg()
    assert {path.name for path in links.iterdir()} == {
        "libavcodec-5e6b81c2.so.62.28.102",
        "libavcodec.so.62",
    }
    assert (links / "libavcodec.so.62").read_text(encoding="utf-8") == "codec"


def test_pip_refuses_in_its_own_words() -> None:
    command = (sys.executable, "-m", "pip", "install", "--no-index", "-q", "nonesuch-at-all")
    with pytest.raises(venvs.InstallError, match="ERROR: No matching distribution found"):
        venvs._call(*command)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(page, "DATA", tmp_path / "data")
    return tmp_path / "page.md"


def test_a_run_of_one_library_leaves_the_rows_of_others(elsewhere) -> None:
    trained = Row("b", "2", "PPO", "as is", "trains", "", 0.2, 0.9, 2000, 3.4)
    page.put_library("b", ["a", "b"], {"b": "2", "numpy": "2.4"}, [trained])
    page.put_library("a", ["a", "b"], {}, [Row("a", "", "pip", "", "failed", "x | y")])
    text = page.write().read_text()
    assert "**b 2**<br>numpy 2.4<br>" in text
    assert "| PPO | as is | success 0.20 to 0.90, 2k steps, 3 s |" in text
    assert "failed: x &#124; y |" in text and text.index("**a**") < text.index("**b 2**")


def test_counts_of_a_suite_are_those_of_its_report(elsewhere, tmp_path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="2" skipped="2"/></testsuites>'
    )
    counted = compat.counts(report)
    assert counted == {"passed": 4, "failed": 3, "skipped": 2}
    row = page.Combination("NumPy", {"numpy": "1.26.4"}, "env, suite", **counted, date="2026-01-02")
    page.put_combinations([row], ["NumPy"])
    assert "| NumPy | numpy 1.26.4 | env, suite | 4 | 3 | 2 | 2026-01-02 |" in (
        page.write().read_text()
    )


def test_constraints_let_go_of_what_is_held_otherwise(tmp_path) -> None:
    kept = compat.constraints(["numpy~=1.26.0", "av"], tmp_path).read_text().splitlines()
    names = {compat.name_of(line) for line in kept}
    assert {"gymnasium", "torch"} <= names and not {"numpy", "av"} & names


def test_every_check_is_in_the_table_and_every_library_has_rows() -> None:
    modules = {path.stem for path in (ROOT / "tools" / "checks").glob("*.py")}
    assert {each.module for each in libraries.LIBRARIES} == modules - {
        "__init__",
        "needle",
        "reader",
        "rows",
    }
    entries = json.loads((page.DATA / "libraries.json").read_text())
    assert list(entries) == libraries.names_of()
    assert all(entry["rows"] and entry["versions"] for entry in entries.values())
    versions = json.loads((page.DATA / "compat.json").read_text())
    order = [case.what for case in compat.CASES]
    assert list(versions) == order
    assert all(row["failed"] == 0 < row["passed"] for row in versions.values())
    for case in compat.CASES:
        for name in compat.modules(case):
            assert (ROOT / "tests" / f"test_{name}.py").exists(), name


def test_the_page_is_what_the_numbers_say(monkeypatch, tmp_path) -> None:
    before = page.PAGE.read_text()
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    assert page.write().read_text() == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("module", ["gymnasium_wrappers", "sb3"])
def test_what_does_not_train_works_here(module) -> None:
    pytest.importorskip("moviepy")
    pytest.importorskip("stable_baselines3")
    slow = ("Subproc", "Async", "images", "CnnPolicy")  # other tests have these
    for check in importlib.import_module(f"tools.checks.{module}").check.checks:
        if not check.trains and not any(word in check.what for word in slow):
            assert tried(check, BEGUN).result in ("works", "no"), check.what


def test_the_settings_for_the_zoo_are_those_of_the_needle_suite() -> None:
    yaml = pytest.importorskip("yaml")
    sb3 = pytest.importorskip("agents.sb3")
    text = (ROOT / "examples" / "rl_zoo3.yml").read_text()
    settings = yaml.safe_load(text)["LongVideoQA-v0"]
    options = {**ENV_OPTIONS, "frame_size": 8, "suite_options": SUITE_OPTIONS}
    assert settings["env_kwargs"] == json.loads(json.dumps(options))
    policy = eval(settings["policy_kwargs"])  # as the zoo does
    assert policy == {"features_extractor_class": sb3.FrameExtractor, "net_arch": [128]}


def test_every_example_says_what_to_expect_and_how_long_it_takes() -> None:
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text()
        if "def main" in text:
            head = text.split('"""')[1]
            assert "Expect" in head, path.name
            assert any(word in head for word in ("second", "minute", "hour")), path.name


def test_torchvision_is_mended_once():
    from tools.patch_torchvision import guarded

    source = '@torch.library.register_fake("torchvision::nms")\ndef meta_nms(): ...\n'
    once, count = guarded(source)
    assert count == 1 and 'hasattr(torch.ops.torchvision, "nms")' in once
    assert guarded(once) == (once, 0)
    # What is absent is passed over, and the function stays as it is.
    torch = SimpleNamespace(
        library=SimpleNamespace(register_fake=None), ops=SimpleNamespace(torchvision=object())
    )
    names: dict[str, object] = {"torch": torch}
    exec(once, names)
    assert callable(names["meta_nms"])
