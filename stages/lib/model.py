"""The model: a base by name, quantised or not, with or without an adapter, in the precision its device has."""

import warnings
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from huggingface_hub.utils import enable_progress_bars
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from stages.lib.params import Mistake
from stages.lib.processes import local_rank
from stages.lib.quantization import Quantization
from stages.lib.source import fetch_model

ADAPTER = Path("models/adapter")

disable_progress_bar()  # of reading weights from a disk,
enable_progress_bars()  # but not of downloading them
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft asks for it


def device() -> torch.device:
    """Return the CUDA device of this process if there is one, else the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype() -> torch.dtype:
    """Return what the device multiplies in: bf16, fp16 before compute capability 8.0, fp32 on a CPU."""
    if device().type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def precision(quantization: Quantization) -> str:
    """Name the precision of weights and arithmetic on this machine, such as `nf4, computed in fp32 on cpu`."""
    compute = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[compute_dtype()]
    stored = {16: compute, 8: "int8", 4: quantization.kind}[quantization.bits]
    return f"{stored}, computed in {compute} on {device().type}"


def load_model(name: str, quantization: Quantization, adapter: Path | None = None) -> PreTrainedModel | PeftModel:
    """Load a base model, frozen and in evaluation mode.

    Args:
        name: A folder of models/base/.
        quantization: How its linear layers are stored; embeddings, norms and head are not quantised.
        adapter: Folder of a LoRA adapter to put on it.

    Raises:
        Mistake: Unknown name, weights that cannot be had, or 8 bit without a GPU.
    """
    if quantization.bits == 8 and device().type == "cpu":
        raise Mistake("params.yaml: quantization.bits: 8 needs a GPU; 4 and 16 run on a CPU too")
    model = load_weights(fetch_model(name, ["*.json", "*.safetensors"]), quantization)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    return model.requires_grad_(False).eval()


def load_weights(folder: Path, quantization: Quantization) -> PreTrainedModel:
    """Load a model from its folder.

    Where a CPU has AVX512-BF16, bitsandbytes would pack 4-bit weights for it in the first evaluation, and from then on
    multiply in bf16 and pass no gradients back. Ours stay as they are.

    Raises:
        Mistake: It holds no causal language model, or not all of it.
    """
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=compute_dtype(),
            device_map={"": device()},
            quantization_config=_bitsandbytes(quantization),
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise Mistake(f"{folder}: not a causal language model that transformers can load: {error}") from None
    if missing := sorted(loading["missing_keys"]):
        raise Mistake(f"{folder}: the weights lack {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}")
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def load_config(name: str) -> PretrainedConfig:
    """Read what a base model says of its shapes, without its weights.

    Raises:
        Mistake: Unknown name, or not a model that transformers knows.
    """
    folder = fetch_model(name, ["*.json"])
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise Mistake(f"{folder}: not a model that transformers can load: {error}") from None


def bos_eos(config: PretrainedConfig) -> tuple[int, int]:
    """Return the ids that begin and end a document; a model without BOS begins with its EOS."""
    bos, eos = config.bos_token_id, config.eos_token_id
    eos = eos[0] if isinstance(eos, list) else eos
    return (eos if bos is None else bos), eos


def context_tokens(config: PretrainedConfig) -> int:
    """Return the longest input the model was made for, in tokens."""
    return config.max_position_embeddings


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
