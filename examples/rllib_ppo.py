"""RLlib's PPO on LongVideoQA, unwrapped (pip install "ray[rllib]" torch).

    python -m examples.rllib_ppo --iterations 5

RLlib's new API stack has no default encoder for Dict observations: its own FlattenObservations
connector turns them into a vector. That vector is wide, so frames are small here.

Takes half a minute, most of it Ray's start. Expect a line for each iteration and a return between
0.2 and 0.4: so few show that it runs, not that it learns. ``tools/checks/rllib.py`` has a module
that reads frames, and learns.
"""

from __future__ import annotations

import argparse
import time

from examples.needle import ENV_OPTIONS, SUITE_OPTIONS


def main() -> None:
    """Train for some iterations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--batch", type=int, default=512, help="environment steps of an iteration")
    args = parser.parse_args()

    started = time.monotonic()
    print(f"{args.iterations} iterations of {args.batch} steps; Ray starts", flush=True)
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import FlattenObservations

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    config = (
        PPOConfig()
        .environment(
            "gym_longvideo:LongVideoQA-v0",
            env_config={**ENV_OPTIONS, "frame_size": 8, "suite_options": SUITE_OPTIONS},
        )
        .env_runners(
            num_env_runners=0,
            env_to_module_connector=lambda env, spaces=None, device=None: FlattenObservations(),
        )
        .training(gamma=1.0, train_batch_size=args.batch, minibatch_size=128, num_epochs=2)
    )
    algo = config.build_algo()
    for iteration in range(args.iterations):
        result = algo.train()
        runners = result["env_runners"]
        print(
            f"iteration {iteration}: return {runners['episode_return_mean']:.3f}, "
            f"{runners['episode_len_mean']:.2f} turns, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    algo.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
