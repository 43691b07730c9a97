"""Compiled training is the same training, graphed decoding the same text: needs a GPU, and is skipped without one."""

import copy
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import EOS, FAMILIES, document, tiny
from support.training import PARAMS, Silent, conversations, settled, undropped
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import set_seed

from stages.lib.answers.generation import continue_prompts
from stages.lib.answers.sampling import GenerateParams
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.model.adapter import add_adapter
from stages.lib.model.compiled import compiled_layers, decoder_layers
from stages.lib.model.loading import load_model
from stages.lib.model.packing import can_pack
from stages.lib.training import fit as fitting
from stages.lib.training.examples import Blocks
from stages.lib.training.fit import check_dtypes, fit

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="compares GPU code with GPU code")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_every_family_are_found(family):
    layers = decoder_layers(tiny(family))
    assert len(layers) == 2 and type(layers[0]).__name__.endswith(("Layer", "Block"))


def test_equal_layers_share_their_code_which_takes_any_length(model, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    tuned = add_adapter(model, PARAMS.lora).train()
    torch._dynamo.utils.counters.clear()
    with compiled_layers(model, recompute=False, dynamic=True):
        for length in (40, 56, 33):
            ids = torch.arange(length)[None]
            model.get_decoder()(input_ids=ids % 50, position_ids=ids, use_cache=False)[0].sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # of both layers, and of the norm
    assert all(weight.grad is not None for weight in tuned.parameters() if weight.requires_grad)


@on_gpu
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_training_gives_the_losses_of_eager_training(family, dtype, recompute, monkeypatch):
    monkeypatch.setattr("stages.lib.training.fit.compute_dtype", lambda: dtype)
    base = tiny(family).requires_grad_(False).to("cuda", dtype)
    blocks = Blocks([document(str(number % 3), 60) for number in range(12)], [EOS], 32)
    targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
    curves = {}
    for compiled in (False, True):
        torch.compiler.reset()
        params = {"epochs": 6, "learning_rate": 0.05, "compile": compiled}
        params["gradient_checkpointing"] = compiled and recompute
        set_seed(1)
        model = add_adapter(
            copy.deepcopy(base), PARAMS.lora.model_copy(update={"dropout": 0.0, "target_modules": targets})
        )
        live = Silent()
        fit(model, blocks, blocks, settled(batch_size=4, **params), live)
        assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
        curves[compiled] = [loss for _, loss in live.points["train/loss"]], live.points["validation/loss"][-1][1]
    eager, compiled = curves[False], curves[True]
    assert min(eager[0]) < eager[0][0] - 0.1
    torch.testing.assert_close(torch.tensor(compiled[0]), torch.tensor(eager[0]), rtol=0.02, atol=0)
    assert compiled[1] == pytest.approx(eager[1], rel=0.01)


@on_gpu
@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_packed_rows_give_the_losses_of_padded_ones_compiled_or_not(family, flash, monkeypatch):
    """With flash attention, and with the mask of GPUs that have none, nor cuDNN's attention."""
    monkeypatch.setattr("stages.lib.model.packing.has_flash", lambda _: flash)
    kernels = [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION]
    kernels += [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION] * flash
    base, rows = undropped(tiny(family)).requires_grad_(False).to("cuda", torch.bfloat16), conversations()
    targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
    lora = PARAMS.lora.model_copy(update={"dropout": 0.0, "target_modules": targets})
    curves, replays = {}, count_replays(monkeypatch)
    for packed, compiled in ((False, False), (True, False), (True, True)):
        torch.compiler.reset()
        monkeypatch.setattr(fitting, "can_pack", lambda *given, packed=packed: packed and can_pack(*given))
        set_seed(1)
        model, live = add_adapter(copy.deepcopy(base), lora), Silent()
        plan = settled(batch_size=4, micro_batch_size=4, epochs=6, learning_rate=0.05, compile=compiled)
        with sdpa_kernel(kernels):
            fit(model, rows, rows, plan, live)
        curves[packed, compiled] = [loss for name in ("train", "validation") for _, loss in live.points[f"{name}/loss"]]
        assert bool(replays) == compiled
    padded = torch.tensor(curves[False, False])
    assert padded[-1] < padded[0] - 0.03  # nats
    for curve in curves.values():
        torch.testing.assert_close(torch.tensor(curve), padded, rtol=0.02, atol=0)


@on_gpu
@pytest.mark.parametrize(
    ("bits", "lora", "optimizer"),
    [
        (4, {}, "paged_adamw_8bit"),
        (4, {}, "paged_adamw_32bit"),
        (4, {"dora": True}, "adamw_torch_fused"),
        (4, {"init": "loftq", "rslora": True}, "adamw_8bit"),
        (4, {"target_modules": "all-linear"}, "adamw_torch_fused"),
        (8, {}, "adamw_torch_fused"),
        (16, {"init": "pissa"}, "adamw_torch_fused"),
    ],
)
def test_every_variant_learns_compiled(bits, lora, optimizer):
    torch.compiler.reset()
    blocks = Blocks([document("a", 40)] * 4, [1], 32)
    base = load_model("wiki-mini", PARAMS.quantization.model_copy(update={"bits": bits}))
    model = add_adapter(base, PARAMS.lora.model_copy(update=lora))
    live = Silent()
    fit(model, blocks, blocks, settled(compile=True, optimizer=optimizer, learning_rate=0.01), live)
    check_dtypes(model)
    losses = [loss for _, loss in live.points["validation/loss"]]
    assert losses[-1] < losses[0] - 0.5


@on_gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_graphed_decoding_gives_the_text_of_plain_generation(family, monkeypatch):
    model = tiny(family).to("cuda")
    params = GenerateParams(seed=1, max_new_tokens=24, temperature=0.0, top_p=1.0, held_out=0, answer_tokens=8)
    prompts = ["A cat", "In the north of the country", "1"]
    tokenizer = SimpleNamespace(
        encode=lambda text, **_: SimpleNamespace(ids=[ord(letter) % 50 + 3 for letter in text]),
        decode=lambda ids, **_: str(ids),
    )
    replays = count_replays(monkeypatch)
    graphed = continue_prompts(model, tokenizer, prompts, params)
    assert len(replays) > 10 if family not in ("mistral", "gemma2") else not replays  # whose attention slides
    monkeypatch.setattr("stages.lib.answers.generation.graphed_decoding", lambda *_: nullcontext())
    assert graphed == continue_prompts(model, tokenizer, prompts, params)


@on_gpu
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_graphed_decoding_draws_the_same_from_a_quantised_model_with_an_adapter(temperature, monkeypatch):
    model = add_adapter(load_model("wiki-mini", PARAMS.quantization), PARAMS.lora).eval()
    params = GenerateParams(seed=1, max_new_tokens=140, temperature=temperature, top_p=0.9, held_out=0, answer_tokens=8)
    prompts, tokenizer = ["The capital of France is", "A"], load_tokenizer("wiki-mini")
    replays = count_replays(monkeypatch)
    graphed = [continue_prompts(model, tokenizer, prompts, params) for _ in range(2)]
    assert graphed[0] == graphed[1] and replays
    monkeypatch.setattr("stages.lib.answers.generation.graphed_decoding", lambda *_: nullcontext())
    assert graphed[0] == continue_prompts(model, tokenizer, prompts, params)


def count_replays(monkeypatch) -> list[None]:
    """Return a list that grows with each replay of a CUDA graph."""
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: [replays.append(None), replay(graph)])
    return replays


@on_gpu
def test_real_lack_of_memory_means_smaller_micro_batches(capsys):
    torch.compiler.reset()
    blocks = Blocks([document("a", 60)] * 400, [1], 512)
    model = add_adapter(load_model("wiki-mini", PARAMS.quantization), PARAMS.lora)
    used = torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((used + 0.35 * 2**30) / total)
    try:
        fitted = fit(model, blocks, None, settled(batch_size=16, micro_batch_size=16, epochs=1), Silent())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with 16 blocks at once; trying 8" in capsys.readouterr().out
    assert fitted.params.micro_batch_size < 16 and len(fitted.log) > 1
