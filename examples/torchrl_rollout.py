"""TorchRL on LongVideoQA, unwrapped (pip install torchrl).

python -m examples.torchrl_rollout
"""

from __future__ import annotations

import argparse


def main() -> None:
    """Check the specs and roll out a random policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=64)
    args = parser.parse_args()

    from torchrl.envs import GymEnv
    from torchrl.envs.utils import check_env_specs

    env = GymEnv("gym_longvideo:LongVideoQA-v0", categorical_action_encoding=True, frame_size=32)
    check_env_specs(env)
    rollout = env.rollout(args.steps, break_when_any_done=False)
    ends = rollout["next", "done"].sum().item()
    rewards = rollout["next", "reward"].sum().item()
    print(rollout)
    print(f"{args.steps} steps, {ends} episodes, mean return {rewards / max(ends, 1):.3f}")
    env.close()


if __name__ == "__main__":
    main()
