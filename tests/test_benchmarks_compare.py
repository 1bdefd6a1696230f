"""Comparing runs in pairs, and merging the parts of one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from benchmark_records import FakeRun, card, marks, record, run

from benchmarks.card import CardMismatch
from benchmarks.compare import compare, main, merge_runs, table
from benchmarks.controls import rotated, shuffled
from benchmarks.scores.summary import summarize
from gym_longvideo.task import Task


@dataclasses.dataclass(frozen=True)
class FakeDataset:
    overall: str = "macro:task_type"

    @staticmethod
    def groups(task):
        return {"task_type": tuple(task["task_types"])}


def test_a_difference_is_what_b_gains_over_a():
    found = compare(run(marks("1100110000")), run(marks("1111100000"), "another"))
    assert found["accuracy_a"]["value"] == 0.4
    assert found["accuracy_b"]["value"] == 0.5
    assert found["difference"]["value"] == found["difference_micro"]["value"] == pytest.approx(0.1)
    assert found["discordant"] == {"only_a": 1, "only_b": 2}
    assert found["mcnemar_p"] == 1.0  # 2 * (1 + 3) / 8
    assert found["difference"]["low"] < 0 < found["difference"]["high"]
    assert (found["questions"], found["videos"]) == (10, 10)
    assert found["a"]["policy"]["name"] == "someone"
    assert found["b"]["policy"]["name"] == "another"
    json.dumps(found, allow_nan=False)


def test_turning_a_comparison_round_changes_its_sign():
    a, b = run(marks("1100110000")), run(marks("1111100000"))
    there, back = compare(a, b), compare(b, a)
    assert back["difference"]["value"] == pytest.approx(-there["difference"]["value"])
    assert back["difference"]["low"] == pytest.approx(-there["difference"]["high"], abs=0.05)
    assert back["mcnemar_p"] == there["mcnemar_p"]


def test_pairs_see_what_two_separate_intervals_hide():
    # Both right on the same hard-won half; B has six of a hundred more, and loses none.
    a, b = "1" * 50 + "0" * 50, "1" * 56 + "0" * 44
    found = compare(run(marks(a)), run(marks(b)))
    assert found["accuracy_a"]["high"] > found["accuracy_b"]["low"]  # they overlap
    assert found["difference"]["low"] > 0
    assert found["mcnemar_p"] == pytest.approx(2 / 64)


def test_differences_are_clustered_by_video():
    def played(gain):
        return run(
            [
                record(f"{v}-{i}", 0 if gain and v < 5 else 1, video=f"v{v}")
                for v in range(20)
                for i in range(10)
            ]
        )

    found = compare(played(False), played(True))
    assert found["difference"]["value"] == 0.25
    # Twenty videos: 0.25 -+ 1.96 * sqrt(0.25 * 0.75 / 20) = 0.06 to 0.44; 200 independent
    # questions would give 0.19 to 0.31.
    assert found["difference"]["low"] == pytest.approx(0.06, abs=0.03)
    assert found["difference"]["high"] == pytest.approx(0.44, abs=0.03)


def test_runs_that_agree_everywhere_leave_room_for_a_difference():
    found = compare(run(marks("1100")), run(marks("1100")))
    bound = 1 - 0.025 ** (1 / 4)
    assert found["difference"] == {
        "value": 0.0,
        "low": pytest.approx(-bound),
        "high": pytest.approx(bound),
    }
    assert found["mcnemar_p"] == 1.0


def test_the_official_overall_decides_what_a_difference_is():
    def played(pattern_x, pattern_y):
        return run([*marks(pattern_x, "x", types=("x",)), *marks(pattern_y, "y", types=("y",))])

    found = compare(played("0000", "0"), played("0000", "1"), FakeDataset())
    assert found["difference"]["value"] == 0.5
    assert found["difference_micro"]["value"] == pytest.approx(0.2)
    assert found["groups"]["task_type"]["y"]["value"] == 1.0
    assert found["groups"]["task_type"]["x"]["value"] == 0.0


def test_strict_and_lenient_differences_are_two():
    forgiven = [record("q0", None, reply="(A)", lenient_choice=0), *marks("10")[1:]]
    found = compare(run(marks("00")), run(forgiven))
    assert found["difference"]["value"] == 0.0
    assert found["lenient_difference"]["value"] == 0.5


def test_only_questions_that_both_have_are_compared():
    a = run([*marks("11"), record("only a")])
    b = run([*marks("10"), *marks("111", "only b"), record("unscored", expected=None)])
    found = compare(a, b)
    assert (found["questions"], found["only_a"], found["only_b"]) == (2, 1, 3)
    assert found["difference"]["value"] == -0.5
    assert "left out: 1 that only A has, 3 that only B has" in table(found)


def test_runs_without_a_common_question_cannot_be_compared():
    with pytest.raises(ValueError, match=r"no scored question in common \(1 and 0 scored\)"):
        compare(run(marks("1")), run([]))


def test_other_protocols_are_refused_unless_the_knob_is_named():
    a = run(marks("10"), settings={"max_turns": 1})
    b = run(marks("11"), settings={"max_turns": 3})
    with pytest.raises(CardMismatch, match=r"settings\.max_turns: 1 != 3"):
        compare(a, b)
    found = compare(a, b, across=("settings.max_turns",))
    assert found["across"] == {"settings.max_turns": [1, 3]}
    assert "settings.max_turns: 1 in A, 3 in B" in table(found)


def test_other_video_files_are_refused_unless_they_are_named():
    one = run([record("a", meta={"video_bytes": 10}), record("b", meta={"video_bytes": 7})])
    two = run([record("a", meta={"video_bytes": 12}), record("b", meta={"video_bytes": 7})])
    with pytest.raises(ValueError, match=r"1 of 2 questions.*a: 10 and 12 bytes.*across='videos'"):
        compare(one, two)
    found = compare(one, two, across=["videos"])
    assert found["other_videos"] == 1
    assert "1 questions were asked about other video files" in table(found)


OPTIONS = {"where": {}, "shuffle_options": None}
SUITE = {"name": "made-up", "split": "test", "tasks": 3, "digest": "plain", "options": OPTIONS}
TASKS = [Task(f"q{i}", f"q{i}.mp4", "Which?", tuple("wxyz"), 0, video_id=f"q{i}") for i in range(3)]


def asked(tasks, pattern):
    """Records of tasks as a control puts them, right or wrong as the pattern says."""
    return [
        record(
            task.task_id,
            task.answer_index if mark == "1" else (task.answer_index + 1) % 4,
            expected=task.answer_index,
            video=task.video_id,
            meta=task.meta,
            question=task.question,
            texts=task.options,
        )
        for task, mark in zip(tasks, pattern, strict=True)
    ]


def of_control(control, tasks, pattern, *, settings=None, **suite):
    changes = {} if settings is None else {"settings": {**card().protocol["settings"], **settings}}
    made = {**SUITE, "tasks": len(tasks), **suite}
    return run(asked(tasks, pattern), control=control, suite=made, **changes)


PLAIN = of_control("none", TASKS, "110")
CONTROLS = {
    "shuffled": of_control("shuffled", [shuffled(t) for t in TASKS], "100", digest="s"),
    "circular": of_control(
        "circular", [rotated(t, r) for t in TASKS for r in range(4)], "111111100000", digest="c"
    ),
    "blind": of_control(*("blind", TASKS, "100"), settings={"max_turns": 1, "overview_frames": 0}),
    "single_frame": of_control(
        *("single_frame", TASKS, "100"),
        settings={"max_turns": 1, "frame_budget": 1, "overview_frames": 1},
    ),
    "none": of_control(
        *("none", [shuffled(t, 7) for t in TASKS], "100"),
        digest="7",
        options={**OPTIONS, "shuffle_options": 7},
    ),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_is_one_word_whatever_follows_from_it(control):
    found = compare(PLAIN, CONTROLS[control], across=["control"])
    assert found["difference"]["value"] == pytest.approx(-1 / 3)
    assert (found["questions"], found["only_a"], found["only_b"]) == (3, 0, 0)
    assert control == "none" or found["across"]["control"] == ["none", control]
    with pytest.raises(CardMismatch):
        compare(PLAIN, CONTROLS[control])
    with pytest.raises(CardMismatch):
        compare(PLAIN, CONTROLS[control], across=["suite.name"])


def test_controls_are_compared_with_each_other():
    found = compare(CONTROLS["shuffled"], CONTROLS["circular"], across=["control"])
    assert found["difference"]["value"] == 0.0 and found["questions"] == 3
    found = compare(CONTROLS["blind"], CONTROLS["circular"], across=["control"])
    assert found["across"]["settings.max_turns"] == [1, 3]


def test_a_refusal_says_which_word_stands_for_all_that_a_control_changes():
    with pytest.raises(CardMismatch, match="'control' stands for all that follows from a control"):
        compare(PLAIN, CONTROLS["circular"])
    with pytest.raises(CardMismatch) as caught:
        compare(PLAIN, of_control("none", TASKS, "110", settings={"max_turns": 1}))
    assert "'control'" not in str(caught.value)


@pytest.mark.parametrize(
    ("control", "changes"),
    [
        ("shuffled", {"settings": {"max_turns": 1}}),
        ("circular", {"settings": {"frame_budget": 64}}),
        ("blind", {"digest": "another"}),
        ("blind", {"settings": {"pool_size": 8}}),
        ("shuffled", {"split": "val"}),
        ("shuffled", {"options": {**OPTIONS, "where": {"kind": ["x"]}}}),
        ("none", {"digest": "another"}),
        ("none", {"settings": {"max_turns": 1}}),
    ],
)
def test_what_does_not_follow_from_a_control_is_still_refused(control, changes):
    with pytest.raises(CardMismatch):
        compare(PLAIN, of_control(control, TASKS, "100", **changes), across=["control"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"question": "Else?"}, r"question: 'Which\?' and 'Else\?'"),
        ({"options": tuple("wxyv")}, r"options: \['w', 'x', 'y', 'z'\] and \['w', 'x', 'y', 'v'\]"),
        ({"options": tuple("xwyz")}, "options"),  # the same texts, annotated in another order
        ({"answer_index": 2}, "answer_index: 0 and 2"),
        ({"video_id": "q7"}, "video: 'q1' and 'q7'"),
    ],
)
@pytest.mark.parametrize("control", ["shuffled", "circular"])
def test_a_control_of_another_question_is_refused(control, changes, says):
    tasks = [TASKS[0], dataclasses.replace(TASKS[1], **changes), TASKS[2]]
    if control == "shuffled":
        other = of_control(control, [shuffled(t) for t in tasks], "100", digest="s")
    else:
        turned = [rotated(t, r) for t in tasks for r in range(4)]
        other = of_control(control, turned, "1" * 12, digest="c")
    with pytest.raises(ValueError, match=f"question 'q1' is another one.*{says}"):
        compare(PLAIN, other, across=["control"])


def test_a_control_over_more_questions_is_refused_and_half_a_run_is_not():
    more = [*TASKS, dataclasses.replace(TASKS[0], task_id="q9")]
    other = of_control("circular", [rotated(t, r) for t in more for r in range(4)], "1" * 16)
    with pytest.raises(ValueError, match=r"other questions: 1 are in one of them alone.*'q9'"):
        compare(PLAIN, other, across=["control"])
    half = dataclasses.replace(CONTROLS["shuffled"], records=CONTROLS["shuffled"].records[:2])
    assert compare(PLAIN, half, across=["control"])["only_a"] == 1


def test_an_order_of_options_that_cannot_be_is_refused():
    broken = run(asked(TASKS, "110"), control="shuffled", suite={**SUITE, "digest": "s"})
    broken.records[1].task["meta"]["shuffled"] = [0, 0, 1, 2]
    with pytest.raises(ValueError, match=r"'q1': meta.shuffled=\[0, 0, 1, 2\] does not say"):
        compare(PLAIN, broken, across=["control"])


def test_a_knob_that_one_card_lacks_can_be_named_and_written():
    found = compare(run(marks("1")), run(marks("1"), extra=2), across=("extra",))
    assert json.loads(json.dumps(found["across"])) == {"extra": ["absent", 2]}


def test_parts_of_a_run_are_merged_into_what_one_run_would_be():
    records = marks("110100")
    costs = {f"q{i}": {"frames_decoded": i} for i in range(6)}
    parts = [
        FakeRun(card(), records[:4], costs, [{"key": "q4"}]),
        FakeRun(card(), records[3:], costs, []),
    ]
    merged = merge_runs(parts)
    assert len(merged.records) == 6  # q3 was in both
    assert summarize(merged) == summarize(FakeRun(card(), records, costs))


def test_runs_of_different_cards_are_never_merged():
    with pytest.raises(CardMismatch, match=r"settings\.seek: absent != .exact"):
        merge_runs(
            [run(marks("1")), run([], settings={**card().protocol["settings"], "seek": "exact"})]
        )
    with pytest.raises(CardMismatch, match=r"policy\.name"):
        merge_runs([run(marks("1")), run([], "another")])
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_runs([])


def test_an_episode_that_went_two_ways_is_not_merged():
    with pytest.raises(ValueError, match="'q0' went differently"):
        merge_runs([run(marks("1")), run(marks("0"))])


def test_the_table_reads_well():
    text = table(compare(run(marks("1100", types=("x",))), run(marks("1110", types=("x",)), "b")))
    assert text.splitlines()[1].startswith("B: b (")
    (line,) = [line for line in text.splitlines() if line.startswith("B - A  ")]
    assert line.split()[:4] == ["B", "-", "A", "0.250"]
    assert "n=4" in text
    assert "only A right: 0, only B right: 1; exact McNemar p = 1" in text


def test_the_command_compares_two_directories(tmp_path, monkeypatch, capsys):
    runs = pytest.importorskip("benchmarks.runs")
    directories = []
    for name, pattern in (("a", "1100"), ("b", "1110")):
        with runs.RunWriter(tmp_path / name, card(name)) as writer:
            for made in marks(pattern):
                writer.add(made.task["task_id"], made, {})
        directories.append(str(tmp_path / name))
    out = tmp_path / "comparison.json"
    monkeypatch.setattr(sys, "argv", ["compare", *directories, "--out", str(out)])
    main()
    assert "4 questions about 4 videos" in capsys.readouterr().out
    assert json.loads(out.read_text())["difference"]["value"] == 0.25
    monkeypatch.setattr(sys, "argv", ["compare", directories[0], str(tmp_path / "nowhere")])
    assert main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "nowhere" in said


def test_the_command_explains_itself():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "--across" in done.stdout
    assert "Directory of run A." in done.stdout and "Directory of run B." in done.stdout
