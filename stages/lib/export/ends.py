"""Ends: the tokens that begin and end texts and turns, as a model learned them."""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GenerationConfig

from stages.lib.conversations.targets import Encoder
from stages.lib.conversations.template import Template
from stages.lib.data.tokenizer import begin_ids
from stages.lib.model.loading import end_ids, read_config
from stages.lib.params import Mistake

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Ends:
    """Token ids.

    Attributes:
        bos: The model's BOS, if it has one.
        begins: Whether the tokenizer put it before what was learned: who encodes a prompt is to do so too, unless the
            template has done it. A template may write it all the same where the tokenizer does not.
        ids: What ends a text or a turn: the model's EOS first, what the template ends an answer with last.
        pad: The padding token, if there is one.
    """

    bos: int | None
    begins: bool
    ids: list[int]
    pad: int | None


def find_ends(folder: Path, tokenizer: Tokenizer, template: Template | None) -> Ends:
    """Find the tokens that begin and end what a model learned.

    Args:
        folder: The model's.
        tokenizer: Its own; it finds special tokens where there is a template.
        template: Of conversations; None where texts were learned.

    Raises:
        Mistake: Several tokens, or another than BOS, stood before it.
    """
    config, told = read_config(folder), read_generation(folder)
    ids, bos = end_ids(config, GenerationConfig(eos_token_id=told.get("eos_token_id"))), config.bos_token_id
    begin = begin_ids(tokenizer)
    if begin not in ([], [bos]):
        raise Mistake(f"{folder}: the tokenizer puts {begin} before a text: a GGUF knows only BOS, which is {bos}")
    begins = bool(begin)
    if template:
        encoder = Encoder.of(template, tokenizer)
        ids.append(encoder.end_id)
        begins = begins and encoder.prompt(template.beginning.then("a"))[0] == bos
    return Ends(bos, begins, list(dict.fromkeys(ids)), config.pad_token_id)


def write_ends(folder: Path, ends: Ends) -> None:
    """Let whoever generates with the model of a folder stop at all that ends a turn."""
    settings = read_generation(folder) | {"eos_token_id": ends.ids if len(ends.ids) > 1 else ends.ids[0]}
    (folder / GENERATION_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_generation(folder: Path) -> dict[str, object]:
    """Read a model's generation_config.json; nothing where it has none."""
    path = folder / GENERATION_CONFIG
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
