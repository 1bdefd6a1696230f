"""ChatCodec: dialogues as token ids, exactly.

A dialogue is a list of blocks of ids. What the model sampled stays as it was sampled; what the
environment shows is encoded once and appended. Nothing is ever decoded and encoded again, because
that is not the identity and the gradient would land on tokens that nobody sampled.

The chat template is asked for what stands around a system message, a user message and a reply
(``markup``). One that shows earlier replies without their thinking is followed: a reply is trained
on as it was sampled, and later turns see of it what the template shows. Left out: templates that
change earlier messages in other ways when a later one arrives are refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.model.markup import Markup, any_of, since, until
from agents.model.template import current
from gym_longvideo.protocol import Content, with_opening

# Some tokenizers count these as special, but a reply consists of them.
_SAID = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")


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
        thinking: Whether the model thinks before it replies, for templates with such a switch
            (``enable_thinking``); None leaves it to the template.

    Attributes:
        end_id: The id that ends a reply (``<|im_end|>``).
        suppressed: (n,) int64 ids that are never sampled, and are left out of the softmax in
            training too: vision placeholders and all special tokens but the end of a reply, and
            marks of thoughts and tool calls.
        opens_thought: Whether the template begins every reply with ``<think>``.
        skips_thought: Whether it begins every reply with an empty thought, ``<think></think>``.
        drops_thinking: Whether it shows earlier replies without their thinking, so that a context
            is no beginning of the next one.
        trims: Whether the template strips the white space around each of the "texts" that are
            shown, or around whole "messages", or keeps it ("").

    Raises:
        ValueError: If the tokenizer has no chat template, lacks a placeholder, has no switch for
            ``thinking``, or dialogues cannot be continued with the template.
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
        thinking: bool | None = None,
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
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        special |= {i: token.content for i, token in added.items() if token.special}
        self._special_words = any_of(special.values())
        self._special_said = any_of(word for word in special.values() if word in _SAID)
        self._read(thinking)
        silent = {i for i, word in special.items() if word not in _SAID} | {*vision.values()}
        known = np.arange(vocab_size or len(tokenizer))
        never = np.isin(known, sorted(silent - {self.end_id})) | (known >= len(tokenizer))
        self.suppressed = known[never]

    @classmethod
    def from_pretrained(
        cls, path: str | Path, config: Any, *, thinking: bool | None = None
    ) -> ChatCodec:
        """Load the tokenizer and image settings that belong to a model.

        Args:
            path: Directory or hub id.
            config: The model's configuration.
            thinking: As the constructor takes it.
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
            thinking=thinking,
        )

    def switched(self, thinking: bool | None) -> ChatCodec:
        """Return this codec with thinking switched on or off; None leaves it to the template.

        Raises:
            ValueError: If the template has no such switch.
        """
        other = copy.copy(self)
        other._read(thinking)
        return other

    def system(self, text: str) -> Block:
        """Encode the system message, up to where the first user message begins."""
        before, lead, tail, after = self._system
        shown = self._plain([lead + (text.strip() if self.trims else text) + tail])
        return Block(np.concatenate([before, *shown, after]))

    def user(self, content: Content) -> Block:
        """Encode what a turn shows, and the opening of the reply.

        Args:
            content: Text parts and image parts, as ``TurnProtocol.render`` gives them.
        """
        # Neighbouring texts are one text to the template, and a token may span them.
        runs = [(kind, list(run)) for kind, run in groupby(content, itemgetter("type"))]
        joined = ["".join(self._shown(run)) for kind, run in runs if kind == "text"]
        if self.trims == "messages" and runs:
            if runs[0][0] == "text":
                joined[0] = joined[0].lstrip()
            if runs[-1][0] == "text":
                joined[-1] = joined[-1].rstrip()
        if self._user_tail:
            if not runs or runs[-1][0] != "text":
                runs.append(("text", []))
                joined.append("")
            joined[-1] += self._user_tail
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

    def past(self, user: Block, reply: Sequence[int] | np.ndarray) -> list[Block]:
        """Return an exchange as later turns see it; nobody is trained on it there.

        Args:
            user: What was shown, as ``user`` encoded it.
            reply: The ids that were sampled. Where the template drops their thinking, later turns
                are shown the text that it leaves of them, encoded anew.
        """
        if not self.drops_thinking:
            said = self.reply(reply)
            return [user, said._replace(sampled=False), self.close(said)]
        marks, lead = self._past
        asked = user.ids[: len(user.ids) - len(self._user_end)]
        shown = self._spoken(lead + self._markup.seen(self.text(reply)))
        return [
            Block(np.concatenate([asked, marks]), user.frames),
            Block(shown),
            self.close(self.reply([])),
        ]

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of a reply, for the environment only.

        A thought that the template has opened, or left empty, is part of it.
        """
        kept = [int(i) for i in ids]
        if kept and kept[-1] == self.end_id:
            kept = kept[:-1]
        said = self.tokenizer.decode(kept, skip_special_tokens=False)
        begun = self.opens_thought or self.skips_thought
        return with_opening(said, closed=self.skips_thought) if begun else said

    def encode_reply(self, text: str, *, end: bool = True) -> Block:
        """Encode a reply somebody wrote (for supervised training and tests)."""
        if self.opens_thought:
            text = text.removeprefix("<think>")
        elif self.skips_thought and (empty := _EMPTY_THOUGHT.match(text)):
            text = text[empty.end() :]
        ids = self._spoken(text)
        return self.reply(np.append(ids, self.end_id) if end else ids)

    def _read(self, thinking: bool | None) -> None:
        """Learn the marks that the template puts around texts.

        Text that it puts next to a text is encoded together with it, because a token may span both.
        """
        self._markup = markup = Markup(self.tokenizer, thinking)
        self.opens_thought, self.skips_thought = markup.opens_thought, markup.skips_thought
        self.drops_thinking, self.trims = markup.drops_thinking, markup.trims
        words, ends = self._special_words, self._special(markup.joint)
        if not words.match(markup.joint):
            raise ValueError(
                f"the chat template goes on after a reply with {markup.joint!r}, which does not "
                "begin with a special token; a reply could not be told to end there"
            )
        self.end_id, self._after_end = int(ends[0]), ends[1:]
        before, lead = since(words, markup.before)
        tail, after = until(words, markup.between)
        self._system = self._special(before), lead, tail, self._special(after)
        self._user_tail, _ = until(words, min(markup.past, markup.after, key=len))
        self._user_end = self._special(markup.after.removeprefix(self._user_tail))
        marks, lead = since(words, markup.past.removeprefix(self._user_tail))
        self._past = self._special(marks), lead
        for text in (markup.between, markup.joint):
            _, lead = since(words, text)
            alone, ahead = self._plain([lead, f"{lead}Turn"])
            if not np.array_equal(ahead[: len(alone)], alone):
                raise ValueError(
                    f"the chat template puts {lead!r} before a user message, and a token would "
                    "span both; let it end with a line"
                )

    def _shown(self, parts: Content) -> list[str]:
        texts = [part["text"] for part in parts]
        return [text.strip() for text in texts] if self.trims == "texts" else texts

    def _plain(self, texts: list[str]) -> list[np.ndarray]:
        # A question that spells out a special token must not become one.
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
        return [np.array(ids, np.int64) for ids in encoded["input_ids"]]

    def _spoken(self, text: str) -> np.ndarray:
        """Encode a text in which marks of thoughts and tool calls may be special tokens."""
        ids, done = [], 0
        for found in self._special_said.finditer(text):
            ids += [*self._plain([text[done : found.start()]]), self._special(found[0])]
            done = found.end()
        return np.concatenate([*ids, *self._plain([text[done:]])])

    def _special(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False), np.int64)


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
