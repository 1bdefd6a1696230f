"""The shortest use of the environment: act at random, look at what comes back.

    python -m examples.random_agent

Takes a second. Expect five episodes drawn as text; about one in four is answered rightly.
"""

import argparse
import time

import gymnasium as gym

import gym_longvideo  # noqa: F401 - registers the ids


def main() -> None:
    """Play some episodes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--id", default="LongVideoQA-v0")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    print(f"{args.episodes} episodes of {args.id}, played at random\n")
    started, right = time.monotonic(), 0
    env = gym.make(args.id, render_mode="ansi")
    env.action_space.seed(args.seed)
    for episode in range(args.episodes):
        _, info = env.reset(seed=args.seed if episode == 0 else None)
        total, over = 0.0, False
        while not over:
            # A mask keeps to what is legal now; without one, illegal actions only waste the turn.
            masks = env.unwrapped.action_masks()
            parts, start = [], 0
            for n in env.action_space.nvec:
                parts.append(masks[start : start + n].astype("int8"))
                start += n
            action = env.action_space.sample(mask=tuple(parts))
            _, reward, terminated, truncated, info = env.step(action)
            total, over = total + float(reward), terminated or truncated
        print(env.render())
        print(f"return {total:.3f}, outcome {info['outcome']}, {info['turns']} turns\n")
        right += info["is_success"]
    spent = time.monotonic() - started
    print(f"{right} of {args.episodes} answered rightly, {spent:.1f} s")
    env.close()


if __name__ == "__main__":
    main()
