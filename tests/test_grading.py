"""Grading: right is right however it is written, and answers are compared as experts would."""

import json
import shutil
from decimal import Decimal

import pandas as pd
import pytest
from conftest import REPOSITORY
from scipy.stats import binomtest
from support.grading import PARAMS, grades, rows

from stages import grade as stage
from stages.draw import draw_answers, wilson
from stages.lib.answers.grading import (
    exact_match,
    json_fields,
    last_number,
    score_answers,
    token_f1,
    units_of,
)
from stages.lib.answers.protocol import GradeParams
from stages.lib.metrics import read_metrics
from stages.lib.params import Mistake
from stages.lib.records import to_metrics

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("answer", "score"),
    [("Cafe\u0301 noir", 1), (" Café\n noir ", 1), ("café noir", 0), ("Café noir.", 0), ("Caf\u00e9\u200b noir", 1)],
)
def test_an_exact_match_forgives_what_nobody_sees(answer, score):
    assert exact_match("Café noir", answer) == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [("The cat sat.", 1), ("the CAT", 0.8), ("a dog", 0), ("", 0), ("cat cat cat", 1 / 3), ("sat the cat", 1)],
)
def test_token_f1_counts_words_in_common(answer, score):
    assert token_f1("the cat sat", answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 5 + 7 = 12\n#### 1,012", "1012"),
        ("It costs $1,234.50.", "1234.50"),
        ("from 10-20", "20"),
        ("#### -$5", "-5"),
        ("it is \u22125", "-5"),
        ("1 000 000", "1000000"),
        ("1e5 or .5", "0.5"),
        ("2020,2021", "2021"),
        ("COVID-19", "19"),
        ("it fell to -3", "-3"),
        ("2.50", "2.5"),
        ("pages 3.", "3"),
        ("none", None),
    ],
)
def test_the_last_number_is_found_however_it_is_written(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ('{"b": [1, 2], "a": "x"}', 1),
        ('{"a": "x", "b": [2, 1]}', 1 / 2),
        ('{"a": "x"}', 1 / 2),
        ('{"a": "x", "b": [1, 2], "c": 0}', 2 / 3),
        ('Here: {"a": "x", "b": [1, 2]}', 0),
        ('["a"]', 0),
        ("{", 0),
    ],
)
def test_json_is_compared_field_by_field(answer, share):
    assert json_fields('{"a": "x", "b": [1, 2]}', answer) == pytest.approx(share)
    assert json_fields('{"a": true}', '{"a": 1}') == 0


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ('{"a": 1}', '{"a": 1.0}', 1),
        ('{"a": 100000}', '{"a": 1e5}', 1),
        ('{"a": "Caf\u00e9"}', '{"a": "Cafe\u0301"}', 1),
        ('{"a": {"b": [1, {"c": 2}]}}', '{"a": {"b": [1.0, {"c": 2}]}}', 1),
        ('{"a": 1}', '{"a": NaN}', 0),
        ('{"a": 1}', '{"a": 2, "a": 1}', 0),
        ('{"a": true}', '{"a": 1}', 0),
        ('{"a": 1e400}', '{"a": 1e999}', 0),
        ('{"a": 0.1}', '{"a": 0.10000000000000000001}', 0),
    ],
)
def test_values_of_json_are_compared_as_values(reference, answer, score):
    assert json_fields(reference, answer) == score


def test_signs_and_pictures_are_no_words_but_differ():
    assert token_f1("👍", "👍") == token_f1("!!!", " !!!") == 1
    assert token_f1("👍", "👎") == token_f1("!!!", "???") == token_f1("", "a") == 0


@pytest.mark.parametrize("pattern", ["(", "a{99999999999999}", "(" * 5000])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(ValueError, match="no regular expression"):
        GradeParams(metric="pattern", pattern=pattern, seed=1, resamples=100)
    with pytest.raises(ValueError, match=r"answers\.pattern, which is empty"):
        GradeParams(metric="pattern", pattern="", seed=1, resamples=100)


def test_prompts_that_look_alike_are_one_unit():
    base = rows(["?"] * 4, list("abcd"))
    prompts = "Caf\u00e9\nnoir", "Cafe\u0301 noir", " Caf\u00e9\u200b  noir", "Café blanc"
    for row, prompt in zip(base, prompts, strict=True):
        row["messages"][0]["content"] = prompt
    assert units_of(base).tolist() == [0, 0, 0, 1]


def test_scores_that_references_do_not_allow_for_are_left_out_and_cannot_decide():
    base = rows(["a 1", "b"], ["1", "none"])
    assert (
        "last_number" not in score_answers(base, base, "")[0] and "json_valid" not in score_answers(base, base, "")[0]
    )
    with pytest.raises(Mistake, match="last_number needs a number in the answer of every held-out conversation"):
        grades(base, base, PARAMS.model_copy(update={"metric": "last_number"}))


def test_a_pattern_decides_by_its_group():
    params = PARAMS.model_copy(update={"metric": "pattern", "pattern": r"Answer: (\w+)"})
    found = grades(
        rows(["Answer: C", "B"], ["Answer: A", "Answer: B"]),
        rows(["so, Answer: A!", "Answer: D"], ["Answer: A", "Answer: B"]),
        params,
    )
    assert (found.pattern.base, found.pattern.tuned) == (0, 0.5)


def test_single_answers_are_judged_by_mcnemars_exact_test():
    wanted = [f"yes {number}" for number in range(40)]
    before = rows([text if number < 5 else "no" for number, text in enumerate(wanted)], wanted)
    after = rows([text if 3 <= number < 20 else "no" for number, text in enumerate(wanted)], wanted)
    found = grades(before, after).exact_match
    assert (found.base, found.tuned, found.gained, found.lost) == (5 / 40, 17 / 40, 15, 3)
    assert found.difference.value == pytest.approx(12 / 40)
    assert found.p_value == pytest.approx(binomtest(15, 18).pvalue)
    assert found.difference.low > 0 and "better; 15 became better, 3 worse" in grades(before, after).to_words(
        "exact_match"
    )


def test_answers_of_a_group_and_to_equal_prompts_are_one_piece_of_evidence():
    wanted = [str(number) for number in range(24)]
    before, after = rows(["?"] * 24, wanted), rows([*wanted[:12], *["?"] * 12], wanted)
    once = grades(before, after)
    many = [[row | {"id": f"{copy}-{row['id']}"} for copy in range(3) for row in arm] for arm in (before, after)]
    thrice = grades(*many)
    assert once.units == thrice.units == 24 and thrice.answers == 72
    assert once.exact_match.difference == pytest.approx(thrice.exact_match.difference)
    assert once.exact_match.p_value == thrice.exact_match.p_value
    grouped = [f"customer {number // 4}" for number in range(24)]
    found = grades(*([row | {"group": name} for row, name in zip(arm, grouped)] for arm in (before, after)))
    assert found.units == 6 and found.exact_match.p_value > once.exact_match.p_value


def test_few_answers_tell_nothing():
    assert "cannot tell (6 answers at least are needed" in grades(
        rows(["?"] * 5, list("abcde")), rows(list("abcde"), list("abcde"))
    ).to_words("exact_match")


def test_answers_of_two_arithmetics_are_not_graded(tmp_path, monkeypatch):
    """The base answered on a CPU, say, and came from DVC's cache, where the tuned model answers on a GPU."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/answers").mkdir(parents=True)
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text("answers: {metric: exact_match, pattern: '', seed: 1, resamples: 100}\n")
    for arm, arithmetic in {"base": "fp32 on cpu", "tuned": "bf16 on cuda"}.items():
        (row,) = rows(["a"], ["a"])
        row["precision"] = f"nf4 (79% of the weights), computed in {arithmetic}"
        (tmp_path / f"data/answers/{arm}.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr("sys.argv", ["grade"])
    with pytest.raises(Mistake) as told:
        stage.main()
    assert str(told.value) == (
        "computed in different arithmetic: base in fp32 on cpu, tuned in bf16 on cuda; rounding alone makes a "
        "difference, so compute all of them here: `dvc repro -f -s evaluate generate`, then repeat your command"
    )


def test_the_stage_writes_every_answer_the_largest_gains_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("data/answers", "metrics"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text("answers: {metric: exact_match, pattern: '', seed: 1, resamples: 100}\n")
    wanted = list("abcdefgh")
    for arm, texts in {"base": "axxxxxxh", "tuned": "xbcdefgh"}.items():
        lines = [json.dumps(row) for row in rows(list(texts), wanted)]
        (tmp_path / f"data/answers/{arm}.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("sys.argv", ["grade"])
    stage.main()
    table = pd.read_csv("metrics/answers.csv")
    assert table["id"].tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    graded = [json.loads(line) for line in (tmp_path / "data/graded.jsonl").read_text().splitlines()]
    assert [row["id"] for row in graded] == table["id"].astype(str).tolist()
    assert graded[0]["reference"] == graded[0]["tuned"] == "b" and graded[0]["base"] == "x"
    printed = capsys.readouterr().out
    assert "exact match 25.0% to 87.5% of 8, by +62.5 points" in printed
    assert printed.count("gained most") == 3 and printed.count("lost most") == 1
    metrics = read_metrics("answers")
    assert metrics["exact_match"]["tuned"] == table["tuned"].mean() == 7 / 8
    for arm in ("base", "tuned"):
        (tmp_path / f"data/answers/{arm}.jsonl").write_text("\n")
    stage.main()
    assert read_metrics("answers") == {"answers": 0}
    assert len(pd.read_csv("metrics/answers.csv")) == 0


def test_bars_are_as_high_as_the_scores():
    found = grades(
        rows(["?"] * 20, list("abcdefghijklmnopqrst")), rows(list("abcdefghij??????????"), list("abcdefghijklmnopqrst"))
    )
    figure = draw_answers(to_metrics(found) | {"in_words": "words"})
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [0, 0, 1, 0.5, 0.5, 1]
    assert wilson(0.5, 20) == pytest.approx((0.5, *binomtest(10, 20).proportion_ci(method="wilson")))
    for units in range(6, 1000):
        for share in (0.0, 1.0):
            assert wilson(share, units).low <= share <= wilson(share, units).high
    right = rows(list("abcdefghij"), list("abcdefghij"))
    draw_answers(to_metrics(grades(right, right)) | {"in_words": ""})
    assert "Texts were learned" in draw_answers({"answers": 0}).axes[0].texts[0].get_text()
