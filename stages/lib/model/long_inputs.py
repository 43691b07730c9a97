"""Long inputs: what layers keep for the backward pass lies in the CPU's memory, and MLPs work tile by tile.

What is left on the GPU at once is the attention of one layer, whose memory grows with the length and no faster.

Shapes: B sequences, T positions, D features.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from stages.lib.model.compiled import decoder_layers
from stages.lib.model.patches import replaced

TILE_TOKENS = 4096  # that an MLP works on at once: enough to keep a GPU busy


@contextmanager
def activations_offloaded(model: PreTrainedModel, tokens: int) -> Iterator[None]:
    """Train on long inputs in little memory for a while: the same numbers, and copies that take time.

    Args:
        model: A decoder whose layers are compiled, and recompute activations; they may be quantised and adapted.
        tokens: Of a micro-batch. What is at least half as large as what passes between layers goes to the CPU.
    """
    least = tokens * model.config.get_text_config().hidden_size * model.dtype.itemsize // 2
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        storage = tensor.untyped_storage()  # of which a tile is a part
        if storage.nbytes() < least or storage.data_ptr() in weights:
            return tensor
        away = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return tensor.device, away.copy_(tensor, non_blocking=True)

    def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed[1].to(packed[0], non_blocking=True)

    with ExitStack() as patches:
        for layer in decoder_layers(model):
            if mlp := tiled_mlp(layer):
                patches.enter_context(replaced(mlp, forward=partial(in_tiles, mlp.forward)))
        patches.enter_context(saved_tensors_hooks(pack, unpack))
        yield


def tiled_mlp(layer: nn.Module) -> nn.Module | None:
    """Return a decoder layer's MLP if it can work tile by tile."""
    mlp = getattr(layer, "mlp", None)
    return mlp if isinstance(mlp, nn.Module) and works_on_each_token(mlp) else None


def works_on_each_token(mlp: nn.Module) -> bool:
    """Return whether an MLP takes and returns one tensor, and has no experts that tokens are dealt out to."""
    given = inspect.signature(mlp.forward).parameters.values()
    dealt = ("moe", "expert", "router")
    kinds = [type(part) for part in mlp.modules()]
    return sum(one.default is one.empty for one in given) == 1 and not any(
        issubclass(kind, nn.ModuleList) or any(word in kind.__name__.lower() for word in dealt) for kind in kinds
    )


@torch.compiler.disable
def in_tiles(forward: Callable[[Tensor], Tensor], hidden_BTD: Tensor) -> Tensor:
    """Do what an MLP does, on some tokens at a time, and again in the backward pass: [B, T, D]."""
    tiles = hidden_BTD.split(TILE_TOKENS, dim=1)
    if not torch.is_grad_enabled():
        return torch.cat([forward(tile) for tile in tiles], dim=1)
    inputs = (tile if tile.requires_grad else tile.detach().requires_grad_() for tile in tiles)  # else nothing learns
    return torch.cat([checkpoint(forward, tile, use_reentrant=True) for tile in inputs], dim=1)
