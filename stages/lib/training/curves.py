"""Curves: the losses of a training run over its optimizer steps, tracked by DVCLive, tabulated and drawn."""

from pathlib import Path

import pandas as pd
from dvclive import Live
from matplotlib.figure import Figure
from transformers import TrainerCallback

from stages.lib.metrics import METRICS, write_metrics

CURVES = Path("plots/train")
LOSSES, PICTURE = Path("plots/training_loss.csv"), Path("plots/training_loss.png")
LOGGED = {
    "loss": "train/loss",
    "eval_loss": "validation/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
}
TEXTS = {"train/loss": "training", "validation/loss": "validation"}  # of which each loss is


class Curves(Live):
    """DVCLive, writing where the pipeline keeps things and leaving dvc.yaml alone.

    The losses stand in one table too, which grows as training goes on: plots of them need no other file.
    """

    metrics_file = property(lambda _: str(METRICS / "train.json"))
    plots_dir = property(lambda _: str(CURVES))

    def __init__(self) -> None:
        super().__init__(str(CURVES), save_dvc_exp=False, dvcyaml=None)
        self.losses = pd.DataFrame(columns=["step", "text", "loss"])
        self.losses.to_csv(LOSSES, index=False)

    def log_metric(self, name: str, val: float, **kwargs) -> None:
        super().log_metric(name, val, **kwargs)
        if text := TEXTS.get(name):
            self.losses.loc[len(self.losses)] = self.step, text, val
            self.losses.to_csv(LOSSES, index=False)

    def make_summary(self) -> None:
        write_metrics("train", self.summary | {"step": self.step})


class CurveCallback(TrainerCallback):
    """Log the Trainer's losses at its own optimizer steps, so that all curves share one axis.

    The last point of the validation loss becomes a metric; those of single batches are only curves.
    What a resumed run did before is logged again, and nothing twice.
    """

    def __init__(self, live: Live) -> None:
        self.live = live
        self.logged: set[tuple[str, int]] = set()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        for entry in state.log_history:
            self._log(int(entry["step"]), entry)

    def on_log(self, args, state, control, logs: dict[str, float], **kwargs) -> None:
        self._log(state.global_step, logs)

    def _log(self, step: int, logs: dict[str, float]) -> None:
        self.live.step = step
        for key, name in LOGGED.items():
            if key in logs and (name, step) not in self.logged:
                self.logged.add((name, step))
                self.live.log_metric(name, logs[key])
        self.live.summary = {name: value for name, value in self.live.summary.items() if name == "validation"}


def draw_losses(log: list[dict]) -> Figure:
    """Draw training and validation loss over optimizer steps."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for key, color in (("loss", "#99999980"), ("eval_loss", "#d55e00")):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            marker = "o" if key == "eval_loss" else None
            axes.plot(*zip(*points), color=color, marker=marker, label=TEXTS[LOGGED[key]])
    axes.set(title="Loss of the adapter in training", xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
