"""The tokenizer of a base model, without the model."""

from tokenizers import Tokenizer

from stages.lib.params import Mistake
from stages.lib.source import fetch_model


def load_tokenizer(model: str) -> Tokenizer:
    """Load the tokenizer of a base model, set to read `<|special|>` names in a text as plain text."""
    path = fetch_model(model, ["tokenizer.json"]) / "tokenizer.json"
    if not path.exists():
        raise Mistake(f"{path}: missing; save the model's tokenizer there with the `tokenizers` library")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer
