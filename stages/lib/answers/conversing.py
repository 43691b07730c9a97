"""Conversing: prompts and held-out conversations answered as their template asks for it."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from stages.lib.answers.generation import Answer, Drawing, check_room, continue_ids, seed_of
from stages.lib.answers.sampling import GenerateParams
from stages.lib.conversations.formats import Conversation
from stages.lib.conversations.targets import Encoder
from stages.lib.conversations.template import Template
from stages.lib.data.documents import Document


@dataclass(frozen=True)
class Answered:
    """A held-out conversation, how it really ends, and what a model answers instead."""

    document: Document
    reference: str
    answer: Answer

    def to_json(self) -> dict[str, Any]:
        """Lay out what is kept of it."""
        told = json.loads(self.document.conversation)
        names = {"id": self.document.id, "title": self.document.title, "group": self.document.group}
        said = {"messages": told["messages"][:-1], "tools": told["tools"], "reference": self.reference}
        return names | said | self.answer._asdict()


def answer_prompts(
    model: PreTrainedModel | PeftModel,
    tokenizer: Tokenizer,
    template: Template,
    prompts: list[str],
    params: GenerateParams,
) -> list[Answer]:
    """Answer each prompt as what a user says first, with draws that depend on the seed and the prompt alone.

    Raises:
        Mistake: A prompt and its answer do not fit the model's context.
    """
    encoder = Encoder.of(template, tokenizer)
    asked = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}] for prompt in prompts]
    ids = [encoder.prompt(Conversation(messages, [False, True])) for messages in asked]
    seeds = [seed_of(prompt, params.seed) for prompt in prompts]
    check_room(model, ids, prompts, "generate.max_new_tokens", params.max_new_tokens)
    drawing = Drawing(params.max_new_tokens, params.temperature, params.top_p)
    return continue_ids(model, tokenizer, ids, seeds, drawing, [encoder.end_id])


def answer_conversations(
    model: PreTrainedModel | PeftModel,
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
    starts = [int(np.flatnonzero(np.diff(document.targets.astype(int)) > 0)[-1]) + 1 for document in documents]
    ids = [document.tokens[:start].tolist() for document, start in zip(documents, starts)]
    check_room(model, ids, [document.id for document in documents], "generate.answer_tokens", params.answer_tokens)
    answers = continue_ids(model, tokenizer, ids, [0] * len(ids), Drawing(params.answer_tokens), [encoder.end_id])
    references = [
        tokenizer.decode(document.tokens[start:][document.targets[start:]].tolist(), skip_special_tokens=True)
        for document, start in zip(documents, starts)
    ]
    return [Answered(*row) for row in zip(documents, references, answers, strict=True)]
