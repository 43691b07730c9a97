"""Compilation: each decoder layer by torch.compile, and a whole training step as one CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# PyTorch's attention with no mask but its own causal one. While a stream is captured, transformers would write
# a mask out, and lose flash attention.
AttentionInterface.register("sdpa_causal", sdpa_attention_forward)

EAGER_STEPS = 3  # before the capture: they compile, tune and allocate, and are steps like any other


def compile_layers(model: PreTrainedModel, block_tokens: int, recompute: bool) -> bool:
    """Compile each decoder layer in place, for fixed shapes.

    Layer by layer costs seconds where the whole model costs a minute: equal layers share their code.

    Args:
        model: A decoder.
        block_tokens: Length of all inputs, which are never padded.
        recompute: Recompute activations in the backward pass, inside the compiled code.

    Returns:
        Whether a step can be captured as a CUDA graph: attention needs no mask, and no layer looks at its input
        to choose what to do, as 8-bit ones do.
    """
    window = getattr(model.config, "sliding_window", None) or block_tokens
    unmasked = model.config._attn_implementation in ("sdpa", "sdpa_causal") and block_tokens <= window
    if unmasked:
        model.set_attn_implementation("sdpa_causal")
    torch._functorch.config.activation_memory_budget = 0.01 if recompute else 1.0
    for layer in decoder_layers(model):
        layer.compile(dynamic=False)
    return unmasked and not getattr(model, "is_loaded_in_8bit", False)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the model's stack of layers, whatever its family calls it."""
    stacks = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next(stack for stack in stacks if len(stack) == model.config.num_hidden_layers)


class GraphedStep:
    """A forward and backward pass recorded once as a CUDA graph and then replayed: no Python, no launches.

    Gradients are added to those there are, which must stay where they are (`zero_grad(set_to_none=False)`),
    and all inputs must keep their shapes.
    """

    def __init__(self, work: Callable[..., Tensor]) -> None:
        self.work = work
        self.stream = torch.cuda.Stream()
        self.graph = torch.cuda.CUDAGraph()
        self.num_eager = 0
        self.inputs: dict[str, Tensor] = {}
        self.result: Tensor | None = None

    def __call__(self, **inputs: Tensor) -> Tensor:
        """Work on tensors of the shapes of the first call; return what `work` returns."""
        if self.num_eager < EAGER_STEPS:
            self.num_eager += 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                result = self.work(**inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return result
        if self.result is None:
            torch.cuda.empty_cache()
            self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.result = self.work(**self.inputs)
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)
        self.graph.replay()
        return self.result.clone()
