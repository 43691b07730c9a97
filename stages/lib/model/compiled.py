"""Speed: each decoder layer compiled by PyTorch, and a training step or a generated token as one CUDA graph."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AttentionInterface, PreTrainedModel, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import CausalLMOutputWithPast

from stages.lib.model.patches import replaced

# PyTorch's attention with no mask but its own causal one. While a stream is captured, transformers would write
# a mask out, and lose flash attention.
AttentionInterface.register("sdpa_causal", sdpa_attention_forward)

WINDOWS = ("sliding_window", "attention_window_size", "attention_chunk_size")  # as configs call them
Shapes = tuple[torch.Size, ...]
EAGER_STEPS = 3  # before the capture: they compile, tune and allocate, and are steps like any other


@contextmanager
def unmasked(model: PreTrainedModel, block_tokens: int) -> Iterator[bool]:
    """Let a decoder attend to all that came before, without a mask in memory, for a while.

    Args:
        model: A decoder.
        block_tokens: Length of all inputs, which are never padded.

    Yields:
        Whether it does; it cannot where its attention sees less.
    """
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "sdpa_causal") or block_tokens > attended_tokens(model):
        yield False
        return
    model.set_attn_implementation("sdpa_causal")
    try:
        yield True
    finally:
        model.set_attn_implementation(attention)


@contextmanager
def compiled_layers(
    model: PreTrainedModel, recompute: bool, dynamic: bool = False, alike: bool = True
) -> Iterator[None]:
    """Compile each decoder layer, and the norm after the last, for a while.

    Layer by layer costs seconds where the whole model costs a minute: equal layers share their code.

    Args:
        model: A decoder.
        recompute: Recompute activations in the backward pass, inside the compiled code.
        dynamic: Compile for inputs of any length.
        alike: Let what enters the first layer have a gradient, as with all others: one code then serves them all. It
            stays on the GPU until the backward pass.
    """
    from torch._functorch import config as functorch  # a part of the compiler, which only this needs

    norms = (module for module in model.get_decoder().children() if "norm" in type(module).__name__.lower())
    with ExitStack() as patches:
        patches.callback(setattr, functorch, "activation_memory_budget", functorch.activation_memory_budget)
        functorch.activation_memory_budget = 0.01 if recompute else 1.0
        for module in (*decoder_layers(model), *norms):
            compiled = compiled_layer(module._call_impl, dynamic, alike)
            patches.enter_context(replaced(module, _compiled_call_impl=compiled))
        yield


def compiled_layer(function: Callable, dynamic: bool, alike: bool) -> Callable:
    """Compile a layer when it is first called.

    With `dynamic` the second dimension of all that it is given, the length, is left open. With `torch.compile`'s own
    `dynamic=True` the sizes of weights would be too, and compiling take four times as long.
    """
    from torch._dynamo import maybe_mark_dynamic

    compiled = torch.compile(function, dynamic=None if dynamic else False)

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((given, named)) if isinstance(leaf, Tensor)]
        states = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        if alike and states is not None and torch.is_grad_enabled():
            states.requires_grad_()
        for tensor in tensors if dynamic else []:
            if tensor.ndim > 1:
                maybe_mark_dynamic(tensor, 1)
        return compiled(*given, **named)

    return call


def waits_for_values(model: PreTrainedModel) -> bool:
    """Return whether a forward pass looks at numbers on the GPU to choose what to do, which no CUDA graph can record.

    8-bit layers do, and positions whose scale follows the length (`rope_type: dynamic` or `longrope`).
    """
    kinds = [getattr(module, "rope_type", None) for module in model.modules()]
    scales = {scale for kind in kinds for scale in (kind.values() if isinstance(kind, dict) else [kind])}  # by layer
    return getattr(model, "is_loaded_in_8bit", False) or bool({"dynamic", "longrope"} & scales)


def attended_tokens(model: PreTrainedModel) -> float:
    """Return how many tokens the layer that sees fewest attends to: all, or those of a window or chunk."""
    text = model.config.get_text_config()
    return min(filter(None, (getattr(text, name, None) for name in WINDOWS)), default=math.inf)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the model's stack of layers, whatever its family calls it."""
    stacks = (module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList))
    return next(stack for stack in stacks if len(stack) == model.config.get_text_config().num_hidden_layers)


class GraphedStep:
    """Work recorded once for each shape of its inputs, as a CUDA graph, and then replayed: no Python, no launches.

    What is changed in place must stay where it is: gradients (`zero_grad(set_to_none=False)`), a cache. The graphs
    share their memory: what one of them leaves there is copied before another runs.
    """

    def __init__(self, work: Callable[..., Tensor]) -> None:
        self.work = work
        self.stream = torch.cuda.Stream()
        self.memory = torch.cuda.graph_pool_handle()
        self.num_eager: Counter[Shapes] = Counter()
        self.recorded: dict[Shapes, tuple[torch.cuda.CUDAGraph, dict[str, object], Tensor]] = {}

    def __call__(self, **inputs: object) -> Tensor:
        """Work on tensors, and else the same inputs at each call; return what `work` returns."""
        shapes = tuple(leaf.shape for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
        if self.num_eager[shapes] < EAGER_STEPS:
            self.num_eager[shapes] += 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                result = self.work(**inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return result
        if shapes not in self.recorded:
            torch.cuda.empty_cache()
            graph, kept = torch.cuda.CUDAGraph(), tree_map_only(Tensor, torch.clone, inputs)
            with torch.cuda.graph(graph, self.memory, self.stream, capture_error_mode="thread_local"):
                result = self.work(**kept)
            self.recorded[shapes] = graph, kept, result
        graph, kept, result = self.recorded[shapes]
        for mine, given in zip(tree_leaves(kept), tree_leaves(inputs), strict=True):
            if isinstance(given, Tensor):
                mine.copy_(given)
        graph.replay()
        return result.clone()


@contextmanager
def graphed_decoding(model: PreTrainedModel, max_tokens: int) -> Iterator[StaticCache | None]:
    """Yield a cache for one call of `model.generate`; with it all tokens but the first few replay one CUDA graph.

    The graph is of the model's own kernels: nothing is compiled. Yield None, and generate as ever, on a CPU and where
    a pass cannot be recorded: where attention slides or a layer has another state than keys and values too.

    Args:
        model: A decoder, without an adapter's wrapper; its own layers may be adapted.
        max_tokens: The longest prompt and what is generated after it.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    limited = attended_tokens(model) < math.inf
    if model.device.type != "cuda" or kinds != {"full_attention"} or limited or waits_for_values(model):
        yield None
        return
    cache = StaticCache(model.config, max_cache_len=max_tokens)
    forward = model.forward
    step = GraphedStep(lambda **inputs: forward(**inputs).logits)

    @functools.wraps(forward)  # generate looks at its signature
    def replayed(**inputs: Any) -> CausalLMOutputWithPast:
        if inputs["input_ids"].shape[1] > 1:  # the prompts
            return forward(**inputs)
        return CausalLMOutputWithPast(logits=step(**inputs), past_key_values=cache)

    with replaced(model, forward=replayed):
        yield cache
