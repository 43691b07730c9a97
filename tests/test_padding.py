"""How a perplexity that counts padding turns a gain into a loss: the story in the README, told by running it.

Tutorials pad short rows with the end-of-text token, train on what is not padding, and then ask the model for its mean
loss on rows, padding included. Nobody taught it what follows the end of a text, so that number wanders.
"""

import math

import pytest
import torch
from support.training import PARAMS

from stages.lib.data.splits import hash_position
from stages.lib.data.texts import read_dataset
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.model.adapter import add_adapter
from stages.lib.model.loading import load_model

ROW_TOKENS, EARLY, LATE = 128, 30, 90  # optimizer steps


@pytest.fixture(scope="module")
def told() -> dict[int, tuple[float, float, float]]:
    """Train as tutorials do; by steps: perplexity with padding, perplexity of the text, accuracy on the text."""
    torch.manual_seed(1)
    model = add_adapter(load_model("wiki-mini", PARAMS.quantization), PARAMS.lora)
    bos, eos = model.config.bos_token_id, model.config.eos_token_id
    paragraphs = [part for text in read_dataset("encyclopedia") for part in text.text.split("\n") if part.strip()]
    rows = torch.full((len(paragraphs), ROW_TOKENS), eos)
    for row, encoding in zip(rows, load_tokenizer("wiki-mini").encode_batch(paragraphs, add_special_tokens=False)):
        ids = torch.tensor([bos, *encoding.ids][:ROW_TOKENS])
        row[: len(ids)] = ids
    held_out = torch.tensor([hash_position(paragraph, "split") < 0.1 for paragraph in paragraphs])
    train = rows[~held_out][torch.randperm(int((~held_out).sum()))[: 4 * LATE]]
    optimizer = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=2e-4)
    found = {0: judge(model, rows[held_out], eos)}
    for step, batch in enumerate(train.split(4), start=1):
        model.train()
        model(batch, labels=batch.masked_fill(batch == eos, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (EARLY, LATE):
            found[step] = judge(model, rows[held_out], eos)
    return found


@torch.inference_mode()
def judge(model, rows: torch.Tensor, eos: int) -> tuple[float, float, float]:
    model.eval()
    padded_means, nll, hits, tokens = [], 0.0, 0, 0
    for batch in rows.split(4):
        logits, targets = model(batch).logits[:, :-1].float(), batch[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        text = targets != eos
        padded_means.append(losses.mean().item())  # what `model(batch, labels=batch).loss` is
        nll, tokens = nll + losses[text].sum().item(), tokens + text.sum().item()
        hits += (logits.argmax(-1) == targets)[text].sum().item()
    return math.exp(sum(padded_means) / len(padded_means)), math.exp(nll / tokens), hits / tokens


def test_padding_in_the_loss_turns_a_gain_into_a_loss(told):
    for steps, (padded, right, accuracy) in told.items():
        print(f"| {steps} | {padded:.0f} | {right:.1f} | {accuracy:.1%} |")
    padded, right, accuracy = zip(*told.values())
    assert right[0] > right[1] > right[2] and accuracy[2] > accuracy[0]  # the model gets better
    assert padded[2] > 1.05 * padded[1]  # and the number that counts padding says it got worse
    assert min(padded) > 5 * max(right)
