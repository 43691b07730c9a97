"""Families of models: whatever each does to its logits, the losses and gradients here are those of its own logits."""

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import BOS, EOS, PAD, VOCABULARY, as_document
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

from stages.lib.answers.generation import Drawing, continue_ids
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.model.adapter import add_adapter
from stages.lib.model.compiled import attended_tokens, decoder_layers, waits_for_values
from stages.lib.model.loading import load_model, load_weights, precision, quantized_fraction, unpacked_weights
from stages.lib.model.logits import vouch
from stages.lib.model.quantization import FULL, Quantization
from stages.lib.params import Mistake
from stages.lib.scoring.document_scores import summarize
from stages.lib.scoring.score import score_tokens
from stages.lib.scoring.windows import score_documents
from stages.lib.sources import source
from stages.lib.sources.source import MODELS
from stages.lib.training.loss import chunked_loss
from stages.lib.training.recipe import LoraParams

NUMBERS = Tokenizer(models.WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="3"))
NF4 = Quantization(bits=4, kind="nf4", double=True)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS_OF_QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
GPT_J = {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 64, "n_ctx": 64}
GEMMA_N = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0}
TEXT = SIZES | {"final_logit_softcapping": 0.5}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
QUIRKS = {  # and settings with which the head does something that would be missed
    "llama": {},
    "granite": {"logits_scaling": 8.0},
    "granitemoe": EXPERTS | {"logits_scaling": 6.0},
    "granitemoeshared": EXPERTS | {"logits_scaling": 6.0, "shared_intermediate_size": 64},
    "granitemoehybrid": EXPERTS
    | MAMBA
    | {"logits_scaling": 6.0, "shared_intermediate_size": 64, "layer_types": ["attention", "mamba"]},
    "granite_swa": {"logits_scaling": 8.0},
    "granitemoe_swa": EXPERTS | {"logits_scaling": 8.0},
    "hyperclovax": {"logits_scaling": 0.125},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "cohere2_moe": {"logit_scale": 0.25},
    "falcon_h1": MAMBA | {"lm_head_multiplier": 0.1, "mamba_d_ssm": 128},
    "minicpm3": {
        "dim_model_base": 16,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
    },
    "recurrent_gemma": {"lru_width": 64, "logits_soft_cap": 0.5, "attention_window_size": 32},
    "xlstm": {"num_heads": 4, "embedding_dim": 64, "output_logit_soft_cap": 0.5},
    "nanochat": {"final_logit_softcapping": 0.5},
    "vaultgemma": {"final_logit_softcapping": 0.5},
    "gemma2": {"final_logit_softcapping": 0.5},
    "gemma3_text": {"final_logit_softcapping": 0.5},
    "gemma3": {"text_config": TEXT, "vision_config": VISION | {"image_size": 28, "patch_size": 14}},
    "gemma3n_text": GEMMA_N
    | {
        "final_logit_softcapping": 0.5,
        "layer_types": ["sliding_attention", "full_attention"],
        "intermediate_size": [96, 96],
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": GEMMA_N | {"final_logit_softcapping": 0.5},
    "gemma4": {"text_config": TEXT | GEMMA_N, "vision_config": VISION},
    "phi": {"num_key_value_heads": 4},
    "gptj": GPT_J,
    "codegen": GPT_J,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0},
    "gpt2": {},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": 64,
    },
    "gpt_neox": {},
    "gpt_bigcode": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2},
    "mistral": {},
    "ministral": {},
    "mixtral": EXPERTS,
    "phimoe": EXPERTS,
    "qwen2": {},
    "qwen2_moe": EXPERTS_OF_QWEN | {"shared_expert_intermediate_size": 64},
    "qwen3": {},
    "qwen3_moe": EXPERTS_OF_QWEN,
    "qwen3_next": EXPERTS_OF_QWEN
    | {
        "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "gpt_oss": EXPERTS | SLIDING,
    "olmo": {},
    "olmo2": {},
    "olmo3": SLIDING,
    "olmoe": EXPERTS_OF_QWEN,
    "phi3": {"original_max_position_embeddings": 64, "max_position_embeddings": 64},
    "stablelm": {},
    "starcoder2": {},
    "glm": {},
    "glm4": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "gemma": {},
    "ernie4_5": {},
    "helium": {},
    "nemotron": {},
    "seed_oss": {},
    "arcee": {},
    "apertus": {},
    "cwm": {},
    "bitnet": {},
    "diffllama": {},
    "doge": {},
    "hunyuan_v1_dense": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "minimax": EXPERTS | {"layer_types": ["linear_attention", "full_attention"]},
    "jetmoe": {"num_local_experts": 4, "kv_channels": 16},
    "persimmon": {},
    "biogpt": {},
    "xglm": {"d_model": 64, "attention_heads": 4, "num_layers": 2, "ffn_dim": 96},
    "ctrl": {},
    "openai-gpt": {},
}


def build(family: str):
    """A random model of a family, whose logits are large enough that what its head does to them matters."""
    settings = QUIRKS.get(family, {})
    sizes = {"bos_token_id": BOS, "eos_token_id": EOS} if "text_config" in settings else SIZES
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes | settings)).eval()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(20)
        if head.bias is not None:
            head.bias.normal_()
    return model.requires_grad_(False)


def spread_adapter(model):
    """Put an adapter on a model that changes what it predicts."""
    targets = ["q_proj", "v_proj"] if model.config.model_type == "falcon_h1" else "all-linear"  # peft allows no more
    lora = LoraParams(r=2, alpha=64, rslora=False, dora=False, init="gaussian", dropout=0.0, target_modules=targets)
    tuned = add_adapter(model, lora)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return tuned.eval()


@pytest.mark.parametrize("family", QUIRKS)
def test_losses_gradients_and_scores_are_of_the_models_own_logits(family):
    tuned = spread_adapter(build(family))
    base = tuned.get_base_model()
    vouch(base)
    ids = torch.randint(3, VOCABULARY, (2, 20))
    own = copy.deepcopy(tuned)
    logits = own(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
    each = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    each.mean().backward()
    with chunked_loss(base):
        found = tuned(input_ids=ids, labels=ids)["loss"]
    found.backward()
    torch.testing.assert_close(found, each.mean(), rtol=1e-6, atol=0)
    wanted, gradient = (
        torch.cat([w.grad.flatten() for w in m.parameters() if w.grad is not None]) for m in (own, tuned)
    )
    assert wanted.norm() > 0
    assert (gradient - wanted).norm() / wanted.norm() < 1e-3
    scores, moved = score_tokens(tuned, list(ids[:, :-1].numpy()), list(ids[:, 1:].numpy()), against_base=True)
    np.testing.assert_allclose(scores.nll, each.detach(), rtol=1e-5)
    with tuned.disable_adapter(), torch.inference_mode():
        before = tuned(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).log_softmax(-1)
    divergence = (before.exp() * (before - logits.detach().log_softmax(-1))).sum(-1)
    np.testing.assert_allclose(moved.kl, divergence, rtol=1e-3, atol=1e-6)
    assert attended_tokens(base) > 1 and not waits_for_values(base) and decoder_layers(base)  # ready for a GPU
    lengths = [9, 4]
    prompts = [row[:length].tolist() for row, length in zip(ids, lengths)]
    for prompt, answer in zip(prompts, continue_ids(tuned, NUMBERS, prompts, [0, 0], Drawing(4), ends=[])):
        for _ in range(answer.tokens):
            with torch.inference_mode():
                prompt.append(int(tuned(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1].argmax()))
        assert answer.text.split() == [str(id) for id in prompt[-answer.tokens :] if id != EOS]
    with torch.inference_mode():
        released = tuned.merge_and_unload()(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    assert (released - logits.detach()).norm() / logits.norm() < 1e-3


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_model_that_looks_ahead_is_refused(family):
    with pytest.raises(Mistake, match=r"not a decoder: what it predicts changes by \S+ nats with the tokens that foll"):
        vouch(build(family))


def outer_scale(model, input_ids, use_cache):
    """What a family might do before its decoder, where no head shows it."""
    embedded = model.get_input_embeddings()(input_ids) * 1.05
    hidden = model.get_decoder()(inputs_embeds=embedded, use_cache=use_cache).last_hidden_state
    return type("Output", (), {"logits": model.lm_head(hidden)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_logits_come_about_otherwise_is_refused(model, dtype, monkeypatch):
    vouch(model.to(dtype))
    monkeypatch.setattr(LlamaForCausalLM, "forward", outer_scale)
    with pytest.raises(Mistake, match=r"^LlamaForCausalLM: scored here, a token has \S+ nats more or less than by the"):
        vouch(model)


def test_a_model_that_cannot_be_asked_is_refused_in_a_line(model, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda model, **inputs: model.nothing)
    with pytest.raises(Mistake, match=r"^LlamaForCausalLM: not a causal language model that can be scored here: .*$"):
        vouch(model)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of wiki-mini under models/base/, to be rewritten."""
    folder = shutil.copytree(MODELS / "wiki-mini", tmp_path / "copy", ignore=shutil.ignore_patterns("*.csv", "*.py"))
    monkeypatch.setattr(source, "MODELS", tmp_path)
    return folder


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def perplexity(name: str, adapter=None) -> float:
    text = (source.DATASETS / "encyclopedia/violin.md").read_text()
    tokens = np.array(load_tokenizer(name).encode(text, add_special_tokens=False).ids, np.int32)
    scores = score_documents(load_model(name, FULL, adapter), [as_document("violin", tokens)], 512, 256, 2)
    return summarize(scores).perplexity


def test_wiki_mini_rewritten_as_an_equal_granite_has_the_perplexity_of_wiki_mini(copied):
    shutil.copytree(MODELS / "wiki-mini", copied.parent / "wiki-mini")
    scaled = {"attention_multiplier": 64**-0.5, "embedding_multiplier": 1.0, "residual_multiplier": 1.0}
    change(copied / "config.json", **scaled, model_type="granite", logits_scaling=8.0, tie_word_embeddings=False)
    change(copied / "config.json", architectures=["GraniteForCausalLM"], dtype="float32")
    weights = load_file(copied / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].float() * 8
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    assert perplexity("copy") == pytest.approx(perplexity("wiki-mini"), rel=1e-6)


def test_what_generation_config_asks_for_reaches_nobody(copied):
    change(copied / "generation_config.json", repetition_penalty=5.0, num_beams=3, suppress_tokens=[5], do_sample=True)
    change(copied / "generation_config.json", no_repeat_ngram_size=1, forced_eos_token_id=1, min_new_tokens=9)
    config = load_model("copy", FULL).generation_config
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    assert config.to_diff_dict() == GenerationConfig(**ids).to_diff_dict()
    assert (config.bos_token_id, config.eos_token_id) == (0, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 7}, r"config.json describes a model without model.layers.7\S+, .* and 6 more, which"),
        ({"num_hidden_layers": 9}, r"the weights lack model.layers.8\S+, .* and 6 more"),
        ({"intermediate_size": 512}, r"not a causal language model that transformers can load"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            r"its weights are stored quantised",
        ),
        ({"model_type": "t5", "d_model": 8}, r"not a decoder but an encoder and a decoder \(t5\)"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, r"not a model that transformers can load"),
    ],
)
def test_a_config_that_is_not_of_these_weights_is_refused(copied, values, message):
    change(copied / "config.json", **values)
    with pytest.raises(Mistake, match=rf"copy: {message}") as refusal:
        load_weights(copied, FULL)
    assert "\n" not in str(refusal.value)


def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(copied):
    change(copied / "config.json", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})
    (copied / "mine.py").write_text("raise SystemExit('run')")
    assert type(load_weights(copied, FULL)) is LlamaForCausalLM


def test_a_bias_that_config_denies_is_refused(copied):
    weights = load_file(copied / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(384)
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(Mistake, match=r"describes a model without model.layers.0.self_attn.q_proj.bias, which"):
        load_weights(copied, FULL)


def test_an_adapter_in_a_base_models_folder_is_refused(copied):
    (copied / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(Mistake, match=r"copy/adapter_config.json: an adapter lies in a base model's folder; take it"):
        load_weights(copied, FULL)


def saved(family: str, folder):
    build(family).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["falcon", "mpt"])
def test_four_bit_that_reaches_no_layer_is_refused(family, tmp_path, monkeypatch):
    monkeypatch.setitem(QUIRKS, "falcon", {"num_kv_heads": 4, "new_decoder_architecture": True})
    monkeypatch.setitem(SIZES, "head_dim", 16)
    if family == "falcon":
        monkeypatch.delitem(SIZES, "head_dim")
    load_weights(saved(family, tmp_path), FULL)
    if family == "falcon":
        with pytest.raises(Mistake, match=r"can store none of the layers of a FalconForCausalLM in 4 bit; set quant"):
            load_weights(tmp_path, NF4)
    else:
        assert quantized_fraction(load_weights(tmp_path, NF4)) > 0


def test_unpacked_once_four_bit_weights_give_the_same_numbers(monkeypatch):
    model, ids = load_model("wiki-mini", NF4), torch.arange(40)[None]
    layer, exact = next(part for part in model.modules() if isinstance(part, Linear4bit)), model(ids).logits
    with monkeypatch.context() as short:
        short.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000_000))
        with unpacked_weights(model):
            assert "forward" not in vars(layer)  # there is no room
    with unpacked_weights(model):
        assert "forward" in vars(layer) and torch.equal(model(ids).logits, exact)
    assert "forward" not in vars(layer)


def test_the_share_of_the_weights_that_is_quantised_is_measured():
    model = load_model("wiki-mini", NF4)
    config = model.config
    kept = config.vocab_size * 384 + (2 * 8 + 1) * 384  # embeddings, which are the head's too, and norms
    assert quantized_fraction(model) == pytest.approx(1 - kept / LlamaForCausalLM(config).num_parameters())
    assert precision(model, NF4).startswith(f"nf4 ({quantized_fraction(model):.0%} of the weights), computed in ")
    assert quantized_fraction(load_model("wiki-mini", FULL)) == 0


def test_experts_that_stay_as_they_are_are_not_called_quantised(tmp_path, monkeypatch):
    monkeypatch.setitem(QUIRKS, "mixtral", EXPERTS)
    model = load_weights(saved("mixtral", tmp_path), NF4)
    assert 0 < quantized_fraction(model) < 0.5
