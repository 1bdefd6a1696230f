from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gym_longvideo.command import check_directory, write_config
from gym_longvideo.files import portable, reason, replace, sync, write_whole


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("gym_longvideo.files.time.sleep", slept.append)
    return slept


def test_a_file_that_somebody_has_open_is_replaced_when_they_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    genuine = os.replace

    def busy(source: str, target: str) -> None:
        if len(naps) < 3:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        genuine(source, target)

    monkeypatch.setattr(os, "replace", busy)
    write_whole(tmp_path / "a.json", "new\n")
    assert (tmp_path / "a.json").read_bytes() == b"new\n" and len(naps) == 3
    naps.clear()
    write_config(tmp_path, {"a": 1})
    assert (tmp_path / "config.json").is_file() and len(naps) == 3


def test_a_file_that_stays_open_is_told_in_the_end_and_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    (tmp_path / "a.json").write_text("old")

    def busy(source: str, target: str) -> None:
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(PermissionError, match="in use"):
        write_whole(tmp_path / "a.json", "new")
    assert sum(naps) < 2 and [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"
    with pytest.raises(FileNotFoundError):  # patience is for those who have it open
        monkeypatch.undo()
        replace(tmp_path / "none", tmp_path / "a.json")


def test_directories_need_no_flush_where_they_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, flushed = os.open, []

    def as_on_windows(path: str, flags: int, *more: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        flushed.append(flags & (os.O_RDWR | os.O_WRONLY))
        return genuine(path, flags, *more)

    monkeypatch.setattr(os, "open", as_on_windows)
    write_whole(tmp_path / "latest", "x", durable=True)
    sync(tmp_path)
    sync(tmp_path / "latest")
    assert flushed == [os.O_RDWR]  # Windows flushes only what may be written
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "none")


def test_text_is_utf8_with_plain_line_ends_whatever_the_system_prefers(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "é\n\ud800")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n\\ud800"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(getattr(errno, "EDQUOT", errno.ENOSPC), "Disk quota exceeded"),
        ValueError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_called_so_by_whomever_it_is_told(error: Exception) -> None:
    wrapped = RuntimeError("unexpected pos 704 vs 598")
    wrapped.__context__ = error
    assert reason(error) == f"the disk is full: {error}"
    assert reason(wrapped) == f"the disk is full: {wrapped}"
    assert reason(OSError(errno.EACCES, "no")) == "[Errno 13] no"


def test_a_full_disk_is_told_before_anything_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="cannot be written to: the disk is full"):
        check_directory(tmp_path)


def test_names_are_such_as_every_system_takes() -> None:
    assert portable("evaluate-my:suite/val-1f") == "evaluate-my-suite-val-1f"
    assert portable("train-20250101-120000") == "train-20250101-120000"
