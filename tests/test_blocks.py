"""Packing: every token is learned from exactly once an epoch, and there is no padding."""

import numpy as np
import pytest
from conftest import EOS, document

from stages.lib.training.blocks import Blocks
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
