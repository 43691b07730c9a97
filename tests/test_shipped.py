"""What the repository ships is what it says: articles, base model, and the numbers in the README."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stages.lib.lines import read_lines
from stages.lib.metrics import parse_metrics
from stages.lib.sources.source import read_source

REPOSITORY = Path(__file__).parents[1]
ARTICLES = sorted((REPOSITORY / "data/raw/encyclopedia").glob("[!R]*.md"))  # but the README
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
GRADED = REPOSITORY / "data/graded.jsonl"
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


def tables(page: str) -> list[list[list[str]]]:
    """Read the cells of a page's tables, without their headings."""
    found = re.findall(r"(?:^\|.*\|\n)+", page, re.M)
    return [[line.strip("| ").split(" | ") for line in table.splitlines()[2:]] for table in found]


def told(cells: list[str], measured: list[float]) -> int:
    """Count the numbers in cells if all are measured ones, as precisely as they are written, in the same order."""
    left = iter(measured)
    numbers = re.findall(r"[-+]?\d+(?:\.\d+)?", " ".join(cells))
    places = [len(number.partition(".")[2]) for number in numbers]
    found = [any(abs(float(n) - value) <= 0.5 * 0.1**p + 1e-9 for value in left) for n, p in zip(numbers, places)]
    return len(numbers) if all(found) else 0


def measured_scores() -> dict[str, list[float]]:
    """Return what can stand in a row of the README's results: before, after, and the change with its interval."""
    bounds, answers, compared = ("", "_low", "_high"), read_metrics("answers"), read_metrics("compare")["base_to_tuned"]
    assert answers["answers"], "metrics/ are not of conversations: run `make repro` with the shipped params.yaml"
    scores = {
        name: [100 * score[arm] for arm in ("base", "tuned")] + [100 * score[f"difference{bound}"] for bound in bounds]
        for name, score in answers.items()
        if isinstance(score, dict) and "base" in score
    }
    documents = {arm: read_metrics(f"evaluate/{arm}")["document"] for arm in ("full", "base", "tuned")}
    scores["perplexity"] = [found["perplexity"] for found in documents.values()]
    scores["perplexity"] += [compared[f"perplexity_ratio{bound}"] for bound in bounds]
    scores["accuracy"] = [100 * found["accuracy"] for found in documents.values()]
    return scores


def test_the_first_table_of_the_readme_has_the_committed_scores():
    """Each row is one, whatever its columns are and however it is rounded; what counts is there with its interval."""
    rows, scores = tables(README)[0], measured_scores()
    found = [{name: told(row[1:], measured) for name, measured in scores.items()} for row in rows]
    assert all(max(numbers.values()) >= 2 for numbers in found), list(zip(rows, found))
    for name in (read_metrics("answers")["metric"], "json_valid", "perplexity"):
        assert any(numbers[name] >= 4 for numbers in found), name


def test_the_readme_begins_with_the_committed_counts():
    counts, answers = read_metrics("prepare"), read_metrics("answers")
    right = round(answers["answers"] * answers[answers["metric"]]["tuned"])
    numbers = re.findall(r"\d+(?:\.\d+)?", README.partition("\n## ")[0])
    assert {str(number) for number in (counts["train"]["documents"], right, answers["answers"])} <= set(numbers)
    assert f"encyclopedia ({len(ARTICLES)} articles" in " ".join(README.split())


def test_the_second_table_of_the_readme_has_committed_answers():
    """Parts of a message, and of what both models and the dataset say to it, or `the same`."""
    said: dict[str, str] = {}
    for arm in ("base", "tuned"):
        for sample in read_metrics(f"generate/{arm}")["samples"]:
            said[sample["prompt"]] = f"{said.get(sample['prompt'], '')}\n{' '.join(sample['text'].split())}"
    for row in read_lines(GRADED) if GRADED.exists() else []:
        texts = (row[of] for of in ("base", "tuned", "reference"))
        said[" ".join(row["messages"][-1]["content"].split())] = "\n".join(" ".join(text.split()) for text in texts)
    rows = tables(README)[1]
    found = [[texts for asked, texts in said.items() if all(map(asked.__contains__, parts(row[0])))] for row in rows]
    if not GRADED.exists() and not all(found):
        pytest.skip("held-out answers are in DVC's cache alone: `dvc repro` or `dvc pull`")
    assert len(rows) >= 3
    for row, texts in zip(rows, found):
        assert len(texts) == 1, row[0]
        for answer in row[1:]:
            assert answer == "the same" or all(map(texts[0].__contains__, parts(answer))), answer


def parts(cell: str) -> list[str]:
    """Split what a cell quotes where it leaves something out."""
    return [part.strip(" `") for part in cell.split("…")]


def test_the_committed_verdicts_are_what_a_few_lines_make_of_the_committed_tables():
    """The perplexities, the interval of their ratio by drawing signs, McNemar's test, and Tango's interval (1998)."""
    documents, compared = pd.read_csv(REPOSITORY / "metrics/documents.csv"), read_metrics("compare")["base_to_tuned"]
    tokens = documents["tokens"].to_numpy()
    for arm in ("full", "base", "tuned"):
        perplexity = math.exp((documents[arm] * tokens).sum() / tokens.sum())
        assert perplexity == pytest.approx(read_metrics(f"evaluate/{arm}")["document"]["perplexity"], rel=1e-9)
    gain = ((documents["tuned"] - documents["base"]) * tokens).to_numpy()
    assert math.exp(gain.sum() / tokens.sum()) == pytest.approx(compared["perplexity_ratio"], rel=1e-9)
    signs = np.random.default_rng(7).choice([-1, 1], (20_000, len(tokens)))

    def p_value(ratio: float) -> float:
        rest = gain - math.log(ratio) * tokens
        return float((np.abs(signs @ rest) >= abs(rest.sum())).mean())

    low, high = compared["perplexity_ratio_low"], compared["perplexity_ratio_high"]
    width = math.log(high / low)
    assert [p_value(bound) for bound in (low, high)] == pytest.approx([0.05, 0.05], abs=0.01)
    assert p_value(low * math.exp(-width / 8)) < 0.04 and p_value(low * math.exp(width / 8)) > 0.06

    answers, metrics = pd.read_csv(REPOSITORY / "metrics/answers.csv"), read_metrics("answers")
    found, n = metrics[metrics["metric"]], len(answers)
    gained, lost = (answers["tuned"] > answers["base"]).sum(), (answers["tuned"] < answers["base"]).sum()
    assert found["difference"] == pytest.approx((gained - lost) / n)
    assert found["p_value"] == pytest.approx(binomtest(int(gained), int(gained + lost)).pvalue)
    for change in (found["difference_low"], found["difference_high"]):
        b, c = (2 * n - gained + lost) * change - gained - lost, -lost * change * (1 - change)
        rare = (math.sqrt(b * b - 8 * n * c) - b) / (4 * n)
        z = (gained - lost - n * change) / math.sqrt(n * (2 * rare + change * (1 - change)))
        assert abs(z) == pytest.approx(1.96, abs=1e-3)
