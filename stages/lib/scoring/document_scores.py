"""Scores of documents: the table that evaluate writes, a row a document, and the metrics that its sums give."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.lib.metrics import METRICS

SCORES = Path("data/scores")  # of the dataset's own held-out documents
LOSSES = METRICS / "documents.csv"  # nats per token of each document under each arm, in Git
CONFIDENCE_BINS = 15  # of equal width, of the probability of the likeliest token
SUMS = ("nll", "top1", "top5")  # nats, and tokens that fewer than 1 or 5 others outrank


class Bins(NamedTuple):
    """Tokens by the probability of the likeliest one: arrays [..., bins]."""

    tokens: np.ndarray
    confidence: np.ndarray  # summed probability of the likeliest token
    hits: np.ndarray  # tokens that were the likeliest

    @classmethod
    def of(cls, scores: pd.DataFrame) -> "Bins":
        """Read them of a table of documents: arrays [documents, bins]."""
        return cls(*(np.stack(scores[column].to_list()) for column in ("bin_tokens", "bin_confidence", "bin_hits")))

    def total(self, documents: np.ndarray) -> "Bins":
        """Add up the bins of documents with these indices [..., number]."""
        return Bins(*(values[documents].sum(-2) for values in self))


@dataclass(frozen=True)
class TokenMetrics:
    """Each but `ece` is a sum over all tokens, divided once."""

    nll: float  # nats per token
    perplexity: float
    accuracy: float  # share of tokens that were the likeliest
    accuracy_top5: float
    ece: float  # expected calibration error
    tokens: int


@dataclass(frozen=True, kw_only=True)
class TextMetrics(TokenMetrics):
    """Of documents that were scored whole, metrics a word and a byte too."""

    word_perplexity: float | None = None  # not there where words are so long that no number holds it
    byte_perplexity: float
    bits_per_byte: float
    documents: int
    words: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class DocumentMetrics(TextMetrics):
    """Of each document alone, in overlapping windows."""

    window_tokens: int
    stride_tokens: int


@dataclass(frozen=True)
class DisjointMetrics(TokenMetrics):
    """Of the documents joined, in windows that do not overlap."""

    window_tokens: int


@dataclass(frozen=True)
class Evaluation:
    """What evaluate finds of an arm, and metrics/evaluate/<arm>.json holds."""

    document: DocumentMetrics
    blocks: DisjointMetrics | None
    precision: str
    quantized_fraction: float
    warnings: list[str]
    validation: DocumentMetrics | None = None  # of the tuned model on the validation documents: what `best` ranks by

    @property
    def num_tokens(self) -> int:
        """Tokens scored in all protocols together."""
        return sum(found.tokens for found in (self.document, self.blocks, self.validation) if found)


def write_scores(scores: pd.DataFrame, arm: str, folder: Path = SCORES) -> None:
    """Write the scores of an arm."""
    folder.mkdir(parents=True, exist_ok=True)
    scores.to_parquet(folder / f"{arm}.parquet", index=False)


def read_scores(arm: str, folder: Path = SCORES) -> pd.DataFrame:
    """Read the scores of an arm."""
    return pd.read_parquet(folder / f"{arm}.parquet")


def write_losses(losses: pd.DataFrame) -> None:
    """Write the losses of all documents, to the last digit: who reads them from Git finds what compare found."""
    losses.to_csv(LOSSES, index=False)


def read_losses(text: str) -> pd.DataFrame:
    """Read the numbers that `write_losses` wrote, to the last digit."""
    texts = {name: str for name in ("id", "title", "group")}  # whatever they look like: 007, NA, null
    return pd.read_csv(io.StringIO(text), dtype=texts, keep_default_na=False)


def units(scores: pd.DataFrame) -> pd.DataFrame:
    """Add up the sums of documents that belong together: a row for each group, and for each document without one."""
    if not (scores["group"] != "").any():
        return scores
    named = scores["group"].where(scores["group"] != "", "\0" + scores["id"])
    sums = scores.drop(columns=["id", "title", "group"]).groupby(named, sort=False).agg("sum")
    return sums.rename_axis("id").reset_index()


def calibration_error(bins: Bins) -> np.ndarray:
    """Return the expected calibration error (Guo et al. 2017) of bins [..., bins].

    It is the mean distance of confidence and accuracy, in which each bin counts by its tokens.
    """
    return np.abs(bins.hits - bins.confidence).sum(-1) / bins.tokens.sum(-1)


def positions(scores: pd.DataFrame) -> pd.DataFrame:
    """Return tokens and their nats per token by how many tokens the model saw before them.

    A row counts those with at least `context_tokens`, and fewer than twice as many.
    """
    tokens, nll = (np.stack(scores[f"position_{name}"].to_list()).sum(0) for name in ("tokens", "nll"))
    (some,) = np.nonzero(tokens)  # an answer never stands at the very beginning
    context_tokens = pd.Index(2**some, name="context_tokens")
    return pd.DataFrame({"tokens": tokens[some].astype(int), "nll": nll[some] / tokens[some]}, index=context_tokens)


def summarize_tokens(scores: pd.DataFrame) -> TokenMetrics:
    """Turn sums over documents into metrics a token."""
    sums = scores[["tokens", *SUMS]].sum()
    tokens, nll = sums["tokens"], sums["nll"]
    return TokenMetrics(
        nll=nll / tokens,
        perplexity=math.exp(nll / tokens),
        accuracy=sums["top1"] / tokens,
        accuracy_top5=sums["top5"] / tokens,
        ece=float(calibration_error(Bins.of(scores).total(np.arange(len(scores))))),
        tokens=int(tokens),
    )


def summarize(scores: pd.DataFrame) -> TextMetrics:
    """Turn sums over documents that were scored whole into metrics a token, a word and a byte."""
    sums = scores[["bytes", "words", "nll"]].sum()
    num_bytes, words, nll = sums["bytes"], sums["words"], sums["nll"]
    return TextMetrics(
        **vars(summarize_tokens(scores)),
        word_perplexity=math.exp(nll / words) if nll / words < 700 else None,
        byte_perplexity=math.exp(nll / num_bytes),
        bits_per_byte=nll / num_bytes / math.log(2),
        documents=len(scores),
        words=int(words),
        bytes=int(num_bytes),
    )
