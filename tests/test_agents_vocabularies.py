"""Prompts per family: what its chat template and its tokenizer make of a dialogue, id by id.

The real vocabularies are those of Qwen2.5 and Qwen3, looked for in ``qwen2_5`` and ``qwen3`` below
the directory that GYM_LONGVIDEO_TOKENIZERS names; where they are absent, that of the tiny model
alone is tried.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from agents_models import DOT, TALL, WIDE, picture
from chat_templates import QWEN2_5, QWEN3_5, QWEN3_INSTRUCT, QWEN3_THINKING

from agents.model import tiny
from agents.model.chat import ChatCodec, ImageGrid
from agents.model.sampling import Reply
from agents.trajectory import Exchange, Trajectory
from gym_longvideo.episode import Answer, Malformed, Retrieve
from gym_longvideo.protocol import PROTOCOLS, example_turn, shown

REAL = {"qwen2_5": 151936, "qwen3": 151936}  # width of the models' output
FAMILIES = {
    "qwen2.5": (QWEN2_5, None),
    "qwen3-instruct": (QWEN3_INSTRUCT, None),
    "qwen3-thinking": (QWEN3_THINKING, None),
    "qwen3.5": (QWEN3_5, None),
    "qwen3.5-on": (QWEN3_5, True),
    "qwen3.5-off": (QWEN3_5, False),
}
THINKING = [name for name in FAMILIES if name not in ("qwen2.5", "qwen3-instruct")]
CALL = '{"name": "retrieve_frames", "arguments": {"start_s": 75.5, "end_s": 130}}'
REPLIES = {
    "tags": (
        "<think>The 3rd scene, 早い.</think><retrieve>3, 9</retrieve>",
        "<think>\nNothing 🎬 yet.\nLook on.\n</think>\n\n<retrieve>12, 33</retrieve>",
        "<think>One</think> and <think>two</think> \n <answer>B</answer>\n",
        "<retrieve>3, 9</retrieve>",
    ),
    "tool_call": (
        f"Look there.<tool_call>{CALL}</tool_call>",
        f"<think>\nEarly on.\n</think>\n\n<tool_call>\n{CALL}\n</tool_call>",
        "<think>so</think>\n\nIt is <answer>B</answer>",
        "<answer>A</answer>",
    ),
}


@cache
def tokenizer_of(vocabulary: str):
    if vocabulary == "tiny":
        return tiny.build_tokenizer()
    from transformers import AutoTokenizer

    place = Path(
        os.environ.get("GYM_LONGVIDEO_TOKENIZERS")
        or Path(__file__).parents[1] / "../shared/data/tokenizers"
    )
    if not (place / vocabulary).is_dir():
        pytest.skip(f"{place} has no vocabulary {vocabulary}")
    return AutoTokenizer.from_pretrained(place / vocabulary)


@cache
def codec_of(vocabulary: str, family: str) -> ChatCodec:
    template, thinking = FAMILIES[family]
    return made(tokenizer_of(vocabulary), template, thinking, REAL.get(vocabulary))


def made(tokenizer, template, thinking=None, width=None):
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = template
    image, start, end = tokenizer.convert_tokens_to_ids(
        ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>"]
    )
    return ChatCodec(
        tokenizer,
        image_token_id=image,
        vision_start_id=start,
        vision_end_id=end,
        grid=ImageGrid(patch=14, merge=2),
        vocab_size=width,
        thinking=thinking,
    )


def templated(codec, messages, thinking=None):
    """Return the ids that template and tokenizer give, image placeholders expanded."""
    options = {} if thinking is None else {"enable_thinking": thinking}
    whole = codec.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **options
    )
    images = iter(p["image"] for m in messages for p in m["content"] if p["type"] == "image")
    ids = []
    for token in codec.tokenizer.encode(whole, add_special_tokens=False):
        rows, columns = (1, 1)
        if token == codec.image_token_id:
            rows, columns = codec.grid.tokens(*next(images).shape[:2])
        ids += [token] * rows * columns
    assert next(images, None) is None
    return ids


def written(role, text):
    return {"role": role, "content": [{"type": "text", "text": text}]}


def flat(blocks):
    return np.concatenate([block.ids for block in blocks]).tolist()


def dialogue(seed, name):
    """Return a system text, and for each of three turns what is shown and what is replied."""
    rng = np.random.default_rng(seed)
    protocol = PROTOCOLS[name]()
    turns = []
    for number in (1, 2, 3):
        frames = [picture(rng, (DOT, WIDE, TALL)[(seed + number) % 3]) for _ in range(number % 3)]
        turn = replace(
            example_turn(),
            number=number,
            may_retrieve=number < 3,
            frames=np.array(frames),
            frame_index=np.arange(len(frames)),
            frame_time=np.arange(len(frames)) * 1.5,
            objection="no single action" if seed % 5 == number else "",
        )
        said = REPLIES[name][rng.integers(4)]
        ends = rng.random() > 0.3
        said = said if ends else said[: rng.integers(1, len(said))]
        turns.append((shown(protocol.render(turn)), said, ends))
    return protocol.system(example_turn()), turns


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vocabulary", ["tiny", *REAL])
def test_every_context_has_the_ids_of_template_and_tokenizer(vocabulary, family):
    codec, thinking = codec_of(vocabulary, family), FAMILIES[family][1]
    cut = 0
    for seed in range(24):
        system, turns = dialogue(seed, ("tags", "tool_call")[seed % 2])
        episode = Trajectory(codec.system(system))
        messages = [written("system", system)]
        contexts = []
        for content, said, ends in turns:
            messages.append({"role": "user", "content": content})
            episode.turns.append(Exchange.opened(codec.user(content)))
            contexts.append(flat(episode.context(codec, None)))
            assert contexts[-1] == templated(codec, messages, thinking)
            ids = codec.encode_reply(said, end=ends).ids
            episode.turns[-1].reply = Reply(ids, np.zeros(len(ids), np.float32), not ends)
            episode.turns[-1].close = codec.close(codec.reply(ids))
            messages.append(written("assistant", codec.text(ids)))
            cut += not ends
        # What is trained on is what was sampled, where it was sampled.
        rows = list(episode.rows(codec, None))
        replies = [turn.reply.ids.tolist() for turn in episode.turns]
        assert [b.ids.tolist() for row in rows for b in row if b.sampled] == replies
        if codec.drops_thinking:
            assert [flat(row[:-1]) for row in rows] == contexts
        else:
            (row,) = rows
            assert flat(row[:-1]) == contexts[-1]
    assert cut > 10


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vocabulary", ["tiny", *REAL])
def test_what_a_template_does_is_found_out(vocabulary, family):
    codec = codec_of(vocabulary, family)
    assert codec.drops_thinking == (family in THINKING)
    assert codec.opens_thought == (family in ("qwen3-thinking", "qwen3.5", "qwen3.5-on"))
    assert codec.skips_thought == (family == "qwen3.5-off")
    assert codec.trims == ("messages" if family.startswith("qwen3.5") else "")
    prompt = codec.tokenizer.decode(codec.user([{"type": "text", "text": "Which?"}]).ids.tolist())
    opening = {False: "", True: "<think>\n"}[codec.opens_thought]
    opening = "<think>\n\n</think>\n\n" if codec.skips_thought else opening
    assert prompt == f"Which?<|im_end|>\n<|im_start|>assistant\n{opening}"
    # No template adds a system text of its own beside that of the protocol.
    system = codec.tokenizer.decode(codec.system("Rules.").ids.tolist())
    assert system == "<|im_start|>system\nRules.<|im_end|>\n<|im_start|>user\n"


@pytest.mark.parametrize("family", THINKING)
@pytest.mark.parametrize("vocabulary", ["tiny", *REAL])
def test_replies_that_no_tokenizer_would_make_are_seen_as_their_text(vocabulary, family):
    """Cut within a character, spelled letter by letter, begun with white space, empty, special."""
    codec, thinking = codec_of(vocabulary, family), FAMILIES[family][1]
    question = written("user", "Which?")
    user = codec.user(question["content"])
    spelled = [i for letter in "green" for i in codec.encode_reply(letter, end=False).ids]
    film = codec.encode_reply("So 🎬", end=False).ids[:-1]
    empty = codec.encode_reply("", end=False).ids
    texts = ("x</think>\n\n \n\n<answer>A</answer>", "\n\nno thought", " </think>", "<|im_end|> ?")
    for ids in (spelled, film, empty, *(codec.encode_reply(text).ids for text in texts)):
        seen = codec.past(user, ids)
        assert not any(block.sampled for block in seen)
        blocks = [codec.system("Rules."), *seen, user]
        said = codec.text(ids)
        if "<|im_end|>" in said:  # what a reply spells out ends no turn
            assert flat(blocks).count(codec.end_id) == 4
            assert "<|im_end|> ?" in codec.tokenizer.decode(flat(blocks))
            continue
        messages = [written("system", "Rules."), question, written("assistant", said), question]
        assert flat(blocks) == templated(codec, messages, thinking)


@pytest.mark.parametrize("vocabulary", ["tiny", *REAL])
def test_special_tokens_are_never_sampled_and_marks_of_replies_may_be(vocabulary):
    names = {
        "<|endoftext|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    }  # fmt: skip
    if vocabulary != "tiny":
        names |= {"<|vision_pad|>", "<|video_pad|>"}
        kinds = ("object_ref", "box", "quad")
        names |= {f"<|{kind}_{end}|>" for kind in kinds for end in ("start", "end")}
    for family in FAMILIES:
        codec = codec_of(vocabulary, family)
        known = len(codec.tokenizer)
        below = codec.suppressed[codec.suppressed < known].tolist()
        assert {*codec.tokenizer.convert_ids_to_tokens(below)} >= names
        beyond = range(known, REAL.get(vocabulary, known))
        assert codec.suppressed[len(below) :].tolist() == list(beyond)
        if vocabulary != "tiny":
            assert len(below) == len(names)
        assert codec.tokenizer.convert_ids_to_tokens(codec.end_id) == "<|im_end|>"
        for reply in (text for texts in REPLIES.values() for text in texts):
            ids = codec.encode_reply(reply).ids
            assert not np.isin(ids, codec.suppressed).any() and ids[-1] == codec.end_id


@pytest.mark.parametrize(
    ("vocabulary", "single"),
    [("qwen2_5", {"<tool_call>", "</tool_call>"}),
     ("qwen3", {"<think>", "</think>", "<tool_call>", "</tool_call>"})],
)  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
def test_marks_are_one_token_or_several_and_read_alike(vocabulary, single, family):
    codec = codec_of(vocabulary, family)
    for mark in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        assert (len(codec.encode_reply(f"a{mark}", end=False).ids) == 2) == (mark in single)
    for texts in REPLIES.values():
        for reply in texts:
            for end in (True, False):
                ids = codec.encode_reply(reply, end=end).ids
                opening = "<think>" if codec.opens_thought else ""
                opening = "<think></think>" if codec.skips_thought else opening
                opening = "" if reply.startswith("<think>") else opening
                assert codec.text(ids) == opening + reply


@pytest.mark.parametrize("vocabulary", ["tiny", *REAL])
def test_a_reply_after_an_empty_thought_is_read_with_it(vocabulary):
    codec = codec_of(vocabulary, "qwen3.5-off")
    turn = example_turn()

    def read(said, protocol="tags"):
        ids = codec.encode_reply(said).ids
        return PROTOCOLS[protocol]().parse(codec.text(ids), turn)

    assert read("<retrieve>12, 33</retrieve>") == Retrieve(12, 33)
    for thought in ("", "<think>\n\n</think>\n\n", "<think>so</think>"):
        assert read(f"{thought}<answer>B</answer>") == Answer(1)
    assert read(f"Look.<tool_call>{CALL}</tool_call>", "tool_call") == Retrieve(7, 13)
    # The empty thought is in the prompt, so that nobody is taught to write it again.
    whole = codec.encode_reply("<think></think><answer>B</answer>").ids
    assert whole.tolist() == codec.encode_reply("<answer>B</answer>").ids.tolist()
    for strict in (
        "B", "Well, <answer>B</answer>", "so</think><answer>B</answer>",
        "<answer>A</answer><answer>B</answer>", "<answer>B</answer><think>so</think>",
    ):  # fmt: skip
        assert isinstance(read(strict), Malformed)
    codec = codec_of(vocabulary, "qwen3.5-on")
    assert isinstance(read("<answer>B</answer>"), Malformed)
    assert read("so</think><answer>B</answer>") == Answer(1)


@pytest.mark.parametrize("vocabulary", ["tiny", *REAL])
def test_white_space_is_stripped_around_whole_messages_where_the_template_does(vocabulary):
    codec = codec_of(vocabulary, "qwen3.5")
    image = {"type": "image", "image": np.zeros((*TALL, 3), np.uint8)}
    start, middle, end = (
        {"type": "text", "text": t} for t in (" \n\tSee ", " \n and\n ", "this? \n")
    )
    for content in (
        [start, image, middle, image, end], [image, middle, image], [start], [start, middle, end],
        [middle, image, middle], [image],
    ):  # fmt: skip
        blocks = [codec.system(" Rules.\n\n"), codec.user(content)]
        messages = [written("system", " Rules.\n\n"), {"role": "user", "content": content}]
        assert flat(blocks) == templated(codec, messages)


@pytest.mark.parametrize("vocabulary", ["tiny", *REAL])
@pytest.mark.parametrize(
    "text", ["{}: be brief. ", "Be brief.\n\n{}", "{}\n\n\nBe brief.", "{} Be brief.", "be{}ing"]
)
def test_a_system_text_of_the_templates_own_is_as_it_renders(vocabulary, text):
    own = f"('{text}' if loop.first else '{{}}').replace('{{}}', content_of(m.content))"
    template = QWEN2_5.replace("content_of(m.content) +", f"{own} +")
    codec = made(tokenizer_of(vocabulary), template)
    question = [{"type": "text", "text": "Which?"}]
    for rules in ("Rules.", "rules", " \n Rules. \n"):
        blocks = [codec.system(rules), codec.user(question)]
        messages = [written("system", rules), {"role": "user", "content": question}]
        assert text.split("{}")[1] in codec.tokenizer.decode(flat(blocks))
        assert flat(blocks) == templated(codec, messages)
