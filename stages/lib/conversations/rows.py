"""Rows: conversations as documents, each with its targets, none longer than allowed and none cut in an answer."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tqdm import tqdm

from stages.lib.conversations.formats import Conversation, RowRefused
from stages.lib.conversations.targets import Encoded, Encoder
from stages.lib.data.documents import Document
from stages.lib.data.texts import Text
from stages.lib.data.units import normalized


@dataclass
class LeftOut:
    """What of a dataset is not learned, and why."""

    rows: Counter[str] = field(default_factory=Counter)  # by what is wrong with them
    shortened: int = 0  # rows of which leading turns were left out, to make them fit

    def share(self, kept: int) -> float:
        """Return the share of rows that were left out."""
        return self.rows.total() / max(1, self.rows.total() + kept)

    def in_words(self) -> str:
        """List the reasons, the commonest first."""
        return "; ".join(f"{number:,} {reason}" for reason, number in self.rows.most_common()) or "none"


def to_documents(texts: list[Text], encoder: Encoder, max_tokens: int, left_out: LeftOut) -> list[Document]:
    """Turn conversations into documents. Those with the same first question are one group, if the dataset names none.

    Args:
        texts: Conversations as read.
        encoder: The model's.
        max_tokens: The longest row; leading turns of a longer one are left out, or all of it.
        left_out: What is not learned is counted here.
    """
    conversations = [(text, text.conversation) for text in texts if text.conversation]
    documents, asked = [], {}
    for text, conversation in conversations:
        asked.setdefault(normalized(conversation.asked), []).append(text.id)
    for text, conversation in tqdm(conversations, desc="encode", unit=" conversations", leave=False, disable=None):
        try:
            rows = list(_fit(conversation, encoder, max_tokens, left_out))
        except RowRefused as reason:
            left_out.rows[str(reason)] += 1
            continue
        alike = asked[normalized(conversation.asked)]
        group = conversation.group or (alike[0] if len(alike) > 1 or len(rows) > 1 else "")
        documents += [
            Document(
                id=text.id if len(rows) == 1 else f"{text.id}#{number}",
                title=text.title,
                text="\n".join(row.answers),
                tokens=row.tokens,
                targets=row.targets,
                group=group,
                conversation=row.conversation.to_json(),
            )
            for number, row in enumerate(rows, start=1)
        ]
    return documents


def _fit(conversation: Conversation, encoder: Encoder, max_tokens: int, left_out: LeftOut) -> Iterator[Encoded]:
    for row in encoder.encode(conversation):
        shorter = row
        while len(shorter.tokens) > max_tokens:
            if (rest := shorter.conversation.without_first_turn()) is None:
                raise RowRefused(f"longer than prepare.max_tokens ({max_tokens})")
            (shorter,) = encoder.encode(rest)
        left_out.shortened += shorter is not row
        yield shorter
