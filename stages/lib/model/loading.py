"""The model: a base by name, quantised or not, with or without an adapter, in the precision its device has."""

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import psutil
import torch
from huggingface_hub.utils import enable_progress_bars
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from stages.lib.model.bits import Int8Params, Linear4bit, Params4bit, dequantize_4bit
from stages.lib.model.logits import outside_decoder, vouch
from stages.lib.model.patches import replaced
from stages.lib.model.quantization import NEEDS_GPU, Quantization
from stages.lib.params import Mistake
from stages.lib.sources.gguf import stored_as
from stages.lib.sources.source import fetch_model
from stages.lib.training.processes import local_rank

if TYPE_CHECKING:
    from peft import PeftModel

Model: TypeAlias = "PreTrainedModel | PeftModel"  # a base model, perhaps with an adapter
ADAPTER = Path("models/adapter")
UNLIMITED = 2**31  # tokens
SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
CONSTANT = re.compile(r"(attn|attention)\.(masked_)?bias$|inv_freq$|causal_mask$")  # which old files keep with weights

set_verbosity_error()  # what matters of transformers' remarks, such as weights that are missing, is refused here
disable_progress_bar()  # of reading weights from a disk,
enable_progress_bars()  # but not of downloading them
for remark in (
    "`is_gradient_checkpointing` is deprecated",  # peft asks for it
    r"\s*Online softmax is disabled",  # where compiled code is sooner without it
    "Attempting to run cuBLAS, but there was no current CUDA context",  # in the first backward pass, which makes one
):
    warnings.filterwarnings("ignore", remark)


def device() -> torch.device:
    """Return the CUDA device of this process if there is one, else the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype() -> torch.dtype:
    """Return what the device multiplies in: bf16, fp16 before compute capability 8.0, fp32 on a CPU."""
    if device().type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def load_model(name: str, quantization: Quantization, adapter: Path | None = None) -> Model:
    """Load a base model, frozen and in evaluation mode, whose losses are vouched for.

    Args:
        name: A folder of models/base/.
        quantization: How its linear layers are stored; embeddings, norms and head are not quantised.
        adapter: Folder of a LoRA adapter to put on it.

    Raises:
        Mistake: Unknown name, weights that cannot be had or scored, or 8 bit without a GPU.
    """
    if quantization.bits == 8 and device().type == "cpu":
        raise Mistake(NEEDS_GPU)
    model = load_weights(fetch_model(name, ["*.json", "*.safetensors"]), quantization)
    if adapter:
        from peft import PeftModel  # takes a second, and only adapters need it

        base, model = model, PeftModel.from_pretrained(model, adapter)
        vouch(base.eval())
    return model.requires_grad_(False).eval()


def load_weights(folder: Path, quantization: Quantization) -> PreTrainedModel:
    """Load a model from its folder, in evaluation mode, and vouch for its losses.

    Where a CPU has AVX512-BF16, bitsandbytes would pack 4-bit weights for it in the first evaluation, and from then on
    multiply in bf16 and pass no gradients back. Ours stay as they are.

    Raises:
        Mistake: It holds no causal language model, not all of it, or more; or nothing that can be quantised.
    """
    model = read_weights(
        folder,
        dtype=compute_dtype(),
        device_map={"": device()},
        quantization_config=_bitsandbytes(quantization),
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    if quantization.bits < 16 and not quantized_fraction(model):
        raise Mistake(
            f"{folder}: bitsandbytes can store none of the layers of a {type(model).__name__} in {quantization.bits} "
            "bit; set quantization.bits to 16, or take another model"
        )
    vouch(model.eval())
    return model


def read_weights(folder: Path, **options: Any) -> PreTrainedModel:
    """Let transformers load a causal language model from its folder alone: all that is there, and nothing else.

    Args:
        options: Of `from_pretrained`.

    Raises:
        Mistake: The folder holds something else, too little or too much.
    """
    if (folder / "adapter_config.json").exists():
        raise Mistake(f"{folder}/adapter_config.json: an adapter lies in a base model's folder; take it out of there")
    config = read_config(folder)
    if getattr(config, "is_encoder_decoder", False):
        raise Mistake(f"{folder}: not a decoder but an encoder and a decoder ({config.model_type})")
    if getattr(config, "quantization_config", None):
        raise Mistake(
            f"{folder}: its weights are stored quantised, so that no 16-bit model is there to compare with; "
            "take the model that they were made from"
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(  # with loading info a pair, which it does not declare
            folder, trust_remote_code=False, local_files_only=True, output_loading_info=True, **options
        )
    except torch.OutOfMemoryError:
        raise
    except (ImportError, OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise Mistake(f"{folder}: not a causal language model that transformers can load: {reason}") from None
    model, loading = loaded
    if missing := loading["missing_keys"]:
        raise Mistake(f"{folder}: the weights lack {some_of(missing)}")
    unused = [name for name in loading["unexpected_keys"] if not CONSTANT.search(name)]
    beside = outside_decoder(model, unused)
    if surplus := sorted(set(unused) - set(beside)):
        raise Mistake(
            f"{folder}: config.json describes a model without {some_of(surplus)}, which the weights have: "
            "the two do not belong together"
        )
    if beside:
        print(f"{folder}: not used, for no text passes there: {some_of(beside)}")
    # Whatever generation_config.json says of how to choose tokens is not asked for: params.yaml says it all.
    ids = {name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    return model


@contextmanager
def unpacked_weights(model: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Let a CPU multiply by 4-bit weights that are unpacked once, not at each use.

    It holds a copy of the weights in `dtype` for a while. Where a CPU has less than twice that memory left, and on a
    GPU, nothing changes.

    Args:
        dtype: In fp32 the numbers stay the same; bf16 is for training, under autocast, and what is scored meanwhile
            multiplies by the packed weights in fp32.
    """
    layers = (part for part in model.modules() if isinstance(part, Linear4bit) and part.weight.device.type == "cpu")
    packed = [layer for layer in layers if "forward" not in vars(layer)]  # not unpacked already
    needed = sum(dtype.itemsize * layer.in_features * layer.out_features for layer in packed)
    with ExitStack() as patches:
        for layer in packed if 2 * needed < psutil.virtual_memory().available else []:
            weight = dequantize_4bit(layer.weight.data, getattr(layer.weight, "quant_state"))  # noqa: B009  # of Params4bit
            multiply = partial(linear, weight=weight.to(dtype), bias=layer.bias)
            if dtype != torch.float32:
                multiply = partial(_under_autocast, multiply, layer.forward)
            patches.enter_context(replaced(layer, forward=multiply))
        yield


def _under_autocast(multiply: Callable[[Tensor], Tensor], forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return (multiply if torch.is_autocast_enabled("cpu") else forward)(x)


def base_of(model: Model) -> PreTrainedModel:
    """Return the causal language model inside an adapter's wrapper, its layers still adapted; or the model itself."""
    base = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


def some_of(names: Iterable[str]) -> str:
    """Write the first few of many names."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def quantized_fraction(model: nn.Module) -> float:
    """Return the share of a model's own weights, an adapter's not counted, that bitsandbytes stores in 4 or 8 bit."""
    quantized = total = 0
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        state = getattr(weight, "quant_state", None)
        number = math.prod(state.shape) if state else weight.numel()
        total += number
        quantized += number if isinstance(weight, Params4bit | Int8Params) else 0
    return quantized / total


def precision(model: Model, quantization: Quantization, multiplied: torch.dtype | None = None) -> str:
    """Name the precision of weights and arithmetic, such as `nf4 (81 % of the weights), computed in fp32 on cpu`.

    Args:
        multiplied: What matrices are multiplied in, if not in `compute_dtype`.
    """
    stored = {16: SHORT[compute_dtype()], 8: "int8", 4: quantization.kind}[quantization.bits]
    share = f" ({quantized_fraction(model):.0%} of the weights)" if quantization.bits < 16 else ""
    before = stored_as(Path(str(model.config.name_or_path)))
    origin = f", weights dequantised from {before}" if before else ""
    return f"{stored}{share}{origin}, computed in {arithmetic(multiplied)}"


def arithmetic(multiplied: torch.dtype | None = None) -> str:
    """Name what this machine computes in, such as `fp32 on cpu`; `stages.lib.arithmetic` finds it in a precision."""
    return f"{SHORT[multiplied or compute_dtype()]} on {device().type}"


def load_config(name: str) -> PretrainedConfig:
    """Read what a base model says of its shapes, without its weights.

    Raises:
        Mistake: Unknown name, or not a model that transformers knows.
    """
    return read_config(fetch_model(name, ["*.json"]))


def read_config(folder: Path) -> PretrainedConfig:
    """Read the config.json of a model's folder.

    Raises:
        Mistake: Not a model that transformers knows without running code that came with it.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Mistake(f"{folder}: not a model that transformers can load: {reason}") from None


def end_ids(config: PretrainedConfig, generation: GenerationConfig | None = None) -> list[int]:
    """Return the ids that end a text, the model's EOS first; none where it has none.

    Args:
        config: Says one, several or none; what lies beyond the vocabulary is no token.
        generation: Of the same model, which may say more.
    """
    text = config.get_text_config()
    told = [text.eos_token_id, generation.eos_token_id if generation else None]
    ids = [id for one in told if one is not None for id in (one if isinstance(one, list) else [one])]
    return [id for id in dict.fromkeys(ids) if 0 <= id < text.vocab_size]


def context_tokens(config: PretrainedConfig) -> int:
    """Return the longest input the model was made for, in tokens; a large number where nothing limits it."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None) or UNLIMITED


def _bitsandbytes(quantization: Quantization) -> BitsAndBytesConfig | None:
    if quantization.bits == 16:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=quantization.bits == 4,
        load_in_8bit=quantization.bits == 8,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_use_double_quant=quantization.double,
        bnb_4bit_compute_dtype=compute_dtype(),
    )
