"""Rows: conversations as documents, each with its targets, none longer than allowed and none cut in an answer."""

from collections import Counter
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
    longest: int = 0  # tokens of the longest row that did not fit even so

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
            rows = _fit(conversation, encoder, max_tokens, left_out)
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


def _fit(conversation: Conversation, encoder: Encoder, max_tokens: int, left_out: LeftOut) -> list[Encoded]:
    rows = encoder.encode(conversation)
    fitted = [_shorten(row, encoder, max_tokens) for row in rows]
    longest = max(len(row.tokens) for row in fitted)
    if longest > max_tokens:
        left_out.longest = max(left_out.longest, longest)
        raise RowRefused(f"longer than {max_tokens:,} tokens")
    left_out.shortened += sum(row is not shorter for row, shorter in zip(rows, fitted))
    return fitted


def _shorten(row: Encoded, encoder: Encoder, max_tokens: int) -> Encoded:
    """Leave out leading turns until it fits, or until none can be left out."""
    while len(row.tokens) > max_tokens and (rest := row.conversation.without_first_turn()) is not None:
        (row,) = encoder.encode(rest)
    return row
