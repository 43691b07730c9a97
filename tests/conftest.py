"""What several tests share: a two-layer model, and documents that need no tokenizer."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from stages.lib.documents import Document

BOS, EOS, PAD = 0, 1, 2
VOCABULARY = 97
FAMILIES = ["llama", "qwen2", "mistral", "gemma", "gemma2", "gpt2"]


def tiny(family: str) -> PreTrainedModel:
    """A random two-layer model of an architecture, in evaluation mode, the same for the same name."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
    config = AutoConfig.for_model(family, **sizes, intermediate_size=96, num_key_value_heads=2, head_dim=16)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def model() -> LlamaForCausalLM:
    """A random two-layer Llama in evaluation mode, with a context of 64 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.4,  # far from uniform predictions, so that mistakes move the numbers
    )
    return LlamaForCausalLM(config).eval()


def document(name: str, num_tokens: int) -> Document:
    """A document of random tokens, the same for the same arguments."""
    rng = np.random.default_rng([num_tokens, *name.encode()])
    tokens = rng.integers(3, VOCABULARY, num_tokens).astype(np.int32)
    return Document(name, name.title(), " ".join(map(str, tokens)), tokens)


@pytest.fixture
def documents() -> list[Document]:
    """Documents shorter than, as long as, and much longer than a window of 16."""
    return [document("a", 5), document("b", 16), document("c", 61), document("d", 1), document("e", 40)]
