"""Conversing: prompts and held-out conversations answered as their template asks for it."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from stages.lib.answers.generation import Answer, Drawing, check_room, continue_ids, seed_of
from stages.lib.answers.sampling import GenerateParams
from stages.lib.conversations.formats import Conversation, RowRefused
from stages.lib.conversations.targets import Encoder
from stages.lib.conversations.template import Template
from stages.lib.data.documents import Document
from stages.lib.model.loading import Model
from stages.lib.params import Mistake


@dataclass(frozen=True)
class Answered:
    """A held-out conversation, how it really ends, and what a model answers instead."""

    document: Document
    reference: str
    answer: Answer

    def to_json(self, split: str) -> dict[str, Any]:
        """Lay out what is kept of it; `split` names the documents that it is one of."""
        told = json.loads(self.document.conversation)
        names = {"split": split, "id": self.document.id, "title": self.document.title, "group": self.document.group}
        said = {"messages": told["messages"][:-1], "tools": told["tools"], "reference": self.reference}
        return names | said | self.answer._asdict()


def answer_prompts(
    model: Model,
    tokenizer: Tokenizer,
    template: Template,
    prompts: list[str],
    params: GenerateParams,
) -> list[Answer]:
    """Answer each prompt as what a user says first, with draws that depend on the seed and the prompt alone.

    Raises:
        Mistake: A prompt cannot be asked, or it and its answer do not fit the model's context.
    """
    encoder = Encoder.of(template, tokenizer)
    ids = [prompt_ids(encoder, template.beginning.then(prompt)) for prompt in prompts]
    seeds = [seed_of(prompt, params.seed) for prompt in prompts]
    check_room(model, ids, prompts, "generate.max_new_tokens", params.max_new_tokens)
    drawing = Drawing(params.max_new_tokens, params.temperature, params.top_p)
    return continue_ids(model, tokenizer, ids, seeds, drawing, [encoder.end_id])


def prompt_ids(encoder: Encoder, conversation: Conversation) -> list[int]:
    """Return the token ids of a conversation up to its last answer.

    Raises:
        Mistake: It cannot be asked; names what was said last.
    """
    try:
        return encoder.prompt(conversation)
    except RowRefused as reason:
        raise Mistake(f"{conversation.messages[-2]['content'][:40]!r}: cannot be asked: {reason}") from None


def answer_conversations(
    model: Model,
    tokenizer: Tokenizer,
    template: Template,
    documents: list[Document],
    params: GenerateParams,
) -> list[Answered]:
    """Answer each held-out conversation up to its last answer, with the likeliest tokens.

    Raises:
        Mistake: A conversation and its answer do not fit the model's context.
    """
    encoder = Encoder.of(template, tokenizer)
    ids = [document.tokens[: answer_start(document)].tolist() for document in documents]
    check_room(model, ids, [document.id for document in documents], "generate.answer_tokens", params.answer_tokens)
    answers = continue_ids(model, tokenizer, ids, [0] * len(ids), Drawing(params.answer_tokens), [encoder.end_id])
    references = [reference_of(document, tokenizer) for document in documents]
    return [Answered(*row) for row in zip(documents, references, answers, strict=True)]


def answer_start(document: Document) -> int:
    """Return the place of the first token of a conversation's last answer."""
    return int(np.flatnonzero(np.diff(document.targets.astype(int)) > 0)[-1]) + 1


def reference_of(document: Document, tokenizer: Tokenizer) -> str:
    """Return a conversation's own last answer."""
    start = answer_start(document)
    return tokenizer.decode(document.tokens[start:][document.targets[start:]].tolist(), skip_special_tokens=True)
