"""TrainConfig: everything that a training run depends on, in one frozen dataclass.

The command line of ``agents.train`` is generated from it, and every checkpoint holds it as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import gymnasium as gym
import tyro

from agents import command
from agents.command import Options
from agents.curriculum import PATIENCE, STAGES, RetrievalBonus
from agents.keeping.saved import AUTO
from agents.model.policy import LoRA, MLLMPolicy
from agents.model.sampling import Sampling
from agents.ppo_config import PRESETS, PPOConfig
from agents.serving.settings import ServingSettings
from agents.source import EPISODE_SETTINGS, TINY, MadeFor, PolicySource
from gym_longvideo import checks
from gym_longvideo.env import SETTINGS
from gym_longvideo.prompt import prompt_text
from gym_longvideo.protocol import make_protocol
from gym_longvideo.rewards import make_reward
from gym_longvideo.settings import EpisodeSettings, with_rules
from gym_longvideo.suite import is_annotation, named_split, parts_of, suite_names
from gym_longvideo.wrappers import TextProtocol

Dtype = Literal["auto", "float32", "bfloat16"]
Compute = Literal["auto", "float32", "bfloat16"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]
Preset = Literal["tiny", "recommended", "paper"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run.

    Attributes:
        model: Directory or hub id of a model (Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5); "tiny" is
            the one shipped.
        preset: Where the defaults of everything below come from; on the command line
            "recommended" for a large model, else "tiny".
        ppo: How to optimise.
        lora_rank: Rank of the adapters; 0 trains all language weights.
        lora_alpha: Scale of the adapters; the update is multiplied by alpha / rank.
        train_vision: Whether the vision tower is trained too; needs --lora-rank 0.
        checkpointing: Recompute activations, which saves memory and costs a forward pass.
        packing: Score and train dialogues end to end, without padding; None is wherever the model
            can (not Qwen3.5, whose layers keep a state, and not with --attention eager).
        suite: "haystack", the name of a benchmark, the path of a JSON Lines annotation, or
            "module:callable"; a name may carry the split to train on: "nextgqa:val". Several names
            with commas between them are one suite, "weights" among its options says how often each
            part's tasks come.
        root: Directory of the benchmarks that are trained and evaluated on.
        eval_suite: Suite to evaluate on, "nextgqa:test"; by default that which is trained on.
        suite_options: Keyword arguments of the suite; those that the model was made for if none are
            given. Records of an annotation that name no split are split by video, unless
            "split_by" is "none".
        env: Keyword arguments of LongVideoQA-v0, over those that the model was made for; on the
            command line over those of the preset, or of the run that goes on, too. Under "rules"
            the name of many at once, the reward too: video_mtr_code plays the released code.
        split: Split to train on.
        eval_split: Split to evaluate on.
        reward: Reward preset of the environment.
        protocol: "tags", "tags_seconds" or "tool_call".
        prompt: File of a template that words the turns (docs/prompts.md); by default the one that
            the model was trained with, if any; "default" for this project's own words. Checkpoints
            hold its text.
        max_new_tokens: Longest reply.
        thinking: Whether the model thinks before it replies, for models whose chat template has
            that switch (enable_thinking); by default as the model was made for, or as the template
            has it.
        serving: Who plays the episodes: these processes, or vLLM servers.
        bonus: Whether retrievals earn the bootstrapping bonus while they are rare.
        bonus_stages: Pairs of retrieval rate and the bonus below it.
        bonus_patience: Batches in a row above the last rate that end the bonus for good.
        batch: Episodes of an iteration, over all processes.
        envs: Environments of a process, played side by side; 0 for one an episode.
        iterations: Iterations in all; 0 for no such limit.
        seconds: Stop after as many; 0 for no such limit.
        eval_every: Iterations between evaluations, the first before training; 0 for none.
        eval_episodes: Episodes of an evaluation.
        samples: Episodes of an evaluation that are written out as text and pictures.
        save_every: Iterations between checkpoints; 0 for the last one only.
        save_minutes: Minutes between checkpoints, whatever save_every says; 0 for no such limit.
        keep: Checkpoints kept.
        out: Directory of the run; by default one under runs/ with the time in its name.
        resume: Go on from this checkpoint, or the latest one of this run's directory; "auto" goes
            on from the newest intact one in --out, and begins anew if there is none.
        seed: Of weights, tasks and replies.
        device: "auto", "cpu", "cuda", "cuda:1".
        dtype: Of the weights; "auto" is bfloat16 under adapters on a GPU, else float32.
        compute: Number format of the passes where all weights are trained; "auto" is bfloat16 on a
            GPU, else float32. The weights that are trained, their gradients and the sums of these
            stay in single precision.
        shard: Processes that hold one copy of the weights together, each a part of every tensor; 0
            for all of a machine, 1 for a whole copy in each process.
        attention: Of language model and vision tower: "auto" (sdpa, where the tower is on a CPU
            eager there), "sdpa", "eager", or "flash_attention_2", which needs a GPU and the package
            flash-attn and has not been run on one yet.
        tf32: On a GPU, multiply single precision adapters as TF32, with 10 bits after the point.
        threads: Threads of torch; 0 leaves its own choice.
    """

    model: str = TINY
    preset: Preset = "tiny"
    ppo: PPOConfig = field(default_factory=lambda: PRESETS["tiny"])
    lora_rank: int = 0
    lora_alpha: float = 64.0
    train_vision: bool = False
    checkpointing: bool = False
    packing: bool | None = False
    suite: str = "haystack"
    root: str = ""
    eval_suite: str = ""
    suite_options: Options = field(default_factory=dict)
    env: Options = field(default_factory=dict)
    split: str = "train"
    eval_split: str = "val"
    reward: str = "video_mtr"
    protocol: str = "tags"
    prompt: str = ""
    max_new_tokens: int = 48
    thinking: bool | None = None
    serving: Annotated[ServingSettings, tyro.conf.OmitArgPrefixes] = field(
        default_factory=ServingSettings
    )
    bonus: bool = True
    bonus_stages: tuple[tuple[float, float], ...] = STAGES
    bonus_patience: int = PATIENCE
    batch: int = 64
    envs: int = 0
    iterations: int = 200
    seconds: float = 0.0
    eval_every: int = 20
    eval_episodes: int = 128
    samples: int = 2
    save_every: int = 20
    save_minutes: float = 0.0
    keep: int = 3
    out: str = ""
    resume: str = ""
    seed: int = 0
    device: str = "auto"
    dtype: Dtype = "auto"
    compute: Compute = "auto"
    shard: int = 0
    attention: Attention = "auto"
    tf32: bool = True
    threads: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("lora_rank", 0), ("max_new_tokens", 1), ("bonus_patience", 1), ("batch", 1),
            ("envs", 0), ("iterations", 0), ("eval_every", 0), ("eval_episodes", 1),
            ("samples", 0), ("save_every", 0), ("keep", 1), ("seed", 0), ("threads", 0),
            ("shard", 0),
        ):  # fmt: skip
            checks.keep_whole(self, name, least)
        checks.number("seconds", self.seconds, 0)
        checks.number("save_minutes", self.save_minutes, 0)
        if self.resume == AUTO and not self.out:
            raise ValueError(
                "resume='auto' goes on with the run in out=, which is not given; name its directory"
            )
        name, split = named_split(self.suite)
        if split is not None:  # the part that is trained on; evaluations have a split of their own
            object.__setattr__(self, "suite", name)
            object.__setattr__(self, "split", split)
        if is_annotation(self.suite):  # what names no split is not trained and evaluated on
            options = {"split_by": "video", **self.suite_options}
            object.__setattr__(self, "suite_options", options)
        if self.eval_suite:
            name, split = named_split(self.eval_suite)
            object.__setattr__(self, "eval_suite", name)
            object.__setattr__(self, "eval_split", split or self.eval_split)
        elif self.eval_every and self.split == self.eval_split:
            raise ValueError(
                f"split={self.split!r} would be trained and evaluated on; use another eval_split, "
                "or eval_every=0"
            )
        if not self.iterations and not self.seconds:
            raise ValueError("iterations=0 and seconds=0.0 would never end; set one of them")
        checks.choice("preset", self.preset, get_args(Preset))
        checks.choice("dtype", self.dtype, get_args(Dtype))
        checks.choice("compute", self.compute, get_args(Compute))
        checks.choice("attention", self.attention, get_args(Attention))
        if self.lora_rank:
            LoRA(self.lora_rank, self.lora_alpha)
            if self.train_vision:
                raise ValueError(
                    f"train_vision=True trains all weights, lora_rank={self.lora_rank} only "
                    "adapters; use lora_rank=0"
                )
        elif self.ppo.critic == "adapter":
            raise ValueError(
                "ppo.critic='adapter' needs adapters and lora_rank=0 makes none; use "
                "lora_rank=64, or ppo.critic='head' or 'model'"
            )
        if self.serving.by_servers and self.ppo.top_p < 1:
            raise ValueError(
                f"ppo.top_p={self.ppo.top_p:g} with rollout='vllm': a server's log-probabilities "
                "are those of the nucleus, and training needs those of all ids; use ppo.top_p=1"
            )
        RetrievalBonus(self.bonus_stages, self.bonus_patience)
        known = (*SETTINGS, "render_mode", "suite", "split", "suite_options")
        object.__setattr__(self, "env", with_rules(self.env))
        checks.names(f"env={self.env}: the environment", self.env, known)
        make_reward(self.env.get("reward", self.reward))
        make_protocol(self.protocol)
        object.__setattr__(self, "prompt", prompt_text(self.prompt))

    @property
    def lora(self) -> LoRA | None:
        """The adapters, if any."""
        return LoRA(self.lora_rank, self.lora_alpha) if self.lora_rank else None

    @property
    def sampling(self) -> Sampling:
        """How replies are drawn in training."""
        return Sampling(
            temperature=self.ppo.temperature,
            top_p=self.ppo.top_p,
            max_new_tokens=self.max_new_tokens,
        )

    def compute_dtype(self, device_type: str) -> Any:
        """Return the number format of passes, None where it is that of the weights.

        Args:
            device_type: "cpu" or "cuda".
        """
        weights = "float32" if self.dtype == "auto" else self.dtype
        compute = self.compute
        if compute == "auto":
            compute = "bfloat16" if device_type == "cuda" else "float32"
        return None if self.lora_rank or compute == weights else _torch_dtype(compute)

    def share(self, processes: int) -> int:
        """Return the most episodes of an iteration that a process plays; some play one fewer."""
        return -(-self.batch // processes)

    @cached_property
    def source(self) -> PolicySource:
        """Where the model comes from.

        Raises:
            ValueError: If it is neither a model's directory nor a hub id.
        """
        source = PolicySource.of(self.model)
        if source.kind not in ("model", "hub"):
            raise ValueError(
                f"model={self.model!r} is a policy of the kind {source.kind!r}; use the directory "
                "or hub id of a model, or resume= to go on with a run"
            )
        return source

    def suite_of(self, split: str) -> dict[str, Any]:
        """Return the keyword arguments of an environment that say which suite it plays."""
        made_for, options = self.source.made_for, self.suite_options
        given = set(options) - {"split_by"}
        if not given and made_for is not None and made_for.suite == self.suite:
            options = {**made_for.suite_options, **options}
        filters = PAPER_FILTER if self.preset == "paper" and _of_benchmarks(self.suite) else {}
        options = {**self._below_root(self.suite), **filters, **options}
        return {"suite": self.suite, "split": split, "suite_options": options}

    def eval_suite_of(self) -> dict[str, Any]:
        """Return the keyword arguments of an environment that say which suite is evaluated on."""
        if not self.eval_suite:
            return self.suite_of(self.eval_split)
        options = self._below_root(self.eval_suite)
        return {"suite": self.eval_suite, "split": self.eval_split, "suite_options": options}

    def _below_root(self, suite: str) -> dict[str, Any]:
        return {"root": self.root} if self.root and _of_benchmarks(suite) else {}

    def env_options(self) -> dict[str, Any]:
        """Return the other keyword arguments of the environments."""
        return self.source.settings_under({"reward": self.reward, **self.env})

    def made_for(self) -> MadeFor:
        """Return what a policy that is trained so is made for."""
        suite = self.suite_of(self.split)
        settings = {k: v for k, v in self.env_options().items() if k in EPISODE_SETTINGS}
        return MadeFor(
            protocol=self.protocol,
            settings=EpisodeSettings(**settings),
            max_new_tokens=self.max_new_tokens,
            history=self.ppo.history,
            suite=suite["suite"],
            suite_options=suite["suite_options"],
            thinking=self._thinks(),
            prompt=self._prompt(),
        )

    def make_env(self, split: str, *, held_out: bool = False) -> TextProtocol:
        """Make one environment on a split, or on what is evaluated on."""
        suite = self.eval_suite_of() if held_out else self.suite_of(split)
        env = gym.make(
            "gym_longvideo:LongVideoQA-v0",
            disable_env_checker=True,
            **{**suite, **self.env_options()},
        )
        return TextProtocol(env, self.protocol, prompt=self._prompt() or None)

    def load_policy(
        self,
        device: Any = None,
        frame_size: tuple[int, int] | None = None,
        *,
        empty: bool = False,
    ) -> MLLMPolicy:
        """Load the model as it is before training.

        Args:
            device: Where to; the GPU if there is one, by default.
            frame_size: Height and width of the frames it will see, in pixels, if known.
            empty: Only lay its weights out, to be sharded.
        """
        self.source.check()
        dtype: str = self.dtype
        if dtype == "auto" and not self.lora_rank:
            dtype = "float32"  # bfloat16 weights do not move at these learning rates
        policy = MLLMPolicy.from_pretrained(
            self.source.path,
            dtype=dtype if dtype == "auto" else _torch_dtype(dtype),
            attention=None if self.attention == "auto" else self.attention,
            device=device,
            frame_size=frame_size,
            empty=empty,
            lora=self.lora,
            train_vision=self.train_vision,
            checkpointing=self.checkpointing,
            packing=self.packing,
        )
        if (thinking := self._thinks()) is not None:
            policy.codec = policy.codec.switched(thinking)
        return policy

    def _thinks(self) -> bool | None:
        own = self.source.made_for
        return own.thinking if self.thinking is None and own is not None else self.thinking

    def _prompt(self) -> str:
        return (self.source.made_for or MadeFor()).prompt_under(self.prompt)

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of JSON's own types."""
        return command.to_json(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Read what ``to_json`` wrote; a field that it lacks gets its default.

        Raises:
            ValueError: If a field is unknown, or a value not allowed.
        """
        return command.from_json(cls, values)


def make_train_config(preset: str = "", **overrides: Any) -> TrainConfig:
    """Return the configuration of a preset with some fields replaced.

    Args:
        preset: "tiny", "recommended" or "paper"; "" takes "recommended" for the models that people
            publish and "tiny" for the shipped one and its like.
        **overrides: Fields of ``TrainConfig``.

    Raises:
        ValueError: For an unknown preset or field.

    >>> make_train_config("paper", batch=16).ppo.critic
    'model'
    >>> make_train_config(model="Qwen/Qwen2.5-VL-3B-Instruct").max_new_tokens
    512
    """
    if not preset:
        large = PolicySource.of(overrides.get("model", TINY)).is_large
        preset = "recommended" if large else "tiny"
    checks.choice("preset", preset, get_args(Preset))
    checks.names("TrainConfig", overrides, {each.name for each in fields(TrainConfig)})
    return replace(_PRESETS[preset], **overrides)


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _of_benchmarks(suite: str) -> bool:
    """Return whether a suite, or each part of a mixture, is one of the installed benchmarks."""
    names = [named_split(part)[0] for part in parts_of(suite)]
    return all(suite_names().get(name, "").startswith("benchmarks.") for name in names)


# Only tasks whose segments cover less than half of a video longer than half a minute [4, B].
PAPER_FILTER = {"relevant_share_below": 0.5, "longer_than_s": 30}
_LARGE = {
    "model": "Qwen/Qwen2.5-VL-3B-Instruct",
    "env": {"frame_size": 224},
    "max_new_tokens": 512,
    "checkpointing": True,
    "packing": None,
    "batch": 32,
    "envs": 16,
    "iterations": 250,  # 8000 samples, as in the paper
    "eval_every": 25,
    "save_every": 25,
}
_PRESETS = {
    "tiny": TrainConfig(),
    "recommended": TrainConfig(
        preset="recommended", ppo=PRESETS["recommended"], lora_rank=64, **_LARGE
    ),
    "paper": TrainConfig(
        preset="paper",
        ppo=PRESETS["paper"],
        **{**_LARGE, "model": "Qwen/Qwen2.5-VL-7B-Instruct"},
    ),
}
