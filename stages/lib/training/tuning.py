"""Tuning: an adapter from prepared documents and a base model, with its curves and what it cost."""

import os
import sys
from functools import partial

from accelerate import PartialState
from accelerate.utils import gather_object, set_seed
from transformers import PretrainedConfig

from stages.lib.data.documents import read_documents
from stages.lib.inputs import Inputs, refuse
from stages.lib.metrics import environment, measure_cost
from stages.lib.model.adapter import add_adapter, keep_initial, save_adapter
from stages.lib.model.loading import (
    ADAPTER,
    base_of,
    context_tokens,
    device,
    end_ids,
    load_config,
    load_model,
    precision,
    quantized_fraction,
)
from stages.lib.params import Mistake
from stages.lib.training.checkpoints import CHECKPOINTS, Checkpoints, run_key
from stages.lib.training.curves import PICTURE, Curves, draw_losses
from stages.lib.training.examples import Blocks, Rows
from stages.lib.training.fit import fit, training_dtype
from stages.lib.training.memory import SETTLED, settle
from stages.lib.training.processes import rank
from stages.lib.training.recipe import Recipe


def tune(params: Recipe, inputs: Inputs, checkpoint_minutes: float) -> None:
    """Do all that the stage `train` does, as one of the processes that do it together.

    Raises:
        Mistake: Something does not go together, does not fit into memory, or changed since the stage began.
    """
    PartialState(cpu=device().type == "cpu")  # joins the other processes, if there are any
    if rank() > 0:  # the first alone speaks,
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    config = load_config(params.model)
    blocks, held_out = (examples(split, config, params.train.block_tokens) for split in ("train", "validation"))
    if params.train.early_stopping_patience and not held_out:
        raise Mistake("params.yaml: train.early_stopping_patience: there are no validation documents to stop by")
    settled = settle(params.train, config, params.quantization, params.lora, blocks)
    set_seed(params.train.seed)  # before the adapter draws its first weights
    model = add_adapter(base_of(load_model(params.model, params.quantization)), params.lora)
    initial = keep_initial(model)
    stored = precision(model, params.quantization, multiplied=training_dtype(settled))
    trainable, total = model.get_nb_trainable_parameters()
    print(f"{params.model} in {stored}; {trainable:,} of {total:,} parameters are trained")
    key = run_key(params.model, params.model_dump(), stored, *blocks.data, *held_out.data)
    checkpoints = Checkpoints(key, CHECKPOINTS, checkpoint_minutes)
    confirm(inputs)  # that the key is of what was read
    if rank() == 0:
        checkpoints.hold()
    train = partial(fit, model, blocks, held_out, settled, checkpoints=checkpoints)
    if rank() > 0:  # and writes
        train(live=None)
        confirm(inputs)
        return
    with Curves() as live, measure_cost("train") as cost:
        fitted = train(live=live)
        confirm(inputs)
        cost |= fitted.cost | {"environment": environment()}
        live.summary["parameters"] = {"trainable": trainable, "all": total}
        live.summary["precision"] = stored
        live.summary["quantized_fraction"] = quantized_fraction(model)
        live.summary |= {name: getattr(fitted.params, name) for name in SETTLED}
        live.summary["kept_step"] = fitted.kept_step
        live.summary["validation"] = {"loss": fitted.validation_loss}
    save_adapter(model, params.model, ADAPTER, initial)
    draw_losses(fitted.log).savefig(PICTURE, dpi=100)
    checkpoints.discard()


def examples(split: str, config: PretrainedConfig, block_tokens: int) -> Blocks | Rows:
    """Read what is learned of a split: conversations row by row, texts packed in blocks."""
    first = next(read_documents(split), None)
    if first and first.conversation:
        return Rows(read_documents(split))
    return Blocks(read_documents(split), end_ids(config)[:1], min(block_tokens, context_tokens(config)))


def confirm(inputs: Inputs) -> None:
    """Refuse to go on where any of the processes finds something changed since it began."""
    changes = [*dict.fromkeys(gather_object(inputs.changes()))]
    refuse(changes, "put it back to go on from the last checkpoint, or run again as it is now")
