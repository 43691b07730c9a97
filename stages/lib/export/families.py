"""Families: what a GGUF file says of an architecture, and how it lays out its tensors.

The names of tensors are the `gguf` package's. What differs between transformers and llama.cpp besides: Llama's halves
of a rotation are interleaved, and Gemma's norms are stored as what they multiply by, not as its distance from 1.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PretrainedConfig

from stages.lib.params import Mistake

ARCHITECTURES = {  # by `model_type`, as llama.cpp calls them
    "llama": "llama",  # SmolLM and SmolLM2 too
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
ACTIVATIONS = {"gemma": "gelu_pytorch_tanh", "gemma2": "gelu_pytorch_tanh", "gemma3": "gelu_pytorch_tanh"}  # else silu
WINDOWED = {"gemma2": 2, "gemma3": 6}  # that llama.cpp runs with sliding windows: every so many-th layer has none


def architecture(config: PretrainedConfig, folder: Path) -> str:
    """Return what llama.cpp calls a model's architecture.

    Raises:
        Mistake: GGUF files of it cannot be written, or llama.cpp would compute something else with them.
    """
    if (arch := ARCHITECTURES.get(config.model_type)) is None:
        raise Mistake(
            f"{folder}: no GGUF of the family {config.model_type} can be written, only of {', '.join(ARCHITECTURES)}; "
            "the merged model in models/release/ can be used all the same"
        )
    wrong = []
    used = getattr(config, "hidden_activation", None) or config.hidden_act
    if used != (known := ACTIVATIONS.get(arch, "silu")):
        wrong.append(f"activation {used} (llama.cpp has {known})")
    if (kind := rope_of(config)["rope_type"]) not in ("default", "linear", *_ROPES.get(arch, ())):
        wrong.append(f"rotation {kind}")
    widths = (config.hidden_size / config.num_attention_heads, head_width(config))
    if getattr(config, "query_pre_attn_scalar", widths[1]) not in widths:
        wrong.append(f"query_pre_attn_scalar {config.query_pre_attn_scalar} (llama.cpp takes a head's width)")
    if arch in WINDOWED and [kind == "full_attention" for kind in config.layer_types] != [
        (layer + 1) % WINDOWED[arch] == 0 for layer in range(config.num_hidden_layers)
    ]:
        wrong.append(f"a full attention that is not in every {WINDOWED[arch]}th layer")
    if wrong:
        raise Mistake(f"{folder}: no GGUF of this {config.model_type} can be written: {'; '.join(wrong)}")
    return arch


_ROPES = {"llama": ("llama3",), "phi3": ("longrope",)}


def rope_of(config: PretrainedConfig, layers: str = "full_attention") -> dict[str, Any]:
    """Return how positions are rotated, in these layers where layers differ."""
    found: dict[str, Any] = config.rope_parameters
    return found.get(layers, found)


def head_width(config: PretrainedConfig) -> int:
    """Return how many numbers a head has."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def context_tokens(config: PretrainedConfig, arch: str) -> int:
    """Return for how many tokens llama.cpp computes what the model does.

    It knows sliding windows of Gemma alone: beyond a window of another family it would attend to more.
    """
    window = getattr(config, "sliding_window", None)
    ignored = window and arch not in WINDOWED and getattr(config, "use_sliding_window", True)
    return min(config.max_position_embeddings, window if ignored else math.inf)


def write_settings(writer: gguf.GGUFWriter, config: PretrainedConfig, arch: str) -> None:
    """Write what llama.cpp has to know of the shapes and the arithmetic."""
    width, rope = head_width(config), rope_of(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_tokens(config, arch))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(width * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(_rotation(config, "longrope")[1])
    if arch in WINDOWED:
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma3":
        writer.add_rope_freq_base_swa(rope_of(config, "sliding_attention")["rope_theta"])
    caps: dict[str, Callable[[float], None]] = {
        "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
    }
    for name, add in caps.items():
        if cap := getattr(config, name, None):
            add(cap)


def rope_factors(config: PretrainedConfig) -> dict[str, np.ndarray]:
    """Return the tensors by which llama.cpp divides the speeds of rotation: Llama 3's and Phi-3's, float32 [D / 2]."""
    rope = rope_of(config)
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _rotation(config, "default")[0] / _rotation(config, "llama3")[0]}
    if rope["rope_type"] == "longrope":
        kinds = ("long", "short")
        return {f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], np.float32) for kind in kinds}
    return {}


def _rotation(config: PretrainedConfig, kind: str) -> tuple[np.ndarray, float]:
    """Return the speeds of rotation that transformers computes, float32 [D / 2], and what it scales attention by."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if kind == "default":
        width = head_width(config)
        return rope_of(config)["rope_theta"] ** -(np.arange(0, width, 2, dtype=np.float32) / width), 1.0
    speeds, scale = ROPE_INIT_FUNCTIONS[kind](config, device="cpu")
    return speeds.numpy(), scale


def tensor_names(config: PretrainedConfig, arch: str) -> Callable[[str], str | None]:
    """Return the function that names the tensor of a parameter, by the parameter's name; None where it has none."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[arch], config.num_hidden_layers)
    return lambda name: names.get_name(name, try_suffixes=(".weight", ".bias"))


def to_tensor(name: str, values: np.ndarray, config: PretrainedConfig, arch: str) -> np.ndarray:
    """Lay out a parameter, by name and values in float32, as llama.cpp reads it."""
    if heads := _interleaved_heads(name, config, arch):
        return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return values + 1 if _is_distance(name, arch) else values


def to_parameter(name: str, values: np.ndarray, config: PretrainedConfig, arch: str) -> np.ndarray:
    """Undo `to_tensor`."""
    if heads := _interleaved_heads(name, config, arch):
        return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return values - 1 if _is_distance(name, arch) else values


def _interleaved_heads(name: str, config: PretrainedConfig, arch: str) -> int | None:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(name.split(".")[-2]) if arch == "llama" else None


def _is_distance(name: str, arch: str) -> bool:
    return arch.startswith("gemma") and name.endswith("norm.weight")
