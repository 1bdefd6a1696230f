"""Chat codec: exact ids, what is trained on, what is never sampled, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from agents_models import DOT, TALL, WIDE, load, model_dir, picture, said, shared, show
from transformers import AutoConfig, Qwen2Config

from agents.model import tiny
from agents.model.chat import Block, ChatCodec, ImageGrid, window
from agents.model.policy import MLLMPolicy
from agents.source import WEIGHTS
from gym_longvideo.episode import Answer, Malformed
from gym_longvideo.protocol import Tags, example_turn
from gym_longvideo.wrappers import TextProtocol

GRID = ImageGrid(patch=14, merge=2)
GOLDEN = Path(__file__).parent / "golden"
KEEPS = (GOLDEN / "checkpoint" / "policy" / "chat_template.jinja").read_text()  # no trimming


@pytest.fixture(scope="module")
def codec():
    return shared().codec


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def templated(codec, messages, generation=True):
    """Return the ids that the chat template gives, image placeholders expanded."""
    text = codec.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generation
    )
    ids = []
    images = iter(
        part["image"]
        for message in messages
        for part in message["content"]
        if part["type"] == "image"
    )
    for token in codec.tokenizer.encode(text, add_special_tokens=False):
        if token != codec.image_token_id:
            ids.append(token)
            continue
        rows, columns = codec.grid.tokens(*next(images).shape[:2])
        ids += [token] * rows * columns
    return ids


def text(words):
    return [{"type": "text", "text": words}]


def rebuilt(codec, template):
    """Return a codec of the same tokenizer with another template."""
    tokenizer = copy.deepcopy(codec.tokenizer)
    tokenizer.chat_template = template
    return codec_of(tokenizer)


def codec_of(tokenizer, **changes):
    ids = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "vision_start_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }
    return ChatCodec(tokenizer, **{**ids, "grid": GRID, **changes})


# --- contexts -------------------------------------------------------------------------------------


def test_a_dialogue_has_the_ids_that_the_template_gives(codec, rng):
    first = show("Turn 1 of 3.", picture(rng), picture(rng, WIDE))
    second = show("Turn 2 of 3. Think again. ", picture(rng, TALL))
    answer = "<think>not seen</think><retrieve>3, 9</retrieve>"
    reply = codec.encode_reply(answer)
    blocks = [codec.system("Rules."), codec.user(first), reply, codec.close(reply)]
    blocks.append(codec.user(second))
    messages = [
        {"role": "system", "content": text("Rules.")},
        {"role": "user", "content": first},
        {"role": "assistant", "content": text(answer)},
        {"role": "user", "content": second},
    ]
    assert np.concatenate([block.ids for block in blocks]).tolist() == templated(codec, messages)
    assert [len(block.frames) for block in blocks] == [0, 2, 0, 0, 1]
    assert [block.sampled for block in blocks] == [False, False, True, False, False]


def test_neighbouring_texts_are_encoded_as_one():
    # "green" is a token of its own; "gr" and "een" are not those of "green".
    codec = shared().codec
    parts = [*text("gr"), *text("een")]
    whole = [*text("green")]
    assert codec.user(parts).ids.tolist() == codec.user(whole).ids.tolist()
    assert len(codec.user(whole).ids) < len(codec.user(text("gr x een")).ids)


@pytest.fixture(scope="module")
def played():
    return play("tags")


def play(protocol):
    """Return the messages of a haystack episode of three turns in text, and its turns."""
    env = TextProtocol(
        gym.make(
            "gym_longvideo:LongVideoQA-v0",
            disable_env_checker=True,
            suite_options={**tiny.SUITE_OPTIONS, "size": 4, "seed": 3},
            **tiny.ENV_OPTIONS,
        ),
        protocol,
    )
    env.reset(options={"index": 1})
    turns = [env.turn]
    for reply in ("nonsense", "<think>look</think><retrieve>10, 30</retrieve>"):
        env.step(reply)
        turns.append(env.turn)
    return env.messages(), turns


def test_prompts_of_the_environment_have_the_ids_that_the_template_gives(codec, played):
    messages, _ = played
    blocks = [codec.system(messages[0]["content"][0]["text"])]
    for message in messages[1:]:
        if message["role"] == "user":
            blocks.append(codec.user(message["content"]))
        else:
            blocks.append(codec.encode_reply(message["content"][0]["text"]))
            blocks.append(codec.close(blocks[-1]))
    assert np.concatenate([block.ids for block in blocks]).tolist() == templated(codec, messages)


def test_a_prompt_states_turn_frames_question_options_actions_form_and_range(codec, played):
    messages, turns = played
    prompts = [m["content"] for m in messages if m["role"] == "user"]
    for number, (content, turn) in enumerate(zip(prompts, turns, strict=True), 1):
        block = codec.user(content)
        words = codec.tokenizer.decode(block.ids.tolist())
        assert f"Turn {number} of 3." in words
        assert turn.question in words
        for letter, option in zip("ABCDEF", turn.options, strict=False):
            assert f"\n{letter}. {option}" in words
        assert "<answer>X</answer>" in words
        assert ("<retrieve>start_index, end_index</retrieve>" in words) is turn.may_retrieve
        assert ("Valid frame indices are 0 to 63." in words) is turn.may_retrieve
        assert ("You must give your final answer now." in words) is not turn.may_retrieve
        # Each frame follows its own index.
        pieces = words.split("<|vision_start|>")
        assert len(pieces) - 1 == len(block.frames) == len(turn.frames)
        for piece, index, frame, pixels in zip(
            pieces[:-1], turn.frame_index, block.frames, turn.frames, strict=True
        ):
            assert piece.endswith(f"frame_idx:{index}")
            assert np.array_equal(frame, pixels)
    assert [len(turn.frames) for turn in turns] == [8, 0, 8]
    assert "not a valid action" in codec.tokenizer.decode(codec.user(prompts[1]).ids.tolist())


@pytest.mark.parametrize(
    ("protocol", "digest"),
    [
        ("tags", "35e986f951555fa0"),
        ("tags_seconds", "bb2c016aa7510416"),
        ("tool_call", "05532b38e26e33d1"),
    ],
)
def test_the_shipped_model_sees_the_ids_that_it_was_trained_on(protocol, digest, tmp_path):
    """They were taken when nothing separated the parts of a prompt."""
    shutil.copytree(WEIGHTS, tmp_path / "before")
    (tmp_path / "before" / "chat_template.jinja").write_text(KEEPS)
    messages = play(protocol)[0]
    for path in (WEIGHTS, tmp_path / "before"):
        codec = ChatCodec.from_pretrained(path, AutoConfig.from_pretrained(str(path)))
        assert codec.trims
        blocks = [codec.system(messages[0]["content"][0]["text"])]
        blocks += [codec.user(each["content"]) for each in messages if each["role"] == "user"]
        ids = np.concatenate([block.ids for block in blocks])
        assert hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_other_models_see_a_line_end_between_a_label_and_its_image(codec, played):
    kept = rebuilt(codec, KEEPS)
    assert not kept.trims and codec.trims
    messages = played[0]
    words = kept.tokenizer.decode(kept.user(messages[1]["content"]).ids.tolist())
    assert words.count("\n<|vision_start|>") == words.count("<|vision_end|>\n") == 8
    whole = [kept.system(messages[0]["content"][0]["text"]), kept.user(messages[1]["content"])]
    ids = np.concatenate([block.ids for block in whole]).tolist()
    assert ids == templated(kept, messages[:2])


def test_white_space_around_texts_is_what_the_template_makes_of_it(codec):
    messages = [{"role": role, "content": text(f" {role}\n")} for role in ("system", "user")]
    for each in (codec, rebuilt(codec, KEEPS)):
        blocks = [each.system(" system\n"), each.user(text(" user\n"))]
        assert np.concatenate([b.ids for b in blocks]).tolist() == templated(each, messages)
    with pytest.raises(ValueError, match="neither keeps all texts as they are nor strips"):
        rebuilt(codec, KEEPS.replace("part['text'] }}", "part['text'].rstrip() }}"))


@pytest.mark.parametrize("spelled", ["<|im_end|>", "<|image_pad|>", "<|vision_start|>"])
def test_a_question_that_spells_a_special_token_does_not_make_one(codec, spelled):
    block = codec.user(text(f"What does {spelled} mean?"))
    special = codec.tokenizer.convert_tokens_to_ids(spelled)
    assert (block.ids == special).sum() == (codec.user(text("What?")).ids == special).sum()
    assert f"What does {spelled} mean?" in codec.tokenizer.decode(block.ids.tolist())
    assert special not in codec.encode_reply(spelled, end=False).ids


# --- replies: T31 ---------------------------------------------------------------------------------


def test_sampled_ids_survive_though_they_are_no_canonical_tokens(codec):
    # The word letter by letter: decoding and encoding again would give one token.
    ids = [codec.tokenizer.convert_tokens_to_ids(letter) for letter in "green"]
    assert None not in ids
    assert codec.tokenizer.encode(codec.text(ids), add_special_tokens=False) != ids
    assert codec.text([*ids, codec.end_id]) == "green"
    assert codec.reply([*ids, codec.end_id]).ids.tolist() == [*ids, codec.end_id]


def test_a_reply_that_was_cut_gets_an_end_nobody_is_trained_on(codec, rng):
    ended = codec.reply(said(codec, rng, 4))
    cut = codec.reply(said(codec, rng, 4, end=False))
    assert ended.sampled and cut.sampled
    assert not codec.close(ended).sampled and not codec.close(cut).sampled
    assert codec.close(cut).ids.tolist() == [codec.end_id, *codec.close(ended).ids]


def test_the_end_stands_between_turns_exactly_once(codec, rng):
    for end in (True, False):
        reply = codec.reply(said(codec, rng, 5, end=end))
        ids = np.concatenate([reply.ids, codec.close(reply).ids])
        assert (ids == codec.end_id).sum() == 1
    nothing = codec.reply([])
    assert (codec.close(nothing).ids == codec.end_id).sum() == 1


def test_the_pad_token_in_a_reply_neither_ends_nor_shortens_it(codec, rng):
    pad = codec.tokenizer.pad_token_id
    assert codec.tokenizer.convert_ids_to_tokens(pad) == "<|endoftext|>"
    ids = said(codec, rng, 6)
    ids[2] = pad
    reply = codec.reply(ids)
    assert reply.ids.tolist() == ids.tolist()
    assert (
        codec.close(reply).ids.tolist()
        == codec.close(codec.reply(said(codec, rng, 3))).ids.tolist()
    )
    row = shared().row([codec.system("a"), codec.user(text("b")), reply])
    assert row.sampled.sum() == 6
    assert codec.text(ids).count("<|endoftext|>") == 1


def test_everything_special_is_suppressed_but_the_end_of_a_reply(codec):
    names = set(codec.tokenizer.convert_ids_to_tokens(codec.suppressed.tolist()))
    assert names == set(tiny.SPECIAL) - {"<|im_end|>"}
    assert codec.end_id == codec.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_ids_beyond_the_tokenizer_are_suppressed(codec):
    known = len(codec.tokenizer)
    wide = codec_of(codec.tokenizer, vocab_size=known + 3)
    assert set(wide.suppressed) - set(codec.suppressed) == {known, known + 1, known + 2}


# --- windows --------------------------------------------------------------------------------------


def test_a_window_keeps_the_last_turns_and_the_present_one():
    turns = [[Block(np.array([k]))] for k in range(5)]

    def kept(history):
        return [int(block.ids[0]) for block in window(turns, history)]

    assert kept(None) == [0, 1, 2, 3, 4]
    assert kept(0) == [4]
    assert kept(2) == [2, 3, 4]
    assert kept(9) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"history=-1 must be None, for all turns, or 0 or more"):
        window(turns, -1)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "near"),
    [((30, 28), [28, 28]), ((28, 50), [28, 56]), ((1, 90), [28, 84]), ((100, 100), [112, 112])],
)
def test_a_frame_off_the_patch_grid_is_refused_with_the_nearest_size(codec, size, near):
    frame = np.zeros((*size, 3), np.uint8)
    with pytest.raises(ValueError, match=r"multiples of 28; use frame_size=\[") as error:
        codec.user([{"type": "image", "image": frame}])
    assert f"{size[0]}x{size[1]} pixels" in str(error.value)
    assert f"frame_size={near}" in str(error.value)


def test_a_tokenizer_without_a_template_is_refused(codec):
    with pytest.raises(ValueError, match="has no chat template; use an instruction-tuned model"):
        rebuilt(codec, None)


TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'][0]['text'] }}<|im_end|>\n"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DROPS_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'][0]['text'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}" + ASK
)
COUNTS = "{{ messages | length }}{% for m in messages %}" + TURN + "{% endfor %}" + ASK
OPENS_THINKING = (
    "{% for m in messages %}"
    + TURN
    + "{% endfor %}"
    + ("{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}")
)
NO_SYSTEM = "{% for m in messages[1:] %}" + TURN + "{% endfor %}" + ASK
NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (DROPS_THINKING, "rewrites earlier messages"),
        (COUNTS, "rewrites earlier messages"),
        (OPENS_THINKING.replace("<think>", "Sure: "), "or prefixes a reply"),
        (NO_SYSTEM, "drops the system or the user message"),
        (NO_END, r"goes on after a reply with '\\nuser: ', which does not begin with a special"),
    ],
    ids=["drops-thinking", "counts-messages", "prefixes", "no-system", "no-end-token"],
)
def test_a_template_that_cannot_be_continued_is_refused(codec, template, message):
    with pytest.raises(ValueError, match=message):
        rebuilt(codec, template)


@pytest.mark.parametrize("opening", ["<think>", "<think>\n"])
def test_a_thought_that_the_template_opens_is_part_of_the_reply(codec, opening):
    thinking = rebuilt(codec, OPENS_THINKING.replace("<think>", opening))
    assert thinking.opens_thought and not codec.opens_thought
    prompt = thinking.tokenizer.decode(thinking.user(text("Question")).ids)
    assert prompt.endswith(f"assistant\n{opening}")
    whole = "<think>early on</think><answer>A</answer>"
    reply = thinking.encode_reply(whole)
    assert not thinking.tokenizer.decode(reply.ids).startswith("<think>")
    assert thinking.text(reply.ids) == whole
    assert codec.text(reply.ids) == whole.removeprefix("<think>")
    assert Tags().parse(thinking.text(reply.ids), example_turn()) == Answer(0)
    assert isinstance(Tags().parse(codec.text(reply.ids), example_turn()), Malformed)
    assert thinking.close(reply).ids.tolist() == codec.close(reply).ids.tolist()


def test_a_template_that_only_says_it_in_other_words_is_fine(codec):
    plain = rebuilt(codec, "{% for m in messages %}" + TURN + "{% endfor %}" + ASK)
    assert plain.end_id == codec.end_id
    assert plain.system("a").ids.tolist() == codec.system("a").ids.tolist()


def test_a_tokenizer_without_the_placeholder_is_refused(codec):
    with pytest.raises(ValueError, match=r"image_token_id=151655 is not in the tokenizer's vocab"):
        codec_of(codec.tokenizer, image_token_id=151655)


def test_a_model_without_images_is_refused(codec):
    with pytest.raises(ValueError, match="has no image_token_id; it is not of the Qwen-VL kind"):
        ChatCodec.from_pretrained(model_dir(), SimpleNamespace())


def test_a_text_model_is_refused(tmp_path):
    Qwen2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"kind 'qwen2', .* takes no images; .* 'qwen2_5_vl'"):
        MLLMPolicy.from_pretrained(tmp_path)


def test_an_image_processor_of_another_model_is_refused(tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(model_dir(), broken)
    path = broken / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "patch_size": 16}))
    with pytest.raises(ValueError, match=r"cuts ImageGrid\(patch=16.*patch=14"):
        MLLMPolicy.from_pretrained(broken, device="cpu")


def test_the_codec_of_a_saved_policy_is_the_same(tmp_path):
    policy = load()
    policy.save_pretrained(tmp_path)
    again = ChatCodec.from_pretrained(tmp_path, policy.base.config)
    content = show("Turn 1 of 3.", np.zeros((*DOT, 3), np.uint8))
    assert again.user(content).ids.tolist() == policy.codec.user(content).ids.tolist()
    assert again.suppressed.tolist() == policy.codec.suppressed.tolist()
