"""skrl: PPO on the environment as it is, by a model that reads frames, and DQN."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from skrl.agents.torch.dqn import DQN, DQN_CFG
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, Model, MultiCategoricalMixin
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from skrl.utils.spaces.torch import unflatten_tensorized_space as parts
from torch import nn

from tools.checks import needle
from tools.checks.reader import WIDTH, Reader
from tools.checks.rows import Checks

check = Checks("skrl")


class Policy(MultiCategoricalMixin, Model):
    """One categorical distribution for each part of an action."""

    def __init__(self, env: Any) -> None:
        Model.__init__(
            self,
            observation_space=env.observation_space,
            action_space=env.action_space,
            device=env.device,
        )
        MultiCategoricalMixin.__init__(self)
        self.net = nn.Sequential(Reader(), nn.Linear(WIDTH, int(env.action_space.nvec.sum())))

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return logits."""
        return self.net(parts(self.observation_space, inputs["observations"])), {}


class Value(DeterministicMixin, Model):
    """The value of an observation, or of each discrete action."""

    def __init__(self, env: Any, outputs: int = 1) -> None:
        Model.__init__(
            self,
            observation_space=env.observation_space,
            action_space=env.action_space,
            device=env.device,
        )
        DeterministicMixin.__init__(self)
        self.net = nn.Sequential(Reader(), nn.Linear(WIDTH, outputs))

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return values."""
        return self.net(parts(self.observation_space, inputs["observations"])), {}


def trained(make: Any, count: int, agent_of: Any, steps: int) -> None:
    """Train an agent on a vector of environments."""
    set_seed(0)
    torch.set_num_threads(1)
    envs = SyncVectorEnv([make] * count, autoreset_mode=AutoresetMode.SAME_STEP)
    env = wrap_env(envs, verbose=False)
    trainer = SequentialTrainer(
        env=env,
        agents=agent_of(env),
        cfg={"timesteps": steps // count, "headless": True, "disable_progressbar": True},
    )
    trainer.train()
    env.close()


@check("PPO, Dict and MultiDiscrete", trains=True)
def ppo() -> None:
    """Train PPO without a wrapper."""
    steps = 32

    def agent(env: Any) -> PPO:
        return PPO(
            models={"policy": Policy(env), "value": Value(env)},
            memory=RandomMemory(memory_size=steps, num_envs=env.num_envs, device=env.device),
            observation_space=env.observation_space,
            action_space=env.action_space,
            device=env.device,
            cfg=PPO_CFG(
                rollouts=steps,
                learning_epochs=4,
                mini_batches=2,
                discount_factor=1.0,
                learning_rate=3e-3,
                entropy_loss_scale=0.003,
                value_loss_scale=0.5,
            ),
        )

    trained(needle.make, 16, agent, needle.steps())


@check("DQN", how="DiscreteIntervals", trains=True)
def dqn() -> None:
    """Train DQN on discrete actions."""

    def agent(env: Any) -> DQN:
        actions = int(env.action_space.n)
        return DQN(
            models={"q_network": Value(env, actions), "target_q_network": Value(env, actions)},
            memory=RandomMemory(memory_size=2048, num_envs=env.num_envs, device=env.device),
            observation_space=env.observation_space,
            action_space=env.action_space,
            device=env.device,
            cfg=DQN_CFG(discount_factor=1.0, batch_size=128),
        )

    trained(needle.discrete, 4, agent, needle.steps(0.5))


@check("wrap_env of a single environment")
def single() -> None:
    """Take an episode through skrl's wrapper."""
    env = wrap_env(gym.make(needle.ID), verbose=False)
    observation, _ = env.reset()
    stepped, reward, terminated, _, _ = env.step(torch.tensor([[1, 0, 0, 2]]))
    assert observation.shape == stepped.shape
    assert terminated.item() and reward.shape == (1, 1)


if __name__ == "__main__":
    check.main()
