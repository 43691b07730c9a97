"""The tokenizer of a base model, without the model."""

from tokenizers import Tokenizer

from stages.lib.params import Mistake
from stages.lib.sources.source import fetch_model


def load_tokenizer(model: str) -> Tokenizer:
    """Load the tokenizer of a base model, set to encode every text whole, alone, and as plain text.

    A saved tokenizer may come with truncation and padding switched on, and would find special tokens
    in a text that merely spells their names.

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
    tokenizer.encode_special_tokens = True
    return tokenizer
