"""The document of a report: headings, sentences, tables, plots and examples, in their order.

It is built once and rendered twice (Markdown leaves out plots and examples), so that no rendering
can say something that the other does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.registry import dataset_of
from benchmarks.report.cells import Table, counted, percent
from benchmarks.report.examples import Example, make_example, pick
from benchmarks.report.isolates import foreign
from benchmarks.report.plots import Point, Series, plot_budget, plot_cost, plot_groups
from benchmarks.report.published import refusal, unknown
from benchmarks.report.sections import (
    Entry,
    Section,
    budget_families,
    frame_budget,
    knob_differences,
    side_by_side,
)
from benchmarks.report.tables import (
    COST,
    accuracy_table,
    behaviour_table,
    chance_level,
    cost_table,
    difference_table,
    grounding_table,
    group_names,
    group_table,
    group_values,
    knob_table,
    lined_up_table,
    published_table,
    run_table,
    skipping,
)
from benchmarks.scores.summary import budget_curve

TITLE = "Evaluation report"
FEW = 40  # videos below which a percentile bootstrap is said to be too narrow
PLOTTED = 40  # values of a grouping beyond which it has a table and no plot


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    tone: Literal["plain", "note", "warning"] = "plain"


@dataclass(frozen=True)
class Plot:
    """A plot: an ``<svg>`` element, and what it shows."""

    svg: str
    caption: str


Block = Heading | Text | Table | Plot | Example


def build(sections: Sequence[Section], *, examples: int) -> list[Block]:
    """Return the blocks of a report.

    Args:
        sections: The runs, by protocol.
        examples: Episodes shown of each run that were right, and as many that were not.
    """
    blocks: list[Block] = [Heading(1, TITLE)]
    blocks += _warnings(sections)
    blocks.append(run_table(sections))
    if len(sections) > 1:
        blocks.append(
            Text(
                f"The runs follow {len(sections)} protocols. Those of one protocol share a "
                "section; numbers of different sections are no comparison, except under the list "
                "of what differs.",
                "note",
            )
        )
    for group in side_by_side(sections):
        blocks += _lined_up(group)
    for section in sections:
        blocks += _section(section, alone=len(sections) == 1)
    blocks += _examples(sections, examples)
    blocks += _notes()
    return blocks


def _warnings(sections: Sequence[Section]) -> Iterator[Block]:
    for section in sections:
        for entry in section.entries:
            name = foreign(entry.name)
            if entry.faults:
                yield Text(
                    f"{name}: {entry.faults} of {counted(entry.expected, 'episode')} broke "
                    f"({_first_fault(entry)}). Faults are no wrong answers and are in no number "
                    "below; play them by giving the same evaluation again.",
                    "warning",
                )
            if entry.summary["trouble"]:
                yield Text(f"{name}: {foreign(entry.summary['trouble'])}", "warning")
            if not entry.complete:
                yield Text(
                    f"{name} is incomplete: {entry.episodes:,} of "
                    f"{counted(entry.expected, 'episode')} have ended. Its numbers are of those.",
                    "warning",
                )


def _first_fault(entry: Entry) -> str:
    if not entry.run.faults:
        return "see faults.jsonl"
    return f"the last: {foreign(str(entry.run.faults[-1].get('error', ''))[:200])}"


def _section(section: Section, *, alone: bool) -> Iterator[Block]:
    title = section.title if alone else f"Section {section.letter}: {section.title}"
    yield Heading(2, title)
    yield Text(_protocol(section))
    yield from _cautions(section)
    yield accuracy_table(section)
    if len(section.entries) > 1:
        yield difference_table(section)
    level = chance_level(section)
    for group in group_names(section):
        values = group_values(section, group)
        if len(values) < 2:
            continue  # one group is everything once more
        if len(values) <= PLOTTED:
            svg = _group_plot(section, group, values, level)
            if svg:
                yield Plot(svg, f"Accuracy by {group.replace('_', ' ')}")
        yield group_table(section, group)
        if skipping(section) is not None:
            yield group_table(section, group, answered=True)
    yield from _published(section)
    if (table := grounding_table(section)) is not None:
        yield Heading(3, "Grounding")
        yield table
        if section.suite[0] == "nextgqa":
            yield from filter(None, [grounding_table(section, official=True)])
    yield Heading(3, "Cost and behaviour")
    if len(section.entries) > 1 and (panels := _panels(section)):
        names = [entry.label for entry in section.entries]
        svg = plot_cost(names, panels, title=f"cost {section.letter}")
        yield Plot(svg, "Mean cost of an episode")
    yield cost_table(section)
    yield behaviour_table(section)


def _protocol(section: Section) -> str:
    protocol, settings = section.protocol, section.protocol.get("settings", {})
    height, width = (*settings.get("frame_size", ()), "?", "?")[:2]
    parts = [
        f"Protocol {section.card.protocol_hash}",
        f"{counted(section.entries[0].expected, 'episode')}{_whole(section)}",
        f"budget of {settings.get('frame_budget')} frames ({settings.get('overview_frames')} in "
        f"the overview, {settings.get('frames_per_retrieval')} a retrieval)",
        f"at most {settings.get('max_turns')} turn{'' if settings.get('max_turns') == 1 else 's'}",
        f"pool of {settings.get('pool_size')}",
        f"frames of {width} x {height} pixels",
        f"seek {foreign(settings.get('seek'))} ({foreign(settings.get('backend'))})",
        f"text protocol {foreign(protocol.get('text_protocol'))}",
        f"scorer {foreign(protocol.get('scorer'))}",
    ]
    return ", ".join(parts) + ". Every knob is in card.json of each run."


def _whole(section: Section) -> str:
    """Say how many questions the published split has, where these are not all of them."""
    dataset = dataset_of(section.card)
    tasks = dataset.splits[section.suite[1]].tasks if dataset is not None else None
    if dataset is None or tasks in (None, int(section.protocol["suite"]["tasks"])):
        return ""
    return f" (the whole of {dataset.title}, {section.suite[1]}, has {tasks:,} questions)"


def _cautions(section: Section) -> Iterator[Block]:
    """Say what the accuracies of a section are a mean of, and which of them mean little."""
    overall = str(section.entries[0].summary.get("overall", "micro"))
    if overall != "micro":
        group = overall.partition(":")[2].replace("_", " ")
        yield Text(
            f"Accuracy is the unweighted mean over {group}, as the benchmark's authors report it; "
            "micro accuracy is the mean over questions.",
            "note",
        )
    title = skipping(section)
    if title is not None:
        text = (
            f"The script of {title} leaves unanswered questions out. Here they are wrong, so that "
            'nobody gains by silence; "of answered" is what the script gives.'
        )
        if section.suite[0] == "nextgqa":
            text += (
                " Annotated spans that end after the video's duration, which is in whole seconds, "
                "are cut there; the script takes them as they are, and so does the table of its "
                "measures."
            )
        yield Text(text, "note")
    oracles = [foreign(entry.name) for entry in section.entries if "oracle" in entry.policy]
    if oracles and section.protocol["suite"].get("annotation"):
        yield Text(
            f"{', '.join(oracles)}: an oracle copies the annotated answer here. It checks the "
            "plumbing and says nothing about what can be seen.",
            "note",
        )
    videos = min(int(entry.summary["videos"]) for entry in section.entries)
    if videos < FEW:
        yield Text(
            f"{counted(videos, 'video')} {'is' if videos == 1 else 'are'} few: intervals from so "
            "few are too narrow, and should be read as a lower bound of the uncertainty.",
            "note",
        )


def _group_plot(
    section: Section, group: str, values: Sequence[str], chance: float | None
) -> str | None:
    series = []
    for entry in section.entries:
        found = entry.summary["groups"].get(group, {})
        series.append(Series(entry.label, tuple(_point(found.get(value)) for value in values)))
    if all(point is None for one in series for point in one.points):
        return None
    title = f"{group} {section.letter}"
    return plot_groups(values, series, title=title, label=group.replace("_", " "), chance=chance)


def _point(found: Any, n: int | None = None) -> Point | None:
    if not found or found.get("value") is None:
        return None
    low, high = found.get("low"), found.get("high")
    value = found["value"]
    return Point(
        value,
        value if low is None else low,
        value if high is None else high,
        int(found["n"] if n is None else n),
    )


def _panels(section: Section) -> dict[str, list[float | None]]:
    panels = {}
    for name, heading, _ in COST:
        means = [entry.summary["cost"].get(name) for entry in section.entries]
        if any(mean is not None for mean in means):
            panels[heading] = means
    return panels


def _published(section: Section) -> Iterator[Block]:
    if reason := refusal(section.protocol):
        yield Text(f"No published row stands beside these runs: {foreign(reason)}.", "note")
        return
    yield Heading(3, "Beside published results")
    yield Text(
        "Published rows are quoted, not measured here. Each says in which known knobs these runs "
        "differ from it. The paper leaves open: "
        f"{', '.join(map(foreign, unknown(section.protocol)))}.",
        "note",
    )
    yield published_table(section)


def _lined_up(group: Sequence[Section]) -> Iterator[Block]:
    letters = ", ".join(section.letter for section in group)
    yield Heading(2, f"Sections {letters} side by side")
    knobs = knob_differences(group)
    yield Text(
        f"These runs ask the same questions under protocols that differ in {len(knobs)} "
        f"knob{'' if len(knobs) == 1 else 's'}. Any of them may be why the numbers differ.",
        "note",
    )
    yield knob_table(group)
    families = budget_families(group)
    if families:
        budgets = sorted({frame_budget(s) for family in families for s, _ in family})
        series = []
        for i, family in enumerate(families):
            by_budget = {frame_budget(s): entry for s, entry in family}
            entries = [by_budget.get(budget) for budget in budgets]
            points = (
                None if e is None else _point(e.summary["accuracy"], e.summary["scored"])
                for e in entries
            )
            series.append(Series(_family_name(families, i), tuple(points)))
        if any(point for one in series for point in one.points):
            svg = plot_budget(budgets, series, title=f"budget {letters}")
            yield Plot(svg, "Accuracy against the frame budget")
    yield lined_up_table(group)
    areas = []
    for i, family in enumerate(families):
        area = budget_curve([entry.summary for _, entry in family])["auc"]
        if area is not None:
            policy = family[0][1].policy
            rest = _family_name(families, i).removeprefix(policy)
            areas.append(f"{foreign(policy)}{rest} {percent(area)}")
    if areas:
        yield Text(
            f"Mean accuracy over the frames shown (area under the curve), %: {'; '.join(areas)}."
        )


def _family_name(families: Sequence[Sequence[tuple[Section, Entry]]], i: int) -> str:
    """Name a family by its policy, and by its sections if the policy has several families."""
    policy = families[i][0][1].policy
    flagged = any(entry.flags for _, entry in families[i])
    name = f"{policy} [see the flags below]" if flagged else policy
    if sum(family[0][1].policy == policy for family in families) < 2:
        return name
    return f"{name} (sections {', '.join(section.letter for section, _ in families[i])})"


def _examples(sections: Sequence[Section], count: int) -> Iterator[Block]:
    if count < 1:
        return
    yield Heading(2, "Examples")
    yield Text(
        "Episodes drawn by lot (by a hash of their ids) from those that were right and from those "
        "that were not; nobody picked them.",
        "note",
    )
    for section in sections:
        for entry in section.entries:
            for record in pick(entry.run.records, count):
                yield make_example(entry.name, record)


def _notes() -> Iterator[Block]:
    yield Heading(2, "How to read this")
    yield Text(
        "Accuracy is the mean that the benchmark's authors report, under the strict parse; a "
        "question without an answer is wrong, also where their own script leaves it out (LVBench, "
        "NExT-GQA: see the columns and tables of answered questions). Lenient reads a reply "
        "forgivingly and is never mixed with it. Intervals are 95 % percentile bootstrap "
        "intervals that resample videos, because questions about one video are not independent; "
        "where all videos agree, the end is the exact binomial bound. n "
        "is the number of scored questions. A dash is what was not measured or does not exist. "
        "Published numbers come without intervals."
    )
