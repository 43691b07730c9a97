"""Dequantised: 4-bit weights kept as the numbers they stand for. A CPU would compute these anew for every token."""

import math
from functools import partial

import psutil
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn
from torch.nn.functional import linear

from stages.lib.model.loading import compute_dtype


def keep_dequantized(model: nn.Module) -> None:
    """Let a model on a CPU say the same in less time, if half of the free memory is enough for it."""
    layers = [part for part in model.modules() if isinstance(part, Linear4bit) and part.weight.device.type == "cpu"]
    size = sum(math.prod(layer.weight.quant_state.shape) for layer in layers) * compute_dtype().itemsize
    if size < psutil.virtual_memory().available / 2:
        for layer in layers:
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(compute_dtype())
            layer.forward = partial(linear, weight=weight, bias=layer.bias)
