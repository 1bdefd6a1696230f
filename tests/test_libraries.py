"""Other people's learners and wrappers on the environment as it is."""

from __future__ import annotations

import math
import warnings

import gymnasium as gym
import numpy as np
import pytest

from gym_longvideo.wrappers import ChannelStack, DiscreteIntervals

ID = "gym_longvideo:LongVideoQA-v0"
TINY = {
    "suite_options": {"families": "needle", "duration_s": 60.0, "size": 16},
    "frame_budget": 8,
    "pool_size": 16,
    "frame_size": 8,
    "question_bytes": 64,
}
SMALL_NET = {"net_arch": [8]}


def make(**kwargs):
    return gym.make(ID, **{**TINY, **kwargs})


@pytest.fixture
def one_thread():
    """Nets this small are slower on several threads, and workers share two cores."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- Gymnasium's own wrappers ---------------------------------------------------------------------


def test_the_statistics_of_an_episode_are_the_sum_of_its_reward_terms():
    env = gym.wrappers.RecordEpisodeStatistics(make(reward="ungated"))
    env.action_space.seed(0)
    for seed in range(10):
        env.reset(seed=seed)
        terms, steps, over = [], 0, False
        while not over:
            _, _, over, _, info = env.step(env.action_space.sample())
            terms += info["reward_terms"].values()
            steps += 1
        assert info["episode"]["r"] == pytest.approx(math.fsum(terms), abs=1e-6)
        assert info["episode"]["l"] == steps
        assert info["episode"]["r"] == pytest.approx(info["turn_rewards"].sum(), abs=1e-6)


def test_a_video_of_each_episode_can_be_recorded(tmp_path):
    pytest.importorskip("moviepy")
    env = gym.wrappers.RecordVideo(
        make(render_mode="rgb_array"), str(tmp_path / "videos"), episode_trigger=lambda _: True
    )
    for choice in (0, 1):
        env.reset(seed=choice)
        env.step(np.array([0, 2, 9, 0]))
        env.step(np.array([1, 0, 0, choice]))
    env.close()
    videos = sorted(tmp_path.glob("videos/*.mp4"))
    assert len(videos) == 2 and all(video.stat().st_size > 1000 for video in videos)


# --- Stable-Baselines3 ----------------------------------------------------------------------------


def test_ppo_learns_from_the_environment_unwrapped(one_thread):
    sb3 = pytest.importorskip("stable_baselines3")
    model = sb3.PPO(
        "MultiInputPolicy",
        make(),
        n_steps=32,
        batch_size=32,
        n_epochs=1,
        gamma=1.0,
        policy_kwargs=SMALL_NET,
        device="cpu",
        seed=0,
    )
    before = {name: value.clone() for name, value in model.policy.named_parameters()}
    model.learn(64)
    assert model.num_timesteps == 64
    assert any(not before[name].equal(value) for name, value in model.policy.named_parameters())
    # Only what ends an episode carries is_success; SB3 logs a success rate from it.
    assert len(model.ep_success_buffer) > 5
    action, _ = model.predict(model.env.reset())
    assert action.shape == (1, 4)


def test_maskable_ppo_finds_the_masks_without_a_wrapper(one_thread):
    sb3 = pytest.importorskip("sb3_contrib")
    model = sb3.MaskablePPO(
        "MultiInputPolicy",
        make(max_turns=2),
        n_steps=32,
        batch_size=32,
        n_epochs=1,
        gamma=1.0,
        policy_kwargs=SMALL_NET,
        device="cpu",
        seed=0,
    )
    model.learn(32)
    env = make(max_turns=2)
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            masks = env.get_wrapper_attr("action_masks")()
            action, _ = model.predict(observation, action_masks=masks)
            observation, _, over, _, info = env.step(action)
            assert info["malformed"] == ""


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_the_vector_environments_of_sb3_run_it():
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    traces = []
    for kind, options in ((DummyVecEnv, {}), (SubprocVecEnv, {"start_method": "fork"})):
        envs = make_vec_env(
            ID, n_envs=2, seed=0, env_kwargs=TINY, vec_env_cls=kind, vec_env_kwargs=options
        )
        observation = envs.reset()
        trace = [observation["frames"].copy()]
        for _ in range(4):
            actions = np.array([[0, 2, 9, 0], [1, 0, 0, 1]])
            observation, rewards, dones, infos = envs.step(actions)
            trace += [observation["frames"].copy(), rewards, dones]
        assert envs.env_method("action_masks")[0].shape == (2 + 16 + 16 + 4,)
        assert dones[1] and infos[1]["terminal_observation"]["turn"] == 1
        assert infos[1]["TimeLimit.truncated"] is False
        envs.close()
        traces.append(trace)
    for left, right in zip(*traces, strict=True):
        assert np.allclose(left, right)  # one of them keeps rewards as float32


def test_dqn_learns_through_discrete_intervals(one_thread):
    sb3 = pytest.importorskip("stable_baselines3")
    model = sb3.DQN(
        "MultiInputPolicy",
        DiscreteIntervals(make(), n_bins=4),
        learning_starts=16,
        buffer_size=64,
        batch_size=8,
        policy_kwargs=SMALL_NET,
        device="cpu",
        seed=0,
    )
    model.learn(40)
    assert model.num_timesteps == 40


def test_a_convolutional_policy_learns_from_stacked_channels(one_thread):
    sb3 = pytest.importorskip("stable_baselines3")
    env = ChannelStack(DiscreteIntervals(make(frame_size=36), n_bins=4))
    model = sb3.PPO(
        "CnnPolicy",
        env,
        n_steps=16,
        batch_size=16,
        n_epochs=1,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
        device="cpu",
        seed=0,
    )
    model.learn(16)
    assert model.num_timesteps == 16


# --- TorchRL --------------------------------------------------------------------------------------


def test_torchrl_reads_its_specs_and_rolls_it_out(one_thread):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRL and tensordict deprecate themselves
        pytest.importorskip("torchrl")
        from torchrl.envs import GymEnv
        from torchrl.envs.utils import check_env_specs

        env = GymEnv(ID, device="cpu", categorical_action_encoding=True, **TINY)
        check_env_specs(env)
        rollout = env.rollout(20, break_when_any_done=False)
        assert rollout["frames"].shape == (20, 4, 8, 8, 3)
        assert rollout["action"].shape == (20, 4)
        assert rollout["next", "terminated"].any() and not rollout["next", "truncated"].any()
        env.close()


# --- RLlib ----------------------------------------------------------------------------------------


def test_rllib_trains_on_flattened_observations():
    pytest.importorskip("ray")
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import FlattenObservations

    config = (
        PPOConfig()
        .environment(ID, env_config=TINY)
        .env_runners(
            num_env_runners=0, env_to_module_connector=lambda *_, **__: FlattenObservations()
        )
        .training(train_batch_size=32, minibatch_size=32, num_epochs=1)
    )
    algorithm = config.build_algo()
    assert algorithm.train()["num_env_steps_sampled_lifetime"] >= 32
    algorithm.stop()
