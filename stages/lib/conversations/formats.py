"""Formats: a row of a dataset as a conversation, recognised by its columns and never guessed between two."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from stages.lib.data.files import BOM
from stages.lib.params import Mistake

Format = Literal["text", "messages", "conversations", "completion", "instruction", "question"]
COLUMNS: dict[Format, tuple[str, ...]] = {  # that a row of a format has
    "text": ("text",),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "question": ("question", "answer"),
}
ROLES = {
    "system": "system",
    "developer": "system",  # as OpenAI calls it since 2024
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
REASONING = ("reasoning_content", "reasoning", "thinking")  # names under which a message's reasoning is found
Message = dict[str, Any]  # as chat templates read it: role, content, and perhaps reasoning_content, tool_calls, name


class RowRefused(Exception):
    """A row that nothing can be learned from as it is; says why. Such rows are left out and counted."""


@dataclass(frozen=True)
class Conversation:
    """What was said.

    Attributes:
        messages: In order; the last is the assistant's.
        learned: Whether each message is a target.
        tools: JSON schemas of what the assistant may call.
        title: Its heading, or "".
        group: What rows that belong together share, or "".
    """

    messages: list[Message]
    learned: list[bool]
    tools: list[dict[str, Any]] | None = None
    title: str = ""
    group: str = ""

    @property
    def opening(self) -> list[Message]:
        """What comes before the user first speaks: instructions, as a rule."""
        users = (at for at, message in enumerate(self.messages) if message["role"] == "user")
        return self.messages[: next(users, 0)]

    @property
    def asked(self) -> str:
        """What the first question is: conversations that begin alike are no independent evidence."""
        return next((message["content"] for message in self.messages if message["role"] == "user"), "")

    @property
    def said(self) -> str:
        """All that was said, but for instructions that many conversations share."""
        return "\n".join(message["content"] for message in self.messages if message["role"] != "system")

    @property
    def answered(self) -> str:
        """All answers."""
        return "\n".join(message["content"] for message in self.messages if message["role"] == "assistant")

    def to_json(self) -> str:
        """Return messages and tools."""
        return json.dumps({"messages": self.messages, "tools": self.tools}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Conversation":
        """Read what `to_json` wrote."""
        told = json.loads(text)
        return cls(told["messages"], [message["role"] == "assistant" for message in told["messages"]], told["tools"])

    def then(self, prompt: str) -> "Conversation":
        """Return what it becomes when the user says this next, up to the answer, which is empty yet."""
        turn = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]
        return replace(self, messages=[*self.messages, *turn], learned=[*self.learned, False, True])

    def answered_by(self, answer: str) -> "Conversation":
        """Return it with another last answer."""
        return replace(self, messages=[*self.messages[:-1], {"role": "assistant", "content": answer}])

    def without_first_turn(self) -> "Conversation | None":
        """Leave out the first turn after a system message: up to the next user's; None where no learned one is left."""
        start = sum(message["role"] == "system" for message in self.messages[:1])
        users = (at for at in range(start + 1, len(self.messages)) if self.messages[at]["role"] == "user")
        if (at := next(users, None)) is None or not any(self.learned[at:]):
            return None
        messages, learned = self.messages[:start] + self.messages[at:], self.learned[:start] + self.learned[at:]
        return Conversation(messages, learned, self.tools, self.title, self.group)

    def upto(self, number: int) -> "Conversation":
        """Return the first messages, of which the last alone is learned."""
        learned = [False] * (number - 1) + self.learned[number - 1 : number]
        return Conversation(self.messages[:number], learned, self.tools, self.title, self.group)


def find_format(row: Mapping[str, Any], where: str, told: Format | None, columns: Mapping[str, str]) -> Format:
    """Return the format of a row.

    Args:
        row: Values by column; those that are None are not there.
        where: The row's file and number, for messages.
        told: What source.yaml says.
        columns: Our names of columns to the dataset's own.

    Raises:
        Mistake: It fits none, or several; says what to write into source.yaml.
    """
    if not isinstance(row, Mapping):
        raise Mistake(f"{where}: expected a row with columns, found {str(row)[:80]!r}")
    named = {name for name, value in rename(row, columns).items() if value is not None}
    fitting: list[Format] = [
        format for format in COLUMNS if named.issuperset(COLUMNS[format]) and told in (None, format)
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(sorted(map(str, row)))
    if fitting:
        raise Mistake(
            f"{where}: its columns ({found}) fit several formats; write which into source.yaml, for instance "
            f"`format: {fitting[-1]}` (there are {', '.join(fitting)})"
        )
    wanted = {told: COLUMNS[told]} if told else COLUMNS
    choices = "; ".join(f"{format}: {' and '.join(names)}" for format, names in wanted.items())
    raise Mistake(
        f"{where}: found the columns {found}, expected those of one format ({choices}); if they only have other names, "
        "write into source.yaml for instance `columns: {question: query, answer: response}`"
    )


def rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row under our names of columns."""
    theirs = {their: our for our, their in columns.items()}
    return {theirs.get(name, name): value for name, value in row.items() if name not in columns or name in theirs}


def to_conversation(row: Mapping[str, Any], where: str, format: Format, columns: Mapping[str, str]) -> Conversation:
    """Read a row of a format that is not text.

    Raises:
        Mistake: A value is not what its format says; names the row.
        RowRefused: Nothing can be learned from it.
    """
    row = rename(row, columns)
    if format in ("messages", "conversations"):
        told = enumerate(_list(row, format, where), start=1)
        messages = [_read_message(message, f"{where}: message {number}") for number, message in told]
    elif format == "completion":
        messages = [*_read_turns(row["prompt"], "user", where), *_read_turns(row["completion"], "assistant", where)]
    elif format == "instruction":
        asked = [row["instruction"], *([row["input"]] if row.get("input") else [])]
        messages = _exchange("\n\n".join(checked_text(part, where) for part in asked), row["output"], where)
    else:
        assert format == "question"
        messages = _exchange(row["question"], row["answer"], where)
    if row.get("system"):
        messages.insert(0, _message("system", checked_text(row["system"], where)))
    while messages and messages[-1][0]["role"] != "assistant":
        messages.pop()  # what nobody answered
    if not any(learned for _, learned in messages):
        raise RowRefused("no answer to learn")
    if any(learned and not (message["content"].strip() or message.get("tool_calls")) for message, learned in messages):
        raise RowRefused("an empty answer")
    return Conversation(
        [message for message, _ in messages],
        [learned for _, learned in messages],
        _tools(row.get("tools"), where),
        str(row.get("title") or ""),
        str(row.get("group") or ""),
    )


def _exchange(asked: Any, answered: Any, where: str) -> list[tuple[Message, bool]]:
    return [_message("user", checked_text(asked, where)), _message("assistant", checked_text(answered, where))]


def _message(role: str, content: str, **more: Any) -> tuple[Message, bool]:
    return {"role": role, "content": content, **more}, role == "assistant"


def _read_turns(value: Any, role: str, where: str) -> list[tuple[Message, bool]]:
    """Read a prompt or a completion, which is a text or a list of messages."""
    if isinstance(value, str):
        return [_message(role, value)]
    read = [_read_message(told, where) for told in value] if _is_list(value) else []
    if not read:
        raise Mistake(f"{where}: expected a text or a list of messages, found {str(value)[:80]!r}")
    return read if role == "assistant" else [(message, False) for message, _ in read]


def _read_message(told: Any, where: str) -> tuple[Message, bool]:
    """Read a message of any of the two formats, and whether it is learned."""
    if not isinstance(told, Mapping):
        raise Mistake(f"{where}: expected a message with role and content, found {str(told)[:80]!r}")
    told = {name: value for name, value in told.items() if value is not None}  # Arrow gives every row every key
    speaker = told.get("role", told.get("from"))
    role = ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise Mistake(f"{where}: unknown role {speaker!r}; there are {', '.join(sorted(ROLES))}")
    content = _content(told.get("content", told.get("value", "")), where)
    message: Message = {"role": role, "content": content}
    if speaker == "function_call":
        message |= {"content": "", "tool_calls": [_tool_call(_parsed(content, where), where)]}
    if _is_list(told.get("tool_calls")) and len(told["tool_calls"]):
        message["tool_calls"] = [_tool_call(call, where) for call in told["tool_calls"]]
    if thought := next((told[name] for name in REASONING if told.get(name)), None):
        message["reasoning_content"] = checked_text(thought, where)
    message |= {name: told[name] for name in ("name", "tool_call_id") if name in told}
    weight = told.get("weight", told.get("train", 1))
    if weight not in (0, 1):
        raise Mistake(f"{where}: expected a weight of 0 or 1, found {weight!r}")
    return message, role == "assistant" and bool(weight)


def _content(value: Any, where: str) -> str:
    """Join the parts of a content, all of which must be text."""
    if not _is_list(value):
        return checked_text(value, where)
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in value]
    if strange := [part for part in parts if not isinstance(part, Mapping) or part.get("type", "text") != "text"]:
        raise Mistake(
            f"{where}: expected parts that are text, found {str(strange[0])[:80]!r}: only text is learned here"
        )
    return "".join(checked_text(part.get("text"), where) for part in parts)


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise Mistake(f"{where}: expected a call with a name and arguments, found {str(call)[:80]!r}")
    call = {name: value for name, value in call.items() if value is not None}
    function = _call(call.get("function", call), where)
    return {name: call[name] for name in ("id",) if name in call} | {"type": "function", "function": function}


def _call(function: Any, where: str) -> dict[str, Any]:
    """Read the name and the arguments of a call; arguments that are JSON in a string are read as JSON."""
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Mistake(f"{where}: expected a call with a name and arguments, found {str(function)[:80]!r}")
    arguments = function.get("arguments", {})
    arguments = _parsed(arguments, where) if isinstance(arguments, str) else _without_none(arguments)
    return {"name": function["name"], "arguments": arguments}


def _tools(value: Any, where: str) -> list[dict[str, Any]] | None:
    if isinstance(value, str):
        value = _parsed(value, where) if value.strip() else None
    if value is None or not len(value):
        return None
    if not _is_list(value) or not all(isinstance(tool, Mapping) for tool in value):
        raise Mistake(f"{where}: expected tools as a list of JSON schemas, found {str(value)[:80]!r}")
    return [_without_none(tool) for tool in value]


def _without_none(value: Any) -> Any:
    """Leave out keys that are None: Arrow gives every row the keys of all."""
    if isinstance(value, Mapping):
        return {name: _without_none(child) for name, child in value.items() if child is not None}
    return [_without_none(child) for child in value] if _is_list(value) else value


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Mistake(f"{where}: not JSON: {error}: {text[:80]!r}") from None


def checked_text(value: Any, where: str) -> str:
    """Return a text.

    Raises:
        Mistake: It is none, or cannot be written: half of a pair of surrogates is no character.
    """
    if not isinstance(value, str):
        raise Mistake(f"{where}: expected a text, found {str(value)[:80]!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Mistake(f"{where}: holds half a character (a lone surrogate): {ascii(value)[:80]}") from None
    return value.replace(BOM, "")


def _list(row: Mapping[str, Any], name: str, where: str) -> Any:
    value = _parsed(row[name], where) if isinstance(row[name], str) else row[name]
    if not _is_list(value) or not len(value):
        raise Mistake(f"{where}: expected a list of messages in `{name}`, found {str(value)[:80]!r}")
    return value


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | Mapping)  # of Parquet it is a NumPy array
