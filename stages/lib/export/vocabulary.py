"""The vocabulary: a tokenizer.json as GGUF files hold it, or a refusal where llama.cpp would split text otherwise."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from stages.lib.params import Mistake
from stages.lib.sources.gguf import LLAMA_3, SPLITS

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
PREFIXED, REPLACED = (
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer.

    Attributes:
        model: `gpt2` for byte-level BPE, `llama` for BPE that was SentencePiece's.
        pre: How text is split before merging, by llama.cpp's name.
        tokens: Their texts, by id, as many as the model has embeddings.
        types: A `gguf.TokenType` each.
        merges: Pairs of `gpt2`, first ones first.
        scores: Of `llama`: of two merges the one of the higher score is made first.
        space_prefix: Whether text begins with a space that nobody wrote.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    space_prefix: bool

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Write it."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_add_space_prefix(self.space_prefix)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)


def read_vocabulary(folder: Path, num_embeddings: int) -> Vocabulary:
    """Read the tokenizer of a model's folder.

    Raises:
        Mistake: llama.cpp has none that does the same.
    """
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    model = found["model"]
    if model["type"] != "BPE":
        raise Mistake(f"{path}: a tokenizer of the kind {model['type']}: only BPE can be written to a GGUF")
    ids, added = dict(model["vocab"]), {token["id"]: token for token in found["added_tokens"]}
    texts = {number: text for text, number in ids.items()} | {number: one["content"] for number, one in added.items()}
    if (highest := max(texts)) >= num_embeddings:
        raise Mistake(f"{path}: token {highest} has no embedding: the model has {num_embeddings}")
    numbers = range(num_embeddings)
    types = [_type(number, texts, added, model) for number in numbers]
    tokens = [texts.get(number, f"[PAD{number}]") for number in numbers]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(merges):
            ranks.setdefault(left + right, rank)
        scores = [-float(ranks.get(token, len(merges))) for token in tokens]
        return Vocabulary("llama", "default", tokens, types, [], scores, _has_space_prefix(found, path))
    return Vocabulary("gpt2", _pre(found, path), tokens, types, [" ".join(merge) for merge in merges], [], False)


def _type(number: int, texts: dict[int, str], added: dict[int, Any], model: dict[str, Any]) -> int:
    if number not in texts:
        return gguf.TokenType.UNUSED
    if texts[number] == model.get("unk_token"):
        return gguf.TokenType.UNKNOWN
    if number in added:  # found in a text whole, before it is split
        return gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED
    is_byte = model.get("byte_fallback") and BYTE.fullmatch(texts[number])
    return gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL


def _pre(found: dict[str, Any], path: Path) -> str:
    """Name how a byte-level tokenizer splits text before merging it."""
    pre = found["pre_tokenizer"] or {}
    parts = pre.get("pretokenizers", [pre])
    kinds = [part.get("type") for part in parts]
    patterns = [part["pattern"].get("Regex") for part in parts if part.get("type") == "Split"]
    whole = found["model"].get("ignore_merges", False)
    name = None
    if kinds == ["ByteLevel"]:
        name = "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"]:
        name = "smollm"
    elif kinds == ["Split", "ByteLevel"]:
        name = {pattern: name for name, pattern in SPLITS.items() if pattern}.get(patterns[0])
        if patterns[0] == LLAMA_3 and not whole:
            name = "dbrx"  # the same but for words that are tokens, which llama-bpe takes before any merge
    if name is None or whole != (name == "llama-bpe") or any(part.get("add_prefix_space") for part in parts):
        raise Mistake(f"{path}: it splits text in a way that is not known here: {json.dumps(pre)[:200]}")
    return name


def _has_space_prefix(found: dict[str, Any], path: Path) -> bool:
    """Tell whether a tokenizer that was SentencePiece's puts a space before a text."""
    normalizer, pre = found["normalizer"] or {}, found["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if pre.get("type") == "Metaspace" and not steps:
        return pre["prepend_scheme"] != "never"
    if steps in ([REPLACED], [PREFIXED, REPLACED]) and pre.get("type") in (None, "Split"):
        return PREFIXED in steps
    raise Mistake(
        f"{path}: it rewrites text before merging in a way that is not known here: {json.dumps(normalizer)[:200]}"
    )
