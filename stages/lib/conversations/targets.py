"""Targets: which token ids of a conversation are answers, found by character offsets in what its template renders.

Nobody types a marker. An answer is what the template writes between the prompt, as it is rendered for generation, and
the token that ends the turn, which is a target too: a model that never learns it never stops.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from stages.lib.conversations.formats import Conversation, RowRefused
from stages.lib.conversations.template import Template

Span = tuple[int, int]  # of characters, the second exclusive


@dataclass(frozen=True)
class Encoded:
    """A conversation as a model reads it.

    Attributes:
        conversation: What it was made of.
        tokens: Token ids, int32.
        targets: Which of them are learned, bool.
        answers: The texts of these, one for each answer, without what ends the turn.
    """

    conversation: Conversation
    tokens: np.ndarray
    targets: np.ndarray
    answers: list[str]


@dataclass(frozen=True)
class Encoder:
    """What turns conversations into token ids and targets.

    Attributes:
        template: The model's.
        tokenizer: Its own, set to find special tokens in a text.
        special: The texts of its special tokens.
        end: The one that ends an answer.
    """

    template: Template
    tokenizer: Tokenizer
    special: frozenset[str]
    end: str

    @classmethod
    def of(cls, template: Template, tokenizer: Tokenizer) -> "Encoder":
        """Find out what ends an answer, by rendering one.

        Raises:
            RowRefused: No special token does.
        """
        special = frozenset(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
        asked = [{"role": "user", "content": "a"}]
        whole = template.render([*asked, {"role": "assistant", "content": "b"}])
        after = whole[len(_shared_start(whole, template.render(asked, prompt=True))) :]
        ends = [(at, -len(token), token) for token in special if (at := after.find(token, after.find("b"))) >= 0]
        if not ends:
            raise RowRefused("the template ends an answer with no special token: a model could not learn to stop")
        return cls(template, tokenizer, special, min(ends)[2])

    @property
    def end_id(self) -> int:
        """The id of the token that ends an answer."""
        return self.tokenizer.encode(self.end, add_special_tokens=False).ids[0]

    def encode(self, conversation: Conversation) -> list[Encoded]:
        """Return a conversation's token ids and targets.

        Where the template writes earlier turns otherwise than it wrote them as answers, as those do that leave out
        old reasoning, no text holds them all: then there is one for each learned answer, with all that came before it.

        Raises:
            RowRefused: It cannot be said for certain which tokens are the answers.
        """
        self._check_text(conversation)
        answers = [number for number, learned in enumerate(conversation.learned) if learned]
        try:
            return [self._encode(conversation, [self._span(conversation, number) for number in answers])]
        except _Rewritten:
            if len(answers) == 1:
                raise
        parts = [conversation.upto(number + 1) for number in answers]
        return [self._encode(part, [self._span(part, len(part.messages) - 1)]) for part in parts]

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the token ids of everything before the last answer, as they are given for generation.

        Raises:
            RowRefused: The template refuses it, or would take a part of it for control tokens.
        """
        self._check_text(conversation)
        text = self.template.render(conversation.messages[:-1], conversation.tools, prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _check_text(self, conversation: Conversation) -> None:
        """Refuse what would be taken for control tokens, and what the template would leave out."""
        texts = [*_texts(conversation.messages), *_texts(conversation.tools or [])]
        if named := sorted(token for token in self.special if any(token in text for text in texts)):
            raise RowRefused(f"names a special token of the model ({named[0]})")
        if conversation.tools and not self.template.reads("tools"):
            raise RowRefused("has tools, which the template does not know")
        thoughts = any("reasoning_content" in message for message in conversation.messages)
        if thoughts and not (self.template.reads("reasoning_content") or self.template.reads("thinking")):
            raise RowRefused("has reasoning, which the template does not know")

    def _span(self, conversation: Conversation, number: int) -> Span:
        """Return where an answer stands in the rendered conversation, with what ends its turn."""
        messages, tools = conversation.messages, conversation.tools
        whole = self.template.render(messages, tools)
        prompt = self.template.render(messages[:number], tools, prompt=True)
        shared = _shared_start(whole, self.template.render(messages[: number + 1], tools))
        if not whole.startswith(prompt):
            raise _Rewritten("the template begins an answer otherwise than a prompt for one ends")
        message = messages[number]
        said = [message["content"].strip(), *_texts(message.get("tool_calls", []))]
        ends = [_end_of(part, shared, len(prompt)) for part in said if part]
        if min(ends) < 0:
            raise _Rewritten("the template does not write the whole answer")
        end = shared.find(self.end, max(ends))
        if end < 0:
            raise _Rewritten("the template does not end the answer as it ends others")
        return len(prompt), end + len(self.end)

    def _encode(self, conversation: Conversation, spans: list[Span]) -> Encoded:
        text = self.template.render(conversation.messages, conversation.tools)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        tokens = np.array(encoding.ids, np.int32)
        first, last = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        targets = np.zeros(len(tokens), bool)
        for start, end in spans:
            inside = (first >= start) & (last <= end) & (last > first)
            prefix = self.tokenizer.encode(text[:start], add_special_tokens=False).ids
            if encoding.ids[: len(prefix)] != prefix or not inside[len(prefix)] or first[inside].min() != start:
                raise RowRefused("a token reaches from the prompt into the answer")
            if last[inside].max() != end or encoding.ids[int(np.flatnonzero(inside)[-1])] != self.end_id:
                raise RowRefused("a token reaches beyond the end of the answer")
            learned = self.tokenizer.decode(tokens[inside].tolist(), skip_special_tokens=False)
            if learned.strip() != text[start:end].strip():
                raise RowRefused("the tokenizer does not give the answer back")
            targets |= inside
        if not targets.any():
            raise RowRefused("no answer to learn")
        return Encoded(
            conversation, tokens, targets, [text[start : end - len(self.end)].strip() for start, end in spans]
        )


class _Rewritten(RowRefused):
    """An answer is not where it was when it was given."""


def _shared_start(one: str, other: str) -> str:
    """Return what two texts begin with alike."""
    length = next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    return one[:length]


def _end_of(part: str, text: str, start: int) -> int:
    """Return where a part of an answer ends in a text, or -1; quotes and the like may be escaped there."""
    for written in (part, part.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")):
        if (at := text.find(written, start)) >= 0:
            return at + len(written)
    return -1


def _texts(value: object) -> Iterator[str]:
    """Yield all texts in messages, tools and calls, but for the names of keys and what is always the same."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, child in value.items():
            if name not in ("role", "type", "id"):
                yield from _texts(child)
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child)
