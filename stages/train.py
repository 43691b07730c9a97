"""Fine-tune a LoRA adapter on a frozen, quantised base model.   data/prepared, models/base -> models/adapter

Run by `dvc repro train`; alone: `python -m stages.train`. Killed at any moment, it goes on where it was.
"""

from stages.lib.inputs import Inputs, read_command, refuse
from stages.lib.params import Mistake, read_params
from stages.lib.training.processes import die_with_dvc, num_processes, rank
from stages.lib.training.recipe import Recipe


def read_recipe() -> Recipe:
    """Read the command line and the parameters."""
    return read_params(Recipe, command=read_command(__doc__, ["model"]))


if __name__ == "__main__":
    die_with_dvc()
    read_recipe()  # refuses a mistake at once: the imports below take ten seconds

import errno
import os
import sys
from functools import partial

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import set_seed

from stages.lib.data.documents import PREPARED, read_documents
from stages.lib.metrics import environment, measure_cost
from stages.lib.model.adapter import add_adapter, keep_initial, save_adapter
from stages.lib.model.loading import (
    ADAPTER,
    bos_eos,
    context_tokens,
    device,
    load_config,
    load_model,
    precision,
    quantized_fraction,
)
from stages.lib.sources.source import MODELS
from stages.lib.training.blocks import Blocks
from stages.lib.training.checkpoints import Checkpoints, run_key
from stages.lib.training.curves import PICTURE, Curves, draw_losses
from stages.lib.training.fit import fit
from stages.lib.training.memory import SETTLED, settle


def confirm(inputs: Inputs) -> None:
    """Refuse to go on where any of the processes finds something changed since it began."""
    changes = gather_object(inputs.changes())
    if changes and rank() > 0:
        sys.exit(1)
    refuse([*dict.fromkeys(changes)], "put it back to go on from the last checkpoint, or run again as it is now")


def main() -> None:
    params = read_recipe()
    texts = (PREPARED / "train.parquet", PREPARED / "validation.parquet")
    inputs = Inputs(params, *texts, MODELS / params.model)
    PartialState(cpu=device().type == "cpu")  # joins the other processes, if there are any
    if rank() > 0:  # the first alone speaks,
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    config = load_config(params.model)
    block_tokens = min(params.train.block_tokens, context_tokens(config))
    blocks, held_out = (
        Blocks(read_documents(split), *bos_eos(config), block_tokens) for split in ("train", "validation")
    )
    if params.train.early_stopping_patience and not held_out:
        raise Mistake("params.yaml: train.early_stopping_patience: there are no validation documents to stop by")
    settled = settle(params.train, config, params.quantization, params.lora, blocks.block_tokens)
    set_seed(params.train.seed)  # before the adapter draws its first weights
    model = add_adapter(load_model(params.model, params.quantization), params.lora)
    initial = keep_initial(model)
    stored = precision(model, params.quantization)
    trainable, total = model.get_nb_trainable_parameters()
    print(f"{params.model} in {stored}; {trainable:,} of {total:,} parameters are trained")
    tokens = (blocks.stream.data, held_out.stream.data)
    checkpoints = Checkpoints(run_key(params.model, params, stored, num_processes(), *tokens))
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


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Mistake(f"no room on the disk: {error}; make some and run again, to go on from the last state") from None
