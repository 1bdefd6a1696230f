"""Which task comes next: epochs, shards, and sweeps through vector environments."""

from __future__ import annotations

from collections import Counter
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st
from worlds import GreySuite

from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.order import TaskOrder


def take(order, count, seed=0):
    rng = np.random.default_rng(seed)
    return [order.next(rng) for _ in range(count)]


def test_sequential_order_goes_round():
    assert take(TaskOrder(GreySuite(4), "sequential", None), 6) == [0, 1, 2, 3, 0, 1]


def test_shuffled_order_visits_every_task_once_an_epoch_in_another_order_each_time():
    order = TaskOrder(GreySuite(20), "shuffled", None)
    indices = take(order, 60)
    epochs = [indices[:20], indices[20:40], indices[40:]]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != list(range(20))


def test_restarting_begins_a_new_epoch():
    order = TaskOrder(GreySuite(4), "sequential", None)
    take(order, 3)
    order.restart()
    assert take(order, 2) == [0, 1]


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from(["shuffled", "sequential"]))
def test_shards_share_out_the_suite_without_gap_or_overlap(tasks, shards, kind):
    suite = GreySuite(tasks)
    visited = []
    for i in range(min(shards, tasks)):
        order = TaskOrder(suite, kind, (i, shards))
        visited += take(order, len(order.indices), seed=i)
    assert sorted(visited) == list(range(tasks))


def test_a_suite_without_tasks_is_refused():
    with pytest.raises(ValueError, match="the suite is empty; check its split and filters"):
        TaskOrder(GreySuite(0), "shuffled", None)


def grey(shard=None, order="sequential"):
    return LongVideoQAEnv(
        GreySuite(7), frame_budget=4, pool_size=8, frame_size=8, order=order, shard=shard
    )


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_a_vector_of_shards_covers_a_suite_exactly_once(mode, order):
    envs = SyncVectorEnv(
        [partial(grey, (i, 3), order) for i in range(3)], autoreset_mode=mode
    )  # 3 + 2 + 2 tasks
    answer = np.tile([1, 0, 0, 0], (3, 1))
    finished = Counter()
    _, info = envs.reset(seed=0)
    for _ in range(20):
        task_ids = info["task_id"].copy()
        _, _, terminated, _, info = envs.step(answer)
        for i in np.flatnonzero(terminated):
            # In SAME_STEP the info is already that of the next episode.
            ended = task_ids[i] if mode == AutoresetMode.SAME_STEP else info["task_id"][i]
            wanted = len(envs.envs[i].unwrapped.order.indices)
            if sum(count for (who, _), count in finished.items() if who == i) < wanted:
                finished[i, ended] += 1
    assert sorted(task_id for _, task_id in finished) == [f"grey-{i}" for i in range(7)]
    assert set(finished.values()) == {1}
    envs.close()


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("sync", {"vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}}),
        ("vector_entry_point", {"autoreset_mode": AutoresetMode.SAME_STEP}),
    ],
)
def test_make_vec_passes_order_and_shard_on(mode, options):
    envs = gym.make_vec(
        "gym_longvideo:LongVideoQA-v0",
        num_envs=1,
        vectorization_mode=mode,
        suite_options={"families": "needle", "size": 6},
        order="sequential",
        shard=(1, 2),
        frame_budget=4,
        pool_size=8,
        frame_size=8,
        **options,
    )
    _, info = envs.reset(seed=0)
    seen = [info["task_id"][0]]
    for _ in range(3):
        info = envs.step(np.array([[1, 0, 0, 0]]))[4]
        seen.append(info["task_id"][0])
    envs.close()
    assert [int(task_id.split("-")[1]) for task_id in seen] == [1, 3, 5, 1]
