"""The chunked loss is the cross-entropy, and its gradient is the gradient."""

import copy

import pytest
import torch
from conftest import FAMILIES, tiny

from stages.lib.training.loss import IGNORED, SummedCrossEntropy, chunked_loss, score_chunk, score_chunk_in_one


@pytest.mark.parametrize("score", [score_chunk, score_chunk_in_one])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_loss_and_gradient_equal_float64_cross_entropy(score, cap, chunk):
    torch.manual_seed(0)
    hidden, weight = torch.randn(11, 16), torch.randn(50, 16)
    targets = torch.randint(0, 50, (11,))
    targets[[0, 6]] = IGNORED
    exact = hidden.double().requires_grad_()
    logits = exact @ weight.double().T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    (expected / 9).backward()
    hidden.requires_grad_()

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = hidden @ weight.T
        return logits if cap is None else cap * torch.tanh(logits / cap)

    found = SummedCrossEntropy.apply(hidden, targets, head, chunk, score)
    (found / 9).backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_family_gives_its_own_loss_and_gradients(family):
    own = tiny(family)
    own.get_output_embeddings().weight.requires_grad_(False)  # frozen, as in training: tied to the embeddings or not
    chunked = copy.deepcopy(own)
    ids = torch.randint(0, 64, (3, 9))
    labels = ids.clone()
    labels[0, :4] = IGNORED
    expected = own(input_ids=ids, labels=labels).loss
    expected.backward()
    with chunked_loss(chunked):
        found = chunked(input_ids=ids, labels=labels)["loss"]
    found.backward()
    torch.testing.assert_close(found, expected)
    gradients = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
    assert gradients
    for name, parameter in chunked.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


def test_micro_batches_add_up_to_their_batch(model):
    torch.manual_seed(0)
    ids = torch.randint(3, 97, (4, 20))
    labels = ids.clone()
    labels[1, :15] = IGNORED  # rows of unequal numbers of targets: a mean of means would be another number
    model.get_output_embeddings().weight.requires_grad_(False)
    total = (labels[:, 1:] != IGNORED).sum()

    def gradients(size: int) -> list[torch.Tensor]:
        model.zero_grad()
        for rows, row_labels in zip(ids.split(size), labels.split(size)):
            model(input_ids=rows, labels=row_labels, num_items_in_batch=total)["loss"].backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    with chunked_loss(model):
        whole_batch, single_rows = gradients(4), gradients(1)
    for whole, parts in zip(whole_batch, single_rows):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)
