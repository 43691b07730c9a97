"""The recipe: what params.yaml may say of the model that is trained, its adapter, and how."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stages.lib.model.quantization import Quantization
from stages.lib.params import Section

Auto = Literal["auto"]


class LoraParams(Section):
    """The adapter, in the terms of peft.LoraConfig."""

    r: PositiveInt  # rank of the update
    alpha: PositiveInt  # the update is scaled by alpha / r
    rslora: bool  # scale it by alpha / sqrt(r) instead (Kalajdzievski 2023)
    dora: bool  # learn the length of each weight column apart from its direction (Liu et al. 2024)
    init: Literal["default", "gaussian", "pissa", "loftq"]  # of the adapter's first weights
    dropout: Annotated[float, Field(ge=0, lt=1)]  # of the update's input, while training
    target_modules: list[str] | Literal["all-linear"]  # names of the linear layers that get an update


class TrainParams(Section):
    """How the adapter is trained."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]  # of the adapter's first weights, its dropout, and the order of blocks
    epochs: PositiveInt
    batch_size: PositiveInt  # blocks an optimizer step
    micro_batch_size: PositiveInt | Auto  # of these, worked on at once by a process; auto: as many as fit
    block_tokens: Annotated[int, Field(ge=2)]  # capped by the model's context
    optimizer: Literal["adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]
    learning_rate: PositiveFloat  # peak, after warm-up
    schedule: Literal["linear", "cosine", "constant_with_warmup"]  # from the peak to the end
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]  # of the optimizer steps
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    gradient_checkpointing: bool | Auto  # recompute activations: less memory, a third more time; auto: where needed
    activation_offloading: bool | Auto  # keep their checkpoints in the CPU's memory; auto: where needed
    compile: bool | Auto  # each layer; auto: on a GPU, where training is long enough to win that time back
    bf16_on_cpu: bool | Auto  # multiply in bf16 on a CPU; auto: where it is faster so
    evaluations: PositiveInt  # of the validation loss, evenly over the run, after one before the first step
    early_stopping_patience: NonNegativeInt  # evaluations without a better loss; then the best is kept. 0: never

    @model_validator(mode="after")
    def _agree(self) -> "TrainParams":
        mistakes = []
        if self.micro_batch_size != "auto" and self.batch_size % self.micro_batch_size:
            mistakes.append(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        if self.activation_offloading is True and self.gradient_checkpointing is False:
            mistakes.append("activation_offloading: true needs gradient_checkpointing: true or auto")
        if self.activation_offloading is True and self.compile is False:
            mistakes.append("activation_offloading: true needs compile: true or auto")
        if self.early_stopping_patience >= self.evaluations:
            mistakes.append(
                f"early_stopping_patience {self.early_stopping_patience} cannot be reached in evaluations "
                f"{self.evaluations}; 0 turns it off"
            )
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self


class SettledParams(TrainParams):
    """How it is trained on this machine: nothing is `auto` any more."""

    micro_batch_size: PositiveInt
    gradient_checkpointing: bool
    activation_offloading: bool
    compile: bool
    bf16_on_cpu: bool


class Recipe(Section):
    """All that a training run is defined by, but for the texts."""

    model: str
    quantization: Quantization
    lora: LoraParams
    train: TrainParams

    @model_validator(mode="after")
    def _agree(self) -> "Recipe":
        bits, init = self.quantization.bits, self.lora.init
        if init == "pissa" and bits != 16:
            raise ValueError(
                f"lora.init: pissa changes the base model's weights, which quantization.bits {bits} keeps as they are; "
                "take loftq, or quantization.bits: 16"
            )
        if init == "loftq" and bits != 4:
            raise ValueError(f"lora.init: loftq makes up for 4-bit quantisation; there is none at {bits} bits")
        if init == "pissa" and self.lora.dora:
            raise ValueError("lora: init pissa and dora do not go together: no adapter could hold what both learn")
        return self
