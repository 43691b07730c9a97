"""Preparation: texts or conversations as read, turned into documents of one model's token ids."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from stages.lib.conversations.formats import RowRefused
from stages.lib.conversations.rows import LeftOut, to_documents
from stages.lib.conversations.targets import Encoder
from stages.lib.conversations.template import TEMPLATES, Template, load_template
from stages.lib.data.documents import Document
from stages.lib.data.protocol import PrepareParams
from stages.lib.data.texts import Text
from stages.lib.data.tokenizer import begin_ids, check_ids, load_tokenizer, num_embeddings, num_positions
from stages.lib.data.units import distinct
from stages.lib.params import Mistake
from stages.lib.sources.source import fetch_model


@dataclass(frozen=True)
class Preparation:
    """What turns what was read into documents.

    Attributes:
        model: A folder of models/base/.
        params: Of prepare.
        tokenizer: The model's.
        left_out: What of conversations is not learned.
    """

    model: str
    params: PrepareParams
    tokenizer: Tokenizer
    left_out: LeftOut

    @classmethod
    def of(cls, model: str, params: PrepareParams) -> "Preparation":
        """Load the model's tokenizer."""
        return cls(model, params, load_tokenizer(model), LeftOut())

    @property
    def begin(self) -> str:
        """What the tokenizer puts before a text."""
        return " ".join(str(self.tokenizer.id_to_token(id)) for id in begin_ids(self.tokenizer))

    def template(self) -> Template:
        """Load the template of conversations."""
        told = self.params.template
        folder = fetch_model(self.model, TEMPLATES)
        return load_template(folder, self.begin, None if told == "auto" else Path(told), self.params.date)

    def documents(self, texts: list[Text], template: Template | None) -> list[Document]:
        """Turn texts, or with a template conversations, into documents.

        Raises:
            Mistake: A token has no embedding, too many conversations can teach nothing, or none can.
        """
        documents = tokenize(texts, self.tokenizer) if template is None else self._conversations(texts, template)
        largest = (int(document.tokens.max()) for document in documents if len(document.tokens))
        check_ids(largest, self.tokenizer, num_embeddings(self.model))
        return documents

    def _conversations(self, texts: list[Text], template: Template) -> list[Document]:
        try:
            encoder = Encoder.of(template, load_tokenizer(self.model, special=True))
        except RowRefused as reason:
            raise Mistake(f"{template.origin}: {reason}; name another with prepare.template") from None
        longest = min(self.params.max_tokens, num_positions(self.model))
        return to_documents(texts, encoder, longest, self.left_out)


def tokenize(texts: list[Text], tokenizer: Tokenizer, batch_size: int = 64) -> list[Document]:
    """Turn texts into documents, of which every token is a target but those that the tokenizer begins them with."""
    begin, documents = begin_ids(tokenizer), []
    for start in tqdm(range(0, len(texts), batch_size), desc="tokenize", unit=" batches", leave=False, disable=None):
        batch = texts[start : start + batch_size]
        encodings = tokenizer.encode_batch_fast([text.text for text in batch], add_special_tokens=False)
        for text, encoding in zip(batch, encodings):
            tokens = np.array([*begin, *encoding.ids], np.int32)
            documents.append(Document(text.id, text.title, text.text, tokens, np.arange(len(tokens)) >= len(begin)))
    return documents


def count(documents: list[Document], left_out: int) -> dict[str, int]:
    """Count what a split holds, how many of it equal an earlier one, and how many equal ones were left out."""
    counts = {
        "documents": len(documents),
        "bytes": sum(d.num_bytes for d in documents),
        "words": sum(d.num_words for d in documents),
        "tokens": sum(int(d.targets.sum()) for d in documents),
        "repeated": len(documents) - len(distinct(documents, lambda d: d.conversation or d.text)),
        "left_out": left_out,
    }
    if any(d.conversation for d in documents):  # whose `tokens` are those of the answers
        counts["tokens_read"] = sum(len(d.tokens) for d in documents)
    return counts
