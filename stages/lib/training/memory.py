"""Memory: what training will need of a GPU, told from shapes alone, and the largest micro-batch that fits.

Shapes: N tokens of a micro-batch.
"""

import math
import os
import time
from itertools import product
from typing import NamedTuple

import psutil
import torch
from accelerate.utils import gather_object
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, PretrainedConfig

from stages.lib.model.adapter import add_adapter
from stages.lib.model.compiled import attended_tokens, decoder_layers
from stages.lib.model.loading import base_of, device
from stages.lib.model.long_inputs import tiled_mlp
from stages.lib.model.quantization import Quantization
from stages.lib.params import Mistake
from stages.lib.training.examples import Blocks, Room, Rows
from stages.lib.training.loss import chunk_targets
from stages.lib.training.processes import num_processes
from stages.lib.training.recipe import LoraParams, SettledParams, TrainParams

GIB = 2**30
COMPUTE = 2  # bytes of a number in bf16 or fp16
MASTER = 4  # bytes of a number in fp32
WORKSPACE = GIB / 16  # of the libraries that multiply matrices
RESERVE = 0.35 * GIB  # that PyTorch's allocator holds beside what it has allocated, and a part of the activations
BUSY_TOKENS = 1024  # with fewer at once a GPU waits more than recomputing activations would take
BLOCK, SUPERBLOCK = 64, 256  # weights that share a 4-bit scale; scales that share a scale, where these are quantised
OFFLOADED = 17  # times the features between layers, that the backward pass of one layer has at once beside MLP tiles
COMPILED_PASSES = 3000  # of layers, forward and backward: so many win back the time that compilation takes,
COMPILED_WORK = 10**15  # or so many tokens times weights of linear layers
BF16_GAIN = 1.2  # times as fast as fp32, from which on it is worth another rounding
MOMENTS = {  # bytes of a trained weight's on the GPU; paged ones live elsewhere
    "adamw_torch_fused": 2 * MASTER,
    "adamw_8bit": 2,
    "paged_adamw_32bit": 0,
    "paged_adamw_8bit": 0,
}
SETTLED = tuple(SettledParams.__annotations__)  # names of the parameters that may be `auto`


class Shape(NamedTuple):
    """The sizes of a model and its adapter that memory depends on."""

    layers: int
    vocabulary: int
    hidden: int  # features between layers
    outputs: int  # features that the linear layers of one layer put out, all together
    attention: int  # features that attention puts out
    dropped: int  # features that the adapted linear layers of one layer take in, where dropout makes each its own copy
    widest: int  # weights of the largest linear layer
    linear: int  # weights of all layers' linear layers
    other: int  # weights of embeddings, norms, biases and head
    trained: int  # weights of the adapter
    tiled: bool  # whether the MLPs can work tile by tile
    attended: float  # tokens that the layer which sees fewest attends to


class Memory(NamedTuple):
    """Bytes of a GPU, by what they hold at the peak."""

    weights: float
    adapter: float
    optimizer: float  # and gradients
    activations: float  # kept for the backward pass
    work: float  # of the layer, or the chunk of logits, that needs most
    reserve: float  # what PyTorch's allocator holds beside it

    @property
    def peak(self) -> float:
        """Bytes allocated at the peak."""
        return sum(self) - self.reserve


def shape_of(config: PretrainedConfig, lora: LoraParams) -> Shape:
    """Measure a model without its weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = decoder_layers(model)
    linear = [module for module in layers.modules() if type(module).__name__ in ("Linear", "Conv1D")]
    text = config.get_text_config()
    heads, per_layer = text.num_attention_heads, len(linear) // len(layers)
    sizes = [module.get_parameter("weight").numel() for module in linear]
    outputs = sum(_features_out(module) for module in linear[:per_layer])
    with torch.device("meta"):
        tuned = add_adapter(model, lora.model_copy(update={"init": "default"}))
    trained, total = tuned.get_nb_trainable_parameters()
    first = decoder_layers(base_of(tuned))[0]
    adapted = [module.in_features or 0 for module in first.modules() if isinstance(module, LoraLayer)]
    return Shape(
        layers=len(layers),
        vocabulary=text.vocab_size,
        hidden=text.hidden_size,
        outputs=outputs,
        attention=heads * (text.to_dict().get("head_dim") or text.hidden_size // heads),
        dropped=sum(adapted) if lora.dropout else 0,
        widest=max(sizes),
        linear=sum(sizes),
        other=total - trained - sum(sizes),
        trained=trained,
        tiled=all(map(tiled_mlp, layers)),
        attended=attended_tokens(model),
    )


def estimate(shape: Shape, quantization: Quantization, params: SettledParams, room: Room) -> Memory:
    """Estimate the peak of training.

    What is stored is counted; what layers keep and work with was fitted to measurements.

    Args:
        params: With the recomputation that is asked about.
        room: Tokens and targets of the largest micro-batch.
    """
    tokens_N = room.tokens
    scales = 1 / BLOCK + MASTER / BLOCK / SUPERBLOCK if quantization.double else MASTER / BLOCK
    stored = {4: 1 / 2 + scales, 8: 1.0, 16: COMPUTE}[quantization.bits]
    moments = MOMENTS[params.optimizer]
    kept = shape.outputs + shape.attention + shape.dropped + 2 * shape.hidden  # features a layer keeps for backward
    if not params.compile:  # the activation function's result, and a byte for each feature that dropout keeps or drops
        kept += shape.outputs // 3 + shape.dropped // 2
    backward = kept + shape.outputs // 2  # features there are at once in the backward pass of one layer
    passed = shape.hidden if params.gradient_checkpointing else kept  # features that a layer leaves to it
    if params.activation_offloading:
        backward, passed = OFFLOADED * shape.hidden + (0 if shape.tiled else backward), 0
    scored = 2 * COMPUTE if params.compile else 2 * COMPUTE + MASTER  # bytes a logit, with its gradient
    logits = scored * shape.vocabulary * chunk_targets(room.targets, shape.vocabulary)
    activations = COMPUTE * tokens_N * shape.layers * passed
    return Memory(
        weights=stored * shape.linear + COMPUTE * shape.other,
        adapter=MASTER * shape.trained,
        optimizer=(MASTER + moments) * shape.trained,
        activations=activations,
        work=max(logits, COMPUTE * tokens_N * backward) + COMPUTE * shape.widest + WORKSPACE,
        reserve=RESERVE + 0.05 * activations,
    )


def settle(
    params: TrainParams,
    config: PretrainedConfig,
    quantization: Quantization,
    lora: LoraParams,
    examples: Blocks | Rows,
) -> SettledParams:
    """Replace each `auto` by what it comes to on this machine, and say so.

    On a GPU micro-batches are as large as its memory lets them be, and activations are recomputed only where
    keeping them would make micro-batches small (or where asked for).

    Raises:
        Mistake: Nothing allowed fits into the GPU's memory.
    """
    share, rest = divmod(params.batch_size, num_processes())
    sizes = [size for size in range(share, 0, -1) if share % size == 0 and params.micro_batch_size in ("auto", size)]
    if rest or not sizes:
        raise Mistake(
            f"params.yaml: train.batch_size: {params.batch_size} is no multiple of {num_processes()} processes"
            + (f" times micro_batch_size {params.micro_batch_size}" if params.micro_batch_size != "auto" else "")
        )
    on_gpu = device().type == "cuda"
    recomputes = [False, on_gpu] if params.gradient_checkpointing == "auto" else [params.gradient_checkpointing]
    bf16 = not on_gpu and params.bf16_on_cpu
    if bf16 == "auto":
        bf16 = all(gather_object([bf16_is_faster()]))
    shape, offloads = shape_of(config, lora) if on_gpu else None, [False]  # on a CPU there is nowhere to go
    passes, much = 0, False  # passes of layers, in each process, if it took its share of a batch at once
    if shape:
        passes = shape.layers * params.epochs * math.ceil(len(examples) / params.batch_size)
        much = params.epochs * examples.num_tokens * shape.linear >= COMPILED_WORK * num_processes()
        unmasked = params.compile is not False and examples.block_tokens <= shape.attended
        offloads = [False, unmasked] if params.activation_offloading == "auto" else [params.activation_offloading]
    plans = []
    for size, recompute, offload in product(sizes, recomputes, sorted({*offloads})):
        plan = {"micro_batch_size": size, "gradient_checkpointing": recompute, "activation_offloading": offload}
        gains = much or passes * (share // size) >= COMPILED_PASSES or offload
        plan |= {"bf16_on_cpu": bf16, "compile": gains if params.compile == "auto" else params.compile}
        if recompute or not offload:
            plans.append(SettledParams.model_validate(params.model_dump() | plan))
    settled = choose(plans, shape, quantization, examples) if shape else plans[0]
    print(", ".join(f"{name}: {getattr(settled, name)}" for name in SETTLED), f"processes: {num_processes()}", sep=", ")
    return settled


def choose(
    plans: list[SettledParams], shape: Shape, quantization: Quantization, examples: Blocks | Rows
) -> SettledParams:
    """Return the plan that is likely fastest of those that fit into the GPU's memory, and print its estimate.

    Raises:
        Mistake: None fits.
    """

    sizes = {plan.micro_batch_size: examples.largest(plan) for plan in plans}

    def expect(plan: SettledParams) -> Memory:
        return estimate(shape, quantization, plan, sizes[plan.micro_batch_size])

    def need(plan: SettledParams) -> float:
        return sum(expect(plan))

    def slowness(plan: SettledParams) -> tuple[bool, bool, int, bool]:
        idle = sizes[plan.micro_batch_size].tokens < BUSY_TOKENS
        recompute = plan.gradient_checkpointing
        return plan.activation_offloading, recompute or idle, -plan.micro_batch_size, recompute

    def held(plan: SettledParams) -> float:
        """Return the bytes that go to the CPU's memory: what enters each layer and its MLP, each in a power of two."""
        size = COMPUTE * sizes[plan.micro_batch_size].tokens * shape.hidden
        together = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of this machine
        return plan.activation_offloading * 2 * shape.layers * 2.0 ** math.ceil(math.log2(size)) * together

    budget = min(gather_object([free_bytes()]))  # all processes must come to the same plan
    room = min(gather_object([psutil.virtual_memory().available // 2]))
    if room < min(map(held, plans)):
        raise Mistake(
            f"params.yaml: train.activation_offloading: {min(map(held, plans)) / GIB:.1f} GiB would go to the CPU's "
            f"memory, of which {room / GIB:.1f} may be taken (half of what is free); try fewer train.block_tokens"
        )
    fitting = [plan for plan in sorted(plans, key=slowness) if need(plan) <= budget and held(plan) <= room]
    if not fitting:
        away = min((held(plan) / GIB for plan in plans if need(plan) <= budget), default=0.0)
        plan = min((plan for plan in plans if held(plan) <= room), key=need)
        message = too_large(plan, need(plan), budget, offloads=any(plan.activation_offloading for plan in plans))
        if away:
            message += (
                f". Offloading would need {away:.1f} GiB of CPU memory, and may take {room / GIB:.1f}, half of it"
            )
        raise Mistake(message)
    print(table(expect(fitting[0]), budget))
    return fitting[0]


def bf16_is_faster() -> bool:
    """Return whether the CPU multiplies matrices faster in bf16 than in fp32, by `BF16_GAIN` at least: it is tried.

    Its instructions do not tell: with AVX512-BF16 an EPYC is twice as fast, and a Xeon half as fast unless it has AMX.
    """
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    with torch.inference_mode():
        for dtype in [*seconds] * 6:  # in turn; the first of each warms up, and the fastest counts
            rows, weights = (torch.ones(size, 1024, dtype=dtype) for size in (256, 1024))
            start = time.perf_counter()
            torch.nn.functional.linear(rows, weights)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.float32] > BF16_GAIN * seconds[torch.bfloat16]


def free_bytes() -> int:
    """Return what this process may still take of its GPU."""
    free, total = torch.cuda.mem_get_info()
    return min(free, int(torch.cuda.get_per_process_memory_fraction() * total) - torch.cuda.memory_reserved())


def table(memory: Memory, budget: int) -> str:
    """Write an estimate as lines of GiB."""
    rows = [*memory._asdict().items(), ("needed", sum(memory)), ("free", budget)]
    return "GPU memory, in GiB (estimated)\n" + "\n".join(f"  {name:12}{size / GIB:7.2f}" for name, size in rows)


def too_large(plan: SettledParams, need: float, budget: int, offloads: bool) -> str:
    """Say that not even the smallest plan fits, and what to change.

    Args:
        offloads: Whether offloading was thought of.
    """
    ways = ["fewer train.block_tokens, a smaller model, or fewer quantization.bits"]
    if not plan.gradient_checkpointing:
        ways.insert(0, "train.gradient_checkpointing: auto")
    elif not offloads:
        ways.insert(0, "train.activation_offloading: auto")
    if plan.micro_batch_size > 1:
        ways.insert(0, "train.micro_batch_size: auto")
    return (
        f"params.yaml: train: {plan.micro_batch_size} blocks at once need {need / GIB:.1f} GiB of GPU memory, "
        f"{budget / GIB:.1f} are free; try {', '.join(ways)}"
    )


def _features_out(module: torch.nn.Module) -> int:
    """Return the features that a linear layer puts out; GPT-2's weights are transposed."""
    return module.get_parameter("weight").shape[1 if type(module).__name__ == "Conv1D" else 0]
