"""The last screen: what was found, before and after, in words and numbers that anybody reads."""

import json

import numpy as np
import pandas as pd
import pytest
from dvc.repo import Repo
from support import grading
from support.comparing import PARAMS, scores
from support.grading import grades, rows

from commands.result import CURVE, GRADED, main, tell, tell_curve
from stages.compare import Comparisons, compare_tuning
from stages.grade import tabulate, to_words
from stages.lib.metrics import parse_metrics, read_metrics, write_metrics, write_summary
from stages.lib.params import Mistake
from stages.lib.records import to_metrics

WANTED = list("abcdefgh")


def curve(validation: list[float]) -> pd.DataFrame:
    """Losses as training writes them: a batch's, and those of the validation documents."""
    rows = [
        (step, text, loss - gap)
        for step, loss in enumerate(validation)
        for text, gap in (("training", step), ("validation", 0))
    ]
    return pd.DataFrame(rows, columns=["step", "text", "loss"])


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Of eight documents and of eight answers, seven of which tuning put right."""
    monkeypatch.chdir(tmp_path)
    lengths = np.full(8, 100)
    base, tuned = (
        scores(pd.Series([nll] * 8).to_numpy() + lengths * 0, lengths).assign(kl=1.0, agreed=50) for nll in (3.0, 2.5)
    )
    tuned["nll"] += range(8)
    for arm in ("full", "base", "tuned"):
        scored = {"perplexity": 20.0, "accuracy": 0.25}
        write_metrics(f"evaluate/{arm}", {"precision": f"{arm} bits, computed here", "document": scored})
    comparison = compare_tuning(base, tuned, PARAMS)
    write_metrics("compare", to_metrics(Comparisons(comparison, comparison, "perplexity fell", ["far away"])))
    write_metrics("train", {"kept_step": 5})
    CURVE.parent.mkdir(parents=True)
    curve([3.0, 2.5]).to_csv(CURVE, index=False)
    before, after = rows(list("axxxxxxx"), WANTED), rows(WANTED, WANTED)
    write_metrics("answers", to_words(grades(before, after), grading.PARAMS))
    GRADED.parent.mkdir()
    table = tabulate(before, after, pd.DataFrame({"base": [1.0] + [0.0] * 7, "tuned": [1.0] * 8}))
    GRADED.write_text("\n".join(map(json.dumps, table)) + "\n")


def test_it_has_the_table_the_verdicts_and_three_answers(results):
    told = tell()
    assert "perplexity                 20.00     20.00     20.00   times" in told
    assert "exact match                          12.5%    100.0%   +88 points (" in told
    assert "of 8, by +87.5 points" in told and "perplexity fell" in told and "warning: far away" in told
    assert "ended                               100.0%    100.0%   +0 points (-32 to +32)" in told
    assert told.count("\n> Question") == 3 and "reference: h" in told and "base:      x  (exact match: 0)" in told
    assert "\nfull: the base model in full bits; base: in base bits; tuned: base with the adapter\n" in told
    assert max(map(len, told.splitlines())) <= 110


def test_nothing_in_an_answer_acts_on_the_terminal(results):
    (row, *_) = map(json.loads, GRADED.read_text().splitlines())
    GRADED.write_text(json.dumps(row | {"tuned": "\x1b[2Jx\x9b\u202e"}) + "\n")
    assert "tuned:     <U+001B>[2Jx<U+009B><U+202E>" in tell()


def test_without_conversations_it_has_the_losses_alone(results):
    write_metrics("answers", {"answers": 0})
    told = tell()
    assert "exact match" not in told and "Question" not in told and "perplexity fell" in told


def test_a_loss_that_never_fell_is_told(results):
    (line,) = tell_curve(curve([3.0, 3.1, 3.2]), kept_step=0)
    assert "3.000 nats per token before training and 3.200 at the end" in line and "is that of no step" in line
    assert tell_curve(curve([3.0, 2.9, 3.2]), kept_step=9) == []
    assert tell_curve(curve([]), kept_step=9) == []  # no validation documents
    curve([3.0, 3.5]).to_csv(CURVE, index=False)
    assert "nothing was learned that helps" in tell()


def test_what_is_not_there_yet_is_said_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["result"])
    with pytest.raises(Mistake, match="not there yet; `make repro` makes it"):
        main()


def test_dvc_passes_over_all_metrics_but_the_summary_and_old_ones_are_read_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_metrics("evaluate/tuned", {"document": {"nll": 3.0}})
    write_summary({"perplexity": {"ratio": 0.9}})
    repo = Repo.init(no_scm=True)
    files = [f"metrics/{name}.json" for name in ("evaluate/tuned", "summary")]
    shown = repo.metrics.show(targets=files)[""]["data"]
    assert [shown[file]["data"] for file in files] == [{}, {"perplexity": {"ratio": 0.9}}]
    assert read_metrics("evaluate/tuned") == parse_metrics('{"document": {"nll": 3.0}}') == {"document": {"nll": 3.0}}
