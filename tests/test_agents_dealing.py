"""Dealing: the same tasks, replies and minibatches, whichever process has an episode."""

from __future__ import annotations

import logging
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.dealing.deal import ByPlace, ByProcess, deal_out
from agents.dealing.minibatches import by_place, by_process
from agents.keeping.saved import CheckpointError
from agents.parallel import Processes
from agents.rollout import TrainingOrder

CPU = torch.device("cpu")


class Peer(Processes):
    """One of several processes, which is told what all of them say."""

    def __init__(self, rank: int, size: int, everyones: tuple = ()) -> None:
        self.rank, self.size, self.device, self.everyones = rank, size, CPU, everyones

    def gather(self, value):
        return list(self.everyones)

    def largest(self, value):
        return float(max(map(len, self.everyones)))


def dealings(count, batch, workers=None, size=11, seed=3):
    return [deal_out(size, batch, seed, Peer(rank, count), CPU, workers) for rank in range(count)]


def by_places(dealings, values):
    """Return what processes have for each of their places, in the order of places."""
    found = {p: v for d, mine in zip(dealings, values, strict=True)
             for p, v in zip(d.places, mine, strict=True)}  # fmt: skip
    assert sorted(found) == list(range(dealings[0].batch))
    return [found[p] for p in sorted(found)]


def tasks_of(dealings, skipped=()):
    """Play an iteration; return its tasks by place. The videos at ``skipped`` places are broken."""
    values = []
    for dealing in dealings:
        tasks = dealing.deal()
        for i, place in enumerate(dealing.places):
            if place in skipped:
                other = dealing.replacement
                tasks[i] = (other if callable(other) else other[i])()
        values.append(tasks)
    return by_places(dealings, values)


def kept(dealings):
    return [dealing.state() for dealing in dealings]


# --- tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 5, 6, 12])
def test_an_iteration_has_the_same_tasks_on_any_number_of_processes(batch):
    order = TrainingOrder(11, 3)
    expected = [[order.next() for _ in range(batch)] for _ in range(6)]
    for count in range(1, 5):
        dealt = dealings(count, batch)
        assert [tasks_of(dealt) for _ in range(6)] == expected
        shares = [len(d.places) for d in dealt]
        assert sum(shares) == batch and max(shares) - min(shares) <= 1


@pytest.mark.parametrize("before", [1, 2, 3, 4])
def test_a_run_goes_on_with_the_next_tasks_on_any_number_of_processes(before, caplog):
    caplog.set_level(logging.INFO)
    straight = dealings(1, 5)
    for _ in range(2):
        tasks_of(straight)
    expected = [tasks_of(straight) for _ in range(4)]
    begun = dealings(before, 5)
    assert isinstance(begun[0], ByProcess if before == 1 else ByPlace)
    for _ in range(2):
        tasks_of(begun)
    for after in range(1, 5):
        caplog.clear()
        resumed = dealings(after, 5, kept(begun))
        assert [tasks_of(resumed) for _ in range(4)] == expected
        # For good: it may go on as one process, and is dealt out by place then, too.
        placed = not before == after == 1
        assert isinstance(resumed[0], ByPlace if placed else ByProcess)
        again = dealings(1, 5, kept(resumed))
        assert isinstance(again[0], ByPlace if placed else ByProcess)
        said = f"of the run until now: 1, from here on: {after}; so its random" in caplog.text
        assert said == (before == 1 and after > 1)


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_skipped_video_costs_no_task_and_none_is_played_twice(before, after):
    size, batch = 97, 6  # a single epoch
    dealt = dealings(before, batch, size=size)
    played = [tasks_of(dealt, skipped) for skipped in ((), (1, 4), (4,), ())]
    broken = 3
    resumed = dealings(after, batch, kept(dealt), size=size)
    played += [tasks_of(resumed) for _ in range(5)]
    flat = [task for tasks in played for task in tasks]
    assert len(set(flat)) == len(flat) == 9 * batch
    order = TrainingOrder(size, 3)
    first = [order.next() for _ in range(9 * batch + (broken if before == 1 else 2 * batch))]
    assert set(flat) <= set(first)


def test_a_skipped_video_moves_on_the_tasks_of_its_place_whoever_has_it():
    found = []
    for count in (2, 3, 4):
        dealt = dealings(count, 6)
        played = [tasks_of(dealt, skipped) for skipped in ((0,), (1, 5), (0,))]
        found.append([*played, tasks_of(dealings(5 - count, 6, kept(dealt)))])
    assert found[0] == found[1] == found[2]
    plain = dealings(2, 6)
    for tasks in found[0][:1]:
        others = tasks_of(plain)
        assert [a == b for a, b in zip(tasks, others, strict=True)] == [False, *[True] * 5]


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_batch_of_another_size_begins_with_what_was_drawn_and_not_played(before, after):
    dealt = dealings(before, 4)
    done = [task for _ in range(3) for task in tasks_of(dealt)]
    order = TrainingOrder(11, 3)
    assert done == [order.next() for _ in range(12)]
    resumed = dealings(after, 3, kept(dealt))
    assert tasks_of(resumed) + tasks_of(resumed) == [order.next() for _ in range(6)]


def test_with_a_batch_of_another_size_no_task_is_played_twice_though_videos_were_skipped():
    dealt = dealings(2, 4, size=97)
    played = [task for skipped in ((), (2,)) for task in tasks_of(dealt, skipped)]
    resumed = dealings(3, 5, kept(dealt), size=97)
    played += [task for _ in range(3) for task in tasks_of(resumed)]
    assert len(set(played)) == len(played)


def test_a_run_of_before_on_as_many_processes_goes_on_with_streams_of_their_own():
    """Checkpoints of earlier versions say how far each process has come, and nothing of places."""
    streams = [ByProcess(11, 4, 3, Peer(rank, 2), CPU) for rank in range(2)]
    for dealing in streams:
        dealing.deal()
        torch.rand(7, generator=dealing.generator(0))
    before = kept(streams)
    assert before[0].keys() == {"count", "pending", "generator", "torch"}
    resumed = dealings(2, 4, before)
    for old, new in zip(streams, resumed, strict=True):
        assert isinstance(new, ByProcess) and new.minibatches is by_process
        assert new.deal() == old.deal() and new.pending == old.pending
        ours, theirs = (torch.rand(5, generator=d.generator(1)) for d in (old, new))
        assert torch.equal(ours, theirs)
    order = TrainingOrder(11, 3)
    expected = [[order.next() for _ in range(4)] for _ in range(3)]
    for count in (1, 3):
        dealt = dealings(count, 4, before)
        assert isinstance(dealt[0], ByPlace) and dealt[0].minibatches is by_place
        assert [tasks_of(dealt), tasks_of(dealt)] == expected[1:]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda states: [], r"holds \[\] of its 0 processes"),
        (lambda states: [*states, {"count": 1}], r"\['count'\], \['counts', 'pending', 'start'\]"),
        (
            lambda states: [{**each, "lanes": 2} for each in states],
            r"'lanes', .* cannot go on from",
        ),
    ],
)
def test_what_no_version_kept_is_refused(spoil, says):
    with pytest.raises(CheckpointError, match=says):
        dealings(2, 4, spoil(kept(dealings(2, 4))))


@pytest.mark.parametrize("count", [1, 2])
def test_an_iteration_that_was_given_up_is_dealt_out_again(count):
    dealt = dealings(count, 5)
    for _ in range(2):
        before = kept(dealt)
        first = tasks_of(dealt, skipped=(1,))
        for dealing, state in zip(dealt, before, strict=True):
            dealing.load(state)
        assert tasks_of(dealt, skipped=(1,)) == first


# --- random numbers of replies --------------------------------------------------------------------


def test_noise_depends_on_seed_iteration_and_place_alone():
    def drawn(count, step, seed=3):
        dealt = dealings(count, 5, seed=seed)
        return by_places(
            dealt,
            [
                [tuple(torch.rand(3, generator=g).tolist()) for g in d.generator(step)]
                for d in dealt
            ],
        )

    expected = drawn(2, 7)
    assert len(set(expected)) == 5
    assert drawn(3, 7) == drawn(4, 7) == expected
    resumed = dealings(1, 5, kept(dealings(2, 5)))[0]
    ours = [tuple(torch.rand(3, generator=g).tolist()) for g in resumed.generator(7)]
    assert ours == expected
    for other in (drawn(2, 8), drawn(2, 7, seed=4)):
        assert not set(other) & set(expected)


def test_a_run_that_began_on_one_process_draws_from_one_stream_as_ever():
    (dealt,) = dealings(1, 5)
    seed = int(np.random.SeedSequence([3, 0]).generate_state(1)[0])
    expected = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed))
    drawn = [torch.rand(2, 3, generator=dealt.generator(step)) for step in range(2)]
    assert torch.equal(torch.cat(drawn), expected)


# --- minibatches ----------------------------------------------------------------------------------


def cut(places, size, count, seed=(0, 4), epochs=3):
    """Return the places of each minibatch of each epoch, and how many each process has of them."""
    shared = [[p for p in places if p % count == rank] for rank in range(count)]
    everyones = tuple(np.array(mine, np.int64) for mine in shared)
    found = []
    for rank, mine in enumerate(shared):
        dealt = by_place(mine, size, seed, Peer(rank, count, everyones))
        found.append([[[mine[i] for i in part] for part in next(dealt)] for _ in range(epochs)])
    together = [[sorted(chain(*parts)) for parts in zip(*epoch, strict=True)]
                for epoch in zip(*found, strict=True)]  # fmt: skip
    return together, [[[len(part) for part in epoch] for epoch in rank] for rank in found]


@given(
    st.sets(st.integers(0, 30), min_size=1), st.integers(1, 9), st.integers(0, 5), st.integers(2, 4)
)
def test_minibatches_are_the_same_on_any_number_of_processes(places, size, step, count):
    ours, _ = cut(sorted(places), size, 1, (0, step))
    theirs, _ = cut(sorted(places), size, count, (0, step))
    assert ours == theirs
    for epoch in ours:
        assert sorted(chain(*epoch)) == sorted(places)
        assert all(0 < len(part) <= size for part in epoch)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_have_equal_parts_of_every_minibatch(count):
    together, parts = cut(range(24), 8, count)
    assert all(part == 8 // count for rank in parts for epoch in rank for part in epoch)
    first, second, third = ({frozenset(part) for part in epoch} for epoch in together)
    assert len(first | second | third) == 9  # epochs are cut anew
    assert cut(range(24), 8, count, (0, 5))[0] != together
    assert cut(range(24), 8, count, (1, 4))[0] != together


def test_a_minibatch_that_is_larger_than_the_batch_is_all_of_it():
    assert cut([0, 1, 3], 10**12, 2)[0] == [[[0, 1, 3]]] * 3


def test_two_episodes_at_one_place_are_refused():
    everyones = (np.array([0, 1]), np.array([1, 2]))
    with pytest.raises(ValueError, match="two episodes have the place 1 in the batch; give each"):
        next(by_place([0, 1], 2, (0, 0), Peer(0, 2, everyones)))


def test_one_process_cuts_its_batch_as_ever():
    alone = Peer(0, 1)
    dealt = by_process([0, 1, 2, 3, 4, 5, 6], 3, (5, 2), alone)
    rng = np.random.default_rng([5, 2, 0])
    for _ in range(3):
        expected = [np.sort(part).tolist() for part in np.array_split(rng.permutation(7), 3)]
        assert [part.tolist() for part in next(dealt)] == expected
