"""Train a policy with multi-turn PPO.

Without any option this trains the tiny model that is shipped on haystack. Presets set the defaults
of everything else:

    longvideo train --seconds 600
    longvideo train --preset recommended --suite my_questions.jsonl
    longvideo train --resume runs/train-20250101-120000 --iterations 400
    longvideo train --seconds 600 --out runs/mine --resume auto    # again and again, to the end
    torchrun --nproc-per-node 8 -m agents.train --preset paper
    longvideo train --rollout vllm --servers http://localhost:8000

Several processes hold the weights together, each a part of every tensor, unless --shard says
otherwise. "longvideo plan" says what fits on which GPUs.

Ctrl-C and SIGTERM save a checkpoint and stop; a second one stops at once.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents import command
from agents.config import TrainConfig, make_train_config
from agents.keeping.divergence import DivergedError
from agents.keeping.saved import AUTO, CheckpointError, newest_readable
from agents.serving.errors import ServerError
from gym_longvideo.command import Parser, as_command, fail
from gym_longvideo.suite import imports_code
from gym_longvideo.video.errors import VideoError


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Read a command line.

    What it does not say comes from the run that goes on, from a configuration, or from the preset.

    Raises:
        ValueError: For values that are not allowed.
        CheckpointError: If there is nothing to resume.
    """
    env: dict[str, Any] = {}

    def defaults(words: Sequence[str], given: Mapping[str, Any]) -> TrainConfig:
        config = _defaults(words, given)
        env.update(config.env)
        return config

    config = command.parse(
        TrainConfig, arguments, "train", description=__doc__, make_default=defaults
    )
    return dataclasses.replace(config, env={**env, **config.env})


def _defaults(words: Sequence[str], given: Mapping[str, Any]) -> TrainConfig:
    first = Parser(add_help=False)
    first.add_argument("--preset", default=given.get("preset", ""))
    first.add_argument("--model", default=given.get("model", ""))
    first.add_argument("--resume", default="")
    first.add_argument("--out", default=given.get("out", ""))
    said, _ = first.parse_known_args(words)
    auto = said.resume == AUTO
    if said.resume and given and not auto:
        raise ValueError("--resume goes on with a run's own configuration; leave --config out")
    if auto and not said.out:
        raise ValueError("--resume auto goes on with the run in --out DIR; name that directory")
    source = newest_readable(Path(said.out)) if auto else said.resume
    if source:
        from agents.checkpoint import config_of

        config = config_of(source)
        repeated = _value_of("--suite", words) or given.get("suite", "")
        if imports_code(config.suite) and repeated != config.suite:
            raise ValueError(
                f"the checkpoint names the suite {config.suite!r}, which imports code; repeat it "
                f"if you trust it: --suite {config.suite}"
            )
        return command.overlaid(dataclasses.replace(config, out="", resume=""), given)
    model = {"model": said.model} if said.model else {}
    return command.overlaid(make_train_config(said.preset, **model), given)


def _value_of(option: str, words: Sequence[str]) -> str:
    parser = Parser(add_help=False)
    parser.add_argument(option, dest="value", default="")
    return parser.parse_known_args(words)[0].value


def _how_to_go_on(out: Path) -> str:
    left = newest_readable(out)
    return f"; go on with --resume {left}" if left else ""


@as_command
def main(arguments: Sequence[str]) -> int:
    """Run from the command line.

    Returns:
        0; 128 + the number of the signal that stopped it; 1 if it broke: training diverged, or
        something could not be read or written; 2 for arguments that are not allowed.
    """
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # transformers 5 says nothing in these that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        config = parse(arguments)
        from transformers.utils import logging as chatter

        from agents.parallel import ProcessError
        from agents.serving.mismatch import RolloutGapError
        from agents.trainer import Trainer

        chatter.disable_progress_bar()
        trainer = Trainer(config)
    except (CheckpointError, ServerError) as error:
        return fail(error)
    main_process = trainer.processes.main
    try:
        result = trainer.run()
    except (CheckpointError, DivergedError, ProcessError, RolloutGapError, ServerError,
            VideoError, OSError) as error:  # fmt: skip
        if main_process or isinstance(error, (VideoError, OSError)):  # all have the others
            fail(f"{error}{_how_to_go_on(trainer.out)}")
        return 1
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


if __name__ == "__main__":
    sys.exit(main())
