"""Windows: texts cut in pieces that a model can take, and the scores of the pieces added up.

Two protocols cut them: each document alone, in windows that overlap; or one text in blocks that do not.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedModel

from stages.lib.data.documents import Document
from stages.lib.model.loading import bos_eos
from stages.lib.params import Mistake
from stages.lib.scoring.score import score_batch
from stages.lib.scoring.scores import CONFIDENCE_BINS, SUMS


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

    A model with an adapter is compared with itself without it too.

    Returns:
        What `score_windows` does.
    """
    windows = [
        window
        for number, document in enumerate(documents)
        for window in cut_windows(number, len(document.tokens), window_tokens, stride_tokens)
    ]
    return score_windows(model, documents, windows, batch_size, against_base=isinstance(model, PeftModel))


def score_blocks(
    model: PreTrainedModel | PeftModel, whole: Document, window_tokens: int, batch_size: int
) -> pd.DataFrame:
    """Score a text as papers on quantisation do: disjoint windows, the first token of each and the tail not scored.

    A window sees nothing before it, so losses come out higher than those of `score_documents`; they compare with
    published ones where window, tokenizer and text are the same.
    """
    windows = [
        Window(0, start, start, start + window_tokens - 1)
        for start in range(0, len(whole.tokens) + 2 - window_tokens, window_tokens)
    ]
    return score_windows(model, [whole], windows, batch_size, against_base=False)


def one_ahead(items: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield each item only once the next is begun: a GPU works while its last results are added up."""
    begun = next(items, None)
    for item in items:
        yield begun
        begun = item
    if begun is not None:
        yield begun


def score_windows(
    model: PreTrainedModel | PeftModel,
    documents: list[Document],
    windows: list[Window],
    batch_size: int,
    against_base: bool,
) -> pd.DataFrame:
    """Add up the scores of the windows of each document.

    Windows of unequal length are padded on the right, where a causal model cannot see it, and no
    padding is scored: the results do not depend on `batch_size`.

    Returns:
        One row a document: id, title, bytes, words, tokens (scored); nll (summed, in nats), top1 and top5 (tokens that
        fewer than 1 or 5 others outrank); for each bin of the likeliest token's probability bin_tokens,
        bin_confidence, bin_hits; by the binary logarithm of the tokens seen before, position_tokens and position_nll;
        with `against_base`, kl (summed KL(base‖tuned), in nats) and agreed (tokens whose likeliest is the same
        without the adapter).

    Raises:
        Mistake: The model gives a document a loss that is not finite; names it.
    """
    bos, _ = bos_eos(model.config)
    names = [*SUMS, "confidence"] + (["kl", "agreed"] if against_base else [])
    longest = max((w.end - w.start for w in windows), default=1)
    sums = np.zeros((len(documents), len(names)))
    bins = np.zeros((3, len(documents), CONFIDENCE_BINS))
    by_position = np.zeros((2, len(documents), longest.bit_length()))
    inputs = [np.concatenate([[bos], document.tokens[:-1]]) for document in documents]
    windows = sorted(windows, key=lambda w: w.start - w.end)  # longest first: little padding, the largest batch first
    batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    scored = (
        score_batch(
            model,
            inputs=[inputs[w.document][w.start : w.end] for w in batch],
            targets=[documents[w.document].tokens[w.first : w.end] for w in batch],
            against_base=against_base,
        )
        for batch in batches
    )
    with tqdm(total=sum(w.end - w.start for w in windows), desc="score", unit=" tokens", leave=False) as progress:
        for batch, device_scores in zip(batches, one_ahead(scored), strict=True):
            scores = device_scores.cpu().numpy()
            row = np.repeat([w.document for w in batch], [w.end - w.first for w in batch])
            nll, hit, confidence = scores[:, 0], scores[:, 1], scores[:, 3]
            if not np.isfinite(nll).all():
                bad = documents[row[~np.isfinite(nll)][0]].id
                raise Mistake(f"document {bad}: the model's loss is not finite; look at its weights and precision")
            seen = np.concatenate([np.arange(w.first, w.end) + 1 - w.start for w in batch])
            np.add.at(sums, row, scores)
            level = np.minimum(confidence * CONFIDENCE_BINS, CONFIDENCE_BINS - 1).astype(int)
            for target, values in zip(bins, (1, confidence, hit)):
                np.add.at(target, (row, level), values)
            for target, values in zip(by_position, (1, nll)):
                np.add.at(target, (row, np.log2(seen).astype(int)), values)
            progress.update(sum(w.end - w.start for w in batch))
    table = pd.DataFrame([(d.id, d.title, d.num_bytes, d.num_words) for d in documents])
    table.columns = ["id", "title", "bytes", "words"]
    table["tokens"] = bins[0].sum(1).astype(int)
    table[names] = sums
    for name, values in zip(("tokens", "confidence", "hits"), bins):
        table[f"bin_{name}"] = list(values)
    for name, values in zip(("tokens", "nll"), by_position):
        table[f"position_{name}"] = list(values)
    return table.drop(columns="confidence")
