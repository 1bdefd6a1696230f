"""Tables of a report, as a reader sees them: text in cells, intervals and n beside every share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.compare import VIDEOS, compare
from benchmarks.registry import dataset_of
from benchmarks.report.cells import DASH, Table, natural, number, percent
from benchmarks.report.isolates import foreign
from benchmarks.report.published import (
    BENCHMARKS,
    SOURCE,
    Published,
    protocol_differences,
    published,
)
from benchmarks.report.sections import Entry, Section, frame_budget, knob_differences

GROUNDING = (
    # name in the summary, heading, whether it is a share
    ("Acc@GQA", "Acc@GQA", True),
    ("mIoP", "mIoP", True),
    ("IoP@0.3", "IoP@0.3", True),
    ("IoP@0.5", "IoP@0.5", True),
    ("mIoU", "mIoU", True),
    ("IoU@0.3", "IoU@0.3", True),
    ("IoU@0.5", "IoU@0.5", True),
    ("IoU@0.7", "IoU@0.7", True),
    ("set_iou", "best frame-set IoU", True),
    ("ungrounded_given_correct", "ungrounded, given correct", True),
    ("predicted", "with a retrieval", True),
)
COST = (
    ("turns", "turns", 2),
    ("frames_shown", "frames shown", 1),
    ("frames_decoded", "frames decoded", 1),
    ("visual_tokens", "visual tokens", 0),
    ("prompt_tokens", "prompt tokens", 0),
    ("reply_tokens", "reply tokens", 0),
    ("decode_s", "decode, s", 3),
    ("prefill_s", "prefill, s", 3),
    ("generate_s", "generate, s", 3),
)
BEHAVIOUR = (
    ("retrieval_rate", "turns that retrieve"),
    ("episodes_retrieving", "episodes that retrieve"),
    ("first_hit_rate", "first retrieval hits"),
    ("interval_share", "width of a retrieval / pool"),
    ("repeat_rate", "repeated retrievals"),
    ("malformed_rate", "malformed turns"),
    ("unanswered_rate", "unanswered episodes"),
)


# Benchmarks whose own scripts leave out questions that have no prediction.
SKIPPING = ("lvbench", "nextgqa")
# Not in the script of NExT-GQA.
UNOFFICIAL = ("IoU@0.7", "set_iou", "ungrounded_given_correct")


def labelled(entry: Entry) -> str:
    """Return the label of a run, of which the name alone is foreign."""
    return foreign(entry.name) + entry.label.removeprefix(entry.name)


def skipping(section: Section) -> str | None:
    """Return the title of a benchmark whose own script leaves unanswered questions out."""
    dataset = dataset_of(section.card)
    return dataset.title if dataset is not None and dataset.name in SKIPPING else None


def run_table(sections: Sequence[Section]) -> Table:
    """Say what was given: who played what under which protocol, and what is wrong with it."""
    rows = []
    for section in sections:
        for entry in section.entries:
            state = "; ".join(entry.flags) or "complete"
            episodes = f"{entry.episodes:,} of {entry.expected:,}"
            rows.append(
                (
                    *(section.letter, *(foreign(entry.name), foreign(entry.policy), section.title)),
                    *(episodes, str(entry.faults), state),
                    *(section.card.protocol_hash, entry.card.hash),
                )
            )
    header = ("section", "run", "policy", "suite", "episodes", "faults", "state")
    return Table(
        (*header, "protocol", "card"), tuple(rows), (0, 1, 2, 3, 6, 7, 8), "The runs of this report"
    )


def accuracy_table(section: Section) -> Table:
    """Return accuracy over all questions, by the lenient parse, and what goes with it.

    Where the benchmark's own script leaves unanswered questions out, its number has a column.
    """
    level, title = chance_level(section), skipping(section)
    macro = any(
        entry.summary["accuracy"]["value"] != entry.summary["accuracy_micro"]["value"]
        for entry in section.entries
    )
    rows = []
    for entry in section.entries:
        summary = entry.summary
        cells = [labelled(entry), foreign(entry.policy), percent(summary["accuracy"])]
        cells += [str(summary["scored"]), str(entry.faults)]
        if title is not None:
            answered = summary["accuracy_answered"]
            cells += [percent(answered), str(answered.get("n", DASH))]
        if macro:
            cells.append(percent(summary["accuracy_micro"]))
        cells += [percent(summary["lenient_accuracy"]), percent(summary["answered"])]
        if level is None:
            cells.append(percent(summary["chance"]))
        rows.append((*cells, str(summary["videos"])))
    header = ["run", "policy", "accuracy, %", "n", "faults"]
    header += ["of answered, %", "n answered"] if title is not None else []
    header += ["micro accuracy, %"] if macro else []
    header += ["lenient, %", "answered, %"]
    header += ["chance, %"] if level is None else []
    caption = "Accuracy with 95 % intervals, videos resampled"
    if level is not None:
        caption += f"; chance is {percent(level)}"
    if title is not None:
        caption += (
            '; accuracy takes unanswered questions for wrong, and "of answered" leaves them out, '
            f"as the script of {title} does"
        )
    return Table((*header, "videos"), tuple(rows), (0, 1), caption)


def chance_level(section: Section) -> float | None:
    """Return the level of chance if it is the same for all runs; incomplete ones may differ."""
    levels = {entry.summary["chance"] for entry in section.entries}
    return levels.pop() if len(levels) == 1 else None


def difference_table(section: Section) -> Table:
    """Return how each run differs from the first, over the questions that both answered."""
    first, *others = section.entries
    rows = []
    for entry in others:
        found = compare(first.run, entry.run, dataset_of(section.card), across=(VIDEOS,))
        pairs, others_files = found["discordant"], found["other_videos"]
        rows.append(
            (
                f"{labelled(entry)} - {labelled(first)}"
                + (f" [{others_files} about other video files]" if others_files else ""),
                percent(found["difference"]),
                *(str(pairs["only_b"]), str(pairs["only_a"]), str(found["questions"])),
            )
        )
    return Table(
        ("runs", "difference, points", "only the former right", "only the latter", "n"),
        tuple(rows),
        (0,),
        "Paired differences of accuracy with 95 % intervals, videos resampled",
    )


def group_names(section: Section) -> list[str]:
    """Return the groupings that any run of the section has, in their own order."""
    return list(dict.fromkeys(name for e in section.entries for name in e.summary["groups"]))


def group_values(section: Section, group: str) -> list[str]:
    """Return the values of a grouping."""
    return natural({v for e in section.entries for v in e.summary["groups"].get(group, {})})


def group_table(section: Section, group: str, *, answered: bool = False) -> Table:
    """Return accuracy by the values of a grouping, a pair of columns for each run.

    Args:
        section: The runs.
        group: The grouping.
        answered: Leave unanswered questions out, as the scripts of some benchmarks do.
    """
    rows = []
    for value in group_values(section, group):
        cells = [foreign(value)]
        for entry in section.entries:
            found = entry.summary["groups"].get(group, {}).get(value)
            if found and answered:
                found = found.get("answered")
            cells += [percent(found), str(found["n"])] if found else [DASH, "0"]
        rows.append(tuple(cells))
    header = [group]
    for entry in section.entries:
        header += [f"{labelled(entry)}, %", "n"]
    caption = f"Accuracy by {group.replace('_', ' ')}"
    if answered:
        caption += f", unanswered questions left out, as the script of {skipping(section)} does"
    return Table(tuple(header), tuple(rows), (0,), caption)


def grounding_table(section: Section, *, official: bool = False) -> Table | None:
    """Return measures of where the runs looked; ``None`` if no run has any.

    Args:
        section: The runs.
        official: Leave questions without a retrieval out, as the script of NExT-GQA does.
    """
    entries = [entry for entry in section.entries if entry.summary.get("grounding")]
    if not entries:
        return None
    found = [entry.summary["grounding"] for entry in entries]
    caption = "Grounding: the last retrieval against the segments"
    if official:
        found = [each.get("official") or {} for each in found]
        caption += "; questions without a retrieval left out, as the script of NExT-GQA does"
    elif skipping(section) is not None:
        caption += "; a question without a retrieval counts 0"
    rows = []
    for name, heading, _ in GROUNDING:
        if not (official and name in UNOFFICIAL):
            rows.append((heading, *(percent(each.get(name)) for each in found)))
    rows.append(("n", *(str(_count(each["n"])) if each else DASH for each in found)))
    header = ("measure", *(f"{labelled(entry)}, %" for entry in entries))
    return Table(header, tuple(rows), (0,), caption)


def cost_table(section: Section) -> Table:
    """Return the mean costs of an episode."""
    rows = []
    for name, heading, digits in COST:
        values = [entry.summary["cost"].get(name) for entry in section.entries]
        if any(value is not None for value in values):
            rows.append((heading, *(number(value, digits) for value in values)))
    rows.append(("n", *(str(entry.summary["episodes"]) for entry in section.entries)))
    header = ("mean of an episode", *(labelled(entry) for entry in section.entries))
    return Table(header, tuple(rows), (0,), "Cost; seconds are those of the machine that ran it")


def behaviour_table(section: Section) -> Table:
    """Return what the policies did with their turns."""
    rows = []
    for name, heading in BEHAVIOUR:
        values = [entry.summary["behaviour"].get(name) for entry in section.entries]
        rows.append((heading, *(percent(value) for value in values)))
    rows.append(("n, episodes", *(str(entry.summary["episodes"]) for entry in section.entries)))
    header = ("share, %", *(labelled(entry) for entry in section.entries))
    return Table(header, tuple(rows), (0,), "Behaviour")


def knob_table(sections: Sequence[Section]) -> Table:
    """Return the knobs in which sections differ."""
    differences = knob_differences(sections)
    rows = tuple((foreign(knob), *map(foreign, values)) for knob, values in differences.items())
    header = ("knob", *(f"section {section.letter}" for section in sections))
    return Table(header, rows, tuple(range(len(header))), "Knobs in which the protocols differ")


def lined_up_table(sections: Sequence[Section]) -> Table:
    """Return the runs of several protocols over the same questions.

    The control, and the chance that goes with it, have columns if they differ; so have returns if
    rewards do.
    """
    rewards = [section.protocol.get("settings", {}).get("reward") for section in sections]
    controls = [str(section.protocol.get("control", "none")) for section in sections]
    paid = any(reward != rewards[0] for reward in rewards)
    controlled = any(control != controls[0] for control in controls)
    rows = []
    for section, control in zip(sections, controls, strict=True):
        for entry in section.entries:
            summary = entry.summary
            cells = [section.letter, labelled(entry), foreign(entry.policy)]
            cells += [control] if controlled else []
            cells += [str(frame_budget(section)), number(summary["cost"].get("frames_shown"), 1)]
            cells += [percent(summary["accuracy"])]
            cells += [percent(summary["chance"])] if controlled else []
            cells += [str(summary["scored"]), str(entry.faults)]
            cells += [_return(summary["return"])] if paid else []
            rows.append(tuple(cells))
    header = ["section", "run", "policy", *(["control"] if controlled else [])]
    texts = tuple(range(len(header)))
    header += ["frame budget", "frames shown", "accuracy, %"]
    header += ["chance, %"] if controlled else []
    header += ["n", "faults", *(["mean return"] if paid else [])]
    caption = "Runs of different protocols"
    if "circular" in controls:
        caption += "; under circular, a question is right if every order of its options is"
    return Table(tuple(header), tuple(rows), texts, caption)


def published_table(section: Section) -> Table:
    """Return the runs of a section above the published rows of their benchmark."""
    protocol = section.protocol
    name, split, _ = section.suite
    rows: dict[tuple[str, str, int, int], list[Published]] = {}
    for row in published(name, split):
        rows.setdefault((row.model, row.variant, row.frames, row.turns), []).append(row)
    groups = sorted({row.group for some in rows.values() for row in some if row.group})
    order = natural({value for _, value in groups})
    groups.sort(key=lambda group: order.index(group[1]))
    settings = protocol.get("settings", {})
    cells = [_own(entry, groups, settings) for entry in section.entries]
    notes, policies = [""] * len(cells), [foreign(entry.policy) for entry in section.entries]
    for (model, variant, frames, turns), some in rows.items():
        by_group = {row.group: row for row in some}
        places = "; ".join(dict.fromkeys(row.place for row in some))
        cells.append(
            (
                f"{model}, {variant}" if variant else model,
                *(str(frames), str(turns)),
                *(_accuracy(by_group.get(group)) for group in (None, *groups)),
                str(BENCHMARKS[name].questions),
            )
        )
        known = (
            "; ".join(protocol_differences(some[0], protocol, policies)) or "nothing that is known"
        )
        notes.append(f"Differs in {known}. {SOURCE}, {places}.")
    header = ("run or model", "frames", "turns", "accuracy, %", *(f"{v}, %" for _, v in groups))
    return Table(
        (*header, "n"),
        tuple(cells),
        (0,),
        f"Published rows of {BENCHMARKS[name].title}, {split}, below these runs; they come without "
        "intervals",
        strong=tuple(range(len(section.entries))),
        notes=tuple(notes),
    )


def _own(
    entry: Entry, groups: Sequence[tuple[str, str]], settings: Mapping[str, Any]
) -> tuple[str, ...]:
    summary = entry.summary
    parts = [summary["groups"].get(group, {}).get(value) for group, value in groups]
    return (
        f"{labelled(entry)} ({foreign(entry.policy)})",
        *(str(settings.get("frame_budget")), str(settings.get("max_turns"))),
        *(percent(part) for part in (summary["accuracy"], *parts)),
        str(summary["scored"]),
    )


def _return(found: Mapping[str, Any]) -> str:
    value, low, high = (found[key] for key in ("value", "low", "high"))
    return DASH if value is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _accuracy(row: Published | None) -> str:
    return DASH if row is None else f"{row.accuracy:.1f}"


def _count(n: Any) -> int:
    return int(n["value"] if isinstance(n, Mapping) else n)
