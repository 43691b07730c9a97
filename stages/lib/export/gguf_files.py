"""GGUF files: a model's folder written as one, tensor by tensor, and read back into a model of transformers."""

import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

from stages.lib.conversations.template import GENERATION, Template
from stages.lib.export.ends import Ends, read_generation
from stages.lib.export.families import (
    architecture,
    rope_factors,
    tensor_names,
    to_parameter,
    to_tensor,
    write_settings,
)
from stages.lib.export.kinds import LOW
from stages.lib.export.vocabulary import read_vocabulary
from stages.lib.model.loading import read_config
from stages.lib.params import Mistake

Kind = gguf.GGMLQuantizationType
LARGEST_F16 = 65504.0
ROW_NUMBERS = 32  # that one block of a quantised type holds
DRAWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # settings of generation_config.json
DATE = re.compile(r"\bdate_string\b")
NAMES = ("eos", "eot", "eom")  # names that a GGUF has for what ends a text or a turn


class Planned(NamedTuple):
    """A tensor that is going to be written."""

    name: str
    shape: list[int]
    kind: Kind
    read: Callable[[], np.ndarray]  # its values, in float32


def write_gguf(folder: Path, path: Path, type_name: str, name: str, template: Template | None, ends: Ends) -> None:
    """Write a model's folder as a GGUF file, with no more than a tensor of it in memory.

    Args:
        folder: Of weights (safetensors), tokenizer and configuration.
        path: The file.
        type_name: Of matrices, one of `TYPES`; vectors are float32.
        name: Of the model.
        template: Of conversations, if they were learned.
        ends: What begins and ends a text.

    Raises:
        Mistake: It cannot be written so that llama.cpp does the same.
    """
    config = read_config(folder)
    arch = architecture(config, folder)
    with ExitStack() as files:
        planned = plan(folder, config, arch, type_name, files)
        writer = gguf.GGUFWriter(path, arch)
        files.callback(writer.close)
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if type_name == 'F32' else 'MOSTLY'}_{type_name}"])
        if type_name[0] == "Q":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_settings(writer, config, arch)
        read_vocabulary(folder, config.vocab_size).write(writer)
        add_ends(writer, ends)
        if template:
            writer.add_chat_template(plain_templates(template))
        write_sampling(writer, folder)
        for tensor in planned:
            block_numbers, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
            num_bytes = math.prod(tensor.shape) // block_numbers * block_bytes
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), num_bytes, tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in planned:
            writer.write_tensor_data(quantize(tensor.read(), tensor.kind, f"{folder}: {tensor.name}"))


def plan(folder: Path, config: PretrainedConfig, arch: str, type_name: str, files: ExitStack) -> list[Planned]:
    """List the tensors of a file, each to be read when it is its turn; `files` keeps what they are read from open.

    Raises:
        Mistake: The model has one that llama.cpp does not know.
    """
    find = tensor_names(config, arch)
    planned = [
        Planned(name, list(values.shape), Kind.F32, lambda values=values: values)
        for name, values in rope_factors(config).items()
    ]
    for file in sorted(folder.glob("*.safetensors")):
        reader = files.enter_context(safe_open(file, "pt"))
        for key in reader.keys():  # noqa: SIM118  # it is no dictionary
            name, shape = find(key), reader.get_slice(key).get_shape()
            if name is None:
                raise Mistake(f"{folder}: {key}: a {config.model_type} for llama.cpp has no such tensor")
            if name == "output.weight" and config.tie_word_embeddings:
                continue

            def read(reader: safe_open = reader, key: str = key) -> np.ndarray:
                return to_tensor(key, reader.get_tensor(key).float().numpy(), config, arch)

            planned.append(Planned(name, shape, type_of(name, shape, type_name), read))
    return planned


def quantize(values: np.ndarray, kind: Kind, what: str) -> np.ndarray:
    """Return values as a type of weights stores them.

    Raises:
        Mistake: One is too large for it.
    """
    if kind == Kind.F16 and np.abs(values).max() > LARGEST_F16:
        raise Mistake(f"{what}: holds {np.abs(values).max():.3g}, more than F16 can; take BF16 with --types")
    return gguf.quantize(np.ascontiguousarray(values), kind)


def type_of(tensor: str, shape: list[int], type_name: str) -> Kind:
    """Return how a tensor is stored: vectors in float32, for they are few and all else is scaled by them."""
    if len(shape) == 1:
        return Kind.F32
    if type_name[0] == "Q" and shape[-1] % ROW_NUMBERS:
        return Kind.F16
    outer = tensor in ("token_embd.weight", "output.weight")
    return Kind.Q8_0 if type_name in LOW and outer else Kind[type_name]


def add_ends(writer: gguf.GGUFWriter, ends: Ends) -> None:
    """Write what begins and ends a text.

    Raises:
        Mistake: More tokens end one than a GGUF has names for.
    """
    if not 0 < len(ends.ids) <= len(NAMES):
        raise Mistake(f"{len(ends.ids)} tokens end a text ({ends.ids}): a GGUF names 1 to {len(NAMES)}")
    for name, number in zip(NAMES, ends.ids):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(ends.begins)
    if ends.bos is not None:
        writer.add_bos_token_id(ends.bos)
    if ends.pad is not None:
        writer.add_pad_token_id(ends.pad)
    writer.add_add_eos_token(False)


def plain_templates(template: Template) -> str | list[dict[str, str]]:
    """Return a template, or the two of it, as llama.cpp renders them to what transformers does.

    llama.cpp does not know the marks of answers. And it defines a `date_string`, today, that transformers does not: a
    template that asks for it then no longer writes the date that it falls back to.
    """
    sources = {"default": template.source, "tool_use": template.with_tools}
    plain = {name: DATE.sub("own_date_string", GENERATION.sub("", source)) for name, source in sources.items()}
    if plain["default"] == plain["tool_use"]:
        return plain["default"]
    return [{"name": name, "template": source} for name, source in plain.items()]


def write_sampling(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Write how tokens are drawn, as far as the model's generation_config.json says that they are drawn."""
    add = {
        "temperature": writer.add_sampling_temp,
        "top_k": writer.add_sampling_top_k,
        "top_p": writer.add_sampling_top_p,
        "min_p": writer.add_sampling_min_p,
        "repetition_penalty": writer.add_sampling_penalty_repeat,
    }
    for name, value in drawing(folder).items():
        add[name](value)


def drawing(folder: Path) -> dict[str, Any]:
    """Return how a model's generation_config.json says that tokens are drawn; nothing where it says that none are."""
    found = read_generation(folder)
    return {name: found[name] for name in DRAWN if found.get("do_sample") and found.get(name) is not None}


def load_tensors(path: Path, model: PreTrainedModel) -> None:
    """Put the tensors of a GGUF file, dequantised, into a model in place of its own weights.

    Raises:
        Mistake: A parameter has no tensor, or a tensor no parameter.
    """
    reader = gguf.GGUFReader(path)
    config: PretrainedConfig = model.config
    arch = architecture(config, path)
    find = tensor_names(config, arch)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name in rope_factors(config):
        tensors.pop(name, None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # of tied ones the first alone
            tensor = tensors.pop(find(name) or "", None)
            if tensor is None:
                raise Mistake(f"{path}: no tensor for {name}")
            values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(to_parameter(name, values, config, arch).copy()))
    if tensors:
        raise Mistake(f"{path}: tensors of no parameter: {', '.join(sorted(tensors))}")
