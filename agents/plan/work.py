"""Work: how many FLOP a model needs, and an iteration of training.

Counted is what the model needs, not what is computed twice: 2 FLOP for each weight of the layers
and each token, 4 x layers x width of the queries for each pair of tokens that attend, the head
where it is read, the tower once for each frame. A backward pass through frozen weights costs as
much as the forward pass, one that trains them twice that. The attention inside the tower and the
adapters are left out.
"""

from __future__ import annotations

from agents.config import TrainConfig
from agents.plan.sizes import Sizes
from agents.plan.workload import Workload

PHASES = ("vision", "prefill", "decode", "score", "critic", "actor")


class Work:
    """How many FLOP a model needs.

    Args:
        sizes: Of the model.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.attention = sizes.caching * sizes.queries
        self.language = sizes.decoder
        self.head = sizes.vocabulary * sizes.hidden
        self.merged = sizes.merged
        self.merger = sizes.merger
        self.tower = sizes.tower - sizes.merger

    def forward(self, new: int, past: int = 0) -> float:
        """Return the FLOP of ``new`` tokens of a sequence of which ``past`` went before."""
        pairs = new * past + new * new / 2
        return 2.0 * self.language * new + 4.0 * self.attention * pairs

    def logits(self, tokens: int) -> float:
        """Return the FLOP of the head for some tokens."""
        return 2.0 * self.head * tokens

    def vision(self, tokens: int) -> float:
        """Return the FLOP of the tower for images of some tokens."""
        return 2.0 * (self.merged * self.tower + self.merger) * tokens


def iteration(config: TrainConfig, work: Work, load: Workload) -> dict[str, float]:
    """Return the FLOP of an iteration over all processes, by phase.

    Args:
        config: Of the run.
        work: Of its model.
        load: Of its episodes.
    """
    ppo, batch = config.ppo, config.batch
    replies = load.reply * len(load.turns)
    rows = sum(work.forward(length) for length in load.rows)
    logits = work.logits(replies)
    prefill = sum(work.forward(turn.new, turn.past) for turn in load.turns)
    decode = sum(work.forward(load.reply - 1, turn.past + turn.new) for turn in load.turns)
    vision = work.vision(load.frames * load.frame)
    reads = ppo.critic != "head"
    reference = bool(ppo.beta)
    backward = 1 if config.lora_rank else 2
    seen = vision if config.train_vision else 0.0  # then no feature is remembered
    critic_epochs = (ppo.critic_epochs or ppo.epochs) * reads
    passes = 1 + reads + reference
    found = {
        "vision": vision,
        "prefill": prefill,
        "decode": decode + logits,
        "score": passes * (rows + seen) + (1 + reference) * logits,
        "critic": critic_epochs * ((1 + backward) * rows + seen),
        "actor": ppo.epochs * (1 + backward) * (rows + logits + seen),
    }
    return {name: batch * flop for name, flop in found.items()}
