"""Measure this trainer beside others, on this machine.   params.yaml, models/base -> a table on stdout

Not a stage: `python -m commands.benchmark --help`. Every row is a process of its own, or several; all train the
adapter that params.yaml describes on the same random blocks, or conversations, half of whose tokens are answers. The
last loss and the norm of its gradient stand beside the speed: a trainer that skips work looks fast. Others than
this project's trainer are:

trainer      the Hugging Face Trainer as tutorials use it: model prepared for k-bit training, gradient checkpointing
unsloth      Unsloth where it is installed; its fast kernels have no dropout, so set lora.dropout to 0 beside it

With `--start-up` it measures how long a stage takes to start and load the model of params.yaml, beside the libraries
alone doing so.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.lib.params import read_params
from stages.lib.training.processes import num_processes, rank
from stages.lib.training.recipe import LoraParams, Recipe, SettledParams

if TYPE_CHECKING:
    from stages.lib.training.examples import Blocks, Rows

SYSTEMS = ("trainer", "unsloth-checkpointing", "unsloth", "this-checkpointing", "this")
LONG = "this-offloading"  # for long blocks; measured where it is asked for
START_UPS = 5  # of each kind, in turn; the fastest counts
LIBRARIES_ALONE = """
import torch, transformers
kind = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
options = {"quantization_config": transformers.BitsAndBytesConfig(**kind)} if %(bits)d == 4 else {}
transformers.AutoModelForCausalLM.from_pretrained("%(folder)s", device_map={"": %(device)r}, **options)
"""
STAGE = """
import stages.evaluate
from stages.lib.inputs import Inputs
from stages.lib.model.loading import load_model
from stages.lib.model.quantization import Quantization
from stages.lib.scoring.evaluation import evaluate
load_model("%(model)s", Quantization(bits=%(bits)d, kind="nf4", double=True))
"""
WARM_UP_STEPS = 10  # of the others


class Shape(NamedTuple):
    """Of a step's blocks, or conversations."""

    batch_size: int
    block_tokens: int  # of conversations, about so many
    micro_batch_size: int
    conversations: bool


@dataclass(frozen=True)
class Measured:
    """A row; what does not apply to its system is None."""

    tokens_per_second: float
    loss: float
    grad_norm: float
    peak_gib: float
    estimated_gib: float | None = None
    warm_up_seconds: float | None = None


COLUMNS = [field.name for field in fields(Measured)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "shapes",
        nargs="*",
        help="batch x length, such as 4x512; 4x512/2: two blocks at a time; 4x200c: conversations of about 200 tokens",
    )
    parser.add_argument("--systems", nargs="+", choices=(*SYSTEMS, LONG), default=SYSTEMS)
    parser.add_argument("--processes", type=int, default=1, help="that share each batch of this project's trainer")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps a row")
    parser.add_argument("--random-weights", action="store_true", help="of the model only its config.json is needed")
    parser.add_argument("--start-up", action="store_true", help="measure how long stages take to start")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the weights, where a row is measured
    options = parser.parse_args()
    if options.steps <= WARM_UP_STEPS:
        parser.error(f"--steps: more than {WARM_UP_STEPS}, which are for warming up")
    params = read_params(Recipe)
    if options.folder:
        found = measure(options.systems[0], read_shape(options.shapes[0]), options.folder, options.steps, params)
        if rank() == 0:
            print(json.dumps(asdict(found)))
        return
    if wrong := [shape for shape in options.shapes if read_shape(shape).micro_batch_size % options.processes]:
        parser.error(f"{wrong[0]}: {options.processes} processes cannot share a micro-batch of so many")
    if options.start_up:
        start_up(params.model)
    if not options.shapes:
        return
    systems = [name for name in options.systems if not name.startswith("unsloth") or find_spec("unsloth")]
    print(f"| batch x length | system | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_random(params.model, Path(scratch)) if options.random_weights else find_weights(params.model)
        for shape in options.shapes:
            for system in systems:
                found = row(system, shape, folder, options.steps, options.processes if "this" in system else 1)
                print(f"| {shape} | {system} | {' | '.join(found)} |", flush=True)


def start_up(model: str) -> None:
    """Print a table of the seconds that a stage and the libraries alone take to start and load a model."""
    from stages.lib.model.loading import device

    print("| weights | libraries alone: seconds | a stage: seconds | ratio |\n|---|---|---|---|")
    for bits in (16, 4):
        facts = {"model": model, "folder": find_weights(model), "bits": bits, "device": str(device())}
        seconds = [[time_of(code % facts) for code in (LIBRARIES_ALONE, STAGE)] for _ in range(START_UPS)]
        alone, stage = map(min, zip(*seconds))
        print(f"| {bits} bit | {alone:.2f} | {stage:.2f} | {stage / alone:.2f} |", flush=True)
    print()


def time_of(code: str) -> float:
    """Return the seconds that a new process takes for it."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def read_shape(text: str) -> Shape:
    """Read such as 4x1024, 4x1024/2 or 64x200c."""
    match = re.fullmatch(r"(\d+)x(\d+)(c?)(?:/(\d+))?", text)
    if not match:
        raise SystemExit(f"{text}: expected batch x length, such as 4x512, 4x512/2 or 4x200c")
    batch, length, kind, micro = match.groups()
    return Shape(int(batch), int(length), int(micro or batch), kind == "c")


def row(system: str, shape: str, folder: Path, steps: int, processes: int) -> list[str]:
    """Measure in processes of their own; what they fail with goes to stderr."""
    several = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *several, "-m", "commands.benchmark", shape, "--systems", system, "--steps", str(steps)]
    ran = subprocess.run([*command, "--folder", str(folder)], capture_output=True, text=True)
    if ran.returncode:
        print(ran.stderr, file=sys.stderr)
        return ["failed"] + [""] * (len(COLUMNS) - 1)
    found = Measured(**json.loads(ran.stdout.splitlines()[-1]))
    others = [found.peak_gib, found.estimated_gib, found.warm_up_seconds]
    exact = [f"{found.tokens_per_second:,.0f}", f"{found.loss:.4f}", f"{found.grad_norm:.4f}"]
    return [*exact, *("" if value is None else f"{value:,.2f}" for value in others)]


def find_weights(model: str) -> Path:
    from stages.lib.sources.source import fetch_model

    return fetch_model(model, ["*.json", "*.safetensors"])


def save_random(model: str, folder: Path) -> Path:
    """Save a model of the right shapes that has learned nothing: its speed and memory are those of the real one."""
    from transformers import AutoModelForCausalLM

    from stages.lib.model.loading import compute_dtype, device, load_config
    from stages.lib.sources.source import fetch_model

    with device():
        AutoModelForCausalLM.from_config(load_config(model), dtype=compute_dtype()).save_pretrained(folder)
    for file in fetch_model(model, ["tokenizer*.json"]).glob("tokenizer*.json"):  # Unsloth insists on one
        shutil.copy(file, folder)
    return folder


def measure(system: str, shape: Shape, folder: Path, steps: int, params: Recipe) -> Measured:
    """Train for some steps on random blocks."""
    batch_size, length, micro_batch_size, conversations = shape
    checkpointing = system.endswith(("-checkpointing", "-offloading")) or system == "trainer"
    model = load_unsloth(folder, length, checkpointing, params.lora) if system.startswith("unsloth") else None

    from accelerate import PartialState

    from stages.lib.metrics import peak_bytes
    from stages.lib.model.adapter import add_adapter
    from stages.lib.model.loading import device, load_config, load_weights
    from stages.lib.training.fit import fit
    from stages.lib.training.memory import bf16_is_faster, estimate, shape_of

    bf16 = bf16_is_faster() if params.train.bf16_on_cpu == "auto" else params.train.bf16_on_cpu
    changes = {
        "epochs": 1,
        "early_stopping_patience": 0,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size // num_processes(),
        "gradient_checkpointing": checkpointing,
        "activation_offloading": system == LONG,
        "compile": device().type == "cuda" and params.train.compile is not False,
        "bf16_on_cpu": device().type == "cpu" and bf16,
    }
    PartialState(cpu=device().type == "cpu")  # joins the other processes, if there are any
    train = SettledParams.model_validate(params.train.model_dump() | changes)
    config = load_config(params.model)
    blocks = (random_rows if conversations else random_blocks)(shape, steps, config.vocab_size)
    if model is None:
        model = load_weights(folder, params.quantization).requires_grad_(False).eval()
    if system.startswith("this"):
        fitted = fit(add_adapter(model, params.lora), blocks, None, train, live=None)
        memory = estimate(shape_of(config, params.lora), params.quantization, train, blocks.largest(train))
        last, cost = last_entry(fitted.log), fitted.cost
        peaks = peak_bytes() / 2**30, memory.peak / 2**30
        return Measured(cost["tokens_per_second"], *last, *peaks, cost.get("warm_up_seconds"))
    if system == "trainer":
        from peft import prepare_model_for_kbit_training

        model = add_adapter(prepare_model_for_kbit_training(model), params.lora)
    rate = packed_rate if conversations else plain_rate
    return Measured(*rate(model, blocks, train), peak_bytes() / 2**30)


def last_entry(log: list[dict]) -> tuple[float, float]:
    """Return the loss and the gradient's norm that a Trainer logged last."""
    last = [entry for entry in log if "grad_norm" in entry][-1]
    return last["loss"], float(last["grad_norm"])


def random_blocks(shape: Shape, steps: int, vocabulary: int) -> "Blocks":
    """Return blocks of random tokens for so many steps."""
    from stages.lib.data.documents import Document
    from stages.lib.training.examples import Blocks

    number = steps * shape.batch_size * (shape.block_tokens - 1)
    tokens = np.random.default_rng(0).integers(3, vocabulary, number)
    return Blocks([Document("random", "", "", tokens, np.ones(number, bool))], [1], shape.block_tokens)


def random_rows(shape: Shape, steps: int, vocabulary: int) -> "Rows":
    """Return rows of random tokens whose lengths differ (log-normal, sigma 0.4); the second half of each is learned."""
    from stages.lib.data.documents import Document
    from stages.lib.training.examples import Rows

    rng = np.random.default_rng(0)
    lengths = (shape.block_tokens * rng.lognormal(-0.08, 0.4, steps * shape.batch_size)).astype(int) + 2
    tokens = (rng.integers(3, vocabulary, length).astype(np.int32) for length in lengths)
    return Rows(
        Document("random", "", "", ids, np.arange(len(ids)) >= len(ids) // 2, conversation="{}") for ids in tokens
    )


def load_unsloth(folder: Path, length: int, checkpointing: bool, lora: LoraParams) -> Any:
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]  # before transformers, which it patches

    recompute = "unsloth" if checkpointing else False
    model, _ = FastLanguageModel.from_pretrained(
        str(folder),
        max_seq_length=length,
        load_in_4bit=True,
        use_gradient_checkpointing=recompute,
        use_exact_model_name=True,
        local_files_only=True,
    )
    return FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_gradient_checkpointing=recompute,
    )


def packed_rate(model: Any, rows: Any, params: SettledParams) -> tuple[float, float, float]:
    """Return what `plain_rate` does for rows packed as Unsloth does: it is told the length of each."""
    import torch

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        lengths = [len(example["labels"]) for example in examples]
        packed = {name: torch.cat([example[name] for example in examples])[None] for name in ("input_ids", "labels")}
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        return packed | {"position_ids": positions, "packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32)}

    return plain_rate(model, rows, params, collate)


def plain_rate(model: Any, blocks: Any, params: SettledParams, collate: Any = None) -> tuple[float, float, float]:
    """Return tokens per second, loss and norm of the gradient of the Hugging Face Trainer on an adapted model."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    from stages.lib.model.loading import compute_dtype

    times = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step in (WARM_UP_STEPS, state.max_steps):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=1,
            per_device_train_batch_size=params.micro_batch_size,
            gradient_accumulation_steps=params.batch_size // params.micro_batch_size,
            learning_rate=params.learning_rate,
            optim=params.optimizer,
            bf16=compute_dtype() == torch.bfloat16,
            fp16=compute_dtype() == torch.float16,
            logging_steps=0.01,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
        )
        trainer = Trainer(model, arguments, data_collator=collate or default_data_collator, train_dataset=blocks)
        trainer.add_callback(Clock())
        trainer.train()
    steps = trainer.state.max_steps - WARM_UP_STEPS
    rate = steps * blocks.num_tokens / len(blocks) * params.batch_size / (times[1] - times[0])
    return rate, *last_entry(trainer.state.log_history)


if __name__ == "__main__":
    main()
