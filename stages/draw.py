"""Draw what was measured.   data/scores, metrics/ -> plots/

plots/eval_results.png shows the arms' headline metrics, plots/documents.png what tuning gained on each document,
plots/answers.png how good the answers are, plots/calibration.png whether confidence is deserved, and
plots/loss_by_context.png what context is worth. Run by `dvc repro draw`; alone: `python -m stages.draw`.
"""

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from stages.lib.colours import COLOURS
from stages.lib.inputs import Inputs, read_command
from stages.lib.metrics import METRICS, read_metrics
from stages.lib.records import Interval, read_interval, read_record
from stages.lib.scoring.document_scores import (
    CONFIDENCE_BINS,
    LOSSES,
    SCORES,
    Bins,
    Evaluation,
    positions,
    read_losses,
    read_scores,
    units,
)
from stages.lib.scoring.intervals import change
from stages.lib.scoring.protocol import ARMS

PLOTS = Path("plots")
FLIPS, SEED = 10_000, 1  # of the error bars
HEADLINES = {  # metrics of the protocol "document", and how their bars are labelled
    "perplexity": ("perplexity (less is better)", "{:.2f}"),
    "bits_per_byte": ("bits per byte (less is better)", "{:.3f}"),
    "accuracy": ("next-token accuracy (more is better)", "{:.1%}"),
}


def draw_results(results: pd.DataFrame, bounds: dict[str, dict[str, Interval]], title: str) -> Figure:
    """Draw the headline metrics of the arms (the rows of `results`) as bars, with what other documents might give."""
    figure, panels = plt.subplots(1, len(HEADLINES), figsize=(9, 4.5), layout="constrained")
    for axes, (column, (label, form)) in zip(panels, HEADLINES.items()):
        axes.bar(results.index, results[column], color=[COLOURS[arm] for arm in results.index])
        _error_bars(axes, range(len(results)), [bounds[str(arm)][column] for arm in results.index], form)
        axes.set_ylabel(label)
        axes.margins(y=0.05)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(textwrap.fill(title, width=80))
    figure.supxlabel(
        "bars: all documents together; lines: 95 % intervals, had other documents been drawn", size="small"
    )
    return figure


def draw_gains(losses: pd.DataFrame, difference: Interval) -> Figure:
    """Draw what tuning changed on each document, the largest gain highest, beside the change of all together.

    Args:
        losses: `tokens` and `tuned_minus_base`, nats per token, of each.
        difference: Of all together.
    """
    gains = losses["tuned_minus_base"].to_numpy()[::-1]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    if np.isfinite(difference.low):
        axes.axvspan(difference.low, difference.high, color=COLOURS["tuned"], alpha=0.2, label="95 % interval")
    axes.axvline(difference.value, color=COLOURS["tuned"], label="all documents together")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.scatter(
        gains,
        range(len(gains)),
        s=8 + 60 * losses["tokens"].to_numpy()[::-1] / losses["tokens"].max(),
        color=["black" if gain > 0 else COLOURS["tuned"] for gain in gains],
        alpha=0.7,
        linewidths=0,
    )
    axes.set(xlabel="tuned minus base, nats per token (left of zero: tuning helped)", yticks=[])
    axes.set(ylabel=f"{len(gains)} held-out documents (larger: longer)")
    axes.legend(loc="lower left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def draw_answers(grades: dict[str, Any]) -> Figure:
    """Draw the scores of both models' answers (of metrics/answers.json) as bars with their 95 % intervals.

    The intervals are Wilson's (1927) for the number of units: for scores between yes and no they are too wide.
    """
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    names = [name for name, found in grades.items() if isinstance(found, dict) and "base" in found and name != "words"]
    if not names:
        axes.text(0.5, 0.5, "Texts were learned: there are no held-out conversations to answer.", ha="center")
        axes.set_axis_off()
        return figure
    for offset, arm in ((-0.2, "base"), (0.2, "tuned")):
        shares = [wilson(grades[name][arm], grades["effective_units"]) for name in names]
        places = np.arange(len(names)) + offset
        axes.bar(places, [share.value for share in shares], width=0.38, color=COLOURS[arm], label=arm)
        _error_bars(axes, places, shares, "{:.0%}")
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(ylim=(0, 1.2), ylabel=f"mean of {grades['answers']:,} held-out answers")
    axes.legend(loc="upper left", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(textwrap.fill(grades["in_words"], width=85))
    return figure


def wilson(share: float, units: float) -> Interval:
    """Return Wilson's 95 % interval of a share."""
    share = min(1.0, share)
    z = 1.959964
    middle, half = share + z**2 / 2 / units, z * np.sqrt(share * (1 - share) / units + z**2 / 4 / units**2)
    bounds = (float((middle + sign * half) / (1 + z**2 / units)) for sign in (-1, 1))
    return Interval(share, min(share, next(bounds)), max(share, next(bounds)))  # rounding aside


def bounds_of(scores: pd.DataFrame) -> dict[str, Interval]:
    """Return the headline metrics of an arm with their 95 % intervals over documents, or groups of them."""
    table = units(scores)

    def find(sums: str, sizes: str) -> Interval:
        return change(table[sums].to_numpy(float), table[sizes].to_numpy(float), FLIPS, SEED).interval

    return {
        "perplexity": Interval(*np.exp(find("nll", "tokens"))),
        "bits_per_byte": Interval(*(np.array(find("nll", "bytes")) / np.log(2))),
        "accuracy": find("top1", "tokens"),
    }


def _error_bars(axes: Axes, places: Iterable[float], intervals: list[Interval], form: str) -> None:
    """Draw what bounds each value, if anything does, and write the value above it."""
    for place, (value, low, high) in zip(places, intervals, strict=True):
        bounded = np.isfinite([low, high]).all()
        if bounded:
            axes.errorbar(place, value, [[value - low], [high - value]], color="black", linewidth=1, capsize=3)
        top = (place, high if bounded else value)
        axes.annotate(form.format(value), top, (0, 3), textcoords="offset points", ha="center")


def draw_calibration(reliabilities: dict[str, pd.DataFrame]) -> Figure:
    """Draw how often the likeliest token was right against how likely the model held it, per bin that has tokens."""
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="as often as it says")
    for arm, bins in reliabilities.items():
        axes.plot(bins["confidence"], bins["accuracy"], color=COLOURS[arm], marker="o", markersize=4, label=arm)
    axes.set(title="Calibration on held-out documents", xlim=(0, 1), ylim=(0, 1))
    axes.set(xlabel="probability of the likeliest token", ylabel="share of tokens where it was right")
    axes.legend()
    return figure


def draw_loss_by_context(losses: pd.DataFrame) -> Figure:
    """Draw the loss of tokens (a column an arm) by how many tokens the model saw before them (the index)."""
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    for arm, nll in losses.items():
        axes.plot(losses.index, nll, color=COLOURS[str(arm)], marker="o", markersize=4, label=arm)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(title="Loss by context, on held-out documents")
    axes.set(xlabel="tokens seen before (from this many to twice as many)", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def reliability(scores: pd.DataFrame) -> pd.DataFrame:
    """Return mean confidence, accuracy and tokens of each confidence bin that has tokens, by the bin's middle."""
    bins = Bins.of(scores).total(np.arange(len(scores)))
    middle = pd.Index((np.arange(len(bins.tokens)) + 0.5) / CONFIDENCE_BINS, name="confidence_bin")
    confidence, accuracy = (sums / np.maximum(bins.tokens, 1) for sums in (bins.confidence, bins.hits))
    table = pd.DataFrame({"confidence": confidence, "accuracy": accuracy, "tokens": bins.tokens}, index=middle)
    return table[bins.tokens > 0]


def main() -> None:
    read_command(__doc__, [])
    measured = (file for arm in ARMS for file in (SCORES / f"{arm}.parquet", METRICS / "evaluate" / f"{arm}.json"))
    inputs = Inputs(None, *measured, METRICS / "compare.json", METRICS / "answers.json", LOSSES)
    scores = {arm: read_scores(arm) for arm in ARMS}
    found = {arm: read_record(Evaluation, read_metrics(f"evaluate/{arm}")).document for arm in ARMS}
    compared, grades = map(read_metrics, ("compare", "answers"))
    results = pd.DataFrame(map(vars, found.values()), index=pd.Index(found, name="arm"))[list(HEADLINES)]
    reliabilities = {arm: reliability(table) for arm, table in scores.items()}
    accuracies = pd.DataFrame({arm: table["accuracy"] for arm, table in reliabilities.items()}).dropna()
    losses = pd.DataFrame({arm: positions(table)["nll"] for arm, table in scores.items()})
    inputs.confirm()
    results.to_csv(PLOTS / "eval_results.csv")
    accuracies.to_csv(PLOTS / "calibration.csv")
    losses.to_csv(PLOTS / "loss_by_context.csv")
    bounds = {arm: bounds_of(table) for arm, table in scores.items()}
    draw_results(results, bounds, compared["in_words"]).savefig(PLOTS / "eval_results.png", dpi=100)
    difference = read_interval(compared["base_to_tuned"], "nll_difference")
    draw_gains(read_losses(LOSSES.read_text(encoding="utf-8")), difference).savefig(PLOTS / "documents.png", dpi=100)
    draw_answers(grades).savefig(PLOTS / "answers.png", dpi=100)
    draw_calibration(reliabilities).savefig(PLOTS / "calibration.png", dpi=100)
    draw_loss_by_context(losses).savefig(PLOTS / "loss_by_context.png", dpi=100)
    print(results.round(4).to_string())


if __name__ == "__main__":
    main()
