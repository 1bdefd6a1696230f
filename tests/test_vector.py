"""Many at once: vector environments in one process and in several."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from worlds import FailingSuite, GreySuite

from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.wrappers import TextProtocol

ID = "gym_longvideo:LongVideoQA-v0"
TINY = {
    "frame_budget": 8,
    "pool_size": 16,
    "frame_size": 8,
    "suite_options": {"duration_s": 60.0},
}


def make_vec(mode, **vector_kwargs):
    return gym.make_vec(
        ID, num_envs=2, vectorization_mode=mode, vector_kwargs=vector_kwargs, **TINY
    )


def rollout(envs, steps=6):
    """Return copies of the observations, rewards and flags of a few fixed actions."""
    envs.action_space.seed(3)
    trace = [envs.reset(seed=11)[0]]
    trace = [{key: value.copy() for key, value in trace[0].items()}]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = envs.step(envs.action_space.sample())
        trace.append({key: value.copy() for key, value in observation.items()})
        trace[-1] |= {"reward": reward, "terminated": terminated, "truncated": truncated}
    return trace


@pytest.fixture(scope="module")
def expected():
    traces = {}
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        envs = make_vec("sync", autoreset_mode=mode)
        traces[mode] = rollout(envs)
        envs.close()
    return traces


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("mode", "shared_memory", "context"),
    [
        (AutoresetMode.SAME_STEP, True, "fork"),
        (AutoresetMode.NEXT_STEP, True, "fork"),
        (AutoresetMode.SAME_STEP, False, "fork"),
        (AutoresetMode.SAME_STEP, True, "spawn"),
    ],
)
def test_processes_see_exactly_what_one_process_sees(mode, shared_memory, context, expected):
    envs = make_vec("async", autoreset_mode=mode, shared_memory=shared_memory, context=context)
    trace = rollout(envs)
    envs.close()
    assert len(trace) == 7
    for step, (result, wanted) in enumerate(zip(trace, expected[mode], strict=True)):
        for key in wanted:
            assert np.array_equal(result[key], wanted[key]), (step, key)


def test_observations_of_a_vector_change_from_turn_to_turn(expected):
    trace = expected[AutoresetMode.SAME_STEP]
    assert not all(np.array_equal(trace[0]["frames"], later["frames"]) for later in trace[1:])
    assert any(step["terminated"].any() for step in trace[1:])


def vector(*suites, mode=AutoresetMode.SAME_STEP, **kwargs):
    settings = {"frame_budget": 8, "pool_size": 20, "frame_size": 8, "order": "sequential"}
    settings |= {"max_options": 4, **kwargs}
    return SyncVectorEnv(
        [partial(LongVideoQAEnv, suite, **settings) for suite in suites], autoreset_mode=mode
    )


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_unlike_tasks_stand_side_by_side_in_the_infos(mode):
    suites = [
        GreySuite(options=("x", "y"), segments_s=()),
        GreySuite(options=("p", "q", "r", "s"), segments_s=((1.0, 5.0), (40.0, 90.0))),
        GreySuite(options=("u", "v", "w"), answer_index=None),
    ]
    envs = vector(*suites, mode=mode)
    envs.action_space.seed(0)
    _, info = envs.reset(seed=0)
    assert info["iou"].dtype == np.float64 and info["iou"].tolist()[0] == -1.0
    assert [options.index("") if "" in options else 4 for options in info["options"]] == [2, 4, 3]
    for _ in range(12):
        _, reward, terminated, _, info = envs.step(envs.action_space.sample())
        final = info.get("final_info", info)
        for i in np.flatnonzero(terminated):
            assert final["turn_rewards"][i].shape == (3,)
            assert reward[i] == pytest.approx(final["turn_rewards"][i].sum())
            terms = final["reward_terms"]
            assert reward[i] == sum(
                terms[key][i] for key in ("accuracy", "relevance", "format", "bonus")
            )
            assert final["outcome"][i] in ("correct", "wrong", "unanswered", "unscored")
    envs.close()


def test_a_paid_and_an_unpaid_step_keep_the_reward_terms_fractions():
    envs = vector(GreySuite(), GreySuite(), reward="ungated")
    envs.reset(seed=0)
    # A vector of infos takes the type of the first: an int 0 there would cut 0.1 to 0.
    _, _, _, _, info = envs.step(np.array([[1, 0, 0, 3], [0, 0, 1, 0]]))
    assert info["reward_terms"]["format"].tolist() == [0.0, 0.1]
    envs.close()


def test_running_out_of_turns_in_a_vector_terminates():
    envs = vector(GreySuite(), GreySuite())
    envs.reset(seed=0)
    for _ in range(3):
        _, reward, terminated, truncated, info = envs.step(np.tile([0, 8, 9, 0], (2, 1)))
    assert terminated.all() and not truncated.any() and not reward.any()
    assert info["final_info"]["outcome"].tolist() == ["unanswered"] * 2
    assert (info["final_obs"][0]["turn"], info["final_obs"][1]["turn"]) == (3, 3)
    envs.close()


def test_a_fault_in_one_environment_truncates_only_that_one():
    envs = vector(GreySuite(), FailingSuite(), mode=AutoresetMode.NEXT_STEP)
    envs.reset(seed=0)
    _, reward, terminated, truncated, info = envs.step(np.tile([0, 8, 9, 0], (2, 1)))
    assert truncated.tolist() == [False, True] and not terminated.any() and not reward.any()
    assert info["infra_error"][0] == "" and "FrameDecodeError" in info["infra_error"][1]
    envs.close()


def text_env():
    settings = {"frame_budget": 8, "pool_size": 20, "frame_size": 8, "order": "sequential"}
    return TextProtocol(LongVideoQAEnv(GreySuite(), **settings), max_length=4096)


def test_text_refuses_shared_memory_where_it_would_never_change():
    with pytest.raises(ValueError, match=r"cannot live in AsyncVectorEnv\(shared_memory=True\)"):
        AsyncVectorEnv([text_env, text_env], context="fork")


LOOK = "<think>closer</think><retrieve>8, 9</retrieve>"
RIGHT = "<think>seen</think><answer>A</answer>"


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_text_works_in_one_process_and_through_pipes(kind):
    options = {"autoreset_mode": AutoresetMode.SAME_STEP}
    if kind == "sync":
        envs = SyncVectorEnv([text_env, text_env], **options)
    else:
        options |= {"shared_memory": False, "context": "fork"}
        envs = AsyncVectorEnv([text_env, text_env], **options)
    observation, _ = envs.reset(seed=0)
    assert all(text.startswith("Turn 1 of 3") for text in observation["text"])
    observation, _, _, _, info = envs.step((LOOK, "noise"))
    assert all(text.startswith("Turn 2 of 3") for text in observation["text"])
    assert info["malformed"].tolist() == ["", "no <think>...</think> at the start"]
    _, reward, terminated, _, _ = envs.step((RIGHT, RIGHT))
    assert reward == pytest.approx([1.7, 1.1]) and terminated.all()
    envs.close()
