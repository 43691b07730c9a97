"""The trainer: the Hugging Face Trainer with an exact validation loss, sealed checkpoints, and a pace to read."""

import functools
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments

from stages.lib.model.compiled import GraphedStep
from stages.lib.params import Mistake
from stages.lib.scoring.score import score_tokens
from stages.lib.training.checkpoints import Checkpoints
from stages.lib.training.examples import Blocks, Rows, Shuffled, pad_right
from stages.lib.training.processes import num_processes, rank

MEASURED_STEPS = 3  # after which it is said how long training will take


class LoraTrainer(Trainer):
    """The Hugging Face Trainer with an exact validation loss: the sum over all tokens divided by their number.

    With `step`, each micro-batch runs as a CUDA graph. Several processes add up their gradients once an optimizer step:
    an adapter's are a few megabytes.
    """

    model: PeftModel
    model_wrapped: nn.Module
    eval_dataset: Blocks | None
    step: GraphedStep | None = None
    gradients: torch.Tensor | None = None  # of each of several processes, all end to end
    seconds_before = 0.0  # of the run that this one goes on from

    def __init__(
        self,
        model: PeftModel,
        arguments: TrainingArguments,
        train: Blocks | Rows,
        validation: Blocks | Rows | None,
        checkpoints: Checkpoints | None,
        collate: Callable[[list], dict[str, torch.Tensor]] = pad_right,
    ) -> None:
        super().__init__(model, arguments, data_collator=collate, train_dataset=train, eval_dataset=validation or None)
        if num_processes() > 1:
            prepare = self.accelerator.prepare_model  # without DistributedDataParallel
            self.accelerator.prepare_model = functools.partial(prepare, evaluation_mode=True)
        batch_size = arguments.train_batch_size * arguments.gradient_accumulation_steps * num_processes()
        self.sampler = Shuffled(train.lengths, batch_size, arguments.seed)
        self.checkpoints = checkpoints
        self.validations: list[float] = []  # seconds of each
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds worked until now, those before a resumption included."""
        return self.seconds_before + time.perf_counter() - self.start

    @property
    def validation_seconds(self) -> float:
        """Seconds of these that validation took, since the start or a resumption."""
        return sum(self.validations)

    def _get_train_sampler(self, train_dataset: Blocks | Rows | None = None) -> Shuffled:
        return self.sampler

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.gradients is None and num_processes() > 1:
            self.gradients = joined_gradients(self.model)
        if self.step is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            if not model.training:  # to tell all its modules takes milliseconds
                model.train()
            loss = self.step(num_items_in_batch=num_items_in_batch, **self._prepare_inputs(inputs))
        if self.gradients is not None and self.accelerator.sync_gradients:
            torch.distributed.all_reduce(self.gradients)
            self.gradients /= num_processes()  # by which the Trainer has multiplied each loss
        return loss

    def work(self, num_items_in_batch: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Run a micro-batch forward and backward."""
        with self.compute_loss_context_manager():
            loss = self.compute_loss(self.model_wrapped, inputs, num_items_in_batch=num_items_in_batch)
        assert isinstance(loss, torch.Tensor)  # without outputs, which nobody asks for
        self.accelerator.backward(loss)
        return loss.detach()

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        return 0  # nobody asks, and counting takes milliseconds a step

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        assert self.eval_dataset is not None
        start = time.perf_counter()
        with torch.compiler.set_stance("force_eager"):  # other shapes, and no gradients: not worth compiling
            share = summed_nll(self.model, self.eval_dataset, self.args.train_batch_size, rank(), num_processes())
        metrics = {"eval_loss": sum(gather_object([share])) / self.eval_dataset.num_targets}
        self.validations.append(time.perf_counter() - start)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.state.global_step == 0:  # where it began may stay the best; the Trainer looks at later steps only
            self.state.best_metric, self.state.best_global_step = metrics["eval_loss"], 0
        return metrics

    def _save(self, output_dir: str, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            self.model.save_pretrained(output_dir, save_embedding_layers=False)

    def _save_checkpoint(self, model, trial) -> None:
        assert self.checkpoints is not None  # else nothing is saved
        step = self.state.global_step
        if self.control.should_training_stop and step < self.state.max_steps:
            return  # stopped early: who goes on from the checkpoint before this one stops here again
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # of the three libraries that write
            reason = " ".join(str(error).split())[:200]
            raise Mistake(
                f"{self.checkpoints.folder}/checkpoint-{step}: cannot be written: {reason}; "
                "make room and run again: training goes on from the checkpoint before it"
            ) from None
        self.accelerator.wait_for_everyone()
        if rank() == 0:
            self.checkpoints.seal(step, self.seconds)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise Mistake(
                    f"step {self.state.global_step}: {name} is {logs[name]}: training diverged; try a smaller "
                    f"train.learning_rate (now {self.args.learning_rate}) or train.max_grad_norm"
                )
        super().log(logs, start_time)


def joined_gradients(model: PeftModel) -> torch.Tensor:
    """Give what is trained its gradients as views of one array, and the weights of the first process; return it."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.zeros(sum(weight.numel() for weight in trained), device=trained[0].device)
    for weight, gradient in zip(trained, gradients.split([weight.numel() for weight in trained])):
        torch.distributed.broadcast(weight.data, src=0)
        weight.grad = gradient.view_as(weight)
    return gradients


def summed_nll(model: PeftModel, examples: Blocks | Rows, batch_size: int, first: int = 0, stride: int = 1) -> float:
    """Return the summed negative log-likelihood, in nats, of all targets, or of those of each `stride`-th batch."""
    training = model.training
    model.eval()
    nll, order = 0.0, np.argsort(-examples.lengths, kind="stable")  # the longest first: little padding
    batches = range(first * batch_size, len(examples), stride * batch_size)
    for begin in tqdm(batches, "validation", unit="batch", leave=False, disable=True if first else None):
        scored = [examples.scored(index) for index in order[begin : begin + batch_size]]
        inputs, labels = ([*column] for column in zip(*scored))
        nll += score_tokens(model, inputs, labels)[0].nll.cpu().numpy().sum()
    model.train(training)
    return float(nll)


class Schedule(TrainerCallback):
    """When checkpoints are written: with each evaluation, and after so many minutes without.

    Only where the loss is logged, and the loss is logged wherever one is written:
    the mean that a point of the curve shows never spans an interruption.
    """

    def __init__(self, sampler: Shuffled, minutes: float) -> None:
        self.sampler, self.minutes = sampler, minutes
        self.last = time.monotonic()

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.sampler.epoch = int(state.epoch)  # accelerate would not tell it after a resumption by several processes

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_log |= control.should_evaluate or control.should_save
        if control.should_log and args.save_strategy == "steps":
            due = [time.monotonic() - self.last > 60 * self.minutes]
            control.should_save |= broadcast_object_list(due)[0]

    def on_save(self, args, state, control, **kwargs) -> None:
        self.last = time.monotonic()


class Pace(TrainerCallback):
    """A progress bar with the last loss and tokens per second beside it, and what these come to.

    How long it will take is said after a few steps, for those who see no bar.
    """

    bar: tqdm

    def __init__(self, trainer: LoraTrainer, warm_up_steps: int, step_tokens: float, step_targets: float) -> None:
        super().__init__()
        self.trainer, self.warm_up_steps = trainer, warm_up_steps
        self.step_tokens, self.step_targets = step_tokens, step_targets
        self.steps = 0
        self.start = self.warm = self.now = 0.0  # working seconds: without those of validation

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.bar = tqdm(desc="train", unit="step", total=state.max_steps, disable=True if rank() else None)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if self.steps == 0:
            self.start = self.warm = self._working_seconds()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.bar.update(state.global_step - self.bar.n)
        self.steps += 1
        if self.steps == self.warm_up_steps:
            self.warm = self._working_seconds()
        if self.steps == self.warm_up_steps + MEASURED_STEPS and state.is_world_process_zero:
            left, validations = state.max_steps - state.global_step, self.trainer.validations
            seconds = left * (self._working_seconds() - self.warm) / MEASURED_STEPS
            seconds += math.ceil(left / state.eval_steps) * sum(validations) / max(1, len(validations))
            tqdm.write(f"about {seconds / 60:,.0f} minutes to go" if seconds > 90 else "about a minute to go, or less")

    def on_log(self, args, state, control, logs: dict[str, float], **kwargs) -> None:
        if "loss" not in logs:
            return
        self.now = self._working_seconds()
        rate = f"{self.tokens_per_second:,.0f}" if self.steps > self.warm_up_steps else "…"
        self.bar.set_postfix({"loss": f"{logs['loss']:.3f}", "tokens/s": rate}, refresh=False)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.close()

    @property
    def warm_up_seconds(self) -> float:
        return self.warm - self.start

    @property
    def tokens_per_second(self) -> float:
        """Tokens read per second, until the last log entry."""
        return self.step_tokens * self._steps_per_second()

    @property
    def targets_per_second(self) -> float:
        """Targets learned from per second."""
        return self.step_targets * self._steps_per_second()

    def _steps_per_second(self) -> float:
        steps = self.steps - self.warm_up_steps
        return steps / (self.now - self.warm) if steps > 0 else 0.0

    def _working_seconds(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self.trainer.validation_seconds
