"""List the benchmarks, and what of them lies below some directories.

longvideo suites --root ~/data ~/.cache/huggingface
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.registry import ENV_IDS, find_dataset, load_suite
from gym_longvideo.command import as_command, fail

_ANY_FILE = "jsonl"  # reads whatever lies there, so what it cannot read says nothing


@dataclass(frozen=True)
class SuitesConfig:
    """List the benchmarks, and what of them lies below some directories.

    Attributes:
        root: Directories: of a dataset, of a hub cache, or of several datasets.
        json: Print JSON instead of text.
    """

    root: tuple[Path, ...] = ()
    json: bool = False


def survey(roots: Sequence[Path] = ()) -> Iterator[dict[str, Any]]:
    """Yield what there is of every split of every benchmark; no video is opened.

    Yields:
        name, split, env_id, title, licence, questions (as published, or None), scored, and
        ``found``: for each root that holds its annotation ``root``, ``annotation`` (files), and
        either ``questions``, ``unusable``, ``videos`` and ``missing``, or ``error``.
    """
    for name in ENV_IDS:
        described = find_dataset(name)
        splits = [described.default_split] if name == _ANY_FILE else list(described.splits)
        for split in splits:
            found = [each for root in roots if (each := _look(name, split, root))]
            yield {
                "name": name,
                "split": split,
                "env_id": described.env_id,
                "title": described.title,
                "licence": described.licence,
                "questions": described.splits[split].tasks,
                "scored": described.splits[split].scored,
                "found": found,
            }


def _look(name: str, split: str, root: Path) -> dict[str, Any] | None:
    try:
        suite = load_suite(name, split=split, root=root, on_invalid="skip")
    except FileNotFoundError:
        return None
    except (ValueError, OSError, ImportError) as error:
        return None if name == _ANY_FILE else {"root": str(root), "error": str(error)}
    absent = set(suite.missing)
    missing = {task.video for task in suite if f"{task.task_id}: {task.video}" in absent}
    return {
        "root": str(root),
        "annotation": [str(file) for file in suite.files],
        "questions": len(suite),
        "unusable": len(suite.invalid),
        "videos": len({task.video for task in suite}),
        "missing": len(missing),
        "refused": len(suite.refused()),
    }


def lines(entries: Sequence[Mapping[str, Any]], *, looked: bool) -> Iterator[str]:
    """Yield a survey as text."""
    name = None
    for entry in entries:
        if entry["name"] != name:
            name = entry["name"]
            yield f"{name}: {entry['title']} ({entry['licence']})"
            yield f"  benchmarks:{entry['env_id']}"
        count = "" if entry["questions"] is None else f", {entry['questions']} questions"
        kind = "" if entry["scored"] else ", no public answers"
        if entry["name"] == "qvhighlights_grounding":
            kind = ", grounding alone"
        yield f"  {entry['split']}{count}{kind}" + (
            ": not found" if looked and not entry["found"] else ""
        )
        for found in entry["found"]:
            yield f"    {_found(found)}"


def _found(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return f"{found['root']}: cannot be used: {found['error']}"
    files = found["annotation"]
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    there = found["videos"] - found["missing"]
    out = f", {found['refused']} of them links that leave the root" if found["refused"] else ""
    return (
        f"{files[0]}{more}: {found['questions']} questions, {found['unusable']} rows unusable, "
        f"{there} of {found['videos']} videos there{out}"
    )


@as_command
def main(arguments: Sequence[str]) -> int:
    """Print a survey; return 1 if a root is no directory."""
    from agents.command import parse

    chosen = parse(SuitesConfig, arguments, "suites")
    roots = [root for root in chosen.root if root.is_dir()]
    entries = list(survey(roots))
    if chosen.json:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
    else:
        print("\n".join(lines(entries, looked=bool(chosen.root))))
    for root in chosen.root:
        if root not in roots:
            fail(f"--root {root} is not a directory")
    return 0 if len(roots) == len(chosen.root) else 1


if __name__ == "__main__":
    sys.exit(main())
