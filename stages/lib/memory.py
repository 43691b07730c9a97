"""Memory: what training will need of a GPU, told from shapes alone, and the largest micro-batch that fits.

Shapes: N tokens of a micro-batch.
"""

from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from stages.lib.adapter import add_adapter
from stages.lib.compiled import decoder_layers
from stages.lib.loss import chunk_targets
from stages.lib.model import device
from stages.lib.params import Mistake
from stages.lib.processes import num_processes
from stages.lib.quantization import Quantization
from stages.lib.recipe import LoraParams, TrainParams

GIB = 2**30
COMPUTE = 2  # bytes of a number in bf16 or fp16
MASTER = 4  # bytes of a number in fp32
BUSY_TOKENS = 1024  # with fewer at once a GPU waits more than recomputing activations would take
BLOCK, SUPERBLOCK = 64, 256  # weights that share a 4-bit scale; scales that share a scale, where these are quantised


SETTLED = ("micro_batch_size", "gradient_checkpointing", "compile")  # parameters that may be `auto`


class Shape(NamedTuple):
    """The sizes of a model and its adapter that memory depends on."""

    layers: int
    vocabulary: int
    hidden: int  # features between layers
    outputs: int  # features that the linear layers of one layer put out, all together
    attention: int  # features that attention puts out
    adapted: int  # features that the adapted linear layers of one layer take in, all together
    widest: int  # weights of the largest linear layer
    linear: int  # weights of all layers' linear layers
    other: int  # weights of embeddings, norms, biases and head
    trained: int  # weights of the adapter


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
        tuned = add_adapter(model, lora.model_copy(update={"init": "default"}))
    layer = decoder_layers(model)[0]
    adapters = [module for module in layer.modules() if hasattr(module, "lora_A")]
    frozen = [module for name, module in layer.named_modules() if _is_linear(module) and "lora_" not in name]
    linear = sum(
        module.weight.numel()
        for name, module in decoder_layers(model).named_modules()
        if _is_linear(module) and "lora_" not in name
    )
    trained, total = tuned.get_nb_trainable_parameters()
    return Shape(
        layers=len(decoder_layers(model)),
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        outputs=sum(_sizes(module)[1] for module in frozen),
        attention=config.num_attention_heads
        * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
        adapted=sum(module.in_features for module in adapters),
        widest=max(module.weight.numel() for module in frozen),
        linear=linear,
        other=total - trained - linear,
        trained=trained,
    )


def estimate(
    shape: Shape,
    quantization: Quantization,
    params: TrainParams,
    micro_batch_size: int,
    block_tokens: int,
    recompute: bool,
) -> Memory:
    """Estimate the peak of a training run with compiled layers.

    The sums are exact for what is stored; what compiled layers keep and need was fitted to measurements.
    """
    tokens_N = micro_batch_size * block_tokens
    scales = 1 / BLOCK + MASTER / BLOCK / SUPERBLOCK if quantization.double else MASTER / BLOCK
    stored = {4: 1 / 2 + scales, 8: 1.0, 16: COMPUTE}[quantization.bits]
    moments = {"adamw_torch_fused": 2 * MASTER, "adamw_8bit": 2}.get(params.optimizer, 0)  # paged ones live elsewhere
    kept = shape.outputs + shape.attention + shape.adapted + 2 * shape.hidden  # features a layer keeps for backward
    backward = kept + shape.outputs
    logits = 2 * COMPUTE * shape.vocabulary * chunk_targets(tokens_N, shape.vocabulary)
    return Memory(
        weights=stored * shape.linear + COMPUTE * shape.other,
        adapter=MASTER * shape.trained,
        optimizer=(MASTER + moments) * shape.trained,
        activations=COMPUTE * tokens_N * shape.layers * (shape.hidden if recompute else kept),
        work=max(logits, COMPUTE * tokens_N * backward + COMPUTE * shape.widest),
        reserve=0.4 * GIB,
    )


def settle(
    params: TrainParams, config: PretrainedConfig, quantization: Quantization, lora: LoraParams, block_tokens: int
) -> TrainParams:
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
    compiled = on_gpu if params.compile == "auto" else params.compile
    settled = params.model_copy(
        update={
            "compile": compiled,
            "micro_batch_size": sizes[0],
            "gradient_checkpointing": params.gradient_checkpointing is True,
        }
    )
    if on_gpu:
        shape = shape_of(config, lora)
        recomputes = [False, True] if params.gradient_checkpointing == "auto" else [params.gradient_checkpointing]
        plans = [
            (size, recompute, estimate(shape, quantization, params, size, block_tokens, recompute))
            for size in sizes
            for recompute in recomputes
        ]
        budget = free_bytes()
        plans.sort(key=lambda plan: (plan[1] or plan[0] * block_tokens < BUSY_TOKENS, -plan[0], plan[1]))
        fitting = [plan for plan in plans if sum(plan[2]) <= budget]
        if not fitting:
            raise Mistake(too_large(min(plans, key=lambda plan: sum(plan[2])), budget))
        size, recompute, memory = fitting[0]
        print(table(memory, budget))
        settled = settled.model_copy(update={"micro_batch_size": size, "gradient_checkpointing": recompute})
    print(", ".join(f"{name}: {getattr(settled, name)}" for name in SETTLED))
    return settled


def free_bytes() -> int:
    """Return what this process may still take of its GPU."""
    free, total = torch.cuda.mem_get_info()
    return min(free, int(torch.cuda.get_per_process_memory_fraction() * total) - torch.cuda.memory_reserved())


def table(memory: Memory, budget: int) -> str:
    """Write an estimate as lines of GiB."""
    rows = [*memory._asdict().items(), ("needed", sum(memory)), ("free", budget)]
    return "GPU memory, in GiB (estimated)\n" + "\n".join(f"  {name:12}{size / GIB:7.2f}" for name, size in rows)


def too_large(plan: tuple[int, bool, Memory], budget: int) -> str:
    size, recompute, memory = plan
    ways = ["a smaller train.block_tokens or model"]
    if memory.weights > memory.peak / 2:
        ways.insert(0, "quantization.bits: 4")
    if not recompute:
        ways.insert(0, "train.gradient_checkpointing: auto")
    if size > 1:
        ways.insert(0, "train.micro_batch_size: auto")
    return (
        f"params.yaml: train: needs {sum(memory) / GIB:.1f} GiB of GPU memory, {budget / GIB:.1f} are free, "
        f"with {size} blocks at once; try {', '.join(ways)}"
    )


def _is_linear(module: torch.nn.Module) -> bool:
    return type(module).__name__ in ("Linear", "Conv1D")


def _sizes(module: torch.nn.Module) -> tuple[int, int]:
    """Return (features in, features out) of a linear layer; GPT-2's are transposed."""
    first, second = module.weight.shape
    return (first, second) if type(module).__name__ == "Conv1D" else (second, first)
