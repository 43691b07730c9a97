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


def test_a_long_text_is_cut_and_says_so(tokenizer):
    page = render_preview([conversation(tokenizer, "What? ", "la " * 3000)], tokenizer, {})
    assert re.search(r"<code>… and [\d,]+ tokens more</code></pre>", page)
