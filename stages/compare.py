"""Say what tuning bought and what quantisation cost.   data/scores -> metrics/compare.json

Also lists every document in metrics/documents.csv. Run by `dvc repro compare`; alone: `python -m stages.compare`.
With the name of a dataset it compares the scores in data/also/<name>/, and writes metrics/also/<name>/compare.json.
"""

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.stats import permutation_test

from stages.lib.intervals import interval, named
from stages.lib.metrics import METRICS, write_metrics
from stages.lib.params import Section, read_params
from stages.lib.scores import ALSO, ARMS, SCORES, bins_of, calibration_error, read_scores

DOCUMENTS = METRICS / "documents.csv"
DIVERGENCE = {"kl_from_base": "kl", "agreement_with_base": "agreed"}  # metrics, and columns that they are the sums of


class CompareParams(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # of the draws
    resamples: Annotated[int, Field(ge=100)]


class Params(Section):
    compare: CompareParams


def compare(before: pd.DataFrame, after: pd.DataFrame, params: CompareParams) -> dict[str, float]:
    """Compare two arms on the same documents.

    The intervals come from drawing documents, not tokens, which depend on one another; both arms are drawn together.

    Args:
        before: Scores of one arm: a row a document.
        after: Scores of the other, rows alike.

    An interval from a handful of documents is too narrow: drawn from 5 it misses the truth one time in
    five. So there is a second witness, which holds for any number of documents: the share of random
    flips of each document's sign that shift nll at least as far as it was shifted.

    Returns:
        Differences in nll (nats per token), accuracy (share of tokens) and expected calibration error, after minus
        before, the ratio of perplexities, their bounds, the p-value of the nll by sign flips (two-sided), and the
        documents on which `after` has the lower nll.
    """
    assert (before["id"] == after["id"]).all() and (before["tokens"] == after["tokens"]).all()
    tokens = before["tokens"].to_numpy()
    bins_before, bins_after = bins_of(before), bins_of(after)

    def per_token(column: str) -> Callable[[np.ndarray], np.ndarray]:
        gain = (after[column] - before[column]).to_numpy()
        return lambda drawn: gain[drawn].sum(-1) / tokens[drawn].sum(-1)

    def calibration(drawn: np.ndarray) -> np.ndarray:
        return calibration_error(bins_after[drawn].sum(-3)) - calibration_error(bins_before[drawn].sum(-3))

    drawn = partial(interval, number=len(before), resamples=params.resamples, seed=params.seed)
    nll = drawn(per_token("nll"))
    return {
        **named("perplexity_ratio", map(math.exp, nll)),
        **named("nll_difference", nll),
        **named("accuracy_difference", drawn(per_token("top1"))),
        **named("ece_difference", drawn(calibration)),
        "p_value": sign_flip((after["nll"] - before["nll"]).to_numpy(), params),
        "documents": len(before),
        "documents_better": int((after["nll"] < before["nll"]).sum()),
    }


def sign_flip(gain: np.ndarray, params: CompareParams) -> float:
    """Return the two-sided p-value of a sum over documents, exact where the flips can be counted through."""
    flipped = permutation_test(
        (gain,),
        lambda gain, axis: gain.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=params.resamples,
        rng=np.random.default_rng(params.seed),
    )
    return float(flipped.pvalue)


def verdict(comparison: dict[str, float]) -> str:
    """Say in words what the interval of the perplexity ratio and the p-value both allow to be said."""
    if comparison["p_value"] >= 0.05:
        return "cannot tell"
    if comparison["perplexity_ratio_high"] < 1:
        return "better"
    return "worse" if comparison["perplexity_ratio_low"] > 1 else "cannot tell"


def describe(name: str, comparison: dict[str, float]) -> str:
    """Put a comparison in one line."""
    ratio, low, high = (comparison[f"perplexity_ratio{bound}"] for bound in ("", "_low", "_high"))
    return (
        f"{name}: perplexity times {ratio:.4f} (95 % interval {low:.4f} to {high:.4f}): {verdict(comparison)}; "
        f"lower on {comparison['documents_better']} of {comparison['documents']} documents"
    )


def divergence(tuned: pd.DataFrame) -> dict[str, float]:
    """Return how far tuning moved the predictions: KL(base‖tuned) in nats per token, and the share of tokens on which
    both find the same one likeliest."""
    return {name: float(tuned[column].sum() / tuned["tokens"].sum()) for name, column in DIVERGENCE.items()}


def list_documents(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """List the nats per token of every document under every arm, what tuning gained most on first."""
    table = scores["base"][["id", "title", "tokens"]].copy()
    for arm, found in scores.items():
        table[arm] = found["nll"] / found["tokens"]
    table["tuned_minus_base"] = table["tuned"] - table["base"]
    return table.sort_values("tuned_minus_base", ignore_index=True)


def compare_arms(folder: Path, metrics: Path, params: CompareParams) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Compare what evaluate wrote of one set of documents, and say it; return the comparisons, and the scores."""
    scores = {arm: read_scores(arm, folder) for arm in ARMS}
    found = {arm: json.loads((metrics / f"{arm}.json").read_text()) for arm in ARMS}
    assert len({(arm["document"]["window_tokens"], arm["document"]["stride_tokens"]) for arm in found.values()}) == 1
    assert found["base"]["precision"] == found["tuned"]["precision"]
    tuning = compare(scores["base"], scores["tuned"], params) | divergence(scores["tuned"])
    quantizing = compare(scores["full"], scores["base"], params)
    lines = [describe("base to tuned", tuning), describe("full to base", quantizing)]
    print(*lines, sep="\n")
    return {"base_to_tuned": tuning, "full_to_base": quantizing, "in_words": lines[0]}, scores


def main() -> None:
    params = read_params(Params).compare
    if len(sys.argv) == 2:
        name = sys.argv[1]
        comparisons, _ = compare_arms(ALSO / name, METRICS / "also" / name, params)
        write_metrics(f"also/{name}/compare", comparisons)
        return
    comparisons, scores = compare_arms(SCORES, METRICS / "evaluate", params)
    write_metrics("compare", comparisons)
    documents = list_documents(scores)
    documents.to_csv(DOCUMENTS, index=False, float_format="%.6f")
    print(f"gained most on {name_extreme(documents.iloc[0])}; least on {name_extreme(documents.iloc[-1])}")
    print(f"every document: {DOCUMENTS}")


def name_extreme(document: pd.Series) -> str:
    return f"{document['title']!r} ({document['tuned_minus_base']:+.3f} nats per token)"


if __name__ == "__main__":
    main()
