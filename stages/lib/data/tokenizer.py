"""The tokenizer of a base model, without the model."""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

from stages.lib.params import Mistake
from stages.lib.sources.source import fetch_model

UNKNOWN = 2**31  # embeddings or positions, where config.json does not say


def load_tokenizer(model: str, special: bool = False) -> Tokenizer:
    """Load the tokenizer of a base model, set to encode every text whole, alone, and as plain text.

    A saved tokenizer may come with truncation and padding switched on, and would find special tokens
    in a text that merely spells their names.

    Args:
        model: A folder of models/base/.
        special: Find special tokens all the same, for texts that a chat template wrote.

    Raises:
        Mistake: The model has no `tokenizer.json` that can be read.
    """
    path = fetch_model(model, ["tokenizer.json"]) / "tokenizer.json"
    if not path.exists():
        raise Mistake(f"{path}: missing; save the model's tokenizer there with the `tokenizers` library")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise Mistake(f"{path}: not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not special
    return tokenizer


def begin_ids(tokenizer: Tokenizer) -> list[int]:
    """Return what the model's own tokenizer puts before a text: its BOS, as a rule, or nothing."""
    word = "a"
    plain, whole = (tokenizer.encode(word, add_special_tokens=special).ids for special in (False, True))
    start = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return whole[:start]


def num_embeddings(model: str) -> int:
    """Return how many tokens a base model has embeddings for, by its config.json."""
    return _read_config(model).get("vocab_size", UNKNOWN)


def num_positions(model: str) -> int:
    """Return the longest input a base model was made for, in tokens, by its config.json."""
    config = _read_config(model)
    return config.get("max_position_embeddings") or config.get("max_seq_len") or UNKNOWN


def _read_config(model: str) -> dict[str, Any]:
    config = json.loads((fetch_model(model, ["config.json"]) / "config.json").read_text(encoding="utf-8"))
    return config.get("text_config") or config


def check_ids(ids: Iterable[int], tokenizer: Tokenizer, embeddings: int) -> None:
    """Refuse token ids for which there is no embedding.

    Raises:
        Mistake: Names the token.
    """
    if (worst := max(ids, default=0)) >= embeddings:
        raise Mistake(
            f"the tokenizer makes token {worst} ({tokenizer.id_to_token(worst)!r}), but the model has embeddings for "
            f"tokens 0 to {embeddings - 1} alone: its tokenizer.json and config.json do not belong together"
        )
