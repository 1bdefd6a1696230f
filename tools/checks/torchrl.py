"""TorchRL: specs, rollouts and collectors of the environment as it is, and its PPO loss."""

from __future__ import annotations

from typing import Any

import torch
from tensordict.nn import InteractionType, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv, GymWrapper, ParallelEnv, SerialEnv
from torchrl.envs.utils import check_env_specs
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from tools.checks import needle
from tools.checks.reader import WIDTH, Parts, Reader
from tools.checks.rows import Checks

check = Checks("torchrl")
KEYS = ["frames", "frame_index", "turn"]


class Read(nn.Module):
    """Maps the parts of an observation to numbers."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Reader(), nn.Linear(WIDTH, outputs))

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        """Return (..., outputs) for any number of leading axes."""
        lead = parts[-1].shape[:-1]
        flat = [part.flatten(0, len(lead) - 1) if lead else part[None] for part in parts]
        return self.net(dict(zip(KEYS, flat, strict=True))).view(*lead, -1)


def made(**options: Any) -> GymWrapper:
    """Return TorchRL's view of the environment."""
    return GymWrapper(needle.make(**options), categorical_action_encoding=True)


@check("GymEnv, check_env_specs, rollout")
def specs() -> None:
    """Check the specs of the environment made by its id."""
    env = GymEnv(needle.ID, categorical_action_encoding=True, **needle.OPTIONS)
    check_env_specs(env)
    rollout = env.rollout(32, break_when_any_done=False)
    assert rollout["frames"].shape == (32, 8, 8, 8, 3) and rollout["action"].shape == (32, 4)
    env.close()


@check("ParallelEnv and TensorDictReplayBuffer")
def parallel() -> None:
    """Step environments in other processes, and keep what they say."""
    env = ParallelEnv(2, made)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(64), batch_size=8)
    buffer.extend(env.rollout(8, break_when_any_done=False).flatten())
    assert buffer.sample()["next", "seen"].shape == (8, 32)
    env.close()


@check("ClipPPOLoss and GAE, Dict and MultiDiscrete", trains=True)
def ppo() -> None:
    """Train PPO without a wrapper."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    env = SerialEnv(16, made)
    env.set_seed(0)
    nvec = needle.make().action_space.nvec.tolist()  # type: ignore[attr-defined]
    actor = ProbabilisticActor(
        TensorDictModule(Read(sum(nvec)), in_keys=KEYS, out_keys=["logits"]),
        in_keys=["logits"],
        spec=env.action_spec,
        distribution_class=Parts,
        distribution_kwargs={"nvec": nvec},
        default_interaction_type=InteractionType.RANDOM,
        return_log_prob=True,
    )
    critic = ValueOperator(Read(1), in_keys=KEYS)
    advantage = GAE(gamma=1.0, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.003, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    batches = Collector(env, actor, frames_per_batch=512, total_frames=needle.steps())
    for batch in batches:
        for _ in range(4):
            with torch.no_grad():
                advantage(batch)
            flat = batch.reshape(-1)
            for index in torch.randperm(len(flat)).split(256):
                losses = loss(flat[index])
                optimizer.zero_grad()
                sum(losses[name] for name in losses.keys() if name.startswith("loss_")).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
    batches.shutdown()


if __name__ == "__main__":
    check.main()
