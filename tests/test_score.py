"""Scoring: the numbers equal the definition, and nothing that must not matter matters."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BOS, FAMILIES, document, tiny

from stages.evaluate import Window, cut_windows, score_documents, summarize
from stages.lib.params import Mistake
from stages.lib.score import logits_of, score_batch, score_logits


def reference_sums(model, doc, window_tokens, stride_tokens) -> tuple[float, int, int]:
    """Score a document in float64, one target at a time, straight from the definition."""
    model = model.double()
    ids = torch.tensor([BOS, *doc.tokens.tolist()])
    nll, top1, top5, window_end = 0.0, 0, 0, window_tokens
    for target in range(1, len(ids)):
        if target > window_end:
            window_end += stride_tokens
        end = min(window_end, len(ids) - 1)
        context = ids[max(0, end - window_tokens) : target]
        with torch.no_grad():
            logits = model(context[None]).logits[0, -1]
        nll -= torch.log_softmax(logits, 0)[ids[target]].item()
        rank = int((logits > logits[ids[target]]).sum())
        top1, top5 = top1 + (rank == 0), top5 + (rank < 5)
    return nll, top1, top5


@pytest.mark.parametrize("stride_tokens", [16, 8, 3])
def test_scores_equal_a_float64_reference(model, documents, stride_tokens):
    scores = score_documents(model, documents, 16, stride_tokens, batch_size=3)
    for doc, row in zip(documents, scores.itertuples()):
        nll, top1, top5 = reference_sums(model, doc, 16, stride_tokens)
        assert row.nll == pytest.approx(nll, rel=1e-5)
        assert (row.top1, row.top5) == (top1, top5)


def test_a_hand_computed_case():
    logits = torch.tensor([[math.log(1), math.log(2), math.log(5)], [0.0, 0.0, 0.0]])
    scores = score_logits(logits, torch.tensor([1, 2])).numpy()
    np.testing.assert_allclose(scores[0], [math.log(8 / 2), 0, 1], rtol=1e-6)  # second of three
    np.testing.assert_allclose(scores[1], [math.log(3), 1, 1], rtol=1e-6)  # no logit is above a tied one


def test_metrics_are_sums_divided_once():
    scores = pd.DataFrame(
        [("a", "A", 10, 2, 4, 4 * math.log(2), 1, 2), ("b", "B", 30, 6, 12, 12 * math.log(8), 3, 6)],
        columns=["id", "title", "bytes", "words", "tokens", "nll", "top1", "top5"],
    )
    found = summarize(scores)
    bits = 4 * 1 + 12 * 3
    assert found["perplexity"] == pytest.approx(2 ** (bits / 16))  # not the mean of 2 and 8
    assert found["word_perplexity"] == pytest.approx(2 ** (bits / 8))
    assert found["byte_perplexity"] == pytest.approx(2 ** (bits / 40))
    assert found["bits_per_byte"] == pytest.approx(bits / 40)
    assert (found["accuracy"], found["accuracy_top5"]) == (4 / 16, 8 / 16)
    assert (found["documents"], found["tokens"], found["bytes"], found["words"]) == (2, 16, 40, 8)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_padding_and_batch_size_change_no_sum(model, documents, batch_size):
    alone = pd.concat([score_documents(model, [doc], 16, 8, 1) for doc in documents], ignore_index=True)
    together = score_documents(model, documents, 16, 8, batch_size)
    np.testing.assert_allclose(together["nll"], alone["nll"], rtol=1e-6)
    assert together.drop(columns="nll").equals(alone.drop(columns="nll"))


@pytest.mark.parametrize("padding", [0, 5, 96])
def test_what_stands_in_the_padding_is_never_seen(model, padding, monkeypatch):
    inputs, targets = [np.array([BOS, 5, 6, 7]), np.array([BOS, 9])], [np.array([5, 6, 7, 8]), np.array([9, 4])]
    alone = score_batch(model, inputs[1:], targets[1:])
    monkeypatch.setattr(np, "zeros", lambda shape, dtype: np.full(shape, padding if dtype is np.int64 else 0, dtype))
    np.testing.assert_allclose(score_batch(model, inputs, targets)[4:], alone, rtol=1e-6)


@pytest.mark.parametrize(("window_tokens", "stride_tokens"), [(16, 16), (16, 8), (16, 1), (2, 1), (1, 1)])
@pytest.mark.parametrize("num_targets", [1, 2, 15, 16, 17, 100])
def test_every_target_is_scored_once_with_enough_context(num_targets, window_tokens, stride_tokens):
    windows = list(cut_windows(7, num_targets, window_tokens, stride_tokens))
    scored = [target for window in windows for target in range(window.first, window.end)]
    assert scored == list(range(num_targets))
    for window in windows[1:]:
        assert window.first - window.start >= window_tokens - stride_tokens
        assert window.end - window.start == window_tokens
    assert windows[0] == Window(7, 0, 0, min(window_tokens, num_targets))


def test_a_loss_that_is_not_finite_names_the_document(model):
    model.model.norm.weight.data[:] = math.nan
    with pytest.raises(Mistake, match=r"document d: the model's loss is nan"):
        score_documents(model, [document("d", 9)], 16, 8, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_chunks_are_the_models_own(family):
    model = tiny(family)
    ids = torch.randint(0, 64, (2, 9))
    with torch.inference_mode():
        hidden = model.get_decoder()(ids).last_hidden_state.flatten(0, 1)
        torch.testing.assert_close(logits_of(model, hidden), model(ids).logits.flatten(0, 1))
