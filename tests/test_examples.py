"""Examples: every target is learned from exactly once an epoch, no padding is, and no row sees another."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import EOS, FAMILIES, document, tiny
from support.training import settled, undropped
from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

from stages.lib.data.documents import IGNORED, Document
from stages.lib.model import packing
from stages.lib.model.packing import can_pack, packed_rows
from stages.lib.training.examples import Blocks, Room, Rows, Shuffled, few_tops, pack, pad_right, rooms
from stages.lib.training.loss import chunked_loss
from stages.lib.training.trainer import summed_nll

CAPPED, DROPPING = ["gemma2"], ["gpt2"]  # families whose attention does more than packed rows are given


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
    """Beside other rows it sees neither them nor what is filled up; a row without targets adds nothing."""
    model, rows = tiny(family), Rows(conversations)
    assert can_pack(model, rows.block_tokens) == (family not in CAPPED + DROPPING)
    packable = can_pack(undropped(model), rows.block_tokens)
    assert packable == (family not in CAPPED) and not model.training

    def learn(indices: Iterable[int | None], collate: Callable, sparse: bool = True) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        model.get_output_embeddings().requires_grad_(False)
        batch = collate([rows[index] for index in indices])
        with chunked_loss(model, sparse), packed_rows(model, 40) if "places" in batch else nullcontext():
            loss = model(**batch, num_items_in_batch=torch.tensor(1))["loss"]
        loss.backward()
        gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        return loss.item(), torch.cat(gradients)

    alone = [learn([index], pad_right) for index in range(4)]
    ways = [partial(learn, collate=pad_right), partial(learn, collate=pad_right, sparse=False)]
    for shapes in ([], [Room(96, 20)], [Room(96, 20), Room(128, 13), Room(160, 14)]) if packable else []:
        ways.append(partial(learn, collate=partial(pack, rooms=shapes, longest=40)))
    for way in ways:
        loss, gradient = way((1, 3, 0, 2, None))
        assert loss == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)
        torch.testing.assert_close(gradient, sum(gradient for _, gradient in alone), rtol=1e-3, atol=1e-5)
        assert way([None])[0] == 0
    assert summed_nll(model, rows, batch_size=3) == pytest.approx(loss, rel=1e-5)


def test_rows_are_packed_end_to_end_each_with_its_own_positions(conversations):
    rows = Rows(conversations)
    batch = pack([rows[2], rows[0]], [Room(16, 4), Room(32, 6), Room(64, 6)], longest=6)
    assert batch["input_ids"].tolist() == [[*conversations[2].tokens, *conversations[0].tokens, *[0] * 11]]
    filling = [*range(6), *range(5)]
    assert batch["position_ids"].tolist() == [[*range(8), *range(13), *filling]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 8, 21, 27, *[32] * 10]  # of a fixed number, with empty rows
    assert batch["places"].tolist() == [6, 8 + 4, 8 + 5, 8 + 11, 0, 0]
    targets = [conversations[2].tokens[7], *conversations[0].tokens[[5, 6, 12]]]
    assert batch["labels"].tolist() == [IGNORED, *targets, IGNORED, IGNORED]


def test_every_micro_batch_of_a_training_finds_room_and_little_is_filled_up():
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(5.2, 0.35, 203).astype(int) + 2
    documents = [document(str(number), int(length)) for number, length in enumerate(lengths)]
    rows = Rows([replace(one, targets=np.arange(len(one.tokens)) > len(one.tokens) // 2) for one in documents])
    for micro, filled in ((4, 0.1), (32, 0.05), (1, 0.2)):
        plan = settled(batch_size=32 if micro == 32 else 4, micro_batch_size=micro, epochs=2)
        shapes = rooms(rows, plan)
        assert len(shapes) <= 4 and shapes == sorted(shapes)
        order, tokens, used = Shuffled(rows.lengths, plan.batch_size, plan.seed), 0, 0
        for order.epoch in range(2):
            indices = list(order)
            for start in range(0, len(indices), micro):
                batch = pack([rows[index] for index in indices[start : start + micro]], shapes, rows.block_tokens)
                assert (batch["input_ids"].shape[1], len(batch["places"])) in shapes
                tokens += batch["input_ids"].shape[1]
                used += int(batch["labels"].ne(IGNORED).sum())
        assert used == 2 * rows.num_targets
        assert tokens < 2 * rows.num_tokens * (1 + filled)
        assert rows.largest(plan).tokens == shapes[-1].tokens


def test_few_shapes_are_those_that_leave_least_to_fill_up():
    sizes = np.random.default_rng(0).integers(1, 12, 40)
    values = np.unique(sizes)
    for most in (1, 2, 3, 20):
        tops = few_tops(sizes, most)
        assert len(tops) <= most and tops[-1] == sizes.max()
        ways = combinations(values[:-1], min(most, len(values)) - 1)
        least = min(np.array([*way, values[-1]])[np.searchsorted([*way, values[-1]], sizes)].sum() for way in ways)
        assert tops[np.searchsorted(tops, sizes)].sum() == least


def test_rows_that_see_one_another_are_not_trusted(monkeypatch):
    model = tiny("llama")
    assert can_pack(model, 40)
    monkeypatch.setattr(packing, "attend_rows", lambda *given, longest, cu_seq_lens_q=None, **others: sdpa(*given))
    assert not can_pack(model, 40)


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
