"""PPO in one file, in the manner of CleanRL, on LongVideoQA through DiscreteIntervals.

    python -m examples.cleanrl_ppo --total-timesteps 100000

Takes a minute on one core. Expect a line every 10,000 steps, in which success rises from 0.24, what
guessing earns, to about 0.94.

What is particular to this environment: episodes last at most three steps, so the vector of
environments resets in the same step (SAME_STEP loses no step where NEXT_STEP would lose a quarter
to a half of them); illegal actions are masked; the discount is 1; frames are read one by one with
shared weights. Left out on purpose: annealing, KL stopping, checkpoints.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn
from torch.distributions import Categorical

from examples.needle import ENV_OPTIONS, SUITE_OPTIONS
from gym_longvideo.wrappers import DiscreteIntervals


@dataclass
class Args:
    """Arguments of the experiment."""

    seed: int = 0
    """seed of everything"""
    total_timesteps: int = 100_000
    """environment steps in all"""
    num_envs: int = 16
    """environments stepped side by side"""
    num_steps: int = 64
    """steps of each environment between updates"""
    n_bins: int = 8
    """parts of the video that a retrieval is made of"""
    learning_rate: float = 2e-3
    """of Adam"""
    gae_lambda: float = 0.95
    """lambda of the generalised advantage estimate; the discount is 1"""
    num_minibatches: int = 4
    """minibatches of an epoch"""
    update_epochs: int = 4
    """epochs over a batch"""
    clip_coef: float = 0.2
    """clipping of the policy ratio"""
    ent_coef: float = 0.003
    """weight of the entropy"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """clipping of the gradient"""
    tensorboard: str = ""
    """directory of a TensorBoard log, if any"""


def parse_args() -> Args:
    """Make a command line of the fields."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in fields(Args):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default)
    return Args(**vars(parser.parse_args()))


class Agent(nn.Module):
    """Reads every frame with one small network; acts and values on what all slots say."""

    def __init__(self, frames: int, turns: int, pool_size: int, actions: int) -> None:
        super().__init__()
        self.turns, self.pool_size = turns, pool_size
        self.look = nn.Sequential(
            nn.Conv2d(3, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 32, 2), nn.ReLU()
        )
        self.describe = nn.Sequential(nn.Linear(64, 16), nn.ReLU())
        width = frames * 17 + 16 + turns
        self.actor = nn.Sequential(nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, actions))
        self.critic = nn.Sequential(nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, 1))
        nn.init.orthogonal_(self.actor[-1].weight, 0.01)

    def features(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return (B, width)."""
        batch, count = obs["frames"].shape[:2]
        shown = (obs["frame_index"] >= 0).float()
        maps = self.look(obs["frames"].flatten(0, 1).permute(0, 3, 1, 2).float() / 255.0)
        seen = torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], dim=1)
        slots = self.describe(seen).view(batch, count, -1) * shown[..., None]
        places = obs["frame_index"] / self.pool_size * shown
        turn = nn.functional.one_hot(obs["turn"][..., 0].long(), self.turns).float()
        return torch.cat([slots.flatten(1), slots.amax(1), places, turn], dim=1)

    def evaluate(
        self, obs: dict[str, torch.Tensor], masks: torch.Tensor, action: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return actions (drawn unless given), their log-probabilities, entropies and values."""
        features = self.features(obs)
        logits = self.actor(features).masked_fill(~masks, -1e8)
        policy = Categorical(logits=logits)
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), policy.entropy(), self.critic(features).squeeze(-1)


def make_env(n_bins: int) -> gym.Env:
    """Make one environment, with discrete actions."""
    env = gym.make("gym_longvideo:LongVideoQA-v0", suite_options=SUITE_OPTIONS, **ENV_OPTIONS)
    return DiscreteIntervals(env, n_bins=n_bins)


def main() -> None:
    """Train, and print the success of recent episodes."""
    args = parse_args()
    print(f"{args.num_envs} environments, {args.total_timesteps} steps", flush=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    envs = SyncVectorEnv(
        [lambda: make_env(args.n_bins)] * args.num_envs,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    space = envs.single_observation_space
    agent = Agent(
        space["frames"].shape[0],
        int(space["turn"].high[0]) + 1,
        space["seen"].shape[0],
        int(envs.single_action_space.n),
    )
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    writer = None
    if args.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(args.tensorboard)

    def tensors(observation: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        wanted = ("frames", "frame_index", "turn")
        return {key: torch.as_tensor(observation[key]) for key in wanted}

    def legal() -> torch.Tensor:
        return torch.as_tensor(np.stack(envs.call("action_masks")))

    shape = (args.num_steps, args.num_envs)
    batch_size = args.num_steps * args.num_envs
    observation, _ = envs.reset(seed=args.seed)
    obs, masks = tensors(observation), legal()
    started, step, ends, returns = time.time(), 0, [], []
    episode_return = np.zeros(args.num_envs)
    while step < args.total_timesteps:
        kept: list[tuple] = []
        rewards, dones = torch.zeros(shape), torch.zeros(shape)
        for t in range(args.num_steps):
            with torch.no_grad():
                action, log_prob, _, value = agent.evaluate(obs, masks)
            kept.append((obs, masks, action, log_prob, value))
            observation, reward, terminated, truncated, infos = envs.step(action.numpy())
            done = terminated | truncated
            rewards[t], dones[t] = torch.as_tensor(reward), torch.as_tensor(done)
            episode_return += reward
            for i in np.flatnonzero(done):
                ends.append(bool(infos["final_info"]["is_success"][i]))
                returns.append(episode_return[i])
                episode_return[i] = 0.0
            obs, masks = tensors(observation), legal()
        step += batch_size

        with torch.no_grad():
            next_value = agent.evaluate(obs, masks)[3]
        values = torch.stack([row[4] for row in kept])
        advantages, last = torch.zeros(shape), torch.zeros(args.num_envs)
        for t in reversed(range(args.num_steps)):
            alive = 1.0 - dones[t]
            following = values[t + 1] if t + 1 < args.num_steps else next_value
            delta = rewards[t] + following * alive - values[t]
            advantages[t] = last = delta + args.gae_lambda * alive * last
        b_returns = (advantages + values).flatten()
        b_advantages = advantages.flatten()
        b_obs = {key: torch.cat([row[0][key] for row in kept]) for key in obs}
        b_masks, b_actions, b_log_probs = (torch.cat([row[i] for row in kept]) for i in (1, 2, 3))

        clipfracs = []
        for _ in range(args.update_epochs):
            for index in torch.randperm(batch_size).chunk(args.num_minibatches):
                part = {key: value[index] for key, value in b_obs.items()}
                _, log_prob, entropy, value = agent.evaluate(part, b_masks[index], b_actions[index])
                logratio = log_prob - b_log_probs[index]
                ratio = logratio.exp()
                with torch.no_grad():
                    approx_kl = ((ratio - 1) - logratio).mean()
                    clipfracs.append(((ratio - 1).abs() > args.clip_coef).float().mean().item())
                advantage = b_advantages[index]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                pg_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
                v_loss = 0.5 * (value - b_returns[index]).square().mean()
                loss = pg_loss + args.vf_coef * v_loss - args.ent_coef * entropy.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        sps = step / (time.time() - started)
        recent, mean_return = np.mean(ends[-500:]), np.mean(returns[-500:])
        scalars = {
            "charts/success_rate": recent,
            "charts/episodic_return": mean_return,
            "charts/SPS": sps,
            "losses/policy_loss": pg_loss.item(),
            "losses/value_loss": v_loss.item(),
            "losses/approx_kl": approx_kl.item(),
            "losses/clipfrac": np.mean(clipfracs),
        }
        for name, scalar in scalars.items() if writer else ():
            writer.add_scalar(name, scalar, step)
        if step // batch_size % 10 == 0 or step >= args.total_timesteps:
            print(
                f"step {step}: success {recent:.3f}, return {mean_return:.3f}, "
                f"approx_kl {approx_kl.item():.4f}, {sps:.0f} steps/s, {step / sps:.0f} s",
                flush=True,
            )
    envs.close()


if __name__ == "__main__":
    main()
