"""The memory estimate: exact where things are counted, close where they were fitted, and obeyed."""

import re
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import EOS, FAMILIES, LLAMA_1B, QWEN_HALF_B, REPOSITORY, document, tiny
from support.training import PARAMS
from transformers import AutoConfig

from commands.benchmark import random_rows, read_shape
from stages.lib.params import Mistake
from stages.lib.training import memory
from stages.lib.training.examples import Blocks, Room
from stages.lib.training.memory import GIB, choose, estimate, settle, shape_of

MEASURED = {  # (blocks at once, tokens, recomputing, dropout): GiB that PyTorch allocated of an H200, NF4, compiled
    (4, 512, False, 0.05): 3.57,
    (4, 1024, False, 0.05): 6.01,
    (8, 512, False, 0.05): 6.01,
    (2, 2048, False, 0.05): 6.01,
    (1, 4096, False, 0.05): 6.01,
    (1, 8192, False, 0.05): 10.94,
    (4, 2048, False, 0.05): 10.94,
    (16, 1024, False, 0.05): 20.81,
    (4, 512, False, 0.0): 2.95,
    (4, 1024, False, 0.0): 4.72,
    (16, 1024, False, 0.0): 15.71,
    (1, 1024, True, 0.05): 1.30,
    (2, 1024, True, 0.05): 1.48,
    (2, 1024, True, 0.0): 1.45,
    (4, 1024, True, 0.05): 1.75,
    (16, 1024, True, 0.05): 3.57,
    (8, 512, True, 0.05): 1.72,
    (1, 8192, True, 0.05): 2.36,
}
OTHERS = [  # model, blocks at once of 1024 tokens, other parameters of the recipe, GiB
    (LLAMA_1B, 4, {"optimizer": "paged_adamw_8bit"}, 5.95),
    (LLAMA_1B, 4, {"compile": False}, 7.44),
    (LLAMA_1B, 4, {"compile": False, "gradient_checkpointing": True}, 1.88),
    (QWEN_HALF_B, 4, {}, 4.29),
    (QWEN_HALF_B, 16, {"gradient_checkpointing": True}, 2.55),
    (QWEN_HALF_B, 4, {"compile": False}, 5.50),
]
LONG = {4096: 1.41, 32_768: 3.12, 65_536: 5.16, 131_072: 9.24}  # tokens: GiB at once, with activations offloaded
BLOCKS = Blocks([document("a", 600)], [EOS], 512)
TRAIN = PARAMS.train.model_copy(update={"activation_offloading": False, "compile": True})


def room(tokens: int) -> Room:
    """A micro-batch whose tokens are all targets."""
    return Room(tokens, tokens)


@pytest.mark.parametrize(("blocks", "tokens", "recompute", "dropout"), MEASURED)
def test_the_estimate_is_within_a_tenth_of_what_was_measured(blocks, tokens, recompute, dropout):
    plan = TRAIN.model_copy(update={"micro_batch_size": blocks, "gradient_checkpointing": recompute})
    shape = shape_of(LLAMA_1B, PARAMS.lora.model_copy(update={"dropout": dropout}))
    estimated = estimate(shape, PARAMS.quantization, plan, room(blocks * tokens)).peak / GIB
    assert estimated == pytest.approx(MEASURED[blocks, tokens, recompute, dropout], rel=0.1)


@pytest.mark.parametrize("tokens", LONG)
def test_so_it_is_of_long_inputs(tokens):
    assert estimate_long(tokens) / GIB == pytest.approx(LONG[tokens], rel=0.1)


def estimate_long(tokens: int) -> float:
    plan = {"micro_batch_size": 1, "gradient_checkpointing": True, "activation_offloading": True}
    shape = shape_of(LLAMA_1B, PARAMS.lora)
    return estimate(shape, PARAMS.quantization, TRAIN.model_copy(update=plan), room(tokens)).peak


@pytest.mark.parametrize(("model", "blocks", "changes", "measured"), OTHERS)
def test_so_it_is_of_another_model_another_optimizer_and_without_compilation(model, blocks, changes, measured):
    plan = TRAIN.model_copy(update={"micro_batch_size": blocks, "gradient_checkpointing": False} | changes)
    estimated = estimate(shape_of(model, PARAMS.lora), PARAMS.quantization, plan, room(blocks * 1024)).peak / GIB
    assert estimated == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("optimizer", "size"), [("adamw_torch_fused", 12), ("adamw_8bit", 6), ("paged_adamw_8bit", 4)])
def test_a_trained_weight_has_a_gradient_and_the_moments_of_its_optimizer(optimizer, size):
    shape = shape_of(LLAMA_1B, PARAMS.lora)
    plan = {"micro_batch_size": 1, "gradient_checkpointing": False, "optimizer": optimizer}
    memory = estimate(shape, PARAMS.quantization, TRAIN.model_copy(update=plan), room(1024))
    assert memory.optimizer == size * shape.trained


@pytest.mark.parametrize(
    ("shape", "steps", "measured"),
    [("4x200c", 400, 2.61), ("64x200c", 60, 14.72), ("4x200c", 1000, 2.78), ("64x200c", 300, 15.39)],
)
def test_so_it_is_of_packed_conversations(shape, steps, measured):
    asked = read_shape(shape)
    plan = {"epochs": 1, "batch_size": asked.batch_size, "micro_batch_size": asked.micro_batch_size}
    train = TRAIN.model_copy(update=plan | {"gradient_checkpointing": False, "compile": True})
    largest = random_rows(asked, steps, LLAMA_1B.vocab_size).largest(train)
    lora = PARAMS.lora.model_copy(update={"dropout": 0.0})
    estimated = estimate(shape_of(LLAMA_1B, lora), PARAMS.quantization, train, largest).peak / GIB
    assert estimated == pytest.approx(measured, rel=0.1)
    assert f"| {measured} | {estimated:.2f} |" in (REPOSITORY / "docs/performance.md").read_text(encoding="utf-8")


def test_the_docs_tell_what_was_measured_and_is_estimated():
    page = (REPOSITORY / "docs/performance.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) of (\d+) \| (yes|no) \| [\d,]+ \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    assert len(rows) == 13
    for blocks, tokens, recompute, measured, estimated in rows:
        plan = {"micro_batch_size": int(blocks), "gradient_checkpointing": recompute == "yes"}
        shape = shape_of(LLAMA_1B, PARAMS.lora)
        largest = room(int(blocks) * int(tokens))
        memory = estimate(shape, PARAMS.quantization, TRAIN.model_copy(update=plan), largest)
        assert float(measured) == MEASURED[int(blocks), int(tokens), recompute == "yes", 0.05]
        assert estimated == f"{memory.peak / GIB:.2f}"
    for tokens, measured in LONG.items():
        assert re.search(rf"^\| {tokens:,} \| [\d,]+ \| {measured} \| {estimate_long(tokens) / GIB:.2f} \|", page, re.M)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_counted_exactly(family):
    model = tiny(family)
    lora = PARAMS.lora.model_copy(update={"target_modules": "all-linear"})
    plan = TRAIN.model_copy(update={"micro_batch_size": 1, "gradient_checkpointing": False})
    found = estimate(shape_of(model.config, lora), PARAMS.quantization.model_copy(update={"bits": 16}), plan, room(32))
    assert found.weights == sum(2 * weight.numel() for weight in model.parameters())


def test_four_bit_weights_take_half_a_byte_and_their_scales():
    shape = shape_of(LLAMA_1B, PARAMS.lora)
    plan = TRAIN.model_copy(update={"micro_batch_size": 1, "gradient_checkpointing": False})
    sizes = {
        double: estimate(shape, PARAMS.quantization.model_copy(update={"double": double}), plan, room(32)).weights
        for double in (False, True)
    }
    saved_bits = 8 * (sizes[False] - sizes[True]) / shape.linear
    assert saved_bits == pytest.approx(0.373, abs=1e-3)  # a parameter (Dettmers et al. 2023, section 3)


@pytest.mark.parametrize(
    ("gib", "asked", "expected"),
    [
        (15, {}, (4, False)),  # a T4
        (4.2, {}, (4, False)),
        (4, {}, (2, False)),
        (3, {}, (2, False)),
        (2.3, {}, (4, True)),
        (1.7, {}, (2, True)),
        (15, {"gradient_checkpointing": True}, (4, True)),
        (15, {"micro_batch_size": 2}, (2, False)),
        (2.0, {"micro_batch_size": 2}, (2, True)),
    ],
)
def test_auto_takes_the_fastest_plan_that_fits(gib, asked, expected, monkeypatch, capsys):
    monkeypatch.setattr(memory, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(memory, "free_bytes", lambda: int(gib * GIB))
    params = PARAMS.train.model_copy(update=asked | {"compile": True})
    settled = settle(params, LLAMA_1B, PARAMS.quantization, PARAMS.lora, BLOCKS)
    assert (settled.micro_batch_size, settled.gradient_checkpointing) == expected
    assert settled.compile is True
    printed = capsys.readouterr().out
    assert f"micro_batch_size: {expected[0]}, gradient_checkpointing: {expected[1]}, activation_off" in printed
    needed = float(printed.split("needed")[1].split()[0])
    assert needed <= gib


def test_what_is_long_goes_to_the_cpu_where_that_has_room(monkeypatch):
    monkeypatch.setattr(memory, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(memory, "free_bytes", lambda: 4 * GIB)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=9 * GIB))
    long = Blocks([document("a", 70_000)], [EOS], 32_768)
    settled = settle(PARAMS.train, LLAMA_1B, PARAMS.quantization, PARAMS.lora, long)
    assert (settled.micro_batch_size, settled.gradient_checkpointing, settled.activation_offloading) == (1, True, True)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB))
    with pytest.raises(
        Mistake, match=r"7.\d GiB of GPU memory, 4.0 are free; try .*\. Offloading would need 4.0 GiB of CPU"
    ):
        settle(PARAMS.train, LLAMA_1B, PARAMS.quantization, PARAMS.lora, long)
    asked = PARAMS.train.model_copy(update={"activation_offloading": True})
    with pytest.raises(Mistake, match=r"activation_offloading: 4.0 GiB would go to the CPU's memory, of which 0.5 may"):
        settle(asked, LLAMA_1B, PARAMS.quantization, PARAMS.lora, long)


@pytest.mark.parametrize(
    ("blocks", "batch", "at_once", "compiled"),
    [
        (62, 4, "auto", False),  # 16 steps of 4 epochs, of 16 layers each: 1,024 passes,
        (62, 4, 1, True),  # four times as many,
        (92 * 2, 4, "auto", False),  # 2,944,
        (95 * 2, 4, "auto", True),  # 3,072
        (1000, 256, "auto", True),  # few passes, of many tokens each
    ],
)
def test_a_short_training_is_not_compiled(blocks, batch, at_once, compiled, monkeypatch):
    monkeypatch.setattr(memory, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(memory, "free_bytes", lambda: 140 * GIB)
    text = Blocks([document("a", blocks * 511 - 1)], [EOS], 512)
    asked = PARAMS.train.model_copy(update={"epochs": 4, "batch_size": batch, "micro_batch_size": at_once})
    assert len(text) == blocks and settle(asked, LLAMA_1B, PARAMS.quantization, PARAMS.lora, text).compile is compiled


def test_what_cannot_fit_is_refused_with_what_to_change(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: GIB)
    plan = TRAIN.model_copy(update={"micro_batch_size": 2, "gradient_checkpointing": False})
    message = (
        r"^params.yaml: train: 2 blocks at once need 2.\d GiB of GPU memory, 1.0 are free; try "
        r"train.micro_batch_size: auto, train.gradient_checkpointing: auto, fewer train.block_tokens, a smaller model"
    )
    with pytest.raises(Mistake, match=message):
        choose([plan], shape_of(LLAMA_1B, PARAMS.lora), PARAMS.quantization, BLOCKS)


@pytest.mark.parametrize(
    ("family", "tiled"), [("llama", True), ("gpt2", True), ("bloom", False), ("mixtral", False), ("opt", False)]
)
def test_mlps_of_one_tensor_and_no_experts_work_in_tiles(family, tiled):
    config = AutoConfig.for_model(family, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    targets = ["c_attn"] if family == "gpt2" else "all-linear"
    lora = PARAMS.lora.model_copy(update={"target_modules": targets, "dropout": 0.0})
    assert shape_of(config, lora).tiled is tiled


def test_nothing_is_offloaded_from_a_cpu():
    asked = PARAMS.train.model_copy(update={"activation_offloading": True})
    settled = settle(asked, LLAMA_1B, PARAMS.quantization, PARAMS.lora, BLOCKS)
    assert (settled.activation_offloading, settled.gradient_checkpointing) == (False, False)


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
def test_a_cpu_multiplies_in_bf16_where_that_is_faster_whatever_its_flags_say(slow, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "linear", lambda rows, _: time.sleep(0.002 * (rows.dtype == slow)))
    asked = {"bf16_on_cpu": "auto"}
    for params in (PARAMS.train.model_copy(update=asked), PARAMS.train):
        settled = settle(params, LLAMA_1B, PARAMS.quantization, PARAMS.lora, BLOCKS)
        assert settled.bf16_on_cpu is (slow == torch.float32 and params.bf16_on_cpu == "auto")


def test_on_a_cpu_the_batch_is_not_divided(capsys):
    settled = settle(PARAMS.train, LLAMA_1B, PARAMS.quantization, PARAMS.lora, BLOCKS)
    assert (settled.micro_batch_size, settled.gradient_checkpointing, settled.compile) == (4, False, False)


def test_processes_share_the_batch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert settle(PARAMS.train, LLAMA_1B, PARAMS.quantization, PARAMS.lora, BLOCKS).micro_batch_size == 2
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(Mistake, match=r"batch_size: 4 is no multiple of 3 processes$"):
        settle(PARAMS.train, LLAMA_1B, PARAMS.quantization, PARAMS.lora, BLOCKS)
