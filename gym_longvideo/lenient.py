"""A forgiving reading of replies: what a person would take a reply to say, and never a guess.

Thinking is cut off first. Then the most explicit statements decide, those of a kind together: the
answer tag; what is called the answer (in words, in a label, in a box, in JSON); what stands in a
form of its own (bold, in brackets, at the start of a line, the text of an option). Statements that
contradict each other, letters that no option has, and what is only mentioned give no answer.

Everything is linear in the length of the reply.
"""

from __future__ import annotations

import ast
import json
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

_MOST = 20_000  # characters that are read: the last ones
_LONGEST = 600  # characters of a statement
_BRACKETS = str.maketrans("【】「」。“”’‘*", '[]"".""\'\' ')
_THOUGHT = r"(?:think|thinking|thought|thoughts|reasoning|reflection|seed:think)"
_OPENED = re.compile(rf"<{_THOUGHT}>|◁think▷|\[THINK\]", re.I)
_CLOSED = re.compile(rf"</{_THOUGHT}>|◁/think▷|\[/THINK\]", re.I)
_ACTION = re.compile(r"<(?:retrieve|tool_call)>", re.I)
_TAG = re.compile(r"<answer>(.{0,4000}?)(?:</answer>|<answer>|\Z)", re.I | re.S)
_BOX = re.compile(r"\\boxed\s?\{((?:[^{}]|\{[^{}]{0,200}\}){0,400})\}")
_GLM_BOX = re.compile(r"<\|begin_of_box\|>(.{0,400}?)<\|end_of_box\|>", re.S)
_LATEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit|rm|bf)\b\s?")
_MARKUP = re.compile(r"</?(?:b|i|u|em|strong|code|p|span|option|choice)>", re.I)
_KEYS = ("answer", "final_answer", "finalanswer", "correct_answer", "choice", "option",
         "selected_option", "prediction", "letter")  # fmt: skip

_NOUN = r"(?:answers?|options?|choices?|ans)"
_BE = r"(?:\s(?:is|was|would\sbe|should\sbe|must\sbe|will\sbe|has\sto\sbe|seems\sto\sbe)|'s)"
# What calls something the answer; what follows is read by ``_said``.
_CALLS = re.compile(
    rf"(?:\b{_NOUN}\b[\"']?(?:\s(?:to|for|of)\s[^.\n]{{1,60}}?)?(?:{_BE}\s?:?|\s?[:=\-–—]|\s?\n)"
    r"|\b(?:i(?:'d|\swould|\swill|'ll)?\s(?:choose|select|pick|say|answer|go\swith|go\sfor))"
    r"|\b(?:choosing|selecting|picking)"
    r"|\b(?:it|this|that)(?:'s|\s(?:is|must\sbe|has\sto\sbe|should\sbe|would\sbe))"
    r"|\b(?:therefore|thus|hence|so)\s?,?(?=\s(?:option\s|choice\s)?[\(\[\"']?[A-Z][\)\]\"']?\s?(?:\.|\Z))"
    r"|\bnot\s(?:option\s)?\(?[A-Z]\)?,?\sbut(?:\srather)?"
    r"|答案(?:应该|应当)?(?:是|为|:|选)|(?:应该|所以|因此|我)?选择?(?:项)?(?:是|为|:)?)\s{0,3}"
    r"(?:(?:clearly|definitely|probably|most\slikely|likely|therefore|simply|indeed)\s)?",
    re.I,
)
# "Option B is correct", "B is the right answer"
_CORRECT = re.compile(
    r"(?<![\w'])[\(\[]?([A-Za-z])[\)\]]?(?:\s?[:.]\s?[^.\n]{0,60})?\s(?:is|was|must\sbe|seems)\s"
    rf"(?:clearly\s|definitely\s|therefore\s|the\s|a\s)*(?:correct|right|best|true)(?:\s{_NOUN})?\b",
)
_LABEL = r"(?:(?:the\s)?(?:correct\s|right\s)?(?:option|choice|answer|letter)\s?[:#]?\s?)"
_LEAD = rf"(?:{_LABEL})?[\s\"'`$\[\(\{{<]{{0,4}}"
_LETTER = re.compile(rf"{_LEAD}([A-Za-z])(?![A-Za-z0-9'])", re.I)
# Words after "A" or a small letter that tell it from an article.
_AFTER_LETTER = re.compile(
    r"[\"'`$\]\)\}>]{0,4}\s{0,3}(?:\Z|[.,;:!\n)\]\-–—]|(?:because|since|as|for|due|which|where|and"
    r"|but|given|based|with|in|from|or|is|not|rather|instead)\b)",
    re.I,
)
_AND = re.compile(
    r"[\"'`$\]\)\}>]{0,4}\s?(?:,\s?)?(?:or|and|/|&|,)\s?(?:perhaps\s|maybe\s|possibly\s|option\s)*"
    r"[\"'`$\[\(]{0,3}([A-Z])(?![A-Za-z0-9'])(?!\s(?:is|was|shows|are)\b)"
)
_DENIED = re.compile(
    r"\b(?:not|n't|never|neither|nor|cannot|without|except|rule\sout|exclude|instead\sof"
    r"|rather\sthan|doubt)\b[\w\s',]{0,40}\Z|n't\b[\w\s',]{0,40}\Z",
    re.I,
)
_OPEN = re.compile(r"\b(?:if|whether|unless|could|might|may|maybe|perhaps|possibly|either)\b", re.I)
_NOT = re.compile(r"\s{0,2}(?:not|never|neither|none|no|unclear|unknown|between|either)\b", re.I)
_DENIES = re.compile(
    r"\b(?:not|n't|cannot)\s(?:be\s|the\sanswer\s(?:is\s)?|option\s|choose\s|pick\s|select\s)*"
    r"[\(\[\"']{0,2}([A-Z])\b|n't\s(?:be\s)?[\(\[\"']{0,2}([A-Z])\b|(?<![\w'])[\(\[]?([A-Z])[\)\]]?"
    r"\s(?:is|was)\s(?:not|wrong|incorrect|false|n't)\b|(?<![\w'])[\(\[]?([A-Z])[\)\]]?\s(?:isn't|wasn't)",
)
_BOLD = re.compile(r"\*\*\s?([^*\n]{1,300}?)\s?\*\*|__([^_\n]{1,300}?)__")
_BRACKETED = re.compile(r"(?<![\w\\])[\(\[]([A-Za-z])[\)\]]")
_LAST = re.compile(r":\s{0,3}([A-Z])\.?\s*\Z")  # "My pick: C"
_LAST_OF_ALL = re.compile(r",\s{0,3}([A-Z])\.?\s*\Z")  # "It is the first one, A."
_LONE = re.compile(r"(?<![\w'])[A-Z](?![\w'])")
_LINE = re.compile(
    rf"(?m)^[ >#\-•]{{0,4}}(?i:{_LABEL})?[\"'`$\(\[]{{0,2}}([A-Za-z])[\"'`$\)\]]{{0,2}}"
    r"(?=\s{0,3}(?:$|[.:)\]、](?:\s|$)|[\-–—]\s|,\s(?:because|since|as)\b))"
)


def cut_thinking(reply: str) -> str:
    """Return a reply without its thinking: closed, unclosed, or opened in the prompt.

    >>> cut_thinking("<think>B?</think> A"), cut_thinking("B?</think>A"), cut_thinking("<think>B")
    (' A', 'A', '')
    """
    closings = list(_CLOSED.finditer(reply))
    rest = reply[closings[-1].end() :] if closings else reply
    opening = _OPENED.search(rest)
    return rest[: opening.start()] if opening else rest


def read_choice(reply: str, options: Sequence[str]) -> int | None:
    """Return the option that a reply states, None if it states none or several.

    >>> animals = ("a cat", "a dog", "a horse")
    >>> read_choice("<think>A or C?</think>The answer is a dog, not option A.", animals)
    1
    >>> read_choice("Option A shows a cat, option B a dog.", animals) is None
    True
    """
    text = unicodedata.normalize("NFKC", cut_thinking(reply)[-_MOST:]).strip()
    if _TAG.search(text) is None and _ACTION.search(text):
        return None
    reader = _Reader(options)
    for found in (reader.tagged(text), reader.stated(text), reader.formed(text)):
        if found:
            return next(iter(found)) if len(found) == 1 and None not in found else None
    return None


class _Reader:
    """Reads statements for one list of options; None stands for what cannot be an answer."""

    def __init__(self, options: Sequence[str]) -> None:
        self.letters = string.ascii_uppercase[: len(options)]
        texts = [_plain(option) for option in options]
        unique = {text: i for i, text in enumerate(texts) if text and texts.count(text) == 1}
        # The longest first: one option may begin with another.
        self.texts = sorted(unique.items(), key=lambda item: -len(item[0]))

    def tagged(self, text: str) -> set[int | None]:
        """Return what answer tags say; one that says nothing that can be read counts as None."""
        found: set[int | None] = set()
        for match in _TAG.finditer(text):
            inside = match.group(1)
            found |= self.stated(inside) or self._alone(inside) or self.formed(inside) or {None}
        return found

    def stated(self, text: str) -> set[int | None]:
        """Return what is called the answer."""
        found: set[int | None] = set()
        for box in (*_BOX.finditer(text), *_GLM_BOX.finditer(text)):
            found |= self._alone(box.group(1)) or {None}
        found |= {
            choice for value in _json_answers(text) for choice in self._alone(value) or {None}
        }
        for sentence in _sentences(text.translate(_BRACKETS)):
            if sentence.endswith("?"):
                continue
            found |= self._called(_flat(sentence))
        return found

    def formed(self, text: str) -> set[int | None]:
        """Return what stands in a form of its own and is not denied."""
        if whole := self._text(text, whole=True):
            return whole
        if beside := re.match(r"\s*([A-Za-z])\s+(\S.{0,300})\Z", text):  # "B a dog"
            if told := self._text(beside.group(2), whole=True):
                return {self._letter(beside.group(1)), *told}
        found: set[int | None] = set()
        denied = {
            self._letter(next(filter(None, m.groups()))) for m in _DENIES.finditer(_flat(text))
        }
        for match in _BOLD.finditer(text):
            found |= self._alone(match.group(1) or match.group(2))
        bare = _flat(text.translate(_BRACKETS))
        for match in _LINE.finditer(bare):
            if _an_article(match.group(1), bare[match.end() :]):
                continue
            line = bare[match.start() : (bare.find("\n", match.start()) + 1 or len(bare) + 1) - 1]
            found |= self._alone(line) or {self._letter(match.group(1))}
        for pattern in (_BRACKETED, _LAST):
            found |= {self._letter(match.group(1)) for match in pattern.finditer(bare)}
        if (last := _LAST_OF_ALL.search(bare)) and len(set(_LONE.findall(bare))) == 1:
            found.add(self._letter(last.group(1)))
        for match in _AND.finditer(bare):  # "B/C", "A or B" of what is there
            if found & {self._letter(bare[match.start() - 1 : match.start()])}:
                found.add(self._letter(match.group(1)))
        return found - denied

    def _called(self, sentence: str) -> set[int | None]:
        """Return what a sentence calls the answer."""
        found: set[int | None] = set()
        for match in _CALLS.finditer(sentence):
            before, after = sentence[: match.start()], sentence[match.end() :][:_LONGEST]
            if _OPEN.search(before[-80:]) or _denied(before):
                continue
            if _NOT.match(after) and not self._text(after):
                continue
            loose = match.group(0).strip().lower().startswith(("it", "this", "that"))
            found |= self._said(after, letters_only=loose)
        for match in _CORRECT.finditer(sentence):
            before = sentence[: match.start()]
            if not (_OPEN.search(before[-80:]) or _denied(before)):
                found.add(self._letter(match.group(1)))
        return found

    def _said(self, after: str, *, letters_only: bool = False) -> set[int | None]:
        """Return what the words after "the answer is" name: an option's text, or its letter."""
        letter = _LETTER.match(after)
        named = set() if letters_only else self._text(after)
        if letter is None or (letters_only and not letter.group(1).isupper()):
            return named
        rest = after[letter.end() :]
        if _an_article(letter.group(1), rest):
            return named
        if named and len(_plain(after)) > 1:
            # The text of an option begins with what looks like a letter: "A dog".
            return named
        found: set[int | None] = {self._letter(letter.group(1)), *named}
        if more := _AND.match(rest):
            found.add(self._letter(more.group(1)))
        beside = re.match(r"[\"'`$\]\)\}>]{0,4}\s?[.,:;)\-–—]\s{0,2}", rest)
        if beside and (told := self._text(rest[beside.end() :])):
            found |= told
        return found

    def _alone(self, text: str) -> set[int | None]:
        """Return what a few words that stand by themselves name."""
        bare = _flat(_LATEX.sub("", text).translate(_BRACKETS)).strip(" \n\t{}$`\"'")
        return self._text(bare, whole=True) or self._said(bare)

    def _text(self, text: str, *, whole: bool = False) -> set[int | None]:
        """Return the option whose text this is, or with which it begins."""
        said = _plain(text)
        for option, index in self.texts:
            if said == option or (not whole and said.startswith(option + " ")):
                if said != option and not _ends_there(text, option):
                    continue
                return {index}
        return set()

    def _letter(self, letter: str) -> int | None:
        place = self.letters.find(letter.upper()) if letter else -1
        return None if place < 0 else place


def _an_article(letter: str, rest: str) -> bool:
    """Return whether what looks like a letter is a word ("a", "I"), or a small one in prose."""
    return (letter.islower() or letter in "AI") and not _AFTER_LETTER.match(rest)


def _denied(before: str) -> bool:
    """Return whether the clause that leads up to a statement denies it."""
    return bool(_DENIED.search(re.split(r"[,;:]|\b(?:but|so)\b", before[-80:])[-1]))


def _ends_there(text: str, option: str) -> bool:
    """Return whether an option that begins a text ends with its clause: "a dog, not ..."."""
    words = option.count(" ") + 1
    parts = re.split(r"\s+", text.strip(), maxsplit=words)
    last = parts[words - 1] if len(parts) >= words else ""
    rest = parts[words] if len(parts) > words else ""
    return bool(re.search(r"[.,;:!)\"'\]]\Z", last)) or bool(
        re.match(r"(?:because|since|as|and|but|not|which|that|in|at|on|is|\(|-|–)", rest)
    )


def _json_answers(text: str) -> Iterator[str]:
    """Yield what JSON objects call the answer; a list of one counts as that one."""
    for match in re.finditer(r"\{[^{}]{0,4000}\}", text):
        value = _literal(match.group(0))
        for key, said in value.items() if isinstance(value, dict) else ():
            if key.lower().replace(" ", "_") not in _KEYS:
                continue
            said = said[0] if isinstance(said, list) and len(said) == 1 else said
            yield said if isinstance(said, str) else ""


def _literal(text: str) -> Any:
    """Return what JSON, or Python's own way of writing it, says."""
    for read in (json.loads, ast.literal_eval) if "'" in text else (json.loads,):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _sentences(text: str) -> Iterator[str]:
    """Yield sentences, with the mark that ends them; a label and the line below it are one."""
    joined = re.sub(r"(?i)(\banswer\b)\s?:?\s{0,3}\n+\s{0,3}", r"\1 : ", text)
    for line in joined.split("\n"):
        yield from (part.strip() for part in re.split(r"(?<=[.!?;])\s+", line) if part.strip())


def _flat(text: str) -> str:
    return re.sub(r"[ \t\r\f\v]+", " ", _MARKUP.sub("", text))


def _plain(text: str) -> str:
    """Return words in small letters, without marks around or between them."""
    return " ".join(re.findall(r"[^\W_]+(?:[.'’\-][^\W_]+)*", text.lower()))
