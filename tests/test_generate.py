"""Generation: an answer depends on the model, the prompt and the seed, and on nothing else."""

import pytest
import torch
from conftest import BOS
from tokenizers import Tokenizer, models, pre_tokenizers

from stages.generate import GenerateParams, continue_prompt
from stages.lib.params import Mistake
from stages.lib.prompts import read_prompts

GREEDY = GenerateParams(seed=1, max_new_tokens=12, temperature=0.0, top_p=1.0)
SAMPLED = GREEDY.model_copy(update={"temperature": 1.0})


@pytest.fixture
def tokenizer() -> Tokenizer:
    """One token a number."""
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(97)}, unk_token="3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_without_temperature_the_likeliest_token_follows(model, tokenizer):
    text, tokens, ended = continue_prompt(model, tokenizer, "5 6 7", GREEDY)
    ids = [BOS, 5, 6, 7]
    with torch.inference_mode():
        for _ in range(tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert [int(word) for word in text.split()] == ids[4:]
    assert tokens == 12 or ended


def test_a_draw_depends_on_the_seed_and_the_prompt_alone(model, tokenizer):
    first = continue_prompt(model, tokenizer, "5 6 7", SAMPLED)
    torch.manual_seed(99)
    continue_prompt(model, tokenizer, "8", SAMPLED)
    assert continue_prompt(model, tokenizer, "5 6 7", SAMPLED) == first
    assert continue_prompt(model, tokenizer, "5 6 7", SAMPLED.model_copy(update={"seed": 2})) != first


def test_a_prompt_that_leaves_no_room_is_refused(model, tokenizer):
    with pytest.raises(Mistake, match=r"generate.max_new_tokens: 12 after the 54 tokens of .* context of 64"):
        continue_prompt(model, tokenizer, "5 " * 53, GREEDY)


def test_prompts_are_the_lines_that_are_not_blank(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n two \n")
    assert read_prompts(path) == ["one", "two"]
    path.write_text("\n")
    with pytest.raises(Mistake, match="no prompts"):
        read_prompts(path)
