"""Published accuracies as data, and how the protocol of a run differs from theirs.

Source of every row: Y. Xie, T. Chen, Z. Ge, L. Ni, Video-MTR, arXiv 2508.20478v2. The paper reports
no intervals, and leaves open much that moves a number; ``UNKNOWN`` names it. Numbers are percent,
as printed. A row stands beside a run only if ``refusal`` finds nothing against it: made-up videos,
and questions of our own making, have no published counterpart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SOURCE = "arXiv 2508.20478v2"
BASE, TRAINED = "Qwen2.5-VL-7B", "Video-MTR (Qwen2.5-VL-7B)"
BASE_3B, TRAINED_3B = "Qwen2.5-VL-3B", "Video-MTR (Qwen2.5-VL-3B)"
MAIN, SMALL = "main results", "3B backbone (appendix A.4)"
REWARD, LIMIT = "ablation of the bi-level reward", "ablation of the turn limit"
POOL_SIZE = 128  # appendix A.2
WITHOUT, NOT_STATED = "without subtitles", "not stated"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the paper evaluates on it.

    Attributes:
        title: How the paper spells it.
        split: Split, by our name.
        questions: Questions of that split.
        subtitles: What the paper says about subtitles: ``WITHOUT``, or nothing.
    """

    title: str
    split: str
    questions: int
    subtitles: str = NOT_STATED


BENCHMARKS: dict[str, Benchmark] = {
    "videomme": Benchmark("Video-MME", "test", 2700, WITHOUT),
    "mlvu": Benchmark("MLVU", "test", 502),
    "longvideobench": Benchmark("LongVideoBench", "val", 1337),
    "lvbench": Benchmark("LVBench", "test", 1549),
    "egoschema": Benchmark("EgoSchema", "subset", 500),
}

# What the paper does not say, and where a card of ours says it.
UNKNOWN: Mapping[str, tuple[str, ...]] = {
    "resolution of the frames": ("settings", "frame_size"),
    "decoder": ("settings", "backend"),
    "exactness of seeking": ("settings", "seek"),
    "rule that picks the pool": ("settings", "pool_rule"),
    "how replies are read": ("scorer",),
}
UNKNOWN_MODEL = ("sampling of replies", "prompt of the models that are not Video-MTR", "intervals")


@dataclass(frozen=True)
class Published:
    """One published accuracy.

    Attributes:
        benchmark: Key of ``BENCHMARKS``.
        model: Who answered.
        frames: Frame budget.
        turns: Turn limit; 1 is a single look.
        accuracy: Percent, as printed.
        group: (group, value) of a part of the benchmark, e.g. ("duration", "short"); ``None`` for
            all of it.
        variant: What was ablated; "" for nothing.
        place: Where in the source.
        mean_turns: Average turns, where printed.
        latency_ms: Latency, where printed; the paper does not say of what.
        source: The publication.
    """

    benchmark: str
    model: str
    frames: int
    turns: int
    accuracy: float
    group: tuple[str, str] | None = None
    variant: str = ""
    place: str = MAIN
    mean_turns: float | None = None
    latency_ms: int | None = None
    source: str = SOURCE

    @property
    def split(self) -> str:
        """Split of the benchmark."""
        return BENCHMARKS[self.benchmark].split


_MAIN = (
    # model, frames, then a column for each benchmark in the order of BENCHMARKS
    (BASE, 32, 53.6, 41.6, 45.8, 30.3, 59.4),
    (BASE, 64, 58.4, 41.8, 47.0, 33.7, 62.6),
    (BASE, 80, 59.5, 45.2, 48.4, 33.6, 63.5),
    (TRAINED, 32, 59.0, 48.4, 52.3, 38.2, 62.4),
    (TRAINED, 64, 62.2, 49.8, 54.8, 41.8, 63.4),
    (TRAINED, 80, 62.7, 50.4, 57.1, 42.3, 68.8),
)
_DURATIONS = (
    # model, frames, short, medium, long of Video-MME
    (BASE, 32, 65.8, 50.3, 44.7),
    (TRAINED, 32, 70.4, 55.6, 51.0),
    (TRAINED, 64, 72.8, 62.3, 51.4),
    (TRAINED, 80, 74.8, 60.6, 52.7),
)
_REWARD = (
    # variant, turns, Video-MME, LVBench at 80 frames
    ("", 3, 62.7, 42.3),
    ("without the bi-level reward", 3, 58.3, 37.7),
    ("trained for a single turn", 1, 57.2, 35.3),
)
_LIMIT = (
    # turn limit, Video-MME, MLVU at 32 frames, latency in ms, average turns
    (1, 54.8, 42.6, 194, 1.0),
    (2, 57.9, 43.1, 312, 1.6),
    (3, 59.0, 48.4, 427, 2.2),
    (5, 60.7, 47.4, 623, 3.2),
)
_SMALL = (
    # model, turns, Video-MME, LVBench, EgoSchema at 32 frames
    (BASE_3B, 1, 51.5, 31.2, 57.4),
    (TRAINED_3B, 3, 52.5, 36.1, 59.5),
)


def _rows() -> Iterator[Published]:
    for model, frames, *accuracies in _MAIN:
        for benchmark, accuracy in zip(BENCHMARKS, accuracies, strict=True):
            yield Published(benchmark, model, frames, 1 if model == BASE else 3, accuracy)
    for model, frames, *accuracies in _DURATIONS:
        for value, accuracy in zip(("short", "medium", "long"), accuracies, strict=True):
            turns, group = (1 if model == BASE else 3), ("duration", value)
            yield Published("videomme", model, frames, turns, accuracy, group)
    for variant, turns, *accuracies in _REWARD:
        for benchmark, accuracy in zip(("videomme", "lvbench"), accuracies, strict=True):
            yield Published(benchmark, TRAINED, 80, turns, accuracy, variant=variant, place=REWARD)
    for turns, videomme, mlvu, latency_ms, mean_turns in _LIMIT:
        variant = "" if turns == 3 else f"turn limit {turns}"
        for benchmark, accuracy in (("videomme", videomme), ("mlvu", mlvu)):
            yield Published(
                *(benchmark, TRAINED, 32, turns, accuracy, None, variant, LIMIT),
                mean_turns=mean_turns,
                latency_ms=latency_ms,
            )
    for model, turns, *accuracies in _SMALL:
        for benchmark, accuracy in zip(
            ("videomme", "lvbench", "egoschema"), accuracies, strict=True
        ):
            yield Published(benchmark, model, 32, turns, accuracy, place=SMALL)


ROWS: tuple[Published, ...] = tuple(_rows())


def published(benchmark: str, split: str) -> tuple[Published, ...]:
    """Return the rows of a benchmark's split; none for anything the paper does not report.

    >>> [row.accuracy for row in published("mlvu", "test")][:3]
    [41.6, 41.8, 45.2]
    >>> published("mlvu", "dev")
    ()
    """
    known = BENCHMARKS.get(benchmark)
    if known is None or known.split != split:
        return ()
    return tuple(row for row in ROWS if row.benchmark == benchmark)


def refusal(protocol: Mapping[str, Any]) -> str:
    """Say why no published row may stand beside runs of a protocol; "" if one may.

    Args:
        protocol: ``Card.protocol``.
    """
    suite = protocol.get("suite", {})
    name, split = str(suite.get("name", "")), str(suite.get("split", ""))
    known = BENCHMARKS.get(name)
    if known is None:
        return f"nothing is published for the suite {name!r}"
    if not suite.get("annotation"):
        return f"the suite bears the name {name!r} but was not read from that benchmark's files"
    if split != known.split:
        return f"published rows are of split {known.split!r}, these runs of {split!r}"
    if (control := protocol.get("control", "none")) != "none":
        return f"published rows are of plain runs, these are of the control {control!r}"
    tasks = suite.get("tasks", 0)
    # Some benchmarks lose a few videos over the years; a tenth of one is another benchmark.
    if tasks < 0.9 * known.questions:
        return (
            f"published rows are over the {known.questions} questions of {known.title}, "
            f"this suite holds {tasks}"
        )
    return ""


def protocol_differences(
    row: Published, protocol: Mapping[str, Any], policies: Iterable[str] = ()
) -> list[str]:
    """Return how a protocol differs from what is known of a row's, e.g. "frames: 64, here 32".

    Args:
        row: A published row.
        protocol: ``Card.protocol``.
        policies: Names of those who played; one that does not name the row's model is another.
    """
    model = "video-mtr" if row.model in (TRAINED, TRAINED_3B) else row.model.lower()
    others = [name for name in dict.fromkeys(policies) if model not in name.lower()]
    known, suite = BENCHMARKS[row.benchmark], protocol.get("suite", {})
    settings = protocol.get("settings", {})
    pairs: list[tuple[str, Any, Any]] = [
        ("frames", row.frames, settings.get("frame_budget")),
        ("turn limit", row.turns, settings.get("max_turns")),
    ]
    if row.turns > 1:
        pairs += [
            ("overview frames", row.frames // 2, settings.get("overview_frames")),
            ("frames of a retrieval", row.frames // 4, settings.get("frames_per_retrieval")),
            ("pool", POOL_SIZE, settings.get("pool_size")),
            ("retrieval", "pool", settings.get("retrieval")),
        ]
        if row.model in (TRAINED, TRAINED_3B):
            pairs.append(("form of replies", "tags", protocol.get("text_protocol")))
    elif not row.variant:  # how the ablated models split a single look is not stated
        pairs.append(("overview frames", row.frames, settings.get("overview_frames")))
    asked = protocol.get("episodes") or suite.get("tasks")
    pairs.append(("questions", known.questions, asked))
    found = [f"model: {row.model}, here {', '.join(others)}"] if others else []
    found += [f"{name}: {theirs}, here {ours}" for name, theirs, ours in pairs if theirs != ours]
    options = suite.get("options") or {}
    if (seed := options.get("shuffle_options")) is not None:
        found.append(f"order of options: as annotated, here shuffled by seed {seed}")
    subtitles = options.get("subtitles") or "none"
    if known.subtitles == WITHOUT and subtitles != "none":
        found.append(f"subtitles: {known.subtitles}, here {subtitles}")
    return found


def unknown(protocol: Mapping[str, Any]) -> list[str]:
    """Return what the paper leaves open, each with what it is here."""
    suite = protocol.get("suite", {})
    known = BENCHMARKS.get(str(suite.get("name")))
    found = []
    if known is not None and known.subtitles == NOT_STATED:
        found.append(f"subtitles (here {(suite.get('options') or {}).get('subtitles') or 'none'})")
    for name, path in UNKNOWN.items():
        value: Any = protocol
        for step in path:
            value = value.get(step, "not recorded") if isinstance(value, Mapping) else value
        if isinstance(value, (list, tuple)):
            value = " x ".join(str(part) for part in value)
        settings = protocol.get("settings")
        most = settings.get("max_pixels") if isinstance(settings, Mapping) else None
        if path == ("settings", "frame_size") and most:
            value = f"as they are, {most:,} pixels at most"
        found.append(f"{name} (here {value})")
    return [*found, *UNKNOWN_MODEL]
