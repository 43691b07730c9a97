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

import numpy as np

from stages.lib.documents import Document, read_documents
from stages.lib.metrics import measure_cost, write_metrics
from stages.lib.model import ADAPTER, context_tokens, load_model, precision
from stages.lib.scores import summarize, summarize_tokens, write_scores
from stages.lib.tokenizer import load_tokenizer
from stages.lib.windows import score_blocks, score_documents


def join_documents(documents: list[Document], model: str) -> Document:
    """Join the texts by blank lines and tokenize the whole."""
    text = "\n\n".join(document.text for document in documents)
    tokens = np.array(load_tokenizer(model).encode(text, add_special_tokens=False).ids, np.int32)
    return Document("all", "all documents, joined", text, tokens)


def main() -> None:
    arm, params = read_arm()
    quantization = FULL if arm == "full" else params.quantization
    model = load_model(params.model, quantization, ADAPTER if arm == "tuned" else None)
    window_tokens = min(params.evaluate.window_tokens, context_tokens(model.config))
    stride_tokens = math.ceil(window_tokens * params.evaluate.stride_fraction)
    documents = list(read_documents("test"))
    if not documents:
        raise Mistake("data/prepared/test.parquet: no documents to score; raise prepare.test_fraction")
    whole = join_documents(documents, params.model)
    with measure_cost(f"evaluate/{arm}") as cost:
        scores = score_documents(model, documents, window_tokens, stride_tokens, params.evaluate.batch_size)
        blocks = score_blocks(model, whole, window_tokens, params.evaluate.batch_size)
        cost["tokens"] = int(scores["tokens"].sum() + blocks["tokens"].sum())
    metrics = {
        "document": summarize(scores) | {"window_tokens": window_tokens, "stride_tokens": stride_tokens},
        "blocks": summarize_tokens(blocks) | {"window_tokens": window_tokens} if blocks["tokens"].sum() else None,
        "precision": precision(quantization),
    }
    write_scores(scores, arm)
    write_metrics(f"evaluate/{arm}", metrics)
    found = metrics["document"]
    print(f"{arm}: perplexity {found['perplexity']:.3f} over {found['tokens']:,} tokens")


if __name__ == "__main__":
    main()
