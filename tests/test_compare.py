"""Comparison: equal is equal, better is better, and the interval covers what it says."""

import math
import re

import numpy as np
import pytest
from support.comparing import PARAMS, scores

from stages.compare import compare_tuning, list_documents
from stages.lib.scoring.comparison import Comparison, compare, describe
from stages.lib.scoring.document_scores import Bins, calibration_error
from stages.summarize import summarize


def test_documents_of_one_group_are_one_unit():
    """Ten customers with four conversations each are ten pieces of evidence, not forty."""
    rng = np.random.default_rng(0)
    tokens = np.repeat(rng.integers(20, 60, 10), 4)
    gain = np.repeat(rng.normal(0.02, 0.1, 10), 4)
    before, after = scores(np.full(40, 3.0), tokens), scores(3.0 - gain, tokens)
    names = np.repeat([f"customer {number}" for number in range(10)], 4)
    grouped = compare(before.assign(group=names), after.assign(group=names), PARAMS)
    summed = compare(scores(np.full(10, 3.0), 4 * tokens[::4]), scores(3.0 - gain[::4], 4 * tokens[::4]), PARAMS)
    assert grouped == summed and grouped.documents == 10
    assert compare(before, after, PARAMS).p_value < grouped.p_value
    single = np.where(np.arange(40) < 8, names, "")  # the others stand alone
    assert compare(before.assign(group=single), after.assign(group=single), PARAMS).documents == 2 + 32


def test_an_arm_equals_itself():
    arm = scores(np.array([3.0, 4.0, 5.0]), np.array([10, 20, 30]))
    found = compare(arm, arm, PARAMS)
    assert found.perplexity_ratio == (1, 1, 1)
    assert (found.documents, found.documents_better) == (3, 0)
    assert found.verdict == "the same"


def test_long_documents_weigh_as_much_as_their_tokens():
    tokens = np.array([10, 1000])
    found = compare(scores(np.array([3.0, 3.0]), tokens), scores(np.array([2.0, 3.1]), tokens), PARAMS)
    difference = (10 * -1.0 + 1000 * 0.1) / 1010  # not the mean of -1 and 0.1
    assert found.nll_difference.value == pytest.approx(difference)
    assert found.perplexity_ratio.value == pytest.approx(math.exp(difference))
    assert found.documents_better == 1


@pytest.mark.parametrize("num_documents", [2, 3, 5, 8, 12])
def test_few_documents_do_not_make_false_verdicts(num_documents):
    """Of 100 comparisons of arms that do not differ, five may be called different."""
    rng, false = np.random.default_rng(num_documents), 0
    for _ in range(100):
        tokens = rng.integers(100, 1000, num_documents)
        before = rng.normal(3.5, 0.5, num_documents)
        after = before + rng.normal(0, 0.1, num_documents)
        false += compare(scores(before, tokens), scores(after, tokens), PARAMS).verdict != "cannot tell"
    assert false <= (0 if num_documents < 6 else 12)  # 12: three standard deviations above five


def test_the_p_value_counts_the_flips_that_shift_as_far():
    tokens = np.array([10, 10, 10, 10, 10, 10])
    after = scores(np.array([2.0, 2.1, 2.2, 2.3, 2.4, 2.5]), tokens)
    found = compare(scores(np.full(6, 3.0), tokens), after, PARAMS)
    assert found.p_value == pytest.approx(2 / 2**6)  # all six fell: only all flips, or none, shift as far


@pytest.mark.parametrize(("shift", "expected"), [(-0.1, "better"), (0.1, "worse"), (0.0, "cannot tell")])
def test_the_verdict_follows_the_interval(shift, expected):
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 500, 40)
    before = rng.normal(3.5, 0.5, 40)
    after = before + shift + rng.permutation(np.linspace(-0.2, 0.2, 40))
    assert compare(scores(before, tokens), scores(after, tokens), PARAMS).verdict == expected


def test_pairing_removes_what_documents_differ_by():
    """They differ far more from one another than the two arms do."""
    rng, widths = np.random.default_rng(0), []
    for _ in range(20):
        tokens = rng.integers(100, 1000, 30)
        before = rng.normal(3.5, 0.5, 30)
        after = before + rng.normal(-0.05, 0.1, 30)
        found = compare(scores(before, tokens), scores(after, tokens), PARAMS)
        widths.append(found.nll_difference.high - found.nll_difference.low)
    assert np.mean(widths) < 5 * 0.1 / math.sqrt(30)


def compared(shifts: np.ndarray, tokens: int = 100) -> Comparison:
    """Compare arms whose documents differ by so many nats per token."""
    lengths = np.full(len(shifts), tokens)
    return compare(scores(np.full(len(shifts), 3.0), lengths), scores(3.0 + shifts, lengths), PARAMS)


def test_a_loss_within_the_margin_is_told_from_one_that_cannot_be_told():
    spread = np.linspace(-0.01, 0.01, 20)
    assert compared(spread).verdict == "not worse by 1 % or more"
    assert compared(6 * spread).verdict == "cannot tell"
    assert compared(spread / 5 + 0.004).verdict == "worse, by less than 1 %"
    assert compared(spread / 5 + 0.02).verdict == "worse"
    assert compared(spread / 5 - 0.004).verdict == "better"


def test_what_cannot_be_told_says_how_much_could_be():
    found = compared(np.linspace(-0.2, 0.22, 20))
    assert found.verdict == "cannot tell"
    assert f"20 documents that differ so show a fall to {found.visible_ratio:.4f} or lower" in describe("x", found)
    needed = int(re.search("would take about ([\\d,]+)", found.limits)[1].replace(",", ""))
    assert needed == math.ceil(20 * (math.log(found.visible_ratio) / 0.01) ** 2)
    assert describe("x", compared(np.array([-0.1, -0.2, -0.1]))) == (
        "x: perplexity times 0.8752 (95 % interval: none from fewer than six): cannot tell "
        "(6 documents at least are needed); lower on 3 of 3 documents"
    )


def test_arms_of_different_documents_are_not_compared():
    arm = scores(np.array([3.0, 4.0]), np.array([10, 20]))
    with pytest.raises(AssertionError):
        compare(arm, arm[::-1].reset_index(drop=True), PARAMS)


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_accuracy():
    bins = Bins(tokens=np.array([4, 0, 6]), confidence=np.array([4 * 0.3, 0, 6 * 0.9]), hits=np.array([2, 0, 5]))
    assert calibration_error(bins) == pytest.approx((4 * abs(0.3 - 2 / 4) + 6 * abs(0.9 - 5 / 6)) / 10)
    assert calibration_error(Bins(*(np.stack([values, values]) for values in bins))).shape == (2,)


def test_a_shift_in_calibration_is_found_with_its_interval():
    rng = np.random.default_rng(0)
    before = scores(np.full(30, 3.0), rng.integers(100, 1000, 30))
    after = before.assign(bin_hits=[1.1 * hits for hits in before["bin_hits"]])  # half to 55 % right
    found = compare(before, after, PARAMS)
    assert found.ece_difference == pytest.approx((-0.05, -0.05, -0.05))


def test_what_tuning_gained_most_on_stands_first():
    tokens = np.array([10, 20, 40])
    arms = {"full": [1.0, 1, 1], "base": [3.0, 3, 3], "tuned": [2.9, 3.5, 1.0]}
    table = list_documents({arm: scores(np.array(nll), tokens) for arm, nll in arms.items()})
    assert table["id"].tolist() == ["2", "0", "1"]
    np.testing.assert_allclose(table["tuned_minus_base"], [-2.0, -0.1, 0.5])


def test_divergence_is_a_sum_over_all_tokens():
    base = scores(np.array([3.0, 4.0]), np.array([10, 30]))
    found = compare_tuning(base, base.assign(kl=[1.0, 5.0], agreed=[5, 25]), PARAMS)
    assert (found.kl_from_base, found.agreement_with_base) == (6 / 40, 30 / 40)


def test_the_summary_holds_what_decides_and_nothing_twice():
    compared, tuned = {"base_to_tuned": {"perplexity_ratio": 0.9}}, {"document": {}, "validation": {"perplexity": 31.0}}
    texts = {"perplexity": {"ratio": 0.9}, "validation": {"perplexity": 31.0}}
    assert summarize({"answers": 0}, compared, tuned) == texts
    answers = {"answers": 8, "metric": "json_fields", "exact_match": {"tuned": 0.1}, "json_fields": {"tuned": 0.7}}
    found = summarize(answers, compared, tuned)
    assert found == {"answers": {"json_fields": 0.7}} | texts and list(found) == sorted(found)  # as DVC lists them
    assert summarize({"answers": 0}, compared, {"document": {}}) == {"perplexity": {"ratio": 0.9}}
