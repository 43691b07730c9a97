"""Quantisation: in how many bits the frozen base model is stored."""

import logging
from typing import Literal

from stages.lib.params import Section

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it recommends an optional CPU kernel


class Quantization(Section):
    """How the base model's linear layers are stored; arithmetic is done in the device's own precision."""

    bits: Literal[4, 8, 16]  # 16: not quantised (32 on a CPU)
    kind: Literal["nf4", "fp4"]  # the code of 4-bit weights
    double: bool  # quantise the scales of 4-bit blocks too: saves 0.4 bit a parameter


NEEDS_GPU = "params.yaml: quantization.bits: 8 needs a GPU; 4 and 16 run on a CPU too"
FULL = Quantization(bits=16, kind="nf4", double=False)
