"""A model in a GGUF file, made a folder of plain weights, tokenizer and configuration, once, in the cache.

transformers reads weights and configuration. What it would leave out without a word is refused here: tensors and
settings of the architecture that it does not carry over. The tokenizer is written here, because transformers forgets
how some of them split text before merging it (`smollm`: digit by digit).
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.lib.params import Mistake
from stages.lib.sources.files import CACHE, stamp

ORIGIN = "origin.json"  # of a converted folder: what its weights were stored as, and what its files are
# Settings of an architecture that reach the configuration, or follow from those that do.
CARRIED = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count"),
}
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is split before merging, by `tokenizer.ggml.pre`: a pattern; none is GPT-2's own.
SPLITS = {
    "gpt-2": None,
    "smollm": None,  # and every digit apart
    "llama-bpe": LLAMA_3,
    "qwen2": LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}"),
}
CONTROL, USER_DEFINED = 3, 4  # types of tokens
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def converted(digest: str) -> Path:
    """Return where the converted model lies or would lie: it follows from the file and from what converts it."""
    return CACHE / "converted" / f"{digest[:32]}-transformers-{version('transformers')}-gguf-{version('gguf')}"


def is_whole(folder: Path) -> bool:
    """Tell whether a folder holds a finished conversion, and nothing was changed in it since."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(stamp(folder / name) == found for name, found in origin["files"].items())


def stored_as(folder: Path) -> str | None:
    """Return what a model's weights were before they were made plain ones, such as `Q4_1`; None if they always were."""
    origin = folder / ORIGIN
    return json.loads(origin.read_text(encoding="utf-8"))["stored_as"] if origin.exists() else None


def convert(path: Path, digest: str) -> Path:
    """Return the folder of plain weights, tokenizer and configuration that a GGUF file becomes.

    Weights are saved in float32, which holds exactly what dequantisation gives: a 16-bit scale times a small integer,
    plus a 16-bit minimum, needs more digits than any 16-bit number has.

    Every parameter of the model was compared with what the `gguf` package dequantises, and no tensor of the file is
    left over.

    Args:
        path: The file.
        digest: Its SHA-256.

    Raises:
        Mistake: It cannot be converted faithfully.
    """
    folder = converted(digest)
    if is_whole(folder):
        return folder
    from safetensors import SafetensorError

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with read_once(), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            reader, fields = read(path)
            part = Path(scratch) / "part"
            save_tokenizer(fields, part, path)
            save_weights(reader, fields, part, path)
            files = {file.name: stamp(file) for file in part.iterdir()}
            origin = {"stored_as": describe(reader, fields), "sha256": digest, "files": files}
            (part / ORIGIN).write_text(json.dumps(origin, indent=2), encoding="utf-8")
            if folder.exists() and not is_whole(folder):
                shutil.rmtree(folder)
            if not folder.exists():
                part.rename(folder)
    except (OSError, SafetensorError) as error:
        if not is_whole(folder):  # else another process was faster
            raise Mistake(f"{path}: its plain weights cannot be kept in {folder.parent}: {error}") from None
    return folder


@contextmanager
def read_once() -> Iterator[None]:
    """Have a file read and its tensors named once, where transformers asks anew for every module; no bars in a pipe."""
    import gguf
    from tqdm import tqdm
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    kept = gguf.GGUFReader, gguf.get_tensor_name_map, reading.tqdm
    reader = cache(gguf.GGUFReader)
    gguf.GGUFReader = lambda path: reader(os.fspath(path))
    gguf.get_tensor_name_map = cache(gguf.get_tensor_name_map)
    reading.tqdm = partial(tqdm, disable=None)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map, reading.tqdm = kept


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    """Open a GGUF file; return it and its settings by name."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        return reader, {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise Mistake(f"{path}: not a whole GGUF file: {error}") from None


def describe(reader: Any, fields: dict[str, Any]) -> str:
    """Name what the weights are stored as: what the file says, or the type of most of them."""
    import gguf

    kinds = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    if (kind := kinds.get(fields.get("general.file_type", -1), "GUESSED")) != "GUESSED":
        return kind
    counts: dict[str, int] = {}
    for tensor in reader.tensors:
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    return max(counts, key=counts.__getitem__)


def save_weights(reader: Any, fields: dict[str, Any], folder: Path, path: Path) -> None:
    """Save the model's weights and configuration as any other model's."""
    import torch
    from transformers import AutoModelForCausalLM

    architecture = str(fields.get("general.architecture"))
    settings = {name.removeprefix(f"{architecture}."): name for name in fields if name.startswith(f"{architecture}.")}
    if unknown := sorted(set(settings) - CARRIED):
        raise Mistake(f"{path}: {architecture}: {', '.join(unknown)}: settings that transformers would leave out")
    try:
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Mistake(f"{path}: {architecture}: transformers cannot read this kind of GGUF: {reason}") from None
    config = read.config
    delattr(config, "quantization_config")
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):  # where unset, the class's would be taken
        setattr(config, f"{name}_token_id", fields.get(f"tokenizer.ggml.{key}_token_id"))
    widths = {
        fields[settings[name]] for name in settings if name.endswith(("key_length", "value_length", "dimension_count"))
    }
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if widths - {width}:
        raise Mistake(f"{path}: heads of {sorted(widths)} numbers; only those with one width, all rotated, can be read")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    prove(model, reader, architecture, path)
    model.save_pretrained(folder)


def prove(model: Any, reader: Any, architecture: str, path: Path) -> None:
    """Compare every parameter with its tensor, as the `gguf` package dequantises it.

    Raises:
        Mistake: One differs or has none, or a tensor of the file has no parameter.
    """
    import gguf
    import numpy as np

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], model.config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, parameter in model.named_parameters():  # of tied ones the first alone
        tensor = tensors.pop(names.get_name(name, try_suffixes=(".weight", ".bias")), None)
        if tensor is None:
            raise Mistake(f"{path}: {architecture}: no tensor for {name}")
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if architecture == "llama" and (part := name.split(".")[-2]) in heads:  # the halves of a rotation interleaved
            values = values.reshape(heads[part], -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        if not np.array_equal(values, parameter.detach().numpy()):
            raise Mistake(f"{path}: {architecture}: {tensor.name} is not what transformers makes {name} of")
    if tensors:
        raise Mistake(
            f"{path}: {architecture}: tensors that transformers would leave out: {', '.join(sorted(tensors))}"
        )


def save_tokenizer(fields: dict[str, Any], folder: Path, path: Path) -> None:
    """Save the tokenizer, its special tokens, and the chat template."""
    from transformers import PreTrainedTokenizerFast

    tokens = fields.get("tokenizer.ggml.tokens", [])
    ids = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL.items()}
    if ids["eos_token"] is None:
        raise Mistake(f"{path}: tokenizer.ggml.eos_token_id: missing; it names the token that ends a text")
    special = {name: tokens[number] for name, number in ids.items() if number is not None}
    tokenizer = build_tokenizer(fields, special.get("bos_token"), path)
    template = fields.get("tokenizer.chat_template")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))  # untouched by the above


def build_tokenizer(fields: dict[str, Any], bos: str | None, path: Path) -> Any:
    """Build a tokenizer of byte-level BPE from a GGUF's settings.

    Raises:
        Mistake: It is of another kind, or splits text in a way that is not known here.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    kind, pre = (fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2" or pre not in SPLITS:
        known = ", ".join(f"gpt2 with {name}" for name in SPLITS)
        raise Mistake(
            f"{path}: tokenizer.ggml.model {kind} with tokenizer.ggml.pre {pre}: only {known} can be converted"
        )
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=SPLITS[pre] is None)
    before = {"smollm": [pre_tokenizers.Digits(individual_digits=True)], "gpt-2": []}
    split = before[pre] if pre in before else [pre_tokenizers.Split(Regex(SPLITS[pre]), behavior="isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    for number, type in enumerate(types):
        if type in (CONTROL, USER_DEFINED):  # found in a text whole, before it is split
            tokenizer.add_tokens([AddedToken(tokens[number], normalized=False, special=type == CONTROL)])
    if fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, vocabulary[bos])])
    if fields.get("tokenizer.ggml.add_eos_token") or tokenizer.get_vocab_size() != len(tokens):
        raise Mistake(
            f"{path}: a tokenizer that ends every text with EOS, or spells two tokens alike, cannot be converted"
        )
    return tokenizer
