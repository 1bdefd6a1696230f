"""The study: what is run, how arms are compared, and that its pages follow from its CSVs."""

from __future__ import annotations

import math
import shutil
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from examples.study import page, plan, runs, stats, tables
from examples.study.__main__ import estimate, main
from examples.study.geometry import bounds
from examples.study.plan import ARMS, Run

DOCS = Path(__file__).parents[1] / "docs"
HELD_OUT = 16


# --- the plan -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS.values(), ids=lambda arm: arm.name)
def test_every_arm_is_a_configuration_that_keeps_to_its_budget(arm, tmp_path):
    config = arm.config(3, tmp_path)
    base = config.make_env("test").unwrapped
    most = base.budget.overview + (arm.turns - 1) * base.budget.retrieval
    assert most <= arm.budget == base.budget.total
    assert most >= 0.75 * arm.budget  # nobody is starved by rounding
    assert base.suite.knobs.duration_s == 60 * arm.minutes
    assert config.bonus == bool(arm.stages)


def test_arms_of_a_seed_share_their_videos_and_seeds_do_not(tmp_path):
    one, other = (ARMS[name].config(0, tmp_path) for name in ("full", "no_gate"))
    assert one.suite_options == other.suite_options
    suites = [
        ARMS["full"].config(seed, tmp_path).make_env("test").unwrapped.suite for seed in (0, 1)
    ]
    assert suites[0][0].segments_s != suites[1][0].segments_s
    trained_on = one.make_env("train").unwrapped.suite
    assert trained_on[0].video != suites[0][0].video


def test_an_arm_changes_one_thing(tmp_path):
    full = asdict(ARMS["full"].config(0, tmp_path))
    for name in ("no_turn_reward", "no_gate", "penalty_2", "soft_gate"):
        arm = asdict(ARMS[name].config(0, tmp_path))
        assert {key for key in full if arm[key] != full[key]} == {"env"}, name
        changed = {key for key in full["env"] if arm["env"][key] != full["env"][key]}
        assert changed == {"reward"}, name
    for name, key in (
        ("no_bonus", "bonus"),
        ("gamma_turn_1", "ppo"),
        ("endless_bonus", "bonus_patience"),
        ("shipped", "model"),
    ):
        arm = asdict(ARMS[name].config(0, tmp_path))
        assert {key for key in full if arm[key] != full[key]} == {key}, name


def test_claims_come_first_and_every_run_once():
    whole = plan.plan()
    assert len(set(whole)) == len(whole)
    claims = [run for run in whole if ARMS[run.arm].group == "claims"]
    assert whole[: len(claims)] == claims
    for arm in (*plan.CLAIMS, *plan.SCALES, *plan.REASONS):
        assert sum(run.arm == arm.name for run in whole) == plan.SEEDS >= 5
    needed = {run.arm for run in plan.plan(quick=True)}
    assert needed == {arm.name for arm in plan.CLAIMS} - {"code"} | {"short", "short_single"}


def test_an_unknown_arm_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no arms \['best'\]; use some of"):
        plan.plan(arms=["best"])


def test_geometry_bounds_what_an_arm_can_reach():
    short, full = bounds(ARMS["short"], tasks=64), bounds(ARMS["full"], tasks=64)
    assert short["one look"] == 1.0  # a frame every 18.75 s
    # Half of the cards, 18.75 s long, lie under one of 32 frames 37.5 s apart; else a guess.
    spread = 3 * math.sqrt(0.25 / 64) * 0.75
    assert full["one look"] == pytest.approx(0.5 + 0.5 / 4, abs=spread)
    assert full["one look"] < full["searcher"] < full["clairvoyant"] == 1.0
    # Between pool frames there is something to see only if a retrieval looks there.
    from dataclasses import replace

    long = replace(ARMS["full"], minutes=60)
    assert bounds(long, "pool", 64)["clairvoyant"] < 0.7
    assert bounds(long, "timeline", 64)["clairvoyant"] == 1.0


# --- comparisons --------------------------------------------------------------------------------


def made_up(values: dict[str, list[float]], metric: str = "accuracy") -> dict:
    return {
        (arm, seed): {"accuracy": math.nan, "turns": math.nan, "return": math.nan, metric: value}
        for arm, row in values.items()
        for seed, value in enumerate(row)
    }


def test_differences_are_paired_by_seed():
    found = made_up({"full": [0.7, 0.8, 0.9], "no_gate": [0.6, 0.7, 0.8, 0.1]})
    mean = stats.difference(found, "full", "no_gate", "accuracy")
    assert mean.value == pytest.approx(0.1)
    assert mean.seeds.keys() == {0, 1, 2}
    assert mean.high - mean.low == pytest.approx(0, abs=1e-9)  # the same in every seed


def test_the_interval_is_that_of_a_paired_t_test():
    from scipy.stats import ttest_rel

    one, other = [0.71, 0.62, 0.80, 0.66, 0.75], [0.60, 0.63, 0.64, 0.65, 0.59]
    mean = stats.difference(made_up({"a": one, "b": other}), "a", "b", "accuracy")
    interval = ttest_rel(one, other).confidence_interval(0.95)
    assert (mean.low, mean.high) == pytest.approx((interval.low, interval.high))


CHECKS = [
    ("above", [0.1, 0.2, 0.15], "reproduced"),
    ("above", [-0.1, -0.2, -0.15], "not reproduced"),
    ("above", [-0.1, 0.2, 0.0], "undecided"),
    ("below", [-0.1, -0.2, -0.15], "reproduced"),
    ("below", [0.1, 0.2, 0.15], "not reproduced"),
    ("not above", [-0.1, -0.11, -0.1], "reproduced"),
    ("not above", [-0.1, 0.2, 0.0], "undecided"),  # it might be higher by more than 0.05
    ("not above", [0.1, 0.2, 0.15], "not reproduced"),
    ("above", [], "undecided"),
    ("above", [0.9], "undecided"),
    ("most", [1.0], "undecided"),
    ("not above", [-0.9], "undecided"),
]


@pytest.mark.parametrize(("expected", "values", "verdict"), CHECKS)
def test_a_check_says_what_its_interval_says(expected, values, verdict):
    check = stats.Check("x", stats.mean_of(dict(enumerate(values))), expected)
    assert check.verdict == verdict


def test_a_claim_is_no_better_than_its_worst_check():
    open_ = stats.Check("a", stats.mean_of({0: 1.0, 1: -1.1}), "above")
    sure = stats.Check("b", stats.mean_of({0: 1.0, 1: 1.0001, 2: 1.0}), "above")
    bad = stats.Check("c", stats.mean_of({0: -1.0, 1: -1.0001, 2: -1.0}), "above")
    assert stats.Claim(1, "", [sure]).verdict == "reproduced"
    assert stats.Claim(1, "", [sure, open_]).verdict == "undecided"
    assert stats.Claim(1, "", [sure, open_, bad]).verdict == "not reproduced"


@pytest.mark.parametrize(
    ("turns", "verdict"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], "reproduced"),
        ([1.0, 1.0, 1.05, 1.0, 1.9], "reproduced"),  # four of five
        ([1.0, 1.0, 1.9, 1.0, 1.9], "not reproduced"),
    ],
)
def test_the_fourth_claim_counts_seeds(turns, verdict):
    found = made_up({"full": [2.0, 2.1, 2.0, 2.2, 2.1], "no_bonus": turns}, "turns")
    share = stats.claims(found, found)[3].checks[1]
    assert share.verdict == verdict


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Two runs of one update of four episodes, made in this process."""
    out = tmp_path_factory.mktemp("study")
    (out / "runs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "HELD_OUT", HELD_OUT)
        for arm in ("full", "single_turn"):
            runs.train(Run(arm, 0), out, 1, 4)
    tables.write_csvs(out)
    return out


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_run_that_is_examined_on_the_way_is_the_run_that_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "HELD_OUT", 4)
    monkeypatch.setattr(runs, "stages_of", lambda run, updates: (updates,) if updates else (1, 2))
    found = []
    for name, updates in (("whole", 2), ("parts", 0)):
        (tmp_path / name / "runs").mkdir(parents=True)
        found.append(runs.train(Run("full", 0), tmp_path / name, updates, 8))
    whole, parts = found
    assert whole is not None and parts is not None
    assert whole["curve"] == parts["curve"]
    assert len(parts["exams"]) == 2
    last, same = parts["exams"][-1], whole["exams"][-1]
    for key in ("updates", "tokens_written", "accuracy", "return", "turns", "proved"):
        assert last[key] == same[key], key


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_run_leaves_numbers_and_no_checkpoint(small):
    result = runs.load(runs.path_of(Run("full", 0), small))
    assert result is not None
    (exam,) = result["exams"]
    assert (exam["episodes"], exam["held_out"], len(result["curve"])) == (4, HELD_OUT, 1)
    assert 0 <= exam["accuracy"] <= 1
    assert exam["tokens_written"] >= 4
    assert not list(small.glob("runs/*/checkpoint-*"))


def test_what_an_examination_says_agrees_with_itself(small):
    row = tables.read_runs(small)["full", 0]
    # The base answers at once, so nothing is needless.
    assert row["turns"] == 1.0
    assert row["needless"] == 0.0
    assert row["return"] == pytest.approx(
        row["accuracy"] + 0.1 * (1 - row["malformed_rate"]), abs=1e-4
    )
    assert row["paper_return"] == row["return"]


def test_csvs_are_read_as_they_were_written(small):
    row = tables.read_runs(small)["full", 0]
    result = runs.load(runs.path_of(Run("full", 0), small))
    assert result is not None
    assert row["accuracy"] == pytest.approx(result["exams"][0]["accuracy"], rel=1e-4)
    assert tables.read_curves(small)["single_turn", 0][0]["turns"] == 1.0


def test_a_report_is_the_same_again_from_the_csvs(small, tmp_path):
    for name in ("runs.csv", "curves.csv"):
        shutil.copy(small / name, tmp_path / name)
    assert "claim 1: undecided" in page.write_report(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    page.write_report(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert {"claims.svg", "tables.md"} <= first.keys()


def test_runs_with_other_settings_are_not_mixed(small, capsys, monkeypatch):
    monkeypatch.setattr(plan, "HELD_OUT", HELD_OUT)
    arguments = ["--out", str(small), "--arms", "full", "--seeds", "1", "--batch", "4"]
    assert main([*arguments, "--updates", "2"]) == 2
    said = capsys.readouterr().err
    assert "full-0.json (one of 2) is a run with other settings" in said
    assert "pass another --out, or delete it" in said
    monkeypatch.setattr(plan, "ENTROPY", 0.5)  # no size tells this one
    assert main([*arguments, "--updates", "1"]) == 2


def test_a_run_that_was_cut_off_counts_for_nothing(tmp_path):
    path = runs.path_of(Run("full", 0), tmp_path)
    path.parent.mkdir()
    path.write_text('{"arm": "full", "se')
    assert runs.load(path) is None


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    class Pool:
        """Runs at once what is submitted, and fails for one arm."""

        _processes = None

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def submit(self, _, run, *__):
            future = Future()
            if run.arm == "full":
                future.set_exception(OSError("disk full"))
            else:
                future.set_result({"arm": run.arm})
            return future

    monkeypatch.setattr(runs, "ProcessPoolExecutor", Pool)
    todo = [Run("full", 0), Run("no_gate", 0), Run("code", 0)]
    results = list(runs.run_all(todo, tmp_path, jobs=1))
    assert [type(result) for result in results] == [OSError, dict, dict]


def test_finished_runs_are_not_done_again(small, capsys, monkeypatch):
    monkeypatch.setattr(plan, "HELD_OUT", HELD_OUT)
    arguments = ["--out", str(small), "--arms", "full,single_turn", "--seeds", "1"]
    made = {path: path.stat().st_mtime_ns for path in small.glob("runs/*.json")}
    assert main([*arguments, "--updates", "1", "--batch", "4"]) == 0
    assert "claim 4" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in small.glob("runs/*.json")} == made


def test_the_estimate_counts_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.study.__main__.seconds_of", lambda *_: 600.0)
    todo = [Run("full", seed) for seed in range(4)]
    assert estimate(todo, tmp_path, 2, 64) == "4 runs, 2 at a time: about 20 minutes"
    assert estimate([], tmp_path, 2, 64) == "every run is finished"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "best"], "there are no arms ['best']"),
        (["--jobs", "0"], "--jobs 0 must be 1 or more"),
        (["--seeds", "-1"], "seeds=-1 must be 1 or more"),
        (["--report", "nowhere"], "nowhere/runs.csv does not exist; run the study there first"),
    ],
)
def test_arguments_without_a_meaning_are_refused(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_runs_goes_on_and_reports(tmp_path, capsys):
    size = ["--updates", "1", "--batch", "4", "--seeds", "2", "--jobs", "2"]
    arguments = [*size, "--out", str(tmp_path)]
    assert main(["--arms", "full", *arguments]) == 0
    assert "claim 1: undecided" in capsys.readouterr().out
    made = (tmp_path / "runs" / "full-0.json").stat().st_mtime_ns
    assert main(["--arms", "full,no_gate", *arguments]) == 0
    assert (tmp_path / "runs" / "full-0.json").stat().st_mtime_ns == made
    assert len(tables.read_runs(tmp_path)) == 4
    assert (tmp_path / "gate.svg").stat().st_size > 1000


# --- what is committed --------------------------------------------------------------------------


def test_the_tables_of_the_page_follow_from_the_committed_csvs():
    text = (DOCS / "study.md").read_text()
    found = page.all_tables(
        tables.read_runs(DOCS / "study"),
        page.read_early(DOCS / "study"),
        tables.read_curves(DOCS / "study"),
    )
    assert page.fill(text, found) == text
    for name in ("verdicts", "arms", "differences", "seeds", "cost"):
        assert f"<!-- table: {name} -->" in text


def test_the_figures_follow_from_the_committed_csvs(tmp_path):
    from importlib.metadata import version

    pinned = (DOCS.parent / "constraints.txt").read_text()
    if f"matplotlib=={version('matplotlib')}\n" not in pinned:
        pytest.skip("another matplotlib draws other bytes")
    for name in ("runs.csv", "curves.csv"):
        shutil.copy(DOCS / "study" / name, tmp_path / name)
    page.write_report(tmp_path)
    for path in sorted(tmp_path.glob("*.svg")):
        assert path.read_bytes() == (DOCS / "study" / path.name).read_bytes(), path.name


def test_the_committed_csvs_hold_every_seed_of_the_claims():
    rows, curves = tables.read_runs(DOCS / "study"), tables.read_curves(DOCS / "study")
    assert rows.keys() == curves.keys()
    for (name, seed), row in rows.items():
        updates = ARMS[name].stages_of_training[-1]
        assert (row["updates"], row["episodes"]) == (updates, updates * plan.BATCH), (name, seed)
        assert row["held_out"] == plan.HELD_OUT
        assert len(curves[name, seed]) == updates
    early = page.read_early(DOCS / "study")
    for arm in plan.CLAIMS:
        for found in (rows, early):
            assert {seed for name, seed in found if name == arm.name} >= set(range(plan.SEEDS))
