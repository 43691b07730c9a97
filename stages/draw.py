"""Draw what was measured.   data/scores, metrics/ -> plots/

plots/eval_results.png shows the arms' headline metrics, plots/calibration.png whether their confidence is deserved,
plots/loss_by_context.png what they make of context. Run by `dvc repro draw`; alone: `python -m stages.draw`.
"""

import json
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.lib.colours import COLOURS
from stages.lib.inputs import Inputs, read_command
from stages.lib.metrics import METRICS
from stages.lib.records import read_record
from stages.lib.scoring.document_scores import CONFIDENCE_BINS, SCORES, Bins, Evaluation, positions, read_scores
from stages.lib.scoring.protocol import ARMS

PLOTS = Path("plots")
HEADLINES = {  # metrics of the protocol "document", and how their bars are labelled
    "perplexity": ("perplexity (less is better)", "{:.2f}"),
    "bits_per_byte": ("bits per byte (less is better)", "{:.3f}"),
    "accuracy": ("next-token accuracy (more is better)", "{:.1%}"),
}


def draw_results(results: pd.DataFrame, title: str) -> Figure:
    """Draw the headline metrics of the arms (the rows of `results`) as bars."""
    figure, panels = plt.subplots(1, len(HEADLINES), figsize=(9, 4.5), layout="constrained")
    for axes, (column, (label, form)) in zip(panels, HEADLINES.items()):
        bars = axes.bar(results.index, results[column], color=[COLOURS[arm] for arm in results.index])
        axes.bar_label(bars, [form.format(value) for value in results[column]], padding=2)
        axes.set_ylabel(label)
        axes.margins(y=0.1)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(textwrap.fill(title, width=80))
    return figure


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
    inputs = Inputs(None, *measured, METRICS / "compare.json")
    scores = {arm: read_scores(arm) for arm in ARMS}
    found = {arm: read_record(Evaluation, METRICS / "evaluate" / f"{arm}.json").document for arm in ARMS}
    in_words = json.loads((METRICS / "compare.json").read_text())["in_words"]
    results = pd.DataFrame(map(vars, found.values()), index=pd.Index(found, name="arm"))[list(HEADLINES)]
    reliabilities = {arm: reliability(table) for arm, table in scores.items()}
    accuracies = pd.DataFrame({arm: table["accuracy"] for arm, table in reliabilities.items()}).dropna()
    losses = pd.DataFrame({arm: positions(table)["nll"] for arm, table in scores.items()})
    inputs.confirm()
    results.to_csv(PLOTS / "results.csv")
    accuracies.to_csv(PLOTS / "calibration.csv")
    losses.to_csv(PLOTS / "loss_by_context.csv")
    draw_results(results, in_words).savefig(PLOTS / "eval_results.png", dpi=100)
    draw_calibration(reliabilities).savefig(PLOTS / "calibration.png", dpi=100)
    draw_loss_by_context(losses).savefig(PLOTS / "loss_by_context.png", dpi=100)
    print(results.round(4).to_string())


if __name__ == "__main__":
    main()
