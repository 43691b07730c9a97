"""Templates: a conversation as the text that a model reads.

A template is a program in Jinja that came with the model, so it runs in Jinja's sandbox. What it may call is what
transformers gives it, but for the date, which stands still: token ids would otherwise differ from day to day.
"""

import datetime
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stages.lib.conversations.formats import Conversation, Message, RowRefused
from stages.lib.params import Mistake

PLAIN = Path(__file__).with_name("plain.jinja")  # for base models, which have no template of their own
TEMPLATE = Path("data/prepared/template.json")  # as prepare used it; null for texts
OWN, NAMED = "chat_template.jinja", "tokenizer_config.json"  # where a model keeps its own
TEMPLATES = [OWN, NAMED, "tokenizer.json"]  # the files in which they are
GENERATION = re.compile(r"(\{%-?\s*)(end)?generation(\s*-?%\})")  # which marks answers, in templates that do


@dataclass(frozen=True)
class Template:
    """A chat template, and what it is given besides messages.

    Attributes:
        source: The program.
        with_tools: The one for conversations with tools; the same, as a rule.
        origin: Where it came from.
        tokens: The texts of special tokens, by names such as `bos_token`.
        date: What `strftime_now` says, in ISO format.
        opening: What all training conversations begin with before the user speaks, such as one system message.
        tools: What the assistant may call in all of them.
    """

    source: str
    with_tools: str
    origin: str
    tokens: dict[str, str]
    date: str
    opening: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None

    def opened_as(self, conversations: Sequence[Conversation]) -> "Template":
        """Return the template with the opening and the tools that all these conversations have, if they share them."""
        first = conversations[0]
        opening = first.opening if all(one.opening == first.opening for one in conversations) else []
        tools = first.tools if all(one.tools == first.tools for one in conversations) else None
        return replace(self, opening=opening, tools=tools)

    @property
    def beginning(self) -> Conversation:
        """What stands before a prompt, which is what a user says first."""
        return Conversation(self.opening, [False] * len(self.opening), self.tools)

    def render(self, messages: list[Message], tools: list[dict[str, Any]] | None = None, prompt: bool = False) -> str:
        """Return the text of a conversation; with `prompt`, up to where the next answer begins.

        Raises:
            RowRefused: The template says no, for instance to a role that it does not know.
        """
        program = _compiled(self.with_tools if tools else self.source, self.date)
        try:
            return program.render(
                messages=[_named_as_templates_do(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=prompt,
                **self.tokens,
            )
        except jinja2.TemplateError as error:
            raise RowRefused(f"the template refuses it: {' '.join(str(error).split())}") from None
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise RowRefused(f"the template fails on it: {' '.join(str(error).split())}") from None

    def reads(self, name: str) -> bool:
        """Return whether a template uses a name, such as `tools`, at all."""
        return bool(re.search(rf"\b{name}\b", self.source + self.with_tools))

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Template":
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


def read_template(file: Path = TEMPLATE) -> Template | None:
    """Read the template that prepare used; None where texts are learned."""
    text = file.read_text(encoding="utf-8")
    return None if json.loads(text) is None else Template.from_json(text)


def load_template(model: Path, begin: str, file: Path | None, date: str) -> Template:
    """Read the template of a model.

    Args:
        model: The model's folder.
        begin: What its tokenizer puts before a text: the plain template puts it there too.
        file: Another template, which is read instead.
        date: What templates are told of today, in ISO format.

    Raises:
        Mistake: It is missing, or no template.
    """
    config = _read_json(model / NAMED)
    tokens = {name: text for name, value in config.items() if name.endswith("_token") and (text := _token(value))}
    own, named = model / OWN, config.get("chat_template")
    if file:
        sources = {"default": _read(file)}
        origin = file.as_posix()
    elif own.exists():
        sources, origin = {"default": _read(own)}, OWN
    elif named:
        sources = {"default": named} if isinstance(named, str) else {one["name"]: one["template"] for one in named}
        origin = f"chat_template in {NAMED}"
    else:
        if not tokens.get("eos_token"):
            raise Mistake(f"{model}: no chat template, and no eos_token in {NAMED} with which an answer could end")
        sources, origin, tokens = {"default": _read(PLAIN)}, "plain", tokens | {"bos_token": begin}
    if "default" not in sources:
        raise Mistake(f"{model}: its chat templates are named {', '.join(sources)}; none is `default`")
    source = sources["default"]
    template = Template(source, sources.get("tool_use", source), origin, tokens, date)
    try:
        for program in {template.source, template.with_tools}:
            _compiled(program, date)
    except jinja2.TemplateError as error:
        raise Mistake(f"{origin}: not a template: {' '.join(str(error).split())}") from None
    return template


@functools.lru_cache(maxsize=8)
def _compiled(source: str, date: str) -> jinja2.Template:
    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json  # Jinja's own escapes what HTML would take for markup
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = datetime.date.fromisoformat(date).strftime
    plain = GENERATION.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", source)
    return environment.from_string(plain)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _named_as_templates_do(message: Message) -> Message:
    """Give reasoning its older name too, which some templates read."""
    thought = message.get("reasoning_content")
    return message if thought is None else {"thinking": thought, **message}


def _token(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value if isinstance(value, str) else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(_read(file)) if file.exists() else {}
    except json.JSONDecodeError as error:
        raise Mistake(f"{file}: not JSON: {error}") from None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Mistake(f"{file}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise Mistake(f"{file}: not UTF-8: {error}") from None
