"""Evaluation: a model's scores of held-out documents, each alone and all joined, and what they say."""

import math

import numpy as np
import pandas as pd
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from stages.lib.data.documents import Document
from stages.lib.data.tokenizer import begin_ids
from stages.lib.model.loading import Model, context_tokens, precision, quantized_fraction
from stages.lib.model.quantization import Quantization
from stages.lib.scoring.document_scores import (
    DisjointMetrics,
    DocumentMetrics,
    Evaluation,
    summarize,
    summarize_tokens,
)
from stages.lib.scoring.protocol import EvaluateParams
from stages.lib.scoring.windows import score_disjoint, score_documents


def evaluate(
    model: Model,
    quantization: Quantization,
    documents: list[Document],
    tokenizer: Tokenizer,
    params: EvaluateParams,
    validation: list[Document] | None = None,
) -> tuple[Evaluation, pd.DataFrame]:
    """Score documents, and validation documents likewise, where there are any.

    Returns:
        The metrics of all of them, and the table of `score_windows`, a row a document.

    Raises:
        Mistake: A loss is not finite.
    """
    window_tokens = min(params.window_tokens, context_tokens(model.config))
    stride_tokens = math.ceil(window_tokens * params.stride_fraction)

    def score(documents: list[Document], against_base: bool) -> tuple[DocumentMetrics, pd.DataFrame]:
        scores = score_documents(model, documents, window_tokens, stride_tokens, params.batch_size, against_base)
        windows = {"window_tokens": window_tokens, "stride_tokens": stride_tokens}
        return DocumentMetrics(**vars(summarize(scores)), **windows), scores

    found, scores = score(documents, against_base=not isinstance(model, PreTrainedModel))
    blocks = None
    if not any(document.conversation for document in documents):  # which nobody joins
        joined = score_disjoint(model, join_documents(documents, tokenizer), window_tokens, params.batch_size)
        if joined["tokens"].sum():
            blocks = DisjointMetrics(**vars(summarize_tokens(joined)), window_tokens=window_tokens)
    evaluation = Evaluation(
        document=found,
        blocks=blocks,
        precision=precision(model, quantization),
        quantized_fraction=quantized_fraction(model),
        warnings=warn_of_loss(found.nll, documents),
        validation=score(validation, against_base=False)[0] if validation else None,
    )
    return evaluation, scores


def join_documents(documents: list[Document], tokenizer: Tokenizer) -> Document:
    """Join the texts by blank lines and tokenize the whole."""
    text = "\n\n".join(document.text for document in documents)
    begin = begin_ids(tokenizer)
    tokens = np.array([*begin, *tokenizer.encode(text, add_special_tokens=False).ids], np.int32)
    return Document("all", "all documents, joined", text, tokens, np.arange(len(tokens)) >= len(begin))


def warn_of_loss(nll: float, documents: list[Document]) -> list[str]:
    """Say so where a count of the documents' own tokens beats a loss of `nll` nats per token; else return nothing.

    The count is the entropy of the tokens, with the correction of Miller (1955); ten for each different one are enough
    to tell it. A small model has that of a domain or a language that it hardly knows: just what it may be tuned for.
    """
    counts = np.unique(
        np.concatenate([document.tokens[document.targets] for document in documents]), return_counts=True
    )[1]
    shares = counts / counts.sum()
    entropy = -(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * counts.sum())
    if nll <= entropy or counts.mean() < 10:
        return []
    return [
        f"the loss is {nll:.2f} nats per token; knowing nothing but how often each token occurs gives {entropy:.2f}: "
        "this text is far from what the model has learned"
    ]
