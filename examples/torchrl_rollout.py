"""TorchRL on LongVideoQA, unwrapped (pip install torchrl).

    python -m examples.torchrl_rollout

Takes ten seconds, most of them TorchRL's import. Expect the rollout as a TensorDict, whose
observations and actions are as in the environment, and a mean return of about 0.3.
"""

from __future__ import annotations

import argparse
import time


def main() -> None:
    """Check the specs and roll out a random policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=64)
    args = parser.parse_args()

    started = time.monotonic()
    print(f"checking the specs, then {args.steps} steps at random", flush=True)
    from torchrl.envs import GymEnv
    from torchrl.envs.utils import check_env_specs

    env = GymEnv("gym_longvideo:LongVideoQA-v0", categorical_action_encoding=True, frame_size=32)
    check_env_specs(env)
    rollout = env.rollout(args.steps, break_when_any_done=False)
    ends = rollout["next", "done"].sum().item()
    rewards = rollout["next", "reward"].sum().item()
    print(rollout)
    print(
        f"{args.steps} steps, {ends} episodes, mean return {rewards / max(ends, 1):.3f}, "
        f"{time.monotonic() - started:.1f} s"
    )
    env.close()


if __name__ == "__main__":
    main()
