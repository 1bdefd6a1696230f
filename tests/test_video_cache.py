"""Caches of pool frames: bounds, atomic files, damage, and no pickle."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

from gym_longvideo.video import CachedFrame, DiskCache, FrameCache, FrameStatus, PoolKey

FRAME_BYTES = 8 * 8 * 3


def key(name="a", size=4):
    return PoolKey(name, "pyav", size, "midpoint", (8, 8), "stretch", 0.0)


def frame(value):
    return CachedFrame(np.full((8, 8, 3), value, np.uint8), value + 0.25, FrameStatus.SNAPPED)


def values(found):
    return {slot: int(f.pixels[0, 0, 0]) for slot, f in found.items()}


def test_a_frame_cache_drops_what_was_unused_for_longest():
    cache = FrameCache(max_bytes=3 * FRAME_BYTES)
    cache.put(key(), {0: frame(0), 1: frame(1), 2: frame(2)})
    cache.get(key(), [0])
    cache.put(key(), {3: frame(3)})
    assert values(cache.get(key(), range(4))) == {0: 0, 2: 2, 3: 3}
    assert cache.nbytes == 3 * FRAME_BYTES
    cache.put(key(), {0: frame(9)})
    assert cache.nbytes == 3 * FRAME_BYTES
    assert values(cache.get(key(), [0])) == {0: 9}


def test_a_frame_larger_than_the_bound_is_not_kept():
    cache = FrameCache(max_bytes=FRAME_BYTES - 1)
    cache.put(key(), {0: frame(0)})
    assert len(cache) == 0 and cache.nbytes == 0


def test_a_frame_cache_does_not_keep_the_batch_of_a_slice_alive():
    batch = np.zeros((100, 8, 8, 3), np.uint8)
    cache = FrameCache()
    cache.put(key(), {0: CachedFrame(batch[0], 0.0, FrameStatus.OK)})
    (found,) = cache.get(key(), [0]).values()
    assert found.pixels.base is None and not found.pixels.flags.writeable


def test_a_frame_cache_may_be_shared_between_threads():
    cache = FrameCache(max_bytes=10 * FRAME_BYTES)

    def work(seed):
        for i in range(300):
            cache.put(key(str((seed + i) % 7)), {i % 4: frame(i % 200)})
            cache.get(key(str(i % 7)), range(4))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.nbytes == len(cache) * FRAME_BYTES <= 10 * FRAME_BYTES


def test_a_pickled_frame_cache_is_empty():
    cache = FrameCache(max_bytes=1000)
    cache.put(key(), {0: frame(0)})
    assert len(pickle.loads(pickle.dumps(cache))) == 0


def test_a_disk_cache_fills_slot_by_slot(tmp_path):
    cache = DiskCache(tmp_path)
    assert cache.get(key(), [0, 1]) == {}
    cache.put(key(), {1: frame(1)})
    cache.put(key(), {3: frame(3)})
    found = DiskCache(tmp_path).get(key(), range(4))
    assert values(found) == {1: 1, 3: 3}
    assert found[3].actual_s == 3.25 and found[3].status is FrameStatus.SNAPPED
    assert cache.get(key("other"), range(4)) == {}
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".npy"]


def test_files_of_a_disk_cache_are_plain_arrays_and_json(tmp_path):
    DiskCache(tmp_path).put(key(), {1: frame(7)})
    (pixels,) = tmp_path.glob("*.npy")
    (index,) = tmp_path.glob("*.json")
    assert np.load(pixels, allow_pickle=False).shape == (4, 8, 8, 3)
    assert json.loads(index.read_text())["slots"]["1"]["actual_s"] == 7.25


def test_a_disk_cache_stays_under_its_bound(tmp_path):
    names = [f"video {i}" for i in range(6)]
    big = PoolKey("", "pyav", 16, "midpoint", (64, 64), "stretch", 0.0)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    cache = DiskCache(tmp_path, max_bytes=900_000)  # room for four
    for i, name in enumerate(names):
        entry = PoolKey(name, *list(vars(big).values())[1:])
        cache.put(entry, {s: CachedFrame(pixels, 0.0, FrameStatus.OK) for s in range(16)})
        stamp = 10**18 + i * 10**9
        os.utime(tmp_path / f"{entry.digest()}.json", ns=(stamp, stamp))
    held = [n for n in names if (tmp_path / f"{_digest(big, n)}.json").exists()]
    assert held == names[-len(held) :] and 2 <= len(held) <= 4
    total = sum(p.stat().st_blocks * 512 for p in tmp_path.iterdir())
    assert total <= 900_000


def _digest(template, name):
    return PoolKey(name, *list(vars(template).values())[1:]).digest()


def test_a_crash_between_pixels_and_index_leaves_a_slot_unfilled(tmp_path, monkeypatch):
    cache = DiskCache(tmp_path)
    cache.put(key(), {0: frame(0)})

    def crash(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gym_longvideo.video.cache.os.replace", crash)
        with pytest.raises(KeyboardInterrupt):
            cache.put(key(), {0: frame(0), 1: frame(1)})
    assert values(cache.get(key(), range(4))) == {0: 0}
    cache.put(key(), {1: frame(1)})
    assert values(cache.get(key(), range(4))) == {0: 0, 1: 1}


@pytest.mark.parametrize("part", [".json", ".npy"])
@pytest.mark.parametrize("damage", ["garbage", "truncated"])
def test_a_damaged_entry_is_set_aside_with_a_warning(tmp_path, part, damage):
    cache = DiskCache(tmp_path)
    cache.put(key(), {0: frame(0)})
    path = tmp_path / (key().digest() + part)
    content = b"\x93garbage" * 9 if damage == "garbage" else path.read_bytes()[:-30]
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"damaged: .*renamed to \.bad"):
        assert cache.get(key(), [0]) == {}
    assert path.with_name(path.name + ".bad").read_bytes() == content
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get(key(), [0]) == {}
    cache.put(key(), {0: frame(5)})
    assert values(cache.get(key(), [0])) == {0: 5}


def test_changed_pixels_do_not_pass_their_checksum(tmp_path):
    cache = DiskCache(tmp_path)
    cache.put(key(), {0: frame(0), 1: frame(1)})
    pixels = np.load(tmp_path / (key().digest() + ".npy"), mmap_mode="r+")
    pixels[1, 2, 2, 2] += 1
    pixels.flush()
    assert values(cache.get(key(), [0])) == {0: 0}
    with pytest.warns(RuntimeWarning, match="frame 1 does not match its checksum"):
        assert cache.get(key(), [1]) == {}


def test_missing_pixels_are_a_miss_without_noise(tmp_path):
    cache = DiskCache(tmp_path)
    cache.put(key(), {0: frame(0)})
    (tmp_path / (key().digest() + ".npy")).unlink()
    assert cache.get(key(), [0]) == {}
    cache.put(key(), {1: frame(1)})
    assert values(cache.get(key(), [0, 1])) == {1: 1}


def test_a_full_disk_is_logged_and_decoding_goes_on(tmp_path, monkeypatch, caplog):
    cache = DiskCache(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gym_longvideo.video.cache.np.lib.format.open_memmap", full)
    with caplog.at_level(logging.WARNING):
        cache.put(key(), {0: frame(0)})
    assert "No space left" in caplog.text


FULL = """
import logging, sys
import numpy as np
from gym_longvideo.video import CachedFrame, DiskCache, FrameStatus, PoolKey
logging.basicConfig(stream=sys.stdout)
cache = DiskCache(sys.argv[1])
key = PoolKey("a", "pyav", 64, "midpoint", (64, 64), "stretch", 0.0)
dice = np.random.default_rng(0)
for place in range(64):
    pixels = dice.integers(0, 256, (64, 64, 3), np.uint8)
    cache.put(key, {place: CachedFrame(pixels, 0.0, FrameStatus.OK)})
    found = cache.get(key, [place])
    assert not found or (found[place].pixels == pixels).all()
assert 0 < len(cache.get(key, range(64))) < 64
print("alive")
"""


def test_a_disk_that_is_really_full_costs_no_process_its_life(tmp_path):
    mount = f"mount -t tmpfs -o size=300k none {tmp_path}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*command, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("small file systems cannot be mounted here")
    done = subprocess.run(
        [*command, f'{mount} && exec "$0" -c "$1" {tmp_path}', sys.executable, FULL],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No space left") == 1 and done.stdout.endswith("alive\n")


def test_an_entry_that_may_only_be_read_is_read(tmp_path, monkeypatch):
    DiskCache(tmp_path).put(key(), {0: frame(7)})

    def refuse(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    for name in ("utime", "replace"):
        monkeypatch.setattr(f"gym_longvideo.video.cache.os.{name}", refuse)
    cache = DiskCache(tmp_path)
    assert values(cache.get(key(), [0])) == {0: 7}
    cache.put(key(), {1: frame(8)})
    assert values(cache.get(key(), [0, 1])) == {0: 7}
    # Nor is a damaged entry that cannot be renamed.
    (tmp_path / (key().digest() + ".json")).write_text("garbage")
    assert cache.get(key(), [0]) == {}
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_a_cache_that_cannot_be_read_is_no_cache_and_says_so_once(
    tmp_path, monkeypatch, caplog, number
):
    cache = DiskCache(tmp_path)
    cache.put(key(), {0: frame(7)})

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as change, caplog.at_level(logging.WARNING):
        change.setattr("pathlib.Path.open", fail)
        change.setattr("pathlib.Path.read_bytes", fail)
        change.setattr("pathlib.Path.read_text", fail)
        for _ in range(3):
            assert cache.get(key(), [0]) == {}
            cache.put(key(), {1: frame(8)})
    assert len(caplog.records) == 1 and os.strerror(number) in caplog.text
    assert values(cache.get(key(), [0])) == {0: 7}  # and nothing was set aside


def test_an_entry_evicted_between_two_looks_is_a_miss(tmp_path, monkeypatch):
    cache = DiskCache(tmp_path)
    cache.put(key(), {0: frame(7)})
    utime = os.utime

    def evict(path, *args, **kwargs):
        path.unlink()
        utime(path, *args, **kwargs)

    monkeypatch.setattr("gym_longvideo.video.cache.os.utime", evict)
    assert values(cache.get(key(), [0])) == {0: 7}
    assert cache.get(key(), [0]) == {}


def test_a_directory_that_cannot_be_made_is_no_obstacle(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        cache = DiskCache(tmp_path / "file" / "cache")
        cache.put(key(), {0: frame(0)})
        assert cache.get(key(), [0]) == {}
    assert len(caplog.records) == 1


@pytest.mark.parametrize("kind", [FrameCache, lambda max_bytes: DiskCache(".", max_bytes)])
def test_a_negative_bound_is_refused(kind):
    with pytest.raises(ValueError, match="max_bytes=-1 is negative"):
        kind(max_bytes=-1)
