"""Windows: texts cut in pieces that a model can take, and the scores of the pieces added up.

Two protocols cut them: each document alone, in windows that overlap; or one text in windows that do not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from tqdm import tqdm

from stages.lib.data.documents import IGNORED, Document
from stages.lib.model.loading import Model, unpacked_weights
from stages.lib.params import Mistake
from stages.lib.scoring.document_scores import CONFIDENCE_BINS, SUMS
from stages.lib.scoring.score import Divergence, gains_by_compiling, score_tokens

T = TypeVar("T")


@dataclass(frozen=True)
class Window:
    """A piece of a document: tokens [start, end), of whose labels [first, end) are scored.

    Label i is the target after token i, if there is one.
    """

    document: int
    start: int
    first: int
    end: int

    def labels(self, document: Document) -> np.ndarray:
        """Return the labels [end - start] of a window of a document."""
        labels = document.labels[self.start : self.end]
        labels[: self.first - self.start] = IGNORED
        return labels


def cut_windows(document: int, num_labels: int, window_tokens: int, stride_tokens: int) -> Iterator[Window]:
    """Yield windows that score each label of a document exactly once.

    After the first window each has at least `window_tokens - stride_tokens` tokens before it.
    """
    first = 0
    while first < num_labels:
        end = min(first + (stride_tokens if first else window_tokens), num_labels)
        yield Window(document, max(0, end - window_tokens), first, end)
        first = end


def score_documents(
    model: Model,
    documents: list[Document],
    window_tokens: int,
    stride_tokens: int,
    batch_size: int,
    against_base: bool = False,
) -> pd.DataFrame:
    """Score every target of every document, each document alone.

    Args:
        against_base: Compare a model that has an adapter with itself without it too.

    Returns:
        What `score_windows` does.
    """
    windows = [
        window
        for number, document in enumerate(documents)
        for window in cut_windows(number, len(document.tokens) - 1, window_tokens, stride_tokens)
        if (window.labels(document) != IGNORED).any()
    ]
    return score_windows(model, documents, windows, batch_size, against_base)


def score_disjoint(model: Model, whole: Document, window_tokens: int, batch_size: int) -> pd.DataFrame:
    """Score a text as papers on quantisation do: disjoint windows, the first token of each and the tail not scored.

    A window sees nothing before it, so losses come out higher than those of `score_documents`; they compare with
    published ones where window, tokenizer and text are the same.
    """
    windows = [
        Window(0, start, start, start + window_tokens - 1)
        for start in range(0, len(whole.tokens) + 1 - window_tokens, window_tokens)
    ]
    return score_windows(model, [whole], windows, batch_size, against_base=False)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield each item only once the next is begun: a GPU works while its last results are added up."""
    for begun in items:  # the first
        for item in items:  # all others
            yield begun
            begun = item
        yield begun


def score_windows(
    model: Model,
    documents: list[Document],
    windows: list[Window],
    batch_size: int,
    against_base: bool,
) -> pd.DataFrame:
    """Add up the scores of the windows of each document.

    Windows of unequal length are padded on the right, where a causal model cannot see it, and no
    padding is scored: the results do not depend on `batch_size`.

    Returns:
        One row a document: id, title, group, bytes, words, tokens (scored); nll (summed, in nats), top1 and top5
        (tokens that fewer than 1 or 5 others outrank); for each bin of the likeliest token's probability bin_tokens,
        bin_confidence, bin_hits; by the binary logarithm of the tokens seen before, position_tokens and position_nll;
        with `against_base`, kl (summed KL(base‖tuned), in nats) and agreed (tokens whose likeliest is the same
        without the adapter).

    Raises:
        Mistake: The model gives a document a loss that is not finite; names it.
    """
    longest = max((w.end - w.start for w in windows), default=1)
    names = (*SUMS, *Divergence._fields) if against_base else SUMS
    sums = {name: np.zeros(len(documents)) for name in names}
    bins = {name: np.zeros((len(documents), CONFIDENCE_BINS)) for name in ("tokens", "confidence", "hits")}
    positions = {name: np.zeros((len(documents), longest.bit_length())) for name in ("tokens", "nll")}
    windows = sorted(windows, key=lambda w: w.start - w.end)  # longest first: little padding, the largest batch first
    num_targets = sum(int((w.labels(documents[w.document]) != IGNORED).sum()) for w in windows)
    compiled = gains_by_compiling(model, num_targets)
    batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    scored = (
        score_tokens(
            model,
            inputs=[documents[w.document].tokens[w.start : w.end] for w in batch],
            labels=[w.labels(documents[w.document]) for w in batch],
            against_base=against_base,
            compiled=compiled,
        )
        for batch in batches
    )
    length = sum(w.end - w.start for w in windows)
    with (
        unpacked_weights(model),
        tqdm(total=length, desc="score", unit=" tokens", leave=False, disable=None) as progress,
    ):
        for batch, parts in zip(batches, one_ahead(scored), strict=True):
            fields = [field for part in parts if part for field in part._asdict().items()]
            found = {name: values.cpu().numpy() for name, values in fields}
            scored_places = [np.flatnonzero(w.labels(documents[w.document]) != IGNORED) for w in batch]
            row = np.repeat([w.document for w in batch], [len(places) for places in scored_places])
            if not np.isfinite(found["nll"]).all():
                bad = documents[row[~np.isfinite(found["nll"])][0]].id
                raise Mistake(f"document {bad}: the model's loss is not finite; look at its weights and precision")
            seen = np.concatenate(scored_places) + 1
            for name in names:
                np.add.at(sums[name], row, found[name])
            level = np.minimum(found["confidence"] * CONFIDENCE_BINS, CONFIDENCE_BINS - 1).astype(int)
            for name, values in (("tokens", 1), ("confidence", found["confidence"]), ("hits", found["top1"])):
                np.add.at(bins[name], (row, level), values)
            for name, values in (("tokens", 1), ("nll", found["nll"])):
                np.add.at(positions[name], (row, np.log2(seen).astype(int)), values)
            progress.update(sum(w.end - w.start for w in batch))
    return pd.DataFrame(
        {
            "id": [document.id for document in documents],
            "title": [document.title for document in documents],
            "group": [document.group for document in documents],
            "bytes": [document.num_bytes for document in documents],
            "words": [document.num_words for document in documents],
            "tokens": bins["tokens"].sum(1).astype(int),
            **sums,
            **{f"bin_{name}": list(values) for name, values in bins.items()},
            **{f"position_{name}": list(values) for name, values in positions.items()},
        }
    )
