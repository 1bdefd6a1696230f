"""Tianshou: collector and buffer on the environment as it is, PPO and DQN."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tianshou.algorithm import DQN, PPO
from tianshou.algorithm.algorithm_base import Policy
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv, SubprocVectorEnv
from tianshou.trainer import OffPolicyTrainerParams, OnPolicyTrainerParams
from tianshou.utils.net.common import ActionReprNetWithVectorOutput
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

from tools.checks import needle
from tools.checks.reader import WIDTH, Parts, Reader
from tools.checks.rows import Checks

check = Checks("tianshou")


class Net(ActionReprNetWithVectorOutput):
    """The features of a batch of observations."""

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.reader = Reader()

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[torch.Tensor, Any]:
        """Return features and no state."""
        keys = ("frames", "frame_index", "turn")
        return self.reader({key: torch.as_tensor(obs[key]) for key in keys}), state


class AtRandom(Policy):
    """Samples the action space."""

    def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Any:
        """Return a batch of actions."""
        return Batch(act=np.stack([self.action_space.sample() for _ in batch.rew]))


def collected(venv: Any, buffer: VectorReplayBuffer) -> None:
    """Collect 64 random steps, and look at what the buffer then holds."""
    policy = AtRandom(needle.make().action_space)
    collector = Collector(policy, venv, buffer)
    collector.reset()
    collector.collect(n_step=64, random=True)
    batch, _ = buffer.sample(32)
    assert batch.obs.frames.shape == (32, 8, 8, 8, 3) and batch.act.shape == (32, 4)
    ends = buffer[buffer.done.nonzero()[0]]
    assert {"correct", "wrong", "unanswered"} >= set(ends.info.outcome) != set()
    terms = sum(ends.info.reward_terms.values())
    assert np.allclose(terms, ends.rew)
    venv.close()


@check("Collector and VectorReplayBuffer, infos too")
def collector() -> None:
    """Collect in this process."""
    collected(DummyVectorEnv([needle.make] * 4), VectorReplayBuffer(256, 4))


@check("the same from SubprocVectorEnv")
def subprocesses() -> None:
    """Collect in others."""
    collected(SubprocVectorEnv([needle.make] * 2), VectorReplayBuffer(256, 2))


@check("PPO, Dict and MultiDiscrete", trains=True)
def ppo() -> None:
    """Train PPO without a wrapper."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    space = needle.make().action_space
    nvec = space.nvec.tolist()  # type: ignore[attr-defined]
    actor = DiscreteActor(preprocess_net=Net(), action_shape=sum(nvec), softmax_output=False)
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=lambda logits: Parts(logits, nvec),
        action_space=space,
        action_scaling=False,
        action_bound_method=None,
    )
    algorithm = PPO(
        policy=policy,
        critic=DiscreteCritic(preprocess_net=Net()),
        optim=AdamOptimizerFactory(lr=3e-3),
        gamma=1.0,
        ent_coef=0.003,
        max_grad_norm=0.5,
    )
    venv = DummyVectorEnv([needle.make] * 16)
    venv.seed(0)
    collector = Collector(algorithm, venv, VectorReplayBuffer(1024, 16))
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=needle.steps(),
            collection_step_num_env_steps=512,
            batch_size=256,
            update_step_num_repetitions=4,
            show_progress=False,
            verbose=False,
        )
    )


@check("DQN", how="DiscreteIntervals", trains=True)
def dqn() -> None:
    """Train DQN on discrete actions."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    space = needle.discrete().action_space
    model = DiscreteActor(preprocess_net=Net(), action_shape=int(space.n), softmax_output=False)  # type: ignore[attr-defined]
    policy = DiscreteQLearningPolicy(model=model, action_space=space, eps_training=0.1)
    algorithm = DQN(
        policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=1.0, target_update_freq=200
    )
    venv = DummyVectorEnv([needle.discrete] * 8)
    venv.seed(0)
    collector = Collector(algorithm, venv, VectorReplayBuffer(8192, 8), exploration_noise=True)
    algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=needle.steps(0.5),
            collection_step_num_env_steps=64,
            update_step_num_gradient_steps_per_sample=0.25,
            batch_size=64,
            show_progress=False,
            verbose=False,
        )
    )


if __name__ == "__main__":
    check.main()
