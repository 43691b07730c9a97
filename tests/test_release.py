"""A release keeps what the base model brought: the precision of its weights, its template, its tokenizer."""

import json
import shutil

import pytest
import torch
from conftest import tiny
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from support.exporting import CHATML, TEXT, write_model
from support.templates import BODY
from tokenizers import Tokenizer

from commands.release import merge, stored_dtype, write_template
from stages.lib.conversations.formats import Conversation
from stages.lib.conversations.targets import Encoder
from stages.lib.conversations.template import PLAIN, Template, load_template


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_released_in_the_precision_they_came_in_whatever_the_config_says(dtype, tmp_path):
    base, adapter, release = (tmp_path / name for name in ("base", "adapter", "release"))
    model = tiny("llama").to(dtype)
    model.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    config.pop("dtype")
    (base / "config.json").write_text(json.dumps(config))
    for name, text in {"chat_template.jinja": BODY, "tokenizer.json": "{}", "special_tokens_map.json": "{}"}.items():
        (base / name).write_text(text)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(adapter)
    merge(base, adapter, release)
    assert stored_dtype(base) == stored_dtype(release) == str(dtype).removeprefix("torch.")
    assert {weight.dtype for weight in load_file(release / "model.safetensors").values()} == {dtype}
    assert json.loads((release / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert (release / "chat_template.jinja").read_text() == BODY
    assert (release / "tokenizer.json").exists() and (release / "special_tokens_map.json").exists()


def test_the_template_that_was_learned_is_released(tmp_path):
    own, named = tmp_path / "own", tmp_path / "named"
    for folder in (own, named):
        folder.mkdir()
        (folder / "chat_template.jinja").write_text("the model's own")
    write_template(Template("the model's own", "", "chat_template.jinja", {}, "2025-01-01"), own)
    assert (own / "chat_template.jinja").read_text() == "the model's own"
    write_template(Template(BODY, BODY, "my/template.jinja", {}, "2025-01-01"), named)
    assert (named / "chat_template.jinja").read_text() == BODY


def test_a_plain_template_begins_where_it_is_released_as_it_did_in_training(tmp_path):
    tokens = {"bos_token": "", "eos_token": "<end>"}  # a tokenizer that puts nothing before a text, though it has a BOS
    template = Template(PLAIN.read_text(), PLAIN.read_text(), "plain", tokens, "2025-01-01")
    write_template(template, tmp_path)
    source = (tmp_path / "chat_template.jinja").read_text()
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    released = Template(source, source, "released", {"bos_token": "<bos>", "eos_token": "<end>"}, "2025-01-01")
    assert released.render(messages) == template.render(messages)
    assert "<bos>" not in released.render(messages)


@pytest.mark.parametrize("learned", ["its own", "another", "plain"])
@pytest.mark.parametrize("family", ["llama", "llama-3"])  # of which the second's tokenizer puts BOS before a text
def test_a_released_model_that_is_tuned_again_is_asked_in_the_same_tokens(learned, family, tmp_path):
    folder, other = write_model(family, tmp_path / "base"), tmp_path / "other.jinja"
    other.write_text(f"Be brief. {CHATML}")
    if learned == "plain":
        (folder / "chat_template.jinja").unlink()
    begin = "<s>" if family == "llama-3" else ""
    template = load_template(folder, begin, other if learned == "another" else None, "2025-01-01")
    release = shutil.copytree(folder, tmp_path / "release")
    write_template(template, release)
    again = load_template(release, begin, None, "2025-01-01")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    told = Conversation([{"role": "user", "content": TEXT[1]}, {"role": "assistant", "content": "No."}], [])
    asked, asked_again = (Encoder.of(one, tokenizer).prompt(told) for one in (template, again))
    assert asked == asked_again and len(asked) > 20
