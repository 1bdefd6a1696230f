"""ChatCodec: dialogues as token ids, exactly.

A dialogue is a list of blocks of ids. What the model sampled stays as it was sampled; what the
environment shows is encoded once and appended. Nothing is ever decoded and encoded again, because
that is not the identity and the gradient would land on tokens that nobody sampled.

The chat template is asked twice, with marks in place of the texts, for what stands around a system
message, a user message and a reply; after that no template runs. Left out: templates that change
earlier messages when a later one arrives (those that drop old thinking, say) are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.model.template import current
from gym_longvideo.protocol import Content, with_opening

# A template that drops old thinking must meet some.
_REPLY = "<think>\u241ethought\u241f</think>\u241ereply\u241f"
_MARKS = ("\u241esystem\u241f", "\u241euser\u241f", _REPLY, "\u241eagain\u241f")


class Block(NamedTuple):
    """A piece of a dialogue.

    Attributes:
        ids: (n,) int64 token ids; image placeholders are expanded.
        frames: (H, W, 3) uint8 images, in the order of their placeholders.
        sampled: Whether the policy said this; only such tokens are trained on.
    """

    ids: np.ndarray
    frames: tuple[np.ndarray, ...] = ()
    sampled: bool = False


@dataclass(frozen=True)
class ImageGrid:
    """How the vision tower cuts an image.

    Attributes:
        patch: Side of a patch in pixels.
        merge: Patches along a side that make one token.
        temporal: Frames that make one patch; a still image is repeated so often.
    """

    patch: int
    merge: int
    temporal: int = 2

    def tokens(self, height: int, width: int) -> tuple[int, int]:
        """Return the (rows, columns) of tokens of an image.

        Raises:
            ValueError: If a side is not a multiple of ``patch * merge``.

        >>> ImageGrid(patch=14, merge=2).tokens(56, 28)
        (2, 1)
        """
        unit = self.patch * self.merge
        if height % unit or width % unit or not height or not width:
            near = max(1, round(height / unit)) * unit, max(1, round(width / unit)) * unit
            raise ValueError(
                f"frames of {height}x{width} pixels do not fit the model's patch grid: sides must "
                f"be multiples of {unit}; use frame_size={list(near)}"
            )
        return height // unit, width // unit


class ChatCodec:
    """Turns dialogues into token ids for one model.

    Args:
        tokenizer: A Hugging Face fast tokenizer with a chat template.
        image_token_id: Placeholder of one image token.
        vision_start_id: Opens an image.
        vision_end_id: Closes it.
        grid: How the vision tower cuts an image.
        vocab_size: Width of the model's output; ids that the tokenizer does not know are never
            sampled.

    Attributes:
        end_id: The id that ends a reply (``<|im_end|>``).
        suppressed: (n,) int64 ids that are never sampled, and are left out of the softmax in
            training too: vision placeholders and all special tokens but the end of a reply.
        opens_thought: Whether the template begins every reply with ``<think>``.
        trims: Whether the template strips the white space around each text that is shown.

    Raises:
        ValueError: If the tokenizer has no chat template, lacks a placeholder, or the template
            cannot be continued block by block.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        image_token_id: int,
        vision_start_id: int,
        vision_end_id: int,
        grid: ImageGrid,
        vocab_size: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.grid = grid
        self.image_token_id = image_token_id
        vision = {
            "image_token_id": image_token_id,
            "vision_start_token_id": vision_start_id,
            "vision_end_token_id": vision_end_id,
        }
        for name, token_id in vision.items():
            if not 0 <= token_id < len(tokenizer):
                raise ValueError(
                    f"{name}={token_id} is not in the tokenizer's vocabulary of {len(tokenizer)}; "
                    "the tokenizer does not belong to this model"
                )
        self._start = np.array([vision_start_id])
        self._stop = np.array([vision_end_id])
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no chat template; use "
                "an instruction-tuned model, or set tokenizer.chat_template"
            )
        before, between, joint, after = self._around()
        self.trims = self._trimming()
        joint_ids = self._special(joint)
        if not len(joint_ids) or int(joint_ids[0]) not in tokenizer.all_special_ids:
            raise ValueError(
                f"the chat template goes on after a reply with {joint!r}, which does not begin "
                "with a special token; a reply could not be told to end there"
            )
        self._system = self._special(before), self._special(between)
        self._user_end = self._special(after)
        self.opens_thought = after.rstrip().endswith("<think>")
        self.end_id = int(joint_ids[0])
        self._after_end = joint_ids[1:]
        known = np.arange(vocab_size or len(tokenizer))
        silent = {*tokenizer.all_special_ids, *vision.values()} - {self.end_id}
        added = getattr(tokenizer, "added_tokens_decoder", {})
        silent |= {i for i, token in added.items() if token.special and i != self.end_id}
        self.suppressed = known[np.isin(known, sorted(silent)) | (known >= len(tokenizer))]

    @classmethod
    def from_pretrained(cls, path: str | Path, config: Any) -> ChatCodec:
        """Load the tokenizer and image settings that belong to a model.

        Args:
            path: Directory or hub id.
            config: The model's configuration.
        """
        from transformers import AutoTokenizer

        for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id"):
            if getattr(config, name, None) is None:
                raise ValueError(
                    f"model {str(path)!r} has no {name}; it is not of the Qwen-VL kind"
                )
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        tokenizer.chat_template = current(tokenizer.chat_template)
        vision = config.vision_config
        return cls(
            tokenizer,
            image_token_id=config.image_token_id,
            vision_start_id=config.vision_start_token_id,
            vision_end_id=config.vision_end_token_id,
            grid=ImageGrid(
                vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
            ),
            vocab_size=config.get_text_config().vocab_size,
        )

    def system(self, text: str) -> Block:
        """Encode the system message, up to where the first user message begins."""
        before, after = self._system
        return Block(np.concatenate([before, *self._plain([self._shown(text)]), after]))

    def user(self, content: Content) -> Block:
        """Encode what a turn shows, and the opening of the reply.

        Args:
            content: Text parts and image parts, as ``TurnProtocol.render`` gives them.
        """
        # Neighbouring texts are one text to the template, and a token may span them.
        runs = [(kind, list(run)) for kind, run in groupby(content, itemgetter("type"))]
        joined = [
            "".join(self._shown(part["text"]) for part in run)
            for kind, run in runs
            if kind == "text"
        ]
        texts = iter(self._plain(joined))
        ids: list[np.ndarray] = []
        frames: list[np.ndarray] = []
        for kind, run in runs:
            if kind == "text":
                ids.append(next(texts))
                continue
            images = [self.image(np.asarray(part["image"])) for part in run]
            ids += [image.ids for image in images]
            frames += [frame for image in images for frame in image.frames]
        ids.append(self._user_end)
        return Block(np.concatenate(ids), tuple(frames))

    def image(self, frame: np.ndarray) -> Block:
        """Return an image by itself, (H, W, 3) uint8, with what opens and closes it."""
        rows, columns = self.grid.tokens(*frame.shape[:2])
        pads = np.full(rows * columns, self.image_token_id)
        return Block(np.concatenate([self._start, pads, self._stop]), (frame,))

    def reply(self, ids: Sequence[int] | np.ndarray) -> Block:
        """Wrap the ids of a reply as they were sampled."""
        return Block(np.asarray(ids, np.int64), (), True)

    def close(self, reply: Block) -> Block:
        """Return what the template puts between a reply and the next user message.

        A reply that was cut at the token limit is ended here; nobody sampled that end, so it is not
        trained on.
        """
        ended = len(reply.ids) > 0 and reply.ids[-1] == self.end_id
        return Block(self._after_end if ended else np.append(self.end_id, self._after_end))

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of a reply, for the environment only.

        Where the template has opened the thought, that opening is part of it.
        """
        kept = [int(i) for i in ids]
        if kept and kept[-1] == self.end_id:
            kept = kept[:-1]
        said = self.tokenizer.decode(kept, skip_special_tokens=False)
        return with_opening(said) if self.opens_thought else said

    def encode_reply(self, text: str, *, end: bool = True) -> Block:
        """Encode a reply somebody wrote (for supervised training and tests)."""
        ids = self._plain([text.removeprefix("<think>") if self.opens_thought else text])[0]
        return self.reply(np.append(ids, self.end_id) if end else ids)

    def _shown(self, text: str) -> str:
        return text.strip() if self.trims else text

    def _plain(self, texts: list[str]) -> list[np.ndarray]:
        # A question that spells out a special token must not become one.
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
        return [np.array(ids, np.int64) for ids in encoded["input_ids"]]

    def _special(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False), np.int64)

    def _trimming(self) -> bool:
        """Find out what the template does to the white space around texts that are shown."""
        texts = [f"\t{mark}\t" for mark in _MARKS[:2]]
        shown = self._render(
            [
                {"role": role, "content": [{"type": "text", "text": text}]}
                for role, text in zip(("system", "user"), texts, strict=True)
            ]
        )
        if all(text in shown for text in texts):
            return False
        if "\t" not in shown:
            return True
        raise ValueError(
            "the chat template neither keeps all texts as they are nor strips the white space "
            f"around each: of the tabs around {_MARKS[0]!r} and {_MARKS[1]!r} it makes {shown!r}"
        )

    def _around(self) -> tuple[str, str, str, str]:
        """Return what the template puts around texts.

        That is: before the system message, between it and the first user message, between a reply
        and the next user message, and after that.
        """
        system, user, reply, again = (
            {"role": role, "content": [{"type": "text", "text": mark}]}
            for role, mark in zip(("system", "user", "assistant", "user"), _MARKS, strict=True)
        )
        opening = self._render([system, user])
        before, found, rest = opening.partition(_MARKS[0])
        between, also_found, after = rest.partition(_MARKS[1])
        if not found or not also_found:
            raise ValueError("the chat template drops the system or the user message")
        longer = self._render([system, user, reply, again])
        head, found, rest = longer.partition(_MARKS[2])
        joint, also_found, tail = rest.partition(_MARKS[3])
        opened = opening.removeprefix(head)  # "", or the <think> that a reply would repeat
        if (
            not found
            or not also_found
            or not opening.startswith(head)
            or opened.strip() not in ("", "<think>")
            or tail != after
        ):
            raise ValueError(
                "the chat template rewrites earlier messages (drops their thinking, say), or "
                "prefixes a reply, when a dialogue goes on; contexts cannot be extended token by "
                "token with it"
            )
        return before, between, joint, after

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )


def window(turns: Sequence[Sequence[Block]], history: int | None) -> list[Block]:
    """Return the blocks that the model sees: ``history`` earlier turns and the present one.

    Args:
        turns: For each turn its blocks (what was shown, and for earlier turns the reply and its
            close).
        history: Earlier turns kept (w in the paper, which uses 2); ``None`` for all.
    """
    if history is not None and history < 0:
        raise ValueError(f"history={history} must be None, for all turns, or 0 or more")
    kept = turns if history is None else turns[max(0, len(turns) - 1 - history) :]
    return [block for blocks in kept for block in blocks]
