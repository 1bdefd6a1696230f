"""The tiny MLLM: a Qwen2.5-VL of about a million parameters that runs anywhere.

The architecture, the files and the loading code are those of the real models; only the numbers are
small, and the tokenizer is its own. Phrases that a prompt always repeats are one token each: a real
model learned long ago what they mean, and a tiny one has better things to do. Any other text still
encodes, byte by byte if need be.

``python -m agents.pretrain_tiny`` made the weights that are shipped in ``agents/weights/tiny``;
they play the part of a pretrained backbone. Left out: knowledge of anything but haystack videos.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.model.template import TEMPLATE
from agents.source import WEIGHTS as WEIGHTS  # where they lie is no matter of torch
from agents.source import MadeFor
from gym_longvideo.haystack import wording
from gym_longvideo.haystack.glyphs import KINDS
from gym_longvideo.haystack.looks import LOOKS
from gym_longvideo.settings import EpisodeSettings

FRAME_SIZE = 28  # one token a frame: two patches of 14 pixels along each side, merged

# The videos the demo searches: five scenes, of which the one framed in white is asked about; a card
# is held up in it for about two of 64 pool frames, and an overview of eight sees a quarter of the
# cards.
SUITE_OPTIONS: dict[str, Any] = {
    "families": "needle",
    "glyphs": ["colour", "shape"],
    "glyph_scale": 0.6,
    "looks": 12,
    "scenes": 5,
    "target_looks": 1,
    "distractors": 0,
    "blocks": 0,
    "needle_s": 18.75,  # of 600 s
}
ENV_OPTIONS: dict[str, Any] = {
    "pool_size": 64,
    "overview_frames": 8,
    "frames_per_retrieval": 8,
    "frame_budget": 24,
    "frame_size": FRAME_SIZE,
}

MADE_FOR = MadeFor(
    settings=EpisodeSettings(**ENV_OPTIONS), suite="haystack", suite_options=SUITE_OPTIONS
)

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<retrieve>", "</retrieve>", "<answer>", "</answer>")
NOT_SEEN = "not seen"
PHRASES = (
    "system\n",
    "user\n",
    "assistant\n",
    "You answer a multiple-choice question about a long video. At first you see a few frames "
    "spread evenly over it. In each of at most ",
    " turns do exactly one thing: retrieve more frames of one interval, or give your final answer.",
    "Turn ",
    " of ",
    " frames are shown, with frame indices: ",
    "No new frames are shown.",
    "Your last reply was not a valid action (",
    "). Think again. ",
    "frame_idx:",
    "Question: ",
    "\nOptions:",
    *(f"\n{letter}. " for letter in "ABCDEF"),
    "\nYou can retrieve more frames of one interval or give your answer.\nReply with "
    "<think>your reasoning</think><retrieve>start_index, end_index</retrieve> or "
    "<think>your reasoning</think><answer>X</answer>, where X is a letter from A to ",
    "\nYou must give your final answer now.\nReply with <think>your reasoning</think>"
    "<answer>X</answer>, where X is a letter from A to ",
    ".\nValid frame indices are 0 to ",
    "<answer>X</answer>, where X is a letter from A to ",
    NOT_SEEN,
    "none",
    wording.NEEDLE[0].partition(" {ask}")[0].format(look=LOOKS[0].name),
    *wording.ASK.values(),
)


def build_tokenizer() -> Any:
    """Return the tokenizer: byte-level BPE over haystack's words, and phrases of the prompt."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Numbers stand alone, whatever comes before them, so that an index is one token everywhere.
    pieces = Regex(r"\d+| ?[A-Za-z]+|[^\sA-Za-z\d]+ ?|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than there are merges to learn: every piece becomes one token
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False, special=False) for text in (*TAGS, *PHRASES)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[text for text in SPECIAL[1:] if text != "<|im_end|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def _corpus() -> Iterator[str]:
    yield from (str(number) for number in range(256))
    yield from ("A B C D E F", ", ", ": ", ". ", ".", "\n", ",", ":", "(", ")", "?")
    for look in LOOKS:
        yield look.name
        yield f" {look.name}"
    for glyphs in KINDS.values():
        for name in glyphs:
            yield str(name)
            yield f" {name}"
    for text in (*wording.NEEDLE, *wording.ABSENT, *wording.TIMESTAMP, *wording.CHAIN):
        yield text.replace("{", "").replace("}", "")


def build_config(
    tokenizer: Any,
    *,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    intermediate: int = 384,
    vision_hidden: int = 64,
    vision_layers: int = 2,
) -> Any:
    """Return a ``Qwen2_5_VLConfig`` of these sizes for a tokenizer."""
    from transformers import Qwen2_5_VLConfig

    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in SPECIAL}
    quarter = hidden // heads // 8
    return (
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": hidden,
                "intermediate_size": intermediate,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": max(1, heads // 2),
                "max_position_embeddings": 4096,
                "tie_word_embeddings": True,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [
                        hidden // heads // 2 - 2 * (hidden // heads // 2 * 3 // 8),
                        *[hidden // heads // 2 * 3 // 8] * 2,
                    ],
                },
                "bos_token_id": None,
                "eos_token_id": ids["<|im_end|>"],
                "pad_token_id": ids["<|endoftext|>"],
            },
            vision_config={
                "depth": vision_layers,
                "hidden_size": vision_hidden,
                "intermediate_size": 2 * vision_hidden,
                "num_heads": max(1, vision_hidden // 32),
                "out_hidden_size": hidden,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": list(range(vision_layers)),
            },
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=True,
        )
        if quarter
        else _too_narrow(hidden, heads)
    )


def _too_narrow(hidden: int, heads: int) -> Any:
    raise ValueError(f"hidden={hidden} is too narrow for heads={heads}; use 8 or more a head")


def build_model(config: Any, *, seed: int = 0) -> Any:
    """Return a ``Qwen2_5_VLForConditionalGeneration`` with fresh weights; see ``initialise``.

    Args:
        config: As ``build_config`` gives it.
        seed: Of the weights; the global generator is left as it was.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
        initialise(model)
    return model.eval()


@torch.no_grad()
def initialise(model: Any) -> None:
    """Draw weights from which a narrow transformer learns to look things up.

    Large models find induction by themselves; at a width of 128, with the usual spread of 0.02,
    matching a word among shuffled options sits on a plateau for thousands of steps. Three things
    end it within a hundred: linear layers scaled by their fan-in, with token embeddings of a
    spread of 0.3; heads that start out attending to the likes of a token and copying what they
    find (as in mimetic initialisation, arXiv 2305.09828); and, in the first layer, one head that
    fetches what the token before says and one for the token before that, by biases that M-RoPE
    turns into distances.
    """
    nn.init.normal_(model.get_input_embeddings().weight, std=0.3)
    for tower in (model.model.visual, model.model.language_model.layers):
        for linear in (module for module in tower.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    layers = model.model.language_model.layers
    first = layers[0].self_attn
    # What tokens hand on to their followers, and what later layers match on, is the same part.
    shared = torch.empty(first.head_dim, first.k_proj.in_features)
    nn.init.orthogonal_(shared)
    for layer in layers:
        layer.mlp.down_proj.weight.mul_(0.5)
        _attend_to_likes(layer.self_attn, shared)
    for head, offset in enumerate(range(1, min(2, first.num_key_value_groups) + 1)):
        _attend_back(model, first, head, offset, shared)


def _attend_to_likes(
    attention: Any, shared: torch.Tensor, scale: float = 1.5, gain: float = 0.3
) -> None:
    width, groups = attention.head_dim, attention.num_key_value_groups
    keys = attention.k_proj.weight.view(-1, width, attention.k_proj.in_features)
    queries = attention.q_proj.weight.view(len(keys), groups, width, -1)
    values = attention.v_proj.weight.view_as(keys)
    outputs = attention.o_proj.weight.view(-1, len(keys), groups, width)
    for head, key in enumerate(keys):
        basis = shared.clone()
        if head:
            nn.init.orthogonal_(basis)
        key.copy_(scale * basis)
        queries[head] = key
        values[head] = basis
        outputs[:, head] = gain * basis.T[:, None]


def _attend_back(
    model: Any, attention: Any, head: int, offset: int, shared: torch.Tensor, gain: float = 0.6
) -> None:
    """Make a head of the first key group fetch what stands ``offset`` tokens back."""
    width = attention.head_dim
    key = torch.full((width,), 1.5)
    # What rotates the query by -offset: the score then peaks at that distance.
    angle = -offset * model.model.language_model.rotary_emb.inv_freq
    cos, sin = angle.cos(), angle.sin()
    low, high = key.chunk(2)
    rotated = torch.cat([low * cos - high * sin, high * cos + low * sin])
    place = slice(head * width, (head + 1) * width)
    attention.q_proj.bias[place] = rotated
    attention.q_proj.weight[place] *= 0.1
    attention.o_proj.weight[:, place] = gain * shared.T
    if head == 0:
        attention.k_proj.bias[:width] = key
        attention.k_proj.weight[:width] *= 0.1


def save(model: Any, tokenizer: Any, directory: str | Path) -> None:
    """Write everything that ``from_pretrained`` needs."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    vision = model.config.vision_config
    Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        do_resize=False,
    ).save_pretrained(directory)


def save_untrained(directory: str | Path, *, seed: int = 0, **sizes: int) -> Path:
    """Write a tiny model with fresh weights; tests and benchmarks use it.

    Args:
        directory: Where to.
        seed: Of the weights.
        **sizes: As ``build_config`` takes them.
    """
    tokenizer = build_tokenizer()
    save(build_model(build_config(tokenizer, **sizes), seed=seed), tokenizer, directory)
    return Path(directory)
