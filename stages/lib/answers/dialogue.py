"""Dialogue: both models, one of them in memory, asked the same and heard as they answer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers.generation.streamers import BaseStreamer

from stages.lib.answers.conversing import prompt_ids, reference_of
from stages.lib.answers.generation import Answer, Drawing, check_room, continue_ids, decode, seed_of, text_ids
from stages.lib.answers.prompts import first_sentence
from stages.lib.conversations.formats import Conversation
from stages.lib.conversations.targets import Encoder
from stages.lib.conversations.template import Template
from stages.lib.data.documents import read_documents
from stages.lib.model.loading import unpacked_weights


class Listener(BaseStreamer):
    """Tells the text of an answer as far as it has come."""

    def __init__(self, tokenizer: Tokenizer, tell: Callable[[str], None]) -> None:
        self.tokenizer, self.tell, self.ids = tokenizer, tell, []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which has two dimensions, or the next token."""
        self.ids = [*self.ids, *value.tolist()] if value.ndim == 1 else []
        self.tell(decode(self.tokenizer, self.ids))

    def end(self) -> None:
        """Do nothing: the whole answer is returned."""


@dataclass(frozen=True)
class Dialogue:
    """What both models answer.

    Attributes:
        model: The tuned model; without its adapter it is the base model.
        tokenizer: Its own.
        template: Of conversations; None where texts are learned, and continued.
        drawing: How tokens are chosen.
        limit: The parameter that says how many there may be.
        seed: Of the draws.
    """

    model: PeftModel
    tokenizer: Tokenizer
    template: Template | None
    drawing: Drawing
    limit: str
    seed: int

    @property
    def beginning(self) -> Conversation:
        """What stands before a first message."""
        return self.template.beginning if self.template else Conversation([], [])

    def unpacked(self) -> AbstractContextManager[None]:
        """Let a CPU answer sooner for a while: weights are unpacked once, not for each answer."""
        return unpacked_weights(self.model)

    def answer(self, arm: str, asked: Conversation, tell: Callable[[str], None]) -> Answer:
        """Let a model, base or tuned, answer what was said last, or continue it.

        Raises:
            Mistake: It cannot be asked, or leaves no room for an answer.
        """
        prompt = asked.messages[-2]["content"] if len(asked.messages) > 1 else ""
        encoder = Encoder.of(self.template, self.tokenizer) if self.template else None
        ids = prompt_ids(encoder, asked) if encoder else text_ids(self.tokenizer, prompt)
        check_room(self.model, [ids], [prompt], self.limit, self.drawing.max_new_tokens)
        seeds, ends = [seed_of(prompt, self.seed)], [encoder.end_id] if encoder else []
        listener = Listener(self.tokenizer, tell)
        with self.model.disable_adapter() if arm == "base" else nullcontext():
            (answer,) = continue_ids(self.model, self.tokenizer, [ids], seeds, self.drawing, ends, listener)
        return answer

    def examples(self) -> Iterator[tuple[Conversation, str]]:
        """Yield held-out conversations up to their last answer, or first sentences, with how they really go on."""
        for document in read_documents("test"):
            if document.conversation:
                yield (
                    Conversation.from_json(document.conversation).answered_by(""),
                    reference_of(document, self.tokenizer),
                )
            elif prompt := first_sentence(document.text):
                yield self.beginning.then(prompt.text), prompt.reference or ""
