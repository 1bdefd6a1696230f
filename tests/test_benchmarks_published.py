"""Published rows: complete, quoted as printed, and never beside what they are not about."""

from __future__ import annotations

from benchmark_runs import make_card

from benchmarks.report.published import (
    BASE,
    BENCHMARKS,
    LIMIT,
    REWARD,
    ROWS,
    TRAINED,
    protocol_differences,
    published,
    refusal,
    unknown,
)


def find(benchmark, model, frames, *, variant="", group=None, place=None):
    rows = [
        row
        for row in published(benchmark, BENCHMARKS[benchmark].split)
        if (row.model, row.frames, row.variant, row.group) == (model, frames, variant, group)
        and place in (None, row.place)
    ]
    assert len({row.accuracy for row in rows}) == 1, rows
    return rows[0]


def protocol(**changes):
    return make_card(tasks=2700, **changes).protocol


def test_main_results_are_as_printed():
    assert find("videomme", BASE, 32).accuracy == 53.6
    assert find("egoschema", TRAINED, 80).accuracy == 68.8
    assert find("lvbench", TRAINED, 64).accuracy == 41.8
    assert find("longvideobench", BASE, 80).accuracy == 48.4
    assert find("mlvu", BASE, 64).accuracy == 41.8


def test_ablations_and_durations_are_as_printed():
    assert find("videomme", TRAINED, 64, group=("duration", "medium")).accuracy == 62.3
    assert find("lvbench", TRAINED, 80, variant="without the bi-level reward").accuracy == 37.7
    five = find("mlvu", TRAINED, 32, variant="turn limit 5", place=LIMIT)
    assert (five.accuracy, five.turns, five.mean_turns, five.latency_ms) == (47.4, 5, 3.2, 623)


def test_every_row_is_there_once_for_each_place():
    # 6 x 5 main, 4 x 3 durations, 3 x 2 reward, 4 x 2 turn limit, 2 x 3 of the small backbone
    assert len(ROWS) == 30 + 12 + 6 + 8 + 6
    keys = [(r.benchmark, r.model, r.frames, r.variant, r.group, r.place) for r in ROWS]
    assert len(set(keys)) == len(keys)
    assert {row.source for row in ROWS} == {"arXiv 2508.20478v2"}


def test_a_result_that_is_printed_twice_is_the_same_twice():
    by_key = {}
    for row in ROWS:
        key = (row.benchmark, row.model, row.frames, row.turns, row.variant, row.group)
        by_key.setdefault(key, {})[row.place] = row.accuracy
    twice = [places for places in by_key.values() if len(places) > 1]
    assert len(twice) == 4  # the full model at 80 frames, and the turn limit of 3
    assert all(len(set(places.values())) == 1 for places in twice)
    assert {place for places in twice for place in places} >= {LIMIT, REWARD}


def test_only_the_whole_plain_benchmark_is_comparable():
    assert refusal(protocol()) == ""
    assert "nothing is published" in refusal(protocol(name="haystack"))
    assert "nothing is published" in refusal(protocol(name="qvhighlights_segments"))
    assert "control 'blind'" in refusal(protocol(control="blind"))
    assert "this suite holds 12" in refusal(make_card(tasks=12).protocol)
    assert "'dev'" in refusal(protocol(name="mlvu", split="dev"))
    assert "not read from" in refusal(protocol(annotation={}))


def test_a_benchmark_that_lost_a_few_videos_is_still_the_benchmark():
    lvbench = {"name": "lvbench", "split": "test"}
    assert refusal(make_card(**lvbench, tasks=1492).protocol) == ""
    assert refusal(make_card(**lvbench, tasks=1300).protocol) != ""
    row = find("lvbench", TRAINED, 32)
    found = protocol_differences(row, make_card(**lvbench, tasks=1492).protocol)
    assert found == ["questions: 1549, here 1492"]


def test_differences_name_the_knob_and_both_values():
    row = find("videomme", TRAINED, 32)
    assert protocol_differences(row, protocol()) == []
    assert protocol_differences(row, protocol(), ["Video-MTR-7B"]) == []
    changed = protocol(frame_budget=64, max_turns=1, text_protocol="numeric")
    assert protocol_differences(row, changed, ["oracle"]) == [
        "model: Video-MTR (Qwen2.5-VL-7B), here oracle",
        "frames: 32, here 64",
        "turn limit: 3, here 1",
        "form of replies: tags, here numeric",
    ]
    options = {"shuffle_options": 7, "subtitles": "shown"}
    assert protocol_differences(row, protocol(options=options)) == [
        "order of options: as annotated, here shuffled by seed 7",
        "subtitles: without subtitles, here shown",
    ]


def test_subtitles_are_a_difference_only_where_the_paper_says_that_it_had_none():
    for benchmark, known in BENCHMARKS.items():
        card = {"name": benchmark, "split": known.split, "tasks": known.questions}
        for options, says in (
            ({"subtitles": "none"}, False),
            ({}, False),
            ({"subtitles": "shown"}, True),
        ):
            found = protocol_differences(
                find(benchmark, TRAINED, 32), make_card(**card, options=options).protocol
            )
            stated = benchmark == "videomme"
            assert found == (
                ["subtitles: without subtitles, here shown"] if says and stated else []
            )
    shown = make_card(name="mlvu", options={"subtitles": "shown"}).protocol
    assert "subtitles (here shown)" in unknown(shown)


def test_a_single_look_differs_from_an_overview():
    row = find("videomme", BASE, 32)
    assert protocol_differences(row, protocol()) == [
        "turn limit: 1, here 3",
        "overview frames: 32, here 16",
    ]
    assert protocol_differences(row, protocol(max_turns=1, overview_frames=32)) == []


def test_what_the_paper_leaves_open_is_named_with_what_it_is_here():
    left_open = unknown(protocol())
    assert "resolution of the frames (here 224 x 224)" in left_open
    assert not any(line.startswith("subtitles") for line in left_open)
    assert "subtitles (here none)" in unknown(make_card(name="mlvu").protocol)
    assert "decoder (here not recorded)" in unknown({})


def test_benchmarks_are_those_of_the_registry_with_its_splits_and_counts():
    from benchmarks.registry import find_dataset

    for name, benchmark in BENCHMARKS.items():
        found = find_dataset(name)
        assert (found.title, found.default_split) == (benchmark.title, benchmark.split)
        assert found.splits[benchmark.split].tasks == benchmark.questions
