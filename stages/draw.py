"""Draw what was measured.   data/scores, metrics/ -> plots/

plots/eval_results.png shows the arms' headline metrics, plots/calibration.png whether their confidence is deserved,
plots/loss_by_context.png what they make of context. Run by `dvc repro draw`; alone: `python -m stages.draw`.
"""

import json
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from stages.lib.metrics import METRICS
from stages.lib.scores import ARMS, bins_of, positions, read_scores

PLOTS = Path("plots")
COLOURS = dict(zip(ARMS, ("#999999", "#0072b2", "#d55e00")))  # told apart by all kinds of sight
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


def draw_calibration(reliability: pd.DataFrame) -> Figure:
    """Draw how often the likeliest token was right against how likely the model held it, per bin that has tokens."""
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="as often as it says")
    for arm, bins in reliability.groupby("arm", sort=False):
        axes.plot(bins["confidence"], bins["accuracy"], color=COLOURS[arm], marker="o", markersize=4, label=arm)
    axes.set(title="Calibration on held-out documents", xlim=(0, 1), ylim=(0, 1))
    axes.set(xlabel="probability of the likeliest token", ylabel="share of tokens where it was right")
    axes.legend()
    return figure


def draw_loss_by_context(losses: pd.DataFrame) -> Figure:
    """Draw the loss of tokens by how many tokens the model saw before them."""
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    for arm, rows in losses.groupby("arm", sort=False):
        axes.plot(rows["context_tokens"], rows["nll"], color=COLOURS[arm], marker="o", markersize=4, label=arm)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(title="Loss by context, on held-out documents")
    axes.set(xlabel="tokens seen before (from this many to twice as many)", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def reliability(scores: pd.DataFrame) -> pd.DataFrame:
    """Return mean confidence, accuracy and tokens of each confidence bin that has tokens."""
    tokens, confidence, hits = bins_of(scores).sum(0).T
    table = pd.DataFrame({"confidence": confidence / tokens, "accuracy": hits / tokens, "tokens": tokens.astype(int)})
    return table[tokens > 0]


def main() -> None:
    scores = {arm: read_scores(arm) for arm in ARMS}
    found = {arm: json.loads((METRICS / "evaluate" / f"{arm}.json").read_text())["document"] for arm in ARMS}
    in_words = json.loads((METRICS / "compare.json").read_text())["in_words"]
    results = pd.DataFrame(found).T[list(HEADLINES)].astype(float).rename_axis("arm")
    calibration = pd.concat({arm: reliability(table) for arm, table in scores.items()}, names=["arm"]).reset_index(
        "arm"
    )
    by_context = pd.concat({arm: positions(table) for arm, table in scores.items()}, names=["arm"]).reset_index("arm")
    results.to_csv(PLOTS / "results.csv")
    calibration.to_csv(PLOTS / "calibration.csv", index=False)
    by_context.to_csv(PLOTS / "loss_by_context.csv", index=False)
    draw_results(results, in_words).savefig(PLOTS / "eval_results.png", dpi=100)
    draw_calibration(calibration).savefig(PLOTS / "calibration.png", dpi=100)
    draw_loss_by_context(by_context).savefig(PLOTS / "loss_by_context.png", dpi=100)
    print(results.round(4).to_string())


if __name__ == "__main__":
    main()
