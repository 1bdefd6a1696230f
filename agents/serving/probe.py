"""Probe: does a server run our model as we run it? Asked before it gets a dialogue."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from agents.model.chat import Block, ChatCodec
from agents.model.policy import MLLMPolicy
from agents.model.sampling import Reply, Sampling
from agents.serving.client import Server
from agents.serving.errors import Mismatch, Refused
from agents.serving.push import HOW_TO_START, models
from agents.serving.wire import ROUTE, Prompt, read, request, sampling_params

TOKENS = 16  # of a probe's reply
_SURE = 1e-6  # log-probability of the only id that was left


class Served(NamedTuple):
    """What a server says it serves.

    Attributes:
        model: Its name there.
        context: The most tokens of a dialogue.
    """

    model: str
    context: int


def served(server: Server) -> Served:
    """Return what a server serves.

    Raises:
        ServerError: If it does not say.
    """
    model = next((each for each in models(server) if not each.get("parent")), None)
    if model is None:
        raise Mismatch(f"{server.url}/v1/models lists adapters only")
    return Served(str(model["id"]), int(model.get("max_model_len") or 0))


def small_dialogue(codec: ChatCodec, frame_size: tuple[int, int] | None) -> list[Block]:
    """Return a dialogue with two images, before its first reply.

    Args:
        codec: Of the policy.
        frame_size: Height and width of images in pixels, if known.
    """
    unit = codec.grid.patch * codec.grid.merge
    height, width = frame_size or (2 * unit, 3 * unit)
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    content: list[dict[str, Any]] = []
    for text, frame in zip("ab", frames, strict=True):
        content += [{"type": "text", "text": text}, {"type": "image", "image": frame}]
    content.append({"type": "text", "text": "Which of them?"})
    return [codec.system("Look."), codec.user(content)]


def check_server(server: Server, policy: MLLMPolicy, model: str) -> None:
    """Ask a server what its replies are made of.

    Raises:
        Mismatch: If its vocabulary has another size than ours, its log-probabilities are not those
            of what it samples from, or the route that takes token ids is not there.
    """
    codec, size = policy.codec, policy.base.config.get_text_config().vocab_size
    prompt = Prompt.of([codec.system("Look."), codec.user([{"type": "text", "text": "So?"}])])
    params = sampling_params(codec, Sampling(greedy=True, max_new_tokens=TOKENS))
    # With one id left to sample from, what it is sampled from holds nothing else.
    alone = {**params, "temperature": 1.0, "top_k": 1}
    beyond = {**params, "max_tokens": 1, "logit_bias": {str(size): -1.0}}
    body = request(model, prompt, alone, codec.image_token_id)
    try:
        answer = server.post(ROUTE, body)
    except Refused as error:
        raise Mismatch(
            f"{server.url} answers no token ids ({error}): it has another vocabulary than {size} "
            f"ids, or lacks the route; {HOW_TO_START}"
        ) from None
    reply = read(answer, prompt, codec, TOKENS, model=model)
    if (np.abs(reply.log_probs) > _SURE).any():
        raise Mismatch(
            f"{server.url} gives log-probabilities of something else than it samples from; start "
            "vLLM with --logprobs-mode processed_logprobs"
        )
    try:
        server.post(ROUTE, request(model, prompt, beyond, codec.image_token_id))
    except Refused:
        return
    raise Mismatch(
        f"{server.url} has a larger vocabulary than {size} ids: it serves another model than the "
        "policy's"
    )


def gap(policy: MLLMPolicy, dialogue: list[Block], reply: Reply, temperature: float) -> float:
    """Return the mean |log-probability there - the same here| of a reply.

    Sharded weights are used: all processes must call this together.
    """
    row = policy.row([*dialogue, policy.codec.reply(reply.ids)])
    with torch.no_grad():
        scores = policy.score([row], temperature=temperature, with_entropy=False)
    ours = scores.log_probs[scores.mask].float().cpu().numpy()
    return float(np.abs(ours - reply.log_probs).mean())
