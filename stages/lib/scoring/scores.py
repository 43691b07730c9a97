"""Scores: the table that evaluate writes, a row a document, and the metrics that its sums give."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

ARMS = ("full", "base", "tuned")
SCORES = Path("data/scores")  # of the dataset's own held-out documents
ALSO = Path("data/also")  # of further datasets: a folder each, with its documents and their scores
CONFIDENCE_BINS = 15  # of equal width, of the probability of the likeliest token
SUMS = ("nll", "top1", "top5")  # nats, and tokens that fewer than 1 or 5 others outrank


def write_scores(scores: pd.DataFrame, arm: str, folder: Path = SCORES) -> None:
    """Write the scores of an arm."""
    folder.mkdir(parents=True, exist_ok=True)
    scores.to_parquet(folder / f"{arm}.parquet", index=False)


def read_scores(arm: str, folder: Path = SCORES) -> pd.DataFrame:
    """Read the scores of an arm."""
    return pd.read_parquet(folder / f"{arm}.parquet")


def bins_of(scores: pd.DataFrame) -> np.ndarray:
    """Return tokens, their summed confidence, and hits of the likeliest token, [documents, bins, 3]."""
    return np.stack([np.stack(scores[f"bin_{name}"]) for name in ("tokens", "confidence", "hits")], axis=-1)


def calibration_error(bins: np.ndarray) -> np.ndarray:
    """Return the expected calibration error (Guo et al. 2017) of bins [..., bins, 3].

    It is the mean distance of confidence and accuracy, in which each bin counts by its tokens.
    """
    tokens, confidence, hits = np.moveaxis(bins, -1, 0)
    return np.abs(hits - confidence).sum(-1) / tokens.sum(-1)


def positions(scores: pd.DataFrame) -> pd.DataFrame:
    """Return tokens and their nats per token by how many tokens the model saw before them.

    A row counts those with at least `context_tokens`, and fewer than twice as many.
    """
    tokens, nll = (np.stack(scores[f"position_{name}"]).sum(0) for name in ("tokens", "nll"))
    context_tokens = pd.Index(2 ** np.arange(len(tokens)), name="context_tokens")
    return pd.DataFrame({"tokens": tokens.astype(int), "nll": nll / tokens}, index=context_tokens)


def summarize_tokens(scores: pd.DataFrame) -> dict[str, float]:
    """Turn sums over documents into metrics a token: each is a sum over all tokens, divided once."""
    tokens, nll, top1, top5 = scores[["tokens", *SUMS]].sum()
    return {
        "nll": nll / tokens,
        "perplexity": math.exp(nll / tokens),
        "accuracy": top1 / tokens,
        "accuracy_top5": top5 / tokens,
        "ece": calibration_error(bins_of(scores).sum(0)),
        "tokens": int(tokens),
    }


def summarize(scores: pd.DataFrame) -> dict[str, float]:
    """Turn sums over documents that were scored whole into metrics a token, a word and a byte."""
    num_bytes, words, nll = scores[["bytes", "words", "nll"]].sum()
    return summarize_tokens(scores) | {
        "word_perplexity": math.exp(nll / words),
        "byte_perplexity": math.exp(nll / num_bytes),
        "bits_per_byte": nll / num_bytes / math.log(2),
        "documents": len(scores),
        "words": int(words),
        "bytes": int(num_bytes),
    }
