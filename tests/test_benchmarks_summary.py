"""Summaries: numbers by hand, real episodes, cost, behaviour, budget curves, empty runs."""

from __future__ import annotations

import dataclasses
import json
import random
import time

import gymnasium as gym
import pytest
from benchmark_records import FakeRun, card, final, marks, record, retrieval, run

from agents.scripted import make_agent
from benchmarks.card import CardMismatch, make_card
from benchmarks.datasets.videomme import VIDEOMME
from benchmarks.evaluate import _lines
from benchmarks.registry import dataset_of
from benchmarks.scores.behaviour import behaviour, costs
from benchmarks.scores.grounding import grounding
from benchmarks.scores.summary import Results, budget_curve, summarize


@dataclasses.dataclass(frozen=True)
class FakeDataset:
    """The two things of ``Dataset`` that a summary needs."""

    overall: str = "micro"

    @staticmethod
    def groups(task):
        return {"task_type": tuple(task["task_types"])}


MLVU = FakeDataset("macro:task_type")


def test_an_empty_run_has_a_summary():
    summary = summarize(run([]))
    nothing = {"value": None, "low": None, "high": None}
    assert summary["accuracy"] == summary["accuracy_micro"] == nothing
    assert summary["lenient_accuracy"] == nothing
    assert summary["accuracy_answered"] == {**nothing, "n": 0}
    assert (summary["episodes"], summary["scored"], summary["videos"]) == (0, 0, 0)
    assert summary["groups"] == {} and summary["grounding"] is None
    assert summary["chance"] is None and summary["answered"] is None
    assert set(summary["cost"].values()) == set(summary["behaviour"].values()) == {None}
    json.dumps(summary, allow_nan=False)
    assert summarize(run([]), MLVU)["accuracy"] == nothing


def test_a_run_whose_replies_were_mostly_not_read_says_so_with_an_example():
    fine = [record(f"f{i}") for i in range(2)]
    odd = [record(f"o{i}", None) for i in range(3)]
    for each in odd:
        each.turns[-1]["reply"] = "B" * 1000 + "</think>"
    assert summarize(run([*fine, *odd[:2]]))["trouble"] == ""
    said = summarize(run([*fine, *odd]))["trouble"]
    assert (
        said.startswith("3 of 5 episodes are unanswered (3)")
        and "not read as an action (3)" in said
    )
    assert "BBB ... BBB" in said and "</think>': no action." in said and len(said) < 500
    for each in odd:
        each.turns[-1].update(refused="context", reply="")
    said = summarize(run([*fine, *odd]))["trouble"]
    assert said.endswith("the endpoint refused 3 of 3 such turns.")
    assert "warning: 3 of 5" in "\n".join(_lines({**summarize(run(odd + fine)), "directory": ""}))


def test_the_keys_are_those_that_reports_read():
    summary = summarize(run(marks("10", types=("a",), segments=[(0, 10)])))
    assert {"format", "hash", "protocol_hash", "suite", "policy", "control", "card"} <= set(summary)
    assert summary["suite"] == {"name": "made-up", "split": "test"}
    assert summary["hash"] == card().hash
    row = summary["groups"]["task_type"]["a"]
    assert set(row) == {"value", "low", "high", "n", "lenient", "answered"}
    assert set(row["answered"]) == {"value", "low", "high", "n"}
    assert set(summary["grounding"]) == {
        "mIoU",
        "mIoP",
        "IoU@0.3",
        "IoU@0.5",
        "IoU@0.7",
        "IoP@0.3",
        "IoP@0.5",
        "Acc@GQA",
        "ungrounded_given_correct",
        "predicted",
        "set_iou",
        "n",
        "official",
    }
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_official_overall_stands_beside_the_micro_one():
    records = [*marks("0000", "a", types=("plotQA",)), *marks("11", "b", types=("count",))]
    summary = summarize(run(records), MLVU)
    assert summary["accuracy"]["value"] == 0.5
    assert summary["accuracy_micro"]["value"] == pytest.approx(1 / 3)
    assert summary["overall"] == "macro:task_type"
    assert summary["accuracy"]["low"] <= 0.5 <= summary["accuracy"]["high"]
    rows = summary["groups"]["task_type"]
    assert (rows["plotQA"]["value"], rows["plotQA"]["n"]) == (0.0, 4)
    assert (rows["count"]["value"], rows["count"]["n"]) == (1.0, 2)


def test_without_a_dataset_groups_are_task_types_and_the_overall_is_micro():
    records = [*marks("00", "a", types=("x", "y")), *marks("1", "b", types=("y",))]
    summary = summarize(run(records))
    assert {k: row["n"] for k, row in summary["groups"]["task_type"].items()} == {"x": 2, "y": 3}
    assert summary["accuracy"]["value"] == summary["accuracy_micro"]["value"]
    assert summarize(run(marks("01")))["groups"] == {}


def test_strict_and_lenient_are_never_mixed():
    records = [*marks("10"), record("z", None, reply="It is A.", lenient_choice=0, types=("x",))]
    summary = summarize(run(records))
    assert summary["accuracy"]["value"] == pytest.approx(1 / 3)
    assert summary["lenient_accuracy"]["value"] == pytest.approx(2 / 3)
    assert summary["groups"]["task_type"]["x"]["value"] == 0.0
    assert summary["groups"]["task_type"]["x"]["lenient"] == 1.0


def test_unanswered_and_unscored_episodes_are_told_apart():
    records = [*marks("10--", "a"), *marks("11", "b", expected=None)]
    summary = summarize(run(records))
    assert (summary["episodes"], summary["scored"]) == (6, 4)
    assert summary["accuracy"]["value"] == 0.25
    assert summary["accuracy_answered"]["value"] == 0.5
    assert summary["answered"] == pytest.approx(4 / 6)
    assert summary["behaviour"]["unanswered_rate"] == pytest.approx(2 / 6)


def test_only_faults_that_were_not_made_good_count():
    faults = [{"key": "q0"}, {"key": "lost"}, {"key": "lost"}]
    found = summarize(FakeRun(card(), marks("1"), {}, faults))
    assert found["faults"] == 1


def test_chance_is_that_of_even_guesses():
    records = [record("a", options=4), record("b", options=2), record("c", None, expected=None)]
    assert summarize(run(records))["chance"] == pytest.approx(0.375)


def test_intervals_are_clustered_by_video():
    alone = summarize(run(marks("1110" * 20)))["accuracy"]
    records = [
        record(f"{v}-{i}", 0 if v % 4 else 1, video=f"v{v}") for v in range(20) for i in range(4)
    ]
    together = summarize(run(records))
    assert together["videos"] == 20
    assert together["accuracy"]["value"] == alone["value"] == 0.75
    width = together["accuracy"]["high"] - together["accuracy"]["low"]
    assert width > 1.7 * (alone["high"] - alone["low"])


def test_the_order_of_records_moves_no_number():
    records = [
        record(f"q{i}", i % 3, video=f"v{i % 7}", types=(f"t{i % 2}",), segments=[(0, 10 + i)])
        for i in range(40)
    ]
    mixed = list(records)
    random.Random(0).shuffle(mixed)
    assert summarize(run(mixed)) == summarize(run(records))
    assert summarize(run(mixed), seed=1)["accuracy"] != summarize(run(records))["accuracy"]


def test_grounding_counts_questions_with_windows():
    # Ten cells of ten seconds. Predicted: 0-20; none; 40-50 after 0-100.
    records = [
        record("a", 0, segments=[(0, 10)], retrievals=[retrieval(0, 1, 0.5)], initial_iou=0.25),
        record("b", 0, segments=[(0, 10)], initial_iou=0.5),
        record("c", 1, segments=[(40, 50)], retrievals=[retrieval(0, 9), retrieval(4, 4, 1.0)]),
        record("d", 0),
    ]
    found = summarize(run(records))["grounding"]
    assert found["n"] == 3
    assert {k: v["value"] for k, v in found.items() if k not in ("n", "official")} == {
        "mIoU": pytest.approx((0.5 + 0 + 1) / 3),
        "mIoP": pytest.approx((0.5 + 0 + 1) / 3),
        "IoU@0.3": pytest.approx(2 / 3),
        "IoU@0.5": pytest.approx(2 / 3),
        "IoU@0.7": pytest.approx(1 / 3),
        "IoP@0.3": pytest.approx(2 / 3),
        "IoP@0.5": pytest.approx(2 / 3),
        "Acc@GQA": pytest.approx(1 / 3),
        "ungrounded_given_correct": 0.5,
        "predicted": pytest.approx(2 / 3),
        "set_iou": pytest.approx((0.5 + 0.5 + 1.0) / 3),
    }
    assert summarize(run(marks("1")))["grounding"] is None


def test_groups_have_the_accuracy_of_the_answered_as_lvbench_counts():
    records = [
        *marks("10--", "a", types=("x", "y")),
        *marks("1", "b", types=("y",)),
        *marks("--", "c", types=("z",)),
        *marks("1", "d", types=("z",), expected=None),  # answered, but without a public answer
    ]
    summary = summarize(run(records))
    rows = summary["groups"]["task_type"]
    assert {k: (row["value"], row["n"]) for k, row in rows.items()} == {
        "x": (0.25, 4),
        "y": (0.4, 5),
        "z": (0.0, 2),
    }
    answered = {k: (row["answered"]["value"], row["answered"]["n"]) for k, row in rows.items()}
    assert answered == {"x": (0.5, 2), "y": (pytest.approx(2 / 3), 3), "z": (None, 0)}
    assert rows["x"]["answered"]["low"] < 0.5 < rows["x"]["answered"]["high"]
    assert rows["z"]["answered"]["low"] is rows["z"]["answered"]["high"] is None
    assert summary["accuracy"]["value"] == pytest.approx(2 / 7)
    assert summary["accuracy_answered"]["value"] == pytest.approx(2 / 3)
    assert summary["accuracy_answered"]["n"] == 3


def test_official_grounding_leaves_out_what_has_no_prediction():
    # The questions of the test above, and the function that follows the script of NExT-GQA.
    records = [
        record("a", 0, segments=[(0, 10)], retrievals=[retrieval(0, 1, 0.5)], initial_iou=0.25),
        record("b", 0, segments=[(0, 10)], initial_iou=0.5),
        record("c", 1, segments=[(40, 50)], retrievals=[retrieval(0, 9), retrieval(4, 4, 1.0)]),
    ]
    found = summarize(run(records))["grounding"]
    official = found["official"]
    assert set(official) == set(found) - {"official"}
    assert (found["n"], official["n"]) == (3, 2)
    windows = [(0, 20), None, (40, 50)]
    segments = [[(0, 10)], [(0, 10)], [(40, 50)]]
    script = grounding(windows, segments, [True, True, False], skip_missing=True)
    assert {name: official[name]["value"] for name in script} == pytest.approx(script)
    assert official["mIoU"]["value"] == 0.75 and official["Acc@GQA"]["value"] == 0.5
    assert official["ungrounded_given_correct"]["value"] == 0.0
    assert official["predicted"]["value"] == pytest.approx(2 / 3)  # of all
    assert official["set_iou"]["value"] == 0.75
    assert official["mIoU"]["low"] < 0.75 < official["mIoU"]["high"]


def test_official_grounding_takes_spans_as_annotated_where_they_leave_the_video():
    cut = {"annotated_segments": [[90, 102.5]]}  # of a video of 100 s
    records = [record("a", 0, segments=[(90, 100)], retrievals=[retrieval(9, 9)], meta=cut)]
    found = summarize(run(records))["grounding"]
    assert found["mIoU"]["value"] == 1.0
    assert found["official"]["mIoU"]["value"] == 10 / 12.5
    assert found["official"]["mIoP"]["value"] == 1.0


def test_official_grounding_is_null_where_nothing_was_predicted():
    found = summarize(run([record("a", 0, segments=[(0, 10)])]))["grounding"]
    assert found["official"] is None
    assert found["mIoU"]["value"] == 0.0


def test_official_grounding_weighs_a_question_once_however_many_rotations_predict():
    def rotation(task_id, r, cells):
        looked = [retrieval(cell, cell) for cell in cells]
        return record(
            f"{task_id}@{r}", r, expected=r, options=2, video=task_id,
            meta={"circular": [task_id, r]}, segments=[(0, 10)], retrievals=looked,
        )  # fmt: skip

    records = [rotation("a", 0, [0]), rotation("a", 1, []), rotation("b", 0, [5])]
    records.append(rotation("b", 1, [5]))
    found = summarize(run(records, control="circular"))["grounding"]
    # a: IoU 1 in one rotation and none in the other; b: 0 in both.
    assert found["mIoU"]["value"] == 0.25 and found["Acc@GQA"]["value"] == 0.0
    assert found["official"]["mIoU"]["value"] == 0.5
    assert found["official"]["Acc@GQA"]["value"] == 0.5
    assert found["official"]["predicted"]["value"] == 0.75


def test_grounding_of_unscored_questions_counts_and_their_answer_does_not():
    records = [record("a", 0, expected=None, segments=[(0, 10)], retrievals=[retrieval(0, 0)])]
    found = summarize(run(records))["grounding"]
    assert found["mIoU"]["value"] == 1.0
    assert found["Acc@GQA"]["value"] is found["ungrounded_given_correct"]["value"] is None


def test_under_the_circular_control_a_question_is_grounded_in_every_rotation_or_not():
    def rotation(task_id, r, cell):
        meta = {"circular": [task_id, r]}
        looked = [retrieval(cell, cell)]
        return record(
            f"{task_id}@{r}", r, expected=r, options=2, video=task_id, meta=meta,
            segments=[(0, 10)], retrievals=looked,
        )  # fmt: skip

    records = [rotation("a", 0, 0), rotation("a", 1, 0), rotation("b", 0, 0), rotation("b", 1, 5)]
    summary = summarize(run(records, control="circular"))
    assert (summary["episodes"], summary["questions"], summary["scored"]) == (4, 2, 2)
    assert summary["accuracy"]["value"] == 1.0
    assert summary["chance"] == 0.25
    assert summary["grounding"]["n"] == 2
    assert summary["grounding"]["mIoU"]["value"] == 0.75
    assert summary["grounding"]["Acc@GQA"]["value"] == 0.5
    assert summary["grounding"]["ungrounded_given_correct"]["value"] == 0.25
    assert summarize(run(records[1:]))["incomplete"] == 1


def test_costs_are_means_over_what_was_measured():
    records = [
        record("a", retrievals=[retrieval(0, 1)], frames=24),
        record("b", frames=16),
    ]
    lines = {
        "a": {"frames_decoded": 30, "prompt_tokens": 100, "decode_s": 0.5, "prefill_s": None},
        "b": {"frames_decoded": 10, "prompt_tokens": None, "decode_s": 1.5, "prefill_s": None},
        "of another run": {"frames_decoded": 1000},
    }
    assert costs(records, lines) == {
        "turns": 1.5,
        "frames_shown": 20.0,
        "frames_decoded": 20.0,
        "visual_tokens": None,
        "prompt_tokens": 100.0,
        "reply_tokens": None,
        "decode_s": 1.0,
        "prefill_s": None,
        "generate_s": None,
    }


def test_behaviour_by_hand():
    records = [
        # Three turns: twice the same interval of three cells, the first view hits cell 2.
        record("a", 0, relevant=(2,), retrievals=[retrieval(1, 3), retrieval(1, 3)]),
        # The interval holds a relevant cell, but the frames shown do not.
        record("b", None, relevant=(5,), retrievals=[retrieval(0, 9, shown=(0, 9)), final(None)]),
        record("c", 1),
    ]
    assert behaviour(records) == {
        "retrieval_rate": 3 / 7,
        "episodes_retrieving": pytest.approx(2 / 3),
        "malformed_rate": pytest.approx(2 / 7),
        "repeat_rate": pytest.approx(1 / 3),
        "interval_share": pytest.approx((0.3 + 0.3 + 1.0) / 3),
        "unanswered_rate": pytest.approx(1 / 3),
        "first_hit_rate": 0.5,
    }


def test_behaviour_without_retrievals_has_no_rates_of_them():
    found = behaviour(marks("10"))
    assert found["retrieval_rate"] == 0.0
    assert found["repeat_rate"] is found["interval_share"] is found["first_hit_rate"] is None


def haystack_run(name, episodes=12, **settings):
    env = gym.make(
        "gym_longvideo:LongVideoQA-v0",
        frame_size=8,
        suite_options={"families": "needle"},
        **settings,
    )
    base, agent, records = env.unwrapped, make_agent(name), []
    for index in range(episodes):
        observation, _ = env.reset(options={"index": index})
        agent.reset(index)
        over = False
        while not over:
            observation, _, over, truncated, _ = env.step(agent.act(base, observation))
            assert not truncated
        records.append(base.record)
    made = make_card(
        env,
        base.suite,
        protocol="numeric",
        system_prompt="",
        control="none",
        episodes=episodes,
        seed=0,
        policy={"kind": "scripted", "name": name},
    )
    return Results(made, tuple(records))


def test_the_oracle_on_haystack():
    played = haystack_run("oracle")
    summary = summarize(played)
    right = [record.outcome == "correct" for record in played.records]
    assert summary["accuracy"]["value"] == pytest.approx(sum(right) / 12)
    assert summary["accuracy"]["value"] > 0.9
    assert summary["behaviour"]["first_hit_rate"] == 1.0
    assert summary["grounding"]["predicted"]["value"] == pytest.approx(
        sum(any(turn["op"] == "retrieve" for turn in r.turns) for r in played.records) / 12
    )
    assert summary["cost"]["turns"] == pytest.approx(
        sum(len(record.turns) for record in played.records) / 12
    )
    assert summary["return"]["value"] == pytest.approx(
        sum(record.total_reward for record in played.records) / 12
    )
    assert dataset_of(played.card) is None
    json.dumps(summary, allow_nan=False)


def summary_at(frames, accuracy, policy="someone", **protocol):
    summary = summarize(
        run(
            marks("1" * accuracy + "0" * (10 - accuracy), frames=frames),
            policy,
            **{"settings": {"frame_budget": frames, "max_turns": 3}, **protocol},
        )
    )
    return json.loads(json.dumps(summary))


def test_a_budget_curve_has_the_mean_accuracy_as_its_area():
    curve = budget_curve([summary_at(64, 6), summary_at(16, 4), summary_at(32, 5)])
    assert [point["frames"] for point in curve["points"]] == [16, 32, 64]
    assert [point["accuracy"]["value"] for point in curve["points"]] == [0.4, 0.5, 0.6]
    # (16 / 48) * 0.45 + (32 / 48) * 0.55
    assert curve["auc"] == pytest.approx((0.45 + 2 * 0.55) / 3)


def test_a_budget_curve_of_one_run_or_none_has_no_area():
    assert budget_curve([]) == {"points": [], "auc": None}
    assert budget_curve([summarize(run([]))]) == {"points": [], "auc": None}
    assert budget_curve([summary_at(16, 4)])["auc"] is None


def test_a_budget_curve_is_of_one_policy_under_one_protocol():
    with pytest.raises(CardMismatch, match=r'policy\.name: "someone" != "another"'):
        budget_curve([summary_at(16, 4), summary_at(32, 4, "another")])
    with pytest.raises(CardMismatch, match='control: "none" != "blind"'):
        budget_curve([summary_at(16, 4), summary_at(32, 4, control="blind")])


def test_the_benchmark_of_a_card_is_known_by_its_annotation():
    suite = {"name": "videomme", "annotation": {"test.parquet": "0123456789ab"}}
    assert dataset_of(card(suite=suite)) is VIDEOMME
    assert dataset_of(card(suite={"name": "videomme", "annotation": {}})) is None


def test_a_summary_of_2700_questions_takes_about_two_seconds():
    records = [
        record(
            f"{v:03d}-{i}",
            (v * 7 + i) % 3,
            video=f"{v:03d}",
            types=(f"type {(v + i) % 12}",),
            meta={
                "duration_group": ("short", "medium", "long")[v // 300],
                "domain": f"domain {v % 6}",
                "sub_category": f"category {v % 30}",
            },
            segments=[(0, 30)],
            retrievals=[retrieval(v % 5, v % 5 + 2, 0.5)],
        )
        for v in range(900)
        for i in range(3)
    ]
    summarize(run(records[:30]), VIDEOMME)  # imports
    start = time.process_time()
    summary = summarize(run(records), VIDEOMME)
    assert time.process_time() - start < 3.0
    assert sum(len(rows) for rows in summary["groups"].values()) == 3 + 6 + 30 + 12
