"""Ollama: a Modelfile for a GGUF, with its template in Go where the model's own is of a common family.

Ollama's templates are programs in Go, the models' in Jinja, and nothing translates them. So a family is described here
by what it writes before and after a message. From that follow both a program in Go and the text that it would write;
where that is the text of the model's own template, in a few conversations, the program takes its place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stages.lib.conversations.formats import Message, RowRefused
from stages.lib.conversations.template import Template

PARAMETERS = {"repetition_penalty": "repeat_penalty"}  # of generation_config.json, which Ollama names otherwise
MARK = "\0"  # stands for a system message, to find what a template writes around it


@dataclass(frozen=True)
class Style:
    """What a family's template writes.

    Attributes:
        name: The family.
        user: Before and after what the user says.
        assistant: Likewise of the assistant.
        prompt: After which generation begins.
        system: Likewise, where the system has a turn of its own.
        joined: What stands between a system message and the first user message, where it is a part of that.
    """

    name: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    prompt: str
    system: tuple[str, str] | None = None
    joined: str | None = None

    def render(self, messages: list[Message], opening: tuple[str, str | None]) -> str:
        """Return the prompt that the program in Go writes.

        Args:
            messages: What was said; the system first, if at all.
            opening: What stands before a system message inside its turn, and what is said where there is none.
        """
        told = next((message["content"] for message in messages if message["role"] == "system"), opening[1])
        text = "" if told is None or self.system is None else f"{self.system[0]}{opening[0]}{told}{self.system[1]}"
        turns = [message for message in messages if message["role"] != "system"]
        for number, message in enumerate(turns):
            before, after = getattr(self, message["role"])
            joined = f"{told}{self.joined}" if number == 0 and told is not None and self.joined is not None else ""
            text += f"{before}{joined}{message['content']}{after}"
        return text + self.prompt

    def to_go(self, opening: tuple[str, str | None]) -> str:
        """Return the program."""
        text = ""
        if self.system is not None:
            text += f"{{{{ if .System }}}}{self.system[0]}{opening[0]}{{{{ .System }}}}{self.system[1]}"
            if opening[1] is not None:
                text += f"{{{{ else }}}}{self.system[0]}{opening[0]}{opening[1]}{self.system[1]}"
            text += "{{ end }}"
        joined = (
            ""
            if self.joined is None
            else f"{{{{ if and $.System (le $i 1) }}}}{{{{ $.System }}}}{self.joined}{{{{ end }}}}"
        )
        said = {"user": f"{joined}{{{{ .Content }}}}", "assistant": "{{ .Content }}"}
        turns = [
            f'eq .Role "{role}" }}}}{"".join(getattr(self, role)[:1])}{said[role]}{getattr(self, role)[1]}'
            for role in said
        ]
        text += (
            f"{{{{ range $i, $_ := .Messages }}}}{{{{ if {turns[0]}{{{{ else if {turns[1]}{{{{ end }}}}{{{{ end }}}}"
        )
        return text + self.prompt


def _turns(name: str, header: str, end: str, roles: tuple[str, str, str] = ("user", "assistant", "system")) -> Style:
    """Return a style whose turns all look the same but for the name of who speaks."""
    user, assistant, system = ((header.format(role), end) for role in roles)
    return Style(name, user, assistant, assistant[0], system)


STYLES = [
    _turns("ChatML", "<|im_start|>{}\n", "<|im_end|>\n"),
    _turns("Llama 3", "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
    _turns("Phi-3", "<|{}|>\n", "<|end|>\n"),
    Style(
        "Gemma",
        ("<start_of_turn>user\n", "<end_of_turn>\n"),
        ("<start_of_turn>model\n", "<end_of_turn>\n"),
        "<start_of_turn>model\n",
        joined="\n\n",
    ),
    Style("Mistral v1", ("[INST] ", " [/INST]"), ("", "</s>"), "", joined="\n\n"),
    Style("Mistral v3", ("[INST] ", "[/INST]"), (" ", "</s>"), "", joined="\n\n"),
]
USER = {"role": "user", "content": "Is it late?"}
SYSTEM = {"role": "system", "content": MARK}
AGAIN = [USER, {"role": "assistant", "content": "Not yet."}, {"role": "user", "content": "And now?"}]


def find_style(template: Template, begin: str) -> tuple[Style, tuple[str, str | None]] | None:
    """Return the family whose program writes what a template does, and the opening; None where there is none.

    Args:
        template: The model's.
        begin: What Ollama puts before a prompt itself: BOS, or nothing.
    """

    def rendered(messages: list[Message]) -> str | None:
        try:
            return template.render(messages, prompt=True).removeprefix(begin)
        except RowRefused:
            return None

    for style in STYLES:
        for opening in _openings(style, rendered([SYSTEM, USER]), rendered([USER])):
            tried = [[USER], AGAIN, [SYSTEM, USER], [SYSTEM, *AGAIN]]
            found = [(rendered(messages), style.render(messages, opening)) for messages in tried]
            known = [(text, expected) for text, expected in found if text is not None]
            if known and all(text == expected for text, expected in known):
                return style, opening
    return None


def _openings(style: Style, told: str | None, untold: str | None) -> Iterator[tuple[str, str | None]]:
    """Yield what a template may write before a system message, and in its place."""
    yield "", None
    if style.system is None or untold is None or not untold.startswith(style.system[0]):
        return
    inside = untold[len(style.system[0]) : untold.find(style.system[1])]
    before = (told or "").removeprefix(style.system[0]).partition(MARK)[0]
    if told and inside.startswith(before):
        yield before, inside[len(before) :]


def modelfile(file: str, template: Template | None, begin: str, stops: list[str], drawn: dict[str, Any]) -> str:
    """Write the Modelfile of a GGUF.

    Args:
        file: Its name, in the same folder.
        template: Of conversations, if they were learned.
        begin: The text of what stands before every prompt: BOS, or nothing.
        stops: The texts of the tokens that end a text or a turn.
        drawn: How tokens are drawn, by the names of generation_config.json.
    """
    lines = [f"FROM ./{file}"]
    if template:
        found = find_style(template, begin)
        if found and '"""' not in (program := found[0].to_go(found[1])) and "\0" not in program:
            lines += [f"# The model's template, which is that of {found[0].name}, in Go.", f'TEMPLATE """{program}"""']
        else:
            lines.append(
                "# The model's template is of no family whose program in Go is known here: Ollama takes the one"
            )
            lines.append("# in the GGUF, if it recognises it. Compare its prompts with those of llama.cpp.")
        told = [message["content"] for message in template.opening if message["role"] == "system"]
        if told and '"""' not in told[0]:
            lines += ["# What all training conversations began with.", f'SYSTEM """{told[0]}"""']
    else:
        lines += ["# The model continues texts: what is asked is what it continues.", 'TEMPLATE """{{ .Prompt }}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += [f"PARAMETER {PARAMETERS.get(name, name)} {value}" for name, value in drawn.items()]
    return "\n".join(lines) + "\n"
