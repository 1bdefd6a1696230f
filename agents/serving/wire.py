"""Wire: what is sent to ``/inference/v1/generate`` for a dialogue, and what its answer means: pure.

Token ids go in and come out; nothing is decoded or encoded again. Of an image one placeholder goes
in, which the server expands, and the expanded prompt that comes back must be ours. An image is sent
under a name made from its pixels, and once a server has seen it, the name alone.

Whatever does not fit what was asked for raises: a prompt that was expanded otherwise, weights of
another version, a reply that was aborted, log-probabilities that are none.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from agents.model.chat import Block, ChatCodec
from agents.model.sampling import Reply, Sampling
from agents.serving.errors import Mismatch, Unreachable

ROUTE = "/inference/v1/generate"
# Ids that are never sampled: far enough below all others, and as low as vLLM lets it be.
SUPPRESSED = -100.0


class Picture(NamedTuple):
    """An image on its way to a server.

    Attributes:
        name: The same for the same pixels.
        frame: (H, W, 3) uint8.
    """

    name: str
    frame: np.ndarray

    @classmethod
    def of(cls, frame: np.ndarray) -> Picture:
        """Name an image."""
        frame = np.ascontiguousarray(frame)
        digest = hashlib.blake2b(frame.data, digest_size=16, key=str(frame.shape).encode())
        return cls(digest.hexdigest(), frame)

    def part(self, known: Collection[str]) -> dict[str, Any]:
        """Return it as a request holds it; without its pixels where its name is known."""
        url = None if self.name in known else _data_url(self.frame)
        return {"type": "image_url", "url": url, "uuid": self.name}


def _data_url(frame: np.ndarray) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "png", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


class Prompt(NamedTuple):
    """The context of a reply.

    Attributes:
        ids: (n,) int64, placeholders expanded.
        pictures: In the order of their placeholders.
    """

    ids: np.ndarray
    pictures: tuple[Picture, ...]

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Prompt:
        """Lay out the blocks of a dialogue one after another."""
        frames = [frame for block in blocks for frame in block.frames]
        ids = np.concatenate([block.ids for block in blocks])
        return cls(ids, tuple(Picture.of(frame) for frame in frames))

    def joined(self, more: Prompt) -> Prompt:
        """Return the prompt that goes on with another."""
        return Prompt(np.concatenate([self.ids, more.ids]), self.pictures + more.pictures)


def sampling_params(codec: ChatCodec, sampling: Sampling) -> dict[str, Any]:
    """Return vLLM's sampling parameters; none is left to the server's own defaults.

    No seed is among them: one for each request kills vLLM 0.32 where long prompts are fed in parts.

    Raises:
        ValueError: If replies are not drawn from the whole softmax. The server would give the
            log-probabilities of what is left of it, and training goes by those of the whole.
    """
    if not sampling.greedy and (sampling.top_p < 1 or sampling.top_k):
        raise ValueError(
            f"top_p={sampling.top_p:g}, top_k={sampling.top_k}: a server's log-probabilities are "
            "those of the ids that are left, and training needs those of all; use ppo.top_p=1"
        )
    return {
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "max_tokens": sampling.max_new_tokens,
        "logit_bias": {str(i): SUPPRESSED for i in codec.suppressed.tolist()},
        "stop_token_ids": [codec.end_id],
        "ignore_eos": True,  # what the model's own settings call an end is never sampled
        "logprobs": 0,  # of the sampled id alone
        "detokenize": False,
        "n": 1, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "min_tokens": 0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip


def request(
    model: str,
    prompt: Prompt,
    params: dict[str, Any],
    image_token_id: int,
    known: Collection[str] = (),
) -> dict[str, Any]:
    """Return the body of a request.

    Args:
        model: What is asked: the served model, or an adapter.
        prompt: The context.
        params: See ``sampling_params``.
        image_token_id: The placeholder of one image token.
        known: Names of images that the server has.
    """
    pads = prompt.ids == image_token_id
    first = pads & ~np.concatenate([[False], pads[:-1]])
    if int(first.sum()) != len(prompt.pictures):
        raise ValueError(
            f"{int(first.sum())} places of images for {len(prompt.pictures)} images; was a "
            "placeholder sampled?"
        )
    return {
        "model": model,
        "token_ids": prompt.ids[~pads | first].tolist(),
        "content_parts": [picture.part(known) for picture in prompt.pictures],
        "sampling_params": params,
        "return_token_ids": True,
    }


def read(
    answer: Any,
    prompt: Prompt,
    codec: ChatCodec,
    limit: int,
    *,
    model: str,
    version: str | None = None,
) -> Reply:
    """Return the reply that an answer holds.

    Args:
        answer: The JSON of the answer.
        prompt: What was sent.
        codec: Of our model.
        limit: The most tokens of a reply.
        model: What was asked.
        version: Of the weights that must have said every token; None for any.

    Raises:
        Unreachable: If the answer is broken, or the reply was given up half-way.
        Mismatch: If the server understood the prompt otherwise, or ran something else.
    """
    try:
        (choice,) = answer["choices"]
        reason, said = choice["finish_reason"], choice["token_ids"]
        scores = [float(each["logprob"]) for each in choice["logprobs"]["content"]]
        ids = np.array(said, np.int64).reshape(len(said))
        expanded, answered = np.array(answer["prompt_token_ids"], np.int64), answer["model"]
        spans = choice.get("weight_versions") or []
        versions = {str(span["version"]) for span in spans}
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise Unreachable(
            f"the answer is not one of {ROUTE} ({type(error).__name__}: {error}); start vLLM with "
            "--enable-scale-out"
        ) from None
    if answered != model:
        raise Mismatch(f"{model!r} was asked and {answered!r} answered")
    if not np.array_equal(expanded, prompt.ids):
        raise Mismatch(
            f"the server makes {len(expanded)} tokens of a prompt of {len(prompt.ids)}: it cuts "
            "images otherwise; serve the directory that the policy is trained from, with its own "
            "preprocessor_config.json and no --mm-processor-kwargs"
        )
    if version is not None and versions != {version}:
        raise Mismatch(
            f"weights {sorted(versions)} said this and {version!r} were pushed: somebody else "
            "pushes weights to this server, or it was started anew"
        )
    if reason not in ("stop", "length"):
        raise Unreachable(f"the reply was given up (finish_reason={reason!r})")
    ended = len(ids) > 0 and ids[-1] == codec.end_id
    if not 0 < len(ids) <= limit or ended != (reason == "stop") or (ids[:-1] == codec.end_id).any():
        raise Mismatch(
            f"a reply of {len(ids)} tokens (at most {limit}) stopped by {reason!r} "
            f"{'with' if ended else 'without'} the end token {codec.end_id}"
        )
    if not ended and len(ids) < limit:
        raise Mismatch(
            f"a reply was cut after {len(ids)} tokens, before {limit}, because the server's "
            f"context was full after {len(prompt.ids)} tokens of prompt; raise its --max-model-len"
        )
    if len(scores) != len(ids) or not all(math.isfinite(p) and p <= 1e-6 for p in scores):
        raise Mismatch(f"{len(scores)} log-probabilities of {len(ids)} tokens, or none at all")
    unknown = (ids < 0) | (ids >= len(codec.tokenizer))
    if (unknown | np.isin(ids, codec.suppressed)).any():
        raise Mismatch(f"the reply {ids.tolist()} holds ids that are never sampled")
    return Reply(ids, np.array(scores, np.float32), not ended)
