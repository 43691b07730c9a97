"""The preview: what is learned is marked, special tokens are visible, and no text can do anything to the page."""

import html
import re

import numpy as np
import pytest
from support.rating import HOSTILE
from tokenizers import Tokenizer

from stages.lib.data.documents import Document
from stages.lib.data.preview import render_preview
from stages.lib.data.tokenizer import load_tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    tokenizer = load_tokenizer("wiki-mini")
    tokenizer.encode_special_tokens = False  # as where a template writes them
    return tokenizer


def conversation(tokenizer: Tokenizer, prompt: str, answer: str) -> Document:
    start, end = "<|begin_of_text|>", "<|end_of_text|>"
    ids = tokenizer.encode(start + prompt, add_special_tokens=False).ids
    after = tokenizer.encode(answer + end, add_special_tokens=False).ids
    tokens = np.array([*ids, *after], np.int32)
    return Document("row:1", "", answer, tokens, np.arange(len(tokens)) >= len(ids))


def test_what_is_learned_is_marked_and_special_tokens_are_seen(tokenizer):
    page = render_preview([conversation(tokenizer, "What is an oak?\n", "A tree.")], tokenizer, {"left out": "none"})
    (shown,) = re.findall("<pre>(.*?)</pre>", page, re.S)
    code = "<code>&lt;|{}_of_text|&gt;</code>"
    assert shown == (f"{code.format('begin')}What is an oak?\n<mark>A tree.</mark><mark>{code.format('end')}</mark>")
    assert "<th>left out</th><td>none</td>" in page


def test_a_hostile_text_is_shown_and_does_nothing(tokenizer):
    page = render_preview([conversation(tokenizer, HOSTILE, "</mark></pre><script>alert(1)</script>")], tokenizer, {})
    (shown,) = re.findall("<pre>(.*?)</pre>", page, re.S)
    assert "<script" not in page and "\u202e" not in page and "<U+202E>" in html.unescape(shown)
    text = re.sub("</?(code|mark)>", "", shown)
    assert html.unescape(text).replace("<U+202E>", "\u202e") == (
        f"<|begin_of_text|>{HOSTILE}</mark></pre><script>alert(1)</script><|end_of_text|>"
    )


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_a_hostile_text_and_runs_none_of_it(width, browser, tokenizer, tmp_path):
    attack = "</mark></pre><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
    file = tmp_path / "preview.html"
    file.write_text(render_preview([conversation(tokenizer, HOSTILE, attack)], tokenizer, {}), encoding="utf-8")
    page, asked = browser.new_page(viewport={"width": width, "height": 800}), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert page.title() != "run" and attack in page.locator("pre").inner_text()
    unmarked = "rgba(0, 0, 0, 0)"
    assert page.locator("mark").first.evaluate("mark => getComputedStyle(mark).backgroundColor") != unmarked
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert asked == [file.as_uri()]  # nothing is fetched
    page.close()


def test_a_long_text_is_cut_and_says_so(tokenizer):
    page = render_preview([conversation(tokenizer, "What? ", "la " * 3000)], tokenizer, {})
    assert re.search(r"<code>… and [\d,]+ tokens more</code></pre>", page)
