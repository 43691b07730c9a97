"""Tiny models of many families, each with a tokenizer of the kind that its family has, as folders."""

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from stages.lib.sources.gguf import LLAMA_3, SPLITS

TEXT = [
    "The train leaves the old station at 12:45, and the people wave.",
    "Smoke came out of the heater last night; please treat it as an emergency!",
    "user assistant system model What is 3 + 47? It isn't 51, they'll say.  Two  spaces.\n\nA new line.",
    "naïve café Ångström 日本 ☂",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
UNKNOWN, BOS, EOS, START, END = range(5)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "phi3": {},
    "phi3-long": {
        "original_max_position_embeddings": 512,  # more than llama.cpp rounds a context up to
        "max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
            "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
            "original_max_position_embeddings": 512,
        },
    },
}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(pre: str) -> Tokenizer:
    """Train a byte-level BPE that splits text as llama.cpp does for `pre`."""
    tokenizer = Tokenizer(models.BPE())
    pattern = LLAMA_3 if pre == "dbrx" else SPLITS[pre]
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, *split, last]) if digits or split else last
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    if pre == "llama-bpe":
        found = json.loads(tokenizer.to_str())
        found["model"]["ignore_merges"] = True
        tokenizer = Tokenizer.from_str(json.dumps(found))
    return tokenizer


def sentence_piece(prefix: bool) -> Tokenizer:
    """Build a BPE as those converted from SentencePiece: any two neighbours that make a token may be merged."""
    letters = dict.fromkeys(itertools.chain("▁", *(text.replace(" ", "▁") for text in TEXT[:3])))
    words = [word for text in TEXT[:3] for word in text.replace(" ", " ▁").split()]
    pieces = dict.fromkeys(word[:end] for word in words for end in range(2, len(word) + 1))
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*SPECIAL, *bytes_, *letters, *pieces]))}
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replaced = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced]) if prefix else replaced
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return tokenizer


def tokenizer_of(family: str) -> Tokenizer:
    """Return a tokenizer of a family's kind."""
    if family.startswith("gemma"):
        return sentence_piece(prefix=False)
    if family.startswith(("mistral", "phi3")):
        return sentence_piece(prefix=True)
    pre = {"llama": "smollm", "llama-3": "llama-bpe"}.get(family, "qwen2")
    tokenizer = byte_level(pre)
    if family == "llama-3":
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", BOS)])
    return tokenizer


def write_model(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the folder of a random model, with a chat template."""
    tokenizer = tokenizer_of(family)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": UNKNOWN}
    settings = sizes | heads | ids | {"vocab_size": tokenizer.get_vocab_size() + 3, "initializer_range": 0.2}
    kind = {"llama-3": "llama", "phi3-long": "phi3"}.get(family, family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings | FAMILIES[family]))
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):  # which are all alike in a fresh model
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder
