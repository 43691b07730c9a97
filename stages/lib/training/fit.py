"""Fitting: an adapter trained in place by a recipe, in as large pieces as memory holds."""

import gc
import math
import tempfile
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object
from dvclive import Live
from peft import PeftModel
from transformers import EarlyStoppingCallback, ProgressCallback, TrainingArguments

from stages.lib.model.compiled import GraphedStep, compiled_layers, unmasked, waits_for_values
from stages.lib.model.loading import base_of, compute_dtype, device, unpacked_weights
from stages.lib.model.long_inputs import activations_offloaded
from stages.lib.model.packing import can_pack, packed_rows
from stages.lib.model.patches import replaced
from stages.lib.params import Mistake
from stages.lib.training.checkpoints import Checkpoints
from stages.lib.training.curves import CurveCallback
from stages.lib.training.examples import Blocks, Rows, pack, pad_right, rooms
from stages.lib.training.loss import chunked_loss
from stages.lib.training.processes import num_processes, rank
from stages.lib.training.recipe import SettledParams
from stages.lib.training.trainer import LoraTrainer, Pace, Schedule

WARM_UP_STEPS = 5  # that compile, tune and capture


class Fitted(NamedTuple):
    """What training was."""

    log: list[dict]  # the Trainer's: dictionaries with `step` and `loss` (nats per token) or `eval_loss`
    params: SettledParams  # as they fitted into memory
    kept_step: int  # whose adapter this is: the last, or the best where training stops early; 0: nothing was learned
    validation_loss: float | None  # of this adapter
    cost: dict[str, float]  # seconds, warm_up_seconds, validation_seconds; tokens and targets_per_second beside them


def fit(
    model: PeftModel,
    train: Blocks | Rows,
    validation: Blocks | Rows | None,
    params: SettledParams,
    live: Live | None,
    checkpoints: Checkpoints | None = None,
) -> Fitted:
    """Train the adapter in place.

    Where memory does not suffice after all, it starts over with smaller micro-batches: the same steps in more pieces.

    Args:
        model: A base model with a trainable adapter.
        train: What is learned.
        validation: What the curve of the validation loss is measured on, if anything.
        live: Receives the curves; None in all processes but the first.
        checkpoints: Where states are kept, and where training goes on from if it was killed.

    Raises:
        Mistake: Not even one block at once fits into memory, or the disk is full.
    """
    curves = CurveCallback(live) if live else None
    initial = {name: weight.detach().cpu().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    while True:
        try:
            fitted = _fit(model, train, validation, params, curves, checkpoints)
            if fitted.kept_step == 0:
                print("no evaluation was better than the one before training: the adapter stays as it began")
                put_back(initial, model)
            return fitted
        except torch.OutOfMemoryError:
            if params.micro_batch_size == 1 or num_processes() > 1:
                raise Mistake(out_of_memory(params)) from None
        smaller = next(size for size in range(params.micro_batch_size - 1, 0, -1) if params.batch_size % size == 0)
        print(f"out of memory with {params.micro_batch_size} blocks at once; trying {smaller}")
        params = params.model_copy(update={"micro_batch_size": smaller})
        gc.collect()
        torch.cuda.empty_cache()
        put_back(initial, model)


def put_back(initial: dict[str, torch.Tensor], model: PeftModel) -> None:
    """Give trained weights the values they began with."""
    for name, weight in model.named_parameters():
        if name in initial:
            weight.data.copy_(initial[name])
            weight.grad = None


def out_of_memory(params: SettledParams) -> str:
    """Say what would need less memory."""
    ways = ["a smaller train.block_tokens"]
    if params.micro_batch_size > 1:
        ways.insert(0, "a smaller train.micro_batch_size")
    if not params.gradient_checkpointing:
        ways.insert(0, "train.gradient_checkpointing: true")
    elif not params.activation_offloading:
        ways.insert(0, "train.activation_offloading: true")
    return f"params.yaml: train: out of memory with {params.micro_batch_size} blocks at once; try {', '.join(ways)}"


def _fit(
    model: PeftModel,
    train: Blocks | Rows,
    validation: Blocks | Rows | None,
    params: SettledParams,
    curves: CurveCallback | None,
    checkpoints: Checkpoints | None,
) -> Fitted:
    check_dtypes(model)
    base = base_of(model)
    packed = train if isinstance(train, Rows) and can_pack(base, train.block_tokens) else None
    if isinstance(train, Rows) and not packed and params.compile:
        print(f"{type(base).__name__} cannot be given packed rows: padded ones are neither compiled nor offloaded")
        params = params.model_copy(update={"compile": False, "activation_offloading": False})  # their lengths differ
    recompute, compiled = params.gradient_checkpointing, params.compile
    dtype = training_dtype(params)
    steps_an_epoch = math.ceil(len(train) / params.batch_size)
    resumed = checkpoints and broadcast_object_list([checkpoints.newest() if rank() == 0 else None])[0]
    if resumed and not all(gather_object([resumed[0].exists()])):
        raise Mistake(
            f"{resumed[0]}: not on every machine; share the folder, or delete models/checkpoints to begin anew"
        )
    scratch = nullcontext(checkpoints.folder) if checkpoints else tempfile.TemporaryDirectory()
    with chunked_loss(base, train.sparse, compiled), scratch as folder, ExitStack() as patches:
        patches.enter_context(unpacked_weights(base, dtype))
        collate = pad_right
        steady = bool(packed)  # attention needs no mask
        if packed:
            patches.enter_context(packed_rows(base, train.block_tokens))
            collate = partial(pack, rooms=rooms(packed, params) if compiled else [], longest=train.block_tokens)
        elif compiled:
            steady = patches.enter_context(unmasked(base, train.block_tokens))
        if params.activation_offloading:
            patches.enter_context(activations_offloaded(base, train.largest(params).tokens))
        if compiled:
            alike = not params.activation_offloading
            patches.enter_context(compiled_layers(base, recompute, bool(packed), alike))
        elif recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
            patches.callback(model.activation_checkpointing_disable)
        arguments = training_arguments(
            params,
            str(folder),
            dtype=dtype,
            steps=params.epochs * steps_an_epoch,
            validate=bool(validation),
            save=checkpoints is not None,
            resumed=bool(resumed),
        )
        trainer = LoraTrainer(model, arguments, train, validation, checkpoints, collate)
        graphed = compiled and steady and not params.activation_offloading and not waits_for_values(base)
        if graphed and device().type == "cuda":
            trainer.step = GraphedStep(trainer.work)
        if trainer.step or num_processes() > 1:  # gradients stay where they are
            patches.enter_context(replaced(model, zero_grad=partial(model.zero_grad, set_to_none=False)))
        trainer.add_callback(Schedule(trainer.sampler, checkpoints.minutes if checkpoints else math.inf))
        if curves:
            trainer.add_callback(curves)
        if params.early_stopping_patience:
            trainer.add_callback(EarlyStoppingCallback(params.early_stopping_patience))
        trainer.remove_callback(ProgressCallback)
        work = train.num_tokens / steps_an_epoch, train.num_targets / steps_an_epoch
        pace = Pace(trainer, WARM_UP_STEPS if compiled else 0, *work)
        trainer.add_callback(pace)
        if resumed:
            trainer.seconds_before = resumed[1]
            print(f"going on from {resumed[0]}")
        trainer.train(resume_from_checkpoint=str(resumed[0]) if resumed else None)
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    kept_step = trainer.state.best_global_step if params.early_stopping_patience else trainer.state.global_step
    assert kept_step is not None  # that stops early has evaluated before the first step
    cost = {
        "seconds": trainer.seconds,
        "warm_up_seconds": pace.warm_up_seconds,
        "validation_seconds": trainer.validation_seconds,
        "tokens_per_second": pace.tokens_per_second,
        "targets_per_second": pace.targets_per_second,
    }
    return Fitted(trainer.state.log_history, params, kept_step, losses.get(kept_step), cost)


def training_dtype(params: SettledParams) -> torch.dtype:
    """Return what training multiplies matrices in."""
    return torch.bfloat16 if params.bf16_on_cpu else compute_dtype()


def training_arguments(
    params: SettledParams, folder: str, dtype: torch.dtype, steps: int, validate: bool, save: bool, resumed: bool
) -> TrainingArguments:
    """Say all this in the Hugging Face Trainer's terms.

    Args:
        dtype: What matrices are multiplied in.
        steps: Optimizer steps in all.
        validate: Measure the validation loss, at the start too unless `resumed`.
        save: Write checkpoints.
    """
    interval = math.ceil(steps / params.evaluations)
    arguments = TrainingArguments(
        output_dir=folder,
        seed=params.seed,
        num_train_epochs=params.epochs,
        per_device_train_batch_size=params.micro_batch_size,
        gradient_accumulation_steps=params.batch_size // (params.micro_batch_size * num_processes()),
        optim=params.optimizer,
        learning_rate=params.learning_rate,
        lr_scheduler_type=params.schedule,
        warmup_steps=params.warmup_fraction,
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=device().type == "cpu",
        logging_steps=math.ceil(steps / 100),
        logging_nan_inf_filter=False,  # it waits for the GPU at each step, to hide what should be seen
        eval_strategy="steps" if validate else "no",
        eval_steps=interval,
        eval_on_start=validate and not resumed,
        accelerator_config={"non_blocking": device().type == "cuda"},  # Python goes ahead while a batch is copied
        save_strategy="steps" if save else "no",
        save_steps=interval,
        load_best_model_at_end=params.early_stopping_patience > 0,
        metric_for_best_model="eval_loss" if params.early_stopping_patience else None,
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        report_to="none",
        disable_tqdm=False,  # else it prints each entry of its log instead
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # this process has one: otherwise the Trainer would multiply batch and loss by all
    return arguments


def check_dtypes(model: PeftModel) -> None:
    """Assert the contract of mixed precision: what is trained is fp32, what is frozen multiplies in `compute_dtype`.

    Gradients of fp32 weights neither vanish nor overflow, whatever the arithmetic is.
    """
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.dtype == torch.float32, f"{name} is trained in {weight.dtype}"
        elif weight.is_floating_point():
            assert weight.dtype == compute_dtype(), (
                f"{name} is {weight.dtype}, the device computes in {compute_dtype()}"
            )
        else:
            assert weight.dtype in (torch.uint8, torch.int8), f"{name} is stored as {weight.dtype}"
