"""Rollouts: windows, packing, prefetch, threads, faults and the order of tasks.

Oracles T24 and T31 of the specification.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from agents_models import DOT, adapted, episode, load, several, shared
from hypothesis import given
from hypothesis import strategies as st
from worlds import FailingSuite, GreySuite

from agents.evaluation import play_agent
from agents.model.chat import window
from agents.model.sampling import Reply, Sampling
from agents.rollout import MOST_SKIPPED, RolloutCollector, TrainingOrder
from agents.rollout import play as greedily
from agents.scripted import make_agent
from agents.trajectory import rows_of
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.video.errors import MachineError, VideoError
from gym_longvideo.wrappers import TextProtocol

T = 0.7
SAMPLING = Sampling(temperature=T, max_new_tokens=6)
THINK = "<think>so</think>"
RETRIEVE, ANSWER = THINK + "<retrieve>2, 9</retrieve>", THINK + "<answer>A</answer>"
NONSENSE = "what?"


def environments(count=2, suite=None, **options):
    settings = {
        "pool_size": 16,
        "overview_frames": 2,
        "frames_per_retrieval": 2,
        "frame_budget": None,
        "frame_size": list(DOT),
        "max_turns": 5,
    }
    suite = suite or GreySuite()
    return [TextProtocol(LongVideoQAEnv(suite, **{**settings, **options})) for _ in range(count)]


def play(policy=None, tasks=(0, 1, 2, 3), *, history=None, seed=0, envs=None, **options):
    given = {name: options.pop(name) for name in ("replacement", "upcoming") if name in options}
    sampling = options.pop("sampling", SAMPLING)
    collector = RolloutCollector(
        envs or environments(), policy or shared(), history=history, **{"workers": 0, **options}
    )
    generator = torch.Generator().manual_seed(seed)
    episodes = collector.collect(tasks, sampling, generator, **given)
    collector.close()
    return episodes


class Says:
    """A session that says what a script tells it: (place, turn) to text."""

    def __init__(self, codec, script, calls):
        self.codec, self.script, self.calls = codec, script, calls
        self.prefilled = self.decoded = self.turn = 0

    def reply(self, keys, blocks, *, fresh=False):
        self.calls.append((list(keys), blocks, fresh))
        said = [self.codec.encode_reply(self.script(key, self.turn)).ids for key in keys]
        self.turn += 1
        return [Reply(ids, np.zeros(len(ids), np.float32), False) for ids in said]


def scripted(script):
    """Return a policy, sessions that follow a script, and the list of what those were given."""
    policy, calls = load(), []
    return policy, lambda *_: Says(policy.codec, script, calls), calls


def replies(episodes):
    return [[turn.reply.ids.tolist() for turn in e.turns] for e in episodes]


# --- windows and packing: T24 ---------------------------------------------------------------------


def turns_in(codec, ids):
    return [int(n) for n in re.findall(r"Turn (\d) of 5", codec.tokenizer.decode(ids.tolist()))]


@pytest.mark.parametrize("history", [0, 1, 2, None])
def test_contexts_are_the_last_turns(history):
    policy, session, calls = scripted(lambda place, turn: ANSWER if turn == 4 - place else RETRIEVE)
    episodes = play(policy, (0, 1), history=history, session=session)
    assert [len(e.turns) for e in episodes] == [5, 4]
    contexts = {0: [], 1: []}
    for turn, (keys, blocks, fresh) in enumerate(calls):
        first = 0 if history is None else max(0, turn - history)
        assert fresh == (turn == 0 or first > 0)
        for key, new in zip(keys, blocks, strict=True):
            e = episodes[key]
            seen = (
                [] if fresh else [*contexts[key], policy.codec.reply(e.turns[turn - 1].reply.ids)]
            )
            contexts[key] = [*seen, *new]
            ids = np.concatenate([block.ids for block in contexts[key]])
            assert turns_in(policy.codec, ids) == list(range(first + 1, turn + 2))
            assert ids[: len(e.system.ids)].tolist() == e.system.ids.tolist()
            # The earlier replies are there as they were said.
            said = policy.codec.tokenizer.decode(ids.tolist()).count(RETRIEVE)
            assert said == turn - first
            frames = sum(len(block.frames) for block in contexts[key])
            assert frames == 2 * (turn + 1 - first)


@pytest.mark.parametrize("history", [0, 1, 2, None])
def test_rows_hold_every_reply_once_in_the_context_it_was_said_in(history):
    codec = shared().codec
    made = episode(codec, 0, shown=((DOT,),) * 5, lengths=(3, 2, 4, 3, 2), rewards=(0,) * 5)
    rows, owners = rows_of([made], shared(), history)
    assert owners == [0] * len(rows)
    assert len(rows) == (1 if history is None else 5 - history)
    said = np.concatenate([row.ids[row.sampled] for row in rows])
    assert said.tolist() == [i for ids in replies([made])[0] for i in ids]
    # Not even the last close is fed: nothing is learned from it.
    assert all(row.sampled[-1] for row in rows)


def one_row_a_turn(policy, made, history):
    """Return a row for each turn: its context and its reply, written without ``rows``."""
    rows = []
    for k, turn in enumerate(made.turns):
        earlier = [[t.user, policy.codec.reply(t.reply.ids)._replace(sampled=False), t.close]
                   for t in made.turns[:k]]  # fmt: skip
        last = [turn.user, policy.codec.reply(turn.reply.ids)]
        rows.append(policy.row([made.system, *window([*earlier, last], history)]))
    return rows


@pytest.mark.parametrize("history", [0, 1, None])
def test_one_row_an_episode_and_one_a_turn_agree(history):
    """T24: equal log-probabilities and gradients."""
    found = []
    for packed in (True, False):
        policy = adapted()
        flat, grads = [], []
        for made in several(policy.codec):
            rows = (
                rows_of([made], policy, history)[0]
                if packed
                else one_row_a_turn(policy, made, history)
            )
            scores = policy.score(rows, temperature=T)
            flat.append(scores.log_probs[scores.mask])
        (torch.cat(flat) * torch.linspace(-1, 2, 31)).sum().backward()
        grads = [p.grad for p in policy.actor_parameters()]
        found.append((torch.cat(flat).detach(), grads))
    (ours, grads), (theirs, others) = found
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    for one, other in zip(grads, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("history", [0, 1, 2, None])
def test_log_probs_while_sampling_are_those_of_the_rows(history):
    policy = shared()
    episodes = play(policy, history=history)
    assert max(len(e.turns) for e in episodes) == 5
    rows, owners = rows_of(episodes, policy, history)
    with torch.no_grad():
        scores = policy.score(rows, temperature=T)
    for owner, e in enumerate(episodes):
        mine = [scores.log_probs[i][scores.mask[i]] for i, o in enumerate(owners) if o == owner]
        said = np.concatenate([turn.reply.log_probs for turn in e.turns])
        torch.testing.assert_close(torch.cat(mine), torch.from_numpy(said), atol=1e-4, rtol=0)
    if history is not None:
        wrong, _ = rows_of(episodes, policy, None)
        with torch.no_grad():
            other = policy.score(wrong, temperature=T)
        everything = np.concatenate([t.reply.log_probs for e in episodes for t in e.turns])
        off = other.log_probs[other.mask] - torch.from_numpy(everything)
        assert off.abs().max() > 0.1  # another window would have been noticed


# --- the same episodes, however they are played ---------------------------------------------------


@pytest.mark.parametrize("greedy", [True, False])
def test_reusing_the_cache_changes_no_reply(greedy):
    sampling = Sampling(temperature=T, max_new_tokens=6, greedy=greedy)
    kept = play(sampling=sampling)
    anew = play(sampling=sampling, reuse_cache=False)
    assert replies(kept) == replies(anew)


def test_threads_change_nothing():
    alone, together = play(envs=environments(4)), play(envs=environments(4), workers=4)
    assert replies(alone) == replies(together)
    assert (
        [e.task_id for e in alone]
        == [e.task_id for e in together]
        == [f"grey-{i}" for i in range(4)]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_opening_tasks_ahead_changes_nothing(workers):
    def two_batches(upcoming):
        envs = environments(2)
        collector = RolloutCollector(envs, shared(), workers=workers)
        generator = torch.Generator().manual_seed(0)
        first = collector.collect([0, 1, 2], SAMPLING, generator, upcoming=upcoming)
        second = collector.collect([3, 4, 5], SAMPLING, generator)
        collector.close()
        return [(e.task_id, r) for e, r in zip([*first, *second], replies([*first, *second]),
                                              strict=True)]  # fmt: skip

    plain = two_batches(())
    assert [task for task, _ in plain] == [f"grey-{i}" for i in range(6)]
    assert two_batches((3, 4)) == plain
    assert two_batches((5, 0)) == plain  # announced, but never asked for


def test_the_next_video_is_opened_while_others_still_talk():
    opened = []
    policy, session, calls = scripted(
        lambda place, turn: ANSWER if place == 0 or turn == 3 else RETRIEVE
    )
    suite = GreySuite()
    original = suite.open_video
    suite.open_video = lambda task, **k: (
        opened.append((task.task_id, len(calls))),
        original(task, **k),
    )[1]
    play(policy, (0, 1, 2, 3), envs=environments(2, suite), session=session)
    assert dict(opened)["grey-2"] == 1 and dict(opened)["grey-3"] == 4


def test_with_generators_of_their_own_episodes_do_not_depend_on_who_is_played_beside_them():
    def played(tasks, count, places=None):
        own = [torch.Generator().manual_seed(30 + task) for task in tasks]
        collector = RolloutCollector(environments(count), shared(), workers=0)
        episodes = collector.collect(tasks, SAMPLING, own, places=places)
        collector.close()
        return episodes

    together = played([0, 1, 2, 3, 4], 5)
    assert [e.place for e in together] == [0, 1, 2, 3, 4]
    assert len({len(ids) for said in replies(together) for ids in said}) > 2
    assert replies(played([0, 1, 2, 3, 4], 2)) == replies(together)
    evens = played([0, 2, 4], 2, places=range(0, 6, 2))
    assert replies(evens) == replies(together)[::2] and [e.place for e in evens] == [0, 2, 4]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"generator": [torch.Generator()]}, "generator has 1 for 2 tasks; pass one a task"),
        ({"replacement": []}, "replacement has 0 for 2 tasks"),
        ({"places": [0, 1, 2]}, "places has 3 for 2 tasks"),
    ],
)
def test_what_is_given_for_each_task_must_be_as_many(options, says):
    collector = RolloutCollector(environments(1), shared(), workers=0)
    with pytest.raises(ValueError, match=says):
        collector.collect([0, 1], SAMPLING, **options)
    collector.close()


# --- what an episode holds ------------------------------------------------------------------------


def test_an_episode_holds_what_happened():
    script = [RETRIEVE, NONSENSE, ANSWER]
    policy, session, _ = scripted(lambda place, turn: script[turn])
    right, wrong = play(policy, (0, 1), envs=environments(2), keep_records=True, session=session)
    assert (right.success, right.outcome) == (True, "correct")
    assert (wrong.success, wrong.outcome) == (False, "wrong")
    assert [turn.retrieved for turn in right.turns] == [True, False, False]
    assert [bool(turn.malformed) for turn in right.turns] == [False, True, False]
    # The rewards are those that the environment settled at the end, gate included.
    assert [turn.reward for turn in right.turns] == pytest.approx(
        [sum(row.values()) for row in right.record.ledger]
    )
    assert right.turns[0].reward > 0 and [turn.reward for turn in wrong.turns[:2]] == [0, 0]
    assert right.episode_return == pytest.approx(right.record.total_reward)
    assert right.frames_shown == 4 and right.lenient_success and not wrong.lenient_success
    assert [len(frames) for frames in right.frames] == [2, 2, 0]
    assert right.infra_error == "" and right.record.outcome == "correct"


def test_replies_reach_the_environment_without_their_end_token():
    policy, session, _ = scripted(lambda place, turn: ANSWER)
    (only,) = play(policy, (0,), envs=environments(1), keep_records=True, session=session)
    assert only.record.turns[0]["reply"] == ANSWER
    assert only.turns[0].reply.ids[-1] == policy.codec.end_id


def test_progress_and_statistics_count_everything():
    collector = RolloutCollector(environments(2), shared(), workers=0)
    done = []
    episodes = collector.collect([0, 1, 2], SAMPLING, progress=done.append)
    assert sum(done) == 3
    assert collector.stats["decoded"] == sum(len(i) for r in replies(episodes) for i in r)
    assert collector.stats["prefilled"] > 3 * 50
    collector.close()


# --- faults ---------------------------------------------------------------------------------------


def test_an_episode_that_breaks_is_returned_and_says_why():
    policy, session, _ = scripted(lambda place, turn: RETRIEVE if turn == 0 else ANSWER)
    envs = [*environments(1, FailingSuite()), *environments(1)]
    broken, fine = play(policy, (0, 0), envs=envs, session=session)
    assert "FrameDecodeError" in broken.infra_error and broken.outcome == "infra_error"
    assert not broken.turns[-1].retrieved and len(broken.turns) == 1
    assert fine.infra_error == "" and fine.success


@pytest.mark.parametrize("workers", [0, 2])
def test_a_video_that_does_not_open_is_replaced(workers):
    suite = GreySuite()
    suite.broken = {"grey-1", "grey-4"}
    spare = iter([4, 5])
    policy, session, _ = scripted(lambda place, turn: ANSWER)
    collector = RolloutCollector(environments(2, suite), policy, workers=workers, session=session)
    episodes = collector.collect([0, 1, 2], SAMPLING, replacement=lambda: next(spare))
    assert [e.task_id for e in episodes] == ["grey-0", "grey-5", "grey-2"]
    assert [task for task, _ in collector.skipped] == [1, 4]
    assert all("is not a video" in why for _, why in collector.skipped)
    collector.close()


def test_each_task_may_have_a_replacement_of_its_own():
    suite = GreySuite()
    suite.broken = {"grey-1", "grey-2"}
    policy, session, _ = scripted(lambda place, turn: ANSWER)
    collector = RolloutCollector(environments(2, suite), policy, workers=0, session=session)
    spare = [lambda: 3, lambda: 4, lambda: None]
    episodes = collector.collect([0, 1, 2], SAMPLING, replacement=spare, places=[5, 7, 9])
    collector.close()
    assert [(e.task_id, e.place) for e in episodes] == [("grey-0", 5), ("grey-4", 7)]


def test_what_the_machine_lacks_skips_no_task():
    class Starved(GreySuite):
        def open_video(self, task, **options):
            raise MachineError("too many open files", path=task.video)

    asked = []
    with pytest.raises(MachineError, match="too many open files"):
        play(envs=environments(2, Starved()), replacement=lambda: asked.append(1) or 0)
    assert not asked


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("broken", [(0,), (1, 3), (0, 1, 2, 3)])
def test_a_video_that_does_not_open_is_done_without_where_there_is_no_other(workers, broken):
    suite = GreySuite()
    suite.broken = {f"grey-{i}" for i in broken}
    policy, session, _ = scripted(lambda place, turn: ANSWER)
    collector = RolloutCollector(environments(2, suite), policy, workers=workers, session=session)
    kept = []
    tally = greedily(collector, [0, 1, 2, 3], SAMPLING, keep=kept.extend)
    collector.close()
    assert [e.task_id for e in kept] == [f"grey-{i}" for i in range(4) if i not in broken]
    assert (tally.result().episodes, tally.result().faults) == (4 - len(broken), len(broken))


def test_spare_tasks_stand_in_for_broken_videos_as_long_as_there_are_any():
    suite = GreySuite()
    suite.broken = {"grey-0", "grey-1"}
    policy, session, _ = scripted(lambda place, turn: ANSWER)
    collector = RolloutCollector(environments(2, suite), policy, workers=0, session=session)
    result = greedily(collector, [0, 1, 2], SAMPLING, spare=[4]).result()
    collector.close()
    assert (result.episodes, result.faults) == (2, 2)


def test_a_scripted_agent_goes_on_after_a_video_that_does_not_open():
    suite = GreySuite()
    suite.broken = {"grey-1"}
    env = environments(1, suite)[0].unwrapped
    result = play_agent(env, make_agent("uniform_single_turn"), [0, 1, 2])
    env.close()
    assert (result.episodes, result.faults) == (2, 1)


def test_without_a_replacement_the_error_is_raised():
    suite = GreySuite()
    suite.broken = {"grey-1"}
    with pytest.raises(VideoError, match="is not a video"):
        play(envs=environments(2, suite))


def test_when_nothing_opens_the_error_is_raised_in_the_end():
    suite = GreySuite()
    suite.broken = {f"grey-{i}" for i in range(6)}
    tries = []
    with pytest.raises(VideoError, match="is not a video"):
        play(envs=environments(2, suite), replacement=lambda: tries.append(1) or 0)
    assert len(tries) == MOST_SKIPPED - 1


def test_environments_without_text_are_refused():
    with pytest.raises(ValueError, match="envs is empty; pass at least one TextProtocol"):
        RolloutCollector([], shared())
    with pytest.raises(TypeError, match="LongVideoQAEnv speaks no text; wrap it in TextProtocol"):
        RolloutCollector([LongVideoQAEnv(GreySuite())], shared())


# --- the order of tasks ---------------------------------------------------------------------------


@given(st.integers(1, 23), st.integers(1, 5), st.integers(0, 3))
def test_processes_together_cover_every_epoch_once(size, processes, seed):
    orders = [TrainingOrder(size, seed, rank, processes) for rank in range(processes)]
    rounds = 3 * size  # enough for three epochs a process
    drawn = [order.next() for _ in range(rounds) for order in orders]
    for epoch in range(len(drawn) // size):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_differ():
    order = TrainingOrder(50, 0)
    first, second = ([order.next() for _ in range(50)] for _ in range(2))
    other = [TrainingOrder(50, 1).next() for _ in range(1)]
    assert first != second and first != sorted(first)
    assert [TrainingOrder(50, 0).next()] == first[:1]
    assert other != first[:1]


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 2))
def test_an_order_goes_on_from_its_count_alone(size, count, rank):
    straight, resumed = TrainingOrder(size, 3, rank, 3), TrainingOrder(size, 3, rank, 3)
    for _ in range(count):
        straight.next()
    resumed.count = straight.count
    assert [straight.next() for _ in range(12)] == [resumed.next() for _ in range(12)]


def test_a_suite_without_tasks_is_refused():
    with pytest.raises(ValueError, match="a suite of size=0 has no task to train on"):
        TrainingOrder(0, 0)
