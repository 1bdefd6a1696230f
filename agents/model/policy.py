"""MLLMPolicy: an image-text-to-text model as a policy over replies.

One forward path serves generation, scoring and training: embeddings with the vision features put
in, explicit M-RoPE positions, the language model, and the head at response positions only.
Log-probabilities are those of softmax(logits / temperature) over the ids that may be sampled, in
fp32; the same set is left out in sampling and in training.

Traps of transformers 5 that shaped this file: positions must be explicit (``rows``); ``generate``
falls back to top_k=50 and to what generation_config.json says, so it is not used; with gradient
checkpointing, an adapter that is switched between forward and backward gets no gradient.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents.model.chat import Block, ChatCodec, ImageGrid
from agents.model.families import family_of
from agents.model.fidelity import check_fidelity
from agents.model.packing import cannot_pack, keep_to_rows, who_attends
from agents.model.root import Root
from agents.model.rows import Batch, Row, collate, make_row, micro_batches, pack, packs
from agents.model.sampling import Sampling
from agents.model.vision import FrameEncoder
from agents.model.weights import empty_model, refuse_keys
from gym_longvideo import checks

ACTOR, CRITIC = "actor", "critic"
# Flash attention needs a GPU and its own package; nobody has run it here yet.
ATTENTION = ("sdpa", "eager", "flash_attention_2")
# Above as many logits (256 MB in single precision) they are computed for so many tokens at a time.
CHUNK_ABOVE, CHUNK = 2**26, 1024


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on every linear layer of the language model.

    Attributes:
        rank: Of each adapter.
        alpha: Scale; the update is multiplied by alpha / rank.
    """

    rank: int = 64
    alpha: float = 64.0

    def __post_init__(self) -> None:
        checks.whole("lora_rank", self.rank, 1)
        checks.number("lora_alpha", self.alpha, above=0)


class Scores(NamedTuple):
    """A scoring pass over rows; N is the most response tokens of a row, right padded.

    Attributes:
        log_probs: (B, N) of the sampled ids, in ``MLLMPolicy.precision``.
        entropy: (B, N) in nats, in the same.
        hidden: (B, N, hidden) states that predict each response token; None unless wanted.
        mask: (B, N) bool.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor
    hidden: torch.Tensor | None
    mask: torch.Tensor


class MLLMPolicy:
    """A model with its codec, its adapters and its memory of frames.

    Fresh adapters are drawn from torch's global generator, as peft does it: seed that first, with
    ``torch.manual_seed``, for the same ones again (``Trainer`` does). Adapters are in single
    precision whatever the model is in, because their steps are small.

    Args:
        model: Of one of the ``families``, such as a ``Qwen2_5_VLForConditionalGeneration``.
        codec: Of the same model.
        mean: Image normalisation per channel.
        std: Image normalisation per channel.
        lora: Train adapters instead of all weights.
        train_vision: Whether the vision tower is trained; then its features are never remembered.
        checkpointing: Recompute activations of the language model in the backward pass.
        packing: Score and train rows end to end, without padding, see ``packing``; None is wherever
            the model can.
        feature_cache_mb: Memory for features of frames.
        images: The image processor that the model came with, which is saved with the policy.
        device: Where the model will be, if its weights are only laid out yet.

    Attributes:
        root: Language model and head, and the tower if it is trained: what passes run under.

    Raises:
        ValueError: If rows are to be packed and cannot be, or this policy would run the model
            otherwise than the model runs itself. A model without weights is not compared: ``check``
            does it.
    """

    def __init__(
        self,
        model: Any,
        codec: ChatCodec,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        lora: LoRA | None = None,
        train_vision: bool = False,
        checkpointing: bool = False,
        packing: bool | None = False,
        feature_cache_mb: float = 512.0,
        images: Any = None,
        device: torch.device | None = None,
    ) -> None:
        self.codec, self.images = codec, images
        self.lora = lora
        self.train_vision = train_vision
        self.base: Any = model
        self.family = family_of(model.config, model.name_or_path)
        core = model.model
        if lora is not None and train_vision:
            raise ValueError("train_vision=True trains all of the tower; it needs lora=None")
        core.visual.requires_grad_(train_vision)
        self.language: Any = core.language_model
        self.head: Any = model.lm_head
        linear = self.family.linear
        self._device = device or model.lm_head.weight.device
        why_not = cannot_pack(self.family, self.language)
        if packing and why_not:
            raise ValueError(f"packing=True, but {why_not}; use packing=False")
        self.packing = not why_not if packing is None else packing
        if self.packing:
            keep_to_rows(self.language)
        self.peft: Any = _with_adapter(model, lora, linear) if lora is not None else None
        if lora is not None:
            self._draw_adapter(ACTOR)
        self.encoder = FrameEncoder(
            core.visual,
            codec.grid,
            mean,
            std,
            capacity_mb=feature_cache_mb,
            cached=not train_vision,
            family=self.family,
        )
        if checkpointing:
            # transformers 5.23 deprecates the name that earlier ones know.
            enable = getattr(self.language, "activation_checkpointing_enable", None)
            (enable or self.language.gradient_checkpointing_enable)({"use_reentrant": False})
        self.checkpointing = checkpointing
        model.eval()  # no dropout anywhere: the first ratio must be 1
        self._suppressed = torch.from_numpy(codec.suppressed).to(self.device)
        self.root = self.weights()
        if not self.is_empty:
            self.check()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        attention: str | None = None,
        frame_size: tuple[int, int] | None = None,
        empty: bool = False,
        **options: Any,
    ) -> MLLMPolicy:
        """Load a model from a directory or the hub.

        Args:
            path: Directory or hub id.
            dtype: "auto" is bfloat16 on a GPU and float32 on a CPU.
            device: The GPU if there is one, by default.
            attention: Of language model and tower, see ``ATTENTION``; None is "sdpa", but "eager"
                for the tower on a CPU, which attends image by image there and is faster so.
            frame_size: Height and width of frames in pixels that will be shown; what does not fit
                the model is refused before its weights are read.
            empty: Only lay the weights out, to be sharded and then filled; see ``weights``.
            **options: As the constructor takes them.

        Raises:
            ValueError: If it is no model of that kind, or frames do not fit it.
            OSError: If there is none.
        """
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype == "auto":
            dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
        config = AutoConfig.from_pretrained(str(path))
        family_of(config, str(path))
        codec = ChatCodec.from_pretrained(path, config)
        images = Qwen2VLImageProcessorPil.from_pretrained(str(path))
        cut = ImageGrid(images.patch_size, images.merge_size, images.temporal_patch_size)
        if cut != codec.grid:
            raise ValueError(
                f"the image processor of {str(path)!r} cuts {cut}, the vision tower takes "
                f"{codec.grid}; the files do not belong to one model"
            )
        if frame_size is not None:
            codec.grid.tokens(*frame_size)
        if attention is not None:
            _check_attention(attention, place, dtype)
        tower = attention or ("eager" if place.type == "cpu" else "sdpa")
        kinds = {"text_config": attention or "sdpa", "vision_config": tower}
        if empty:
            model: Any = empty_model(config, dtype, attn_implementation=kinds)  # type: ignore
            model.name_or_path = str(path)
        else:
            model = load_whole(path, dtype=dtype, attn_implementation=kinds).to(place)
        return cls(
            model,
            codec,
            mean=images.image_mean,
            std=images.image_std,
            images=images,
            device=place,
            **options,
        )

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self._device

    @property
    def is_empty(self) -> bool:
        """Whether the weights are only laid out yet."""
        return self.head.weight.is_meta

    @property
    def precision(self) -> torch.dtype:
        """Number format of log-probabilities and values: float32, of a float64 model float64."""
        return torch.promote_types(self.head.weight.dtype, torch.float32)

    @property
    def tied(self) -> list[str]:
        """Names under which files may hold a weight of the model once more."""
        return (
            list(self.base._tied_weights_keys or ())
            if self.head.weight is (self.language.get_input_embeddings().weight)
            else []
        )

    def check(self) -> None:
        """Compare this policy with its model, see ``check_fidelity``.

        Raises:
            ValueError: If it would run the model otherwise than the model runs itself.
        """
        check_fidelity(self)

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return int(self.base.config.get_text_config().hidden_size)

    def actor_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that post-training moves."""
        if self.peft is None:
            return [p for p in self.base.parameters() if p.requires_grad]
        return self.adapter_parameters(ACTOR)

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """Return the parameters of an adapter."""
        return [p for key, p in self.base.named_parameters() if f".{name}." in key]

    def remember(self, frames: int, tokens: int) -> None:
        """Make room for the features of as many frames as come back in later passes.

        Too little is as bad as nothing: frames that come back in the same order find themselves
        just forgotten. On a GPU a quarter of the memory that is free is the most.

        Args:
            frames: Different frames of a batch.
            tokens: Of a frame at most.
        """
        width = self.family.width(self.base.config)
        size = frames * tokens * width * self.head.weight.element_size()
        if self.device.type == "cuda":
            size = min(size, torch.cuda.mem_get_info(self.device)[0] // 4)
        self.encoder.capacity = max(self.encoder.capacity, size)

    def row(self, blocks: Sequence[Block]) -> Row:
        """Lay out a dialogue."""
        return make_row(blocks, self.codec.grid, self.codec.image_token_id)

    def least_row(self) -> Row:
        """Return a short row with one response token, for passes that do not count."""
        end = np.array([self.codec.end_id])
        return self.row([Block(end, (), False), Block(end, (), True)])

    def weights(self) -> Root:
        """Return what full training moves; a copy can stand in for it, see ``using``."""
        modules = {"language": self.language, "head": self.head}
        if self.train_vision:
            modules["visual"] = self.encoder.visual
        return Root(modules)

    @contextmanager
    def using(self, modules: Root) -> Iterator[None]:
        """Run other modules in place of the policy's own: "language", "head", "visual"."""
        own = self.root, self.language, self.head, self.encoder.visual
        self.root, self.language = modules, modules["language"]
        self.head = modules["head"] if "head" in modules else self.head
        self.encoder.visual = modules["visual"] if "visual" in modules else self.encoder.visual
        try:
            yield
        finally:
            self.root, self.language, self.head, self.encoder.visual = own

    def inputs(self, batch: Batch, *, train_tower: bool = True) -> dict[str, Any]:
        """Return what the language model is given in place of ids: see ``Family.inputs``.

        Args:
            batch: Rows, padded or packed.
            train_tower: Whether gradients may reach the vision tower, if it is trained at all.
        """
        embeds = self.language.get_input_embeddings()(batch.ids)
        if not batch.frames:
            if self.train_vision and train_tower and torch.is_grad_enabled():
                # Processes add up gradients of the tower together, so each must have some.
                unit = self.codec.grid.patch * self.codec.grid.merge
                (blank,) = self.encoder([np.zeros((unit, unit, 3), np.uint8)])
                embeds = embeds + 0.0 * blank.sum()
            return {"inputs_embeds": embeds}
        with torch.set_grad_enabled(torch.is_grad_enabled() and train_tower):
            features = torch.cat(self.encoder(batch.frames)).to(embeds.dtype)
        places = (batch.ids == self.codec.image_token_id) & batch.attention.bool()
        return self.family.inputs(embeds, features, places)

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Lay rows out for one forward pass: end to end, or padded where ``packing`` is off."""
        if self.packing:
            return pack(rows, device=self.device)
        return collate(rows, 0, device=self.device)

    def groups(self, rows: Sequence[Row], max_tokens: int) -> list[list[int]]:
        """Return which rows go through together, by index.

        Args:
            rows: Any number.
            max_tokens: Of a forward pass, padding included where there is some; a longer row goes
                alone.
        """
        lengths = [len(row.ids) for row in rows]
        return packs(lengths, max_tokens) if self.packing else micro_batches(lengths, max_tokens)

    def run(self, batch: Batch, *, train_tower: bool = True) -> torch.Tensor:
        """Run the language model; return its (B, L, hidden) last states.

        Args:
            batch: As ``batch`` lays it out.
            train_tower: As ``inputs`` takes it.
        """
        return self.language(
            **self.inputs(batch, train_tower=train_tower),
            **who_attends(batch, self.language),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state

    def score(
        self,
        rows: Sequence[Row],
        *,
        temperature: float = 1.0,
        with_entropy: bool = True,
        with_hidden: bool = False,
    ) -> Scores:
        """Score the response tokens of rows in one forward pass; autograd decides on gradients.

        Args:
            rows: Sequences that each hold at least one response token.
            temperature: Of the softmax.
            with_entropy: Whether entropies are wanted; they cost a pass over the vocabulary.
            with_hidden: Whether the states are wanted, as a critic that is a head reads them.
        """
        return self.root(self._score, rows, temperature, with_entropy, with_hidden)

    def _score(
        self, rows: Sequence[Row], temperature: float, with_entropy: bool, with_hidden: bool
    ) -> Scores:
        states, ids, mask = self._states(rows)
        log_probs, entropy = self._log_probs(states, ids, temperature, with_entropy)
        hidden = spread(states, mask) if with_hidden else None
        return Scores(spread(log_probs, mask), spread(entropy, mask), hidden, mask)

    def states(
        self, rows: Sequence[Row], *, train_tower: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run the language model with the adapter that is active.

        Args:
            rows: Sequences that each hold at least one response token.
            train_tower: As ``inputs`` takes it.

        Returns:
            (T, hidden) states that predict the T response tokens of all rows, in order; their (T,)
            ids; and the (B, N) bool mask of where they belong, see ``spread``.
        """
        return self.root(self._states, rows, train_tower)

    def _states(
        self, rows: Sequence[Row], train_tower: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch = self.batch(rows)
        with self._recomputing():
            states = self.run(batch, train_tower=train_tower)
        # The state before a token predicts it.
        wanted = batch.sampled[:, 1:]
        counts = torch.tensor([int(row.sampled.sum()) for row in rows], device=self.device)
        mask = torch.arange(int(counts.max()), device=self.device) < counts[:, None]
        return states[:, :-1][wanted], batch.ids[:, 1:][wanted], mask

    def logits(self, states: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return logits / temperature in ``precision``, -inf for ids that are never sampled."""
        logits = self.head(states).to(self.precision) / temperature
        return logits.index_fill(-1, self._suppressed, -torch.inf)

    @contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """Use another adapter, or none (the reference): forward, backward and step inside.

        Raises:
            RuntimeError: If the policy was made without ``lora``.
        """
        if self.peft is None:
            raise RuntimeError("there are no adapters; pass lora= to the policy")
        if name is None:
            with self.peft.disable_adapter():
                yield
            return
        before = self.peft.active_adapter
        self.peft.set_adapter(name)
        try:
            yield
        finally:
            self.peft.set_adapter(before)

    def add_adapter(self, name: str) -> list[nn.Parameter]:
        """Add another adapter on the same frozen weights; return its parameters."""
        if self.lora is None:
            raise ValueError(f"adapter {name!r} needs lora=; pass it to the policy")
        self.peft.add_adapter(name, lora_config(self.lora, self.family.linear))
        self._draw_adapter(name)
        self.peft.set_adapter(ACTOR)
        return self.adapter_parameters(name)

    @torch.no_grad()
    def _draw_adapter(self, name: str) -> None:
        """Draw an adapter as peft does, also on a model whose weights are only laid out.

        Always on the processor, so that the same seed gives the same adapter on every device.
        """
        for key, module in self.base.named_modules():
            if not key.endswith((f".lora_A.{name}", f".lora_B.{name}")):
                continue
            drawn = torch.zeros(module.weight.shape)
            if ".lora_A." in key:
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
            module.weight = nn.Parameter(drawn.to(self.device, self.precision))

    def save_pretrained(
        self,
        directory: str | Path,
        sampling: Sampling | None = None,
        *,
        but_weights: torch.dtype | None = None,
    ) -> None:
        """Write what ``from_pretrained`` loads; with LoRA the adapter, in ``actor/``.

        Whoever loads it by other means, a server too, shows it the same pixels and draws its
        replies alike: frames of any size that fits are not resized, and the generation settings of
        the base model (a repetition penalty, say) do not go along.

        Args:
            directory: Where to.
            sampling: How its replies are drawn.
            but_weights: Write everything but weights, which will be added in this number format.
        """
        if self.peft is not None:
            none = {} if but_weights is None else {"state_dict": {}}
            self.peft.save_pretrained(str(directory), selected_adapters=[ACTOR], **none)
        elif but_weights is None:
            self.base.save_pretrained(str(directory))
        else:
            config = copy.deepcopy(self.base.config)
            config.architectures = [type(self.base).__name__]
            for each in (config, *(getattr(config, name) for name in config.sub_configs)):
                each.dtype = but_weights
            config.save_pretrained(str(directory))
        self.codec.tokenizer.save_pretrained(str(directory))
        self._image_processor().save_pretrained(str(directory))
        drawn = sampling or Sampling()
        GenerationConfig(
            do_sample=True,
            temperature=drawn.temperature,
            top_p=drawn.top_p,
            top_k=drawn.top_k,
            max_new_tokens=drawn.max_new_tokens,
            eos_token_id=self.codec.end_id,
            pad_token_id=self.codec.tokenizer.pad_token_id,
        ).save_pretrained(str(directory))

    def _image_processor(self) -> Any:
        grid = self.codec.grid
        if self.images is None:
            return Qwen2VLImageProcessorPil(
                patch_size=grid.patch,
                merge_size=grid.merge,
                temporal_patch_size=grid.temporal,
                image_mean=list(self.encoder.mean),
                image_std=list(self.encoder.std),
                do_resize=False,
            )
        images = copy.deepcopy(self.images)
        # Smaller frames than a processor is made for would be enlarged.
        side = grid.patch * grid.merge
        size = dict(images.size)
        images.size = {**size, "shortest_edge": min(size["shortest_edge"], side * side)}
        return images

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Let the layers of the language model forget their activations, if that was asked for.

        transformers 5 does so only in training mode, in which it also drops the KV cache. So the
        layers are in training mode for this forward alone; what is inside them stays without
        dropout.
        """
        layers = self.language.layers if self.checkpointing and torch.is_grad_enabled() else ()
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def _log_probs(
        self, states: torch.Tensor, ids: torch.Tensor, temperature: float, with_entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (T,) log-probabilities and entropies, in chunks where logits would be many.

        The logits exist several times over in single precision, and autograd keeps most of them.
        A chunk needs them one after another, and with gradients computes them again. PyTorch's own
        ``linear_cross_entropy`` does it likewise, but returns half precision for half precision.
        """
        if len(ids) * self.head.weight.shape[0] <= CHUNK_ABOVE:
            return self._log_probs_at_once(states, ids, temperature, with_entropy)
        parts = []
        for some, their_ids in zip(states.split(CHUNK), ids.split(CHUNK), strict=True):
            args = (some, their_ids, temperature, with_entropy)
            if torch.is_grad_enabled():
                parts.append(
                    checkpoint(
                        self._log_probs_at_once,
                        *args,
                        use_reentrant=False,
                        preserve_rng_state=False,
                    )
                )
            else:
                parts.append(self._log_probs_at_once(*args))
        log_probs, entropy = zip(*parts, strict=True)
        return torch.cat(log_probs), torch.cat(entropy)

    def _log_probs_at_once(
        self, states: torch.Tensor, ids: torch.Tensor, temperature: float, with_entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.logits(states, temperature)
        norm = logits.logsumexp(-1)
        log_probs = logits.gather(-1, ids[:, None])[:, 0] - norm
        if not with_entropy:
            return log_probs, torch.zeros_like(log_probs)
        probs = (logits - norm[:, None]).exp()
        finite = logits.masked_fill(torch.isinf(logits), 0.0)
        return log_probs, norm - (probs * finite).sum(-1)


def _check_attention(attention: str, place: torch.device, dtype: Any) -> None:
    checks.choice("attention", attention, ATTENTION)
    if not attention.startswith("flash"):
        return
    from transformers.utils.import_utils import is_flash_attn_2_available

    if place.type != "cuda" or dtype == torch.float32 or not is_flash_attn_2_available():
        raise ValueError(
            f"attention={attention!r} needs a GPU, weights in half precision and the package "
            "flash-attn (pip install flash-attn); use attention='sdpa'"
        )


def load_whole(path: str | Path, **options: Any) -> Any:
    """Load the weights of a model, all of them and no others.

    Raises:
        ValueError: If some are missing, or belong to no part of it, naming them.
        OSError: If there are none.
    """
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        str(path), output_loading_info=True, **options
    )
    model, info = loaded
    refuse_keys(str(path), info["missing_keys"], info["unexpected_keys"])
    return model


def spread(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Put (T, ...) values where (B, N) ``mask`` is True, zeros elsewhere: (B, N, ...)."""
    out = values.new_zeros(*mask.shape, *values.shape[1:])
    return out.masked_scatter(mask.view(*mask.shape, *[1] * (values.ndim - 1)), values)


def lora_config(lora: LoRA, linear: Sequence[str]) -> Any:
    """Return the peft configuration of an adapter on the linear layers of the language model."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,  # dropout would make the first ratio differ from 1
        target_modules=rf".*language_model\..*\.({'|'.join(linear)})",
    )


def _with_adapter(model: Any, lora: LoRA, linear: Sequence[str]) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft 0.21 asks for a name that transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(model, lora_config(lora, linear), adapter_name=ACTOR)
