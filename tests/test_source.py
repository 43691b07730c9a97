"""Models by name: what cannot be loaded says which folder, why, and what to do."""

import json
import shutil

import pytest
from tokenizers import Tokenizer

from stages.lib.data.texts import read_dataset
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.model.loading import load_model
from stages.lib.model.quantization import FULL
from stages.lib.params import Mistake
from stages.lib.sources import source
from stages.lib.sources.source import MODELS


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of wiki-mini under models/base/, to be spoiled."""
    folder = shutil.copytree(MODELS / "wiki-mini", tmp_path / "copy")
    monkeypatch.setattr(source, "MODELS", tmp_path)
    return folder


def test_a_saved_tokenizers_truncation_and_padding_are_switched_off(copied):
    tokenizer = Tokenizer.from_file(str(copied / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8, pad_id=2)
    tokenizer.save(str(copied / "tokenizer.json"))
    encodings = load_tokenizer("copy").encode_batch(["hi", "word " * 100], add_special_tokens=False)
    assert 2 not in encodings[0].ids and len(encodings[1]) >= 100


def test_the_name_of_a_special_token_in_a_text_is_text(copied):
    ids = load_tokenizer("copy").encode("<|end_of_text|>", add_special_tokens=False).ids
    assert len(ids) > 1 and not {0, 1, 2} & set(ids)


@pytest.mark.parametrize("spoiled", ["tokenizer.json", "model.safetensors"])
def test_a_file_that_git_did_not_fetch_is_named(copied, spoiled):
    (copied / spoiled).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(Mistake, match=r"copy"):
        load_tokenizer("copy") if spoiled == "tokenizer.json" else load_model("copy", FULL)


def test_weights_that_lack_a_layer_are_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    with pytest.raises(Mistake, match=r"copy: the weights lack model.layers.8.\S+, .* and 6 more"):
        load_model("copy", FULL)


@pytest.mark.parametrize("read", [lambda: load_tokenizer("llama-3.2-1b"), lambda: list(read_dataset("wikitext-2"))])
def test_without_a_network_the_hub_is_named_in_one_line(read, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:9")  # nobody listens there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        Mistake, match=r"source.yaml: \S+ at [0-9a-f]{40}: the Hugging Face Hub does not answer.*network$"
    ):
        read()
