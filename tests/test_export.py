"""What is exported is what was measured: in transformers by its tensors, and in llama.cpp by what it computes."""

import importlib.util

import numpy as np
import pytest
import torch
from support.exporting import CHATML, FAMILIES, TEXT, write_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from stages.lib.conversations.template import Template
from stages.lib.export.ends import find_ends
from stages.lib.export.gguf_files import load_tensors, write_gguf
from stages.lib.export.llama_cpp import serving
from stages.lib.export.proof import score_answers_of

TEMPLATE = Template(CHATML, CHATML, "chat_template.jinja", {"bos_token": "<s>", "eos_token": "</s>"}, "2025-01-01")
IDS = torch.arange(10, 60)[None]
runs_llama_cpp = pytest.mark.skipif(
    not importlib.util.find_spec("xllamacpp"), reason="needs xllamacpp: requirements-export.txt"
)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def export(folder, path, kind, template=TEMPLATE):
    ends = find_ends(folder, Tokenizer.from_file(str(folder / "tokenizer.json")), template)
    write_gguf(folder, path, kind, "tiny", template, ends)
    return ends


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("F32", 1e-6), ("F16", 4e-3), ("BF16", 3e-2), ("Q8_0", 5e-2), ("Q5_1", 0.3), ("Q4_0", 0.6)]
)
@torch.inference_mode()
def test_a_model_comes_back_from_its_file_within_the_precision_of_the_type(family, kind, tolerance, tmp_path):
    folder = write_model(family, tmp_path / "model")
    expected = load(folder)(IDS).logits
    export(folder, tmp_path / "a.gguf", kind)
    back = load(folder)
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.zero_()
    load_tensors(tmp_path / "a.gguf", back)
    assert (back(IDS).logits - expected).norm() / expected.norm() < tolerance


@runs_llama_cpp
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_transformers_does(family, tmp_path):
    folder = write_model(family, tmp_path / "model")
    export(folder, tmp_path / "a.gguf", "F32")
    prompts = [list(range(10, 10 + length)) for length in (5, 20, 40)]
    with serving(tmp_path / "a.gguf", 64) as server:
        found = [server.complete(prompt, 12) for prompt in prompts]
    expected, _ = score_answers_of(load(folder), prompts, [one.ids for one in found])
    told = np.concatenate([one.log_probs for one in found])
    np.testing.assert_allclose(told[~np.isnan(told)], expected[~np.isnan(told)], atol=2e-3)
    assert (~np.isnan(told)).sum() >= 12


@runs_llama_cpp
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_makes_the_same_tokens_of_texts_and_of_messages(family, tmp_path):
    folder = write_model(family, tmp_path / "model")
    export(folder, tmp_path / "a.gguf", "Q8_0")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    messages = [
        {"role": "user", "content": TEXT[0]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "3?"},
    ]
    with serving(tmp_path / "a.gguf", 64) as server:
        for text in [*TEXT, "", " a", "12 345 6789", "\n\n \n"]:
            assert server.tokenize(text, begin=False) == tokenizer.encode(text, add_special_tokens=False).ids
        asked = TEMPLATE.render(messages, prompt=True)
        assert server.render(messages) == asked
        assert server.tokenize(asked) == tokenizer.encode(asked, add_special_tokens=False).ids
