"""RLlib, its new API stack: PPO by its own networks, and by one that reads frames."""

from __future__ import annotations

from typing import Any

import ray
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.tune.registry import register_env
from torch import nn

from tools.checks import needle
from tools.checks.reader import WIDTH, Reader
from tools.checks.rows import Checks

check = Checks("ray")


class ReadingModule(TorchRLModule, ValueFunctionAPI):
    """Reads the Dict of the environment."""

    def setup(self) -> None:
        """Make the networks."""
        nvec = self.action_space.nvec.tolist()
        self.action_dist_cls = TorchMultiCategorical.get_partial_dist_cls(input_lens=nvec)
        self.policy = nn.Sequential(Reader(), nn.Linear(WIDTH, sum(nvec)))
        self.value = nn.Sequential(Reader(), nn.Linear(WIDTH, 1))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.policy(batch[Columns.OBS])}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Any:
        """Return (B,)."""
        return self.value(batch[Columns.OBS]).squeeze(-1)


def begin() -> None:
    """Start Ray; its count of processors is what it may start, not what there is."""
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)


def ppo(steps: int, make: Any = needle.make, *, flatten: bool = False, **config: Any) -> None:
    """Train PPO in this process."""
    begin()
    register_env("needle", lambda _: make())
    connector = {"env_to_module_connector": lambda *_, **__: FlattenObservations()}
    algorithm = (
        PPOConfig()
        .environment("needle")
        .env_runners(
            num_env_runners=0, num_envs_per_env_runner=16, **(connector if flatten else {})
        )
        .training(
            gamma=1.0,
            lr=3e-3,
            train_batch_size=512,
            minibatch_size=256,
            num_epochs=4,
            entropy_coeff=0.003,
            grad_clip=0.5,
            use_kl_loss=False,
        )
        .rl_module(**config)
        .debugging(seed=0)
        .build_algo()
    )
    while needle.COUNT < steps:
        algorithm.train()
    algorithm.stop()


@check("PPO, Dict and MultiDiscrete", how="as is, an RLModule that reads Dict", trains=True)
def reading() -> None:
    """Train PPO without a wrapper."""
    ppo(needle.steps(0.75), rl_module_spec=RLModuleSpec(module_class=ReadingModule))


@check("PPO, its own network", how="as is, FlattenObservations connector", trains=True)
def flattened() -> None:
    """Train PPO by its own network on what its connector flattens."""
    ppo(needle.steps(0.5), flatten=True)


@check("PPO, its own network", limit="RLlib has no encoder for Dict observations")
def own() -> None:
    """Make PPO without the connector."""
    ppo(128)


@check("PPO in two other processes, environment by its id", how="FlattenObservations connector")
def runners() -> None:
    """Step environments in other processes."""
    begin()
    algorithm = (
        PPOConfig()
        .environment(needle.ID, env_config=needle.OPTIONS)
        .env_runners(
            num_env_runners=2, env_to_module_connector=lambda *_, **__: FlattenObservations()
        )
        .training(train_batch_size=64, minibatch_size=32, num_epochs=1)
        .build_algo()
    )
    assert algorithm.train()["num_env_steps_sampled_lifetime"] >= 64
    algorithm.stop()


@check("DQN", how="DiscreteIntervals, FlatBox", trains=True)
def dqn() -> None:
    """Train DQN on vectors by its own network."""
    begin()
    register_env("needle", lambda _: needle.flat_discrete())
    algorithm = (
        DQNConfig()
        .environment("needle")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .training(
            gamma=1.0, lr=1e-3, train_batch_size=64, num_steps_sampled_before_learning_starts=500
        )
        .debugging(seed=0)
        .build_algo()
    )
    while needle.COUNT < needle.steps(0.25):
        algorithm.train()
    algorithm.stop()


if __name__ == "__main__":
    check.main()
