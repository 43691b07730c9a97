"""Say what tuning bought and what quantisation cost.   data/scores, data/generated -> metrics/compare.json

Also draws plots/eval_results.png, and writes both models' answers side by side to data/generated/samples.md.
Run by `dvc repro compare`; alone: `python -m stages.compare`.
"""

import json
import math
import textwrap
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field
from scipy.stats import bootstrap, permutation_test

from stages.lib.metrics import METRICS, write_metrics
from stages.lib.params import Section, read_params

SCORES = Path("data/scores")
GENERATED = Path("data/generated")
SAMPLES = GENERATED / "samples.md"
PICTURE = Path("plots/eval_results.png")
TABLE = Path("plots/results.csv")
ARMS = {"full": "#999999", "base": "#0072b2", "tuned": "#d55e00"}  # colours told apart by all kinds of sight


class CompareParams(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # of the draws
    resamples: Annotated[int, Field(ge=100)]


class Params(Section):
    compare: CompareParams


def compare(before: pd.DataFrame, after: pd.DataFrame, params: CompareParams) -> dict[str, float]:
    """Compare two arms on the same documents.

    The intervals (95 %, bias-corrected and accelerated) come from drawing documents, not tokens, which
    depend on one another (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 14);
    both arms are drawn together.

    Args:
        before: Scores of one arm: a row a document.
        after: Scores of the other, rows alike.

    An interval from a handful of documents is too narrow: drawn from 5 it misses the truth one time in
    five. So there is a second witness, which holds for any number of documents: the share of random
    flips of each document's sign that shift nll at least as far as it was shifted.

    Returns:
        Differences in nll (nats per token) and accuracy (share of tokens), after minus before, the
        ratio of perplexities, their bounds, the p-value of the nll by sign flips (two-sided), and the
        documents on which `after` has the lower nll.
    """
    assert (before["id"] == after["id"]).all() and (before["tokens"] == after["tokens"]).all()
    nll, nll_low, nll_high = difference(before, after, "nll", params)
    accuracy, accuracy_low, accuracy_high = difference(before, after, "top1", params)
    return {
        "perplexity_ratio": math.exp(nll),
        "perplexity_ratio_low": math.exp(nll_low),
        "perplexity_ratio_high": math.exp(nll_high),
        "nll_difference": nll,
        "nll_difference_low": nll_low,
        "nll_difference_high": nll_high,
        "accuracy_difference": accuracy,
        "accuracy_difference_low": accuracy_low,
        "accuracy_difference_high": accuracy_high,
        "p_value": sign_flip((after["nll"] - before["nll"]).to_numpy(), params),
        "documents": len(before),
        "documents_better": int((after["nll"] < before["nll"]).sum()),
    }


def difference(
    before: pd.DataFrame, after: pd.DataFrame, column: str, params: CompareParams
) -> tuple[float, float, float]:
    """Return the difference per token, after minus before, and the bounds of its 95 % interval."""
    gain = (after[column] - before[column]).to_numpy()
    tokens = before["tokens"].to_numpy()

    def per_token(gain: np.ndarray, tokens: np.ndarray, axis: int = -1) -> np.ndarray:
        return gain.sum(axis) / tokens.sum(axis)

    mean = float(per_token(gain, tokens))
    if np.ptp(gain / tokens) == 0:  # every document says the same, such as equal arms: no interval to estimate
        return mean, mean, mean
    drawn = bootstrap(
        (gain, tokens), per_token, paired=True, n_resamples=params.resamples, rng=np.random.default_rng(params.seed)
    )
    return mean, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


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


def draw_results(results: pd.DataFrame, title: str) -> Figure:
    """Draw perplexity, bits per byte and accuracy of the arms (the rows of `results`) as bars."""
    figure, panels = plt.subplots(1, 3, figsize=(9, 4.5), layout="constrained")
    labels = ("perplexity (less is better)", "bits per byte (less is better)", "next-token accuracy (more is better)")
    for axes, column, label, form in zip(panels, results.columns, labels, ("{:.2f}", "{:.3f}", "{:.1%}")):
        bars = axes.bar(results.index, results[column], color=[ARMS[arm] for arm in results.index])
        axes.bar_label(bars, [form.format(value) for value in results[column]], padding=2)
        axes.set_ylabel(label)
        axes.margins(y=0.1)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(textwrap.fill(title, width=80))
    return figure


def table_samples(base: list[dict], tuned: list[dict]) -> str:
    """Put both models' answers to each prompt side by side in a Markdown table."""
    rows = ["| prompt | base | tuned |", "|---|---|---|"]
    for before, after in zip(base, tuned, strict=True):
        cells = (before["prompt"], before["text"], after["text"])
        rows.append("| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def read_samples(arm: str) -> list[dict]:
    """Read what generate wrote for an arm."""
    return [json.loads(line) for line in (GENERATED / f"{arm}.jsonl").read_text(encoding="utf-8").splitlines()]


def main() -> None:
    params = read_params(Params).compare
    scores = {arm: pd.read_parquet(SCORES / f"{arm}.parquet") for arm in ARMS}
    tuning = compare(scores["base"], scores["tuned"], params)
    quantizing = compare(scores["full"], scores["base"], params)
    found = {arm: json.loads((METRICS / "evaluate" / f"{arm}.json").read_text()) for arm in ARMS}
    assert len({(metrics["window_tokens"], metrics["stride_tokens"]) for metrics in found.values()}) == 1
    assert found["base"]["precision"] == found["tuned"]["precision"]
    results = pd.DataFrame(found).T[["perplexity", "bits_per_byte", "accuracy"]].astype(float).rename_axis("arm")
    lines = [describe("base to tuned", tuning), describe("full to base", quantizing)]
    write_metrics("compare", {"base_to_tuned": tuning, "full_to_base": quantizing, "verdict": verdict(tuning)})
    results.to_csv(TABLE)
    draw_results(results, lines[0]).savefig(PICTURE, dpi=100)
    SAMPLES.write_text(table_samples(read_samples("base"), read_samples("tuned")), encoding="utf-8")
    print(results.round(4).to_string(), *lines, f"answers side by side: {SAMPLES}", sep="\n")


if __name__ == "__main__":
    main()
