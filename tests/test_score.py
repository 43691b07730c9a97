"""Scoring: the numbers equal the definition, and nothing that must not matter matters."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BOS, FAMILIES, PAD, as_document, document, tiny
from support.training import PARAMS

from stages.lib.data.documents import Document
from stages.lib.model.adapter import add_adapter
from stages.lib.params import Mistake
from stages.lib.records import to_metrics
from stages.lib.scoring import score, windows
from stages.lib.scoring.document_scores import summarize, summarize_tokens
from stages.lib.scoring.evaluation import warn_of_loss
from stages.lib.scoring.score import compare_logits, score_logits, score_tokens
from stages.lib.scoring.windows import Window, cut_windows, score_disjoint, score_documents


def reference_sums(model, doc, window_tokens, stride_tokens) -> tuple[float, int, int]:
    """Score a document in float64, one target at a time, straight from the definition."""
    model = model.double()
    ids = torch.from_numpy(doc.tokens).long()
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


def test_nothing_but_targets_is_scored(model):
    """A conversation: what the model is asked is read, and what it answers is scored, wherever the windows fall."""
    doc = document("a", 40)
    mask = np.zeros(41, bool)
    mask[[5, 6, 7, 20, 39, 40]] = True
    with torch.no_grad():
        logits = model(torch.from_numpy(doc.tokens[None, :-1]).long()).logits[0].log_softmax(1)
    expected = -sum(logits[place - 1, doc.tokens[place]].item() for place in np.flatnonzero(mask))
    for window_tokens, stride_tokens in ((64, 32), (40, 40)):
        found = score_documents(model, [replace(doc, targets=mask)], window_tokens, stride_tokens, 2)
        assert found["tokens"][0] == 6 and found["nll"][0] == pytest.approx(expected, rel=1e-5)
    by_pieces = score_documents(model, [replace(doc, targets=mask)], 8, 4, 2)
    assert by_pieces["tokens"][0] == 6 and [places.sum() for places in by_pieces["position_tokens"]] == [6]


def test_the_first_token_is_no_target_where_nothing_comes_before_it(model):
    doc = document("a", 9)
    bare = Document("a", "A", doc.text, doc.tokens[1:], np.ones(9, bool))  # as of a tokenizer without BOS
    found = score_documents(model, [bare], 16, 8, 1)
    with torch.no_grad():
        ids = torch.from_numpy(bare.tokens[None]).long()
        expected = model(ids, labels=ids).loss.item() * 8
    assert bare.num_targets == found["tokens"][0] == 8 and found["nll"][0] == pytest.approx(expected, rel=1e-5)


def test_a_hand_computed_case():
    logits = torch.tensor([[math.log(1), math.log(2), math.log(5)], [0.0, 0.0, 0.0]])
    scores = score_logits(logits, torch.tensor([1, 2]))  # second of three; no logit is above a tied one
    np.testing.assert_allclose(scores.nll, [math.log(8 / 2), math.log(3)], rtol=1e-6)
    assert (scores.top1.tolist(), scores.top5.tolist()) == ([0, 1], [1, 1])
    np.testing.assert_allclose(scores.confidence, [5 / 8, 1 / 3], rtol=1e-6)


def test_a_hand_computed_divergence():
    base = torch.tensor([[math.log(1), math.log(3)], [0.0, 0.0]])
    other = torch.tensor([[math.log(2), math.log(2)], [0.0, 0.0]])
    expected = 1 / 4 * math.log((1 / 4) / (1 / 2)) + 3 / 4 * math.log((3 / 4) / (1 / 2))
    found = compare_logits(base, other)
    np.testing.assert_allclose(found.kl, [expected, 0], rtol=1e-6)
    assert found.agreed.tolist() == [0, 1]


def test_metrics_are_sums_divided_once():
    scores = pd.DataFrame(
        [("a", "A", 10, 2, 4, 4 * math.log(2), 1, 2), ("b", "B", 30, 6, 12, 12 * math.log(8), 3, 6)],
        columns=["id", "title", "bytes", "words", "tokens", "nll", "top1", "top5"],
    )
    for name, values in (("tokens", (4, 12)), ("confidence", (2, 6)), ("hits", (1, 3))):
        scores[f"bin_{name}"] = [np.array([value]) for value in values]
    found = summarize(scores)
    bits = 4 * 1 + 12 * 3
    assert found.perplexity == pytest.approx(2 ** (bits / 16))  # not the mean of 2 and 8
    assert found.word_perplexity == pytest.approx(2 ** (bits / 8))
    assert found.byte_perplexity == pytest.approx(2 ** (bits / 40))
    assert found.bits_per_byte == pytest.approx(bits / 40)
    assert (found.accuracy, found.accuracy_top5, found.ece) == (4 / 16, 8 / 16, 4 / 16)
    assert (found.documents, found.tokens, found.bytes, found.words) == (2, 16, 40, 8)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_padding_and_batch_size_change_no_sum(model, documents, batch_size):
    alone = pd.concat([score_documents(model, [doc], 16, 8, 1) for doc in documents], ignore_index=True)
    together = score_documents(model, documents, 16, 8, batch_size)
    np.testing.assert_allclose(together["nll"], alone["nll"], rtol=1e-6)
    for column in ("id", "title", "bytes", "words", "tokens", "top1", "top5"):
        assert together[column].equals(alone[column]), column
    for column in ("bin_tokens", "bin_confidence", "bin_hits"):
        np.testing.assert_allclose(np.stack(together[column]), np.stack(alone[column]), atol=1e-4)


@pytest.mark.parametrize("padding", [0, 5, 96])
def test_what_stands_in_the_padding_is_never_seen(model, padding, monkeypatch):
    inputs, labels = [np.array([BOS, 5, 6, 7]), np.array([BOS, 9])], [np.array([5, 6, 7, 8]), np.array([9, 4])]
    alone, _ = score_tokens(model, inputs[1:], labels[1:])
    monkeypatch.setattr(np, "zeros", lambda shape, dtype: np.full(shape, padding if dtype is np.int64 else 0, dtype))
    for together, expected in zip(score_tokens(model, inputs, labels)[0], alone, strict=True):
        np.testing.assert_allclose(together[4:], expected, rtol=1e-6)


@pytest.mark.parametrize(("tokens", "compiled"), [(100_000, False), (1_000_000, True)])
def test_only_many_targets_are_scored_by_compiled_code_and_only_on_a_gpu(model, tokens, compiled, monkeypatch):
    monkeypatch.setattr(score, "num_entries", lambda _: 128_256)
    assert not score.gains_by_compiling(model, tokens)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert score.gains_by_compiling(model, tokens) is compiled


def test_what_is_not_scored_does_not_count_for_that(model, monkeypatch):
    asked = []
    monkeypatch.setattr(windows, "gains_by_compiling", lambda model, number: asked.append(number))
    one = document("a", 40)
    found = score_documents(model, [replace(one, targets=np.arange(len(one.tokens)) > 30)], 16, 8, 2)
    assert asked == [found["tokens"].sum()] == [10]


def test_compiled_code_gives_the_same_scores(model):
    tuned = add_adapter(model, PARAMS.lora).eval()
    with torch.no_grad():
        next(weight for name, weight in tuned.named_parameters() if "lora_B" in name).fill_(0.1)
    inputs = [document(name, length).tokens for name, length in (("a", 20), ("b", 9))]
    batch = [tokens[:-1] for tokens in inputs], [tokens[1:].astype(np.int64) for tokens in inputs]
    plain, compiled = (score_tokens(tuned, *batch, against_base=True, compiled=way) for way in (False, True))
    for part, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(tuple(part), tuple(expected), rtol=1e-5, atol=1e-7)


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
    with pytest.raises(Mistake, match=r"document d: the model's loss is not finite"):
        score_documents(model, [document("d", 9)], 16, 8, 1)


def test_a_loss_worse_than_counting_tokens_is_a_warning():
    half = as_document("a", np.repeat([3, 4], 50))  # entropy ln 2, and 1/200 for its estimate
    assert not warn_of_loss(0.697, [half])
    (warning,) = warn_of_loss(0.699, [half])
    assert warning.startswith("the loss is 0.70 nats per token; knowing nothing but how often each token occurs gives")
    assert not warn_of_loss(99.0, [document("b", 60)])  # too few of each token to know


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_the_models_own(family):
    model = tiny(family)
    ids = torch.randint(0, 64, (2, 9))
    with torch.inference_mode():
        logits = model(ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    scores, _ = score_tokens(model, list(ids[:, :-1].numpy()), list(ids[:, 1:].numpy()))
    np.testing.assert_allclose(scores.nll, expected, rtol=1e-5)


def test_the_usual_mistakes_would_be_noticed(model, documents):
    """Each moves the loss ten times further than the tests above allow."""

    def loss(docs: list[Document]) -> float:
        return summarize(score_documents(model, docs, 64, 32, batch_size=3)).nll

    def with_tokens(change: Callable[[np.ndarray], np.ndarray]) -> list[Document]:
        return [as_document(doc.id, change(doc.tokens[1:])) for doc in documents if len(doc.tokens) > 2]

    right = loss(with_tokens(lambda tokens: tokens))
    scores = score_documents(model, with_tokens(lambda tokens: tokens), 64, 32, batch_size=3)
    mistaken = {
        "a pad is scored": loss(with_tokens(lambda tokens: np.append(tokens, [PAD] * (61 - len(tokens))))),
        "the last token is dropped": loss(with_tokens(lambda tokens: tokens[:-1])),
        "BOS stands twice": loss(with_tokens(lambda tokens: np.append([BOS], tokens))),
        "a mean of means": (scores["nll"] / scores["tokens"]).mean(),
    }
    for mistake, wrong in mistaken.items():
        assert abs(wrong / right - 1) > 1e-4, mistake


@pytest.mark.parametrize("num_tokens", [15, 16, 31, 40, 47])
def test_blocks_are_scored_as_papers_do(num_tokens, model):
    """Disjoint windows of one text after one BOS; the first token of each and the tail are not scored."""
    whole = document("a", num_tokens)
    stream = torch.from_numpy(whole.tokens).long()
    nll, count = 0.0, 0
    for start in range(0, len(stream) - 15, 16):
        window = stream[start : start + 16]
        with torch.no_grad():
            nll += model(window[None], labels=window[None]).loss.item() * 15  # a mean over 15 predicted tokens
        count += 15
    scores = score_disjoint(model, whole, 16, batch_size=2)
    assert scores["tokens"].sum() == count == 15 * ((num_tokens + 1) // 16)
    assert summarize_tokens(scores).nll == pytest.approx(nll / count, rel=1e-6)


def test_bins_and_positions_hold_every_token_once(model, documents):
    scores = score_documents(model, documents, 16, 8, batch_size=3)
    for kind in ("bin", "position"):
        assert [tokens.sum() for tokens in scores[f"{kind}_tokens"]] == [doc.num_targets for doc in documents]
    np.testing.assert_allclose([hits.sum() for hits in scores["bin_hits"]], scores["top1"])
    np.testing.assert_allclose([nll.sum() for nll in scores["position_nll"]], scores["nll"])
    first_window, strides, last = np.array([1, 2, 4, 8, 1]), np.array([0, 0, 0, 7, 1]), np.array([0, 0, 0, 4, 1])
    assert (scores["position_tokens"][2] == first_window + 5 * strides + last).all()  # 61 = 16 + 5 * 8 + 5 targets


def test_an_adapter_is_compared_with_its_base_on_the_same_windows(model, documents):
    model.requires_grad_(False)
    tuned = add_adapter(model, PARAMS.lora).eval()
    same = score_documents(tuned, documents, 16, 8, batch_size=3, against_base=True)
    assert same["kl"].abs().max() == 0 and (same["agreed"] == same["tokens"]).all()
    torch.manual_seed(0)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    moved = score_documents(tuned, documents, 16, 16, batch_size=3, against_base=True)
    ids = torch.tensor([documents[0].tokens[:-1].tolist()])
    with torch.no_grad():
        after = tuned(ids).logits[0].double().log_softmax(1)
        with tuned.disable_adapter():
            before = tuned(ids).logits[0].double().log_softmax(1)
    assert moved["kl"][0] == pytest.approx((before.exp() * (before - after)).sum().item(), rel=1e-5)
    assert moved["agreed"][0] == (before.argmax(1) == after.argmax(1)).sum()
    assert not same["nll"].equals(moved["nll"])


def test_a_text_without_white_space_has_no_perplexity_of_words():
    """Case of a text that is one word of a thousand tokens: its perplexity is a number that no float holds."""
    table = pd.DataFrame({"tokens": [1000], "nll": [3000.0], "top1": [0], "top5": [0], "bytes": [4000], "words": [1]})
    for name in ("tokens", "confidence", "hits"):
        table[f"bin_{name}"] = [np.full(15, 1.0)]
    found = to_metrics(summarize(table))
    assert "word_perplexity" not in found and found["perplexity"] == pytest.approx(math.exp(3))
    assert "word_perplexity" in to_metrics(summarize(table.assign(words=9)))
