"""Score held-out documents with the base model, quantised or not, or with the adapter on it.

    data/prepared/test.parquet, models/ -> data/scores/<arm>.parquet, metrics/evaluate/<arm>.json

Run by `dvc repro evaluate`; alone: `python -m stages.evaluate base`. The arms:

    full    the base model in 16 bit (32 on a CPU)
    base    the same weights, quantised
    tuned   the quantised base with the adapter on it
"""

import sys
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from stages.lib.params import Mistake, Section, read_params
from stages.lib.quantization import FULL, Quantization

Arm = Literal["full", "base", "tuned"]
ARMS = ("full", "base", "tuned")


class EvaluateParams(Section):
    window_tokens: PositiveInt  # longest input; capped by the model's context
    stride_fraction: Annotated[float, Field(gt=0, le=1)]  # of the window, from one window's end to the next
    batch_size: PositiveInt  # windows scored at once: changes speed and memory, not results


class Params(Section):
    """Of the full arm, which quantisation does not touch."""

    model: str
    evaluate: EvaluateParams


class QuantizedParams(Params):
    """Of the arms base and tuned."""

    quantization: Quantization


def read_arm() -> tuple[Arm, Params]:
    """Read the arm from the command line, and the parameters that it depends on."""
    arm = sys.argv[1] if len(sys.argv) == 2 else None
    if arm not in ARMS:
        raise Mistake(f"usage: python -m stages.evaluate {{{','.join(ARMS)}}}")
    return arm, read_params(Params if arm == "full" else QuantizedParams)


if __name__ == "__main__":
    read_arm()  # refuses a mistake at once: the imports below take ten seconds

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedModel

from stages.lib.documents import Document, read_documents
from stages.lib.metrics import measure_cost, write_metrics
from stages.lib.model import ADAPTER, bos_eos, context_tokens, load_model, precision
from stages.lib.score import score_batch

SCORES = Path("data/scores")


@dataclass(frozen=True)
class Window:
    """A piece of a document: inputs [start, end), of whose targets [first, end) are scored.

    Position i of the inputs is the token before target i; input 0 is BOS.
    """

    document: int
    start: int
    first: int
    end: int


def cut_windows(document: int, num_targets: int, window_tokens: int, stride_tokens: int) -> Iterator[Window]:
    """Yield windows that score each target of a document exactly once.

    After the first window each target has at least `window_tokens - stride_tokens` tokens before it.
    """
    first = 0
    while first < num_targets:
        end = min(first + (stride_tokens if first else window_tokens), num_targets)
        yield Window(document, max(0, end - window_tokens), first, end)
        first = end


def score_documents(
    model: PreTrainedModel | PeftModel,
    documents: list[Document],
    window_tokens: int,
    stride_tokens: int,
    batch_size: int,
) -> pd.DataFrame:
    """Score every token of every document, each document alone, after a BOS that is not scored.

    Windows of unequal length are padded on the right, where a causal model cannot see it, and no
    padding is scored: the results do not depend on `batch_size`.

    Returns:
        One row a document: id, title, bytes, words, tokens, nll (summed, in nats), top1 and top5
        (tokens that fewer than 1 or 5 others outrank).

    Raises:
        Mistake: The model gives a document a loss that is not finite; names it.
    """
    bos, _ = bos_eos(model.config)
    inputs = [np.concatenate([[bos], document.tokens[:-1]]) for document in documents]
    windows = [
        window
        for number, document in enumerate(documents)
        for window in cut_windows(number, len(document.tokens), window_tokens, stride_tokens)
    ]
    windows.sort(key=lambda window: window.start - window.end)  # longest first: little padding, the largest batch first
    sums = np.zeros((len(documents), 3))  # of nll, top1, top5
    with tqdm(total=sum(w.end - w.start for w in windows), desc="score", unit=" tokens", leave=False) as progress:
        for batch in (windows[i : i + batch_size] for i in range(0, len(windows), batch_size)):
            scores_N3 = score_batch(
                model,
                inputs=[inputs[w.document][w.start : w.end] for w in batch],
                targets=[documents[w.document].tokens[w.first : w.end] for w in batch],
            )
            np.add.at(sums, np.repeat([w.document for w in batch], [w.end - w.first for w in batch]), scores_N3)
            progress.update(sum(w.end - w.start for w in batch))
    for document, (nll, _, _) in zip(documents, sums):
        if not np.isfinite(nll):
            raise Mistake(f"document {document.id}: the model's loss is {nll}; look at its weights and precision")
    rows = [(d.id, d.title, d.num_bytes, d.num_words, len(d.tokens), *row) for d, row in zip(documents, sums)]
    return pd.DataFrame(rows, columns=["id", "title", "bytes", "words", "tokens", "nll", "top1", "top5"])


def summarize(scores: pd.DataFrame) -> dict[str, float]:
    """Turn sums over documents into metrics: each is a sum over all tokens, divided once."""
    documents, (num_bytes, words, tokens, nll, top1, top5) = len(scores), scores.iloc[:, 2:].sum()
    return {
        "nll": nll / tokens,
        "perplexity": math.exp(nll / tokens),
        "word_perplexity": math.exp(nll / words),
        "byte_perplexity": math.exp(nll / num_bytes),
        "bits_per_byte": nll / num_bytes / math.log(2),
        "accuracy": top1 / tokens,
        "accuracy_top5": top5 / tokens,
        "documents": documents,
        "tokens": int(tokens),
        "bytes": int(num_bytes),
        "words": int(words),
    }


def main() -> None:
    arm, params = read_arm()
    quantization = FULL if arm == "full" else params.quantization
    model = load_model(params.model, quantization, ADAPTER if arm == "tuned" else None)
    window_tokens = min(params.evaluate.window_tokens, context_tokens(model.config))
    stride_tokens = math.ceil(window_tokens * params.evaluate.stride_fraction)
    documents = list(read_documents("test"))
    with measure_cost(f"evaluate/{arm}") as cost:
        scores = score_documents(model, documents, window_tokens, stride_tokens, params.evaluate.batch_size)
        cost["tokens"] = sum(scores["tokens"])
    metrics = summarize(scores)
    protocol = {"window_tokens": window_tokens, "stride_tokens": stride_tokens, "precision": precision(quantization)}
    SCORES.mkdir(parents=True, exist_ok=True)
    scores.to_parquet(SCORES / f"{arm}.parquet", index=False)
    write_metrics(f"evaluate/{arm}", metrics | protocol)
    print(f"{arm}: perplexity {metrics['perplexity']:.3f} over {metrics['tokens']:,} tokens")


if __name__ == "__main__":
    main()
