"""Examples: every target is learned from exactly once an epoch, no padding is, and no row sees another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import EOS, FAMILIES, document, tiny

from stages.lib.data.documents import IGNORED, Document
from stages.lib.training.examples import Blocks, Rows, Shuffled, pad_right
from stages.lib.training.loss import chunked_loss
from stages.lib.training.trainer import summed_nll


@pytest.mark.parametrize("block_tokens", [2, 3, 7, 10, 18, 19, 20, 1000])
def test_every_token_but_the_first_is_predicted_once(block_tokens):
    documents = [document("a", 5), document("b", 8)]
    blocks = Blocks(documents, [EOS], block_tokens)
    packed = [*documents[0].tokens, EOS, *documents[1].tokens, EOS]
    predicted = []
    for block in (blocks[index] for index in range(len(blocks))):
        ids, labels = block["input_ids"].tolist(), block["labels"].tolist()
        assert len(ids) == min(block_tokens, len(packed))
        predicted += [label for label in labels[1:] if label != -100]
        assert all(label in (-100, token) for token, label in zip(ids, labels))
    assert predicted == packed[1:]
    assert blocks.num_targets == len(packed) - 1


def test_validation_loss_is_the_sum_over_tokens_divided_once(model):
    blocks = Blocks([document("a", 50)], [EOS], 16)  # the last block predicts fewer tokens than the others
    losses, counts = [], []
    for block in (blocks[index] for index in range(len(blocks))):
        losses.append(model(**{key: value[None] for key, value in block.items()}).loss.item())
        counts.append(int((block["labels"][1:] != -100).sum()))
    assert len(set(counts)) > 1
    exact = np.dot(losses, counts) / sum(counts)
    assert summed_nll(model, blocks, batch_size=3) / blocks.num_targets == pytest.approx(exact, rel=1e-5)
    assert np.mean(losses) != pytest.approx(exact, rel=1e-5)


@pytest.fixture
def conversations() -> list[Document]:
    """Rows of 8 to 40 tokens, of which a few in one or two places are targets."""
    documents = [document(name, number) for name, number in (("a", 12), ("b", 39), ("c", 7), ("d", 20))]
    places = ([5, 6, 12], [30, 31, 32, 39], [7], [9, 10, 19, 20])
    return [replace(one, targets=np.isin(np.arange(len(one.tokens)), at)) for one, at in zip(documents, places)]


def test_rows_are_the_conversations_and_their_targets(conversations):
    rows = Rows(conversations)
    assert len(rows) == 4 and rows.lengths.tolist() == [13, 40, 8, 21] and rows.block_tokens == 40
    assert rows.num_targets == 12
    for index, one in enumerate(conversations):
        row = rows[index]
        assert row["input_ids"].tolist() == one.tokens.tolist()
        assert row["labels"].tolist() == np.where(one.targets, one.tokens, IGNORED).tolist()
        tokens, labels = rows.scored(index)
        assert tokens.tolist() == one.tokens[:-1].tolist() and labels.tolist() == one.labels.tolist()
    assert (rows[None]["labels"] == IGNORED).all()
    assert len(Rows([])) == Rows([]).num_targets == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_loss_and_gradient_that_it_has_alone(family, conversations):
    """Padded beside longer rows it sees neither them nor the padding; a row without targets adds nothing."""
    model, rows = tiny(family), Rows(conversations)

    def learn(examples: list[dict[str, torch.Tensor]], sparse: bool) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        model.get_output_embeddings().requires_grad_(False)
        with chunked_loss(model, sparse):
            loss = model(**pad_right(examples), num_items_in_batch=torch.tensor(1))["loss"]
        loss.backward()
        gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        return loss.item(), torch.cat(gradients)

    alone = [learn([rows[index]], sparse=True) for index in range(4)]
    for sparse in (True, False):
        loss, gradient = learn([rows[index] for index in (1, 3, 0, 2, None)], sparse)
        assert loss == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)
        torch.testing.assert_close(gradient, sum(gradient for _, gradient in alone), rtol=1e-3, atol=1e-5)
    assert summed_nll(model, rows, batch_size=3) == pytest.approx(loss, rel=1e-5)


def test_a_step_learns_the_rows_that_were_drawn_for_it_the_longest_first():
    lengths = np.random.default_rng(0).integers(5, 100, 21)
    drawn = np.random.default_rng([1, 0]).permutation(21)
    order = list(Shuffled(lengths, 4, seed=1))
    assert order[21:] == [None] * 3
    for start in range(0, 20, 4):
        step = order[start : start + 4]
        assert sorted(step) == sorted(drawn[start : start + 4])
        assert lengths[step].tolist() == sorted(lengths[step], reverse=True)
    equal = Shuffled(np.full(21, 9), 4, seed=1)
    assert list(equal)[:21] == drawn.tolist()  # as for texts, whose blocks are of one length
