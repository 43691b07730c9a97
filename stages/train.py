"""Fine-tune a LoRA adapter on a frozen, quantised base model.   data/prepared, models/base -> models/adapter

Run by `dvc repro train`; alone: `python -m stages.train`.
"""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from stages.lib.params import Mistake, Section, read_params
from stages.lib.quantization import Quantization


class LoraParams(Section):
    r: PositiveInt  # rank of the update
    alpha: PositiveInt  # the update is scaled by alpha / r
    dropout: Annotated[float, Field(ge=0, lt=1)]  # of the update's input, while training
    target_modules: list[str]  # names of the linear layers that get an update


class TrainParams(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # of the adapter's first weights, its dropout, and the order of blocks
    epochs: PositiveInt
    batch_size: PositiveInt  # blocks an optimizer step
    block_tokens: Annotated[int, Field(ge=2)]  # capped by the model's context
    learning_rate: PositiveFloat  # peak, after warm-up
    schedule: Literal["linear", "cosine", "constant_with_warmup"]  # from the peak to the end
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]  # of the optimizer steps
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    gradient_checkpointing: bool | Literal["auto"]  # recompute activations: less memory, a third more time
    compile: bool | Literal["auto"]  # each layer, and the whole step as one CUDA graph; auto: on a GPU
    evaluations: PositiveInt  # of the validation loss, evenly over the run, after one before the first step


class Params(Section):
    model: str
    quantization: Quantization
    lora: LoraParams
    train: TrainParams


if __name__ == "__main__":
    read_params(Params)  # refuses a mistake at once: the imports below take ten seconds

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from dvclive import Live
from peft import LoraConfig, PeftModel, get_peft_model
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from stages.lib.blocks import Blocks
from stages.lib.compiled import GraphedStep, compile_layers
from stages.lib.curves import PICTURE, CurveCallback, Curves, draw_losses
from stages.lib.documents import read_documents
from stages.lib.loss import IGNORED, chunked_loss
from stages.lib.metrics import measure_cost
from stages.lib.model import ADAPTER, bos_eos, compute_dtype, context_tokens, device, load_model, precision
from stages.lib.score import score_batch
from stages.lib.source import MODELS, find, read_source


class LossBar(ProgressCallback):
    """The Trainer's progress bar with the last loss beside it, instead of a printed line for each."""

    def on_log(self, args, state, control, logs, **kwargs) -> None:
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)


class LoraTrainer(Trainer):
    """The Hugging Face Trainer with an exact validation loss: the sum over all tokens divided by their number.

    With `step`, a micro-batch is worked on by it instead of by Python.
    """

    step: GraphedStep | None = None
    validation_seconds = 0.0

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.step is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        return self.step(num_items_in_batch=num_items_in_batch, **inputs)

    def work(self, num_items_in_batch: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Run a micro-batch forward and backward."""
        with self.compute_loss_context_manager():
            loss = self.compute_loss(self.model_wrapped, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        start = time.perf_counter()
        with torch.compiler.set_stance("force_eager"):  # other shapes, and no gradients: not worth compiling
            metrics = {"eval_loss": mean_nll(self.model, self.eval_dataset, self.args.eval_batch_size)}
        self.validation_seconds += time.perf_counter() - start
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def mean_nll(model: PeftModel, blocks: Blocks, batch_size: int) -> float:
    """Return the mean negative log-likelihood of the tokens of all blocks, in nats per token."""
    training = model.training
    model.eval()
    nll = 0.0
    for begin in tqdm(range(0, len(blocks), batch_size), "validation", unit=" batches", leave=False):
        spans = [blocks.span(index) for index in range(begin, min(begin + batch_size, len(blocks)))]
        inputs = [blocks.stream[start : end - 1] for start, _, end in spans]
        targets = [blocks.stream[first:end] for _, first, end in spans]
        nll += score_batch(model, inputs, targets)[:, 0].sum()
    model.train(training)
    return nll / blocks.num_targets


def add_adapter(model: PreTrainedModel, params: LoraParams) -> PeftModel:
    """Put a fresh LoRA adapter on a frozen model; only the adapter will be trained.

    Raises:
        Mistake: The model has no layer of one of the names in `target_modules`, or one that takes no adapter.
    """
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if unknown := sorted(set(params.target_modules) - names):
        raise Mistake(f"params.yaml: lora.target_modules: the model has no layer named {', '.join(unknown)}")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=params.r,
        lora_alpha=params.alpha,
        lora_dropout=params.dropout,
        target_modules=params.target_modules,
        bias="none",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise Mistake(f"params.yaml: lora.target_modules: {error}") from None


def resolve(choice: bool | Literal["auto"]) -> bool:
    """Say what a choice comes to: `auto` is yes on a GPU, whose memory is small and launches slow, and no on a CPU."""
    return device().type == "cuda" if choice == "auto" else choice


def fill(batch_size: int) -> Callable[[list[dict]], dict]:
    """Return a collator that fills the last batch of an epoch with blocks of no targets: one shape, one compilation."""

    def collate(blocks: list[dict]) -> dict:
        blank = blocks[0] | {"labels": torch.full_like(blocks[0]["labels"], IGNORED)}
        return default_data_collator([*blocks, *[blank] * (batch_size - len(blocks))])

    return collate


class Fitted(NamedTuple):
    log: list[dict]  # the Trainer's: dictionaries with `step` and `loss` (nats per token) or `eval_loss`
    validation_seconds: float  # spent on the validation loss


def fit(model: PeftModel, train: Blocks, validation: Blocks | None, params: TrainParams, live: Live) -> Fitted:
    """Train the adapter in place.

    Args:
        model: A base model with a trainable adapter.
        train: What is learned.
        validation: What the curve of the validation loss is measured on, if anything.
        live: Receives the curves.
    """
    recompute, compiled = resolve(params.gradient_checkpointing), resolve(params.compile)
    graphed = compiled and compile_layers(model.get_base_model(), train.block_tokens, recompute)
    if recompute and not compiled:
        model.activation_checkpointing_enable({"use_reentrant": False})
    steps = params.epochs * math.ceil(len(train) / params.batch_size)
    with chunked_loss(model.get_base_model()), tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            seed=params.seed,
            num_train_epochs=params.epochs,
            per_device_train_batch_size=params.batch_size,
            per_device_eval_batch_size=params.batch_size,
            learning_rate=params.learning_rate,
            lr_scheduler_type=params.schedule,
            warmup_steps=params.warmup_fraction,
            weight_decay=params.weight_decay,
            max_grad_norm=params.max_grad_norm,
            bf16=compute_dtype() == torch.bfloat16,
            fp16=compute_dtype() == torch.float16,
            use_cpu=device().type == "cpu",
            logging_steps=0.01,
            eval_strategy="steps" if validation else "no",
            eval_steps=math.ceil(steps / params.evaluations),
            eval_on_start=validation is not None,
            save_strategy="no",
            report_to="none",
            logging_nan_inf_filter=False,  # it waits for the GPU at each step, to hide what should be seen
        )
        trainer = LoraTrainer(
            model,
            arguments,
            data_collator=fill(params.batch_size) if compiled else default_data_collator,
            train_dataset=train,
            eval_dataset=validation,
            callbacks=[CurveCallback(live)],
        )
        if graphed and device().type == "cuda":
            trainer.step = GraphedStep(trainer.work)
            model.zero_grad = partial(model.zero_grad, set_to_none=False)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(LossBar)
        trainer.train()
    return Fitted(trainer.state.log_history, trainer.validation_seconds)


def save_adapter(model: PeftModel, name: str, folder: Path) -> None:
    """Save the adapter so that equal runs write equal files."""
    config = model.peft_config["default"]
    source = read_source(find(MODELS, name))
    config.base_model_name_or_path = source.repo or f"{MODELS}/{name}"  # not the folder of a cache on this machine
    config.revision = source.revision
    config.target_modules = sorted(config.target_modules)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # a form with nothing filled in


def main() -> None:
    params = read_params(Params)
    set_seed(params.train.seed)  # before the adapter draws its first weights
    base = load_model(params.model, params.quantization)
    block_tokens = min(params.train.block_tokens, context_tokens(base))
    train, validation = (read_documents(split) for split in ("train", "validation"))
    blocks = Blocks(train, *bos_eos(base), block_tokens)
    held_out = Blocks(validation, *bos_eos(base), block_tokens) if validation else None
    model = add_adapter(base, params.lora)
    trainable, total = model.get_nb_trainable_parameters()
    print(f"{params.model} in {precision(params.quantization)}; {trainable:,} of {total:,} parameters are trained")
    choices = {name: resolve(getattr(params.train, name)) for name in ("gradient_checkpointing", "compile")}
    print(", ".join(f"{name}: {choice}" for name, choice in choices.items()))
    with Curves() as live, measure_cost("train") as cost:
        fitted = fit(model, blocks, held_out, params.train, live)
        cost["tokens"] = blocks.num_targets * params.train.epochs
        cost["other_seconds"] = fitted.validation_seconds
        live.summary["parameters"] = {"trainable": trainable, "all": total}
        live.summary["precision"] = precision(params.quantization)
        live.summary |= choices
    save_adapter(model, params.model, ADAPTER)
    draw_losses(fitted.log).savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    main()
