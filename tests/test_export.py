"""What is exported is what was measured: in transformers by its tensors, and in llama.cpp by what it computes."""

import errno
import importlib.util
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from safetensors import SafetensorError
from support.exporting import CHATML, END, EOS, FAMILIES, TEXT, write_model
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from stages.lib.answers.generation import Answer, Drawing, continue_ids
from stages.lib.conversations.template import Template
from stages.lib.export.ends import find_ends, write_ends
from stages.lib.export.gguf_files import load_tensors, write_gguf
from stages.lib.export.kinds import check_types
from stages.lib.export.llama_cpp import serving
from stages.lib.export.proof import check_log_probs, score_answers_of
from stages.lib.export.whole import whole_folder
from stages.lib.params import Mistake
from stages.lib.scoring.protocol import CompareParams

TEMPLATE = Template(CHATML, CHATML, "chat_template.jinja", {"bos_token": "<s>", "eos_token": "</s>"}, "2025-01-01")
IDS = torch.arange(10, 60)[None]
runs_llama_cpp = pytest.mark.skipif(
    not importlib.util.find_spec("xllamacpp"), reason="needs xllamacpp: requirements-export.txt"
)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def running(path):
    """llama.cpp with a file: with one thread, because its threads wait for each other by spinning."""
    return serving(path, 64, threads=1)


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
    with running(tmp_path / "a.gguf") as server:
        found = [server.complete(prompt, 12) for prompt in prompts]
    expected, _ = score_answers_of(load(folder), prompts, [one.ids for one in found])
    told = np.concatenate([one.log_probs for one in found])
    np.testing.assert_allclose(told[~np.isnan(told)], expected[~np.isnan(told)], atol=0.05)
    assert (~np.isnan(told)).sum() >= 12 and abs(np.nanmean(told) / np.mean(expected[~np.isnan(told)]) - 1) < 0.002


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
    with running(tmp_path / "a.gguf") as server:
        for text in [*TEXT, "", " a", "12 345 6789", "\n\n \n"]:
            assert server.tokenize(text, begin=False) == tokenizer.encode(text, add_special_tokens=False).ids
        asked = TEMPLATE.render(messages, prompt=True)
        assert server.render(messages) == asked
        assert server.tokenize(asked) == tokenizer.encode(asked, add_special_tokens=False).ids


DATED = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}" + CHATML
MARKED = CHATML.replace("{{ '<|im_start|>' + m", "{% generation %}{{ '<|im_start|>' + m").replace(
    "\n' }}{% endfor", "\n' }}{% endgeneration %}{% endfor"
)
BEGUN = "{{ bos_token }}" + CHATML


@runs_llama_cpp
@pytest.mark.parametrize("family", ["llama", "llama-3"])  # of which the second's tokenizer puts BOS before a text
@pytest.mark.parametrize("source", [CHATML, DATED, MARKED, BEGUN])
def test_messages_become_the_tokens_that_were_learned_whatever_the_template_writes(source, family, tmp_path):
    folder, template = write_model(family, tmp_path / "model"), replace(TEMPLATE, source=source, with_tools=source)
    ends = export(folder, tmp_path / "a.gguf", "F16", template)
    assert ends.begins == (family == "llama-3" and source == BEGUN)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    messages = [{"role": "system", "content": "Hi."}, {"role": "user", "content": TEXT[1]}]
    expected = tokenizer.encode(template.render(messages, prompt=True), add_special_tokens=False).ids
    with running(tmp_path / "a.gguf") as server:
        assert server.tokenize(server.render(messages)) == expected


@runs_llama_cpp
def test_what_ends_a_turn_ends_it_in_both_runtimes_and_after_release(tmp_path):
    """A model that says the end of a turn after `?` and nothing else: its EOS is another token."""
    folder = write_model("llama", tmp_path / "model")
    model, tokenizer = load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    (asked,) = tokenizer.encode("?", add_special_tokens=False).ids
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight[END] = 100 * model.model.embed_tokens.weight[asked]
    model.save_pretrained(folder)
    ends = export(folder, tmp_path / "a.gguf", "Q8_0")
    assert ends.ids == [EOS, END]
    with running(tmp_path / "a.gguf") as server:
        found = server.complete([10, asked], 8)
    (answer,) = continue_ids(model, tokenizer, [[10, asked]], [0], Drawing(8), ends.ids)
    assert (found.ids, found.ended) == ([END], True) and answer == Answer("", 1, True)
    write_ends(folder, ends)
    assert load(folder).generate(torch.tensor([[10, asked]]), max_new_tokens=8).tolist() == [[10, asked, END]]


@runs_llama_cpp
@pytest.mark.parametrize("change", [{"rope.freq_base": 100.0}, {"attention.layer_norm_rms_epsilon": 0.5}])
def test_a_file_that_says_something_else_than_the_model_does_is_refused(change, tmp_path):
    folder, path = write_model("qwen3", tmp_path / "model"), tmp_path / "a.gguf"
    export(folder, path, "F16")
    model = load(folder)
    load_tensors(path, model)
    params = CompareParams(seed=1, resamples=1000, margin=0.01)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(10, 300, 40).tolist() for _ in range(8)]
    with running(path) as server:
        right = [server.complete(prompt, 8) for prompt in prompts]
    mean, expected, agreed = check_log_probs(model, prompts, right, params, path)
    assert abs(mean / expected - 1) < 0.005 and agreed > 0.9
    reader = gguf.GGUFReader(path, "r+")
    for name, value in change.items():
        reader.fields[f"qwen3.{name}"].parts[-1][0] = value
    del reader
    with running(path) as server:
        wrong = [server.complete(prompt, 8) for prompt in prompts]
    with pytest.raises(Mistake, match=r"(more than 0.5% apart, so|of the time:) llama.cpp does not compute this model"):
        check_log_probs(model, prompts, wrong, params, path)


def test_too_large_a_weight_is_refused_in_f16_and_kept_in_bf16(tmp_path):
    folder = write_model("llama", tmp_path / "model")
    model = load(folder)
    with torch.no_grad():
        model.lm_head.weight[7, 7] = 1e5
    model.save_pretrained(folder)
    with pytest.raises(Mistake, match="holds 1e\\+05, more than F16 can; take BF16 with --types"):
        export(folder, tmp_path / "a.gguf", "F16")
    export(folder, tmp_path / "a.gguf", "BF16")


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("llama", {"model_type": "gpt2"}, "no GGUF of the family gpt2 can be written, only of llama, mistral"),
        ("llama", {"hidden_act": "gelu"}, r"activation gelu \(llama.cpp has silu\)"),
        ("gemma2", {"query_pre_attn_scalar": 200}, "query_pre_attn_scalar 200"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rotation yarn"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_in_a_line(family, change, said, tmp_path):
    folder = write_model(family, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(Mistake, match=said) as refused:
        export(folder, tmp_path / "a.gguf", "F16")
    assert "\n" not in str(refused.value)


def test_k_quants_are_refused_with_the_command_that_makes_them():
    with pytest.raises(Mistake, match=r"`llama-quantize X-F16\.gguf X-Q4_K_M\.gguf Q4_K_M`"):
        check_types(["F16", "Q4_K_M"])
    check_types(["F16", "Q4_0"])


def test_writing_takes_the_memory_of_few_tensors(tmp_path):
    """Of a model of 32 equal layers, in a process of its own: what it takes beyond what reading a file maps."""
    code = (
        "import resource, sys; from pathlib import Path; from stages.lib.export.gguf_files import write_gguf;"
        "from stages.lib.export.ends import Ends; peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "before = peak(); ends = Ends(1, False, [2], None);"
        "write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 'Q8_0', 'x', None, ends);"
        "print((peak() - before) * 1024)"
    )
    folder = write_model("llama", tmp_path / "model")
    config = AutoConfig.from_pretrained(folder)
    config.update({"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 32, "head_dim": 128})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    size = (folder / "model.safetensors").stat().st_size
    ran = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path / "a.gguf"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 1.5 * size


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), SafetensorError("full")]
)
def test_what_is_interrupted_leaves_what_was_there_and_nothing_else(error, tmp_path):
    folder = tmp_path / "export"
    with whole_folder(folder) as part:
        (part / "card").write_text("first")
    with pytest.raises((KeyboardInterrupt, Mistake)), whole_folder(folder) as part:
        (part / "card").write_text("second")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["export"] and (folder / "card").read_text() == "first"
    with whole_folder(folder) as part:
        (part / "card").write_text("third")
    assert [path.name for path in tmp_path.iterdir()] == ["export"] and (folder / "card").read_text() == "third"


@pytest.mark.parametrize("how", ["full", "killed"])
def test_no_room_or_a_kill_in_the_middle_of_a_file_leaves_no_folder_that_looks_whole(how, tmp_path):
    folder = write_model("llama", tmp_path / "model")
    code = (
        "import os, resource, signal, sys; from pathlib import Path; import gguf;"
        "from stages.lib.export.gguf_files import write_gguf; from stages.lib.export.ends import Ends;"
        "from stages.lib.export.whole import whole_folder; write = gguf.GGUFWriter.write_kv_data_to_file\n"
        "def die(self): write(self); os.kill(os.getpid(), signal.SIGKILL)\n"
        "if sys.argv[3] == 'full': resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "else: gguf.GGUFWriter.write_kv_data_to_file = die\n"
        "with whole_folder(Path(sys.argv[2])) as part:\n"
        "    write_gguf(Path(sys.argv[1]), part / 'a.gguf', 'F16', 'x', None, Ends(1, False, [2], None))\n"
    )
    command = [sys.executable, "-c", code, folder, tmp_path / "export", how]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if how == "full":
        assert ran.returncode == 1 and "export: cannot be written, and is as it was" in ran.stderr
        assert "Traceback" not in ran.stderr
    else:
        assert ran.returncode == -signal.SIGKILL
    assert not (tmp_path / "export").exists()
    with whole_folder(tmp_path / "export") as part:
        assert not list(part.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"model", "export"}


def test_what_fails_between_the_two_moves_is_put_back_and_what_is_killed_there_by_the_next(tmp_path, monkeypatch):
    folder, rename = tmp_path / "export", Path.rename
    with whole_folder(folder) as part:
        (part / "card").write_text("first")

    def fail(path: Path, target: Path) -> Path:
        if path.name == "export.part":
            raise OSError(errno.EACCES, "Permission denied")
        return rename(path, target)

    with monkeypatch.context() as patches:
        patches.setattr(Path, "rename", fail)
        with pytest.raises(Mistake, match="is as it was"), whole_folder(folder) as part:
            (part / "card").write_text("second")
    assert [path.name for path in tmp_path.iterdir()] == ["export"] and (folder / "card").read_text() == "first"
    folder.rename(tmp_path / "export.old")  # as a kill between the moves leaves it
    with pytest.raises(Mistake), whole_folder(folder):
        raise OSError
    assert [path.name for path in tmp_path.iterdir()] == ["export"] and (folder / "card").read_text() == "first"
