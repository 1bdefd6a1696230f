"""Prompts of one's own: what a template may say, where frames stand, and what it leaves behind."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import re
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from agents_training import small
from benchmark_players import factory, jobs_of, play, suite_of
from chat_server import RIGHT, serve
from gymnasium.envs.registration import EnvSpec
from worlds import GreySuite

from agents.checkpoint import config_of
from agents.parallel import Processes
from agents.source import MadeFor, PolicySource
from agents.trainer import Trainer
from benchmarks.card import CardMismatch, require_same
from benchmarks.evaluate import evaluate
from benchmarks.evaluate_config import EvaluateConfig
from benchmarks.players.endpoint import EndpointPlayer
from benchmarks.runs import read_run
from gym_longvideo.env import LongVideoQAEnv
from gym_longvideo.prompt import Prompt
from gym_longvideo.wrappers import TextProtocol

ROOT = Path(__file__).parents[1]
SMALL = {"frame_budget": 8, "pool_size": 20, "frame_size": 8}
FRAMES = "{% for frame in frames %}{{ frame.image }}{% endfor %}"
MINE = (
    "{% macro system() %}Watch.{% endmacro %}{{ turn }}/{{ max_turns }} {{ question }}"
    "{% for o in options %} {{ o.letter }}={{ o.text }}{% endfor %}"
    "{% for frame in frames %}[{{ frame.index }}@{{ frame.time | clock }}{{ frame.image }}]"
    "{% endfor %} of {{ last_index }} in {{ duration | round | int }} s, saw {{ seen | join(' ') }}"
    "{% if must_answer %}!{% endif %}{% if malformed %} ({{ malformed }}){% endif %}"
)
LOOK = "<think></think><retrieve>8, 9</retrieve>"


def text_env(prompt, protocol="tags", **settings):
    env = LongVideoQAEnv(GreySuite(), order="sequential", **{**SMALL, **settings})
    return TextProtocol(env, protocol, prompt=prompt)


def test_a_template_words_every_turn_and_places_its_frames():
    env = text_env(MINE)
    observation, _ = env.reset(seed=0)
    asked = "Which grey is it in video 0? A=dark B=middle"
    assert env.messages()[0]["content"][0]["text"] == "Watch."
    assert observation["text"] == (
        f"1/3 {asked}[2@00:12<image>][7@00:37<image>][12@01:02<image>][17@01:27<image>]"
        " of 19 in 100 s, saw 2 7 12 17"
    )
    content = env.messages()[1]["content"]
    assert [part["type"] for part in content] == ["text", "image"] * 4 + ["text"]
    assert content[1]["image"].shape == (8, 8, 3) and content[1]["image"][0, 0, 0] == 12
    assert env.step("no")[0]["text"].endswith("17 (no <think>...</think> at the start)")
    assert env.step(LOOK)[0]["text"] == (
        f"3/3 {asked}[8@00:42<image>][9@00:47<image>] of 19 in 100 s, saw 2 7 8 9 12 17!"
    )
    assert env.step("<think></think><answer>A</answer>")[4]["is_success"]


def test_the_template_of_the_documentation_asks_in_the_words_of_tags():
    written = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")
    (template,) = re.findall(r"```jinja\n(.*?)```", written, re.DOTALL)
    for settings in ({}, {"max_turns": 1}, {"overview_frames": 0}):
        envs = [text_env(prompt, **settings) for prompt in (None, template)]
        for index in range(3):
            texts = [env.reset(options={"index": index})[0]["text"] for env in envs]
            assert texts[0] == texts[1] and "Question: " in texts[0]
            assert envs[0].messages()[0] == envs[1].messages()[0]
            for reply in ("?", LOOK) if settings.get("max_turns") != 1 else ():
                texts = [env.step(reply)[0]["text"] for env in envs]
                assert texts[0] == texts[1]


def test_replies_are_read_and_rules_told_by_the_protocol():
    env = text_env("{{ question }}" + FRAMES, "tags_seconds", retrieval="timeline")
    env.reset(seed=0)
    assert "long video" in env.messages()[0]["content"][0]["text"]
    assert env.step("<think></think><retrieve>40, 49.9</retrieve>")[4]["interval"] == (8, 9)


def test_what_a_question_holds_is_never_a_template_nor_a_frame():
    mark = Prompt(MINE).render.__globals__["_MARK"]
    question = "{{ turn }} <image> {% if %}"
    env = TextProtocol(LongVideoQAEnv(GreySuite(question=question), **SMALL), prompt=MINE)
    observation, _ = env.reset(seed=0)
    assert "{{ turn }} (image) {% if %}" in observation["text"]
    assert observation["text"].count("<image>") == 4 and mark not in observation["text"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ question }}\n{% if frames %}", r"line 2: Unexpected end of template"),
        ("{{ question }}\n{{ qestion }}", r"line 2: 'qestion' is no variable.*mean 'question'"),
        ("{{ question }}\n{{ question | shout }}", r"line 2: No filter named 'shout'"),
        (
            f"{MINE}\n{{% if must_answer %}}\n{{{{ options[9].letter }}}}{{% endif %}}",
            r"line 3, asked for a first turn that is the last: .*no element 9",
        ),
        (
            FRAMES.replace("frame.image", "frame.image ~ frame.second"),
            "line 1, asked for the first turn: .* has no attribute 'second'",
        ),
        ("{{ question }}", r"of 2 frames it places \[\]; place each once"),
        ("{{ question }}" + 2 * FRAMES, r"of 2 frames it places \[0, 1, 0, 1\]"),
        ("{{ question }}" + FRAMES.replace("in frames", "in frames | reverse"), r"places \[1, 0\]"),
        (
            f"{FRAMES}{{% if not malformed %}}{{{{ question }}}}{{% endif %}}",
            "asked for a turn after a malformed reply: it says nothing",
        ),
        (f"{{% include 'x' %}}{FRAMES}", "line 1, asked for the first turn: no loader"),
        (f"{{{{ question.__class__.__mro__ }}}}{FRAMES}", "line 1.*unsafe"),
        (f"{{{{ options | random }}}}{FRAMES}", "No filter named 'random'"),
        (f"{{{{ lipsum() }}}}{FRAMES}", "'lipsum' is no variable"),
        (
            f"{{% macro system() %}} {{% endmacro %}}{{{{ turn }}}}{FRAMES}",
            "the macro system must give words",
        ),
        ("Which one?", "is no template: it says the same in every turn"),
    ],
)  # fmt: skip
def test_a_slip_in_a_template_is_refused_when_it_is_loaded(template, says, tmp_path):
    path = tmp_path / "mine.j2"
    path.write_text(template, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*{says}"):
        text_env(path)


def test_what_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin.j2").write_bytes(b"{{ question }} caf\xe9")
    for path in (tmp_path / "latin.j2", tmp_path / "none.j2", "no such file"):
        with pytest.raises(ValueError, match=rf"prompt='{re.escape(str(path))}' cannot be read"):
            Prompt(path)
    with pytest.raises(ValueError, match="prompt=3 must be the text of a template"):
        Prompt(3)  # type: ignore[arg-type]


def test_a_template_that_fails_in_an_episode_says_where():
    env = text_env("{{ options[2].text }}" + FRAMES)  # the first task has two options
    with pytest.raises(ValueError, match=r"the prompt, line 1: .*no element 2"):
        env.reset(options={"index": 0})


def test_without_jinja2_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'jinja2: pip install "gym-longvideo\[agents\]"'):
        Prompt(MINE)
    text_env(None).reset(seed=0)  # what needs it is a prompt alone


def test_a_prompt_survives_specs_copies_and_pickles(tmp_path):
    (tmp_path / "mine.j2").write_text(MINE + "\n", encoding="utf-8")
    env = TextProtocol(
        gym.make("gym_longvideo:LongVideoQA-v0", **SMALL), prompt=tmp_path / "mine.j2"
    )
    before = env.reset(seed=0)[0]["text"]
    spec = env.spec
    assert spec is not None
    (tmp_path / "mine.j2").unlink()
    assert EnvSpec.from_json(spec.to_json()).make().reset(seed=0)[0]["text"] == before
    copies = pickle.loads(pickle.dumps(env)), copy.deepcopy(env)
    said = env.step("no")[0]["text"]
    for again in copies:
        assert again.step("no")[0]["text"] == said != before
        assert again.reset(seed=0)[0]["text"] == before


def test_an_endpoint_is_asked_in_the_words_of_the_template():
    suite = suite_of(1)
    with serve(lambda h, body, n: h.reply(body, RIGHT)) as server:
        player = EndpointPlayer(server.url, factory(suite), model="m", prompt=MINE)
        play(player, jobs_of(suite))
    system, user = server.requests[0]["messages"]
    assert system["content"] == "Watch."
    assert user["content"][0]["text"].startswith("1/3 ")
    assert [part["type"] for part in user["content"]] == ["text", "image_url"] * 4 + ["text"]


def test_a_card_holds_the_digest_and_other_prompts_are_not_merged(tmp_path):
    path = tmp_path / "mine.j2"
    path.write_text(MINE + "\n", encoding="utf-8")
    arguments = {"episodes": 1, "policy_options": {"device": "cpu", "max_new_tokens": 4}}
    cards = []
    for name, prompt in (("mine", path), ("ours", ""), ("default", "default")):
        summary = evaluate("tiny", "haystack", out=tmp_path / name, prompt=prompt, **arguments)
        cards.append(read_run(summary["directory"]).card)
    assert cards[0].protocol["prompt_digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert cards[1].hash == cards[2].hash and len(cards[1].protocol["prompt_digest"]) == 12
    with pytest.raises(CardMismatch, match="prompt_digest"):
        require_same(cards[:2])
    config = json.loads((tmp_path / "mine" / "config.json").read_text(encoding="utf-8"))
    assert config["prompt"] == MINE + "\n"  # the run can be repeated when the file is gone
    assert EvaluateConfig("haystack", "tiny", prompt=str(path)).arguments()["prompt"] == str(path)


def test_who_reads_no_prompt_is_given_none(tmp_path):
    with pytest.raises(ValueError, match="policy='random' reads no prompt"):
        evaluate("random", "haystack", prompt=MINE, out=tmp_path)
    with pytest.raises(ValueError, match="a function makes its own player"):
        evaluate(lambda make_env: None, "haystack", prompt=MINE)  # type: ignore[arg-type]


def test_a_trained_policy_carries_its_prompt(tmp_path, caplog):
    path = tmp_path / "mine.j2"
    path.write_text(MINE, encoding="utf-8")
    config = small(tmp_path / "run", prompt=str(path), iterations=1, eval_every=0)
    trainer = Trainer(config, processes=Processes("cpu"))
    trainer.run()
    path.unlink()
    source = PolicySource.of(str(tmp_path / "run"))
    assert source.made_for is not None and source.made_for.prompt == MINE
    assert config_of(tmp_path / "run").prompt == MINE
    place = Path(source.path) / "policy" / "longvideo.json"
    written = json.loads(place.read_text(encoding="utf-8"))
    assert written["prompt_digest"] == hashlib.sha256(MINE.encode()).hexdigest()
    options = {"episodes": 1, "policy_options": {"device": "cpu"}}
    for prompt, digest, warned in (("", 64, False), ("default", 12, True)):
        caplog.clear()
        out = tmp_path / f"played-{digest}"
        summary = evaluate(str(tmp_path / "run"), "haystack", out=out, prompt=prompt, **options)
        asked = read_run(summary["directory"]).card.protocol["prompt_digest"]
        assert len(asked) == digest and ("prompt='default' (trained with" in caplog.text) is warned
    written["prompt"] += " Hurry."
    place.write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(ValueError, match="its prompt was edited"):
        MadeFor.read(place.parent)
