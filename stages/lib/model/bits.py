"""bitsandbytes, imported without the compiler of PyTorch, which takes longer to import than all else of it.

peft imports bitsandbytes too, so a stage imports this before peft: by loading.py, or by adapter.py in training.
"""

import torch

from stages.lib.model.patches import compiled_when_called, replaced

with replaced(torch, compile=compiled_when_called):
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Int8Params, Linear4bit, Params4bit

__all__ = ["Int8Params", "Linear4bit", "Params4bit", "dequantize_4bit"]
