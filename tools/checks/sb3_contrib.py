"""sb3-contrib: masks, recurrence, quantiles."""

from __future__ import annotations

from sb3_contrib import ARS, QRDQN, TRPO, MaskablePPO, RecurrentPPO

from tools.checks import needle
from tools.checks.rows import Checks
from tools.checks.sb3 import DQN_SETTINGS, PPO_SETTINGS, READING, vector

check = Checks("sb3-contrib")


@check("MaskablePPO", how="as is, agents.sb3.FrameExtractor", trains=True)
def maskable() -> None:
    """Train on the environment's masks."""
    MaskablePPO("MultiInputPolicy", vector(), policy_kwargs=READING, **PPO_SETTINGS).learn(
        needle.steps()
    )


@check("MaskablePPO", how="DiscreteIntervals, agents.sb3.FrameExtractor", trains=True)
def maskable_discrete() -> None:
    """Train on the masks of discrete actions."""
    MaskablePPO(
        "MultiInputPolicy", vector(needle.discrete), policy_kwargs=READING, **PPO_SETTINGS
    ).learn(needle.steps())


@check("RecurrentPPO", how="as is, agents.sb3.FrameExtractor", trains=True)
def recurrent() -> None:
    """Train with a memory of earlier turns."""
    RecurrentPPO(
        "MultiInputLstmPolicy",
        vector(),
        policy_kwargs={**READING, "lstm_hidden_size": 64},
        **{**PPO_SETTINGS, "learning_rate": 2e-3},
    ).learn(needle.steps(0.75))


@check(
    "QR-DQN", how="DiscreteIntervals, agents.sb3.FrameExtractor, buffer_size=10_000", trains=True
)
def quantiles() -> None:
    """Train quantiles of the return."""
    QRDQN(
        "MultiInputPolicy",
        vector(needle.discrete, 8),
        exploration_fraction=0.3,
        exploration_final_eps=0.05,
        policy_kwargs={**READING, "n_quantiles": 25},
        **DQN_SETTINGS,
    ).learn(needle.steps(0.5))


@check("TRPO", how="as is, agents.sb3.FrameExtractor", trains=True)
def trust_region() -> None:
    """Train TRPO."""
    TRPO(
        "MultiInputPolicy",
        vector(),
        n_steps=32,
        batch_size=256,
        gamma=1.0,
        policy_kwargs=READING,
        seed=0,
        device="cpu",
    ).learn(needle.steps(0.5))


@check("ARS", limit="ARS takes one Box as observation, and Discrete or Box actions")
def random_search() -> None:
    """Make ARS."""
    ARS("MlpPolicy", vector(), device="cpu").learn(128)


if __name__ == "__main__":
    check.main()
