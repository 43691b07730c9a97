"""What servers are told: Ollama the template, in Go; vLLM the adapter, where it takes it; all, the right base model."""

import json

import pytest

from stages.lib.conversations.template import Template
from stages.lib.export.adapter import check_base, vllm_lines
from stages.lib.export.ollama import STYLES, find_style, modelfile
from stages.lib.params import Mistake
from stages.lib.sources import source

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELPFUL = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
DATED = LLAMA_3.replace(
    "{{ bos_token }}",
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday is ' + strftime_now('%Y') + '. ' + said + '<|eot_id|>' }}",
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' + (first if loop.first else '') }}"
    "{{ m.content + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}"
    "{% endfor %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def template(program: str, **more) -> Template:
    return Template(program, program, "own", {"bos_token": "<s>", "eos_token": "</s>"}, "2025-01-01", **more)


@pytest.mark.parametrize(
    ("program", "begin", "name", "opening"),
    [
        (CHATML, "", "ChatML", ("", None)),
        (HELPFUL, "", "ChatML", ("", "Be kind.")),
        (LLAMA_3, "<s>", "Llama 3", ("", None)),
        (DATED, "<s>", "Llama 3", ("Today is 2025. ", "")),
        (GEMMA, "<s>", "Gemma", ("", None)),
        (MISTRAL, "<s>", "Mistral v3", ("", None)),
        (PHI, "", "Phi-3", ("", None)),
    ],
)
def test_a_family_is_known_by_what_its_template_writes(program, begin, name, opening):
    style, found = find_style(template(program), begin)
    assert (style.name, found) == (name, opening)


@pytest.mark.parametrize(
    "program",
    [
        CHATML.replace("m.content", "m.content + '!'"),
        CHATML.replace("<|im_end|>\n", "<|im_end|>"),
        HELPFUL.replace("'system' %}", "'system' and messages | length == 1 %}"),
        LLAMA_3,  # whose BOS nothing would put there
    ],
)
def test_a_template_that_writes_anything_else_is_of_no_family(program):
    assert find_style(template(program), "") is None
    text = modelfile("a.gguf", template(program), "", ["<|im_end|>"], {})
    assert "TEMPLATE" not in text and "Ollama takes the one" in text


def test_the_program_in_go_is_what_the_style_writes():
    (chatml, gemma) = (style for style in STYLES if style.name in ("ChatML", "Gemma"))
    assert chatml.to_go(("", "Be kind.")) == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n"
        "{{ else }}<|im_start|>system\nBe kind.<|im_end|>\n{{ end }}"
        '{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
        "<|im_start|>assistant\n"
    )
    assert (
        "<start_of_turn>user\n{{ if and $.System (le $i 1) }}{{ $.System }}\n\n{{ end }}{{ .Content }}"
        in gemma.to_go(("", None))
    )


def test_a_modelfile_says_what_was_learned():
    told = template(CHATML, opening=[{"role": "system", "content": "Answer as JSON."}])
    text = modelfile("a-Q8_0.gguf", told, "", ["</s>", "<|im_end|>"], {"temperature": 0.6, "repetition_penalty": 1.1})
    lines = text.splitlines()
    assert lines[0] == "FROM ./a-Q8_0.gguf" and 'SYSTEM """Answer as JSON."""' in lines
    assert lines[-4:] == [
        'PARAMETER stop "</s>"',
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER temperature 0.6",
        "PARAMETER repeat_penalty 1.1",
    ]
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile("a.gguf", None, "", ["</s>"], {})


PIN = "repo: owner/name\nrevision: a123456789012345678901234567890123456789\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The adapter of a base model that is pinned on the Hub."""
    monkeypatch.setattr(source, "MODELS", tmp_path)
    monkeypatch.setattr("stages.lib.export.adapter.MODELS", tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/source.yaml").write_text(PIN)
    write_config(tmp_path)
    return tmp_path


def write_config(folder, **changes):
    config = {"base_model_name_or_path": "owner/name", "revision": PIN.split()[-1], "r": 12, "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))


def test_an_adapter_of_another_base_is_refused(folder):
    check_base(folder, "tiny")
    for change in ({"base_model_name_or_path": "owner/other"}, {"revision": None}):
        write_config(folder, **change)
        with pytest.raises(
            Mistake, match=r"expected the base owner/name at a123.*, on which it was trained, found owner/"
        ):
            check_base(folder, "tiny")


def test_vllm_is_told_of_an_adapter_that_it_takes_and_of_no_other(folder):
    merged, alone = vllm_lines(folder, "tiny", folder / "release")
    assert merged == f"vllm serve {folder}/release"
    assert alone.startswith(f"vllm serve owner/name --revision {PIN.split()[-1]} --enable-lora --max-lora-rank 16 ")
    for change, said in (
        ({"use_dora": True}, "no DoRA"),
        ({"r": 1024}, "at most 512"),
        ({"modules_to_save": ["a"]}, "whole"),
    ):
        write_config(folder, **change)
        assert said in vllm_lines(folder, "tiny", folder)[1] and vllm_lines(folder, "tiny", folder)[1][0] == "#"
    (folder / "tiny/source.yaml").unlink()
    write_config(folder)
    assert "its base model is on the Hub" in vllm_lines(folder, "tiny", folder)[1]
