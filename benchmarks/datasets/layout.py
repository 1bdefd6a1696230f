"""Layout: where, below what a person already has on disk, annotation and videos of a dataset lie.

``root`` may be the dataset's own directory, its directory in a hub cache
(``datasets--org--name``), or a directory that holds several (a hub cache, ``$HF_HOME`` as lmms-eval
fills it). Nothing is downloaded and nothing is unpacked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.datasets.dataset import Dataset
from gym_longvideo.suite import EXTENSIONS


@dataclass(frozen=True)
class Layout:
    """Where a dataset's files are.

    Attributes:
        files: Annotation files.
        roots: Directories below which videos are sought.
        trusted: Resolved directories that a video may be in, symlinks followed.
    """

    files: tuple[Path, ...]
    roots: tuple[Path, ...]
    trusted: tuple[str, ...]


def find_layout(
    dataset: Dataset,
    split: str,
    *,
    root: str | os.PathLike[str] | None = None,
    annotation: str | os.PathLike[str] | None = None,
    video_root: str | os.PathLike[str] | None = None,
) -> Layout:
    """Find a split's files.

    Args:
        dataset: What is sought.
        split: One of its splits.
        root: See the module.
        annotation: The annotation file, or the directory that holds it, instead.
        video_root: Directory of the videos, instead.

    Raises:
        ValueError: If neither ``root`` nor ``annotation`` is given.
        FileNotFoundError: Naming what was looked for, and where.
    """
    if root is None and annotation is None:
        raise ValueError(
            f"{dataset.name}: pass root= (the directory of {dataset.title}), or annotation= and "
            "video_root="
        )
    for name, path in (("root", root), ("video_root", video_root)):
        if path is not None and not Path(path).is_dir():
            raise FileNotFoundError(f"{name}={str(path)!r} is not a directory")
    places = list(_places(Path(root), dataset)) if root is not None else []
    patterns = dataset.splits[split].files
    if annotation is None:
        place, files = _first_match(places, patterns)
        if place is None:
            raise FileNotFoundError(
                f"no annotation of {dataset.title}, split {split!r}, below {root}: looked for "
                f"{', '.join(patterns)}; pass annotation= with the path of the file"
            )
        # Videos are sought, and missed, beside the annotation first.
        places.sort(key=lambda path: path != place)
    else:
        given = Path(annotation)
        files = _first_match([given], patterns)[1] if given.is_dir() else (given,)
        if not files or not files[0].is_file():
            raise FileNotFoundError(
                f"annotation={str(given)!r}: no such file, and no directory that holds "
                f"{', '.join(patterns)}"
            )
    if video_root is not None:
        roots = [Path(video_root)]
    else:
        roots = places or [file.parent for file in files[:1]]
    return Layout(files, tuple(roots), tuple(dict.fromkeys(_trusted(roots))))


def _places(root: Path, dataset: Dataset) -> Iterator[Path]:
    """Yield directories that may be the dataset's, the likeliest first."""
    seen: set[Path] = set()
    nested = [
        root / part / name for name in dataset.directories for part in ("", "hub", "datasets")
    ]
    for place in (root, *nested):
        for path in (place, *_snapshots(place)):
            if path.is_dir() and path not in seen:
                seen.add(path)
                yield path


def _snapshots(place: Path) -> list[Path]:
    """Return the snapshots of a dataset in a hub cache: that of ``main``, then the newest."""
    directory = place / "snapshots"
    if not directory.is_dir():
        return []
    found = sorted(
        (path for path in directory.iterdir() if path.is_dir()),
        key=lambda path: (-path.stat().st_mtime, path.name),
    )
    try:
        main = directory / (place / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return found
    return sorted(found, key=lambda path: path != main)


def _first_match(
    places: list[Path], patterns: tuple[str, ...]
) -> tuple[Path | None, tuple[Path, ...]]:
    """Return the files of the first pattern that matches, and the place where it does."""
    for place in places:
        for pattern in patterns:
            if found := sorted(path for path in place.glob(pattern) if path.is_file()):
                return place, tuple(found)
    return None, ()


def _trusted(roots: list[Path]) -> Iterator[str]:
    for root in roots:
        yield os.path.realpath(root)
        # The files of a snapshot are links to the blobs beside it.
        if root.parent.name == "snapshots":
            yield os.path.realpath(root.parent.parent / "blobs")


class VideoFinder:
    """Finds videos below roots; directories are listed once, files are never opened.

    Args:
        layout: Whose videos.
        folders: Where they lie below a root.
        allow_outside: Permit annotated paths that leave the root.
    """

    def __init__(self, layout: Layout, folders: tuple[str, ...], *, allow_outside: bool) -> None:
        self.layout, self.allow_outside = layout, allow_outside
        self.folders = ("", *folders)
        self._roots = [os.path.abspath(root) for root in layout.roots]
        self._listed: dict[str, frozenset[str]] = {}

    def find(self, video: str) -> tuple[str, bool]:
        """Return the path of a video, and whether there is such a file.

        A missing one gets the path at which it is expected first.

        Raises:
            ValueError: If the annotated path leaves every root.
        """
        relative = os.path.normpath(video.replace("\\", "/"))
        for root in self._roots:  # an absolute path below a root is as good as a relative one
            if relative.startswith(root + os.sep):
                relative = os.path.relpath(relative, root)
        if os.path.isabs(relative) or relative.split("/", 1)[0] == "..":
            if not self.allow_outside:
                raise ValueError(
                    f"video={video!r} leaves the root {self._roots[0]!r}; pass video_root=, or "
                    "allow_outside=True if you trust the annotation"
                )
            path = os.path.abspath(os.path.join(self._roots[0], relative))
            return path, self._there(path)
        stem, extension = os.path.splitext(relative)
        if extension not in EXTENSIONS:
            stem, extension = relative, ""
        endings = dict.fromkeys((extension, *EXTENSIONS)) if extension else EXTENSIONS
        stems = dict.fromkeys((stem, os.path.basename(stem)))
        for root in self._roots:
            for name in stems:
                for folder in self.folders:
                    directory, base = os.path.split(os.path.join(root, folder, name))
                    if names := self._names(directory):
                        for ending in endings:
                            if base + ending in names:
                                return os.path.join(directory, base + ending), True
        folder = self.folders[1] if len(self.folders) > 1 and "/" not in relative else ""
        return os.path.join(self._roots[0], folder, stem + (extension or ".mp4")), False

    def size(self, path: str) -> int:
        """Return the size of a file in bytes, 0 if it is gone."""
        try:
            return os.stat(path).st_size
        except OSError:
            return 0

    def state(self) -> tuple[tuple[str, int], ...]:
        """Return what the answers rest on: files and directories, and when each last changed."""
        paths = (*map(str, self.layout.files), *sorted(self._listed))
        return tuple((path, _changed_ns(path)) for path in paths)

    def trusts(self, path: str) -> bool:
        """Return whether a file lies below a root once symlinks are followed."""
        real = os.path.realpath(path)
        return self.allow_outside or any(
            os.path.commonpath([real, root]) == root for root in self.layout.trusted
        )

    def _there(self, path: str) -> bool:
        directory, name = os.path.split(path)
        return name in self._names(directory)

    def _names(self, directory: str) -> frozenset[str]:
        if directory not in self._listed:
            try:
                self._listed[directory] = frozenset(os.listdir(directory))
            except OSError:
                self._listed[directory] = frozenset()
        return self._listed[directory]


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
