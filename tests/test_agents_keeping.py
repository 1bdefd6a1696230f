"""What keeps a run from being lost: locks, damage, faults, divergence, going on."""

import errno
import json
import logging
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from agents_models import model_dir
from agents_training import ENV, SUITE, Loose, differing, metrics_of, small, state_of, trained
from benchmark_runs import make_card

from agents import train
from agents.checkpoint import CheckpointError, config_of, find, load_policy
from agents.keeping import interrupts, undo
from agents.keeping.directory import Hold, RunError, claim
from agents.keeping.divergence import MOST_LOST, DivergedError
from agents.keeping.saved import DamagedCheckpoint, newest_intact
from agents.logbook import Logbook, cut
from agents.parallel import ProcessError, Processes
from agents.trainer import Trainer
from benchmarks.runs import RunWriter
from gym_longvideo.video.errors import VideoError, VideoOpenError

ROOT = Path(__file__).parents[1]
QUIET = {"eval_every": 0, "iterations": 1}
FULL = Path("/dev/full")


@pytest.fixture(scope="module", autouse=True)
def loose():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gym_longvideo.wrappers.make_protocol", lambda _: Loose())
        yield


def alone(out, **changes):
    return Trainer(small(out, **changes), processes=Processes("cpu"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A finished run with checkpoints of steps 1, 2 and 3."""
    out = tmp_path_factory.mktemp("kept")
    trained(small(out, iterations=3, eval_every=0, save_every=1))
    return out


@pytest.fixture
def run(kept, tmp_path):
    """A copy of it that may be spoiled."""
    return shutil.copytree(kept, tmp_path / "run")


# --- one run, one directory -----------------------------------------------------------------------


def test_training_and_evaluation_keep_each_other_out_of_a_directory(tmp_path):
    first = alone(tmp_path, **QUIET)
    says = rf"another process writes to {tmp_path} \(process {os.getpid()} on .*choose another dir"
    for other in (lambda: alone(tmp_path, **QUIET), lambda: RunWriter(tmp_path, make_card())):
        with pytest.raises(RunError, match=says):
            other()
    first.run()
    for resume in (str(tmp_path), str(tmp_path / "checkpoint-000001")):
        second = alone(tmp_path, **QUIET, resume=resume)
        with pytest.raises(RunError, match=says):
            alone(tmp_path, **QUIET, resume=resume)
        second.close()
    with RunWriter(tmp_path, make_card()), pytest.raises(RunError, match=says):
        alone(tmp_path, **QUIET, resume=str(tmp_path))


def test_a_lock_dies_with_its_process(tmp_path):
    code = (
        "import sys, time\n"
        "from agents.keeping.directory import Hold\n"
        "hold = Hold(sys.argv[1])\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=rf"\(process {holder.pid} on "):
        Hold(tmp_path)
    holder.kill()
    holder.communicate()
    Hold(tmp_path).release()


def test_two_runs_of_the_same_second_have_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = SimpleNamespace(now=lambda: SimpleNamespace(strftime=lambda _: "train-1"))
    monkeypatch.setattr("agents.keeping.directory.datetime", now)
    first, _ = claim("")
    second, _ = claim("")
    first.release()
    third, _ = claim("")
    names = [hold.directory.name for hold in (first, second, third)]
    assert names == ["train-1", "train-1-2", "train-1-3"]
    second.release()
    third.release()


def test_a_run_that_cannot_begin_leaves_no_directory(tmp_path):
    with pytest.raises(ValueError, match="is a policy of the kind 'scripted'"):
        alone(tmp_path / "a" / "run", model="oracle")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        alone(tmp_path / "a" / "run", resume=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_run_does_not_go_on_among_the_files_of_another(run, tmp_path):
    trained(small(tmp_path / "other", **QUIET))
    before = (tmp_path / "other" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds a run already; pass resume="):
        alone(tmp_path / "other", resume=str(run / "checkpoint-000001"))
    assert (tmp_path / "other" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "is_file"),
    [(name, True) for name in ("samples", "records", "tensorboard", "checkpoint-000001")]
    + [(name, False) for name in ("metrics.jsonl", "config.json", "latest")],
)
def test_a_stray_thing_in_the_way_is_named_before_training(tmp_path, name, is_file):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    path.write_bytes(b"mine") if is_file else path.mkdir()
    with pytest.raises(ValueError, match=rf"{name} is in the way: a run has a"):
        alone(tmp_path / "run", **QUIET)
    assert [each.name for each in path.parent.iterdir() if each.name[0] != "."] == [name]


def test_a_stray_file_with_the_name_of_a_checkpoint_is_not_overwritten(tmp_path):
    trainer = alone(tmp_path, **QUIET)
    (tmp_path / "checkpoint-000000").write_text("mine")
    (tmp_path / ".checkpoint-000007.part").write_text("left over")
    with pytest.raises(CheckpointError, match=r"checkpoint-000000 is in the way.*move it"):
        trainer.save()
    trainer.close()
    assert (tmp_path / "checkpoint-000000").read_text() == "mine"
    assert not (tmp_path / ".checkpoint-000007.part").exists()


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        *(b"[]", b"null", b"7", b"", b"{}", b"\xff\xfe\x00", b"[" * 100_000),
        *(b'{"format": 1, "step"', b'{"format": 1}'),
        b'{"format": 1, "step": 3, "config": [], "fingerprint": {}}',
    ],
)
def test_a_state_that_cannot_be_read_names_itself_and_what_is_intact(run, content, caplog):
    (run / "checkpoint-000003" / "state.json").write_bytes(content)
    (run / "checkpoint-000002" / "critic.safetensors").unlink()
    says = r"checkpoint-000003.*go on from .*checkpoint-000001, which is intact"
    for read in (
        lambda: alone(run, resume=str(run)),
        lambda: load_policy(run),
        lambda: config_of(run),
    ):
        with pytest.raises(CheckpointError, match=says):
            read()
    caplog.clear()
    assert newest_intact(run) == run / "checkpoint-000001"
    assert ["checkpoint-000003" in each.message for each in caplog.records] == [True, False]
    assert "critic.safetensors is missing" in caplog.records[1].message


def test_what_cannot_be_read_for_another_reason_than_damage_is_never_passed_over(run):
    state = json.loads((run / "checkpoint-000003" / "state.json").read_text())
    (run / "checkpoint-000003" / "state.json").write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(CheckpointError, match="has format 2, written by") as caught:
        newest_intact(run)
    assert not isinstance(caught.value, DamagedCheckpoint)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\x00\xfe",
        b"",
        b"../other/checkpoint-000001\n",
        b"/checkpoint-000001",
        b"..",
        b"x" * 999,
    ],
)
def test_a_pointer_that_names_no_checkpoint_of_the_run_is_refused(run, content, caplog):
    shutil.copytree(run, run.parent / "other")
    (run / "latest").write_bytes(content)
    says = r"run/latest is damaged.*go on from .*run/checkpoint-000003, which is intact"
    for read in (find, load_policy, lambda path: alone(path, resume=str(path))):
        with pytest.raises(CheckpointError, match=says):
            read(run)
    assert newest_intact(run) == run / "checkpoint-000003"
    assert "latest is damaged" in caplog.text


def test_a_damaged_file_names_the_checkpoint_to_go_on_from(run):
    (run / "checkpoint-000003" / "trainer.pt").write_bytes(b"half")
    says = r"trainer\.pt is not as it was written; go on from .*checkpoint-000002, which is intact"
    with pytest.raises(DamagedCheckpoint, match=says):
        alone(run, resume=str(run))
    for path in run.glob("checkpoint-00000[12]"):
        shutil.rmtree(path)
    with pytest.raises(DamagedCheckpoint, match="no other checkpoint there is intact"):
        alone(run, resume=str(run))


def test_checkpoints_are_in_the_order_of_their_steps_however_many_digits_those_have(tmp_path):
    for step in (999_999, 1_000_000, 20):
        path = tmp_path / f"checkpoint-{step:06d}"
        path.mkdir()
        (path / "state.json").write_text("{}")
    assert find(tmp_path).name == "checkpoint-1000000"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'\xff\xfe{\x00"\x00', 1),
        (b'{"step": 0}\nnonsense\n{"step": 1}\n', 2),
        (b'{"step": 0}\n[1]\n{"step": 1}\n', 2),
        ('{"step": 0}\n'.encode("utf-16"), 1),
    ],
)
def test_metrics_that_cannot_be_read_are_named_and_left_alone(run, content, line):
    (run / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line {line}: .*checkpoints are whole"):
        trained(small(run, **QUIET, resume=str(run)))
    assert (run / "metrics.jsonl").read_bytes() == content
    Hold(run).release()  # nobody holds it any more


@pytest.mark.parametrize("torn", [b'{"step": 1, "x', b"\0\0\0\n", b"\0\0"])
def test_what_a_kill_or_loss_of_power_left_of_a_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + torn)
    cut(path, 5)
    assert path.read_bytes() == b'{"step": 0}\n'


# --- full disks -----------------------------------------------------------------------------------


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("name", ["trainer.pt", ".latest.part", "metrics.jsonl"])
def test_a_full_disk_is_called_so_and_leaves_older_checkpoints(tmp_path, monkeypatch, name):
    trainer = alone(tmp_path, iterations=2, eval_every=0)
    trainer.save()
    genuine = Path.open

    def opened(path, *args, **options):
        return genuine(FULL if path.name == name else path, *args, **options)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises((CheckpointError, RunError), match="the disk is full: ") as caught:
        trainer.run()
    assert name.strip(".").partition(".")[0] in str(caught.value) or "checkpoint-" in str(
        caught.value
    )
    monkeypatch.undo()
    assert find(tmp_path).name == "checkpoint-000000"
    assert newest_intact(tmp_path) == tmp_path / "checkpoint-000000"
    assert trained(small(tmp_path, **QUIET, resume=str(tmp_path))).step == 1


def test_tensorboard_shows_nothing_twice_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    same = {"iterations": 2, "eval_every": 1, "save_every": 1}
    trained(small(tmp_path, **same))
    trained(small(tmp_path, **same, resume=str(tmp_path / "checkpoint-000001")))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for tag in ("charts/return", "losses/policy_loss"):
        assert [event.step for event in board.Scalars(tag)] == [0, 1]
    assert [event.step for event in board.Tensors("sample/0/text_summary")] == [0, 1, 2]
    assert [event.step for event in board.Images("sample/0")] == [0, 1, 2]
    assert len(board.Tensors("config/text_summary")) == 1


def test_tensorboard_reads_a_run_in_order_however_its_files_are_called(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = iter(range(99, 0, -1))  # of processes: later ones are read first
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.os.getpid", names.__next__)
    for step in (0, 1, 2, 2):
        book = Logbook(tmp_path, step=step)
        book.write(step, {"charts/return": float(step)})
        book.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("charts/return")] == [0, 1, 2]


def test_a_run_begun_anew_forgets_the_events_of_the_first_attempt(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        book = Logbook(tmp_path, step=0)
        book.config({"a": 1})
        book.write(0, {"charts/return": 1.0})
        book.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(board.Scalars("charts/return")) == len(board.Tensors("config/text_summary")) == 1
    assert len(metrics_of(tmp_path)) == 1


# --- faults ---------------------------------------------------------------------------------------


def breaks_at(monkeypatch, collector, *tasks):
    """Let the videos of some tasks of a collector not open."""
    for env in collector.envs:
        base = env.unwrapped
        genuine, suite = base.viewer.open, base.suite
        names = {suite[task].task_id for task in tasks}

        def opened(task, genuine=genuine, names=names):
            if task.task_id in names:
                raise VideoOpenError(f"{task.task_id} is not a video")
            return genuine(task)

        monkeypatch.setattr(base.viewer, "open", opened)


@pytest.mark.parametrize("broken", [(1,), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("episodes", [5, 3])
def test_broken_videos_of_a_small_held_out_set_are_counted_and_the_run_goes_on(
    tmp_path, monkeypatch, broken, episodes
):
    trainer = alone(tmp_path, iterations=1, eval_episodes=episodes)
    breaks_at(monkeypatch, trainer.examiner, *broken)
    trainer.run()
    first = metrics_of(tmp_path)[0]
    assert trainer.step == 1 and first["eval/episodes"] == (5 - len(broken) if episodes == 5 else
                                                            min(3, 5 - len(broken)))  # fmt: skip
    if episodes == 5 or len(broken) == 5:
        assert first["eval/faults"] == len(broken)
    assert (first["eval/accuracy"] is None) == (len(broken) == 5)


def test_when_no_video_opens_the_run_ends_with_a_line_and_a_checkpoint(
    tmp_path, monkeypatch, capsys
):
    genuine = Trainer.run

    def run(trainer):
        breaks_at(monkeypatch, trainer.collector, *range(5))
        return genuine(trainer)

    monkeypatch.setattr(Trainer, "run", run)
    options = [
        *("--model", str(model_dir()), "--device", "cpu", "--threads", "1", "--batch", "4"),
        *("--env", json.dumps(ENV), "--suite-options", json.dumps(SUITE), "--eval-every", "0"),
    ]
    assert train.main([*options, "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "error: 100 videos in a row could not be opened" in said and "Traceback" not in said
    assert said.rstrip().endswith(f"go on with --resume {tmp_path / 'checkpoint-000000'}")


class Boom(Exception):
    """Something that nobody foresaw."""


def fail_at(monkeypatch, trainer, stage, step=1):
    """Let a run break at a step, at some stage of an iteration."""
    owner, name = {
        "collect": (trainer.collector, "collect"),
        "step": (trainer.learner, "actor_step"),
        "log": (trainer, "_log"),
        "evaluate": (trainer.examiner, "collect"),
    }[stage]
    genuine, calls = getattr(owner, name), []

    def fails(*args, **options):
        calls.append(trainer.step)
        # The second of the policy's steps, so that the first has moved it.
        if trainer.step == step and (stage != "step" or calls.count(step) == 2):
            raise Boom
        return genuine(*args, **options)

    monkeypatch.setattr(owner, name, fails)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    return state_of(trained(small(out, iterations=3, eval_every=1))), metrics_of(out)


@pytest.mark.parametrize("stage", ["collect", "step", "log", "evaluate"])
def test_whatever_ends_a_run_it_goes_on_bit_by_bit_from_where_it_was(
    tmp_path, monkeypatch, stage, straight
):
    trainer = alone(tmp_path, iterations=3, eval_every=1)
    fail_at(monkeypatch, trainer, stage)
    with pytest.raises(Boom):
        trainer.run()
    assert find(tmp_path).name == "checkpoint-000001"
    again = trained(small(tmp_path, iterations=3, eval_every=1, resume=str(tmp_path)))
    assert differing(straight[0], state_of(again)) == []
    assert metrics_of(tmp_path) == straight[1]


def test_an_update_too_large_to_take_back_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(undo, "LARGEST", 0)
    for stage, left in (("step", "checkpoint-000000"), ("collect", "checkpoint-000001")):
        trainer = alone(tmp_path / stage, iterations=3, eval_every=0)
        trainer.save()
        fail_at(monkeypatch, trainer, stage)
        with pytest.raises(Boom):
            trainer.run()
        assert find(tmp_path / stage).name == left


# --- divergence -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "save_every"), [("actor", 2), ("critic", 0)])
def test_a_weight_that_is_nan_stops_the_run_and_the_last_good_checkpoint_stays(
    tmp_path, monkeypatch, part, save_every
):
    trainer = alone(tmp_path, iterations=9, eval_every=0, save_every=save_every)
    genuine = trainer.learner._optimise

    def spoils(batch):
        metrics = genuine(batch)
        if trainer.step == 3:
            getattr(trainer.learner, f"{part}_parameters")[-1].data.view(-1)[0] = math.nan
        return metrics

    monkeypatch.setattr(trainer.learner, "_optimise", spoils)
    with pytest.raises(DivergedError, match=r"held NaN or infinity after update 4: .*diverged"):
        trainer.run()
    # Without any checkpoint, the state before the update that broke is better than nothing.
    assert find(tmp_path).name == f"checkpoint-00000{2 if save_every else 3}"
    policy = load_policy(tmp_path)
    assert all(bool(p.isfinite().all()) for p in policy.base.parameters())


def test_a_diverged_state_is_not_written_over_a_good_one(tmp_path):
    trainer = alone(tmp_path, iterations=2, eval_every=0)
    trainer.save()
    trainer.learner.actor_parameters[0].data.fill_(math.inf)
    trainer.step = trainer.learner.step = 1
    with pytest.raises(DivergedError, match="at step 1"):
        trainer.save()
    with pytest.raises(DivergedError, match="at step 1"):
        trainer.run()
    assert find(tmp_path).name == "checkpoint-000000"
    assert newest_intact(tmp_path) == tmp_path / "checkpoint-000000"


def test_an_endless_run_of_skipped_steps_stops_with_a_line(tmp_path, monkeypatch, capsys, caplog):
    genuine = torch.nn.utils.clip_grad_norm_
    counted = []

    def norm(parameters, limit):
        counted.append(1)
        found = genuine(parameters, limit)
        return found if len(counted) <= 4 else found * math.nan  # two of each in an update

    monkeypatch.setattr("agents.ppo.nn.utils.clip_grad_norm_", norm)
    trainer = alone(tmp_path, iterations=50, eval_every=0, save_every=1, keep=9)
    with pytest.raises(DivergedError, match=rf"in {MOST_LOST} updates in a row, up to update"):
        trainer.run()
    assert trainer.step < 6
    assert sum("was finite" in each.message for each in caplog.records) >= MOST_LOST
    assert find(tmp_path).name == f"checkpoint-{trainer.step:06d}"


def test_a_model_that_holds_nan_is_refused_before_training(tmp_path):
    from agents_models import load

    policy = load()
    next(policy.base.parameters()).data.view(-1)[0] = math.nan
    with pytest.raises(DivergedError, match="held NaN or infinity before training"):
        Trainer(small(tmp_path), policy=policy, processes=Processes("cpu"))


# --- going on -------------------------------------------------------------------------------------


def test_auto_begins_goes_on_and_ends_where_a_straight_run_does(tmp_path, straight, monkeypatch):
    same = {"iterations": 3, "eval_every": 1, "resume": "auto"}
    first = alone(tmp_path, **same)
    fail_at(monkeypatch, first, "collect", step=0)
    monkeypatch.setattr(first.keeper, "rescue", lambda *_: None)  # as if it had been killed
    with pytest.raises(Boom):
        first.run()
    assert (tmp_path / "config.json").exists() and not list(tmp_path.glob("checkpoint-*"))
    second = alone(tmp_path, **same)
    fail_at(monkeypatch, second, "collect", step=2)
    with pytest.raises(Boom):
        second.run()
    third = trained(small(tmp_path, **same))
    assert differing(straight[0], state_of(third)) == [] and metrics_of(tmp_path) == straight[1]
    assert trained(small(tmp_path, **same)).step == 3  # there is nothing left to do


def test_auto_passes_over_a_damaged_newest_checkpoint_only_with_a_warning(run, caplog):
    (run / "checkpoint-000003" / "trainer.pt").write_bytes(b"half")
    trainer = alone(run, iterations=3, eval_every=0, resume="auto")
    assert trainer.step == 2 and trainer.dealing.state()["count"] > 0
    warned = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warned) == 1 and "checkpoint-000003 is damaged: trainer.pt" in warned[0].message
    trainer.run()
    assert newest_intact(run) == run / "checkpoint-000003"


def test_auto_needs_a_directory_and_takes_a_runs_own_settings(run, kept, capsys):
    with pytest.raises(ValueError, match=r"resume='auto' goes on with the run in out="):
        small("", resume="auto")
    assert train.main(["--resume", "auto"]) == 2
    assert "name that directory" in capsys.readouterr().err
    out = ["--resume", "auto", "--out", str(run)]
    config = train.parse([*out, "--iterations", "4"])
    assert (config.suite_options, config.batch, config.iterations) == (SUITE, 4, 4)
    assert (config.resume, config.out) == ("auto", str(run))
    again = train.parse(["--config", str(run / "config.json"), "--resume", "auto"])
    assert (again.batch, again.out, again.resume) == (4, str(kept), "auto")
    assert train.parse(["--resume", "auto", "--out", str(run / "none")]).batch == 64


def test_checkpoints_are_taken_by_minutes_too(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("agents.keeping.keeper.time", SimpleNamespace(monotonic=lambda: clock[0]))
    trainer = alone(tmp_path, iterations=6, eval_every=0, save_minutes=1.5, keep=9)
    genuine = trainer.learner.update

    def takes_half_a_minute(episodes):
        clock[0] += 30.0
        return genuine(episodes)

    monkeypatch.setattr(trainer.learner, "update", takes_half_a_minute)
    trainer.run()
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == ["checkpoint-000003", "checkpoint-000006"]
    with pytest.raises(ValueError, match=r"save_minutes=-1 must be a number, 0 or more"):
        small(tmp_path, save_minutes=-1)


class Peer(Processes):
    """A main process whose only peer is told what to do."""

    signum = 0
    failed = False

    def largest(self, value):
        return max(float(value), float(self.signum))

    def total(self, *values):
        return [float(value) or float(self.failed and value is False) for value in values]


def test_a_signal_that_reaches_another_process_alone_stops_and_saves_all(tmp_path, capsys):
    peer = Peer("cpu")
    trainer = Trainer(small(tmp_path, iterations=9, eval_every=0), processes=peer)
    genuine = trainer.learner.update

    def signalled(episodes):
        peer.signum = signal.SIGTERM
        return genuine(episodes)

    trainer.learner.update = signalled
    trainer.run()
    assert (trainer.step, trainer.stopped_by) == (1, signal.SIGTERM)
    assert find(tmp_path).name == "checkpoint-000001"


def test_what_fails_in_another_process_ends_this_one_at_the_same_point():
    peer = Peer("cpu")
    peer.agree(None)
    with pytest.raises(Boom):
        peer.agree(Boom())
    peer.failed = True
    with pytest.raises(ProcessError, match="its own output says why"):
        peer.agree(None)
    peer.rank = 1  # not the main one: it does nothing, and hears what that found
    peer.gather = lambda mine: [(None, VideoError("gone")), mine]
    with pytest.raises(VideoError, match="gone"):
        peer.by_main(lambda: pytest.fail("this is not the main process"))


# --- other systems --------------------------------------------------------------------------------


def test_a_run_is_saved_where_directories_cannot_be_opened(tmp_path, monkeypatch):
    genuine = os.open

    def as_on_windows(path, flags, *more, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return genuine(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", as_on_windows)
    trained(small(tmp_path, **QUIET))
    monkeypatch.undo()
    assert newest_intact(tmp_path) == tmp_path / "checkpoint-000001"
    state = json.loads((tmp_path / "checkpoint-000001" / "state.json").read_text())
    assert "policy/model.safetensors" in state["files"]


def test_signals_that_a_system_lacks_are_done_without(monkeypatch):
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    monkeypatch.delattr(signal, "SIGTERM")
    wishes = runpy.run_path(interrupts.__file__)["WISHES"]
    assert wishes == [signal.SIGINT, signal.SIGUSR1]


def test_nobody_has_to_listen_to_what_a_signal_says(monkeypatch):
    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", closed)
    wish = interrupts.Interrupts()
    wish._handle(signal.SIGINT, None)
    assert wish.signum == signal.SIGINT
