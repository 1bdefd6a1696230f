from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.scripted import make_agent
from benchmarks.card import Card, make_card
from benchmarks.controls import ControlledSuite, record_key
from benchmarks.players.player import new_cost
from benchmarks.runs import RunError, RunWriter, read_run, write_json
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.haystack import HaystackSuite
from gym_longvideo.record import EpisodeRecord

SUITE = HaystackSuite("val", size=6)


def play(suite: Any, index: int) -> EpisodeRecord:
    env = LongVideoQAEnv(suite=suite, frame_size=28, pool_size=16, frame_budget=8)
    observation, _ = env.reset(options={"index": index})
    agent = make_agent("uniform_single_turn", seed=index)
    env.step(agent.act(env, observation))
    return EpisodeRecord.from_json(env.record.to_json())  # lists for tuples, as read back


RECORDS = {record.task["task_id"]: record for record in (play(SUITE, i) for i in range(4))}
KEYS = list(RECORDS)
FIRST = RECORDS[KEYS[0]]


def card_of(suite: Any = SUITE, name: str = "uniform_single_turn", **settings: Any) -> Card:
    env = LongVideoQAEnv(suite=suite, frame_size=28, **{"pool_size": 16, **settings})
    return make_card(
        env,
        suite,
        protocol="numeric",
        system_prompt="",
        control="none",
        episodes=None,
        seed=0,
        policy={"kind": "scripted", "name": name},
    )


CARD = card_of()


def fill(directory: Path, keys: list[str] = KEYS) -> Path:
    with RunWriter(directory, CARD) as writer:
        for key in keys:
            writer.add(key, RECORDS[key], new_cost(decode_s=0.5))
    return directory


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a" / "run", CARD) as writer:
        assert writer.done == set() and writer.accuracy == 0.0
        for key in KEYS[:2]:
            writer.add(key, RECORDS[key], new_cost(decode_s=0.5))
        writer.fault(KEYS[2], "VideoOpenError: broken")
        writer.fault(KEYS[2], "VideoOpenError: broken still")
        assert writer.done == set(KEYS[:2]) and writer.faults == 2
    run = read_run(tmp_path / "a" / "run")
    assert run.card == CARD and run.records == tuple(RECORDS[key] for key in KEYS[:2])
    assert run.costs[KEYS[0]] == {"key": KEYS[0], **new_cost(decode_s=0.5)}
    assert [fault["attempt"] for fault in run.faults] == [1, 2]
    assert run.faults[0]["error"] == "VideoOpenError: broken"


def test_each_line_is_there_as_soon_as_it_is_added(tmp_path: Path) -> None:
    with RunWriter(tmp_path, CARD) as writer:
        writer.add(KEYS[0], FIRST, new_cost())
        assert (tmp_path / "records.jsonl").read_text() == FIRST.to_json() + "\n"
        assert json.loads((tmp_path / "costs.jsonl").read_text())["key"] == KEYS[0]
        assert len(read_run(tmp_path).records) == 1


def test_a_run_goes_on_where_it_stopped_and_counts_attempts(tmp_path: Path) -> None:
    fill(tmp_path, KEYS[:2])
    with RunWriter(tmp_path, CARD, KEYS) as writer:
        assert writer.done == set(KEYS[:2])
        right = sum(RECORDS[key].outcome == "correct" for key in KEYS[:2])
        assert writer.accuracy == right / 2
        writer.fault(KEYS[3], "x")
        writer.add(KEYS[2], RECORDS[KEYS[2]], new_cost())
    with RunWriter(tmp_path, CARD, KEYS) as writer:
        writer.fault(KEYS[3], "y")
    run = read_run(tmp_path)
    assert [record_key(record) for record in run.records] == KEYS[:3]
    assert [fault["attempt"] for fault in run.faults] == [1, 2]


@pytest.mark.parametrize("name", ["records.jsonl", "costs.jsonl", "faults.jsonl"])
@pytest.mark.parametrize("torn", [b'{"format": 1, "lib', b"\0\0\0\0\n", b'{"key": "\xc3'])
def test_a_line_cut_short_is_dropped_and_its_episode_played_again(
    tmp_path: Path, name: str, torn: bytes
) -> None:
    fill(tmp_path, KEYS[:2])
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(read_run(tmp_path).records) == 2
    assert path.read_bytes() == whole + torn  # reading repairs nothing
    with RunWriter(tmp_path, CARD) as writer:
        assert writer.done == set(KEYS[:2])
        assert path.read_bytes() == whole
        writer.add(KEYS[2], RECORDS[KEYS[2]], new_cost())
    assert [record_key(record) for record in read_run(tmp_path).records] == KEYS[:3]


def test_a_record_cut_anywhere_never_counts(tmp_path: Path) -> None:
    fill(tmp_path, KEYS[:2])
    path = tmp_path / "records.jsonl"
    data = path.read_bytes()
    second = data.index(b"\n") + 1
    for length in (second, second + 1, len(data) - 200, len(data) - 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert [record_key(record) for record in read_run(tmp_path).records] == KEYS[:1]
    path.write_bytes(b"")
    assert read_run(tmp_path).records == () and read_run(tmp_path).costs == {}


def test_a_cost_whose_record_never_came_is_replaced(tmp_path: Path) -> None:
    fill(tmp_path, KEYS[:1])
    with (tmp_path / "costs.jsonl").open("a") as stream:
        stream.write(json.dumps({"key": KEYS[1], "decode_s": 9.0}) + "\n")
    assert set(read_run(tmp_path).costs) == {KEYS[0]}
    with RunWriter(tmp_path, CARD) as writer:
        writer.add(KEYS[1], RECORDS[KEYS[1]], new_cost(decode_s=1.0))
    assert read_run(tmp_path).costs[KEYS[1]]["decode_s"] == 1.0


def test_a_full_disk_is_told_and_the_lines_before_it_survive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = os.write
    left = [0]

    def full(file: int, data: Any) -> int:
        part = bytes(data)[: left[0]]
        if not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(part)
        return genuine(file, part)

    with RunWriter(tmp_path, CARD) as writer:
        writer.add(KEYS[0], FIRST, new_cost())
        before = (tmp_path / "records.jsonl").read_bytes()
        for left[0] in (0, 10, 300, 1000):  # in the cost, in the record
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", full)
                with pytest.raises(RunError, match=r"No space left.*1 episodes are safe"):
                    writer.add(KEYS[1], RECORDS[KEYS[1]], new_cost())
            assert (tmp_path / "records.jsonl").read_bytes() == before
            assert KEYS[1] not in writer.done
        writer.add(KEYS[1], RECORDS[KEYS[1]], new_cost())
    assert [record_key(record) for record in read_run(tmp_path).records] == KEYS[:2]


def test_short_writes_make_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = os.write
    monkeypatch.setattr(os, "write", lambda file, data: genuine(file, bytes(data)[:7]))
    fill(tmp_path)
    monkeypatch.undo()
    assert read_run(tmp_path).records == tuple(RECORDS.values())


def test_two_writers_at_once_are_refused_in_one_process_and_in_two(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from benchmarks.card import Card\n"
        "from benchmarks.runs import RunError, RunWriter\n"
        "from pathlib import Path\n"
        "card = Card.from_json(Path(sys.argv[1], 'card.json').read_text())\n"
        "try:\n    RunWriter(sys.argv[1], card)\nexcept RunError as error:\n    print(error)\n"
        "else:\n    print('opened')\n"
    )

    def other() -> str:
        command = [sys.executable, "-c", program, str(tmp_path)]
        root = Path(__file__).parents[1]
        return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout

    with RunWriter(tmp_path, CARD) as writer:
        with pytest.raises(RunError, match="another process writes"):
            RunWriter(tmp_path, CARD)
        assert "another process writes" in other()
        writer.add(KEYS[0], FIRST, new_cost())
    assert "opened" in other()
    assert len(read_run(tmp_path).records) == 1


def test_another_card_is_refused_naming_the_knobs(tmp_path: Path) -> None:
    fill(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"protocol\.settings\.pool_size: 16 != 32"):
        RunWriter(tmp_path, card_of(pool_size=32))
    with pytest.raises(ValueError, match=r"policy\.name"):
        RunWriter(tmp_path, card_of(name="bisect"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with RunWriter(tmp_path, card_of()) as writer:  # the lock was let go
        assert len(writer.done) == 4


def test_records_of_another_suite_are_refused_naming_file_and_line(tmp_path: Path) -> None:
    fill(tmp_path, KEYS[:2])
    path = tmp_path / "records.jsonl"
    stranger = replace(RECORDS[KEYS[2]], suite="videomme")
    with path.open("a") as stream:
        stream.write(stranger.to_json() + "\n" + RECORDS[KEYS[3]].to_json() + "\n")
    for read in (lambda: read_run(tmp_path), lambda: RunWriter(tmp_path, CARD)):
        with pytest.raises(ValueError, match=r"records\.jsonl, line 3: .*'videomme'"):
            read()


def test_records_that_the_run_does_not_play_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, KEYS[:3])
    with pytest.raises(ValueError, match=f"line 3: task '{KEYS[2]}' does not belong"):
        RunWriter(tmp_path, CARD, KEYS[:2])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "not an episode record"),
        ('{"format": 99}', "format 99"),
        ("[]", "list"),
        (FIRST.to_json(), "is there twice"),
        (replace(RECORDS[KEYS[1]], outcome="infra_error").to_json(), "'infra_error'"),
        (replace(RECORDS[KEYS[1]], outcome="").to_json(), "outcome ''"),
        (replace(RECORDS[KEYS[1]], task={}).to_json(), "meta"),
    ],
)
def test_lines_in_the_middle_that_are_no_results_are_named(
    tmp_path: Path, line: str, says: str
) -> None:
    fill(tmp_path, KEYS[:1])
    with (tmp_path / "records.jsonl").open("a") as stream:
        stream.write(line + "\n" + RECORDS[KEYS[3]].to_json() + "\n")
    for read in (lambda: read_run(tmp_path), lambda: RunWriter(tmp_path, CARD)):
        with pytest.raises(ValueError, match=r"records\.jsonl, line 2: ") as caught:
            read()
        assert says in str(caught.value)


@pytest.mark.parametrize("name", ["costs.jsonl", "faults.jsonl"])
def test_costs_and_faults_that_cannot_be_read_are_named(tmp_path: Path, name: str) -> None:
    fill(tmp_path)
    for line in ("nonsense", "[1]", '{"key": 5}'):
        (tmp_path / name).write_text(f'{{"key": "a"}}\n{line}\n{{"key": "b"}}\n')
        for read in (lambda: read_run(tmp_path), lambda: RunWriter(tmp_path, CARD)):
            with pytest.raises(ValueError, match=f"{name}, line 2"):
                read()


def test_only_results_are_added_each_once_and_under_its_key(tmp_path: Path) -> None:
    with RunWriter(tmp_path, CARD) as writer:
        for outcome in ("", "infra_error"):
            with pytest.raises(ValueError, match="it is no result"):
                writer.add(KEYS[0], replace(FIRST, outcome=outcome), new_cost())
        writer.add(KEYS[0], FIRST, new_cost())
        with pytest.raises(ValueError, match="recorded once"):
            writer.add(KEYS[0], FIRST, new_cost())
        with pytest.raises(ValueError, match="under its own key"):
            writer.add(KEYS[1], RECORDS[KEYS[2]], new_cost())
    with pytest.raises(ValueError, match="is closed"):
        writer.add(KEYS[1], RECORDS[KEYS[1]], new_cost())
    assert len(read_run(tmp_path).records) == 1


def test_rotations_have_keys_of_their_own(tmp_path: Path) -> None:
    suite = ControlledSuite(SUITE, "circular", indices=[2])
    with RunWriter(tmp_path, card_of(suite), suite.keys()) as writer:
        for index, key in enumerate(suite.keys()):
            writer.add(key, play(suite, index), new_cost())
    run = read_run(tmp_path)
    assert [record_key(record) for record in run.records] == [
        f"{SUITE[2].task_id}@{i}" for i in range(4)
    ]
    assert set(run.costs) == set(suite.keys())


def test_replies_of_any_characters_keep_their_line(tmp_path: Path) -> None:
    turn = {**FIRST.turns[0], "reply": "a\u2028b\nc\r\ud800\x00\U0001f600"}
    record = replace(FIRST, turns=[turn])
    with RunWriter(tmp_path, CARD) as writer:
        writer.add(KEYS[0], record, new_cost())
        writer.fault(KEYS[1], "\ud800")
    run = read_run(tmp_path)
    assert run.records == (record,) and run.faults[0]["error"] == "\ud800"


def test_a_directory_that_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no card\.json"):
        read_run(tmp_path)
    fill(tmp_path)
    (tmp_path / "card.json").unlink()
    with pytest.raises(ValueError, match=r"holds records\.jsonl without card\.json"):
        RunWriter(tmp_path, CARD)
    for text in ("nonsense", "[]", "{}", "\ud800"):
        (tmp_path / "card.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        for read in (lambda: read_run(tmp_path), lambda: RunWriter(tmp_path, CARD)):
            with pytest.raises(ValueError, match=r"card\.json"):
                read()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        RunWriter(tmp_path / "file", CARD)


def test_json_files_are_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1} and path.read_text().endswith("}\n")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"summary\.json could not be written.*No space"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
