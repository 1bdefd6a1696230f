"""Policies for LongVideoQA, and their training. Importing this package imports none of its modules.

In reading order; the first part tells the method, the rest is what it stands on.

The path of a training run:

    train.py          the command line: ``longvideo train``
    command.py        options from a dataclass, configurations from a file, errors in a line
    config.py         TrainConfig: everything that a run depends on
    trainer.py        Trainer: collect, learn, log; evaluate and save now and then
    rollout.py        RolloutCollector: dialogues with many environments at once
    trajectory.py     Trajectory: a dialogue as it was sampled and as it is trained on
    ppo.py            PPOLearner: a batch of episodes in, better weights out
    experience.py     a batch of episodes as tensors, from the dialogues to the advantages
    ppo_config.py     PPOConfig and the presets
    advantages.py     rewards on tokens, turn-aware GAE, whitening: pure
    losses.py         clipped policy and value losses, entropy, KL estimates: pure
    optimizers.py     AdamW, and AdamW that remembers in eight bits
    curriculum.py     RetrievalBonus and BootstrapCurriculum: a passing bonus for retrieving

The model is a wing of its own, ``agents/model``; see there. The tiny one that is shipped:

    pretrain_tiny.py  how its weights were made; they lie in weights/tiny
    lessons.py        what they were taught: dialogues with a teacher's replies

So are what deals batches out to processes, ``agents/dealing``, what keeps a run from being lost,
``agents/keeping``, what a run needs, worked out before it begins, ``agents/plan``, and rollouts by
servers, ``agents/serving``. What a run leaves behind:

    evaluation.py     Evaluation: what episodes say about a policy
    confidence.py     Wilson's and Newcombe's intervals of proportions
    metrics.py        the names under which numbers are logged
    logbook.py        TensorBoard, JSON Lines, transcripts, contact sheets, progress
    checkpoint.py     all that a run needs to go on as if nothing had happened
    parallel.py       Processes: what those that train together tell each other
    sharding.py       one copy of the weights over several processes

Beside it:

    source.py         PolicySource: what a policy's name means, and what the policy was made for
    scripted.py       random, uniform, bisecting and oracle agents: baselines and upper bounds
    sb3.py            a feature extractor for Stable-Baselines3; a trained model as an agent
"""

from gym_longvideo import command as _command

_command.explain_imports()
