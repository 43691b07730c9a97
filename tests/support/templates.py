"""Chat templates, each with a habit that real ones have, and a tokenizer that knows their special tokens."""

from tokenizers import AddedToken, Tokenizer

from stages.lib.conversations.template import Template
from stages.lib.data.tokenizer import load_tokenizer

BODY = (
    "{%- for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content | trim + '<|end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{%- endif %}"
)
TEMPLATES = {
    "plain turns": BODY,
    "a beginning": "{{ bos_token }}" + BODY,
    "the date": "{{ '<|start|>system\nToday is ' + strftime_now('%d %b %Y') + '<|end|>\n' }}" + BODY,
    "a system message of its own": "{%- if messages[0].role != 'system' %}{{ '<|start|>system\nHelp.<|end|>\n' }}"
    "{%- endif %}" + BODY,
    "marks of what is generated": BODY.replace(
        "{{ '<|start|>' + m.role", "{% generation %}{{ '<|start|>' + m.role"
    ).replace("<|end|>\n' }}{%- endfor", "<|end|>\n' }}{% endgeneration %}{%- endfor"),
    "an end of the whole": BODY.replace(
        "{%- if add", "{%- if not add_generation_prompt %}{{ eos_token }}{%- endif %}{%- if add"
    ),
    "tools and calls": "{%- if tools %}{{ '<|start|>tools\n' }}{{ tools | tojson }}{{ '<|end|>\n' }}{%- endif %}"
    + BODY.replace("m.content | trim +", "m.content | trim + (m.tool_calls | tojson if m.tool_calls else '') +"),
    "reasoning of the last answer alone": BODY.replace(
        "m.content | trim +",
        "('(' + m.reasoning_content + ') ' if loop.last and m.reasoning_content else '') + m.content | trim +",
    ),
    "no system message": "{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{%- endif %}"
    + BODY,
    "an answer begun otherwise": BODY.replace("assistant\n' }}{%- endif", "assistant\n(thinking) ' }}{%- endif"),
    "no end of an answer": BODY.replace("<|end|>", ""),
    "half of an answer": BODY.replace("m.content | trim", "m.content[:4]"),
}


def template(name: str) -> Template:
    source = TEMPLATES[name]
    tokens = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    return Template(source, source, name, tokens, "2025-01-31")


def chat_tokenizer() -> Tokenizer:
    """The tokenizer of wiki-mini, with the special tokens of the templates."""
    tokenizer = load_tokenizer("wiki-mini", special=True)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<|start|>", "<|end|>")])
    return tokenizer
