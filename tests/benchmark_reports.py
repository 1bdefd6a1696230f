"""Reports of runs made by hand, and their pages as a browser would see them."""

from __future__ import annotations

import html.parser

from benchmark_runs import make_card

from benchmarks.report.__main__ import write_report

VOID = {"meta", "br", "img", "input", "link", "hr"}
INLINE = {"bdi", "strong"}  # whose ends are none of a word


class Page(html.parser.HTMLParser):
    """What a browser would see: tags, attributes and text; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.words += [] if tag in INLINE else [" "]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.words += [] if tag in INLINE else [" "]

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def report(tmp_path, *runs, **options):
    written = write_report(runs, tmp_path / "report", **options)
    texts = {name: path.read_text(encoding="utf-8") for name, path in written.items()}
    return texts, Page(texts["report.html"])


def haystack(policy="model", *, tasks=4, **changes):
    return make_card(policy, tasks=tasks, name="haystack", annotation={}, **changes)
