"""Tasks of the harness: samples are paired or refused, and no word says more than interval and p-values.

None of it needs the harness: tests/test_lm_eval.py has what does.
"""

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.comparing import PARAMS
from support.tasks import results, right

from commands.release import CARD, RELEASE, is_released
from stages.lib.history import current_adapter
from stages.lib.params import Mistake
from stages.lib.scoring.intervals import change, change_of_shares
from stages.lib.scoring.task_comparison import compare_tasks, holm, lay_out, tabulate
from stages.lib.scoring.task_scores import keep, read_scores, to_csv


def compared(base: dict, tuned: dict):
    """Return the only score, and how the two arms differ by it."""
    (score,) = read_scores({"base": base, "tuned": tuned})
    (found,) = compare_tasks([score], "base", "tuned", PARAMS)
    return score, found


def test_yes_and_no_are_compared_by_mcnemar_and_tango():
    score, found = compared(right("+---------"), right("-++++++++-"))
    assert score.values == {"base": 0.1, "tuned": 0.8} and not found.ratio
    assert (found.better, found.worse, found.units) == (8, 1, 10)
    wanted = change_of_shares(np.array([-1.0] + [1.0] * 8 + [0.0]))
    assert (found.change, found.p_value) == wanted and found.p_value == found.p_adjusted == 20 / 2**9
    assert found.verdict == "better"


def test_shares_are_compared_by_sign_flips():
    rng = np.random.default_rng(0)
    before, after = rng.random(9), rng.random(9)
    made = [{"t": {"f1": values.mean()}} for values in (before, after)]
    _, found = compared(*(results({"t": {"f1": list(v)}}, m) for v, m in zip((before, after), made)))
    wanted = change(after - before, np.ones(9), PARAMS.resamples, PARAMS.seed)
    assert found.change == pytest.approx(wanted.interval) and found.p_value == wanted.p_value


def rolling(losses: list[float], words: list[int]) -> dict:
    """Return the results of a task that scores whole texts."""
    values = [(-loss, number) for loss, number in zip(losses, words)]
    mean = sum(losses) / sum(words)
    made = {"word_perplexity": math.exp(mean), "bits_per_byte": mean / math.log(2)}
    return results({"t": dict.fromkeys(made, values)}, {"t": made}, dict.fromkeys(made, False))


def test_perplexities_of_texts_are_ratios_of_sums_over_documents():
    words = [10, 20, 30, 40, 50, 60, 70]
    before, after = [3.0 * n for n in words], [2.9 * n - n % 7 / 10 for n in words]
    scores = read_scores({"base": rolling(before, words), "tuned": rolling(after, words)})
    perplexity, bits = compare_tasks(scores, "base", "tuned", PARAMS)
    gains = np.array(after) - np.array(before)
    wanted = change(gains, np.array(words, float), PARAMS.resamples, PARAMS.seed)
    assert perplexity.ratio and perplexity.change == pytest.approx([math.exp(x) for x in wanted.interval])
    assert not bits.ratio and bits.change == pytest.approx([x / math.log(2) for x in wanted.interval])
    assert perplexity.p_value == bits.p_value == wanted.p_value
    for found in (perplexity, bits):
        assert (found.better, found.worse, found.verdict) == (7, 0, "better")
    assert perplexity.change.value == pytest.approx(scores[0].values["tuned"] / scores[0].values["base"])


def test_a_perplexity_of_answers_is_a_ratio_too():
    logs = [[-1.0, -2, -3, -4, -5, -6, -7], [-1.5, -2.5, -3.5, -4.5, -5.5, -6.5, -8.0]]
    base, tuned = (results({"t": {"perplexity": v}}, {"t": {"perplexity": math.exp(-np.mean(v))}},
                           {"perplexity": False}) for v in logs)  # fmt: skip
    score, found = compared(base, tuned)
    assert found.ratio and found.change.value == pytest.approx(score.values["tuned"] / score.values["base"])
    assert found.verdict == "worse" and found.worse == 7


@pytest.mark.parametrize(
    ("values", "made"),
    [
        ([(0, 1), (1, 1), (0, 0), (1, 0)] * 2, 0.3),  # gold and predicted: mcc, f1
        ([("a", "b")] * 8, 12.0),  # bleu
        ([(0, np.array([0.5, 0.5]))] * 8, 0.5),  # brier_score
        ([0.0, 0, 0, 1, 1, 1, 1, 0.5], 1.0),  # a median
        ([0.0] * 7 + [math.nan], math.nan),
        ([-1.0] * 7 + [-math.inf], math.inf),
        ([None] * 8, 999.0),
    ],
)
def test_what_is_no_mean_of_samples_has_no_test_and_says_so(values, made):
    arms = [results({"t": {"m": values}}, {"t": {"m": made}}) for _ in "ab"]
    score, found = compared(*arms)
    assert score.units is None and found is None
    (line,) = tabulate([score], [found], ("base", "tuned"), ("base", "tuned"))[2:]
    assert line.endswith("| no paired test: not a mean of its samples |")
    laid = lay_out([score], PARAMS)
    json.dumps(laid, allow_nan=False)
    assert "base_to_tuned" not in laid["tasks"]["t"]["m"]


def test_pairs_of_numbers_are_a_sum_and_a_size_only_if_the_size_is_the_documents():
    for before, after in (([(0, 1)] * 8, [(0, 2)] * 8), ([(-9, 3)] * 8 + [(0, 0)], [(-8, 3)] * 8 + [(0, 0)])):
        made = [-sum(a for a, _ in arm) / sum(b for _, b in arm) / math.log(2) for arm in (before, after)]
        arms = [results({"t": {"m": arm}}, {"t": {"m": value}}) for arm, value in zip((before, after), made)]
        assert compared(*arms)[1] is None


def test_a_metric_whose_samples_are_means_in_one_arm_alone_has_no_test():
    base, tuned = right("+++-----"), right("++++----")
    tuned["results"]["t"]["acc,none"] = 0.6
    assert compared(base, tuned)[1] is None


@pytest.mark.parametrize(
    "field", ["doc_hash", "prompt_hash", "target_hash", "arguments", "doc_id", "filter", "metrics"]
)
def test_samples_that_are_not_of_the_same_question_are_refused(field):
    base, tuned = right("++------"), right("+++-----")
    tuned["samples"]["t"][3][field] = (
        ["other"] if field in ("arguments", "metrics") else 99 if field == "doc_id" else "other"
    )
    with pytest.raises(Mistake, match=r"^t: expected the same documents, prompts and targets under all arms, found"):
        read_scores({"base": base, "tuned": tuned})


def test_a_missing_sample_is_refused():
    base, tuned = right("++------"), right("+++-----")
    tuned["samples"]["t"].pop()
    for arms in ({"base": base, "tuned": tuned}, {"tuned": tuned, "base": base}):
        with pytest.raises(Mistake, match="found document 7"):
            read_scores(arms)


def test_samples_are_paired_in_whatever_order_they_come():
    base, tuned, shuffled = right("+---------"), right("-++++++++-"), right("-++++++++-")
    shuffled["samples"]["t"].reverse()
    assert compared(base, tuned)[1] == compared(base, shuffled)[1]


@pytest.mark.parametrize("respell", [str, lambda text: f" {text}\n", lambda text: text.replace(" ", "\u00a0 ")])
def test_equal_questions_are_one_unit_whatever_their_documents_are_called(respell):
    asked = ["What is one?", "What is two?", "What is three?"]
    questions = [*asked, *asked, *map(respell, asked)]
    values = {arm: [value] * 9 for arm, value in (("base", 0.0), ("tuned", 1.0))}
    arms = [results({"t": {"acc": v}}, {"t": {"acc": v[0]}}, questions=questions) for v in values.values()]
    score, found = compared(*arms)
    assert found.units == 3 and score.units["size"].tolist() == [3, 3, 3]
    assert found.verdict == "cannot tell (6 samples at least are needed)"


def test_a_question_that_is_no_text_is_known_by_its_document():
    base, tuned = right("--------"), right("++++++++")
    for arm in (base, tuned):
        for sample in arm["samples"]["t"]:
            sample["question"] = 0  # of a task with several contexts and one ending, it is the number of the right one
    assert compared(base, tuned)[1].units == 8


def test_other_choices_make_another_question():
    base, tuned = (results({"t": {"acc": [v] * 8}}, {"t": {"acc": v}}, questions=[""] * 8) for v in (0.0, 1.0))
    for arm in (base, tuned):
        for number, sample in enumerate(arm["samples"]["t"]):
            sample["arguments"] = [("", f"good {number}"), ("", f"bad {number}")]
    assert compared(base, tuned)[1].units == 8


def test_holm_is_what_textbooks_say():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def many(tests: int) -> list:
    """Return how one task that gained and others that did not differ."""
    gained = ("-" * 8, "+" * 6 + "--")  # p = 2 / 2^6
    pairs = [gained] + [("+-+-+-+-", "-+-+-+-+")] * (tests - 1)
    arms = []
    for arm in (0, 1):
        parts = [right(pair[arm], f"t{number}") for number, pair in enumerate(pairs)]
        arms.append({key: {k: v for part in parts for k, v in part[key].items()} for key in parts[0]})
    return compare_tasks(read_scores({"base": arms[0], "tuned": arms[1]}), "base", "tuned", PARAMS)


def test_of_many_tests_some_differ_by_chance_and_the_verdict_knows():
    alone, two = many(1)[0], many(2)[0]
    assert alone.verdict == "better" and alone.p_value == alone.p_adjusted == 2 / 2**6
    assert two.p_value == 2 / 2**6 and two.p_adjusted == 4 / 2**6 and two.change == alone.change
    assert two.verdict == "cannot tell: better by itself, but not among 2 tests"
    assert [found.verdict for found in many(3)[1:]] == ["cannot tell"] * 2


def test_no_verdict_says_more_than_interval_and_p_values():
    rng = np.random.default_rng(0)
    for _ in range(60):
        tests, samples = rng.integers(1, 5), rng.integers(4, 20)
        marks = ["".join(rng.choice(["+", "-"], samples, p=[p, 1 - p])) for p in rng.random(2 * tests)]
        parts = [[right(mark, f"t{n // 2}") for n, mark in enumerate(marks) if n % 2 == arm] for arm in (0, 1)]
        base, tuned = ({key: {k: v for p in part for k, v in p[key].items()} for key in part[0]} for part in parts)
        for found in compare_tasks(read_scores({"base": base, "tuned": tuned}), "base", "tuned", PARAMS):
            excludes = found.change.low > 0 or found.change.high < 0
            assert (found.p_value <= 0.05 and found.units >= 6) == excludes and found.p_value <= found.p_adjusted
            assert (found.verdict in ("better", "worse")) == (excludes and found.p_adjusted <= 0.05)
            assert found.verdict != "better" or found.better > found.worse


def test_where_a_task_does_not_say_what_is_better_nothing_is():
    base, tuned = (results({"t": {"m": [v] * 8}}, {"t": {"m": v}}, {"m": None}) for v in (1.0, 2.0))
    assert compared(base, tuned)[1].verdict == "higher"
    assert compared(tuned, base)[1].verdict == "lower"


def group(marks: dict[str, str], by_size: bool) -> dict:
    """Return the results of a group of tasks with a value of its own."""
    found = {task: {"acc": [float(mark == "+") for mark in text]} for task, text in marks.items()}
    means = {task: {"acc": float(np.mean(values["acc"]))} for task, values in found.items()}
    every = np.concatenate([values["acc"] for values in found.values()])
    own = float(every.mean()) if by_size else float(np.mean([row["acc"] for row in means.values()]))
    return results(found, means | {"all": {"acc": own}}, groups={"all": list(marks)})


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_stands_for_its_tasks_and_is_one_test(by_size):
    base, tuned = group({"a": "--------", "b": "+--"}, by_size), group({"a": "+++++++-", "b": "-+-"}, by_size)
    score, found = compared(base, tuned)
    assert (score.task, found.tests, found.units, found.better, found.worse) == ("all", 1, 11, 8, 1)
    assert found.change.value == pytest.approx(score.values["tuned"] - score.values["base"])
    assert found.verdict == ("better" if by_size else "cannot tell")  # there, each sample of the small task weighs more


def test_a_group_without_a_value_is_its_tasks():
    base = group({"a": "--------", "b": "+--"}, True)
    del base["results"]["all"]["acc,none"]
    assert [score.task for score in read_scores({"base": base, "tuned": base})] == ["a", "b"]


def test_what_is_no_number_is_no_score():
    arms = [right("++------"), right("+++-----")]
    for arm in arms:
        arm["results"]["t"] |= {"note,none": "N/A", "acc_stderr,none": "N/A"}
    assert compared(*arms)[0].metric == "acc"


def test_answers_filtered_in_two_ways_are_two_metrics():
    arms = []
    for value in (0.0, 1.0):
        one, other = (results({"t": {"em": [v] * 6}}, {"t": {"em": v}}, kind=kind)
                      for v, kind in ((value, "strict"), (1.0, "loose")))  # fmt: skip
        one["samples"]["t"] += other["samples"]["t"]
        one["results"]["t"] |= other["results"]["t"]
        arms.append(one)
    scores = read_scores({"base": arms[0], "tuned": arms[1]})
    assert [score.metric for score in scores] == ["em,strict", "em,loose"]
    strict, loose = compare_tasks(scores, "base", "tuned", PARAMS)
    assert (strict.better, loose.better, strict.tests) == (6, 0, 2)


def test_what_is_shipped_is_compared_with_what_was_tuned():
    arms = {"base": right("--------"), "tuned": right("++++++++"), "released": right("++++++++")}
    laid = lay_out(read_scores(arms), PARAMS, adapter="a.dir")
    row = laid["tasks"]["t"]["acc"]
    assert [name for name in row if "_to_" in name] == ["base_to_tuned", "tuned_to_released"]
    assert (row["base"], row["tuned"], row["released"]) == (0, 1, 1) and row["base_to_tuned"]["p_value"] == 2 / 2**8
    assert sum(line.startswith("| task | metric | tuned | released |") for line in laid["in_words"]) == 1
    assert laid["measured"][0]["adapter"] == "a.dir"


def test_no_text_stands_where_dvc_takes_it_for_a_metric():
    def leaves(node):
        return [leaf for child in node.values() for leaf in leaves(child)] if isinstance(node, dict) else [node]

    laid = lay_out(read_scores({"base": right("--------"), "tuned": right("++++++++")}), PARAMS, adapter="a.dir")
    assert not any(isinstance(leaf, str) for leaf in leaves(laid))


def test_samples_are_kept_with_what_each_arm_answered():
    found = {"base": right("-+"), "tuned": right("++")}
    row, _ = keep("t", found)
    assert row["base"]["acc"] == 0 and row["tuned"]["acc"] == 1 and row["doc"]["text"] == "t, question 0"
    assert row["arguments"][0] == ("An example.\n\nt, question 0", " left") and row["filter"] == "none"


def test_the_units_are_kept_to_the_last_digit():
    scores = read_scores({"base": rolling([1 / 3] * 7, [7] * 7), "tuned": rolling([2 / 3] * 7, [7] * 7)})
    table = pd.read_csv(io.StringIO(to_csv(scores)))
    assert list(table.columns) == ["task", "metric", "unit", "size", "base", "tuned"]
    assert table[table.metric == "word_perplexity"]["tuned"].tolist() == [2 / 3] * 7
    nothing = read_scores({"base": results({"t": {"m": [None]}}, {"t": {"m": 1.0}})})
    assert to_csv(nothing) == "task,metric,unit,size,base\n"


def test_the_adapter_is_what_the_lock_says_or_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage = {"cmd": "mkdir -p models/adapter && cp params.yaml models/adapter/", "params": ["lora"]}
    Path("dvc.yaml").write_text(json.dumps({"stages": {"train": {**stage, "outs": ["models/adapter"]}}}))
    Path("params.yaml").write_text("lora: 8\nrate: 1\n")
    dvc = [sys.executable, "-m", "dvc"]
    for command in (["git", "init", "-q"], [*dvc, "init", "-q"], [*dvc, "repro", "-q"]):
        subprocess.run(command, check=True, capture_output=True)
    lock = Path("dvc.lock").read_text()
    assert current_adapter().endswith(".dir") and current_adapter() in lock
    for file, text in {"params.yaml": "lora: 16\nrate: 1\n", "models/adapter/params.yaml": "other"}.items():
        before = Path(file).read_text()
        Path(file).write_text(text)
        with pytest.raises(
            Mistake, match=r"^models/adapter: not what code, data and params\.yaml make now; `dvc repro`"
        ):
            current_adapter()
        Path(file).write_text(before)
    Path("params.yaml").write_text("lora: 8\nrate: 2\n")  # which no adapter depends on
    assert current_adapter() in lock


def test_a_release_is_of_the_adapter_that_its_card_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_released("1.dir")
    RELEASE.mkdir(parents=True)
    assert not is_released("1.dir")  # its card is written last
    (RELEASE / CARD).write_text("A LoRA adapter (rank 8; in dvc.lock `1.dir`)")
    assert is_released("1.dir") and not is_released("2.dir")
