"""Pictures: what is drawn is what was measured."""

import math

import numpy as np
import pandas as pd
import pytest
from support.comparing import scores

from stages.draw import bounds_of, draw_calibration, draw_gains, draw_loss_by_context, draw_results, reliability
from stages.lib.records import Interval
from stages.lib.scoring.document_scores import positions


def test_bars_are_as_high_as_the_numbers():
    results = pd.DataFrame(
        [(30.0, 1.5, 0.3), (31.0, 1.6, 0.2), (29.0, 1.4, 0.4)],
        index=["full", "base", "tuned"],
        columns=["perplexity", "bits_per_byte", "accuracy"],
    )
    bounds = {arm: {name: Interval(x, 0.9 * x, 1.2 * x) for name, x in row.items()} for arm, row in results.iterrows()}
    for axes, column in zip(draw_results(results, bounds, "title").axes, results):
        assert [bar.get_height() for bar in axes.patches] == results[column].tolist()
        drawn = np.concatenate([line.get_ydata() for line in axes.lines])
        assert all(np.isclose(drawn, factor * x).any() for x in results[column] for factor in (0.9, 1.2))


def test_each_document_is_a_dot_and_the_largest_gain_stands_highest():
    losses = pd.DataFrame({"tokens": [10, 20, 40], "tuned_minus_base": [-0.3, -0.1, 0.2]})
    (axes,) = draw_gains(losses, Interval(-0.1, -0.25, 0.05)).axes
    np.testing.assert_allclose(axes.collections[-1].get_offsets(), [(0.2, 0), (-0.1, 1), (-0.3, 2)])


def test_the_error_bars_are_those_of_all_documents():
    arm = scores(np.random.default_rng(0).normal(3.5, 0.5, 30), np.full(30, 100)).assign(bytes=400)
    found = bounds_of(arm)
    assert found["perplexity"].value == pytest.approx(math.exp(arm["nll"].sum() / 3000))
    assert found["perplexity"].low == pytest.approx(math.exp(arm["nll"].mean() / 100 - 2.04 * 0.5 / 30**0.5), rel=0.05)
    assert found["bits_per_byte"].value == pytest.approx(arm["nll"].sum() / 12000 / math.log(2))
    assert found["accuracy"] == (0.5, 0.5, 0.5)


def test_reliability_is_drawn_where_there_are_tokens():
    table = reliability(scores(np.array([3.0, 3.0]), np.array([10, 30])))
    assert table[["confidence", "accuracy", "tokens"]].to_numpy().tolist() == [[pytest.approx(0.7), 0.5, 40]]
    line = draw_calibration({"base": table}).axes[0].lines[1]
    np.testing.assert_allclose(line.get_xydata(), [(0.7, 0.5)])


def test_losses_are_drawn_by_the_tokens_seen_before():
    documents = pd.DataFrame(
        {
            "position_tokens": [np.array([1.0, 2, 3]), np.array([1.0, 2, 0])],
            "position_nll": [np.array([5.0, 8, 9]), np.array([7.0, 4, 0])],
        }
    )
    table = positions(documents)
    assert table.reset_index().to_numpy().tolist() == [[1, 2, 6], [2, 4, 3], [4, 3, 3]]
    drawn = draw_loss_by_context(pd.DataFrame({"tuned": table["nll"]})).axes[0].lines[0]
    np.testing.assert_allclose(drawn.get_xydata(), [(1, 6), (2, 3), (4, 3)])
