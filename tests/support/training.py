"""Short training runs: their parameters, and what they log."""

from dataclasses import replace

import numpy as np
from conftest import document
from dvclive import Live
from torch import nn

from stages.lib.params import read_params
from stages.lib.training.examples import Rows
from stages.lib.training.recipe import Recipe, TrainParams

PARAMS = read_params(Recipe)
SETTLED = {  # what may be `auto` in params.yaml
    "micro_batch_size": 2,
    "gradient_checkpointing": False,
    "activation_offloading": False,
    "compile": False,
    "bf16_on_cpu": False,
}


class Silent(Live):
    """Keeps what is logged in memory."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}
        self.summary = {}

    def log_metric(self, name, val, **kwargs) -> None:
        self.points.setdefault(name, []).append((self._step, val))

    step = property(lambda self: self._step, lambda self, value: setattr(self, "_step", value))


def conversations() -> Rows:
    """23 rows of 11 to 50 tokens, the second halves of which are targets."""
    lengths = np.random.default_rng(0).integers(10, 50, 23)
    documents = [document(str(number % 5), int(length)) for number, length in enumerate(lengths)]
    return Rows(replace(one, targets=np.arange(len(one.tokens)) > len(one.tokens) // 2) for one in documents)


def undropped(model: nn.Module) -> nn.Module:
    """Switch off the dropout that a model was pretrained with."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


def settled(**changes) -> TrainParams:
    return PARAMS.train.model_copy(
        update={"learning_rate": 0.02, "epochs": 8, "evaluations": 6, "batch_size": 2} | SETTLED | changes,
    )
