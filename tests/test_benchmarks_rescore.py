"""Scoring runs again: other rewards, other parsers, and what cannot be known without inference."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import benchmark_runs
import pytest
from benchmark_records import FakeRun, card, final, marks, record, retrieval, run
from worlds import GreySuite

from benchmarks.card import CardMismatch, require_same
from benchmarks.compare import compare
from benchmarks.report.__main__ import write_report
from benchmarks.rescore import compare_scores, main, rescore_run, table, write_rescored
from benchmarks.runs import RunWriter, read_run
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.rewards import PRESETS, make_reward
from gym_longvideo.wrappers import TextProtocol


def played(replies, protocol="tags", index=0, **settings):
    """The record of an episode in words: the right answer is A, 20 cells of 5 s."""
    fields = {"frame_budget": 8, "pool_size": 20, "frame_size": 8, **settings}
    env = TextProtocol(LongVideoQAEnv(GreySuite(), **fields), protocol)
    env.reset(options={"index": index})
    for reply in replies:
        *_, terminated, _, _ = env.step(reply)
    assert terminated
    return env.unwrapped.record


def spoken(*records, protocol="tags"):
    return FakeRun(card(text_protocol=protocol), records)


LOOK, ANSWER = "<think></think><retrieve>8, 9</retrieve>", "<think></think><answer>A</answer>"


def test_another_reward_pays_the_same_facts():
    # A retrieval of exactly the relevant cells, then a wrong answer.
    wrong = played([LOOK, "<think></think><answer>B</answer>"])
    again = rescore_run(spoken(wrong), reward="ungated").results.records[0]
    # The gate is gone: 0.5 for the retrieval, 0.1 for each well-formed turn.
    assert wrong.total_reward == pytest.approx(0.1)
    assert again.total_reward == pytest.approx(0.5 + 0.1 + 0.1)
    assert again.outcome == wrong.outcome == "wrong"
    assert again.settings["reward"] == PRESETS["ungated"].to_dict()
    assert wrong.settings["reward"] == PRESETS["video_mtr"].to_dict()  # untouched


def test_rescoring_under_the_own_reward_changes_nothing_but_the_card():
    original = spoken(played([LOOK, ANSWER]), played(["?", ANSWER]))
    again = rescore_run(original, reward="video_mtr")
    assert list(again.results.records) == list(original.records)
    assert again.changed == again.diverging == 0
    assert again.results.card.hash != original.card.hash


def test_a_rescored_run_is_never_taken_for_the_original():
    original = spoken(played([ANSWER]))
    again = rescore_run(original, reward="ungated").results
    assert again.card.protocol["scorer"] == "rescored: reward ungated"
    assert again.card.protocol["settings"]["reward"] == PRESETS["ungated"].to_dict()
    assert again.card.policy["rescored_from"] == original.card.hash
    with pytest.raises(CardMismatch, match="scorer"):
        require_same([original.card, again.card])


def test_two_policies_under_the_same_other_scorer_can_be_compared():
    a = rescore_run(run(marks("10")), reward="accuracy").results
    b = rescore_run(run(marks("11"), "another"), reward="accuracy").results
    assert compare(a, b)["difference"]["value"] == 0.5


def test_a_reward_may_be_spelt_out():
    again = rescore_run(run(marks("1")), reward={"preset": "accuracy", "accuracy": 2.0}).results
    assert again.records[0].total_reward == 2.0
    assert '"accuracy": 2.0' in again.card.protocol["scorer"]


def test_numeric_runs_can_be_paid_otherwise_but_have_no_replies():
    numeric = FakeRun(card(text_protocol="numeric"), marks("10"))
    assert rescore_run(numeric, reward="ungated").changed == 0
    with pytest.raises(ValueError, match="protocol 'numeric': there are no replies"):
        rescore_run(numeric, parser="lenient")
    with pytest.raises(ValueError, match="'q0', turn 1 has no reply"):
        rescore_run(run(marks("1")), parser="lenient")


def test_the_lenient_parser_reads_the_last_reply_as_the_record_says():
    replies = ["?", "Hm.", "I think the answer is (a)."]
    original = spoken(played(replies), played([LOOK, ANSWER]))
    again = rescore_run(original, parser="lenient")
    first, second = again.results.records
    assert original.records[0].outcome == "unanswered"
    assert original.records[0].turns[-1]["lenient_choice"] == 0
    assert (first.outcome, first.turns[-1]["op"], first.turns[-1]["choice"]) == (
        "correct",
        "answer",
        0,
    )
    assert first.ledger[-1]["accuracy"] == 1.0
    assert second == original.records[1]
    assert (again.changed, again.diverging) == (1, 0)
    assert again.results.card.protocol["scorer"] == "rescored: last reply read by lenient(tags)"


def test_reading_strictly_again_gives_the_run_itself():
    original = spoken(
        played([LOOK, ANSWER]),
        played(["?", LOOK, "<think></think><retrieve>1, 2</retrieve>"]),  # none in the last turn
        played([LOOK, LOOK.replace("8", "30"), ANSWER]),  # leaves the pool
        played(["", "A", "B"]),
    )
    again = rescore_run(original, parser="strict")
    assert list(again.results.records) == list(original.records)
    assert (again.changed, again.diverging) == (0, 0)


def test_a_retrieval_refused_for_want_of_frames_does_not_diverge():
    replies = [LOOK, "<think></think><retrieve>1, 2</retrieve>", ANSWER]
    made = played(replies, frame_budget=6, overview_frames=4, frames_per_retrieval=2)
    assert made.turns[1]["malformed"].startswith("the frame budget")
    assert rescore_run(spoken(made), parser="strict").diverging == 0


def test_an_interval_refused_for_its_order_does_not_diverge():
    backwards = "<think></think><retrieve>9, 8</retrieve>"
    made = played([backwards, ANSWER], interval_order="ascending")
    assert made.turns[0]["malformed"].endswith("ends before it starts")
    assert rescore_run(spoken(made), parser="strict").diverging == 0


def test_an_answer_that_came_earlier_under_the_other_parser_diverges():
    # Leniently the first reply already answers; what came after would never have been.
    made = played(["The answer is B.", ANSWER])
    again = rescore_run(spoken(made), parser="lenient")
    assert again.diverging == 1
    assert again.results.records[0].outcome == "correct"  # scored as it ended
    assert "\n1 episode would have gone differently" in table(compare_scores(spoken(made), again))


def test_an_answer_that_the_other_parser_refuses_counts_as_unanswered_and_diverges():
    tool = "Seen.<answer>A</answer>"  # fine as a tool call's final answer, not in tags
    made = played([tool], protocol="tool_call")
    assert made.outcome == "correct"
    again = rescore_run(spoken(made, protocol="tool_call"), parser="tags")
    (changed,) = again.results.records
    assert (changed.outcome, changed.turns[-1]["choice"]) == ("unanswered", -1)
    assert changed.turns[-1]["malformed"] == "no <think>...</think> at the start"
    assert (again.changed, again.diverging) == (1, 1)  # turns were left


def test_intervals_in_other_units_diverge_only_if_they_name_other_cells():
    # Cells of 5 s: "40, 49" are cells 8 and 9 in seconds, and outside the pool as indices.
    made = played(["<think></think><retrieve>40, 49</retrieve>", ANSWER], protocol="tags_seconds")
    assert made.turns[0]["interval"] == [8, 9]
    seconds = spoken(made, protocol="tags_seconds")
    assert rescore_run(seconds, parser="strict").diverging == 0
    assert rescore_run(seconds, parser="tags").diverging == 1


def test_an_unscored_answer_stays_unscored():
    made = record("a", 1, expected=None, reply=ANSWER, lenient_choice=0)
    assert rescore_run(run([made]), parser="strict").results.records[0].outcome == "unscored"


def test_parser_and_reward_go_together():
    made = played(["?", "?", "Answer: A"])
    again = rescore_run(spoken(made), parser="lenient", reward="accuracy").results
    assert again.records[0].total_reward == 1.0
    assert again.card.protocol["scorer"] == (
        "rescored: last reply read by lenient(tags); reward accuracy"
    )


def test_what_cannot_be_done_is_said():
    with pytest.raises(ValueError, match="name a reward, a parser, or both"):
        rescore_run(run([]))
    with pytest.raises(ValueError, match="parser='regex' is unknown"):
        rescore_run(run([]), parser="regex")
    with pytest.raises(ValueError, match="reward='kind' is unknown"):
        rescore_run(run(marks("1")), reward="kind")
    broken = dataclasses.replace(record("a"), outcome="infra_error")
    with pytest.raises(ValueError, match="'a' has outcome 'infra_error'"):
        rescore_run(run([broken]), reward="ungated")


def test_an_empty_run_can_be_rescored():
    again = rescore_run(run([]), reward="ungated")
    assert compare_scores(run([]), again)["accuracy"]["value"] is None
    assert "0 episodes" in table(compare_scores(run([]), again))


def test_the_summary_says_what_changed():
    looked = record("a", 1, retrievals=[retrieval(0, 1, 0.5)], initial_iou=0.0, relevant=(0,))
    original = rescore_run(run([looked, record("b", 0)]), reward="video_mtr").results
    summary = compare_scores(original, rescore_run(original, reward="ungated"))
    # video_mtr: 0.1, and 1.1. ungated: 0.5 + 0.1 + 0.1, and 1.1.
    assert summary["rescored"]["return_before"]["value"] == pytest.approx(0.6)
    assert summary["return"]["value"] == pytest.approx(0.9)
    assert summary["return"]["relevance"] == pytest.approx(0.25)
    assert summary["scorer"] == "rescored: reward ungated"
    assert summary["hash"] != original.card.hash == summary["rescored"]["from"]
    assert summary["card"]["protocol"]["scorer"] == summary["scorer"]
    assert "return         0.6000   0.9000" in table(summary)
    json.dumps(summary, allow_nan=False)


def test_malformed_turns_earn_no_format_under_any_preset():
    made = record("a", 0, retrievals=[final(None)])
    again = rescore_run(run([made]), reward="ungated").results.records[0]
    assert again.total_reward == pytest.approx(1.1)


def test_the_command_writes_elsewhere_and_changes_nothing(tmp_path, monkeypatch, capsys):
    runs = pytest.importorskip("benchmarks.runs")
    settings = {"max_turns": 3, "reward": make_reward("video_mtr").to_dict()}
    with runs.RunWriter(tmp_path / "run", card(settings=settings)) as writer:
        for made in marks("10"):
            writer.add(made.task["task_id"], made, {})
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    out = tmp_path / "rescored.json"
    command = ["rescore", str(tmp_path / "run"), "--reward", "ungated"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(out)])
    main()
    assert "scorer: rescored: reward ungated" in capsys.readouterr().out
    assert json.loads(out.read_text())["scorer"] == "rescored: reward ungated"
    inside = tmp_path / "run" / "summary.json"
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(inside)])
    assert main() == 2
    assert "lies in the run itself" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def spoken_run(directory):
    """A run on disk of one question answered well, and one answered in free words."""
    made = benchmark_runs.make_card(name="haystack", annotation={}, tasks=3)
    changed = {**make_reward("video_mtr").to_dict()}
    made = dataclasses.replace(
        made,
        protocol={
            **made.protocol,
            "settings": {**made.protocol["settings"], "reward": changed},
        },
    )
    settings = {**benchmark_runs.SETTINGS, "reward": changed, "max_turns": 2, "pool_size": 100}
    with RunWriter(directory, made) as writer:
        for name, outcome in (("a-1", "correct"), ("b-1", "unanswered")):
            each = benchmark_runs.make_record(name, outcome, card=made)
            turns = each.turns
            if outcome == "unanswered":
                turns = [turns[0], {**turns[1], "reply": "It is A.", "lenient_choice": 0}]
            each = dataclasses.replace(each, settings=settings, turns=turns)
            writer.add(name, each, {"frames_decoded": 7, "decode_s": 0.5})
        writer.fault("c-1", "the endpoint hangs")
    return directory


def rescore_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["rescore", *map(str, arguments)])
    return main()


def test_a_rescored_run_is_a_run(tmp_path, monkeypatch):
    original = spoken_run(tmp_path / "run")
    out = tmp_path / "lenient"
    rescore_command(monkeypatch, original, "--parser", "lenient", "--out", out)
    assert {path.name for path in out.iterdir()} >= {
        "card.json",
        "records.jsonl",
        "costs.jsonl",
        "summary.json",
    }
    before, after = read_run(original), read_run(out)
    assert after.card.protocol["scorer"] == "rescored: last reply read by lenient(tags)"
    assert after.card.policy["rescored_from"] == before.card.hash
    assert [made.outcome for made in before.records] == ["correct", "unanswered"]
    assert [made.outcome for made in after.records] == ["correct", "correct"]
    assert after.costs == before.costs and after.faults == before.faults
    summary = json.loads((out / "summary.json").read_text())
    assert summary["hash"] == after.card.hash
    assert (summary["accuracy"]["value"], summary["faults"]) == (1.0, 1)
    assert summary["rescored"]["changed"] == 1


def test_strict_and_lenient_are_compared_pairwise_across_the_scorer(tmp_path, monkeypatch):
    original = spoken_run(tmp_path / "run")
    out = tmp_path / "lenient"
    rescore_command(monkeypatch, original, "--parser", "lenient", "--out", out)
    a, b = read_run(original), read_run(out)
    with pytest.raises(CardMismatch, match="scorer"):
        compare(a, b)
    found = compare(a, b, across=("scorer",))
    assert found["difference"]["value"] == 0.5
    assert found["discordant"] == {"only_a": 0, "only_b": 1}
    assert found["across"] == {"scorer": ["strict", "rescored: last reply read by lenient(tags)"]}


def test_a_report_puts_a_run_and_its_rescored_ones_side_by_side(tmp_path, monkeypatch):
    original = spoken_run(tmp_path / "run")
    for name, *arguments in (("lenient", "--parser", "lenient"), ("paid", "--reward", "accuracy")):
        rescore_command(monkeypatch, original, *arguments, "--out", tmp_path / name)
    paths = [original, tmp_path / "lenient", tmp_path / "paid"]
    text = write_report(paths, tmp_path / "report")["report.md"].read_text(encoding="utf-8")
    assert "Sections A, B, C side by side" in text
    assert re.search(
        r"\| scorer \| strict \| rescored: last reply read by lenient\(tags\) "
        r"\| rescored: reward accuracy \|",
        text,
    )
    assert "| settings.reward.format | 0.1 | 0.1 | 0 |" in text
    # By accuracy alone, one of the two episodes is paid. Returns stand where rewards differ.
    paid = [line for line in text.splitlines() if line.startswith("| C | paid")][-1]
    assert paid.split(" | ")[-1].startswith("0.500 (")
    assert "mean return" in text
    text = write_report(paths[:2], tmp_path / "two")["report.md"].read_text(encoding="utf-8")
    assert "side by side" in text and "mean return" not in text


def test_two_rewards_of_one_run_are_compared_across_scorer_and_reward(tmp_path, monkeypatch):
    original = spoken_run(tmp_path / "run")
    for reward in ("ungated", "accuracy"):
        rescore_command(monkeypatch, original, "--reward", reward, "--out", tmp_path / reward)
    a, b = read_run(tmp_path / "ungated"), read_run(tmp_path / "accuracy")
    with pytest.raises(CardMismatch, match=r"settings\.reward"):
        compare(a, b, across=("scorer",))
    assert compare(a, b, across=("scorer", "settings.reward"))["difference"]["value"] == 0.0
    assert [made.total_reward for made in b.records] == [1.0, 0.0]


def test_a_directory_with_something_in_it_is_never_written_to(tmp_path, monkeypatch, capsys):
    original = spoken_run(tmp_path / "run")
    out = tmp_path / "other"
    out.mkdir()
    rescore_command(monkeypatch, original, "--reward", "accuracy", "--out", out)  # empty: fine
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert rescore_command(monkeypatch, original, "--reward", "ungated", "--out", out) == 2
    assert "other is not empty; name a new directory" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    rescued = ("--reward", "ungated", "--out", tmp_path / "file")
    assert rescore_command(monkeypatch, original, *rescued) == 2
    assert "file could not be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_costs_that_a_run_lacks_stay_unknown(tmp_path):
    rescored = rescore_run(run(marks("10")), reward="accuracy")
    write_rescored(tmp_path / "out", rescored, compare_scores(run(marks("10")), rescored))
    again = read_run(tmp_path / "out")
    assert again.records == rescored.results.records
    assert again.costs == {"q0": {"key": "q0"}, "q1": {"key": "q1"}}
