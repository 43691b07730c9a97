"""The adapter: low-rank updates on a frozen base model, in any variant that the recipe names."""

import re
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stages.lib.model.compiled import decoder_layers
from stages.lib.model.loading import base_of, read_weights
from stages.lib.params import Mistake
from stages.lib.sources.source import MODELS, find, read_source
from stages.lib.training.recipe import LoraParams

# isort: split
from peft import LoraConfig, PeftModel, get_peft_model  # after bitsandbytes, as bits.py has it
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight


def add_adapter(model: PreTrainedModel, params: LoraParams) -> PeftModel:
    """Put a fresh adapter on a frozen model; only the adapter will be trained.

    Raises:
        Mistake: The model has no layer of one of the names in `target_modules`, or one that takes no adapter.
    """
    linear = linear_layers(model)
    if params.target_modules != "all-linear" and (unknown := sorted(set(params.target_modules) - linear)):
        raise Mistake(
            f"params.yaml: lora.target_modules: the model has no linear layer named {', '.join(unknown)}; it has "
            f"{', '.join(sorted(linear))}; `all-linear` takes all but the head"
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=params.r,
        lora_alpha=params.alpha,
        use_rslora=params.rslora,
        use_dora=params.dora,
        init_lora_weights=params.init if params.init in ("gaussian", "pissa") else True,
        lora_dropout=params.dropout,
        target_modules=params.target_modules,
        exclude_modules=without_adapter(model),
        bias="none",
    )
    try:
        tuned = get_peft_model(model, config)
    except ValueError as error:
        raise Mistake(f"params.yaml: lora: {error}") from None
    tell_layers_without(tuned)
    if params.init == "loftq":
        start_from_quantization_error(tuned)
    return tuned


def keep_initial(model: PeftModel) -> tempfile.TemporaryDirectory | None:
    """Save a fresh adapter if `save_adapter` will need it: that of PiSSA; return the folder."""
    config = config_of(model)
    if config.init_lora_weights != "pissa":
        return None
    folder = tempfile.TemporaryDirectory()
    config.init_lora_weights = True  # from here on the adapter is what its weights are
    model.save_pretrained(folder.name, save_embedding_layers=False)
    return folder


def config_of(model: PeftModel) -> LoraConfig:
    """Return what peft knows of the adapter."""
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    return config


def linear_layers(model: PreTrainedModel) -> set[str]:
    """Return the last names of the linear layers, by which an adapter may be asked for."""
    layers = (name for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D))
    return {name.rpartition(".")[2] for name in layers}


def without_adapter(model: PreTrainedModel) -> str | None:
    """Return a regular expression for the parts that get no adapter, whatever is asked for; None where there are none.

    That is what no text passes, such as what sees; and linear layers that do something else than multiply, such as
    routers of experts. The head is none of them: who asks for an adapter on it is told why not.
    """
    names = {part: name for name, part in model.named_modules()}
    decoder, head = names[model.get_decoder()], names.get(model.get_output_embeddings())
    beside = [rf"(?!{re.escape(decoder)}\.|{head}$).*"] if "." in decoder else []
    own = [part for part in names if isinstance(part, nn.Linear) and type(part).__module__.startswith("transformers.")]
    others = [re.escape(names[part]) for part in own if type(part).forward is not nn.Linear.forward]
    return "|".join([*beside, *others]) or None


def tell_layers_without(model: PeftModel) -> None:
    """Say so where some of the decoder's layers have no adapter, as in hybrids of which few layers attend."""
    layers = decoder_layers(base_of(model))
    adapted = sum(any(isinstance(part, LoraLayer) for part in layer.modules()) for layer in layers)
    if adapted < len(layers):
        print(
            f"params.yaml: lora.target_modules: {adapted} of {len(layers)} layers have such parts and get an adapter; "
            "`all-linear` may reach the others"
        )


def start_from_quantization_error(model: PeftModel) -> None:
    """Let the first update be as much of what 4-bit quantisation took from each weight as its rank holds.

    One step of LoftQ (Li et al. 2023) for a base model that stays as it is. Unlike peft's, it minds the factor that
    updates are scaled by, and needs no GPU.
    """
    base = base_of(model)
    full = read_weights(Path(str(base.name_or_path)), dtype="auto")
    for name, layer in base.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        kept = dequantize_module_weight(layer.get_base_layer()).float()
        whole = full.get_parameter(f"{name}.weight").to(kept)
        if isinstance(full.get_submodule(name), Conv1D):  # GPT-2's linear layer, transposed until quantised
            whole = whole.T
        left, sizes, right = torch.linalg.svd(whole - kept, full_matrices=False)
        r, root = layer.r["default"], (sizes / layer.scaling["default"]).sqrt()
        layer.lora_A["default"].weight.data = (root[:r, None] * right[:r]).contiguous()
        layer.lora_B["default"].weight.data = (left[:, :r] * root[:r]).contiguous()


def save_adapter(model: PeftModel, name: str, folder: Path, initial: tempfile.TemporaryDirectory | None) -> None:
    """Save the adapter so that it fits the base model as it is on disk, and equal runs write equal files.

    PiSSA takes the first update out of the base model's weights; here it is taken out of the adapter instead,
    whose rank that doubles.

    Args:
        initial: What `keep_initial` returned before training.
    """
    config = config_of(model)
    assert config.init_lora_weights != "pissa", "keep_initial was not called before training"
    source = read_source(find(MODELS, name))
    config.base_model_name_or_path = source.repo or f"{MODELS}/{name}"  # not the folder of a cache on this machine
    config.revision = source.revision
    config.target_modules = sorted(config.target_modules or ())
    model.save_pretrained(
        str(folder),
        save_embedding_layers=False,
        path_initial_model_for_weight_conversion=initial.name if initial else None,
    )
    (folder / "README.md").unlink()  # a form with nothing filled in
