"""What the repository ships is what it says: articles, base model, and the numbers in the README."""

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stages.lib.metrics import parse_metrics
from stages.lib.sources.source import read_source

REPOSITORY = Path(__file__).parents[1]
ARTICLES = sorted((REPOSITORY / "data/raw/encyclopedia").iterdir())
WIKI_MINI = REPOSITORY / "models/base/wiki-mini"


def read_metrics(name: str) -> dict:
    return parse_metrics((REPOSITORY / "metrics" / f"{name}.json").read_text())


def test_the_encyclopedia_is_large_enough_and_clean():
    texts = [article.read_text(encoding="utf-8") for article in ARTICLES]
    assert len(texts) >= 120 and sum(len(text.encode()) for text in texts) >= 160_000
    for article, text in zip(ARTICLES, texts):
        title, *paragraphs = text.rstrip("\n").split("\n\n")
        assert re.fullmatch(r"# \S.*", title), article
        assert len(paragraphs) >= 3 and all(re.fullmatch(r"\S.*[.!?\"]", paragraph) for paragraph in paragraphs), (
            article
        )
    sentences = [s for text in texts for s in re.split(r"(?<=[.!?])\s+", text.partition("\n")[2]) if len(s.split()) > 4]
    assert len(sentences) > 1000 and len(set(sentences)) == len(sentences)


def test_wiki_mini_is_a_small_llama_with_its_own_tokenizer():
    config = AutoConfig.from_pretrained(WIKI_MINI)
    tokenizer = Tokenizer.from_file(str(WIKI_MINI / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(WIKI_MINI)
    assert config.model_type == "llama" and config.max_position_embeddings >= 512
    assert len({config.bos_token_id, config.eos_token_id, config.pad_token_id}) == 3
    assert tokenizer.get_vocab_size() == config.vocab_size
    assert 8e6 <= model.num_parameters() <= 16e6
    assert sum(file.stat().st_size for file in WIKI_MINI.iterdir()) <= 32e6
    assert AutoTokenizer.from_pretrained(WIKI_MINI)("Paris").input_ids[0] == config.bos_token_id


@pytest.mark.parametrize("folder", ["models/base/llama-3.2-1b", "models/base/smollm2-135m", "data/raw/wikitext-2"])
def test_what_is_fetched_is_pinned(folder):
    source = read_source(REPOSITORY / folder)
    assert source.revision or source.sha256


def test_the_readme_quotes_the_committed_metrics():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for arm in ("full", "base", "tuned"):
        found = read_metrics(f"evaluate/{arm}")["document"]
        cells = f"{found['perplexity']:.2f} | {found['bits_per_byte']:.3f} | {found['accuracy']:.1%}"
        assert re.search(rf"^\| `{arm}`[^|]*\| {cells.replace('%', ' %')} \|$", readme, re.M), (arm, cells)
    tuning, quantizing = (read_metrics("compare")[name] for name in ("base_to_tuned", "full_to_base"))
    ratio, low, high = (tuning[f"perplexity_ratio{bound}"] for bound in ("", "_low", "_high"))
    counts = read_metrics("prepare")
    for sentence in (
        f"Tuning multiplied perplexity by **{ratio:.3f}** (95 % confidence interval {low:.3f} to {high:.3f}",
        f"fell on {tuning['documents_better']} of {tuning['documents']} held-out documents",
        f"had multiplied it by {quantizing['perplexity_ratio']:.3f}",
        f"{counts['train']['documents']} short encyclopedia articles to train on, {counts['test']['documents']} held",
        f"encyclopedia ({len(ARTICLES)} articles",
    ):
        assert sentence in " ".join(readme.split()), sentence


def test_the_readme_quotes_the_committed_answers():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    answers = [
        {s["prompt"]: s["text"] for s in read_metrics(f"generate/{arm}")["samples"]} for arm in ("base", "tuned")
    ]
    rows = re.findall(r"^\| (.*) \| (.*) … \| (.*) … \|$", readme, re.M)
    assert rows
    for prompt, base, tuned in rows:
        for quoted, told in zip((base, tuned), answers):
            assert " ".join(told[prompt].split()).startswith(quoted)
