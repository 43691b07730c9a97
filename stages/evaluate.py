"""Score held-out documents with the base model, quantised or not, or with the adapter on it.

    data/prepared/test.parquet, models/ -> data/scores/<arm>.parquet, metrics/evaluate/<arm>.json

Run by `dvc repro evaluate`; alone: `python -m stages.evaluate base`. The arms:

    full    the base model in 16 bit (32 on a CPU)
    base    the same weights, quantised
    tuned   the quantised base with the adapter on it

With the name of a dataset too, `python -m stages.evaluate base <name>`, it scores the documents in data/also/<name>/
instead, and writes its scores beside them and metrics/also/<name>/<arm>.json.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from stages.lib.inputs import Inputs, read_command
from stages.lib.model.quantization import FULL, Quantization
from stages.lib.params import Mistake, Section, read_params
from stages.lib.training.processes import die_with_dvc

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


def read_arm() -> tuple[Arm, str | None, Params]:
    """Read the arm and perhaps a dataset from the command line, and the parameters that the arm depends on."""
    also = {"nargs": "?", "help": "a folder of data/also/"}
    command = read_command(__doc__, ["model"], arm={"choices": ARMS}, also=also)
    params = read_params(Params if command.arm == "full" else QuantizedParams, command=command)
    return command.arm, command.also, params


if __name__ == "__main__":
    die_with_dvc()
    read_arm()  # refuses a mistake at once: the imports below take ten seconds

import math

import numpy as np

from stages.lib.data.documents import PREPARED, Document, read_documents
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.metrics import measure_cost, write_metrics
from stages.lib.model.loading import ADAPTER, context_tokens, load_model, precision, quantized_fraction
from stages.lib.records import to_metrics
from stages.lib.scoring.document_scores import (
    ALSO,
    SCORES,
    DisjointMetrics,
    DocumentMetrics,
    Evaluation,
    summarize,
    summarize_tokens,
    write_scores,
)
from stages.lib.scoring.windows import score_disjoint, score_documents
from stages.lib.sources.source import MODELS


def join_documents(documents: list[Document], model: str) -> Document:
    """Join the texts by blank lines and tokenize the whole."""
    text = "\n\n".join(document.text for document in documents)
    tokens = np.array(load_tokenizer(model).encode(text, add_special_tokens=False).ids, np.int32)
    return Document("all", "all documents, joined", text, tokens)


def warn_of_loss(nll: float, documents: list[Document]) -> list[str]:
    """Say so where a count of the documents' own tokens beats a loss of `nll` nats per token; else return nothing.

    The count is the entropy of the tokens, with the correction of Miller (1955); ten for each different one are enough
    to tell it. A small model has that of a domain or a language that it hardly knows: just what it may be tuned for.
    """
    counts = np.unique(np.concatenate([document.tokens for document in documents]), return_counts=True)[1]
    shares = counts / counts.sum()
    entropy = -(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * counts.sum())
    if nll <= entropy or counts.mean() < 10:
        return []
    return [
        f"the loss is {nll:.2f} nats per token; knowing nothing but how often each token occurs gives {entropy:.2f}: "
        "this text is far from what the model has learned"
    ]


def main() -> None:
    arm, dataset, params = read_arm()
    texts, table, name = (
        (ALSO / dataset, ALSO / dataset, f"also/{dataset}") if dataset else (PREPARED, SCORES, "evaluate")
    )
    weights = [MODELS / params.model, *([ADAPTER] if arm == "tuned" else [])]
    inputs = Inputs(params, texts / "test.parquet", *weights)
    quantization = FULL if arm == "full" else params.quantization
    model = load_model(params.model, quantization, ADAPTER if arm == "tuned" else None)
    window_tokens = min(params.evaluate.window_tokens, context_tokens(model.config))
    stride_tokens = math.ceil(window_tokens * params.evaluate.stride_fraction)
    documents = list(read_documents("test", texts))
    if not documents:
        raise Mistake(f"{texts}/test.parquet: no documents to score; raise prepare.test_fraction")
    whole = join_documents(documents, params.model)
    with measure_cost(f"{name}/{arm}") as cost:
        scores = score_documents(model, documents, window_tokens, stride_tokens, params.evaluate.batch_size)
        joined = score_disjoint(model, whole, window_tokens, params.evaluate.batch_size)
        num_joined = int(joined["tokens"].sum())
        cost["tokens"] = int(scores["tokens"].sum()) + num_joined
        inputs.confirm()
    found = DocumentMetrics(**vars(summarize(scores)), window_tokens=window_tokens, stride_tokens=stride_tokens)
    blocks = DisjointMetrics(**vars(summarize_tokens(joined)), window_tokens=window_tokens) if num_joined else None
    evaluation = Evaluation(
        document=found,
        blocks=blocks,
        precision=precision(model, quantization),
        quantized_fraction=quantized_fraction(model),
        warnings=warn_of_loss(found.nll, documents),
    )
    write_scores(scores, arm, table)
    write_metrics(f"{name}/{arm}", to_metrics(evaluation))
    print(f"{arm}: perplexity {found.perplexity:.3f} over {found.tokens:,} tokens; {evaluation.precision}")
    print(*(f"warning: {line}" for line in evaluation.warnings), sep="\n", end="")


if __name__ == "__main__":
    main()
