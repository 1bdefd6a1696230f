"""Train a policy with multi-turn PPO: ``python -m agents.train``.

Without any option this trains the tiny model that is shipped on haystack. Presets set the defaults
of everything else:

    python -m agents.train --seconds 600
    python -m agents.train --preset recommended --suite my_questions.jsonl
    python -m agents.train --resume runs/train-20250101-120000 --iterations 400
    accelerate launch --num_processes 8 -m agents.train --preset paper
    torchrun --nproc-per-node 8 -m agents.train --preset paper

Ctrl-C saves a checkpoint and stops; a second one stops at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
import warnings
from collections.abc import Sequence

from agents.config import TrainConfig, make_train_config


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Read a command line.

    What it does not say comes from the preset or, with ``--resume``, from the run that goes on.

    Raises:
        ValueError: For values that have no meaning.
        CheckpointError: If there is nothing to resume.
    """
    import tyro

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="tiny")
    first.add_argument("--resume", default="")
    given, _ = first.parse_known_args(arguments)
    if given.resume:
        from agents.checkpoint import find, read_state

        state = read_state(find(given.resume))
        default = dataclasses.replace(TrainConfig.from_json(state["config"]), out="", resume="")
    else:
        default = make_train_config(given.preset)
    return tyro.cli(
        TrainConfig, args=list(arguments), default=default, description=__doc__, prog="agents.train"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0; 128 + the number of the signal that stopped it; 1 if a checkpoint could not be written;
        2 for arguments that have no meaning.
    """
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # accelerate and transformers 5 say nothing in these that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning)
    from agents.checkpoint import CheckpointError

    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        from transformers.utils import logging as chatter

        from agents.trainer import Trainer

        chatter.disable_progress_bar()
        trainer = Trainer(config)
    except (ValueError, OSError, CheckpointError) as error:  # OSError: a model that is not there
        return _fail(error, 2)
    main_process = trainer.processes.main
    try:
        result = trainer.run()
    except CheckpointError as error:
        return _fail(error, 1) if main_process else 1
    finally:
        trainer.processes.close()
    if main_process:
        last = trainer.checkpoints.latest()
        if result is not None:
            print(
                f"accuracy {result.accuracy:.3f} ({result.accuracy_low:.3f} to "
                f"{result.accuracy_high:.3f}), {result.turns:.2f} turns, "
                f"{result.frames:.1f} frames, {result.episodes} episodes"
            )
        if trainer.stopped_by:
            name = signal.Signals(trainer.stopped_by).name
            print(f"stopped by {name} at step {trainer.step}; go on with --resume {last}")
        else:
            print(f"done at step {trainer.step}; checkpoint {last}")
    return 128 + trainer.stopped_by if trainer.stopped_by else 0


def _fail(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
